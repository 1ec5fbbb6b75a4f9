"""Slurm's `srun` for ranks of either MPI. Job scripts use it, `collage-mpi launch` never does."""

from __future__ import annotations

import re
from collections.abc import Mapping

from collage_mpi.system.launchers.base import Launcher, first_number


class Srun(Launcher):
    """A batch script has its variables too, but is not in a step."""

    name = "srun"
    word = "srun"
    who = "srun"
    wire_up = "either"
    by_pmix, by_pmi = "srun --mpi=pmix", "srun --mpi=pmi2 ..."
    ranks = ("SLURM_PROCID",)
    sizes = ("SLURM_NTASKS",)
    local_ranks = ("SLURM_LOCALID",)
    host_numbers = ("SLURM_NODEID",)  # of the step, or of the script that mpirun was typed in

    def started(self, environ: Mapping[str, str]) -> bool:
        """Whether this process is in a step."""
        return environ.get("SLURM_STEP_ID", "").isdecimal()

    def size(self, environ: Mapping[str, str]) -> int | None:
        """Only inside a step: in a batch script the variable is what was asked for, not what was
        started.
        """
        return super().size(environ) if self.started(environ) else None

    def local_size(self, environ: Mapping[str, str]) -> int | None:
        """From the step's variables, because there is no variable for it."""
        if not self.started(environ):
            return None
        node = first_number(self.host_numbers, environ) or 0
        counts = expand_tasks_per_node(environ.get("SLURM_TASKS_PER_NODE", ""))
        return counts[node] if node < len(counts) else None


def expand_tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` as [2, 2, 2, 1]; [] for another form."""
    counts: list[int] = []
    for part in text.split(",") if text else []:
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not found:
            return []
        counts += [int(found.group(1))] * int(found.group(2) or 1)
    return counts

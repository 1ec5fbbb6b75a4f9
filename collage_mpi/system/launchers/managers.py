"""The launchers that belong to a resource manager: Slurm's, Flux's, and PALS under PBS."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping

from collage_mpi.system.launchers.base import Death, Launcher, Site, first_number

_FLUX_NODES = ("FLUX_JOB_NNODES",)
_SIZE = "COLLAGE_MPI_PALS_SIZE"  # by which launch tells it, as PALS with PMIx does not


class Srun(Launcher):
    """Slurm's `srun`, for ranks of either MPI. Job scripts use it, `collage-mpi launch` never does.

    A batch script has the variables of srun too, but is not in a step.
    """

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


class Flux(Launcher):
    """`flux run` of Flux, the resource manager of LLNL and others.

    It forwards SIGTERM and SIGUSR2, and ends all ranks 30 s after the first has ended.
    This class has not been tried under Flux. Variables, options, signals and words are those of
    Flux's own pages and source (github.com/flux-framework/flux-core:
    doc/man7/flux-environment.rst and flux-shell-options.rst, doc/man1/flux-job.rst,
    src/common/libjob).
    """

    name = "flux"
    word = "flux"
    who = "flux run"
    wire_up = "either"
    by_pmix, by_pmi = "flux run -o pmi=pmix", "flux run ..."
    programs = ("flux",)
    versions = (r"\A\s*commands:\s*(\d\S*)\s+libflux-core:",)
    marks = ("FLUX_TASK_RANK",)
    ranks = ("FLUX_TASK_RANK",)
    sizes = ("FLUX_JOB_SIZE",)
    local_ranks = ("FLUX_TASK_LOCAL_ID",)
    lone_line = r"flux-job: task\(s\) .+|[\d.]+s: (job\.exception|flux-shell\[\d+\]: FATAL).*"

    def local_size(self, environ: Mapping[str, str]) -> int | None:
        """Ranks over nodes, because no variable tells it; None if they do not divide."""
        size, nodes = self.size(environ), first_number(_FLUX_NODES, environ)
        return size // nodes if size and nodes and size % nodes == 0 else None

    def flags(self, ranks: int, site: Site, env: Mapping[str, str]) -> list[str]:
        """Flux would bind each rank to one core and share the GPUs out. Without that, every rank
        sees the cores and GPUs of its node, as under other launchers.
        """
        return ["run", "-o", "cpu-affinity=off", "-o", "gpu-affinity=off"]

    def death(self, text: str) -> Death | None:
        """It says how the worst rank ended: by a code, or by a signal in words."""
        found = re.search(r"flux-job: task\(s\) (?:exited with exit code (\d+)|(.+))", text)
        if found is None:
            return None
        if found[1]:
            return Death(int(found[1]))
        words = found[2].removesuffix(" (core dumped)")
        numbers = {signal.strsignal(number): 128 + number for number in signal.valid_signals()}
        return Death(numbers.get(words))


class Pals(Launcher):
    """PALS, the launcher of HPE Cray machines under PBS: `mpiexec`, and `aprun` by hand only.

    It forwards SIGTERM and SIGUSR2. Ranks that survive a lost one are not offered: its
    --no-abort-on-failure is about ranks that exit, and it has not been tried with a lost rank.

    This class has not been tried on a Cray. Options, variables, exits and signals are those of
    HPE's own client (github.com/Cray-HPE/craycli: cray/modules/mpiexec/cli.py, cray/pals.py), and
    options again as a user met them (github.com/mlcommons/storage, pull request 549: PALS 1.7.1).
    The version is recognised as in github.com/E3SM-Project/mache (mache/parallel/pbs.py: PALS
    1.8.0). Ranks' variables are those that Slurm sets in the place of PALS
    (src/plugins/mpi/cray_shasta/mpi_cray_shasta.c), and PALS_LOCAL_SIZE, which users read on
    Aurora, where PALS_PMI is pmix and nothing gives the size.
    """

    name = "pals"
    word = "pals"
    who = "PALS's mpiexec or aprun"
    wire_up = "either"
    by_pmix, by_pmi = "mpiexec --pmi=pmix", "mpiexec --pmi=cray ..."
    versions = (r"\A\s*mpiexec version (\d\S*)",)
    marks = ("PALS_RANKID",)
    ranks = ("PALS_RANKID",)
    sizes = ("PMI_SIZE", _SIZE)
    local_ranks = ("PALS_LOCAL_RANKID",)
    local_sizes = ("PALS_LOCAL_SIZE",)
    host_numbers = ("PALS_NODEID",)
    lone_line = r"\S+: (rank \d+|shepherd) (exited with code \d+|died from signal \d+)"

    def variables(self, ranks: int, site: Site) -> dict[str, str]:
        """The program is not copied to each host, because a copied Python does not find its
        environment. Output comes in whole lines, because launch looks for status lines in it. The
        world's size is set as well.
        """
        return {"PALS_TRANSFER": "0", "PALS_LINE_BUFFER": "1", _SIZE: str(ranks)}

    def flags(self, ranks: int, site: Site, env: Mapping[str, str]) -> list[str]:
        """Spread evenly and not bound; otherwise a rank would have a single core."""
        return ["--ppn", str(-(-ranks // site.hosts)), "--cpu-bind", "none"]

    def death(self, text: str) -> Death | None:
        """It reports all processes that end badly; first the one for which the others were
        ended.
        """
        found = re.search(r": rank (\d+) (exited with code|died from signal) (\d+)", text)
        if found is None:
            return None
        code = int(found[3]) + (128 if found[2].startswith("died") else 0)
        return Death(code, int(found[1]))

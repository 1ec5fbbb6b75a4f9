"""Flux, the resource manager of LLNL and others: `flux run`.

It has not been tried under Flux. Variables, options, signals and words are those of its own pages
and source (github.com/flux-framework/flux-core: doc/man7/flux-environment.rst and
flux-shell-options.rst, doc/man1/flux-job.rst, src/common/libjob).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping

from collage_mpi.system.launchers.base import Death, Launcher, Site, first_number

_NODES = ("FLUX_JOB_NNODES",)


class Flux(Launcher):
    """It forwards SIGTERM and SIGUSR2, and ends all ranks 30 s after the first has ended."""

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
        size, nodes = self.size(environ), first_number(_NODES, environ)
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

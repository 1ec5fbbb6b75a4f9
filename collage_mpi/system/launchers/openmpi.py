"""Open MPI's `mpirun`, which uses PRRTE from version 5 on."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from collage_mpi.system.launchers.base import Death, Launcher, Site, number_in

_ALLOW_ROOT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


class OpenMpi(Launcher):
    """It forwards SIGUSR2, and kills its ranks on SIGTERM."""

    name = "openmpi"
    word = "openmpi"
    who = "Open MPI's mpirun"
    abi = "openmpi"
    wire_up = "pmix"
    versions = (
        r"\((?:Open MPI|OpenRTE|PRRTE|prterun)\)\s*([\w.]+)",
        r"Open MPI[^\d]*([\d.]+\w*)",
    )
    marks = ("OMPI_COMM_WORLD_SIZE",)
    ranks = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK")
    sizes = ("OMPI_COMM_WORLD_SIZE",)
    local_ranks = ("OMPI_COMM_WORLD_LOCAL_RANK",)
    local_sizes = ("OMPI_COMM_WORLD_LOCAL_SIZE",)
    # No PRTE_MCA_prte_if_include: with `lo` alone prterun refuses to start, and its own
    # choice falls back to loopback where there is no network.
    interfaces = ("OMPI_MCA_btl_tcp_if_include",)
    devices = ("UCX_NET_DEVICES",)
    stop_signal = signal.SIGUSR2
    tolerant_flags = ("--with-ft", "ulfm")
    forks = True
    banner = (
        r"\s*(prterun|mpirun|mpiexec|orterun) (detected|has exited|noticed)"
        r"|\s*MPI_ABORT was invoked"
        r"|\s*Primary job +terminated normally"
    )
    telltales = (
        (
            "attempt to run as root",
            "Open MPI refuses to start ranks as root",
            "export " + " ".join(f"{name}={value}" for name, value in _ALLOW_ROOT.items()),
        ),
        (
            "not enough slots",
            "Open MPI counts fewer slots than ranks",
            "ask the batch system for as many tasks as ranks, or "
            "export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe",
        ),
    )

    def tolerates(self, environ: Mapping[str, str]) -> bool:
        """By ULFM, which needs Open MPI's own mpirun; under srun the variable alone means
        nothing.
        """
        told = environ.get("OMPI_MCA_mpi_ft_enable") in ("1", "true")
        return told and "OMPI_COMM_WORLD_RANK" in environ

    def variables(self, ranks: int, site: Site) -> dict[str, str]:
        """Permission to run as root, and ranks that yield if they share cores. On one host also a
        folder of its own: Open MPI names its files by process number, and with old files under a
        number that comes again "the PMIx server's listener thread failed to start". No TCP on one
        host: a rank would listen on all interfaces, and wait 2 s for a connection that says
        nothing.
        """
        found = dict(_ALLOW_ROOT) if site.root else {}
        if site.scratch is not None and site.hosts == 1:
            found["PRTE_MCA_prte_tmpdir_base"] = site.scratch
        if site.hosts == 1:
            found["OMPI_MCA_btl"] = "^tcp"
        if ranks > site.cores * site.hosts:
            found["OMPI_MCA_mpi_yield_when_idle"] = "1"  # a spinning rank starves the others
        return found

    def flags(self, ranks: int, site: Site, env: Mapping[str, str]) -> list[str]:
        """Slots, binding, and the exported variables (across hosts only; ranks on one host inherit
        them).
        """
        # Slots are counted in physical cores, which `site.cores` may exceed: on one host
        # oversubscription is always allowed, and means nothing when it does not happen.
        flags = ["--oversubscribe"] if site.hosts == 1 else []
        flags += ["--bind-to", "none"]
        if site.hosts > 1:
            for name in sorted(env):
                if not name.startswith(("OMPI_", "PRTE_", "PMIX_")):
                    flags += ["-x", name]
        return flags

    def death(self, text: str) -> Death | None:
        """It reports the process that ended first."""
        signal = number_in(text, r"exited on\s+signal (\d+)")
        code = number_in(text, r"Exit code: +(\d+)") if signal is None else 128 + signal
        rank = number_in(text, r"(?:process rank |Process name: \[.*,)(\d+)")
        pid = number_in(text, r"with PID ([1-9]\d*) on node")
        return None if code is None else Death(code, rank, pid)

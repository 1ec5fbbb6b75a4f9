"""The launchers that come with an MPI: `mpiexec` of MPICH and Intel MPI, `mpirun` of Open MPI."""

from __future__ import annotations

import signal
from collections.abc import Mapping

from collage_mpi.system.launchers.base import Death, Launcher, Site, number_in

_SEGV_OR_KILL = 11 | 9
_MORE_SHM = "docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm"
_ALLOW_ROOT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


class Mpich(Launcher):
    """`mpiexec` of MPICH (Hydra). It forwards SIGTERM, and dies of SIGUSR2."""

    name = "mpich"
    word = "hydra"
    who = "MPICH's or Intel's mpiexec"
    versions: tuple[str, ...] = (
        r"HYDRA build details:\s*Version:\s*(\S+)",
        r"(?:MPICH|MVAPICH)\w*[^\d\n]*([\d.]+\w*)",
    )
    marks = ("HYDI_CONTROL_FD", "MPI_LOCALNRANKS")
    hints = ("PMI_SIZE",)  # srun --mpi=pmi2 sets it too
    ranks = ("PMI_RANK",)
    sizes = ("PMI_SIZE",)
    local_ranks = ("MPI_LOCALRANKID",)
    local_sizes = ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE")
    interfaces = ("FI_TCP_IFACE", "HYDRA_IFACE")
    devices: tuple[str, ...] = ("UCX_NET_DEVICES",)
    tolerant_flags: tuple[str, ...] = ("-disable-auto-cleanup",)
    tolerant_how = "by MPICH's flag and a wrapper"
    forks = True
    banner = r"=\s+BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES"
    lone_line = (
        r"\s*Abort\(-?\d+\) on node \d+ \(rank \d+ in comm \d+\): application called MPI_Abort"
        r"|YOUR APPLICATION TERMINATED WITH THE EXIT STRING"
        r"|This typically refers to a problem with your application"
        r"|Please see the FAQ page for debugging suggestions"
    )
    telltales = (
        ("not enough space for /dev/shm", "/dev/shm is too small", _MORE_SHM),
        (
            "EXIT CODE: 7",
            "a rank died of a bus error: /dev/shm is full or too small",
            _MORE_SHM,
        ),
        (
            "unable to find a suitable interface",
            "the launcher finds no usable network interface",
            "on one host: export HYDRA_IFACE=lo FI_TCP_IFACE=lo OMPI_MCA_btl_tcp_if_include=lo",
        ),
    )

    def death(self, text: str) -> Death | None:
        """It reports any process that it ended, and all signals ORed into one number. Only what is
        certain is kept, and no process.
        """
        if "BAD TERMINATION" not in text:
            return None
        code = number_in(text, r"=   EXIT CODE: (\d+)")
        signal = number_in(text, r"EXIT STRING: .*\(signal (\d+)\)")
        if signal is not None:
            code = 128 + signal if signal in (code, _SEGV_OR_KILL) else None
        return Death(code)


class Intel(Mpich):
    """`mpiexec` of Intel MPI, which is derived from MPICH. It ends all ranks when one dies."""

    name = "intel"
    versions = (r"Intel\(R\) MPI Library[^\n]*?Version\s+([\w.]+(?: Update \d+)?)",)
    devices = ()
    tolerant_flags = ()
    tolerant_how = ""
    forks = False


class OpenMpi(Launcher):
    """`mpirun` of Open MPI, which uses PRRTE from version 5 on. It forwards SIGUSR2, and kills its
    ranks on SIGTERM.
    """

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

"""The launchers `mpiexec` of MPICH (Hydra) and of Intel MPI, which is derived from it."""

from __future__ import annotations

from collage_mpi.system.launchers.base import Death, Launcher, number_in

_SEGV_OR_KILL = 11 | 9
_MORE_SHM = "docker run --shm-size=1g, or mount -o remount,size=1g /dev/shm"


class Mpich(Launcher):
    """It forwards SIGTERM, and dies of SIGUSR2."""

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
    """It ends all ranks when one dies."""

    name = "intel"
    versions = (r"Intel\(R\) MPI Library[^\n]*?Version\s+([\w.]+(?: Update \d+)?)",)
    devices = ()
    tolerant_flags = ()
    tolerant_how = ""
    forks = False

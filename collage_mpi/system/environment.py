"""What the environment says about this rank: its number, local rank, device and cores.

The launchers' variables are in `launchers`; those of batch systems are here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from collage_mpi.errors import EnvironmentFault
from collage_mpi.system.launchers import SRUN, first_number, launchers

# Set by `collage-mpi launch` for its ranks: status lines begin with this word. Each launch draws
# another word, so that no other output is taken for a status.
STATUS_VARIABLE = "COLLAGE_MPI_STATUS"

# Set to 1 by data/rank.sh if the launcher does not end the job when a rank is lost.
FAULT_TOLERANT_VARIABLE = "COLLAGE_MPI_FAULT_TOLERANT"

HOSTS_VARIABLES = ("SLURM_JOB_NUM_NODES", "SLURM_NNODES")
# Variables with the path of a file of hosts: PBS's, and those from which the launchers of MPICH and
# Open MPI take their hosts outside a batch system.
HOST_FILES = ("PBS_NODEFILE", "HYDRA_HOST_FILE", "PRTE_MCA_prte_default_hostfile")
CPUS_ON_NODE = "SLURM_CPUS_ON_NODE"
CPUS_PER_TASK = "SLURM_CPUS_PER_TASK"

# Variables that hide GPUs from a process. ROCm applies ROCR_ first and HIP_ to the remaining GPUs.
# Torch on ROCm reads CUDA_VISIBLE_DEVICES as an alias of HIP_VISIBLE_DEVICES.
VISIBLE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


def launcher_rank(environ: Mapping[str, str] = os.environ) -> int | None:
    """This process's rank as its launcher says, or None outside a launcher.

    Usable before MPI is imported, so that one rank alone prints a usage error.
    """
    return _first(first_number(launcher.ranks, environ) for launcher in launchers(environ))


def without_rank(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables that make this process a rank.

    It is for a launcher that a rank starts: the new launcher and its helpers must not be taken for
    this rank.
    """
    of_mpi = (launcher for launcher in launchers(environ) if launcher.versions)
    told = {name for launcher in of_mpi for name in launcher.ranks}
    return {name: value for name, value in environ.items() if name not in told}


def _first(numbers: Iterable[int | None]) -> int | None:
    return next((number for number in numbers if number is not None), None)


def torchrun_size(environ: Mapping[str, str] = os.environ) -> int:
    """How many processes torchrun started; 1 without torchrun.

    Other programs set WORLD_SIZE too, so it counts only beside a variable that only torchrun sets.
    """
    size = environ.get("WORLD_SIZE", "")
    return int(size) if environ.get("TORCHELASTIC_RUN_ID") and size.isdecimal() else 1


def launcher_size(environ: Mapping[str, str] = os.environ) -> int | None:
    """The world size as the launcher says, or None outside a launcher."""
    return _first(launcher.size(environ) for launcher in launchers(environ))


def local_rank(environ: Mapping[str, str] = os.environ) -> int | None:
    """This process's number among the ranks of its host, or None if unknown."""
    return _first(first_number(launcher.local_ranks, environ) for launcher in launchers(environ))


def local_size(environ: Mapping[str, str] = os.environ) -> int | None:
    """How many ranks the launcher started on this host, or None if unknown."""
    return _first(launcher.local_size(environ) for launcher in launchers(environ))


def status_word(environ: MutableMapping[str, str] = os.environ) -> str | None:
    """The word that marks status lines for the launch of this job; None if no launch reads them.

    The first process that asks is the rank. Its number then stands behind the word, because a
    command that the rank starts inherits the variable, but has no status of the job to tell.
    """
    word, _, rank = environ.get(STATUS_VARIABLE, "").partition(" ")
    me = str(os.getpid())
    if word and not rank:
        environ[STATUS_VARIABLE] = f"{word} {me}"
    return word if word and rank in ("", me) else None


def fault_tolerant_launch(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the death of a rank leaves the others alone, as the launcher says."""
    if environ.get(FAULT_TOLERANT_VARIABLE) == "1":
        return True
    return any(launcher.tolerates(environ) for launcher in launchers(environ))


def told_interface(environ: Mapping[str, str] = os.environ) -> str | None:
    """The network device that MPI was told to use, or None."""
    names = (name for launcher in launchers(environ) for name in launcher.interfaces)
    return next((environ[name] for name in names if environ.get(name)), None)


def allocated_hosts(environ: Mapping[str, str] = os.environ) -> int:
    """Number of hosts in the batch allocation of this process, or in its file of hosts; else 1."""
    return max(1, first_number(HOSTS_VARIABLES, environ) or _hosts_of_file(environ))


def _hosts_of_file(environ: Mapping[str, str]) -> int:
    """Number of hosts in the first file of hosts that is set; 0 without one.

    A line names a host: `h1`, `h1:2` or `h1 slots=2`. PBS repeats a line for each slot.
    """
    path = next((environ[name] for name in HOST_FILES if environ.get(name)), None)
    try:
        lines = Path(path).read_text(errors="replace").splitlines() if path else []
    except OSError:
        return 0
    names = (line.partition("#")[0].replace(":", " ").split() for line in lines)
    return len({words[0] for words in names if words})


def allowed_cores(
    environ: Mapping[str, str] = os.environ, cgroup: Path = Path("/sys/fs/cgroup")
) -> int:
    """Cores this process may use: affinity, the container's quota, Slurm's share. At least 1."""
    on_node = first_number((CPUS_ON_NODE,), environ)  # binds where affinity is not enforced
    known = len(affinity()) or os.cpu_count(), _cgroup_cores(cgroup), on_node
    return min(filter(None, known), default=1)


def affinity() -> list[int]:
    """The cores that this process may run on; [] if the system does not say (macOS)."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def _cgroup_cores(cgroup: Path) -> int | None:
    """Whole cores of a cgroup v2 or v1 CPU quota, rounded up; None without a quota."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError):
            quota, period = " ".join((cgroup / name).read_text() for name in names).split()
            limited = quota.isdecimal() and period.isdecimal() and int(period) > 0
            return max(1, -(-int(quota) // int(period))) if limited else None  # "max" or -1: none
    return None


def available_bytes(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Free memory of this host, or of this process's container; None if unknown.

    For a container it is the limit minus what it uses; files that the kernel caches for it count as
    used.
    """
    found = []
    with suppress(OSError, KeyError, ValueError, IndexError):
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    with suppress(OSError, ValueError):  # no limit ("max"), or no cgroup v2
        limit, held = (int((cgroup / f"memory.{n}").read_text()) for n in ("max", "current"))
        found.append(max(0, limit - held))
    return min(found, default=None)


def threads_per_rank(ranks_on_host: int, environ: Mapping[str, str] = os.environ) -> int:
    """Compute threads for each rank of a host: cores // ranks, at least 1.

    In a Slurm step with --cpus-per-task it is that number: the affinity may already be the task's
    own cores and must not be divided again.
    """
    cores, per_task = allowed_cores(environ), first_number((CPUS_PER_TASK,), environ)
    if per_task and SRUN.started(environ):
        return min(per_task, cores)
    return max(1, cores // max(1, ranks_on_host))


def processes_here() -> int:
    """How many processes a command should use here: one for each core that this process has."""
    return threads_per_rank(local_size() or launcher_size() or 1)


def visible_devices(environ: Mapping[str, str] = os.environ) -> str | None:
    """The value of the environment variable that limits the visible GPUs; None if none is set."""
    return next((environ[name] for name in VISIBLE_VARIABLES if name in environ), None)


def visible_entries(visible: str | None) -> list[str] | None:
    """The entries of CUDA_VISIBLE_DEVICES or its ROCm equivalent, as text; None if unset.

    Entries may be `0`, `GPU-8932f937-...` or `MIG-...`, so they are never converted to numbers. As
    in CUDA, the list ends at the first entry that is empty or -1.
    """
    if visible is None:
        return None
    entries: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry in ("", "-1", "NoDevFiles", "none", "void"):
            break
        entries.append(entry)
    return entries


def local_gpu_rank(rank: int, environ: Mapping[str, str] = os.environ, team: int = 0) -> int | None:
    """This rank's number among the ranks of its host that hold a network; None for rank 0.

    If the launcher gives no local rank, all ranks are assumed to be on one host. On rank 0's own
    host the numbers shift by one. All ranks of a host must shift alike, or two ranks would take the
    same device. So the host decides, not the rank (Open MPI's mpirun numbers ranks 0, 1, 2, 3 of a
    two-socket host 0, 2, 1, 3). If a host is taken for rank 0's by mistake, its devices are only
    rotated and stay evenly shared.

    Args:
        team: ranks of each of several teams, whose coordinators hold no network either; 0 for
            one team. Teams lie along hosts, so the other ranks of a host have consecutive
            numbers.
    """
    if rank == 0:
        return None
    if team:
        return None if rank % team == 0 else rank - 1 - rank // team
    local = local_rank(environ)
    if local is None:
        return rank - 1
    return local - 1 if _beside_rank_0(rank, local, environ) else local


def _beside_rank_0(rank: int, local: int, environ: Mapping[str, str]) -> bool:
    size = launcher_size(environ)
    if size is not None and size == local_size(environ):
        return True
    host = _first(first_number(launcher.host_numbers, environ) for launcher in launchers(environ))
    return rank == local if host is None else host == 0


def assign_device(
    local_gpu_rank: int | None, visible: str | None, device: str, gpu_count: int
) -> str:
    """The torch device of a rank: "cpu" or "cuda:K".

    K counts the GPUs that the process sees, so the form of an entry does not matter. If there are
    more GPU ranks than GPUs, they share them round robin.

    Args:
        local_gpu_rank: this rank's number among the ranks of its host that hold a network
            (rank 0 holds none and passes None).
        visible: CUDA_VISIBLE_DEVICES or its ROCm equivalent; None if unset.
        device: "auto", "cpu" or "cuda".
        gpu_count: GPUs that torch sees in this process.

    Raises:
        EnvironmentFault: "cuda" is asked for and no GPU is visible.
    """
    if local_gpu_rank is None or device == "cpu":
        return "cpu"
    entries = visible_entries(visible)
    usable = gpu_count if entries is None else min(gpu_count, len(entries))
    if usable > 0:
        return f"cuda:{local_gpu_rank % usable}"
    if device == "cuda":
        seen = "unset" if visible is None else repr(visible)
        raise EnvironmentFault(
            f"--device cuda: this rank sees no GPU (torch counts {gpu_count}, "
            f"CUDA_VISIBLE_DEVICES is {seen}). Ask for GPUs (e.g. --gpus-per-node), install a "
            "CUDA build of torch, or use --device cpu"
        )
    return "cpu"

"""Where a rank is: launcher variables, local rank, device, cores. Reads the environment.

Owns: the names of launcher and Slurm variables (all of them are here), the cores a
process may use, which device a GPU rank takes.
Does not know: communicators, torch, settings, roles (see placement).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from collage_mpi.errors import EnvironmentFault, UsageError

# First match wins. The launcher of the job itself comes before the batch system: mpiexec
# inside an sbatch script also shows the script's own SLURM_PROCID=0 to every rank.
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")
LOCAL_RANK_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID")
LOCAL_SIZE_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "PMI_LOCAL_SIZE")

# What torchrun tells a training process. RANK alone may be anybody's, and other launchers
# set it too: these count only where TORCHELASTIC_RUN_ID says that torchrun is there.
TORCHRUN_ID = "TORCHELASTIC_RUN_ID"
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")

# The rank's environment under `collage-mpi launch`: machine-readable progress is wanted, in lines
# that are marked by this word, which nobody else knows: it is another one in every launch.
STATUS_VARIABLE = "COLLAGE_MPI_STATUS"

# A launch whose ranks outlive each other: data/rank.sh sets the first (lost ranks are not the
# launcher's business there); Open MPI's mpirun --with-ft ulfm the second.
FAULT_TOLERANT_VARIABLE = "COLLAGE_MPI_FAULT_TOLERANT"
ULFM_VARIABLE = "OMPI_MCA_mpi_ft_enable"
MPIRUN_VARIABLE = "OMPI_COMM_WORLD_RANK"

# Who has several networks tells MPI by these which device the hosts reach each other by.
INTERFACE_VARIABLES = ("FI_TCP_IFACE", "HYDRA_IFACE", "OMPI_MCA_btl_tcp_if_include")

HOSTS_VARIABLES = ("SLURM_JOB_NUM_NODES", "SLURM_NNODES")
CPUS_ON_NODE = "SLURM_CPUS_ON_NODE"
CPUS_PER_TASK = "SLURM_CPUS_PER_TASK"
TASKS_PER_NODE = "SLURM_TASKS_PER_NODE"
NODE_ID = "SLURM_NODEID"
STEP_ID = "SLURM_STEP_ID"

# What hides GPUs from a process. ROCm applies ROCR_ first and HIP_ within what is left;
# torch on ROCm reads CUDA_VISIBLE_DEVICES as an alias of HIP_VISIBLE_DEVICES.
VISIBLE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")

DEVICES = ("auto", "cpu", "cuda")


def _first_number(names: Sequence[str], environ: Mapping[str, str]) -> int | None:
    for name in names:
        value = environ.get(name, "")
        if value.isdecimal():
            return int(value)
    return None


def launcher_rank(environ: Mapping[str, str] = os.environ) -> int | None:
    """This process's rank as its launcher says, or None outside a launcher.

    Usable before MPI is imported, so that one rank alone prints a usage error.
    """
    return _first_number(RANK_VARIABLES, environ)


def mpi_rank(environ: Mapping[str, str]) -> int | None:
    """A process's rank as its MPI launcher says: a batch script and mpiexec itself have none."""
    return _first_number([name for name in RANK_VARIABLES if name != "SLURM_PROCID"], environ)


@dataclass(frozen=True)
class TorchrunPlace:
    """One training process among those that torchrun started, on one host or several."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    host_number: int


def torchrun_place(environ: Mapping[str, str] = os.environ) -> TorchrunPlace | None:
    """This process's place under torchrun, or None where torchrun did not start it."""
    values = [environ.get(name, "") for name in TORCHRUN_VARIABLES]
    if not environ.get(TORCHRUN_ID) or not all(value.isdecimal() for value in values):
        return None
    return TorchrunPlace(*map(int, values))


def telling_rank(environ: Mapping[str, str] = os.environ) -> int | None:
    """Which of the processes with this command line it is: only 0, or None, tells errors.

    torchrun comes first: where srun starts one torchrun a host, SLURM_PROCID is that of
    torchrun, the same for all its processes.
    """
    place = torchrun_place(environ)
    return launcher_rank(environ) if place is None else place.rank


def launcher_size(environ: Mapping[str, str] = os.environ) -> int | None:
    """The world size as the launcher says, or None outside a launcher.

    Slurm's word is taken only inside a job step (srun): in a batch script the same
    variable says what was asked for, not what was started.
    """
    found = _first_number(SIZE_VARIABLES[:-1], environ)
    if found is None and in_slurm_step(environ):
        found = _first_number(SIZE_VARIABLES[-1:], environ)
    return found


def local_rank(environ: Mapping[str, str] = os.environ) -> int | None:
    """This process's number among the ranks of its host, or None if not told."""
    return _first_number(LOCAL_RANK_VARIABLES, environ)


def local_size(environ: Mapping[str, str] = os.environ) -> int | None:
    """How many ranks the launcher put on this host, or None if not told."""
    found = _first_number(LOCAL_SIZE_VARIABLES, environ)
    if found is None and in_slurm_step(environ):
        node = _first_number((NODE_ID,), environ) or 0
        counts = expand_tasks_per_node(environ.get(TASKS_PER_NODE, ""))
        found = counts[node] if node < len(counts) else None
    return found


def in_slurm_step(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether srun started this process (a batch script is not in a step)."""
    return environ.get(STEP_ID, "").isdecimal()


def status_word(environ: Mapping[str, str] = os.environ) -> str | None:
    """What marks the status lines that the launcher of this job reads; None if it reads none."""
    return environ.get(STATUS_VARIABLE) or None


def fault_tolerant_launch(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the death of a rank leaves the others alone, as the launcher says.

    ULFM needs Open MPI's own mpirun: under srun the variable alone means nothing.
    """
    if environ.get(FAULT_TOLERANT_VARIABLE) == "1":
        return True
    return MPIRUN_VARIABLE in environ and environ.get(ULFM_VARIABLE) in ("1", "true")


def told_interface(environ: Mapping[str, str] = os.environ) -> str | None:
    """The network device that MPI was told to use, or None."""
    return next((environ[name] for name in INTERFACE_VARIABLES if environ.get(name)), None)


def expand_tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` as [2, 2, 2, 1]; [] if it is not of that form."""
    counts: list[int] = []
    for part in text.split(",") if text else []:
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not found:
            return []
        counts += [int(found.group(1))] * int(found.group(2) or 1)
    return counts


def allocated_hosts(environ: Mapping[str, str] = os.environ) -> int:
    """Hosts of the batch allocation this process is in; 1 outside of one."""
    return max(1, _first_number(HOSTS_VARIABLES, environ) or 1)


def allowed_cores(
    environ: Mapping[str, str] = os.environ, cgroup: Path = Path("/sys/fs/cgroup")
) -> int:
    """Cores this process may use: affinity, the container's quota, Slurm's share. At least 1."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        cores = os.cpu_count() or 1
    quota = _cgroup_cores(cgroup)
    if quota is not None:
        cores = min(cores, quota)
    on_node = _first_number((CPUS_ON_NODE,), environ)  # binds where affinity is not enforced
    if on_node:
        cores = min(cores, on_node)
    return max(1, cores)


def _cgroup_cores(cgroup: Path) -> int | None:
    """Whole cores of a cgroup v2 or v1 CPU quota, rounded up; None without a quota."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not (quota.isdecimal() and period.isdecimal() and int(period) > 0):
        return None  # "max" or -1: no limit
    return max(1, -(-int(quota) // int(period)))


def threads_per_rank(
    ranks_on_host: int, cores: int | None = None, environ: Mapping[str, str] = os.environ
) -> int:
    """Compute threads for each rank of a host: cores // ranks, at least 1.

    In a Slurm step that states --cpus-per-task, that number: the affinity may be the
    task's own cores already, and must not be divided again.
    """
    if cores is None:
        per_task = _first_number((CPUS_PER_TASK,), environ)
        if per_task and in_slurm_step(environ):
            return max(1, min(per_task, allowed_cores(environ)))
        cores = allowed_cores(environ)
    return max(1, cores // max(1, ranks_on_host))


def processes_wanted(flag: str, given: int | None) -> int:
    """How many processes of a command work at a time: those asked for, or the cores at hand.

    Raises:
        UsageError: fewer than one are asked for; `flag` is how.
    """
    if given is None:
        return threads_per_rank(local_size() or launcher_size() or 1)
    if given < 1:
        raise UsageError(f"{flag} {given}: at least 1 is needed")
    return given


def visible_devices(environ: Mapping[str, str] = os.environ) -> str | None:
    """What this process's environment says of the GPUs it may see; None if nothing."""
    for name in VISIBLE_VARIABLES:
        if name in environ:
            return environ[name]
    return None


def visible_entries(visible: str | None) -> list[str] | None:
    """The entries of CUDA_VISIBLE_DEVICES or its ROCm kin, as text; None if unset.

    Entries may be `0`, `GPU-8932f937-...` or `MIG-...`, so they are never numbers here.
    As CUDA does, the list ends at the first entry that is empty or -1.
    """
    if visible is None:
        return None
    entries: list[str] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry in ("", "-1", "NoDevFiles", "none", "void"):
            break
        entries.append(entry)
    return entries


def local_gpu_rank(rank: int, environ: Mapping[str, str] = os.environ) -> int | None:
    """This rank's number among the ranks of its host that hold a network; None for rank 0.

    Where the launcher tells no local rank, all ranks are taken to be on one host. On rank
    0's own host the numbers shift by one. All ranks of a host must shift alike, or two
    would take one device: so what decides is the host, not the rank (Open MPI's mpirun
    numbers ranks 0, 1, 2, 3 of a two-socket host 0, 2, 1, 3). A host taken for rank 0's
    by mistake only rotates its devices: they stay evenly shared.
    """
    if rank == 0:
        return None
    local = local_rank(environ)
    if local is None:
        return rank - 1
    return local - 1 if _beside_rank_0(rank, local, environ) else local


def _beside_rank_0(rank: int, local: int, environ: Mapping[str, str]) -> bool:
    size = launcher_size(environ)
    if size is not None and size == local_size(environ):
        return True
    if NODE_ID in environ:  # of the step, or of the batch script that mpirun was typed in
        return environ[NODE_ID] == "0"
    return rank == local


def assign_device(
    local_gpu_rank: int | None, visible: str | None, device: str, gpu_count: int
) -> str:
    """The torch device of a rank: "cpu" or "cuda:K".

    K counts within what the process sees, so an entry's own form does not matter. More
    GPU ranks than GPUs share them round robin.

    Args:
        local_gpu_rank: this rank's number among the ranks of its host that hold a network
            (rank 0 holds none and passes None).
        visible: CUDA_VISIBLE_DEVICES or its ROCm kin as found; None if unset.
        device: "auto", "cpu" or "cuda".
        gpu_count: GPUs that torch sees in this process.

    Raises:
        UsageError: `device` is not one of DEVICES.
        EnvironmentFault: "cuda" is asked for and no GPU is visible.
    """
    if device not in DEVICES:
        raise UsageError(f"--device {device}: allowed are {', '.join(DEVICES)}")
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

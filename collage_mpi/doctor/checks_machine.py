"""Checks of this host: cores, shared memory, limits, output folder, input, Slurm, GPUs."""

from __future__ import annotations

from collections.abc import Iterator

from collage_mpi.doctor.facts import BAD, WARN, Facts, Finding, Folder, Gpus, bad, ok, warn
from collage_mpi.system.environment import visible_entries
from collage_mpi.system.printable import counted

MIB = 1 << 20

# Measured with 11 ranks that each sent 200 kB. MPICH 5 takes 5.4 MiB of /dev/shm for each rank, and
# dies of SIGBUS if /dev/shm is full. Open MPI 5 wants 16 MiB free, of which it uses little;
# otherwise it warns and uses a slower way.
MPICH_SHM_BYTES = int(5.5 * MIB)
OPENMPI_SHM_BYTES = 17 * MIB

RESULT_BYTES_PER_IMAGE = 500  # rows of image, tasks and group are 197 + 2 x 166 + 55 bytes at most
DISK_BAD_BYTES = 64 * MIB
DISK_WARN_BYTES = 1024 * MIB
FILES_BASE, FILES_PER_RANK = 256, 8  # pipes and sockets of the launcher and of rank 0
SLURM_PARTS = {  # what the doctor shows of a job
    "SLURM_STEP_ID": "step {}",
    "SLURM_JOB_NUM_NODES": "nodes {}",
    "SLURM_NTASKS": "tasks {}",
    "SLURM_CPUS_PER_TASK": "cpus a task {}",
    "SLURM_GPUS_ON_NODE": "GPUs on node {}",
    "SLURM_MPI_TYPE": "--mpi={}",
    "SLURM_RESTART_COUNT": "restart {}",
}


def check_cores(facts: Facts) -> Iterator[Finding]:
    """There are enough cores for the ranks of this host."""
    machine = facts.machine
    ranks, cores = machine.ranks_here, machine.cores
    if not machine.ranks_told:
        yield ok("cores", f"{cores} usable")
    elif ranks > cores:
        yield warn(
            "cores",
            f"{ranks} ranks on {cores} cores: a job works, but ranks share cores, which makes its "
            "latencies longer",
            "for measurements use a host or an allocation with a core for each rank",
        )
    else:
        yield ok("cores", f"{cores} usable for {counted(ranks, 'rank')}")


def check_threads(facts: Facts) -> Iterator[Finding]:
    """Compute threads of all ranks fit on the cores."""
    machine = facts.machine
    fair = max(1, machine.cores // machine.ranks_here)
    number = [int(text) for text in machine.threads.values() if text.isdecimal()]
    most = max(number, default=None)
    if most is None:
        yield ok("threads", f"OMP_NUM_THREADS is not set: {fair} a rank will be used")
    elif most > fair:
        names = [name for name, text in machine.threads.items() if text == str(most)]
        supposed = "" if machine.ranks_told else " of a job with side 3"
        yield warn(
            "threads",
            f"{names[0]}={most} for each of {machine.ranks_here} ranks{supposed} on "
            f"{machine.cores} cores: the threads compete for the cores",
            f"unset {' '.join(names)} and use `collage-mpi launch`, or export {names[0]}={fair}",
        )
    else:
        yield ok("threads", ", ".join(f"{k}={v}" for k, v in machine.threads.items()))


def check_shared_memory(facts: Facts) -> Iterator[Finding]:
    """/dev/shm has room for the files of the MPI library."""
    machine, library = facts.machine, facts.mpi.library
    if machine.shm_free_bytes is None:
        return
    if library is not None and library.abi == "openmpi":
        needed = OPENMPI_SHM_BYTES
    else:
        needed = MPICH_SHM_BYTES * machine.ranks_here
    dies = library is None or library.abi == "mpich"
    free = size_text(machine.shm_free_bytes)
    name = library.name if library else "MPI"
    if machine.shm_free_bytes < needed:
        yield Finding(
            "/dev/shm",
            BAD if dies else WARN,
            f"{free} free; {name} needs {size_text(needed)} for {machine.ranks_here} ranks: "
            + ("without it they die of a bus error" if dies else "without it MPI uses slower ways"),
            "give the container more shared memory (docker run --shm-size=1g, --ipc=host), or "
            "mount -o remount,size=1g /dev/shm. If no MPI job runs here, remove the files of "
            "killed jobs: rm -f /dev/shm/mpich_shm_* /dev/shm/sm_segment.*",
        )
    else:
        yield ok("/dev/shm", f"{free} free")


def check_open_files(facts: Facts) -> Iterator[Finding]:
    """The limit on open files allows a socket for each rank."""
    machine = facts.machine
    ranks = max(machine.ranks_here, facts.wanted.ranks or 0)
    needed = FILES_BASE + FILES_PER_RANK * ranks
    if machine.files_soft is None:
        yield ok("open files", "no limit")
    elif machine.files_soft < needed:
        raised = machine.files_hard is None or machine.files_hard >= needed
        yield bad(
            "open files",
            f"at most {machine.files_soft}; {ranks} ranks may need {needed}",
            f"ulimit -n {needed}" if raised else "ask the site to raise the hard limit (nofile)",
        )
    else:
        yield ok("open files", f"up to {machine.files_soft}")


def check_folder(facts: Facts) -> Iterator[Finding]:
    """Results can be written, and there is enough free space."""
    folder = facts.folder
    if folder is None:
        return
    where = folder.path if folder.named else "current folder"
    if folder.error is not None:
        yield Finding(
            "output",
            BAD if folder.named else WARN,
            f"{where}: cannot write: {folder.error}",
            "choose another --out: a folder you may write to, on a file system all hosts share",
        )
        return
    yield _room(folder, where, facts)
    if folder.named and folder.holds is not None:
        complete = folder.holds == "complete"
        yield warn(
            "output",
            f"{where} holds a {'complete' if complete else 'unfinished'} run already",
            "choose another --out" + ("" if complete else ", or go on with run --resume"),
        )


def _room(folder: Folder, where: str, facts: Facts) -> Finding:
    free = folder.free_bytes or 0
    images = facts.shards.images if facts.shards else 0
    needed = images * RESULT_BYTES_PER_IMAGE
    on = f" on {folder.kind}" if folder.kind else ""
    found = f"{where}: {size_text(free)} free{on}"
    if folder.sync_ms is not None:
        found += f", sync takes {folder.sync_ms:.1f} ms"
    if images:
        found += f"; {images} images need up to {size_text(needed)}"
    if free < max(DISK_BAD_BYTES, needed):
        return bad("output", found + ": too little", "free space, or choose another --out")
    if free < max(DISK_WARN_BYTES, 2 * needed):
        return warn("output", found + ": little", "free space, or choose another --out")
    return ok("output", found)


def check_hdf5(facts: Facts) -> Iterator[Finding]:
    """HDF5 files can be written where results go."""
    folder = facts.folder
    if folder is None or not folder.hdf5_tried:
        return
    if folder.hdf5_error is not None:
        yield bad(
            "HDF5",
            f"cannot write and read a file in {folder.tested}: {folder.hdf5_error}",
            "export HDF5_USE_FILE_LOCKING=FALSE; if that does not help, put the shards on "
            "another file system",
        )
    else:
        yield ok("HDF5", f"files can be written and read in {folder.tested}")


def check_shards(facts: Facts) -> Iterator[Finding]:
    """The input opens."""
    shards = facts.shards
    if shards is None:
        return
    if shards.error is not None:
        fix = "name .h5 files or folders of them; see collage-mpi shards verify, collage-mpi prep"
        yield bad("shards", shards.error, fix)
    else:
        yield ok(
            "shards", f"{counted(shards.files, 'file')} with {counted(shards.images, 'image')}"
        )


def check_slurm(facts: Facts) -> Iterator[Finding]:
    """What the batch system says, and common mistakes in job scripts."""
    slurm = facts.slurm
    job = slurm.get("SLURM_JOB_ID")
    if job is None:
        yield ok("Slurm", "not in a Slurm job")
        return
    told = (text.format(value) for name, text in SLURM_PARTS.items() if (value := slurm.get(name)))
    yield ok("Slurm", ", ".join([f"job {job}", *told]))
    in_step = "SLURM_STEP_ID" in slurm
    per_task = slurm.get("SLURM_CPUS_PER_TASK")
    if per_task and not in_step and slurm.get("SRUN_CPUS_PER_TASK") != per_task:
        yield warn(
            "Slurm cpus",
            f"--cpus-per-task={per_task} of this job is not passed on to srun",
            f"export SRUN_CPUS_PER_TASK={per_task} before srun",
        )
    # Slurm 24.11 sets SLURM_TRES_BIND=gres/gpu:per_task:1, older versions SLURM_GPUS_PER_TASK.
    if "SLURM_GPUS_PER_TASK" in slurm or "per_task" in slurm.get("SLURM_TRES_BIND", ""):
        yield warn(
            "Slurm GPUs",
            "--gpus-per-task hides each rank's GPU from the others, and gives rank 0 a GPU that it "
            "does not use",
            "ask with --gpus-per-node=N: each rank that holds a network takes one of its own",
        )


def check_gpus(facts: Facts) -> Iterator[Finding]:
    """Whether torch can use the GPUs that the driver and the environment show."""
    gpus = facts.gpus
    required = facts.wanted.device == "cuda"
    there = max(len(gpus.installed), gpus.driver_count or 0, gpus.torch_count or 0)
    if facts.wanted.device == "cpu" or there == 0:
        yield _no_gpu(gpus, required)
        return
    severe = BAD if required else WARN
    name = f"{gpus.installed[0]}" if gpus.installed else "GPU"
    shown = _visible_count(gpus, there)
    if gpus.visible and shown < there:
        variable, value = gpus.visible
        yield Finding(
            "GPUs",
            severe if shown == 0 else WARN,
            f"{there} x {name}, but {variable}={value!r} leaves {shown} visible",
            f"unset {variable}; under Slurm ask with --gpus-per-node",
        )
    elif shown < there:
        yield Finding(
            "GPUs",
            severe,
            f"nvidia-smi lists {there}, but this process sees {shown}: its job asked for no more",
            "ask for them: --gpus-per-node=N (Slurm), --gpus all (Docker)",
        )
    if shown > 0:
        yield _torch_and(gpus, shown, name, severe)


def _visible_count(gpus: Gpus, there: int) -> int:
    """Number of GPUs that this process may use, from the driver or the environment variable."""
    if gpus.driver_count is not None:
        return gpus.driver_count
    entries = visible_entries(gpus.visible[1] if gpus.visible else None)
    return there if entries is None else min(there, len(entries))


def _no_gpu(gpus: Gpus, required: bool) -> Finding:
    if required:
        return bad(
            "GPUs",
            "--device cuda, but neither the driver nor torch shows a GPU",
            "ask for GPUs (--gpus-per-node=N, --gpus all), or use --device cpu",
        )
    hidden = f" ({gpus.visible[0]}={gpus.visible[1]!r})" if gpus.visible else ""
    return ok("GPUs", f"none used{hidden}: networks run on the CPU")


def _torch_and(gpus: Gpus, shown: int, name: str, severe: str) -> Finding:
    build = gpus.torch_build
    if build is None:
        return ok("GPUs", f"{shown} x {name}; torch, which would use them, is not installed")
    if build == "cpu":
        return Finding(
            "GPUs",
            severe,
            f"{shown} x {name}, but this torch is a CPU build: networks would run on the CPU",
            "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126",
        )
    if (gpus.torch_count or 0) < shown:
        return Finding(
            "GPUs",
            severe,
            f"the driver shows {shown} x {name}, torch ({build}) sees {gpus.torch_count or 0}",
            "the driver may be older than torch's CUDA: compare nvidia-smi, and install a torch "
            "built for it (https://pytorch.org/get-started/previous-versions)",
        )
    return ok("GPUs", f"{shown} x {name}, torch {build} sees them")


def size_text(nbytes: int) -> str:
    """Bytes for people: `64 MiB`, `77.0 GiB`."""
    if nbytes >= 1 << 30:
        return f"{nbytes / (1 << 30):.1f} GiB"
    return f"{nbytes / MIB:.0f} MiB" if nbytes >= MIB else f"{nbytes / 1024:.0f} KiB"

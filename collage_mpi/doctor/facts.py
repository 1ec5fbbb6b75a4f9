"""The records of the facts that the doctor gathers, and of its findings.

None means "not examined" or "not there"; each record says which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from collage_mpi.launch.mpiexec import Mpi

OK, WARN, BAD = "ok", "warn", "bad"


@dataclass(frozen=True)
class Finding:
    """One line of the screen: a verdict, and the fix if there is a problem."""

    name: str
    verdict: str
    found: str
    fix: str | None = None


def ok(name: str, found: str) -> Finding:
    """Something is as it should be."""
    return Finding(name, OK, found)


def warn(name: str, found: str, fix: str) -> Finding:
    """A job runs, but not as well as it could."""
    return Finding(name, WARN, found, fix)


def bad(name: str, found: str, fix: str) -> Finding:
    """A job would probably not run."""
    return Finding(name, BAD, found, fix)


@dataclass(frozen=True)
class WantedJob:
    """The job that the machine is examined for.

    Attributes:
        ranks: world size; None if the user did not say.
        run: the settings of `run` that decide which ranks there are (RankSettings, teams), as
            far as the user gave them.
        device: auto, cpu or cuda.
        mpi, mpiexec: as of `launch`.
    """

    ranks: int | None
    run: Mapping[str, Any]
    device: str
    mpi: str
    mpiexec: str | None


@dataclass(frozen=True)
class Package:
    """A Python package that a job needs.

    Attributes:
        minimum: the oldest version that works.
        version: None if it is not installed, or does not load.
        error: why it does not load.
    """

    name: str
    minimum: str | None = None
    version: str | None = None
    error: str | None = None


NO_ANSWER = "no answer within"  # start of the error if an import took too long


@dataclass(frozen=True)
class Python:
    """The interpreter."""

    version: str
    executable: str


@dataclass(frozen=True)
class Library:
    """The MPI library that mpi4py loads; abi is "mpich" or "openmpi".

    `pmix` says whether its ranks can be started over PMIx.
    """

    abi: str
    name: str  # "MPICH 5.0.2"
    pmix: bool = False


@dataclass(frozen=True)
class MpiFacts:
    """Library and launchers.

    Attributes:
        library: None if none can be loaded; `library_error` says why.
        overrides: environment variables that choose mpi4py's library, as set here.
        launchers: available ones, best first.
        on_path: the `mpiexec` that is found on PATH.
        started_by: the `word` in system/launchers of the launcher that started this process;
            None if unknown.
        pmix: whether it was started over PMIx.
        under_launcher: whether a launcher started this process.
        fork_obstacle: why `launch` cannot fork ranks here; None if it can.
        ulfm: whether this Open MPI was built with fault tolerance; None if unknown.
    """

    library: Library | None = None
    library_error: str | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)
    launchers: tuple[Mpi, ...] = ()
    on_path: Mpi | None = None
    started_by: str | None = None
    pmix: bool = False
    under_launcher: bool = False
    fork_obstacle: str | None = None
    ulfm: bool | None = None


@dataclass(frozen=True)
class Gpus:
    """GPUs, as nvidia-smi, the driver and torch report them.

    Attributes:
        installed: names that nvidia-smi lists, visible to this process or not.
        driver_count: GPUs that the driver shows this process; None without a driver.
        torch_build: "cpu", "cuda 12.4", "rocm 6.2"; None without torch.
        torch_count: GPUs that torch sees; None without torch.
        visible: the variable that limits them and its value; None if none is set.
    """

    installed: tuple[str, ...] = ()
    driver_count: int | None = None
    torch_build: str | None = None
    torch_count: int | None = None
    visible: tuple[str, str] | None = None


@dataclass(frozen=True)
class HostFacts:
    """This host, as far as this process may use it.

    Attributes:
        ranks_here: ranks of the job on this host, known or assumed.
        ranks_told: whether the launcher or the user gave that number.
        threads: variables that set compute threads, as set here.
        shm_free_bytes: of /dev/shm; None if there is none.
        files_soft, files_hard: limits on open files; None for no limit.
    """

    host: str
    cores: int
    ranks_here: int
    ranks_told: bool
    threads: Mapping[str, str] = field(default_factory=dict)
    shm_free_bytes: int | None = None
    files_soft: int | None = None
    files_hard: int | None = None


@dataclass(frozen=True)
class Folder:
    """The folder that a run would write to. `tested` is `path`, or the nearest existing folder.

    Attributes:
        named: whether the user named it; else it is the current folder.
        error: why nothing can be written there.
        sync_ms: time to write, sync and rename a small file.
        free_bytes: for this user.
        kind: of file system, e.g. "nfs4"; None if unknown.
        holds: "run" (unfinished), "complete", or None.
        hdf5_tried: whether HDF5 was tried; it needs h5py and a writable folder.
        hdf5_error: why an HDF5 file cannot be written and read as collage_mpi does it.
    """

    path: str
    tested: str
    named: bool
    error: str | None = None
    sync_ms: float | None = None
    free_bytes: int | None = None
    kind: str | None = None
    holds: str | None = None
    hdf5_tried: bool = False
    hdf5_error: str | None = None


@dataclass(frozen=True)
class ShardCount:
    """The input: how many files and images, or the error."""

    files: int = 0
    images: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Facts:
    """All facts that one process can find out about its machine."""

    wanted: WantedJob
    python: Python
    packages: tuple[Package, ...]
    mpi: MpiFacts
    gpus: Gpus
    machine: HostFacts
    folder: Folder | None = None
    shards: ShardCount | None = None
    slurm: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rank:
    """One rank as it sees itself.

    Attributes:
        device: "cpu", "cuda:K", or None if it may use none (`problem` says why).
        gpu: the entry of CUDA_VISIBLE_DEVICES for the device; None if unknown.
        visible: CUDA_VISIBLE_DEVICES or its ROCm equivalent; None if unset.
        gpu_count: GPUs that the driver shows to it.
        threads: compute threads that it would use.
        affinity: the cores it may run on, e.g. "0-3,8".
        host_cores: all cores of its host.
        omp: OMP_NUM_THREADS; None if unset.
        software: versions of collage_mpi, Python and the MPI library, for comparison.
    """

    rank: int
    host: str
    cores: int
    threads: int
    affinity: str
    host_cores: int
    software: str
    device: str | None = None
    gpu: str | None = None
    visible: str | None = None
    gpu_count: int = 0
    omp: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class World:
    """The ranks that reported to rank 0, and those that did not.

    Attributes:
        size: as MPI says.
        launcher_size: as the launcher says; None if it does not say.
        seconds: from the first look for reports to the last one.
    """

    size: int
    launcher_size: int | None
    ranks: tuple[Rank, ...]
    missing: tuple[int, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Trial:
    """A small job that the doctor started to see whether ranks start.

    Attributes:
        asked: number of ranks to start.
        world: the ranks that reported; None if none did.
        singletons: how many processes said that they are alone.
        output: the last lines that the job printed.
        exit_code: of the launcher.
        timed_out: whether the time limit ended it.
    """

    asked: int
    seconds: float
    world: World | None = None
    singletons: int = 0
    output: tuple[str, ...] = ()
    exit_code: int = 0
    timed_out: bool = False

"""Gathers all facts that one process can find out about its machine, and runs all checks on them.

Attempts that may crash or hang run in child processes, all at once, each with a time limit.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from collage_mpi.doctor import checks_machine as machine
from collage_mpi.doctor import checks_software as software
from collage_mpi.doctor.facts import (
    BAD,
    NO_ANSWER,
    Facts,
    Finding,
    Folder,
    Gpus,
    HostFacts,
    Library,
    MpiFacts,
    Package,
    Python,
    ShardCount,
    WantedJob,
)
from collage_mpi.launch.mpiexec import (
    THREAD_VARIABLES,
    abi_of,
    available,
    fork_obstacle,
    inspect_launcher,
)
from collage_mpi.results.file_names import MANIFEST, MARKER
from collage_mpi.system.environment import (
    VISIBLE_VARIABLES,
    allocated_hosts,
    allowed_cores,
    launcher_size,
    local_size,
)
from collage_mpi.system.launchers import over_pmix, starter
from collage_mpi.system.process_tree import ask, own_command

PACKAGES = ("numpy", "h5py", "isal", "mpi4py", "torch", "pillow", "safetensors", "rich")
PROBE_LIMIT_S = 60.0  # time to import torch from a slow network file system
TOOL_LIMIT_S = 10.0
DEFAULT_RANKS = 11  # assumed number of ranks: side 3

HOLDS = {MARKER: "complete", MANIFEST: "run"}
MPI4PY_VARIABLES = ("MPI4PY_MPIABI", "MPI4PY_LIBMPI")
SLURM_VARIABLES = (
    *("SLURM_JOB_ID", "SRUN_CPUS_PER_TASK", "SLURM_GPUS_PER_TASK", "SLURM_TRES_BIND"),
    *machine.SLURM_PARTS,
)


def gather(
    wanted: WantedJob,
    out: Path | None,
    shards: Sequence[str],
    environ: Mapping[str, str] = os.environ,
) -> Facts:
    """All facts of this process. It takes as long as `import torch`, at most PROBE_LIMIT_S."""
    with ThreadPoolExecutor() as pool, scratch_in(out) as (folder, scratch):
        probes = {name: pool.submit(probe, "package", name) for name in PACKAGES}
        launchers = pool.submit(lambda: tuple(available(wanted.mpi, wanted.mpiexec)))
        typed = pool.submit(inspect_launcher, Path(shutil.which("mpiexec") or "mpiexec"))
        smi = pool.submit(nvidia_smi)
        driver = pool.submit(probe, "rank")
        ulfm = pool.submit(ompi_has_ulfm)
        opened = pool.submit(probe, "shards", json.dumps(list(shards))) if shards else None
        hdf5 = pool.submit(probe, "hdf5", str(scratch)) if scratch else None
        found, least = {name: each.result() for name, each in probes.items()}, minimums()
        if hdf5 is not None and found["h5py"].get("version"):
            folder = {**folder, "hdf5_tried": True, "hdf5_error": hdf5.result().get("error")}
        return Facts(
            wanted=wanted,
            python=Python(platform.python_version(), sys.executable),
            packages=tuple(
                Package(name, least.get(name), told.get("version"), told.get("error"))
                for name, told in found.items()
            ),
            mpi=MpiFacts(
                library=library_of(found["mpi4py"]),
                library_error=found["mpi4py"].get("library_error"),
                overrides={name: environ[name] for name in MPI4PY_VARIABLES if name in environ},
                launchers=launchers.result(),
                on_path=typed.result(),
                started_by=started_by(environ),
                pmix=over_pmix(environ),
                under_launcher=launcher_size(environ) is not None,
                fork_obstacle=fork_obstacle(environ),
                ulfm=ulfm.result(),
            ),
            gpus=Gpus(
                installed=smi.result(),
                driver_count=driver.result().get("gpus"),
                torch_build=found["torch"].get("build"),
                torch_count=found["torch"].get("count"),
                visible=next(((n, environ[n]) for n in VISIBLE_VARIABLES if n in environ), None),
            ),
            machine=machine_facts(wanted, environ),
            folder=Folder(**folder),
            shards=ShardCount(**opened.result()) if opened else None,
            slurm={name: environ[name] for name in SLURM_VARIABLES if name in environ},
        )


def probe(task: str, argument: str = "") -> dict[str, Any]:
    """Run one `collage_mpi.doctor.probe`; its answer, or {"error": ...} if it crashed or hung."""
    command = [*own_command("collage_mpi.doctor.probe"), task, argument]
    try:
        done = ask(command, PROBE_LIMIT_S)
    except subprocess.TimeoutExpired:
        return {"error": f"{NO_ANSWER} {PROBE_LIMIT_S:.0f} s"}
    if done.returncode < 0:
        return {"error": f"the process died of {signal.Signals(-done.returncode).name}"}
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        return {"error": (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]}


def minimums() -> dict[str, str]:
    """Minimum version of each package, from this package's metadata; {} if it is not installed."""
    try:
        lines = metadata.requires("collage-mpi") or []
    except metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w-]+)>=([\d.]+)\s*$", line) for line in lines)
    return {match.group(1): match.group(2) for match in found if match}


def ompi_has_ulfm() -> bool | None:
    """Whether the Open MPI of this Python, or on PATH, was built with ULFM."""
    tool = shutil.which("ompi_info", path=str(Path(sys.executable).parent)) or shutil.which(
        "ompi_info"
    )
    found = re.search(r"FT MPI support: (\w+)", _tool([tool]) if tool else "")
    return None if found is None else found.group(1) == "yes"


def nvidia_smi() -> tuple[str, ...]:
    """The names of the host's GPUs; () without nvidia-smi."""
    tool = shutil.which("nvidia-smi")
    text = _tool([tool, "--query-gpu=name", "--format=csv,noheader"]) if tool else ""
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _tool(command: Sequence[str]) -> str:
    """The output of a command-line tool; "" if it fails."""
    try:
        done = ask(command, TOOL_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def library_of(answer: Mapping[str, Any]) -> Library | None:
    """The MPI library in the answer of a probe of mpi4py."""
    if "library" not in answer:
        return None
    return Library(abi_of(answer["vendor"]), answer["library"], bool(answer.get("pmix")))


def started_by(environ: Mapping[str, str] = os.environ) -> str | None:
    """The launcher that started this process, as one word: openmpi, hydra, srun, or None."""
    launcher = starter(environ)
    return None if launcher is None else launcher.word


def machine_facts(wanted: WantedJob, environ: Mapping[str, str]) -> HostFacts:
    """Facts about this host."""
    world = launcher_size(environ) or wanted.ranks
    here = local_size(environ) if launcher_size(environ) else None
    soft, hard = (
        None if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    return HostFacts(
        host=socket.gethostname(),
        cores=allowed_cores(environ),
        ranks_here=here or -(-(world or DEFAULT_RANKS) // allocated_hosts(environ)),
        ranks_told=world is not None,
        threads={name: environ[name] for name in THREAD_VARIABLES if name in environ},
        shm_free_bytes=free_bytes(Path("/dev/shm")),
        files_soft=soft,
        files_hard=hard,
    )


def free_bytes(path: Path) -> int | None:
    """Free space for this user on the file system of `path`; None if `path` does not exist."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def nearest(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next((each for each in (path, *path.parents) if each.exists()), path)


@contextmanager
def scratch_in(out: Path | None) -> Iterator[tuple[dict[str, Any], Path | None]]:
    """Facts of the output folder, and a temporary folder in it for further tests."""
    path = (out or Path()).absolute()
    tested = nearest(path)
    facts: dict[str, Any] = {"path": str(out or path), "tested": str(tested)}
    facts |= {"named": out is not None, "free_bytes": free_bytes(tested)}
    holds = [word for name, word in HOLDS.items() if (path / name).exists()]
    facts |= {"kind": file_system(tested), "holds": next(iter(holds), None)}
    scratch = None
    with ExitStack() as stack:
        try:
            made = tempfile.mkdtemp(prefix=".collage-mpi-doctor-", dir=tested)
            stack.callback(shutil.rmtree, made, ignore_errors=True)
            facts["sync_ms"] = _write_a_part(Path(made))
            scratch = Path(made)
        except OSError as error:
            facts["error"] = f"{error.strerror} ({tested})"
        yield facts, scratch


def _write_a_part(scratch: Path) -> float:
    """Write, sync and rename 64 KiB, as for results; the time in ms. Raises OSError."""
    began_s = time.monotonic()
    with (scratch / "part.tmp").open("wb") as file:
        file.write(bytes(1 << 16))
        file.flush()
        os.fsync(file.fileno())
    (scratch / "part.tmp").rename(scratch / "part")
    return (time.monotonic() - began_s) * 1e3


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """The kind of file system of a path, e.g. `nfs4`; None if unknown."""
    try:
        lines = [line.split() for line in mounts.read_text(errors="replace").split("\n")]
    except OSError:
        return None
    resolved = str(path.resolve()) + "/"
    found = [
        (len(words[1]), words[2])
        for words in lines
        if len(words) > 2 and resolved.startswith(words[1].rstrip("/") + "/")
    ]
    return max(found)[1] if found else None


CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    software.check_python,
    software.check_packages,
    software.check_library,
    software.check_launcher,
    software.check_fault_tolerance,
    machine.check_gpus,
    machine.check_cores,
    machine.check_threads,
    machine.check_shared_memory,
    machine.check_open_files,
    machine.check_folder,
    machine.check_hdf5,
    machine.check_shards,
    machine.check_slurm,
)


def examine(facts: Facts) -> list[Finding]:
    """All findings about this process's machine and software."""
    return [finding for check in CHECKS for finding in check(facts)]


def can_meet(facts: Facts) -> bool:
    """Whether MPI can be started here; with the wrong launcher it would abort the process."""
    packages = {package.name: package for package in facts.packages}
    needed = all(
        package.version is not None and package.error is None
        for name in ("numpy", "mpi4py")
        if (package := packages.get(name)) is not None
    )
    return needed and facts.mpi.library is not None and software.launcher_fits(facts.mpi)


def is_bad(findings: Iterable[Finding]) -> bool:
    """Whether a job would probably not run."""
    return any(finding.verdict == BAD for finding in findings)

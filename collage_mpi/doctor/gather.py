"""Gathers everything that one process can know about its machine. Risky attempts run in child
processes, all at once, each with a time limit.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from collage_mpi.doctor.facts import (
    NO_ANSWER,
    Clock,
    Facts,
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
from collage_mpi.doctor.folder import free_bytes, scratch_in
from collage_mpi.launch.mpiexec import (
    THREAD_VARIABLES,
    Mpi,
    abi_of,
    inspect_launcher,
    launcher_candidates,
)
from collage_mpi.system.environment import (
    VISIBLE_VARIABLES,
    allocated_hosts,
    allowed_cores,
    launcher_size,
    local_size,
)
from collage_mpi.system.launchers import over_pmix, starter
from collage_mpi.system.process_tree import own_command

PACKAGES = ("numpy", "h5py", "isal", "mpi4py", "torch", "pillow", "safetensors", "rich")
PROBE_LIMIT_S = 60.0  # torch from a cold network file system
TOOL_LIMIT_S = 10.0
DEFAULT_RANKS = 11  # side 3: what is supposed when nobody says

MPI4PY_VARIABLES = ("MPI4PY_MPIABI", "MPI4PY_LIBMPI")
SLURM_VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS",
    "SLURM_CPUS_PER_TASK",
    "SRUN_CPUS_PER_TASK",
    "SLURM_GPUS_ON_NODE",
    "SLURM_GPUS_PER_TASK",
    "SLURM_TRES_BIND",
    "SLURM_MPI_TYPE",
    "SLURM_RESTART_COUNT",
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
        launchers = pool.submit(_launchers, wanted)
        smi = pool.submit(nvidia_smi)
        driver = pool.submit(probe, "rank")
        ulfm = pool.submit(ompi_has_ulfm)
        opened = pool.submit(probe, "shards", json.dumps(list(shards))) if shards else None
        hdf5 = pool.submit(probe, "hdf5", str(scratch)) if scratch else None
        locking = {"HDF5_USE_FILE_LOCKING": "TRUE"}
        locks = pool.submit(probe, "locks", str(scratch), locking) if scratch else None
        found = {name: future.result() for name, future in probes.items()}
        if hdf5 is not None and locks is not None and found["h5py"].get("version"):
            errors = {"hdf5_error": hdf5.result(), "lock_error": locks.result()}
            folder["hdf5_tried"] = True
            folder = folder | {name: answer.get("error") for name, answer in errors.items()}
        return Facts(
            wanted=wanted,
            python=_python(),
            packages=tuple(_package(name, found[name]) for name in PACKAGES),
            mpi=_mpi(found["mpi4py"], launchers.result(), ulfm.result(), environ),
            gpus=_gpus(found["torch"], driver.result(), smi.result(), environ),
            machine=machine_facts(wanted, environ),
            folder=Folder(**folder),
            shards=ShardCount(**opened.result()) if opened else None,
            slurm={name: environ[name] for name in SLURM_VARIABLES if name in environ},
        )


def probe(task: str, argument: str = "", env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The answer of one `collage_mpi.doctor.probe`; {"error": ...} if it crashed or hung."""
    command = [*own_command("collage_mpi.doctor.probe"), task, argument]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_LIMIT_S,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
        )
    except subprocess.TimeoutExpired:
        return {"error": f"{NO_ANSWER} {PROBE_LIMIT_S:.0f} s"}
    if done.returncode < 0:
        return {"error": f"the process died of {signal.Signals(-done.returncode).name}"}
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        return {"error": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}


def _python() -> Python:
    version = ".".join(map(str, sys.version_info[:3]))
    try:
        minimum = str(metadata.metadata("collage-mpi")["Requires-Python"]).lstrip(">= ")
    except (metadata.PackageNotFoundError, KeyError):
        minimum = None
    return Python(version, sys.executable, minimum)


def _package(name: str, answer: Mapping[str, Any]) -> Package:
    return Package(name, minimums().get(name), answer.get("version"), answer.get("error"))


def minimums() -> dict[str, str]:
    """The minimum version of each package, from the metadata of this one; {} if not installed."""
    try:
        lines = metadata.requires("collage-mpi") or []
    except metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w-]+)>=([\d.]+)\s*$", line) for line in lines)
    return {match.group(1): match.group(2) for match in found if match}


def _launchers(wanted: WantedJob) -> tuple[tuple[Mpi, ...], Mpi | None]:
    """Available launchers, best first, and the one that is run when typed by hand."""
    if wanted.mpiexec is not None:
        path = shutil.which(wanted.mpiexec)
        paths = [Path(path)] if path else []
    else:
        paths = list(launcher_candidates())
    inspected = tuple(mpi for path in paths if (mpi := inspect_launcher(path)) is not None)
    typed = shutil.which("mpiexec")
    return inspected, inspect_launcher(Path(typed)) if typed else None


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
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TOOL_LIMIT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _mpi(
    answer: Mapping[str, Any],
    launchers: tuple[tuple[Mpi, ...], Mpi | None],
    ulfm: bool | None,
    environ: Mapping[str, str],
) -> MpiFacts:
    return MpiFacts(
        library=library_of(answer),
        library_error=answer.get("library_error"),
        overrides={name: environ[name] for name in MPI4PY_VARIABLES if name in environ},
        launchers=launchers[0],
        on_path=launchers[1],
        started_by=started_by(environ),
        pmix=over_pmix(environ),
        under_launcher=launcher_size(environ) is not None,
        ulfm=ulfm,
    )


def library_of(answer: Mapping[str, Any]) -> Library | None:
    """The MPI library in the answer of a probe of mpi4py."""
    if "library" not in answer:
        return None
    return Library(abi_of(answer["vendor"]), answer["library"], bool(answer.get("pmix")))


def started_by(environ: Mapping[str, str] = os.environ) -> str | None:
    """The launcher that started this process, as one word: openmpi, hydra, srun, or None."""
    launcher = starter(environ)
    return None if launcher is None else launcher.word


def _gpus(
    torch: Mapping[str, Any],
    driver: Mapping[str, Any],
    installed: tuple[str, ...],
    environ: Mapping[str, str],
) -> Gpus:
    visible = next(((name, environ[name]) for name in VISIBLE_VARIABLES if name in environ), None)
    return Gpus(installed, driver.get("gpus"), torch.get("build"), torch.get("count"), visible)


def machine_facts(wanted: WantedJob, environ: Mapping[str, str] = os.environ) -> HostFacts:
    """This host."""
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
        root=os.geteuid() == 0,
        clock=_clock(),
        threads={name: environ[name] for name in THREAD_VARIABLES if name in environ},
        shm_free_bytes=free_bytes(Path("/dev/shm")),
        files_soft=soft,
        files_hard=hard,
    )


def _clock() -> Clock:
    readings = [time.monotonic_ns() for _ in range(2000)]
    steps = [b - a for a, b in pairwise(readings)]
    smallest = min((step for step in steps if step > 0), default=10**9)
    sound = time.get_clock_info("monotonic").monotonic and min(steps) >= 0
    return Clock(sound, smallest)

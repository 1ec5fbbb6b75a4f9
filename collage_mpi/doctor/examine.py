"""Looks at this host, and has the checks judge it. What may crash or hang runs in child processes,
all at once, each with a time limit.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from collage_mpi.doctor.checks import (
    BAD,
    NO_ANSWER,
    OK,
    WARN,
    Finding,
    check_cores,
    check_gpus,
    check_open_files,
    check_packages,
    check_ranks,
    check_shared_memory,
)
from collage_mpi.doctor.hello import try_ranks
from collage_mpi.errors import CollageError
from collage_mpi.launch.mpiexec import (
    THREAD_VARIABLES,
    Mpi,
    abi_of,
    find_mpi,
    inspect_launcher,
    mpi4py_library,
)
from collage_mpi.system.environment import (
    VISIBLE_VARIABLES,
    allocated_hosts,
    allowed_cores,
    launcher_size,
    local_size,
)
from collage_mpi.system.files import free_bytes
from collage_mpi.system.process_tree import ask, own_command

PACKAGES = ("numpy", "h5py", "isal", "mpi4py", "torch", "pillow", "safetensors", "rich")
PROBE_LIMIT_S = 60.0  # time to import torch from a slow network file system
TOOL_LIMIT_S = 10.0
MPI4PY_VARIABLES = ("MPI4PY_MPIABI", "MPI4PY_LIBMPI")  # they choose its library


@dataclass(frozen=True)
class Wanted:
    """The job that the host is examined for.

    Attributes:
        ranks: of the whole job.
        device: auto, cpu or cuda.
        mpi, mpiexec: as of `launch`.
        no_launch: start no ranks.
    """

    ranks: int
    device: str
    mpi: str
    mpiexec: str | None
    no_launch: bool


def examine(
    wanted: Wanted, met: int | None = None, environ: Mapping[str, str] = os.environ
) -> Iterator[Finding]:
    """All findings about this host, in the order of the screen.

    Args:
        wanted: the job.
        met: size of the world in which this process has met other ranks; None if it is alone.
        environ: variables of this process.
    """
    yield Finding("python", OK, f"{platform.python_version()} ({sys.executable})")
    with ThreadPoolExecutor() as pool:
        probes = {name: pool.submit(probe, name) for name in PACKAGES}
        installed = pool.submit(nvidia_smi)
        told = {name: each.result() for name, each in probes.items()}
    yield from check_packages(told, minimums())
    findings, library, mpi = look_at_mpi(wanted, environ)
    yield from findings
    visible = next(((name, environ[name]) for name in VISIBLE_VARIABLES if name in environ), None)
    yield from check_gpus(wanted.device, installed.result(), told["torch"], visible)
    size = launcher_size(environ)
    here = (local_size(environ) if size else None) or -(-wanted.ranks // allocated_hosts(environ))
    threads = {name: environ[name] for name in THREAD_VARIABLES if name in environ}
    yield from check_cores(allowed_cores(environ), here, threads)
    yield from check_shared_memory(free_bytes(Path("/dev/shm")), here, library)
    soft, hard = (
        None if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    yield from check_open_files(soft, hard, max(here, wanted.ranks))
    if met is not None and size is not None:
        yield check_ranks(met, size)
    elif mpi is not None and not wanted.no_launch:
        yield try_ranks(mpi)


def probe(name: str) -> dict[str, Any]:
    """The answer of `doctor.probe` for a package, or {"error": ...} if it crashed or hung."""
    try:
        done = ask([*own_command("collage_mpi.doctor.probe"), name], PROBE_LIMIT_S)
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


def nvidia_smi() -> tuple[str, ...]:
    """The names of the host's GPUs; () without nvidia-smi, or if it fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        done = ask([tool, "--query-gpu=name", "--format=csv,noheader"], TOOL_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    lines = done.stdout.splitlines() if done.returncode == 0 else []
    return tuple(line.strip() for line in lines if line.strip())


def look_at_mpi(
    wanted: Wanted, environ: Mapping[str, str]
) -> tuple[list[Finding], str, Mpi | None]:
    """Findings about MPI, the library that mpi4py loads, and the launcher that `launch` takes.

    The launcher is None if none fits, or if a launcher has started this process.
    """
    try:
        library = mpi4py_library()
    except CollageError as fault:
        names = [name for name in MPI4PY_VARIABLES if name in environ]
        found = ", ".join([str(fault), *(f"{name}={environ[name]}" for name in names)])
        fix = f"unset {' '.join(names)}" if names else "install or load the MPI that is named here"
        return [Finding("MPI library", BAD, found, fix)], "MPI", None
    findings = [Finding("MPI library", OK, f"{library}, loaded by mpi4py")]
    if launcher_size(environ) is not None:
        return findings, library, None
    try:
        mpi = find_mpi(wanted.mpi, wanted.mpiexec)
    except CollageError as fault:
        found, _, fix = str(fault).partition(". What to do: ")
        fix = fix or "leave --mpiexec out, or name the mpiexec of the MPI that mpi4py loads"
        return [*findings, Finding("launcher", BAD, found, fix)], library, None
    findings.append(Finding("launcher", OK, f"{mpi}: fits the library"))
    typed = inspect_launcher(Path(shutil.which("mpiexec") or "mpiexec"))
    if typed is not None and typed.abi != abi_of(library):
        found = f"mpiexec on PATH is {typed}, but mpi4py loads {library}: every rank would be rank "
        fix = f"use `collage-mpi launch`, or {mpi.mpiexec}"
        findings.append(Finding("mpiexec", WARN, f"{found}0 of 1", fix))
    return findings, library, mpi

"""Looks at this host, and has the checks judge it. What may crash or hang runs in child processes,
all at once, each with a time limit.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from collage_mpi.errors import CollageError
from collage_mpi.launch.ending import TIME_LIMIT
from collage_mpi.launch.mpiexec import (
    FIX,
    THREAD_VARIABLES,
    Mpi,
    abi_of,
    build_command,
    find_mpi,
    inspect_launcher,
    mpi4py_library,
    site_here,
)
from collage_mpi.launch.supervisor import Limits, Supervisor
from collage_mpi.system.environment import (
    VISIBLE_VARIABLES,
    allocated_hosts,
    allowed_cores,
    launcher_size,
    local_size,
    visible_entries,
)
from collage_mpi.system.files import free_bytes
from collage_mpi.system.printable import counted, size_text
from collage_mpi.system.process_tree import ask, own_command

OK, WARN, BAD = "ok", "warn", "bad"
MIB = 1 << 20
NO_ANSWER = "no answer within"  # start of the error if an import took too long

# Measured with 11 ranks that each sent 200 kB. MPICH 5 takes 5.4 MiB of /dev/shm for each rank, and
# dies of SIGBUS if /dev/shm is full. Open MPI 5 wants 16 MiB free, of which it uses little;
# otherwise it warns and uses a slower way.
MPICH_SHM_BYTES = int(5.5 * MIB)
OPENMPI_SHM_BYTES = 17 * MIB
FILES_BASE, FILES_PER_RANK = 256, 8  # pipes and sockets of the launcher and of rank 0


@dataclass(frozen=True)
class Finding:
    """One line of the screen. Bad: a job would probably not run; then `fix` says what to type."""

    name: str
    verdict: str
    found: str
    fix: str = ""


def check_packages(
    told: Mapping[str, Mapping[str, Any]], minimums: Mapping[str, str]
) -> Iterator[Finding]:
    """Each package is installed, loads, and is new enough; good ones share a line.

    Args:
        told: the answer of `doctor.probe` for each package.
        minimums: oldest version of a package that works.
    """
    wanted = {n: f"'{n}>={minimums[n]}'" if n in minimums else f"'{n}'" for n in told}
    missing = [name for name in told if not (told[name].get("version") or told[name].get("error"))]
    if missing:
        install = f"{sys.executable} -m pip install {' '.join(wanted[name] for name in missing)}"
        found = f"not installed: {', '.join(missing)}"
        yield Finding("packages", BAD, found, f"{install} (is this the right Python?)")
    good = []
    for name in (name for name in told if name not in missing):
        version, error = told[name].get("version"), told[name].get("error")
        if error is not None:
            found = f"{' '.join(filter(None, (name, version)))} is installed but does not load: "
            yield Finding(name, BAD, found + error, _how_to_load(name, wanted[name], error))
        elif name in minimums and version_key(str(version)) < version_key(minimums[name]):
            found = f"{version} is too old: {minimums[name]} or later is needed"
            yield Finding(name, BAD, found, f"pip install --upgrade {wanted[name]}")
        else:
            good.append(f"{name} {version}")
    if good:
        yield Finding("packages", OK, ", ".join(good))


def version_key(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: `2.13.0+cpu` is (2, 13, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def _how_to_load(name: str, wanted: str, error: str) -> str:
    if error.startswith(NO_ANSWER):
        return (
            "its file system is slow or hangs: try again; if that does not help, move the Python "
            "environment to a faster disk, such as the node's own"
        )
    if name == "torch":  # PyPI has the CUDA build, which sees no GPU of ROCm
        return (
            "reinstall the build for your GPUs with the command from "
            "https://pytorch.org/get-started; if a library is missing, load its module"
        )
    return f"pip install --force-reinstall {wanted}; if a library is missing, load its module"


def check_gpus(
    device: str,
    installed: Sequence[str],
    torch: Mapping[str, Any],
    visible: tuple[str, str] | None,
) -> Iterator[Finding]:
    """Whether torch can use the GPUs of this host.

    Args:
        device: auto, cpu or cuda.
        installed: names that nvidia-smi lists, visible to this process or not.
        torch: the answer of `doctor.probe` for torch.
        visible: the variable that limits the GPUs, and its value; None if none is set.
    """
    build, count = torch.get("build"), torch.get("count", 0)
    there, severe = max(len(installed), count), BAD if device == "cuda" else WARN
    gpus = f"{there} x {installed[0] if installed else 'GPU'}"
    entries = visible_entries(visible[1] if visible else None)
    if device == "cpu" or (there == 0 and device != "cuda"):
        yield Finding("GPUs", OK, "none used: networks run on the CPU")
    elif there == 0:
        found = "--device cuda, but neither nvidia-smi nor torch shows a GPU"
        fix = "ask for GPUs (--gpus-per-node=N, --gpus all), or use --device cpu"
        yield Finding("GPUs", BAD, found, fix)
    elif build is None:
        yield Finding("GPUs", OK, f"{gpus}; torch, which would use them, does not load")
    elif build == "cpu":
        found = f"{gpus}, but this torch is a CPU build: networks would run on the CPU"
        fix = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/"
        yield Finding("GPUs", severe, found, fix + "cu126")
    elif visible and entries is not None and len(entries) < there:
        found = f"{gpus}, but {visible[0]}={visible[1]!r} leaves {len(entries)} visible"
        fix = f"unset {visible[0]}; under Slurm ask with --gpus-per-node"
        yield Finding("GPUs", WARN if entries else severe, found, fix)
    elif count < there:
        found = f"nvidia-smi lists {gpus}, but torch ({build}) sees {count}"
        fix = (
            "ask the batch system or Docker for them (--gpus-per-node=N, --gpus all). If it gave "
            "them, the driver may be older than torch's CUDA: install a torch that is built for it "
            "(https://pytorch.org/get-started/previous-versions)"
        )
        yield Finding("GPUs", severe, found, fix)
    else:
        yield Finding("GPUs", OK, f"{gpus}, torch {build} sees them")


def check_cores(cores: int, ranks: int, threads: Mapping[str, str]) -> Iterator[Finding]:
    """This host has a core for each rank, and for each thread of all ranks.

    Args:
        cores: that this process may use.
        ranks: of the job on this host.
        threads: the variables that set compute threads, as set here.
    """
    found = f"{cores} usable for {counted(ranks, 'rank')}"
    if ranks > cores:
        found += ": a job works, but ranks share cores, which makes its latencies longer"
        fix = "for measurements use a host or an allocation with a core for each rank"
        yield Finding("cores", WARN, found, fix)
    else:
        yield Finding("cores", OK, found)
    fair = max(1, cores // ranks)
    for name, text in threads.items():
        if text.isdecimal() and int(text) > fair:
            found = f"{name}={text} for each of {ranks} ranks on {cores} cores: the threads compete"
            fix = f"unset {name} and use `collage-mpi launch`, or export {name}={fair}"
            yield Finding("threads", WARN, found, fix)


def check_shared_memory(free_bytes: int | None, ranks: int, library: str) -> Iterator[Finding]:
    """/dev/shm has room for the files of the MPI library.

    Args:
        free_bytes: of /dev/shm; None if there is none.
        ranks: of the job on this host.
        library: name of the MPI library.
    """
    dies = "Open MPI" not in library
    needed = MPICH_SHM_BYTES * ranks if dies else OPENMPI_SHM_BYTES
    if free_bytes is None:
        return
    found = f"{size_text(free_bytes)} free"
    if free_bytes < needed:
        found += f"; {library} needs {size_text(needed)} for {counted(ranks, 'rank')}: without it "
        found += "they die of a bus error" if dies else "MPI uses slower ways"
        fix = (
            "give the container more shared memory (docker run --shm-size=1g, --ipc=host), or "
            "mount -o remount,size=1g /dev/shm. If no MPI job runs here, remove the files of "
            "killed jobs: rm -f /dev/shm/mpich_shm_* /dev/shm/sm_segment.*"
        )
        yield Finding("/dev/shm", BAD if dies else WARN, found, fix)
    else:
        yield Finding("/dev/shm", OK, found)


def check_open_files(soft: int | None, hard: int | None, ranks: int) -> Iterator[Finding]:
    """The limit on open files (None: no limit) allows a socket for each rank."""
    needed = FILES_BASE + FILES_PER_RANK * ranks
    if soft is None or soft >= needed:
        yield Finding("open files", OK, "no limit" if soft is None else f"up to {soft}")
        return
    raised = hard is None or hard >= needed
    fix = f"ulimit -n {needed}" if raised else "ask the site to raise the hard limit (nofile)"
    found = f"at most {soft}; {counted(ranks, 'rank')} may need {needed}"
    yield Finding("open files", BAD, found, fix)


def check_ranks(size: int, asked: int, seconds: float | None = None) -> Finding:
    """Ranks have met. `size` is what MPI says, `asked` what their launcher was asked to start."""
    if size == asked:
        took = "" if seconds is None else f" in {seconds:.1f} s"
        return Finding("ranks start", OK, f"{counted(asked, 'rank')} started and met{took}")
    return Finding(
        "ranks start",
        BAD,
        f"the launcher started {asked} ranks, but MPI makes each of them rank 0 of {size}",
        f"use `collage-mpi launch -n {asked} -- ...`, or srun --mpi=pmi2 ... (MPICH) or "
        "srun --mpi=pmix ... (Open MPI)",
    )


PACKAGES = ("numpy", "h5py", "isal", "mpi4py", "torch", "pillow", "safetensors", "rich")
PROBE_LIMIT_S = 60.0  # time to import torch from a slow network file system
TOOL_LIMIT_S = 10.0
MPI4PY_VARIABLES = ("MPI4PY_MPIABI", "MPI4PY_LIBMPI")  # they choose its library


def examine(
    ranks: int,
    device: str,
    mpi: str,
    mpiexec: str | None,
    *,
    no_launch: bool,
    met: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Iterator[Finding]:
    """All findings about this host, in the order of the screen.

    Args:
        ranks: of the whole job.
        device: auto, cpu or cuda.
        mpi, mpiexec: as of `launch`.
        no_launch: start no ranks.
        met: size of the world in which this process has met other ranks; None if it is alone.
        environ: variables of this process.
    """
    yield Finding("python", OK, f"{platform.python_version()} ({sys.executable})")
    with ThreadPoolExecutor() as pool:
        probes = {name: pool.submit(probe, name) for name in PACKAGES}
        installed = pool.submit(nvidia_smi)
        told = {name: each.result() for name, each in probes.items()}
    yield from check_packages(told, minimums())
    findings, library, launcher = look_at_mpi(mpi, mpiexec, environ)
    yield from findings
    visible = next(((name, environ[name]) for name in VISIBLE_VARIABLES if name in environ), None)
    yield from check_gpus(device, installed.result(), told["torch"], visible)
    size = launcher_size(environ)
    here = (local_size(environ) if size else None) or -(-ranks // allocated_hosts(environ))
    threads = {name: environ[name] for name in THREAD_VARIABLES if name in environ}
    yield from check_cores(allowed_cores(environ), here, threads)
    yield from check_shared_memory(free_bytes(Path("/dev/shm")), here, library)
    soft, hard = (
        None if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    yield from check_open_files(soft, hard, max(here, ranks))
    if met is not None and size is not None:
        yield check_ranks(met, size)
    elif launcher is not None and not no_launch:
        yield try_ranks(launcher)


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
    want: str, mpiexec: str | None, environ: Mapping[str, str]
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
        mpi = find_mpi(want, mpiexec)
    except CollageError as fault:
        found, _, fix = str(fault).partition(FIX)
        fix = fix or "leave --mpiexec out, or name the mpiexec of the MPI that mpi4py loads"
        return [*findings, Finding("launcher", BAD, found, fix)], library, None
    findings.append(Finding("launcher", OK, f"{mpi}: fits the library"))
    typed = inspect_launcher(Path(shutil.which("mpiexec") or "mpiexec"))
    if typed is not None and typed.abi != abi_of(library):
        found = f"mpiexec on PATH is {typed}, but mpi4py loads {library}: every rank would be rank "
        fix = f"use `collage-mpi launch`, or {mpi.mpiexec}"
        findings.append(Finding("mpiexec", WARN, f"{found}0 of 1", fix))
    return findings, library, mpi


RANKS = 2
LIMIT_S = 60  # two ranks take 1 s
MARK = "collage-mpi doctor: ranks in the world: "
OUTPUT_LINES = 3


def meet() -> int:
    """Start MPI and wait for all ranks; the size of the world.

    A signal kills this process after LIMIT_S, because nothing else ends MPI_Init.

    Raises:
        EnvironmentFault: mpi4py can load no MPI library.
        ImportError: numpy is missing.
    """
    from collage_mpi.mpi.transport import open_world

    signal.alarm(LIMIT_S)
    comm, _ = open_world()
    comm.Barrier()
    signal.alarm(0)
    return int(comm.Get_size())


def try_ranks(mpi: Mpi) -> Finding:
    """Start two ranks as `launch` would, and say whether they met."""
    plan = build_command(mpi, RANKS, own_command("collage_mpi.doctor.examine"), site_here())
    out, err = io.StringIO(), io.StringIO()
    began_s = time.monotonic()
    ending = Supervisor(plan, Limits(LIMIT_S), out, err).run()
    seconds = time.monotonic() - began_s
    lines = out.getvalue().splitlines()
    sizes = [int(line.removeprefix(MARK)) for line in lines if line.startswith(MARK)]
    if len(sizes) == RANKS and ending.launcher == 0:
        return check_ranks(sizes[0], RANKS, seconds)
    said = [*(line for line in lines if not line.startswith(MARK)), *err.getvalue().splitlines()]
    last = [text for line in said if (text := line.strip(" -="))][-OUTPUT_LINES:]
    if ending.cut is TIME_LIMIT:
        last.insert(0, f"the time limit of {LIMIT_S} s ended them")
    return Finding(
        "ranks start",
        BAD,
        f"{RANKS} ranks did not meet: {'; '.join(last) or f'exit code {ending.launcher}'}",
        "try another network for MPI (export HYDRA_IFACE=lo FI_TCP_IFACE=lo UCX_NET_DEVICES=lo on "
        "one host), or another MPI (--mpi); --no-launch leaves this test out",
    )


if __name__ == "__main__":
    print(f"{MARK}{meet()}\n", end="", flush=True)  # at once: lines of ranks may mix otherwise

"""Judges what was found on this host: each check takes plain values and gives findings."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collage_mpi.system.environment import visible_entries
from collage_mpi.system.printable import counted, size_text

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

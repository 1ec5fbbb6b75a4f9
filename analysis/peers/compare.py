"""Ours beside its peers on the same work, in turn, in one run: a table and its JSON lines.

    pip install 'collage-mpi[mpich]' parsl ray      # a peer that is not installed is left out
    python analysis/peers/compare.py --out peers.jsonl [--repeats 3] [--only futures,ours-none]

Owns: the cases, whose turn it is, what is sampled from outside (memory, a worker's death).
Does not know: how a program hands out its chunks. Start-up is outside every figure but memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from collage_mpi.models import describe
from collage_mpi.results import read_results
from collage_mpi.settings.shipped import with_shipped
from collage_mpi.shards import write_shard

HERE, WORKERS, LIMIT_S, MARK = Path(__file__).parent, 8, 300.0, "COLLAGE_MPI_PEERS"
BIN = Path(sys.executable).parent
OURS = {
    "ours-none": ["--scheme", "none"],
    "ours-throughput": ["--scheme", "none", "--profile", "throughput"],
    "ours-workers": ["--scheme", "none", "--profile", "throughput", "--pixels", "workers"],
    "ours-collage": ["--scheme", "collage", "--profile", "throughput"],
}
PEERS = {
    "bare_mpi": "mpi4py",
    "futures": "mpi4py",
    "static_loader": "mpi4py",
    "parsl_htex": "parsl",
    "ray_actors": "ray",
}


@dataclass(frozen=True)
class Case:
    """One piece of work; `slow`: worker 1 is so many times slower; `kill`: it is killed."""

    name: str
    px: int
    images: int
    source: str = "memory"
    network: str = "null"
    service_ms: float = 0.0
    slow: float = 1.0
    kill: bool = False


CASES = [
    Case("28 px, memory", 28, 6000),
    Case("224 px, memory", 224, 3000),
    Case("224 px, shard", 224, 3000, "shard"),
    Case("28 px, shipped network", 28, 1500, "shard", "shipped:fashion_single.safetensors"),
    Case("10 ms, one of 8 5 x slow", 28, 1200, service_ms=10.0, slow=5.0),
    Case("10 ms, one of 8 60 x slow", 28, 1200, service_ms=10.0, slow=60.0),
    Case("10 ms, a worker killed", 28, 2400, service_ms=10.0, kill=True),
]


def command(program: str, chunk: int, case: Case, shard: Path, work: Path) -> list[str]:
    """What starts the program on the case."""
    if program in OURS:
        words = [str(BIN / "collage-mpi"), "launch", "-n", str(WORKERS + 2)]
        words += ["--on-rank-loss", "continue", "--", "run"]
        words += ["--shards", str(shard), "--single", case.network, "--out", str(work / "run")]
        words += ["--collage", case.network.replace("single", "collage_side3")]
        words += ["--singles", str(WORKERS), "--limit", str(case.images), "--batch", str(chunk)]
        if case.service_ms:
            words += ["--straggler", "pinned", "--straggler-median-ms", str(case.service_ms)]
            words += ["--slow-ranks", f"1:{case.slow}"] if case.slow > 1 else []
        return words + OURS[program]
    words = [str(shard), case.images, WORKERS, chunk, case.source, case.network, case.service_ms]
    flags = ("shard", "images", "workers", "chunk", "source", "network", "service-ms")
    said = [w for f, v in zip(flags, words, strict=True) for w in (f"--{f}", str(v))]
    said += ["--slow", str(case.slow), "--pids", str(work)]
    start = [sys.executable]
    if PEERS[program] == "mpi4py":
        ranks = WORKERS + (program != "static_loader")
        start = [str(BIN / "mpiexec"), "-n", str(ranks), *start]
        start += ["-m", "mpi4py.futures"] if program == "futures" else []
    return [*start, str(HERE / f"{program}.py"), *said]


def ours(work: Path, n: int) -> dict[str, float]:
    """Rows a second from the first admission to the last row."""
    images = read_results(work / "run").images
    seconds = float((images["t0_ns"] + images["latency_ns"]).max() - images["t0_ns"].min()) / 1e9
    rows = int(images["answered"].sum())
    return {"rows": rows, "seconds": seconds, "images_per_s": rows / seconds}


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
    """Proportional share of all of them, in MB."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def play(program: str, chunk: int, case: Case, shard: Path) -> dict[str, object]:
    """One run of one program; what it reported and what was seen from outside."""
    work, mark = Path(tempfile.mkdtemp(prefix="peers-")), f"{time.time_ns()}"
    env = {**os.environ, MARK: mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    env["PATH"] = f"{BIN}{os.pathsep}{env.get('PATH', os.defpath)}"
    words = command(program, chunk, case, shard, work)
    start_s, peak, killed = time.monotonic(), 0.0, not case.kill
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(
            words, env=env, cwd=work, stdout=out, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and time.monotonic() - start_s < LIMIT_S:
            time.sleep(0.5)
            pids = mine(mark)
            peak = max(peak, memory_mb(pids))
            killed = killed or kill_worker(program, work, pids)
        ended, seconds = process.poll(), time.monotonic() - start_s
        for pid in mine(mark):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        out.seek(0)
        lines = [line for line in out if line.startswith('{"rows"')]
    said = json.loads(lines[-1]) if lines else {}
    if program in OURS and (work / "run" / "manifest.json").exists():
        said = ours(work, case.images)
    shutil.rmtree(work, ignore_errors=True)
    return {
        "program": program,
        "chunk": chunk,
        "case": case.name,
        "exit": ended,
        "peak_mb": round(peak),
        "wall_s": round(seconds, 1),
        "lost": case.images - said.get("rows", 0),
        **said,
    }


def kill_worker(program: str, work: Path, pids: list[int]) -> bool:
    """kill -9 on worker 2, two seconds after it is there."""
    if program in OURS:
        ranks = {"PMI_RANK=2", "OMPI_COMM_WORLD_RANK=2"}
        for pid in pids:
            try:
                environ = Path(f"/proc/{pid}/environ").read_text().split("\0")
                python = b"python" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
            except OSError:
                continue
            if python and ranks & set(environ) and any((work / "run").glob("parts/*")):
                time.sleep(2.0)
                os.kill(pid, signal.SIGKILL)
                return True
        return False
    file = work / "2"
    if not file.exists() or time.time() - file.stat().st_mtime < 2:
        return False
    os.kill(int(file.read_text()), signal.SIGKILL)
    return True


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--cases", default="", help="parts of their names, by semicolons")
    parser.add_argument("--chunks", default="1,8,32")
    args = parser.parse_args()
    programs = [name for name, module in PEERS.items() if find_spec(module)] + list(OURS)
    programs = [name for name in programs if name in args.only.split(",") or not args.only]
    cases = [c for c in CASES if any(part in c.name for part in args.cases.split(";"))]
    with tempfile.TemporaryDirectory(prefix="peers-shards-") as folder:
        shards = {}
        weights = with_shipped("shipped:fashion_single.safetensors")
        classes = describe(weights, "single").class_names
        for px in {c.px for c in cases}:
            count = max(c.images for c in cases if c.px == px)
            images = np.random.default_rng(0).integers(
                0, 256, (count, px, px, 3 if px > 28 else 1), np.uint8
            )
            shards[px] = Path(folder, f"{px}.h5")
            write_shard(shards[px], images, np.zeros(count, np.int64), class_names=classes)
        for case in cases:
            for _ in range(args.repeats):
                for program in programs:
                    for chunk in map(int, args.chunks.split(",")):
                        found = play(program, chunk, case, shards[case.px])
                        print(json.dumps(found), flush=True)
                        with open(args.out, "a") as file:
                            file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

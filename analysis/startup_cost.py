"""What a job's start costs: CPU seconds and wall time from `launch` to its first image, by part.

Owns: the sums. The table is in analysis/reports/benchmarks.md. CPU time is that of all the job's
processes, so that other work on the machine hardly changes it; wall time wants an idle machine.
Linux only.

    python analysis/startup_cost.py                       # this checkout, null and shipped networks
    python analysis/startup_cost.py --beside ../before    # and another checkout, in turn

The end of a start is when rank 0 has noted what the networks cost: tasks follow at once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from collage_mpi.errors import CollageError
from collage_mpi.results.manifest import compose
from collage_mpi.system.process_tree import family_of, process_table

HERE = Path(__file__).resolve().parents[1]
DATA = HERE / "collage_mpi" / "data"
NETWORKS = {
    "null": ("null", "null"),
    "shipped": (DATA / "fashion_single.safetensors", DATA / "fashion_collage_side3.safetensors"),
}
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LOOK_EVERY_S = 0.02


def cpu_s(pid: int) -> float:
    """User and system time of a process and of its children that have ended; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS_PER_S


def measured(out: Path) -> bool:
    """Whether the run in `out` is about to send its first task."""
    try:
        return compose(out).get("cost_ratio") is not None
    except CollageError:
        return False


def start_cost(checkout: Path, networks: str, ranks: int) -> tuple[float, float]:
    """(CPU seconds, wall seconds) of one job's start."""
    single, collage = map(str, NETWORKS[networks])
    begin = [sys.executable, str(checkout / "collage_mpi" / "system" / "start.py"), "collage_mpi"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        run = ["run", "--shards", str(DATA / "fashion_demo.h5"), "--single", single]
        run += ["--collage", collage, "--limit", "9", "--out", str(out)]
        began_s = time.monotonic()
        job = subprocess.Popen(
            [*begin, "launch", "-n", str(ranks), "--", *run],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not measured(out):
            if job.poll() is not None:
                raise SystemExit(f"the job ended with code {job.returncode} before its first image")
            time.sleep(LOOK_EVERY_S)
        wall_s = time.monotonic() - began_s
        found = sum(map(cpu_s, family_of(job.pid, process_table())))
        job.wait()
    return found, wall_s


def main() -> None:
    """Each checkout in turn, `--repeats` times; medians, least and largest."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=11)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="another one, in turn")
    args = parser.parse_args()
    checkouts = [*filter(None, [args.beside and args.beside.resolve()]), HERE]
    for networks in NETWORKS:
        found: dict[Path, list[tuple[float, float]]] = {checkout: [] for checkout in checkouts}
        for _ in range(args.repeats):
            for checkout, costs in found.items():
                costs.append(start_cost(checkout, networks, args.ranks))
        for checkout, costs in found.items():
            for name, values in zip(("CPU", "wall"), zip(*costs, strict=True), strict=True):
                middle = f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
                print(f"{networks:8s} {checkout.name:12s} {name:4s} s: {middle}", flush=True)


if __name__ == "__main__":
    main()

"""What the end of a job, `verify` and `report` hold in memory, of 10**5 images and of 10**7.

Rows come from a simulation; those of 10**7 images are the rows of 10**6, written ten times with
other numbers and later times, as if the run had gone on.

    python analysis/end_memory.py --out runs/memory
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.results import write_summary
from collage_mpi.results.manifest import finals
from collage_mpi.results.parts import read_runs
from collage_mpi.results.reader import open_run
from collage_mpi.results.sole import SoleWriter
from collage_mpi.rows import IMAGES, TASKS

RUNS = ((100_000, 1), (1_000_000, 10))  # images simulated, times that they are written
SIMULATE = ("simulate", "--straggler", "lognormal", "--slow-ranks", "4:5")


def main() -> None:
    """Make the runs that are not there yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--close", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.close:
        close(args.close)
        return
    print("images      close  verify  report   (peak MiB)")
    for images, times in RUNS:
        source, run = args.out / f"simulated-{images}", args.out / f"rows-{images * times}"
        if not source.exists():
            peak_mib("-m", "collage_mpi", *SIMULATE, "--images", images, "--out", source)
        repeat(source, times, run)
        peaks = [
            peak_mib(__file__, "--out", args.out, "--close", run),
            peak_mib("-m", "collage_mpi", "verify", run),
            peak_mib("-m", "collage_mpi", "report", run),
        ]
        print(f"{images * times:<10}", *(f"{peak:7.1f}" for peak in peaks), flush=True)


def peak_mib(*words: Any) -> float:
    """Run Python with these words; the most memory that the process held."""
    process = subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{words}: exit code {process.returncode}")
    return usage.ru_maxrss / 1024


def repeat(source: Path, times: int, out: Path) -> None:
    """A run with the rows of a run, `times` one behind another."""
    run, fixed = open_run(source), dict(read_runs(source)[0].settings)
    rows = fixed["rows"]
    more = {"row": rows, "position": rows, "task": run.rows_of(TASKS)}
    for images in run.chunks(IMAGES):
        more["group"] = max(more.get("group", 0), int(images["group"].max()) + 1)
        end_ns = int((images["t0_ns"] + images["latency_ns"]).max())
        for column in ("t0_ns", "sent_ns", "done_ns"):
            more[column] = max(more.get(column, 0), end_ns)
    fixed["rows"] = fixed["shards"][0]["count"] = rows * times
    fixed.pop("input_digest", None)
    writer = SoleWriter(out, fixed)
    for time in range(times):
        for table, take in ((IMAGES, writer.image_rows), (TASKS, writer.task_rows)):
            for some in map(np.copy, run.chunks(table)):
                for column in more.keys() & set(some.dtype.names or ()):
                    some[column] += time * more[column]
                take(some)
    writer.close("complete", **finals(run.manifest)[1])


def close(out: Path) -> None:
    """What rank 0 does once the run is complete."""
    write_summary(open_run(out))


if __name__ == "__main__":
    main()

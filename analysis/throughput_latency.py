"""Throughput against latency of runs with several batch sizes (docs/speed.md).

    python analysis/throughput_latency.py RUN [RUN...] --out STEM [--title TEXT]

Runs of one scheme and mode are a line, their batch sizes its points; repeats of a point become
medians. What is no run is left out, so that runs/batches/* will do. Prints the table; writes
STEM.png, .pdf and .csv.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from collage_mpi.errors import CollageError
from collage_mpi.plots_throughput import batch_points, plot_throughput, render_batches
from collage_mpi.results import Results, read_results
from collage_mpi.results.manifest import MANIFEST


def heading(runs: list[Results]) -> str:
    """What was measured, and under which stragglers: without them a latency means nothing."""
    simulated = {"simulated" in run.manifest for run in runs}
    how = {frozenset({True}): "simulated", frozenset({False}): "measured"}
    stragglers = {run.manifest.get("straggler") or "none" for run in runs}
    model = stragglers.pop() if len(stragglers) == 1 else "differ"
    return (
        f"Throughput against latency by batch size\n{how.get(frozenset(simulated), 'mixed')}; "
        f"stragglers: {model}; a number is the groups that travel together"
    )


def main() -> int:
    """Parse, read, print, draw; a mistake is one message and the exit code of its kind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--out", required=True, type=Path, metavar="STEM", help="path, no suffix")
    parser.add_argument("--title", help="first lines above the figure")
    args = parser.parse_args()
    try:
        runs = [read_results(path) for path in args.runs if (path / MANIFEST).exists()]
        points = batch_points(runs)
        print(render_batches(points))
        for path in plot_throughput(points, args.out, title=args.title or heading(runs)):
            print(path)
    except CollageError as error:
        print(f"throughput_latency: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

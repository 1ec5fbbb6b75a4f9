"""Throughput against latency of runs with several batch sizes (analysis/reports/speed.md).

    python analysis/throughput_latency.py RUN [RUN...] --out STEM [--title TEXT]

Runs of one scheme and mode are a line, their batch sizes its points; repeats of a point become
medians. What is no run is left out, so that runs/batches/* will do. Prints the table; writes
STEM.png, .pdf and .csv.
The same as `collage-mpi plot throughput`, which needs no checkout.
"""

from __future__ import annotations

import sys

from collage_mpi.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["plot", "throughput", *sys.argv[1:]]))

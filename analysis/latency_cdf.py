"""Overlay the latency distributions of runs and print them side by side.

    python analysis/latency_cdf.py RUN [RUN...] --out STEM [--per group|image] [--title TEXT]

Writes STEM.png, STEM.pdf and STEM.csv. The first run is the baseline of all ratios.
The same as `collage-mpi plot cdf`, which needs no checkout.
"""

from __future__ import annotations

import sys

from collage_mpi.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["plot", "cdf", *sys.argv[1:]]))

"""Overlay the latency distributions of runs and print them side by side.

    python analysis/latency_cdf.py RUN [RUN...] --out STEM [--per group|image] [--title TEXT]

Writes STEM.png, STEM.pdf and STEM.csv. The first run is the baseline of all ratios.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from collage_mpi.errors import CollageError
from collage_mpi.plots import plot_latency_cdf
from collage_mpi.results import compare, read_results, render_comparison


def main() -> int:
    """Parse, read, print, draw; a mistake is one message and the exit code of its kind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--out", required=True, type=Path, metavar="STEM", help="path, no suffix")
    parser.add_argument("--per", choices=("group", "image"), default="group")
    parser.add_argument("--title", help="first lines above the figure")
    parser.add_argument("--dpi", type=int, default=200, metavar="N", help="of the PNG")
    args = parser.parse_args()
    try:
        runs = [read_results(path) for path in args.runs]
        print(render_comparison(compare(runs, per=args.per)))
        looks = {"per": args.per, "title": args.title, "dpi": args.dpi}
        for path in plot_latency_cdf(runs, args.out, **looks):
            print(path)
    except CollageError as error:
        print(f"latency_cdf: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

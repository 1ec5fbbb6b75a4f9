"""`collage-mpi report RUN ... --out report.html`: writes an HTML page about one or several runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from collage_mpi.errors import UsageError
from collage_mpi.results.file_names import REPORT
from collage_mpi.system.printable import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "The page is a single HTML file that works offline. For example: collage-mpi report "
        "runs/none runs/collage --out report.html"
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run directories. The first run is the baseline of all ratios",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"file to write (default for a single run: RUN/{REPORT})",
    )
    parser.add_argument(
        "--shards",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="where the runs' shards are now; their pictures are shown (default: where they were "
        "during the run)",
    )


def execute(args: argparse.Namespace) -> int:
    """Write the page and print its name."""
    from collage_mpi.report.page import write_report

    if args.out is None and len(args.runs) > 1:
        raise UsageError("--out is missing: the file for a report of several runs")
    out = args.out or args.runs[0] / REPORT
    write_report(args.runs, out, args.shards)
    say(str(out))
    return 0

"""`collage-mpi export DIR --to csv|parquet|hdf5`: writes a run's rows for other tools."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from collage_mpi.errors import ExitCode
from collage_mpi.system.extras import pip_line
from collage_mpi.system.printable import counted, printable, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("run", type=Path, metavar="DIR", help="run directory")
    parser.add_argument(
        "--to",
        required=True,
        choices=("csv", "parquet", "hdf5"),
        help="csv and parquet write one file for each table, hdf5 writes a single file. parquet "
        f"needs pyarrow: {pip_line('parquet')}",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder to write to (default: DIR/export)"
    )
    parser.add_argument(
        "--shards",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="where the run's shards are now; their image ids are written (default: where they "
        "were during the run)",
    )

    parser.add_argument(
        "--predictions",
        action="store_true",
        help="write only the answers, one image a line in the order of the input: id, class and "
        "score, and further classes of a run with --top-k (csv and parquet only)",
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="write texts in CSV unchanged, for programs. Without this flag, a text that a "
        "spreadsheet would read as a formula (it begins with = + - @) gets an apostrophe in "
        "front, and control characters are shown as codes",
    )


def execute(args: argparse.Namespace) -> int:
    """Export, and print the names of the files, one a line."""
    from collage_mpi.results.export import export_run
    from collage_mpi.results.names import image_names
    from collage_mpi.results.reader import read_results

    results = read_results(args.run)
    if not results.complete:
        found, expected = len(results.images), results.manifest["rows"]
        print(f"note: incomplete run, {found:,} of {counted(expected, 'row')}", file=sys.stderr)
    names = image_names(results, args.shards)
    for note in names.notes:
        print(printable(f"note: {note}"), file=sys.stderr)
    how = {"only_predictions": args.predictions, "raw": args.raw}
    for path in export_run(results, args.to, args.out, names, **how):
        say(str(path))
    return int(ExitCode.COMPLETE)

"""`collage-mpi export DIR --to csv|parquet|hdf5`: a run's rows for other tools.

Owns: the arguments and what is printed.
Does not know: the formats.
"""

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
        help="csv and parquet: a file a table; hdf5: one file. parquet needs pyarrow: "
        f"{pip_line('parquet')}",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where to write (default: DIR/export of the run)"
    )
    parser.add_argument(
        "--shards",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="where the run's shards are now, for the images' ids (default: where they were)",
    )

    parser.add_argument(
        "--predictions",
        action="store_true",
        help="write only what was answered, an image a line in the order of the input: id, class, "
        "score, and the next best of a run with --top-k (csv, parquet)",
    )
    parser.add_argument(
        "--raw",
        action="store_true",
        help="csv for programs: texts as they are. Otherwise a text that a spreadsheet would take "
        "for a formula (it begins with = + - @) gets an apostrophe before it, and control "
        "characters are shown by their codes",
    )


def execute(args: argparse.Namespace) -> int:
    """Export and name the files, one a line."""
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

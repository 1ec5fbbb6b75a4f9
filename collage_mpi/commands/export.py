"""`collage-mpi export DIR --to csv|parquet|hdf5|zarr`: writes a run's rows for other programs."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from collage_mpi.commands.parser import Command
from collage_mpi.errors import ExitCode
from collage_mpi.plugins import pip_line
from collage_mpi.settings.flags import Arguments, switch
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.files import writing
from collage_mpi.system.printable import counted, printable, say

TRACE = "trace"


@dataclass(frozen=True, kw_only=True)
class ExportArguments(Arguments):
    """The arguments of export."""

    run: Path = setting(REQUIRED, "folder of the run", metavar="DIR", positional=True)
    to: str = setting(
        REQUIRED,
        "csv and parquet write one file for each table, hdf5 writes a single file. zarr writes "
        "what the run keeps of each image beyond its row (map, --top-k, --save), in the order of "
        f"the input. parquet needs {pip_line('parquet')}, zarr needs {pip_line('zarr')}. trace "
        "writes the service times of the single ranks, for --trace-file",
        choices=("csv", "parquet", "hdf5", "zarr", TRACE),
    )
    out: Path | None = setting(None, "folder to write to", unset="DIR/export", metavar="DIR")
    shards: tuple[Path, ...] = setting(
        (),
        "where the run's input is now; the ids of the images are read from it",
        unset="where they were during the run",
    )
    id: str | None = setting(
        None,
        "name the images by this column of a Parquet input: its values become the column id",
        unset="by the paths in the input, otherwise FILE:ROW",
        metavar="COLUMN",
    )
    predictions: bool = switch(
        "write only the answers, one line for each image in the order of the input: id, class and "
        "score, and the further classes of a run with --top-k (csv and parquet only)"
    )
    raw: bool = switch(
        "write texts in CSV unchanged, for programs. Without this flag, a text that a spreadsheet "
        "would read as a formula (it begins with = + - @) gets an apostrophe in front, and control "
        "characters are shown as codes"
    )


def execute(args: ExportArguments) -> int:
    """Export the run, and print the file names, one a line. Returns 0."""
    from collage_mpi.results.export import NameBook, export_run
    from collage_mpi.results.reader import open_run
    from collage_mpi.rows import IMAGES

    run = open_run(args.run)
    if not run.complete:
        found, expected = sum(map(len, run.chunks(IMAGES))), run.manifest["rows"]
        print(f"note: incomplete run, {found:,} of {counted(expected, 'row')}", file=sys.stderr)
    if args.to == TRACE:
        return _trace(args)
    names = NameBook(run.path, run.manifest, args.shards or None, id_column=args.id)
    for note in names.notes:
        print(printable(f"note: {note}"), file=sys.stderr)
    how = {"only_predictions": args.predictions, "raw": args.raw}
    for path in export_run(run, args.to, args.out, names, **how):
        say(str(path))
    return int(ExitCode.COMPLETE)


def _trace(args: ExportArguments) -> int:
    from collage_mpi.results import EXPORT
    from collage_mpi.results.reader import read_results
    from collage_mpi.results.slow_ranks import trace_of
    from collage_mpi.workload.arrivals import save_trace

    path = (args.out or args.run / EXPORT) / "trace.npy"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    save_trace(path, trace_of(read_results(args.run)))
    say(str(path))
    return int(ExitCode.COMPLETE)


COMMAND = Command(execute, ExportArguments)

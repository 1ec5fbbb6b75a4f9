"""`collage-mpi report RUN ... --out report.html`: writes an HTML page about one or several runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from collage_mpi.commands.parser import Command
from collage_mpi.errors import UsageError
from collage_mpi.results import REPORT
from collage_mpi.settings.flags import Arguments
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.printable import say


@dataclass(frozen=True, kw_only=True)
class ReportArguments(Arguments):
    """The arguments of report."""

    runs: tuple[Path, ...] = setting(
        REQUIRED,
        "folders of runs. The first run is the baseline of all ratios",
        metavar="RUN",
        positional=True,
    )
    out: Path | None = setting(
        None, f"file to write (default for a single run: RUN/{REPORT})", metavar="FILE"
    )
    shards: tuple[Path, ...] = setting(
        (),
        "where the runs' input is now; the pictures are read from it",
        unset="where they were during the run",
    )


def execute(args: ReportArguments) -> int:
    """Write the page and print its path. Returns 0."""
    from collage_mpi.report.page import write_report

    if args.out is None and len(args.runs) > 1:
        raise UsageError("--out is missing: the file for a report of several runs")
    out = args.out or args.runs[0] / REPORT
    write_report(args.runs, out, args.shards or None)
    say(str(out))
    return 0


COMMAND = Command(
    execute,
    ReportArguments,
    epilog="The page is a single HTML file that works offline. For example: collage-mpi report "
    "runs/none runs/collage --out report.html",
)

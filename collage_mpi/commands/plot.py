"""`collage-mpi plot FIGURE`: draws figures of finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.commands.parser import Command, Commands
from collage_mpi.errors import UsageError
from collage_mpi.plugins import pip_line
from collage_mpi.settings.flags import Arguments
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.printable import ranges_in, say

if TYPE_CHECKING:
    from collage_mpi.results import Results


@dataclass(frozen=True, kw_only=True)
class FigureArguments(Arguments):
    """The arguments of every figure."""

    out: Path = setting(REQUIRED, "path of the files to write, without suffix", metavar="STEM")
    title: str | None = setting(None, "title above the figure", metavar="TITLE")


@dataclass(frozen=True, kw_only=True)
class CdfArguments(FigureArguments):
    """The arguments of `plot cdf`."""

    runs: tuple[Path, ...] = setting(REQUIRED, "folders of runs", metavar="RUN", positional=True)
    per: str = setting(
        "group", "draw the latency of groups or of images", choices=("group", "image")
    )


@dataclass(frozen=True, kw_only=True)
class TimelineArguments(FigureArguments):
    """The arguments of `plot timeline`."""

    run: Path = setting(REQUIRED, "folder of the run", metavar="RUN", positional=True)
    groups: str = setting(REQUIRED, "first and last group to draw, such as 20-27", metavar="A-B")
    session: int = setting(1, "number of the session, if the run was resumed or has several teams")


def _drawn(paths: Sequence[Path]) -> int:
    """Print the names of the written files; returns 0."""
    for path in paths:
        say(str(path))
    return 0


# ---- cdf ----------------------------------------------------------------------


def cdf(args: CdfArguments) -> int:
    """Draw the latency distributions of the runs and print their table. All ratios are to the first
    run.
    """
    from collage_mpi.figures.plots import plot_latency_cdf
    from collage_mpi.results import compare, read_results, render_comparison

    runs = [read_results(path) for path in args.runs]
    print(render_comparison(compare(runs, per=args.per)))
    return _drawn(plot_latency_cdf(runs, args.out, per=args.per, title=args.title))


# ---- timeline -----------------------------------------------------------------


def timeline(args: TimelineArguments) -> int:
    """Draw some groups of a run, and write them as a trace for Perfetto."""
    from collage_mpi.figures.plots import plot_timeline
    from collage_mpi.results import read_results
    from collage_mpi.results.timeline import make_timeline, write_trace

    run = read_results(args.run)
    first, last = parse_groups(args.groups)
    made = make_timeline(run, first, last, args.session)
    title = args.title or _timeline_title(run, first, last)
    trace = args.out.with_name(args.out.name + ".trace.json")
    write_trace(trace, made)
    return _drawn([*plot_timeline(made, args.out, title), trace])


def parse_groups(text: str) -> tuple[int, int]:
    """First and last group of "10-18" or "7". Raises UsageError for any other form."""
    found = ranges_in(text)
    if found is None or len(found) > 1:
        raise UsageError(f"--groups {text}: it needs a number or a range, as in 10-18")
    return found[0].start, found[0].stop - 1


def _timeline_title(run: Results, first: int, last: int) -> str:
    model = run.manifest.get("straggler") or "none"
    return f"Groups {first} to {last}: {run.scheme}, {run.mode}\nStragglers: {model}"


COMMAND = Commands(
    "FIGURE",
    {
        "cdf": Command(
            cdf,
            CdfArguments,
            "draw the latency distributions of several runs in one figure and print a table",
        ),
        "timeline": Command(
            timeline,
            TimelineArguments,
            "draw some groups of a run, with ranks as rows and tasks as bars; also writes a trace "
            "for Perfetto",
        ),
    },
    epilog=f"Figures need matplotlib: {pip_line('plot')}. For example: collage-mpi plot cdf "
    "runs/none runs/collage --out figures/tail",
)

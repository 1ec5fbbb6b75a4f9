"""`collage-mpi plot FIGURE`: draws figures of finished runs and of an experiment's points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.commands.parser import Command, Commands
from collage_mpi.errors import UsageError
from collage_mpi.results.file_names import MANIFEST
from collage_mpi.settings.flags import Arguments
from collage_mpi.system.extras import pip_line
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.printable import ranges_in, say

if TYPE_CHECKING:
    from collage_mpi.figures.points import Row
    from collage_mpi.results import Results

FLOOR = "what is below 1 ms is drawn at 1"


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


@dataclass(frozen=True, kw_only=True)
class ThroughputArguments(FigureArguments):
    """The arguments of `plot throughput`."""

    runs: tuple[Path, ...] = setting(
        REQUIRED,
        "folders of runs. A folder that is not a run is skipped, so runs/batches/* works",
        metavar="RUN",
        positional=True,
    )


@dataclass(frozen=True, kw_only=True)
class PointsArguments(FigureArguments):
    """The arguments of every figure of an experiment's points."""

    points: tuple[Path, ...] = setting(
        REQUIRED, "points.csv files of experiments", metavar="POINTS.csv", positional=True
    )
    where: tuple[str, ...] = setting(
        (),
        "draw only the points with this label on this axis. If an axis has several labels, points "
        "with any of them are drawn",
        metavar="AXIS=LABEL",
        repeated=True,
    )

    def rows(self) -> list[Row]:
        """The points to draw: those that --where keeps."""
        from collage_mpi.figures.points import choose, read_points

        return choose(read_points(self.points), self.where)


@dataclass(frozen=True, kw_only=True)
class SeriesArguments(PointsArguments):
    """The arguments of `plot points ranks` and `plot points frontier`."""

    series: str = setting(
        REQUIRED, "axis of the experiment whose values become numbered series", metavar="AXIS"
    )
    panels: str = setting(
        REQUIRED, "axis of the experiment whose values get one panel each", metavar="AXIS"
    )


@dataclass(frozen=True, kw_only=True)
class HeatArguments(PointsArguments):
    """The arguments of `plot points heat`."""

    value: str = setting(REQUIRED, "column with the gain", metavar="COLUMN")
    across: str = setting(REQUIRED, "axis from left to right", metavar="AXIS")
    down: str = setting(REQUIRED, "axis from top to bottom", metavar="AXIS")


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
    from collage_mpi.figures.latency_cdf import plot_latency_cdf
    from collage_mpi.results import compare, read_results, render_comparison

    runs = [read_results(path) for path in args.runs]
    print(render_comparison(compare(runs, per=args.per)))
    return _drawn(plot_latency_cdf(runs, args.out, per=args.per, title=args.title))


# ---- timeline -----------------------------------------------------------------


def timeline(args: TimelineArguments) -> int:
    """Draw some groups of a run, and write them as a trace for Perfetto."""
    from collage_mpi.figures.timeline import plot_timeline
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
    flag = " (INVALID)" if run.invalid else ""
    return f"Groups {first} to {last}: {run.scheme}, {run.mode}{flag}\nStragglers: {model}"


# ---- throughput ---------------------------------------------------------------


def throughput(args: ThroughputArguments) -> int:
    """Draw throughput against latency and print the table. Each scheme and mode is a line; each of
    its points is a batch size, with the median of repeated runs.
    """
    from collage_mpi.figures.throughput import batch_points, plot_throughput, render_batches
    from collage_mpi.results import read_results

    runs = [read_results(path) for path in args.runs if (path / MANIFEST).exists()]
    points = batch_points(runs)
    print(render_batches(points))
    title = args.title or _throughput_title(runs)
    return _drawn(plot_throughput(points, args.out, title=title))


def _throughput_title(runs: Sequence[Results]) -> str:
    """A title that names the stragglers, since latencies depend on them."""
    how = {("simulated" if "simulated" in run.manifest else "measured") for run in runs}
    stragglers = {run.manifest.get("straggler") or "none" for run in runs}
    model = stragglers.pop() if len(stragglers) == 1 else "differ"
    return (
        f"Throughput against latency by batch size\n{how.pop() if len(how) == 1 else 'mixed'}; "
        f"stragglers: {model}; numbers: groups in a batch"
    )


# ---- points -------------------------------------------------------------------


def ranks(args: SeriesArguments) -> int:
    """Draw P99 and its spread against the number of worker ranks."""
    from collage_mpi.figures.points import plot_against_ranks

    rows = args.rows()
    title = titled(args.title or "Tail against ranks", rows) + f", bars 10-90 %; {FLOOR}"
    axes = {"series": args.series, "panels": args.panels, "title": title}
    return _drawn(plot_against_ranks(rows, args.out, **axes))


def frontier(args: SeriesArguments) -> int:
    """Draw accuracy against P99, with the frontier of all points."""
    from collage_mpi.figures.points import plot_frontier

    rows = args.rows()
    more = "; line: frontier; hollow: over N + 2 worker ranks"
    title = titled(args.title or "Accuracy against tail", rows) + more
    paths = plot_frontier(rows, args.out, series=args.series, panels=args.panels, title=title)
    return _drawn(paths)


def heat(args: HeatArguments) -> int:
    """Draw a gain over two axes as a heat map."""
    from collage_mpi.figures.points import plot_heat

    rows = args.rows()
    title = titled(args.title or gain_title(args.value), rows) + " and their 10-90 % range"
    axes = (args.across, args.down)
    paths = plot_heat(rows, args.out, title=title, value=args.value, axes=axes)
    return _drawn(paths)


def titled(first: str, rows: Sequence[Row]) -> str:
    """A title whose second line says how the points were made, and from how many placements and
    groups.
    """
    from collage_mpi.figures.points import need

    placements = {int(need(row, "placements")) for row in rows}
    groups = {int(need(row, "groups") / max(1, need(row, "placements"))) for row in rows}
    how = {row.get("how") for row in rows}
    shown = ["simulated" if how == {"simulate"} else "measured" if how == {"run"} else "mixed"]
    for counts, what in ((placements, "placements"), (groups, "groups each")):
        low, high = min(counts), max(counts)
        shown.append(f"{low}{'' if low == high else f' to {high}'} {what}")
    return f"{first}\n{', '.join(shown)}; medians over placements"


def gain_title(value: str) -> str:
    """The title for a column of gains. "p99_vs_none" is the P99 of none divided by the point's."""
    figure, found, baseline = value.partition("_vs_")
    return f"{figure} of {baseline} over {figure} of each: above 1 is better" if found else value


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
        "throughput": Command(
            throughput,
            ThroughputArguments,
            "draw throughput against latency of runs with several batch sizes",
        ),
        "points": Commands(
            "KIND",
            {
                "ranks": Command(
                    ranks, SeriesArguments, "draw P99 and standard deviation against worker ranks"
                ),
                "frontier": Command(
                    frontier,
                    SeriesArguments,
                    "draw accuracy against P99, with the frontier of all points",
                ),
                "heat": Command(heat, HeatArguments, "draw a gain over two axes as a heat map"),
            },
            "draw the points of an experiment: ranks, frontier or heat",
        ),
    },
    epilog=f"Figures need matplotlib: {pip_line('plot')}. For example: collage-mpi plot cdf "
    "runs/none runs/collage --out figures/tail",
)

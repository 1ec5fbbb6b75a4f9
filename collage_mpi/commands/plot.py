"""`collage-mpi plot FIGURE`: draws figures of finished runs and of an experiment's points."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.errors import UsageError
from collage_mpi.system.extras import pip_line
from collage_mpi.system.printable import say

if TYPE_CHECKING:
    from collage_mpi.figures.points_csv import Row
    from collage_mpi.results import Results

FLOOR = "what is below 1 ms is drawn at 1"
POINTS = {
    "ranks": "P99 and standard deviation against worker ranks",
    "frontier": "accuracy against P99, with the frontier of all points",
    "heat": "a gain over two axes",
}


@dataclass(frozen=True)
class Figure:
    """One figure: its line of help, its arguments, and the function that draws it."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    draw: Callable[[argparse.Namespace], Sequence[Path]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each figure."""
    parser.epilog = (
        f"Figures need matplotlib: {pip_line('plot')}. For example: collage-mpi plot "
        "cdf runs/none runs/collage --out figures/tail"
    )
    figures = parser.add_subparsers(dest="figure", metavar="FIGURE", required=True)
    for name, figure in FIGURES.items():
        line = figure.help
        figure.arguments(
            figures.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".")
        )


def execute(args: argparse.Namespace) -> int:
    """Draw, and print the names of the files."""
    for path in FIGURES[args.figure].draw(args):
        say(str(path))
    return 0


def _add_out(parser: argparse.ArgumentParser, title: str) -> None:
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="STEM",
        help="path of the files to write, without suffix",
    )
    parser.add_argument("--title", help=title)
    parser.add_argument(
        "--dpi", type=int, default=200, metavar="N", help="dots per inch of the PNG"
    )


# ---- cdf ----------------------------------------------------------------------


def _cdf_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directories")
    parser.add_argument("--per", choices=("group", "image"), default="group")
    _add_out(parser, "first lines above the figure")


def _cdf(args: argparse.Namespace) -> Sequence[Path]:
    """Draw the runs in one figure and print their table. The first run is the baseline of all
    ratios.
    """
    from collage_mpi.figures.latency_cdf import plot_latency_cdf
    from collage_mpi.results import compare, read_results, render_comparison

    runs = [read_results(path) for path in args.runs]
    print(render_comparison(compare(runs, per=args.per)))
    return plot_latency_cdf(runs, args.out, per=args.per, title=args.title, dpi=args.dpi)


# ---- timeline -----------------------------------------------------------------


def _timeline_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory, with its rows")
    parser.add_argument("--groups", required=True, metavar="A-B", help="first and last group")
    parser.add_argument(
        "--session",
        type=int,
        default=1,
        metavar="N",
        help="which session of a run that was resumed or has several teams",
    )
    _add_out(parser, "lines above the figure")


def _timeline(args: argparse.Namespace) -> Sequence[Path]:
    from collage_mpi.figures.timeline import plot_timeline
    from collage_mpi.results import read_results
    from collage_mpi.results.timeline import make_timeline, write_trace

    run = read_results(args.run)
    first, last = parse_groups(args.groups)
    timeline = make_timeline(run, first, last, args.session)
    title = args.title or _timeline_title(run, first, last)
    trace = args.out.with_name(args.out.name + ".trace.json")
    write_trace(trace, timeline)
    return (*plot_timeline(timeline, args.out, title, args.dpi), trace)


def parse_groups(text: str) -> tuple[int, int]:
    """Read "10-18" or "7". Raises UsageError for any other form."""
    match = re.fullmatch(r"(\d{1,15})(?:-(\d{1,15}))?", text)
    if match is None:
        raise UsageError(f"--groups {text}: it needs a number or a range, as in 10-18")
    return int(match[1]), int(match[2] or match[1])


def _timeline_title(run: Results, first: int, last: int) -> str:
    model = run.manifest.get("straggler") or "none"
    flag = " (INVALID)" if run.invalid else ""
    return f"Groups {first} to {last}: {run.scheme}, {run.mode}{flag}\nStragglers: {model}"


# ---- throughput ---------------------------------------------------------------


def _throughput_arguments(parser: argparse.ArgumentParser) -> None:
    line = "run directories. A folder that is not a run is skipped, so runs/batches/* works"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=line)
    _add_out(parser, "first lines above the figure")


def _throughput(args: argparse.Namespace) -> Sequence[Path]:
    """Draw a line for each scheme and mode with a point for each batch size, the median of repeated
    runs; print the table.
    """
    from collage_mpi.figures.throughput import batch_points, plot_throughput, render_batches
    from collage_mpi.results import read_results
    from collage_mpi.results.file_names import MANIFEST

    runs = [read_results(path) for path in args.runs if (path / MANIFEST).exists()]
    points = batch_points(runs)
    print(render_batches(points))
    title = args.title or _throughput_title(runs)
    return plot_throughput(points, args.out, title=title, dpi=args.dpi)


def _throughput_title(runs: Sequence[Results]) -> str:
    """What was measured, and under which stragglers; without the stragglers a latency means
    nothing.
    """
    how = {("simulated" if "simulated" in run.manifest else "measured") for run in runs}
    stragglers = {run.manifest.get("straggler") or "none" for run in runs}
    model = stragglers.pop() if len(stragglers) == 1 else "differ"
    return (
        f"Throughput against latency by batch size\n{how.pop() if len(how) == 1 else 'mixed'}; "
        f"stragglers: {model}; a number is the groups that travel together"
    )


# ---- points -------------------------------------------------------------------


def _points_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for name, line in POINTS.items():
        one = kinds.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".")
        one.add_argument("points", nargs="+", type=Path, metavar="POINTS.csv")
        where = "keep only the points with this label. Several labels of one axis mean any of them"
        one.add_argument("--where", action="append", default=[], metavar="AXIS=LABEL", help=where)
        if name == "heat":
            one.add_argument(
                "--value", required=True, metavar="COLUMN", help="column with the gain"
            )
            one.add_argument("--across", required=True, metavar="AXIS")
            one.add_argument("--down", required=True, metavar="AXIS")
        else:
            one.add_argument(
                "--series",
                required=True,
                metavar="AXIS",
                help="axis whose values are drawn as numbered series",
            )
            one.add_argument(
                "--panels", required=True, metavar="AXIS", help="axis whose values get a panel each"
            )
        _add_out(one, "first line of the title")


def _points(args: argparse.Namespace) -> Sequence[Path]:
    from collage_mpi.figures.points import plot_against_ranks, plot_frontier, plot_heat
    from collage_mpi.figures.points_csv import choose, read_points

    rows = choose(read_points(args.points), args.where)
    if args.kind == "heat":
        first, more = gain_title(args.value), " and their 10-90 % range"
        axes = {"value": args.value, "axes": (args.across, args.down)}
        draw: Callable[..., list[Path]] = plot_heat
    else:
        axes = {"series": args.series, "panels": args.panels}
        if args.kind == "ranks":
            first, more, draw = "Tail against ranks", f", bars 10-90 %; {FLOOR}", plot_against_ranks
        else:
            first, draw = "Accuracy against tail", plot_frontier
            more = "; line: frontier; hollow: over N + 2 worker ranks"
    title = titled(args.title or first, rows) + more
    return draw(rows, args.out, title=title, dpi=args.dpi, **axes)


def titled(first: str, rows: Sequence[Row]) -> str:
    """The title, with the number of placements and groups behind a point below it."""
    placements = {int(row["placements"]) for row in rows}
    groups = {int(row["groups"] / row["placements"]) for row in rows}
    how = {row["how"] for row in rows}
    shown = ["simulated" if how == {"simulate"} else "measured" if how == {"run"} else "mixed"]
    for counts, what in ((placements, "placements"), (groups, "groups each")):
        low, high = min(counts), max(counts)
        shown.append(f"{low}{'' if low == high else f' to {high}'} {what}")
    return f"{first}\n{', '.join(shown)}; medians over placements"


def gain_title(value: str) -> str:
    """The title of a gain's column: "p99_vs_none" is none's P99 divided by the point's."""
    figure, found, baseline = value.partition("_vs_")
    return f"{figure} of {baseline} over {figure} of each: above 1 is better" if found else value


FIGURES = {
    "cdf": Figure(
        "draw the latency distributions of several runs in one figure and print a table",
        _cdf_arguments,
        _cdf,
    ),
    "timeline": Figure(
        "draw some groups of a run, with ranks as rows and tasks as bars; also writes a trace "
        "for Perfetto",
        _timeline_arguments,
        _timeline,
    ),
    "throughput": Figure(
        "draw throughput against latency of runs with several batch sizes",
        _throughput_arguments,
        _throughput,
    ),
    "points": Figure(
        "draw the points of an experiment: ranks, frontier or heat", _points_arguments, _points
    ),
}

"""Figures of the points of an experiment (docs/experiments.md).

    python analysis/points.py ranks    POINTS.csv --out STEM --series AXIS --panels AXIS
    python analysis/points.py frontier POINTS.csv --out STEM --series AXIS --panels AXIS
    python analysis/points.py heat     POINTS.csv --out STEM --value p99_vs_replicate \\
        --across AXIS --down AXIS

ranks: P99 and standard deviation against worker ranks; frontier: accuracy against P99; heat: a
gain over two axes. --where AXIS=LABEL keeps some points only; of one axis any of the labels
given. Writes STEM.png and STEM.pdf.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from collage_mpi.errors import CollageError
from collage_mpi.plots_points import plot_against_ranks, plot_frontier, plot_heat
from collage_mpi.points_file import Row, choose, read_points


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """One subcommand a figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    figures = parser.add_subparsers(dest="figure", required=True)
    for name in ("ranks", "frontier", "heat"):
        one = figures.add_parser(name)
        one.add_argument("points", nargs="+", type=Path, metavar="POINTS.csv")
        one.add_argument("--out", required=True, type=Path, metavar="STEM", help="path, no suffix")
        one.add_argument("--where", action="append", default=[], metavar="AXIS=LABEL")
        one.add_argument("--title", default="", help="first line of the title")
        one.add_argument("--dpi", type=int, default=200, metavar="N", help="of the PNG")
        if name == "heat":
            one.add_argument("--value", required=True, metavar="COLUMN", help="a gain")
            one.add_argument("--across", required=True, metavar="AXIS")
            one.add_argument("--down", required=True, metavar="AXIS")
        else:
            one.add_argument("--series", required=True, metavar="AXIS", help="what is numbered")
            one.add_argument("--panels", required=True, metavar="AXIS", help="a panel a choice")
    return parser.parse_args(words)


def titled(first: str, rows: list[Row], default: str) -> str:
    """The title, and below it how many placements and groups stand behind a point."""
    placements = {int(row["placements"]) for row in rows}
    groups = {int(row["groups"] / row["placements"]) for row in rows}
    how = {row["how"] for row in rows}
    shown = ["simulated" if how == {"simulate"} else "measured" if how == {"run"} else "mixed"]
    for counts, what in ((placements, "placements"), (groups, "groups each")):
        low, high = min(counts), max(counts)
        shown.append(f"{low}{'' if low == high else f' to {high}'} {what}")
    return f"{first or default}\n{', '.join(shown)}; medians over placements"


def gain_title(value: str) -> str:
    """What a gain's column holds: "p99_vs_none" is none's P99 over the point's."""
    figure, found, baseline = value.partition("_vs_")
    return f"{figure} of {baseline} over {figure} of each: above 1 is better" if found else value


def draw(args: argparse.Namespace) -> list[Path]:
    """The figure that was asked for."""
    rows = choose(read_points(args.points), args.where)
    if args.figure == "heat":
        title = titled(args.title, rows, gain_title(args.value)) + " and their 10-90 % range"
        axes = {"across": args.across, "down": args.down}
        return plot_heat(rows, args.out, value=args.value, title=title, dpi=args.dpi, **axes)
    axes = {"series": args.series, "panels": args.panels}
    if args.figure == "ranks":
        title = titled(args.title, rows, "Tail against ranks") + ", bars 10-90 %"
        return plot_against_ranks(rows, args.out, title=title, dpi=args.dpi, **axes)
    title = titled(args.title, rows, "Accuracy against tail")
    title += "; line: frontier; hollow: over N + 2 worker ranks"
    return plot_frontier(rows, args.out, title=title, dpi=args.dpi, **axes)


def main() -> int:
    """Parse, read, draw; a mistake is one message and the exit code of its kind."""
    try:
        for path in draw(parse()):
            print(path)
    except CollageError as error:
        print(f"points: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

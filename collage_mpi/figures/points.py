"""Draws figures of an experiment's points.csv: latency against ranks, accuracy against P99, and a
heat map of gains. Every point has a number that the legend explains.
"""

from __future__ import annotations

import csv
import itertools
import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.figures import style
from collage_mpi.scheduler.schemes import SCHEME_NAMES, scheme_class
from collage_mpi.system.files import reading

AXIS = "axis:"
Row = dict[str, Any]


def read_points(paths: Sequence[Path]) -> list[Row]:
    """Read all rows of the files: numbers as float, empty fields as None, other fields as str.

    Raises:
        EnvironmentFault: a file cannot be read.
        DataFault: a file is not a points.csv.
    """
    rows: list[Row] = []
    for path in paths:
        with (
            reading(path, "damaged, make it again with experiment --table"),
            open(path, newline="", encoding="utf-8") as file,
        ):
            found = list(csv.DictReader(file))
        if not found or not {"name", "placements", "ranks"} <= found[0].keys():
            raise DataFault(f"{path}: no points of an experiment: name its points.csv")
        rows += [{key: _value(key, text) for key, text in row.items()} for row in found]
    return rows


def _value(key: str | None, text: str | None) -> Any:
    if text is None or text == "" or key is None:
        return None
    if key == "name" or key.startswith(AXIS):
        return text
    try:
        return float(text)
    except ValueError:
        return text


def choose(rows: Sequence[Row], wanted: Sequence[str]) -> list[Row]:
    """The rows that have one of the wanted labels on each axis that `wanted` names.

    Args:
        wanted: AXIS=LABEL each; labels on the same axis are alternatives.

    Raises:
        UsageError: a text has another form, an axis or a label is unknown, or no row is left.
    """
    labels: dict[str, list[str]] = {}
    for text in wanted:
        axis, equals, label = text.partition("=")
        known = {row.get(AXIS + axis): None for row in rows}
        if not equals or label not in known:
            shown = "; ".join(str(name) for name in known if name is not None)
            raise UsageError(
                f"--where {text}: it needs AXIS=LABEL; labels of {axis}: {shown or 'none'}"
            )
        labels.setdefault(axis, []).append(label)
    found = [
        row for row in rows if all(row.get(AXIS + axis) in some for axis, some in labels.items())
    ]
    if not found:
        raise UsageError(f"--where {' --where '.join(wanted)}: no point has all of these")
    return found


def axis_labels(rows: Sequence[Row], axis: str) -> list[str]:
    """The labels on an axis, in the order of the rows. Raises UsageError if the axis is unknown."""
    labels = [row[AXIS + axis] for row in rows if row.get(AXIS + axis) is not None]
    if not labels:
        axes = {key.removeprefix(AXIS): None for row in rows for key in row if key.startswith(AXIS)}
        raise UsageError(
            f"no axis {axis!r} in these points; there are: {', '.join(axes) or 'none'}"
        )
    return list(dict.fromkeys(labels))


def need(row: Mapping[str, Any], column: str) -> float:
    """The number in a column of a row.

    Raises:
        DataFault: the column is unknown or empty, because the runs were too short, or its value is
            not a finite number.
    """
    value = row.get(column)
    if isinstance(value, str) or (value is not None and not math.isfinite(value)):
        raise DataFault(f"point {row['name']}: {column} is {value}; a number is needed")
    if not isinstance(value, float):
        raise DataFault(
            f"point {row['name']}: no {column} (a P99 of each placement needs 368 groups; "
            "accuracy needs labels or answers)"
        )
    return value


def frontier(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """The Pareto frontier: indices of the points that no other point beats, ascending by cost.

    Args:
        costs: smaller is better, such as P99.
        gains: larger is better, such as accuracy.
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i]))
    best, found = float("-inf"), []
    for i in order:
        if gains[i] > best:
            best = gains[i]
            found.append(i)
    return found


_HEADING_IN = 6.4  # width of the longest line of a heading
_LEAST_MS = 1.0  # on a logarithmic axis, smaller values are drawn here
_TAILS = (("p99", "group P99, ms (log)"), ("std", "standard deviation, ms (log)"))
_OTHER = ("#7F7F7F", "h")
SPARE = 2  # points with more than side x side + SPARE worker ranks are drawn hollow

# Distances from a marker to its number, in typographic points
_OFFSETS = (8.5, 10.0, 12.0, 15.0, 19.0, 24.0, 30.0, 37.0, 45.0, 54.0)
_MARKER_HALF = 3.6  # points
_ANGLES = np.deg2rad([30, 150, 330, 210, 90, 270, 0, 180, 60, 120, 300, 240, 15, 165, 345, 195])
_CANDIDATES = np.array(  # offsets from a marker to its number, nearest first
    [(r * np.cos(angle), r * np.sin(angle)) for r in _OFFSETS for angle in _ANGLES]
)
NEAR = _OFFSETS[2]  # a number that is farther away gets a line to its marker


def plot_against_ranks(
    rows: Sequence[Row], out_stem: Path, *, series: str, panels: str, title: str
) -> list[Path]:
    """Draw P99 (above) and standard deviation (below) against worker ranks, in columns of panels.

    Args:
        rows: of points.csv. Medians over placements are drawn, with 10-90 % bars.
        out_stem: path without suffix; .png and .pdf are written.
        series: axis of the experiment whose choices are numbered.
        panels: axis of the experiment with a column for each choice.
        title: the first line is bold, and further lines are below it.

    Raises:
        UsageError: an axis is unknown.
        DataFault: a point lacks a number that is drawn.
        EnvironmentFault: matplotlib is missing, or the files cannot be written.
    """
    names, columns = _columns(rows, series, panels)
    with style.pyplot().rc_context(style.STYLE):
        figure, grid = _figure(len(columns), 2, names, title)
        for column, (panel, members) in enumerate(columns.items()):
            for axes, (name, label) in zip(grid[:, column], _TAILS, strict=True):
                points = [
                    (n, need(row, "ranks") - 1, _floored(need(row, f"{name}_ms")), _bar(row, name))
                    for n, row in members
                ]
                _scatter(axes, points, names, log="y")
                if column == 0:
                    axes.set_ylabel(label)
            grid[0, column].set_title(panel)
            grid[1, column].set_xlabel("worker ranks")
        return style.save(figure, out_stem, title)


def plot_frontier(
    rows: Sequence[Row], out_stem: Path, *, series: str, panels: str, title: str
) -> list[Path]:
    """Draw accuracy against P99, with the frontier of the points in each panel. Points with more
    than side x side + SPARE worker ranks are hollow. Arguments and errors are as in
    `plot_against_ranks`.
    """
    names, columns = _columns(rows, series, panels)
    with style.pyplot().rc_context(style.STYLE):
        figure, grid = _figure(len(columns), 1, names, title)
        for axes, (panel, members) in zip(grid[0], columns.items(), strict=True):
            p99 = [need(row, "p99_ms") for _, row in members]
            accuracy = [100 * need(row, "accuracy") for _, row in members]
            best = frontier(p99, accuracy)
            line = {"drawstyle": "steps-post", "color": "0.6", "linewidth": 1.2, "zorder": 1}
            axes.plot([p99[i] for i in best], [accuracy[i] for i in best], **line)
            points = [(n, x, y, None) for (n, _), x, y in zip(members, p99, accuracy, strict=True)]
            hollow = {n for n, row in members if _is_larger(row)}
            _scatter(axes, points, names, hollow, log="x")
            axes.set_title(panel)
            axes.set_xlabel("group P99, ms (log)")
        grid[0, 0].set_ylabel("accuracy, %")
        return style.save(figure, out_stem, title)


def plot_heat(
    rows: Sequence[Row],
    out_stem: Path,
    *,
    value: str,
    axes: tuple[str, str],
    title: str,
) -> list[Path]:
    """Draw a gain as a heat map: 1 is white, more is green, less is purple. Each cell has the
    median and the 10-90 % range. Errors are as in `plot_against_ranks`.

    Args:
        rows: one for each cell.
        out_stem: path without suffix; .png and .pdf are written.
        value: column with the gain, such as "p99_vs_replicate".
        axes: axes of the experiment: across the map, and down.
        title: the first line is bold, and further lines are below it.
    """
    across, down = axes
    xs, ys = axis_labels(rows, across), axis_labels(rows, down)
    cells = {(row.get(AXIS + across), row.get(AXIS + down)): row for row in rows}
    if len(cells) < len(rows):
        raise UsageError(f"several points in one cell of {across} x {down}: choose with --where")
    for x, y in itertools.product(xs, ys):
        if need(cells.get((x, y), {"name": f"{across}={x}, {down}={y}"}), value) <= 0:
            raise DataFault(f"{across}={x}, {down}={y}: {value} is 0 or less; a gain is above 0")
    gains = np.log2([[need(cells[x, y], value) for x in xs] for y in ys])  # (down, across)
    labels = [textwrap.fill(y, 24) for y in ys]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    top_in, left_in = 0.55 + 0.16 * title.count("\n"), 0.3 + 0.085 * longest
    height_in = top_in + 0.55 * len(ys) + 0.62
    width_in = max(left_in + 1.35 * len(xs) + 0.15, _HEADING_IN)
    with style.pyplot().rc_context(style.STYLE):
        margins_in = (left_in, 0.15, top_in, 0.62)
        figure, grid = style.subplots((width_in, height_in), margins_in)
        limit, chart = max(abs(gains).max(), 0.1), grid[0, 0]
        chart.imshow(gains, cmap="PRGn", vmin=-limit, vmax=limit, aspect="auto")
        for j, y in enumerate(ys):
            for i, x in enumerate(xs):
                _cell(chart, i, j, cells[x, y], value, abs(gains[j, i]) > 0.7 * limit)
        chart.set_xticks(range(len(xs)), xs)
        chart.set_yticks(range(len(ys)), labels)
        chart.set_xlabel(across)
        chart.tick_params(length=0)
        chart.spines[:].set_visible(False)
        return style.save(figure, out_stem, title)


def _cell(axes: Any, i: int, j: int, row: Row, value: str, strong: bool) -> None:
    colour = "white" if strong else "black"
    axes.text(i, j, f"{need(row, value):.2f}x", ha="center", va="bottom", color=colour, fontsize=11)
    if ends := _ends(row, f"{value}_low", f"{value}_high"):
        text = f"{ends[0]:.2f} to {ends[1]:.2f}"
        axes.text(i, j + 0.08, text, ha="center", va="top", color=colour, fontsize=7.5)


# ---- what the scatter figures share -----------------------------------------

Panels = dict[str, Sequence[tuple[int, Row]]]  # title -> its points, each with its number
Point = tuple[int, float, float, tuple[float, float] | None]  # number, x, y, bar


def _columns(rows: Sequence[Row], series: str, panels: str) -> tuple[list[str], Panels]:
    """The labels on the axis of the series, and the panels with their points."""
    names = axis_labels(rows, series)
    number = {name: n for n, name in enumerate(names)}
    columns: Panels = {}
    for label in axis_labels(rows, panels):
        mine = [row for row in rows if row.get(AXIS + panels) == label and row.get(AXIS + series)]
        shown = f"{panels} {label}" if label.isdecimal() else label
        columns[shown] = [(number[row[AXIS + series]], row) for row in mine]
    return names, columns


def _figure(columns: int, lines: int, names: Sequence[str], title: str) -> tuple[Any, Any]:
    top_in = 0.62 + 0.16 * title.count("\n")
    bottom_in = 0.62 + 0.17 * -(-len(names) // 3)
    height_in = top_in + 2.75 * lines + 0.1 * (lines - 1) + bottom_in
    size_in, margins_in = (1.1 + 2.75 * max(columns, 2), height_in), (0.74, 0.24, top_in, bottom_in)
    spaces = {"wspace": 0.24, "hspace": 0.08}
    figure, grid = style.subplots(size_in, margins_in, (lines, columns), sharex="col", **spaces)
    handles = [style.mark(f"{n + 1}  {name}", *_look(name)) for n, name in enumerate(names)]
    for handle in handles:
        handle.set_markersize(5)
    figure.legend(
        handles=handles, loc="lower left", ncols=3, fontsize=7.6, bbox_to_anchor=(0.02, 0.0)
    )
    return figure, grid


def _look(name: str) -> tuple[str, str]:
    """Colour and marker by the first word of a label, so that a scheme looks the same in all
    figures."""
    first = name.split(",")[0].split(" ")[0]
    if first == "fastest":
        return "#009E73", "P"
    return scheme_class(first).mark if first in SCHEME_NAMES else _OTHER


def _scatter(
    axes: Any,
    points: Sequence[Point],
    names: Sequence[str],
    hollow: Collection[int] = (),
    *,
    log: str,
) -> None:
    """Draw the points and their numbers; `log` is the axis with a logarithmic scale."""
    for n, x, y, bar in points:
        colour, marker = _look(names[n])
        if bar is not None:
            axes.plot([x, x], bar, color=colour, linewidth=0.8, alpha=0.5, zorder=1)
        face = "white" if n in hollow else colour
        axes.plot(x, y, marker=marker, color=colour, mfc=face, markersize=6, linestyle="", zorder=2)
    axes.margins(0.12)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set(**{f"{log}scale": "log"})
    _plain(getattr(axes, f"{log}axis"))
    _number(axes, points, names)


def _number(axes: Any, points: Sequence[Point], names: Sequence[str]) -> None:
    """Draw each point's number where it covers no marker or number. The axes must be final."""
    from matplotlib.patheffects import withStroke

    axes.get_xlim(), axes.get_ylim()  # fixes the limits, so that positions on paper are known
    scale = 72 / axes.figure.dpi
    places = np.array([axes.transData.transform((x, y)) for _, x, y, _ in points]) * scale  # points
    texts = [str(n + 1) for n, *_ in points]
    offsets = free_offsets(places, [len(text) for text in texts], axes.bbox.get_points() * scale)
    for (n, x, y, _), text, offset in zip(points, texts, offsets, strict=True):
        far = np.hypot(*offset) > NEAR
        axes.annotate(
            text,
            (x, y),
            xytext=offset,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=7.5,
            color=_look(names[n])[0],
            zorder=3,
            path_effects=[withStroke(linewidth=1.6, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": "0.7", "lw": 0.5} if far else None,
        )


def _bar(row: Row, name: str) -> tuple[float, float] | None:
    ends = _ends(row, f"{name}_low_ms", f"{name}_high_ms")
    return ends and (_floored(ends[0]), _floored(ends[1]))


def _ends(row: Row, *columns: str) -> tuple[float, float] | None:
    low, high = (row.get(column) for column in columns)
    return (low, high) if isinstance(low, float) and isinstance(high, float) else None


def _floored(value_ms: float) -> float:
    return max(value_ms, _LEAST_MS)


def _is_larger(row: Row) -> bool:
    return need(row, "ranks") - 1 > need(row, "side") ** 2 + SPARE


def _plain(axis: Any) -> None:
    """Label a logarithmic axis with 1, 2, 5, 10, ...; with even steps if its range is small."""
    from matplotlib.ticker import MaxNLocator

    low, high = sorted(axis.get_view_interval())
    if high < 2 * low:
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        style.plain_numbers(axis, ",.6g")
    else:
        near = high < 10 * low
        style.numbers_on_log_axis(axis, (1, 1.5, 2, 3, 5, 7) if near else (1, 2, 5))


def free_offsets(
    places: np.ndarray, digits: Sequence[int], frame: np.ndarray
) -> list[tuple[float, float]]:
    """The offset from each marker to the middle of its number, in typographic points.

    A number should be near its marker, inside the frame, and cover no marker or other number.
    Numbers of markers with most neighbours are placed first. If no place is free, the least covered
    is used.

    Args:
        places: (n, 2), the markers' positions, in typographic points.
        digits: number of digits of each number.
        frame: (2, 2), lower left and upper right corner.
    """
    halves = np.array([[2.3 * count + 1.0, 4.2] for count in digits])  # (n, 2) of the numbers
    distances = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))  # (n, n)
    order = np.argsort(-(distances < 3 * _OFFSETS[0]).sum(axis=1), kind="stable")
    taken: dict[int, np.ndarray] = {}
    found: dict[int, tuple[float, float]] = {}
    for i in order.tolist():
        spots = places[i] + _CANDIDATES  # (candidates, 2)
        on_markers = np.abs(spots[:, None] - places) < halves[i] + _MARKER_HALF
        covered = on_markers.all(axis=2).sum(axis=1)
        for j, spot in taken.items():
            covered += (np.abs(spots - spot) < halves[i] + halves[j]).all(axis=1)
        inside = (spots - halves[i] > frame[0]) & (spots + halves[i] < frame[1])
        best = int(np.argmin(covered + 10 * ~inside.all(axis=1)))  # the nearest of the best
        taken[i] = spots[best]
        found[i] = (float(_CANDIDATES[best][0]), float(_CANDIDATES[best][1]))
    return [found[i] for i in range(len(places))]

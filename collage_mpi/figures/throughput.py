"""Draws throughput against latency, with a line for each scheme and a point for each batch size,
and writes the points as text and CSV.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.figures import style
from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.results import Results, summarise
from collage_mpi.results.render import points as share_text
from collage_mpi.results.render import supported
from collage_mpi.system.files import save_records
from collage_mpi.system.table import Column, Table, Value, to_text

PERS = ("group", "image")
TAIL = "p99"
LATENCIES = [(per, name) for per in PERS for name in ("p50", "p95", TAIL)]


Json = dict[str, Any]


def batch_points(runs: Sequence[Results]) -> list[Json]:
    """Throughput and latencies of runs, by series in the order of the runs, then by batch size.

    Returns:
        The rows of the CSV. Runs with the same settings share a row, whose numbers are their
        medians, or None if a run had too few batches. Keys: series (scheme, policy and mode), batch
        (groups in a batch), runs (number of runs), images_per_s (from the first measured admission
        to the last measured end), group_p50_ms to image_p99_ms, batches (independent samples of a
        run), accuracy, collage_share; batch_cost_single and batch_cost_collage (time of each
        further input of a batch divided by that of the first input, on an idle rank; None if not
        measured).

    Raises:
        UsageError: there are no runs.
        DataFault: a run has no measured group.
    """
    if not runs:
        raise UsageError("no runs to draw; name at least one run directory")
    alike: dict[str, dict[int, list[Json]]] = {}
    for point in map(_point, runs):
        alike.setdefault(point["series"], {}).setdefault(point["batch"], []).append(point)
    return [_medians(batches[size]) for batches in alike.values() for size in sorted(batches)]


def _medians(points: Sequence[Json]) -> Json:
    found = {**points[0], "runs": len(points)}
    for name, value in points[0].items():
        if name not in ("series", "batch", "runs") and value is not None:
            values = [point[name] for point in points]
            found[name] = None if None in values else float(np.median(values))
    return found


def _point(run: Results) -> Json:
    summary = summarise(run)
    latency, price = summary["latency"], summary["price"]
    if not price["images_per_s"]:
        raise DataFault(
            f"{run.path}: no measured group in this run (only warm-up, or nothing yet); leave it "
            "out or let it run longer."
        )
    batch = int(run.manifest.get("batch") or 1)
    mode = run.mode.removesuffix(f", batch {batch}")
    costs = run.manifest.get("batch_costs") or {}
    return {
        "series": f"{run.scheme} ({mode})" + (" (INVALID)" if run.invalid else ""),
        "batch": batch,
        "runs": 1,
        "images_per_s": price["images_per_s"],
        **{f"{per}_{name}_ms": latency[per][f"{name}_ms"] for per, name in LATENCIES},
        "batches": latency["group"]["independent"],
        "accuracy": summary["accuracy"]["overall"]["accuracy"],
        "collage_share": price["collage_share"],
        "batch_cost_single": costs.get(SINGLE),
        "batch_cost_collage": costs.get(COLLAGE),
    }


def render_batches(points: Sequence[Json]) -> str:
    """The points as a table, with the ratio of each throughput to the first in its series."""
    first: dict[str, float] = {}
    rows: list[Sequence[Value]] = []
    for point in points:
        rate, begins = point["images_per_s"], point["series"] not in first
        base, independent = first.setdefault(point["series"], rate), round(point["batches"])
        rows.append(
            [
                *(point["series"] if begins else "", point["batch"]),
                f"{rate:,.0f} ({rate / base:.2f}x)",
                *(supported(point[f"{per}_{name}_ms"], independent) for per, name in LATENCIES),
                *(point["batches"], point["runs"], share_text(point["accuracy"])),
            ]
        )
    latencies = [f"{per} {name.upper()}" for per, name in LATENCIES]
    columns = ["", "batch", "images/s", *latencies]
    batches = Column("batches", ",.0f")
    return to_text(Table([*columns, batches, "runs", "accuracy"], rows), 150)


def plot_throughput(points: Sequence[Json], out_stem: Path, *, title: str) -> list[Path]:
    """Draw images a second against the latency of a group (left) and of an image (right).

    Filled markers are medians, hollow markers P99, each with its batch size. Better is up and left.

    Args:
        points: from `batch_points`.
        out_stem: path without suffix; .png, .pdf and .csv are written.
        title: the first line is bold, and further lines are below it.

    Raises:
        EnvironmentFault: matplotlib is missing, or the files cannot be written.
    """
    pyplot = style.pyplot()
    series = list(dict.fromkeys(point["series"] for point in points))
    top_in = 0.62 + 0.16 * title.count("\n")
    bottom_in = 0.66 + 0.18 * len(series)
    height_in = top_in + 3.0 + bottom_in
    with pyplot.rc_context(style.STYLE):
        margins_in = (0.73, 0.13, top_in, bottom_in)
        figure, grid = style.subplots(
            (8.6, height_in), margins_in, (1, 2), sharey=True, wspace=0.06
        )
        panels = grid[0]
        for axes, per in zip(panels, PERS, strict=True):
            for number, name in enumerate(series):
                _line(axes, [p for p in points if p["series"] == name], per, number)
            axes.set_xlabel(f"latency of {'a group' if per == 'group' else 'an image'}, ms")
            axes.set_xlim(left=0)
            axes.set_ylim(bottom=0)
            axes.grid(color="0.92", linewidth=0.6)
            axes.set_axisbelow(True)
        panels[0].set_ylabel("images/s")
        _legend(figure, series)
        paths = style.save(figure, out_stem, title)
    table = paths[0].with_suffix(".csv")
    save_records(table, points)
    return [*paths, table]


def _line(axes: Any, points: Sequence[Json], per: str, number: int) -> None:
    colour, marker = style.look(number)
    for name, line, face in (("p50", "-", colour), (TAIL, ":", "white")):
        known = [(p, ms) for p in points if (ms := p[f"{per}_{name}_ms"]) is not None]
        xs, ys = [ms for _, ms in known], [p["images_per_s"] for p, _ in known]
        look = {"color": colour, "marker": marker, "mfc": face, "markersize": 6, "linewidth": 1.3}
        axes.plot(xs, ys, linestyle=line, **look)
        for (point, _), x, y in zip(known, xs, ys, strict=True):
            axes.annotate(
                str(point["batch"]),
                (x, y),
                xytext=(0, 7 if number % 2 == 0 else -7),
                textcoords="offset points",
                ha="center",
                va="bottom" if number % 2 == 0 else "top",
                fontsize=7.5,
                color=colour,
            )


def _legend(figure: Any, series: Sequence[str]) -> None:
    sides: tuple[list[Any], list[Any]] = ([], [])
    for number, name in enumerate(series):
        colour, marker = style.look(number)
        median, tail = f"{name}: P50", f"{name}: P99, where enough batches ran"
        sides[0].append(style.mark(median, colour, marker, line="-"))
        sides[1].append(style.mark(tail, colour, marker, "white", ":"))
    handles = [*sides[0], *sides[1]]  # matplotlib fills columns: P50 left, P99 right
    figure.legend(handles=handles, loc="lower left", ncols=2, bbox_to_anchor=(0.04, 0.0))

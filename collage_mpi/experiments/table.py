"""Writes the results of an experiment: table.csv with a line a run, points.csv with a line a
point.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import EnvironmentFault
from collage_mpi.experiments.aggregate import MEANS, STATISTICS, PointRun, aggregate
from collage_mpi.experiments.runner import DONE, NEW, state, summary_alone
from collage_mpi.experiments.spec import Experiment, Point
from collage_mpi.kinds import SHARED_KINDS
from collage_mpi.results import read_results, summarise
from collage_mpi.results.file_names import POINTS, TABLE
from collage_mpi.results.render import optional
from collage_mpi.simulation.runs import read_latencies_ns
from collage_mpi.system.files import save_records
from collage_mpi.system.terminal import make_table, to_text

LATENCY = ("p50_ms", "p95_ms", "p99_ms", "p99.9_ms", "std_ms", "over_3_medians")
PRICE = (
    *(f"{kind}_share" for kind in SHARED_KINDS),
    "cost_ratio",
    "wasted_work",
    "ranks",
    "rank_seconds_per_image",
    "images_per_s",
)

Json = dict[str, Any]


@dataclass(frozen=True)
class Tables:
    """The files that were written.

    Attributes:
        table, points: the files.
        rows: of points.csv.
        runs: number of runs in the table.
        missing: points of the experiment that have no run yet.
    """

    table: Path
    points: Path
    rows: list[Json]
    runs: int
    missing: list[Point]


def write_tables(experiment: Experiment, out: Path) -> Tables:
    """Write `out`/table.csv and `out`/points.csv, each complete or not at all.

    Points are made of complete runs only; the table has incomplete ones too.

    Raises:
        EnvironmentFault: there is no run, or a file cannot be written.
    """
    runs, missing = read_runs(experiment, out)
    if not runs:
        raise EnvironmentFault(f"{out} holds no run of this experiment yet: leave out --table")
    rows = [run.row for run in runs]
    save_records(out / TABLE, rows)
    done = [run for run in runs if state(run.point, out) == DONE]
    points = aggregate(experiment, done)
    save_records(out / POINTS, points)
    return Tables(out / TABLE, out / POINTS, points, len(rows), missing)


def render_point(row: Json) -> str:
    """A line of points.csv as text, with the figures over its placements."""
    table = make_table(f"over {row['placements']} seeds", "median", "10 %", "90 %", "pooled")
    for name in STATISTICS:
        keys = ("_ms", "_low_ms", "_high_ms", "_pooled_ms")
        table.add_row(f"{name}_ms", *(optional(row[name + key], ".5g") for key in keys))
    means = make_table("", "mean")
    for name in ("accuracy", *MEANS):
        means.add_row(name, optional(row[name], ".5g"))
    return f"{to_text(table)}\n\n{to_text(means)}\n\n{row['groups']:,} groups"


def read_runs(experiment: Experiment, out: Path) -> tuple[list[PointRun], list[Point]]:
    """The runs that are there, and the points that have none yet."""
    runs, missing = [], []
    for point in experiment.points:
        if state(point, out) == NEW:
            missing.append(point)
        else:
            runs.append(_read_run(experiment, point, out / point.name))
    return runs, missing


def _read_run(experiment: Experiment, point: Point, folder: Path) -> PointRun:
    summary = summary_alone(folder)
    if summary is not None:
        latencies_ns = read_latencies_ns(folder)
    else:
        results = read_results(folder)
        summary, latencies_ns = summarise(results), results.measured_groups["latency_ns"]
    latencies_ms = None if latencies_ns is None else np.asarray(latencies_ns) / 1e6
    return PointRun(point, _row(experiment, point, summary), latencies_ms)


def _row(experiment: Experiment, point: Point, summary: Json) -> Json:
    """A line of the table, with None for a number that the sample does not support."""
    group, values = summary["latency"]["group"], point.settings.to_dict()
    return {
        "index": point.index,
        "name": point.name,
        "how": experiment.how,
        "status": summary["status"],
        **{key: _cell(values[key]) for key in experiment.varied},
        "groups": group["groups"],
        **{key: group[key] for key in LATENCY},
        **{f"image_{key}": summary["latency"]["image"][key] for key in ("p50_ms", "p99_ms")},
        "accuracy": summary["accuracy"]["overall"]["accuracy"],
        **{key: summary["price"].get(key) for key in PRICE},
        "valid": summary["validity"]["valid"],
    }


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value

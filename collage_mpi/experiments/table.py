"""Writes the results of an experiment: table.csv with a row for each run, and points.csv with a row
for each point, with statistics over its repeats (docs/experiments.md).

A seed is a *placement*: it decides which machine is which rank. Placements are the unit of
replication. Percentiles and gains are computed for each placement; then their median and 10-90 %
range over placements. Pooled figures are computed from the groups of all placements together.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import EnvironmentFault
from collage_mpi.experiments.runner import DONE, NEW, state, summary_alone
from collage_mpi.experiments.spec import Experiment, Point
from collage_mpi.kinds import SHARED_KINDS
from collage_mpi.results import read_results, summarise
from collage_mpi.results.file_names import POINTS, TABLE
from collage_mpi.results.statistics import PERCENTILES, percentile, percentile_name
from collage_mpi.simulation.runs import read_latencies_ns
from collage_mpi.system.files import save_records

STATISTICS = (*(percentile_name(q) for q in PERCENTILES), "std")
COMPARED = ("p50", "p99", "std")
LEAST_FOR_RANGE = 5  # placements; a 10-90 % range of fewer means nothing
SEEDS = ("straggler_seed", "arrival_seed")  # settings in which repeats differ
_Q = {percentile_name(q): q for q in PERCENTILES}
_SHARES = tuple(f"{kind}_share" for kind in SHARED_KINDS)
MEANS = (*_SHARES, "wasted_work", "rank_seconds_per_image", "cost_ratio")
_REPLICATES, _BOOTSTRAP_SEED = 400, 20190426

Json = dict[str, Any]
Key = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class PointRun:
    """A finished run of a point.

    Attributes:
        point: of the experiment.
        row: its row of table.csv.
        latencies_ms: (groups,) latencies of its measured groups; None if it has only a summary.
        batch: groups in a batch, if the settings leave this to the run.
    """

    point: Point
    row: Mapping[str, Any]
    latencies_ms: np.ndarray | None
    batch: int

    @property
    def samples(self) -> int:
        """The number of independent samples: measured groups, or batches of groups."""
        together = self.point.settings.at_batch(self.batch).released_together
        return 0 if self.latencies_ms is None else -(-len(self.latencies_ms) // together)


def aggregate(experiment: Experiment, runs: Iterable[PointRun]) -> list[Json]:
    """The rows of points.csv: each point's repeats together, compared with the baselines.

    A gain `p99_vs_B` is B's P99 divided by this point's, so 2 means half the P99. It is computed
    for each seed that both points have. Accuracy differences are for the same images.
    """
    families: dict[str, list[PointRun]] = {}
    for run in runs:
        families.setdefault(run.point.family, []).append(run)
    places = {_place(members[0].point): members for members in families.values()}
    settings = [key for key in experiment.varied if key not in SEEDS]
    rows = []
    for family, members in families.items():
        row = _own(family, members, settings)
        for choice in experiment.baselines.choices:
            place = _moved(members[0].point, experiment.baselines.axis, choice)
            row |= _compared(choice, members, places.get(place, []) if place else [])
        rows.append(row)
    return rows


def _place(point: Point) -> Key:
    """A key for a point: its choices on the axes of the grid, or the name of a [[point]]."""
    return tuple(point.draft.axes.items()) or (("", point.family),)


def _moved(point: Point, axis: str | None, choice: str) -> Key | None:
    """The key of the point with another choice on one axis; None for a [[point]]."""
    if axis not in point.draft.axes:
        return None
    return tuple({**point.draft.axes, axis: choice}.items())


def _own(family: str, runs: Sequence[PointRun], settings: Sequence[str]) -> Json:
    first = runs[0]
    row: Json = {
        "name": family,
        "how": first.row["how"],
        **{f"axis:{axis}": label for axis, label in first.point.draft.axes.items()},
        **{key: first.row[key] for key in settings},
        "placements": len(runs),
        "invalid": sum(run.row["valid"] is False for run in runs),
        "groups": sum(run.row["groups"] for run in runs),
        "ranks": first.row["ranks"],
    }
    for name in STATISTICS:
        values = _known(run.row[f"{name}_ms"] for run in runs)
        row |= _spread(f"{name}_ms", values, of=len(runs))
        row[f"{name}_pooled_ms"] = pooled(name, runs)
    row["p99_pooled_low_ms"], row["p99_pooled_high_ms"] = _pooled_range(runs)
    row["accuracy"] = _mean(run.row["accuracy"] for run in runs)
    return row | {name: _mean(run.row[name] for run in runs) for name in MEANS}


def _compared(choice: str, runs: Sequence[PointRun], bases: Sequence[PointRun]) -> Json:
    theirs = {base.point.draft.seed: base for base in bases}
    pairs = [(r, theirs[r.point.draft.seed]) for r in runs if r.point.draft.seed in theirs]
    row: Json = {}
    for name in COMPARED:
        both = [(r.row[f"{name}_ms"], b.row[f"{name}_ms"]) for r, b in pairs]
        gains = [base / own for own, base in both if own and base is not None]
        row |= _spread(f"{name}_vs_{choice}", gains, of=len(runs))
        own, base = (pooled(name, [pair[i] for pair in pairs]) for i in (0, 1))
        row[f"{name}_pooled_vs_{choice}"] = base / own if own and base is not None else None
    paired = [(r.row["accuracy"], b.row["accuracy"]) for r, b in pairs]
    row[f"accuracy_vs_{choice}"] = _mean(
        None if own is None or base is None else own - base for own, base in paired
    )
    return row


def pooled(name: str, runs: Sequence[PointRun]) -> float | None:
    """A statistic over the groups of all runs together, in ms; None if there are too few groups, or
    a run has only a summary."""
    samples = [run.latencies_ms for run in runs if run.latencies_ms is not None]
    if not samples or len(samples) < len(runs):
        return None
    values = np.concatenate(samples)  # (groups of all runs,)
    if name == "std":
        return float(values.std(ddof=1)) if len(values) > 1 else None
    return percentile(values, _Q[name], sum(run.samples for run in runs))


def _pooled_range(runs: Sequence[PointRun]) -> tuple[float | None, float | None]:
    """The 95 % bootstrap interval of the pooled P99, with placements as the unit of resampling.

    It is too narrow if few placements differ much (docs/experiments.md).
    """
    samples = [run.latencies_ms for run in runs if run.latencies_ms is not None]
    if len(samples) < max(len(runs), LEAST_FOR_RANGE) or pooled("p99", runs) is None:
        return None, None
    rng = np.random.default_rng(_BOOTSTRAP_SEED)
    found = []
    for _ in range(_REPLICATES):
        drawn = rng.integers(len(samples), size=len(samples))
        values = np.concatenate([samples[i] for i in drawn])
        found.append(np.quantile(values, 0.99, method="inverted_cdf"))
    low, high = np.quantile(found, (0.025, 0.975))
    return float(low), float(high)


def _spread(name: str, values: Sequence[float], of: int) -> Json:
    """The median and the 10-90 % range, with the keys `name`, `name`_low and `name`_high.

    The median needs a value from every placement. Without the worst ones it would be too good.

    Args:
        of: number of placements.
    """
    median = float(np.median(values)) if values and len(values) == of else None
    low, high = (
        (float(q) for q in np.quantile(values, (0.1, 0.9)))
        if median is not None and len(values) >= LEAST_FOR_RANGE
        else (None, None)
    )
    stem, unit = (name[:-3], "_ms") if name.endswith("_ms") else (name, "")
    return {name: median, f"{stem}_low{unit}": low, f"{stem}_high{unit}": high}


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return float(np.mean(known)) if known else None


LATENCY = (*(f"{name}_ms" for name in STATISTICS), "over_3_medians")
PRICE = (
    *(*_SHARES, "cost_ratio", "wasted_work"),
    *("ranks", "rank_seconds_per_image", "images_per_s"),
)


@dataclass(frozen=True)
class Tables:
    """The result of `write_tables`.

    Attributes:
        table, points: the files.
        rows: of points.csv.
        runs: number of rows of table.csv.
        missing: points that have no run yet.
    """

    table: Path
    points: Path
    rows: list[Json]
    runs: int
    missing: list[Point]


def write_tables(experiment: Experiment, out: Path) -> Tables:
    """Write `out`/table.csv and `out`/points.csv, each atomically.

    table.csv has incomplete runs too, but points.csv is made from complete runs only.

    Raises:
        EnvironmentFault: there is no run, or a file cannot be written.
    """
    states = [(point, state(point, out)) for point in experiment.points]
    missing = [point for point, found in states if found == NEW]
    begun = [(point, found) for point, found in states if found != NEW]
    if not begun:
        raise EnvironmentFault(f"{out} holds no run of this experiment yet: leave out --table")
    runs = [_read_run(experiment, point, out / point.name) for point, _ in begun]
    save_records(out / TABLE, [run.row for run in runs])
    done = [run for run, (_, found) in zip(runs, begun, strict=True) if found == DONE]
    points = aggregate(experiment, done)
    save_records(out / POINTS, points)
    return Tables(out / TABLE, out / POINTS, points, len(runs), missing)


def _read_run(experiment: Experiment, point: Point, folder: Path) -> PointRun:
    summary = summary_alone(folder)
    if summary is not None:
        latencies_ns = read_latencies_ns(folder)
    else:
        results = read_results(folder)
        summary, latencies_ns = summarise(results), results.measured_groups["latency_ns"]
    latencies_ms = None if latencies_ns is None else np.asarray(latencies_ns) / 1e6
    row = _row(experiment, point, summary)
    return PointRun(point, row, latencies_ms, summary.get("batch") or 1)


def _row(experiment: Experiment, point: Point, summary: Json) -> Json:
    """A row of table.csv, with None for numbers for which there are too few samples."""
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

"""Repeats of a point together: medians, ranges, gains, pooled figures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from results_harness import described

from collage_mpi.experiments.spec import Experiment, expand
from collage_mpi.experiments.table import PointRun, aggregate
from collage_mpi.kinds import SHARED_KINDS

SEEDS = 6


def experiment(**more: Any) -> Experiment:
    grid = {"side": [2, 3], "way": [{"name": "a", "depth": 1}, {"name": "b", "depth": 2}]}
    return expand(
        {
            "how": "simulate",
            "images": 9,
            "repeat": SEEDS,
            "grid": grid,
            "baseline": {"way": "a"},
            "point": [{"name": "alone", "credit": 5}],
            **more,
        }
    )


def run_of(point: Any, latencies_ms: np.ndarray, accuracy: float = 0.9) -> PointRun:
    found = described(latencies_ms)
    row = {
        "how": "simulate",
        "side": point.settings.side,
        "depth": point.settings.depth,
        "credit": point.settings.credit,
        "groups": len(latencies_ms),
        **{f"{name}_ms": value for name, value in found.percentiles.items()},
        "std_ms": found.std,
        "accuracy": accuracy,
        **dict.fromkeys(f"{kind}_share" for kind in SHARED_KINDS),
        "wasted_work": 0.0,
        "rank_seconds_per_image": 1.0,
        "cost_ratio": 1.0,
        "ranks": 11,
        "valid": None,
    }
    return PointRun(point, row, latencies_ms, 1)


def runs(found: Experiment, groups: int = 400) -> list[PointRun]:
    """Way b takes half as long as a; placement (seed) k is k + 1 times slower than 0."""
    made = []
    for point in found.points:
        rng = np.random.default_rng(7)
        way = point.draft.axes.get("way", "a")
        factor = ((point.draft.seed or 0) + 1) * {"a": 1.0, "b": 0.5}[way]
        accuracy = {"a": 0.9, "b": 0.88}[way]
        made.append(run_of(point, factor * rng.lognormal(4, 0.3, groups), accuracy))
    return made


def test_one_row_a_point_with_medians_and_ranges_over_placements() -> None:
    found = experiment()
    made = runs(found)
    rows = aggregate(found, made)
    names = ["side-2_a", "side-2_b", "side-3_a", "side-3_b", "alone"]
    assert [row["name"] for row in rows] == names
    row = rows[1]
    assert (row["axis:side"], row["axis:way"], row["placements"]) == ("2", "b", SEEDS)
    assert row["groups"] == SEEDS * 400
    each = [run.row["p99_ms"] for run in made if run.point.family == "side-2_b"]
    assert row["p99_ms"] == pytest.approx(np.median(each))
    assert row["p99_low_ms"] == pytest.approx(np.quantile(each, 0.1))
    assert row["p99_high_ms"] == pytest.approx(np.quantile(each, 0.9))
    together = np.concatenate([r.latencies_ms for r in made if r.point.family == "side-2_b"])
    assert row["p99_pooled_ms"] == np.quantile(together, 0.99, method="inverted_cdf")
    assert row["p99_pooled_low_ms"] <= row["p99_pooled_ms"] <= row["p99_pooled_high_ms"]
    assert row["std_pooled_ms"] == pytest.approx(together.std(ddof=1))


def test_gains_are_taken_placement_by_placement() -> None:
    found = experiment()
    by_name = {row["name"]: row for row in aggregate(found, runs(found))}
    assert by_name["side-3_b"]["p99_vs_a"] == pytest.approx(2.0)
    assert by_name["side-3_b"]["p99_vs_a_low"] == pytest.approx(2.0)
    assert by_name["side-3_b"]["std_pooled_vs_a"] == pytest.approx(2.0)
    assert by_name["side-3_a"]["p99_vs_a"] == 1.0
    assert by_name["side-3_b"]["accuracy_vs_a"] == pytest.approx(-0.02)
    assert by_name["alone"]["p99_vs_a"] is None  # it has no place on the axis


def test_what_the_sample_does_not_support_is_absent() -> None:
    found = experiment()
    short = aggregate(found, runs(found, groups=100))[1]
    assert short["p99_ms"] is None  # 100 groups a placement
    assert short["p99_vs_a"] is None
    assert short["p99_pooled_ms"] is not None  # 600 together
    assert short["p99.9_pooled_ms"] is None
    two = [run for run in runs(found) if (run.point.draft.seed or 0) < 2]
    row = aggregate(found, two)[1]
    assert row["p99_ms"] is not None
    assert row["p99_low_ms"] is None  # a range of two placements
    bare = [PointRun(run.point, run.row, None, 1) for run in runs(found)]
    assert aggregate(found, bare)[1]["p99_pooled_ms"] is None


def test_a_median_wants_every_placement() -> None:
    found = experiment()
    made = runs(found)
    lost = next(i for i, run in enumerate(made) if run.point.family == "side-2_b")
    point = made[lost].point
    made[lost] = run_of(point, np.full(10, 1e4))
    row = aggregate(found, made)[1]
    assert row["p99_ms"] is None
    assert row["p50_ms"] is not None


def test_gains_are_over_seeds_that_both_have() -> None:
    found = experiment()
    made = [
        run
        for run in runs(found)
        if not (run.point.draft.axes.get("way") == "a" and run.point.draft.seed == 0)
    ]
    row = aggregate(found, made)[1]
    assert row["name"] == "side-2_b"
    assert row["p99_vs_a"] is None  # one of its placements has no partner
    assert row["p99_pooled_vs_a"] == pytest.approx(2.0)


@pytest.mark.parametrize(("asked", "chosen", "samples"), [(1, 8, 400), (4, 8, 100), (None, 8, 50)])
def test_groups_of_one_batch_are_one_sample_also_where_the_run_chose_it(asked, chosen, samples):
    run = runs(experiment())[0]
    settings = replace(run.point.settings, batch=asked)
    point = replace(run.point, settings=settings)
    assert replace(run, point=point, batch=chosen).samples == samples

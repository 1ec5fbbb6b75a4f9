"""The interval and the threshold keep their level, by 1,000 replays each."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from collage_mpi.results.statistics import (
    differing_interval,
    least_images,
    least_threshold,
    most_differing,
    rules_out,
)

REPLAYS = 1_000
WORST = 0.05 + 2 * math.sqrt(0.05 * 0.95 / REPLAYS)  # the nominal level and two standard errors
ANSWERS = Path(__file__).parents[2] / "analysis" / "answers"


# ---- the interval -----------------------------------------------------------


def test_no_audit_excludes_nothing() -> None:
    assert differing_interval(0, 0) == (0, 1)


@pytest.mark.parametrize(("differing", "audited"), [(0, 100), (1, 100), (5, 1000), (7, 7), (0, 1)])
def test_the_interval_holds_what_was_seen_and_ends_where_shares_are_ruled_out(
    differing: int, audited: int
) -> None:
    low, high = differing_interval(differing, audited)
    assert low <= differing / audited <= high
    for edge, step in ((low, -1e-6), (high, 1e-6)):
        if 0 < edge < 1:
            assert rules_out(edge + step, differing, audited)
            assert not rules_out(edge - step, differing, audited)


def test_the_interval_narrows() -> None:
    assert differing_interval(7, 7) == pytest.approx((0.132, 1.0), abs=1e-4)
    few, many = differing_interval(5, 500), differing_interval(50, 5_000)
    assert few == pytest.approx((0.0017, 0.0304), abs=1e-4)
    assert many == pytest.approx((0.0059, 0.0156), abs=1e-4)
    low, high = differing_interval(50, 5_000, level=0.99)
    assert low < many[0]
    assert high > many[1]


@pytest.mark.parametrize("share", [0.0, 0.005, 0.02, 0.2])
def test_a_look_after_each_of_2000_answers_keeps_the_level(share: float) -> None:
    """A fixed interval, looked at so often, would leave 0.5 % out in a third of all runs."""
    rng = np.random.default_rng(round(1e4 * share))
    outside = cache(lambda differing, audited: rules_out(share, differing, audited))
    seen = np.cumsum(rng.random((REPLAYS, 2_000)) < share, axis=1)  # (replays, looks)
    missed = sum(any(map(outside, row.tolist(), range(1, 2_001))) for row in seen)
    assert missed / REPLAYS <= WORST


# ---- the threshold ----------------------------------------------------------


def test_how_many_may_differ() -> None:
    assert [least_images(agree) for agree in (0.98, 0.99, 0.995)] == [149, 299, 598]
    assert most_differing(597, 0.995) is None
    assert [most_differing(n, 0.995) for n in (598, 1_827, 1_830)] == [0, 3, 4]


def test_the_least_score_below_which_too_many_differ() -> None:
    scores = np.linspace(0, 0.9999, 2_000)  # no two in one step
    differs = np.zeros(2_000, bool)
    assert least_threshold(scores, differs, 0.995) == 0
    differs[:1_000] = True  # 4 of 2,000 are allowed at 0.995: the next four below 0.5 count too
    assert most_differing(2_000, 0.995) == 4
    assert least_threshold(scores, differs, 0.995) == pytest.approx(scores[996], abs=1e-4)


def test_cells_of_one_score_count_together_or_not_at_all() -> None:
    scores, differs = np.full(1_000, 0.5), np.zeros(1_000, bool)
    scores[:600], differs[600:] = 0.9, True
    assert least_threshold(scores, differs, 0.99) == 0.9
    differs[:600] = True
    assert least_threshold(scores, differs, 0.99) is None


def test_a_cell_without_an_answer_never_counts() -> None:
    assert least_threshold(np.full(1_000, -1.0), np.zeros(1_000, bool), 0.99) is None


@pytest.mark.parametrize("score", [0.9, 0.8515, 0.3, 1.0, 0.00009])
def test_a_score_that_was_counted_is_never_below_the_threshold(score: float) -> None:
    """Messages and rows hold scores as float32: of 0.9 that is 0.89999998."""
    scores = np.full(1_000, score, np.float32)
    found = least_threshold(scores, np.zeros(1_000, bool), 0.99)
    assert found is not None
    assert score - 2e-4 < found <= float(np.float32(score))


@pytest.mark.parametrize("agree", [0.98, 0.99, 0.995])
def test_the_threshold_keeps_the_level(agree: float) -> None:
    """Cells that differ the more the less sure they are; the worst case, in which any may do."""
    rng = np.random.default_rng(round(1e4 * agree))
    n = math.ceil(9 / (1 - agree))
    broken = 0
    for _ in range(REPLAYS):
        scores = rng.random(n)
        found = least_threshold(scores, rng.random(n) < (1 - scores), agree)
        broken += found is not None and (1 - found) ** 2 / 2 > 1 - agree  # of all images
    assert broken / REPLAYS <= WORST


@pytest.mark.parametrize("name", ["side3", "side3_balanced", "side3_yolo", "side5"])
def test_the_threshold_keeps_the_level_on_measured_answers(name: str) -> None:
    """Runs of side x side images that follow each other, of 10,000 that were classified."""
    with np.load(ANSWERS / f"fashion_collage_{name}.npz", allow_pickle=False) as kept:
        cells = int(kept["side"]) ** 2
        scores = np.where(kept["collage_absent"], -1, kept["collage_score"])
        differs = kept["collage_class"] != kept["single_class"]
    agree, rng = 0.98, np.random.default_rng(0)
    runs = math.ceil(9 / (1 - agree) / cells)
    broken = 0
    for _ in range(REPLAYS):
        drawn = rng.choice(len(scores) // cells, runs, replace=False)
        at = (drawn[:, None] * cells + np.arange(cells)).ravel()  # (runs * cells,)
        found = least_threshold(scores[at], differs[at], agree)
        broken += found is not None and float((differs & (scores >= found)).mean()) > 1 - agree
    assert broken / REPLAYS <= WORST

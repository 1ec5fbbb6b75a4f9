"""Percentiles that the sample supports, and none that it does not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collage_mpi.statistics import (
    PERCENTILES,
    bootstrap_intervals,
    describe,
    ecdf,
    percentile,
    support_needed,
    wilson_interval,
)


def test_support_needed() -> None:
    assert [support_needed(q) for q in PERCENTILES] == [6, 72, 368, 3688]
    for q in PERCENTILES:  # the meaning: the maximum exceeds the quantile with 97.5 %
        n = support_needed(q)
        assert q**n <= 0.025 < q ** (n - 1)


def test_no_percentile_below_its_support() -> None:
    values = np.arange(71.0)
    assert percentile(values, 0.95) is None
    assert percentile(np.arange(72.0), 0.95) == 68.0
    assert percentile(np.arange(720.0), 0.95, independent=71) is None


@given(st.lists(st.integers(0, 50), min_size=6, max_size=200), st.floats(0.01, 0.5))
def test_percentile_is_the_inverse_of_the_drawn_steps(values: list[int], q: float) -> None:
    found = percentile(np.array(values), q)
    if found is None:
        assert len(values) < support_needed(q)
        return
    x, share = ecdf(np.array(values))
    assert found in x
    assert share[x == found] >= q - 1e-12
    assert (share[x < found] < q + 1e-12).all()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=100))
def test_ecdf_rises_to_one(values: list[float]) -> None:
    x, share = ecdf(np.array(values))
    assert (np.diff(x) > 0).all()
    assert (np.diff(share) > 0).all()
    assert share[-1] == pytest.approx(1.0)
    assert share[0] == pytest.approx((np.array(values) == x[0]).mean())


def test_describe() -> None:
    values = np.array([1.0] * 99 + [10.0])
    spread = describe(values)
    assert spread.percentiles == {"p50": 1.0, "p95": 1.0, "p99": None, "p99.9": None}
    assert spread.over_3_medians == pytest.approx(0.01)
    assert spread.std == pytest.approx(values.std(ddof=1))
    empty = describe(np.empty(0))
    assert (empty.n, empty.mean, empty.std, empty.maximum, empty.over_3_medians) == (
        (0,) + (None,) * 4
    )


def test_bootstrap_covers_and_is_deterministic() -> None:
    values = np.random.default_rng(5).exponential(1.0, 400)
    intervals = bootstrap_intervals(values)
    assert intervals == bootstrap_intervals(values)
    low, high = intervals["p50"] or (0, 0)
    assert low < math.log(2) < high
    assert high - low < 0.5
    assert intervals["p99.9"] is None
    assert set(bootstrap_intervals(values[:5]).values()) == {None}


def test_bootstrap_is_wider_where_neighbours_are_alike() -> None:
    rng = np.random.default_rng(6)
    spells = np.repeat(rng.exponential(1.0, 40), 25)  # slow for long, not for one group
    alone = rng.permutation(spells)
    widths = [b - a for a, b in (bootstrap_intervals(v)["p50"] or (0, 0) for v in (spells, alone))]
    assert widths[0] > 1.5 * widths[1]


def test_wilson() -> None:
    assert wilson_interval(0, 0) is None
    low, high = wilson_interval(9, 10) or (0, 0)
    assert (round(low, 3), round(high, 3)) == (0.596, 0.982)  # Brown, Cai, DasGupta 2001

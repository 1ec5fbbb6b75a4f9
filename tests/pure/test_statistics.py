"""Percentiles that the sample supports, and none that it does not."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from results_harness import described

from collage_mpi.results.statistics import (
    PERCENTILES,
    BoundedSample,
    Interval,
    binomial_ranks,
    percentile,
    percentile_name,
    support_needed,
    wilson_interval,
)


@pytest.mark.parametrize("q", [-0.5, 0.0, 1.0])
def test_a_percentile_lies_between_0_and_1(q: float) -> None:
    with pytest.raises(ValueError, match="lies between 0 and 1"):
        support_needed(q)


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


def steps_of(values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """The distribution function that a sample draws: values, and the share at or below each."""
    sample = BoundedSample(None)
    sample.add(np.array(values))
    x, below = sample.steps()
    return x, below / sample.n


@given(st.lists(st.integers(0, 50), min_size=6, max_size=200), st.floats(0.01, 0.5))
def test_percentile_is_the_inverse_of_the_drawn_steps(values: list[int], q: float) -> None:
    found = percentile(np.array(values), q)
    if found is None:
        assert len(values) < support_needed(q)
        return
    x, share = steps_of(values)
    assert found in x
    assert share[x == found] >= q - 1e-12
    assert (share[x < found] < q + 1e-12).all()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=100))
def test_ecdf_rises_to_one(values: list[float]) -> None:
    x, share = steps_of(values)
    assert (np.diff(x) > 0).all()
    assert (np.diff(share) > 0).all()
    assert share[-1] == pytest.approx(1.0)
    assert share[0] == pytest.approx((np.array(values) == x[0]).mean())


def test_describe() -> None:
    values = np.array([1.0] * 99 + [10.0])
    spread = described(values)
    assert spread.percentiles == {"p50": 1.0, "p95": 1.0, "p99": None, "p99.9": None}
    assert spread.over_3_medians == pytest.approx(0.01)
    assert spread.std == pytest.approx(values.std(ddof=1))
    empty = described(np.empty(0))
    assert (empty.n, empty.mean, empty.std, empty.maximum, empty.over_3_medians) == (
        (0,) + (None,) * 4
    )
    assert described(np.array([5.0])).std is None
    assert described(np.array([5.0, 6.0]), independent=1).std is None
    assert described(np.array([5.0, 7.0])).std == pytest.approx(2.0**0.5)


def test_intervals_are_of_measured_values_and_absent_below_their_support() -> None:
    values = np.random.default_rng(5).exponential(1.0, 400)
    found = described(values).intervals
    assert found["p99.9"] == Interval(found["p99.9"].samples, None)
    for name in ("p50", "p95"):
        low, high = found[name].ends or (0, 0)
        assert {low, high} <= set(values.tolist())
        assert low < described(values).percentiles[name] < high  # type: ignore[operator]
    assert {interval.ends for interval in described(values[:5]).intervals.values()} == {None}
    assert described(np.empty(0)).intervals["p50"] == Interval(0, None)
    alike = described(np.full(100, 7.0)).intervals
    assert alike["p95"] == Interval(100, (7.0, 7.0))
    # 80 batches of 5 groups that end together are worth no more than 80 values
    batches = described(np.repeat(values[:80], 5), independent=80).intervals
    assert 40 < batches["p50"].samples <= 80


@given(st.integers(1, 60), st.floats(0.02, 0.98), st.floats(0.001, 0.2))
def test_ranks_around_a_quantile_are_those_of_the_binomial(m: int, q: float, miss: float) -> None:
    below = [math.fsum(math.comb(m, i) * q**i * (1 - q) ** (m - i) for i in range(k + 1))
             for k in range(m + 1)]  # fmt: skip
    assume(min(min(abs(p - miss), abs(p - 1 + miss)) for p in below) > 1e-9)
    low = sum(p <= miss for p in below)
    assert binomial_ranks(m, q, miss) == (low, 1 + sum(p < 1 - miss for p in below))


def lognormal(rng: np.random.Generator, n: int, memory: float) -> np.ndarray:
    """A first-order autoregressive series with that correlation of neighbours, exponentiated."""
    shocks = rng.standard_normal(n) * math.sqrt(1 - memory**2)
    shocks[0] /= math.sqrt(1 - memory**2)
    logs = np.empty(n)
    last = 0.0
    for i, shock in enumerate(shocks.tolist()):
        last = logs[i] = memory * last + shock
    return np.exp(0.5 * logs)


@pytest.mark.parametrize(
    ("n", "memory", "q", "least", "most"),
    [  # a block bootstrap with blocks of sqrt(n) covers 0.84, 0.90; 0.71, 0.84, 0.9
        (80, 0.0, 0.95, 0.93, 0.985),
        (376, 0.0, 0.99, 0.93, 0.985),
        (376, 0.9, 0.5, 0.90, 0.99),
        (1000, 0.9, 0.95, 0.90, 0.99),
        (1000, 0.6, 0.99, 0.93, 1.0),
    ],
)
def test_95_percent_intervals_cover_95_percent(
    n: int, memory: float, q: float, least: float, most: float
) -> None:
    rng = np.random.default_rng(2026)
    true = math.exp(0.5 * NormalDist().inv_cdf(q))
    found = [described(lognormal(rng, n, memory)).intervals[percentile_name(q)] for _ in range(400)]
    ends = [interval.ends for interval in found if interval.ends is not None]
    assert len(ends) > 0.9 * len(found)
    share = sum(low <= true <= high for low, high in ends) / len(ends)
    assert least <= share <= most


def test_where_neighbours_are_alike_a_sample_is_worth_less() -> None:
    rng = np.random.default_rng(6)
    spells = np.repeat(rng.exponential(1.0, 40), 25)  # slow for long, not for one group
    alone = rng.permutation(spells)
    together, apart = (described(v).intervals["p50"] for v in (spells, alone))
    assert together.samples < 80 < 500 < apart.samples
    assert described(spells).intervals["p95"].ends is None  # 40 spells cannot support it
    assert described(alone).intervals["p95"].ends is not None


def test_wilson() -> None:
    assert wilson_interval(0, 0) is None
    for n in range(1, 200):  # no "-0.00 %" of none
        none, all_of_them = wilson_interval(0, n) or (1, 0), wilson_interval(n, n) or (1, 0)
        assert 0 <= none[0] < 1e-9 < none[1] < 1
        assert 0 < all_of_them[0] < 1 - 1e-9 < all_of_them[1] <= 1
    low, high = wilson_interval(9, 10) or (0, 0)
    assert (round(low, 3), round(high, 3)) == (0.596, 0.982)  # Brown, Cai, DasGupta 2001

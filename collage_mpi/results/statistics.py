"""Statistics of latencies: what a sample can support, and nothing more.

A percentile q is printed only where n >= ln(0.025) / ln(q): below that the sample's
maximum lies under the true quantile with more than 2.5 % probability, and no upper
confidence bound exists. n counts *groups*: images of one group share their release and
their queue, so they are not independent. Nor are groups that are let in together, as a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

PERCENTILES = (0.5, 0.95, 0.99, 0.999)
MISS = 0.025  # probability that an end of an interval lies on the wrong side
_ENOUGH_ABOVE = 60  # values above a level, to tell from them how long they stay there


def percentile_name(q: float) -> str:
    """0.5 -> "p50", 0.999 -> "p99.9"."""
    return f"p{100 * q:.4g}"


def support_needed(q: float, miss: float = MISS) -> int:
    """The independent samples a percentile needs: P50 6, P95 72, P99 368, P99.9 3688."""
    if not 0.0 < q < 1.0:
        raise ValueError(f"a percentile's q lies between 0 and 1, found {q}")
    return math.ceil(math.log(miss) / math.log(q))


def percentile(values: np.ndarray, q: float, independent: int | None = None) -> float | None:
    """The smallest value x with F(x) >= q, or None if the sample cannot support it.

    Args:
        values: (n,) any numeric dtype.
        q: between 0 and 1.
        independent: how many of the values are independent (groups, batches); n by default.
    """
    n = len(values) if independent is None else min(independent, len(values))
    if n < support_needed(q):
        return None
    return float(np.quantile(values, q, method="inverted_cdf"))


class Interval(NamedTuple):
    """An interval of a percentile within one run, of 95 % unless another was asked for.

    Attributes:
        samples: independent values that the sample is worth for this percentile.
        ends: low and high; None if there are fewer samples than the percentile needs.
    """

    samples: int
    ends: tuple[float, float] | None


@dataclass(frozen=True)
class Spread:
    """Describes a sample of latencies. None means that there are too few groups.

    Attributes:
        n: values in the sample.
        independent: groups, or batches of them, that they come from.
        percentiles: name ("p99") -> value in the unit of the sample.
        intervals: name -> 95 % interval within the run, if intervals were asked for.
        std: standard deviation, n - 1 in the denominator.
        over_3_medians: share of values above three times the median.
    """

    n: int
    independent: int
    percentiles: dict[str, float | None]
    intervals: dict[str, Interval]
    mean: float | None
    std: float | None
    maximum: float | None
    over_3_medians: float | None


def describe(values: np.ndarray, independent: int | None = None, *, ci: bool = False) -> Spread:
    """Describe a sample of latencies, in time order if intervals are asked for.

    Args:
        values: (n,) any unit.
        independent: how many are independent; n by default.
        ci: add intervals (one value per group then).
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    independent = n if independent is None else min(independent, n)
    found = {percentile_name(q): percentile(values, q, independent) for q in PERCENTILES}
    median = found["p50"]
    return Spread(
        n=n,
        independent=independent,
        percentiles=found,
        intervals=percentile_intervals(values, independent) if ci else {},
        mean=float(values.mean()) if n else None,
        std=float(values.std(ddof=1)) if independent >= 2 else None,
        maximum=float(values.max()) if n else None,
        over_3_medians=None if median is None else float((values > 3 * median).mean()),
    )


def percentile_intervals(values: np.ndarray, independent: int | None = None) -> dict[str, Interval]:
    """95 % intervals of the percentiles within one run: `quantile_interval` of each.

    Args:
        values: (n,) in time order.
        independent: the most samples that they are worth, such as batches; n by default.

    Returns:
        Percentile name -> interval.
    """
    ordered = np.sort(values)
    most = len(values) if independent is None else independent
    return {percentile_name(q): _interval(values, ordered, q, most, MISS) for q in PERCENTILES}


def quantile_interval(values: np.ndarray, q: float, miss: float = MISS) -> Interval:
    """An interval of the q-quantile within one run: order statistics (binomial).

    The number of m independent values at or below the q-quantile is binomial. So two of the values,
    chosen by rank, enclose the quantile for any distribution. Slow periods make neighbouring values
    alike, so n values of a run are worth only m = n / t, where t is the integrated autocorrelation
    time of "is above". Between placements the spread is larger still.

    Args:
        values: (n,) in time order.
        miss: the largest probability that an end lies on the wrong side.
    """
    return _interval(values, np.sort(values), q, len(values), miss)


def _interval(
    values: np.ndarray, ordered: np.ndarray, q: float, most: int, miss: float
) -> Interval:
    n = len(values)
    samples = min(most, int(n / time_above(values, ordered, q))) if n else 0
    if samples < support_needed(q, miss):
        return Interval(samples, None)
    low, high = binomial_ranks(samples, q, miss)
    low, high = math.floor(low * n / samples), math.ceil(high * n / samples)
    return Interval(samples, (float(ordered[max(low, 1) - 1]), float(ordered[min(high, n) - 1])))


def time_above(values: np.ndarray, ordered: np.ndarray, q: float) -> float:
    """Integrated autocorrelation time, in values, of lying above the q-quantile; at least 1.

    If too few values lie above it, a lower quantile is used, down to the median. Values stay above
    a lower quantile for longer, so the interval becomes too wide rather than too narrow. Lags count
    until the first correlation that white noise could have, 2 / sqrt(n).
    """
    n = len(values)
    level = max(0.5, min(q, 1 - _ENOUGH_ABOVE / n))
    above = (values > ordered[math.ceil(level * n) - 1]).astype(np.float64)
    above -= above.mean()
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(above, size)
    sums = np.fft.irfft(spectrum * spectrum.conj(), size)[: n // 2 + 1]  # by lag
    if sums[0] < 1e-9:
        return 1.0  # all alike: nothing lies above
    noise = np.flatnonzero(sums[1:] < 2 / math.sqrt(n) * sums[0])
    lags = int(noise[0]) if len(noise) else len(sums) - 1
    return 1.0 + 2.0 * float(sums[1 : 1 + lags].sum() / sums[0])


def binomial_ranks(m: int, q: float, miss: float) -> tuple[int, int]:
    """Ranks, from 1, of two of m values that enclose the q-quantile; each misses it with <= miss.

    P(value of rank r <= quantile) = P(at least r of m lie at or below it), B ~ Bin(m, q).
    """
    k = np.arange(m)
    steps = np.log((m - k) / (k + 1)) + math.log(q / (1 - q))  # of the density's logarithm
    density = m * math.log(1 - q) + np.concatenate([[0.0], np.cumsum(steps)])  # (m + 1,)
    below = np.cumsum(np.exp(density))  # P(B <= k)
    low = int(np.searchsorted(below, miss, side="right"))
    high = int(np.searchsorted(below, 1 - miss, side="left")) + 1
    return low, high


def ecdf(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The empirical distribution function as steps.

    Returns:
        x: (k,) the distinct values, ascending; F: (k,) share of values <= x, last 1.0.
    """
    x, counts = np.unique(values, return_counts=True)
    return x, np.cumsum(counts) / max(len(values), 1)


def wilson_interval(correct: int, n: int) -> tuple[float, float] | None:
    """95 % interval of a share (Wilson 1927), for accuracies; None for n = 0."""
    if n == 0:
        return None
    z = 1.959964
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)

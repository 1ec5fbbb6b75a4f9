"""Statistics of latencies: what a sample can support, and nothing more.

Owns: percentiles with their support rule, spread, the block bootstrap, the empirical
distribution.
Does not know: runs, files, figures, where the numbers come from.

A percentile q is printed only where n >= ln(0.025) / ln(q): below that the sample's
maximum lies under the true quantile with more than 2.5 % probability, and no upper
confidence bound exists. n counts *groups*: images of one group share their release and
their queue, so they are not independent. Nor are groups that are let in together, as a batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PERCENTILES = (0.5, 0.95, 0.99, 0.999)
BOOTSTRAP_SEED = 20190426
_MAX_DRAWS = 20_000_000  # of the bootstrap: about two seconds on one core


def percentile_name(q: float) -> str:
    """0.5 -> "p50", 0.999 -> "p99.9"."""
    return f"p{100 * q:.4g}"


def support_needed(q: float) -> int:
    """The independent samples a percentile needs: P50 6, P95 72, P99 368, P99.9 3688."""
    if not 0.0 < q < 1.0:
        raise ValueError(f"a percentile's q lies between 0 and 1, found {q}")
    return math.ceil(math.log(0.025) / math.log(q))


def percentile(values: np.ndarray, q: float, independent: int | None = None) -> float | None:
    """The smallest value x with F(x) >= q, or None where the sample cannot support it.

    Args:
        values: (n,) any numeric dtype.
        q: between 0 and 1.
        independent: how many of the values are independent (groups, batches); n by default.
    """
    n = len(values) if independent is None else min(independent, len(values))
    if n < support_needed(q):
        return None
    return float(np.quantile(values, q, method="inverted_cdf"))


@dataclass(frozen=True)
class Spread:
    """One sample of latencies described. Absent (None) means: too few groups.

    Attributes:
        n: values in the sample.
        independent: groups, or batches of them, that they come from.
        percentiles: name ("p99") -> value in the unit of the sample.
        intervals: name -> 95 % block bootstrap interval, where one was asked for.
        std: standard deviation, n - 1 in the denominator.
        over_3_medians: share of values above three times the median.
    """

    n: int
    independent: int
    percentiles: dict[str, float | None]
    intervals: dict[str, tuple[float, float] | None]
    mean: float | None
    std: float | None
    maximum: float | None
    over_3_medians: float | None


def describe(values: np.ndarray, independent: int | None = None, *, ci: bool = False) -> Spread:
    """Describe a sample of latencies, in time order if intervals are asked for.

    Args:
        values: (n,) any unit.
        independent: how many are independent; n by default.
        ci: add bootstrap intervals (one value per group then).
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
        intervals=bootstrap_intervals(values, independent) if ci else {},
        mean=float(values.mean()) if n else None,
        std=float(values.std(ddof=1)) if independent >= 2 else None,
        maximum=float(values.max()) if n else None,
        over_3_medians=None if median is None else float((values > 3 * median).mean()),
    )


def bootstrap_intervals(
    values: np.ndarray,
    independent: int | None = None,
    *,
    replicates: int = 1000,
    seed: int = BOOTSTRAP_SEED,
) -> dict[str, tuple[float, float] | None]:
    """95 % intervals of the percentiles within one run, by the moving block bootstrap.

    Blocks of ceil(sqrt(n)) consecutive groups are drawn, or of as many batches of them,
    because slow spells make neighbours alike (Kuensch 1989). The interval speaks of this
    placement of stragglers on ranks only; between placements the spread is larger.

    Args:
        values: (n,) in time order.
        independent: batches that they come from; n by default.
    """
    n = len(values)
    independent = n if independent is None else min(independent, n)
    wanted = {percentile_name(q): q for q in PERCENTILES if independent >= support_needed(q)}
    absent = {percentile_name(q): None for q in PERCENTILES}
    if not wanted:
        return dict(absent)
    replicates = max(100, min(replicates, _MAX_DRAWS // n))
    rng = np.random.default_rng(seed)
    block = min(n, math.ceil(math.ceil(math.sqrt(independent)) * n / independent))
    ranks = [math.ceil(q * n) - 1 for q in wanted.values()]
    found = np.empty((replicates, len(ranks)))
    for i in range(replicates):
        starts = rng.integers(0, n - block + 1, size=math.ceil(n / block))
        sample = values[(starts[:, None] + np.arange(block)).ravel()[:n]]  # (n,)
        found[i] = np.partition(sample, ranks)[ranks]
    low, high = np.quantile(found, (0.025, 0.975), axis=0)
    ends = zip(wanted, low, high, strict=True)
    return {**absent, **{name: (float(a), float(b)) for name, a, b in ends}}


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
    return centre - half, centre + half

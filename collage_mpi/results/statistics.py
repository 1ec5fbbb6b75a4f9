"""Percentiles of latencies with confidence intervals, in bounded memory. A percentile is given only
if the sample is large enough for it.

The percentile q needs n >= ln(0.025) / ln(q) samples. With fewer, the largest sample is below the
true quantile with more than 2.5 % probability, so there is no upper confidence bound. n counts
groups, because the images of a group are admitted together and share a queue, and so are not
independent. Groups of one batch count once, for the same reason.

Up to `bound` values, all statistics are exact, except for intervals of 131,072 or more independent
values, which use the normal approximation. Beyond the bound, values are counted in bins whose width
is at most 2**-11 (0.05 %) of the value, and a percentile is the middle of its bin. Counts, mean,
standard deviation and maximum are always exact.

The last part is about audits, in which the single network checks accepted answers of a collage:
how often accepted answers differ, the lowest score at which few enough of them differ, and whether
a collage network is much weaker than the single network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from collage_mpi.core.settings import batch_factor
from collage_mpi.rows import KINDS, OUTCOME_CODE, inputs_of, ran_together

PERCENTILES = (0.5, 0.95, 0.99, 0.999)
MISS = 0.025  # probability that an end of an interval lies on the wrong side
_ENOUGH_ABOVE = 60  # values above a level that are needed to estimate how long they stay above
_SHIFT = 52 - 11  # low bits of a float64's mantissa that are not in the number of its bin
_BLOCK = 1 << 15  # consecutive values from which the autocorrelation time is estimated
_ENOUGH_RANKS = 1 << 17  # from this sample size on, the normal approximation is used


def times_of_messages(
    tasks: np.ndarray, batch_costs: Mapping[str, float]
) -> tuple[np.ndarray, np.ndarray]:
    """The time of one input in each answered message, by rank, session, kind and end.

    Args:
        tasks: (n,) of TASK_ROW, or of fewer of its columns.
        batch_costs: kind -> time of each further input of a batch divided by that of the first.

    Returns:
        (m,) the first task of each message, and (m,) float64 ns.
    """
    further = np.array([float(batch_costs.get(kind, 1.0)) for kind in KINDS])
    inputs = ran_together(tasks, inputs_of(tasks))
    factor = batch_factor(inputs, further[tasks["kind"]])  # type: ignore[arg-type]
    answered = tasks["outcome"] == OUTCOME_CODE["answered"]
    times_ns, tasks = (tasks["compute_ns"] / factor)[answered], tasks[answered]
    order = np.lexsort([tasks[name] for name in ("sent_ns", "done_ns", "kind", "session", "rank")])
    tasks, times_ns = tasks[order], times_ns[order]
    message = tasks[["rank", "session", "kind", "done_ns", "sent_ns"]]
    first = np.append(True, message[1:] != message[:-1])[: len(message)]
    return tasks[first], times_ns[first]


def percentile_name(q: float) -> str:
    """0.5 -> "p50", 0.999 -> "p99.9"."""
    return f"p{100 * q:.4g}"


def support_needed(q: float, miss: float = MISS) -> int:
    """The number of independent samples that a percentile needs: 6 for P50, 72 for P95, 368 for
    P99, 3688 for P99.9."""
    if not 0.0 < q < 1.0:
        raise ValueError(f"a percentile's q lies between 0 and 1, found {q}")
    return math.ceil(math.log(miss) / math.log(q))


def percentile(values: np.ndarray, q: float, independent: int | None = None) -> float | None:
    """The smallest value x with F(x) >= q, or None if there are too few samples.

    Args:
        values: (n,) any numeric dtype.
        q: between 0 and 1.
        independent: number of independent samples (groups, batches); n by default.
    """
    n = len(values) if independent is None else min(independent, len(values))
    if n < support_needed(q):
        return None
    return float(np.quantile(values, q, method="inverted_cdf"))


class Interval(NamedTuple):
    """A confidence interval of a percentile within one run, by default of 95 %.

    Attributes:
        samples: effective number of independent values.
        ends: low and high; None if there are fewer samples than the percentile needs.
    """

    samples: int
    ends: tuple[float, float] | None


@dataclass(frozen=True)
class Spread:
    """The figures of a sample of latencies, in the unit of the sample. None: too few groups.

    Attributes:
        n: number of values.
        independent: number of groups, or batches of groups, that the values come from.
        percentiles: name ("p99") -> value.
        intervals: name -> 95 % interval within the run; {} unless the order in time is known.
        std: standard deviation, with n - 1 in the denominator.
        over_3_medians: share of the values that are above three times the median.
    """

    n: int
    independent: int
    percentiles: dict[str, float | None]
    intervals: dict[str, Interval]
    mean: float | None
    std: float | None
    maximum: float | None
    over_3_medians: float | None


def quantile_interval(values: np.ndarray, q: float, miss: float = MISS) -> Interval:
    """A confidence interval of the q-quantile within one run, from order statistics.

    The number of m independent values at or below the q-quantile is binomial. So two of the values,
    chosen by rank, enclose the quantile for any distribution. Slow periods make neighbouring values
    similar, so the effective number of values is m = n / t, where t is the integrated
    autocorrelation time of "the value is above the quantile". Runs with other placements differ by
    more than this interval.

    Args:
        values: (n,) in time order.
        miss: the largest probability that an end lies on the wrong side.
    """
    sample = BoundedSample(None)
    sample.add(values)
    return sample.interval(q, len(values), values, miss)


def time_above(values: np.ndarray, q: float) -> float:
    """Integrated autocorrelation time, in values, of "the value is above the q-quantile"; at least
    1.

    If too few values are above it, a lower quantile is used, down to the median. Values stay above
    a lower quantile for longer, so the interval becomes too wide rather than too narrow. The sum
    over lags ends at the first correlation below 2 / sqrt(n), which white noise could have.
    """
    n = len(values)
    level = max(0.5, min(q, 1 - _ENOUGH_ABOVE / n))
    place = math.ceil(level * n) - 1
    above = (values > np.partition(values, place)[place]).astype(np.float64)
    above -= above.mean()
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(above, size)
    sums = np.fft.irfft(spectrum * spectrum.conj(), size)[: n // 2 + 1]  # by lag
    if sums[0] < 1e-9:
        return 1.0  # all values are equal
    noise = np.flatnonzero(sums[1:] < 2 / math.sqrt(n) * sums[0])
    lags = int(noise[0]) if len(noise) else len(sums) - 1
    return 1.0 + 2.0 * float(sums[1 : 1 + lags].sum() / sums[0])


def binomial_ranks(m: int, q: float, miss: float) -> tuple[int, int]:
    """The ranks, from 1, of two of m sorted values that enclose the q-quantile.

    Each misses it with probability `miss` at most. With B ~ Bin(m, q),
    P(value of rank r <= quantile) = P(B >= r).
    """
    k = np.arange(m)
    steps = np.log((m - k) / (k + 1)) + math.log(q / (1 - q))  # of the density's logarithm
    density = m * math.log(1 - q) + np.concatenate([[0.0], np.cumsum(steps)])  # (m + 1,)
    below = np.cumsum(np.exp(density))  # P(B <= k)
    low = int(np.searchsorted(below, miss, side="right"))
    high = int(np.searchsorted(below, 1 - miss, side="left")) + 1
    return low, high


def wilson_interval(correct: int, n: int) -> tuple[float, float] | None:
    """The 95 % score interval of the share correct / n (Wilson 1927); None if n is 0."""
    if n == 0:
        return None
    z = 1.959964
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


# ---- in bounded memory -------------------------------------------------------


class BoundedSample:
    """A sample to which values are added. Beyond a bound only a histogram of them is kept."""

    def __init__(self, bound: int | None) -> None:
        """`bound`: the most values that are kept exactly; None for no limit."""
        self.n = 0
        self._bound = bound
        self._kept: list[np.ndarray] | None = []
        self._mean = self._squares = 0.0  # mean and sum of squared deviations of all values
        self._ends = (math.inf, -math.inf)  # minimum and maximum
        self._bins = np.empty(0, np.int64), np.empty(0, np.int64)  # ascending numbers, counts

    def add(self, values: np.ndarray) -> None:
        """Add values, (n,) of any numeric dtype."""
        if not len(values):
            return
        n, mean = len(values), float(values.mean())
        squares = float(((values - mean) ** 2).sum())
        total = self.n + n
        self._squares += squares + (mean - self._mean) ** 2 * self.n * n / total
        self._mean += (mean - self._mean) * n / total
        low, high = self._ends
        self._ends = min(low, float(values.min())), max(high, float(values.max()))
        self.n = total
        if self._kept is None:
            self._count(values)
            return
        self._kept.append(values)
        if self._bound is not None and total > self._bound:
            kept, self._kept = self._kept, None
            for some in kept:
                self._count(some)

    @property
    def exact(self) -> bool:
        """Whether all values are kept."""
        return self._kept is not None

    @property
    def values(self) -> np.ndarray:
        """All values, in the order in which they came. The sample must be exact."""
        assert self._kept is not None
        return np.concatenate(self._kept) if self._kept else np.empty(0)

    @property
    def mean(self) -> float | None:
        """The mean; None if there are no values."""
        if self._kept is not None and self.n:
            return float(self.values.mean())
        return self._mean if self.n else None

    @property
    def median(self) -> float | None:
        """The median; None if there are no values."""
        if self._kept is not None and self.n:
            return float(np.median(self.values))
        return self.at_rank(math.ceil(self.n / 2)) if self.n else None

    def at_rank(self, rank: int) -> float:
        """The value of a rank, counted from 1. The rank is clipped to 1..n."""
        rank = max(1, min(rank, self.n))
        if self._kept is not None:
            return float(np.partition(self.values, rank - 1)[rank - 1])
        numbers, counts = self._bins
        place = int(np.searchsorted(np.cumsum(counts), rank))
        return float(np.clip(_middles(numbers[place : place + 1])[0], *self._ends))

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """The distribution function: ascending values, and how many values are at or below each."""
        if self._kept is not None:
            x, counts = np.unique(self.values, return_counts=True)
        else:
            x, counts = np.clip(_middles(self._bins[0]), *self._ends), self._bins[1]
        return x, np.cumsum(counts)

    def percentile(self, q: float, independent: int) -> float | None:
        """See `percentile`."""
        if self._kept is not None:
            return percentile(self.values, q, independent)
        if min(independent, self.n) < support_needed(q):
            return None
        return self.at_rank(math.ceil(q * self.n))

    def spread(self, independent: int) -> Spread:
        """All figures of the sample. `independent`: number of independent values."""
        independent = min(independent, self.n)
        found = {percentile_name(q): self.percentile(q, independent) for q in PERCENTILES}
        median, over, std = found["p50"], None, None
        if median is not None:
            x, below = self.steps()
            over = float(self.n - below[x <= 3 * median].max(initial=0)) / self.n
        if independent >= 2:
            exact = self._kept is not None
            squares = self._squares / (self.n - 1)
            std = float(self.values.std(ddof=1)) if exact else math.sqrt(squares)
        return Spread(
            n=self.n,
            independent=independent,
            percentiles=found,
            intervals={},
            mean=self.mean,
            std=std,
            maximum=self._ends[1] if self.n else None,
            over_3_medians=over,
        )

    def interval(self, q: float, most: int, block: np.ndarray, miss: float = MISS) -> Interval:
        """See `quantile_interval`.

        Args:
            most: upper bound of the effective number of independent values.
            block: values that follow each other in time, for the autocorrelation time.
        """
        samples = min(most, int(self.n / time_above(block, q))) if self.n else 0
        if samples < support_needed(q, miss):
            return Interval(samples, None)
        if samples < _ENOUGH_RANKS:
            ranks: tuple[float, float] = binomial_ranks(samples, q, miss)
        else:
            half = NormalDist().inv_cdf(1 - miss) * math.sqrt(samples * q * (1 - q))
            ranks = samples * q - half, samples * q + half + 1
        low, high = (rank * self.n / samples for rank in ranks)
        return Interval(samples, (self.at_rank(math.floor(low)), self.at_rank(math.ceil(high))))

    def _count(self, values: np.ndarray) -> None:
        numbers, counts = np.unique(_bins_of(values), return_counts=True)
        both = np.concatenate([self._bins[0], numbers])
        found, place = np.unique(both, return_inverse=True)
        weights = np.zeros(len(found), np.int64)
        np.add.at(weights, place, np.concatenate([self._bins[1], counts]))
        self._bins = found, weights


class TimedSample(BoundedSample):
    """A sample of values with sort keys that give their order in time, so that it has intervals."""

    def __init__(self, bound: int | None) -> None:
        super().__init__(bound)
        self._keys: list[np.ndarray] | None = []
        self._block: list[np.ndarray] = []  # the first _BLOCK values, in the order they came
        self._in_block = 0

    def add_at(self, values: np.ndarray, keys: np.ndarray) -> None:
        """Add values, (n,), and their sort keys, (n,) structured, most significant field first."""
        if self._in_block < _BLOCK:
            self._block.append(values[: _BLOCK - self._in_block])
            self._in_block += len(self._block[-1])
        self.add(values)
        if not self.exact:
            self._keys = None
        elif self._keys is not None:
            self._keys.append(keys)

    def spread(self, independent: int) -> Spread:
        """See `BoundedSample`; with intervals. An exact sample is sorted by its keys."""
        if self._keys:
            keys = np.concatenate(self._keys)
            order = np.argsort(keys, order=keys.dtype.names)
            self._kept, self._keys = [self.values[order]], [keys[order]]
        found = super().spread(independent)
        block = self.values if self.exact else np.concatenate(self._block)
        for q in PERCENTILES:
            found.intervals[percentile_name(q)] = self.interval(q, found.independent, block)
        return found


def _bins_of(values: np.ndarray) -> np.ndarray:
    """(n,) int64, the number of each value's bin, which is monotonic in the value."""
    numbers = np.abs(values.astype(np.float64)).view(np.int64) >> _SHIFT
    return np.where(values < 0, -numbers, numbers)


def _middles(numbers: np.ndarray) -> np.ndarray:
    """(n,) float64, the middle of each bin; 0 for bin 0."""
    bits = (np.abs(numbers) << _SHIFT) + (1 << (_SHIFT - 1))
    return np.sign(numbers) * bits.view(np.float64)


LEVEL = 0.95
# The Beta prior of the mixture. Shares of a few per cent are expected, and (1/2, 10) is narrower
# there than (1/2, 1/2): 5 of 500 give 0.17 to 3.0 % instead of 0.12 to 3.5 %.
PRIOR = (0.5, 10.0)
LARGE_GAP = 0.05  # the shipped networks are within 0.01 of the single
ADVICE = (
    "--confidence 0.95 lets fewer of the collage's answers count; more training, a "
    "--teacher or another --preset makes them better (docs/schemes.md, docs/networks.md)"
)


def differing_interval(differing: int, audited: int, level: float = LEVEL) -> tuple[float, float]:
    """A confidence sequence: an interval of the share of differing answers, valid at any time.

    It may be read after every answer: the true share is ever outside in at most 1 - level of all
    runs. So it is wider than an interval for a sample of fixed size. The method is the
    Beta-binomial mixture: Robbins (1970), Annals of Mathematical Statistics 41(5); Howard et al.
    (2021), Annals of Statistics 49(2).

    Args:
        differing: number of audited answers that differ.
        audited: number of audited answers.
        level: between 0 and 1.

    Returns:
        low and high, 0 to 1; (0, 1) if nothing was audited.
    """
    seen = differing / audited if audited else 0.5
    return _edge(differing, audited, 0.0, seen, level), _edge(differing, audited, 1.0, seen, level)


def rules_out(share: float, differing: int, audited: int, level: float = LEVEL) -> bool:
    """Whether a share, 0 to 1, lies outside the interval of `differing_interval`."""
    a, b = PRIOR
    same = audited - differing
    if (share <= 0 and differing) or (share >= 1 and same):
        return True
    log_odds = _log_beta(a + differing, b + same) - _log_beta(a, b)
    log_odds -= differing * math.log(share) if differing else 0
    log_odds -= same * math.log1p(-share) if same else 0
    return log_odds >= -math.log(1 - level)


def weaker_by(single: tuple[int, int], collage: tuple[int, int]) -> float | None:
    """How much less often the collage network is right, 0 to 1.

    Args:
        single, collage: number of right answers, and number of answers.

    Returns:
        None if the gap is below LARGE_GAP, or may be chance because the 95 % intervals overlap.
    """
    known, other = wilson_interval(*single), wilson_interval(*collage)
    if known is None or other is None or other[1] >= known[0]:
        return None
    gap = single[0] / single[1] - collage[0] / collage[1]
    return gap if gap >= LARGE_GAP else None


def _edge(differing: int, audited: int, outer: float, inner: float, level: float) -> float:
    """One end of the interval, by bisection between `outer` and `inner`, a share inside the
    interval. If `outer` is inside too, it is the end.
    """
    if not rules_out(outer, differing, audited, level):
        return outer
    for _ in range(40):  # to 1e-12
        middle = (outer + inner) / 2
        if rules_out(middle, differing, audited, level):
            outer = middle
        else:
            inner = middle
    return outer


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

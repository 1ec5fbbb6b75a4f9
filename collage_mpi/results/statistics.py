"""Statistics of latencies: what a sample can support, and nothing more. A sample may be held in
bounded memory: the values themselves, or counts if there are many.

A percentile q is printed only where n >= ln(0.025) / ln(q): below that the sample's
maximum lies under the true quantile with more than 2.5 % probability, and no upper
confidence bound exists. n counts *groups*: images of one group share their release and
their queue, so they are not independent. Nor are groups that are let in together, as a batch.

Up to `bound` values, all statistics are exact, but for the ends of intervals of 131,072 independent
values or more, which go by the normal approximation. Beyond the bound, values are counted in bins
whose width is at most 2**-11 (0.05 %) of the value, and a percentile is the middle of its bin.
Counts, mean, standard deviation and maximum are always exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

PERCENTILES = (0.5, 0.95, 0.99, 0.999)
MISS = 0.025  # probability that an end of an interval lies on the wrong side
_ENOUGH_ABOVE = 60  # values above a level, to tell from them how long they stay there
_SHIFT = 52 - 11  # of a float64's mantissa, what is left out of a bin's number
_BLOCK = 1 << 15  # values in time order that tell how long slow spells last
_ENOUGH_RANKS = 1 << 17  # from this sample size on, ranks come from the normal approximation


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
    sample = BoundedSample(None)
    sample.add(values)
    return sample.interval(q, len(values), values, miss)


def time_above(values: np.ndarray, q: float) -> float:
    """Integrated autocorrelation time, in values, of lying above the q-quantile; at least 1.

    If too few values lie above it, a lower quantile is used, down to the median. Values stay above
    a lower quantile for longer, so the interval becomes too wide rather than too narrow. Lags count
    until the first correlation that white noise could have, 2 / sqrt(n).
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


def wilson_interval(correct: int, n: int) -> tuple[float, float] | None:
    """95 % interval of a share (Wilson 1927), for accuracies; None for n = 0."""
    if n == 0:
        return None
    z = 1.959964
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


# ---- in bounded memory -------------------------------------------------------


class BoundedSample:
    """Values of one kind, added some at a time."""

    def __init__(self, bound: int | None) -> None:
        """`bound`: the most values that are kept as they are; None keeps all."""
        self.n = 0
        self._bound = bound
        self._kept: list[np.ndarray] | None = []
        self._mean = self._squares = 0.0  # of all values: mean, sum of squared deviations
        self._ends = (math.inf, -math.inf)
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
        """Whether all values are held."""
        return self._kept is not None

    @property
    def values(self) -> np.ndarray:
        """All values, in the order they came; of an exact sample alone."""
        assert self._kept is not None
        return np.concatenate(self._kept) if self._kept else np.empty(0)

    @property
    def mean(self) -> float | None:
        """The mean; None without values."""
        if self._kept is not None and self.n:
            return float(self.values.mean())
        return self._mean if self.n else None

    @property
    def median(self) -> float | None:
        """The median; None without values."""
        if self._kept is not None and self.n:
            return float(np.median(self.values))
        return self.at_rank(math.ceil(self.n / 2)) if self.n else None

    def at_rank(self, rank: int) -> float:
        """The value of a rank, from 1; the lowest or the highest where no value has it."""
        rank = max(1, min(rank, self.n))
        if self._kept is not None:
            return float(np.partition(self.values, rank - 1)[rank - 1])
        numbers, counts = self._bins
        place = int(np.searchsorted(np.cumsum(counts), rank))
        return float(np.clip(_middles(numbers[place : place + 1])[0], *self._ends))

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """The distribution function: values, ascending, and how many lie at or below each."""
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
        """All figures of the sample. `independent`: how many of its values are."""
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
        """As `quantile_interval`.

        Args:
            most: the most independent values that the sample is worth.
            block: some of its values, one after the other in time, which tell how long slow
                spells last.
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
    """A sample whose order in time matters: values with their sessions, times and numbers."""

    def __init__(self, bound: int | None) -> None:
        super().__init__(bound)
        self._keys: list[np.ndarray] | None = []
        self._block: list[np.ndarray] = []  # the first of them, as they came
        self._in_block = 0

    def add_at(self, values: np.ndarray, keys: np.ndarray) -> None:
        """Add values and the keys to sort them by, (n,) structured; the first field counts most."""
        if self._in_block < _BLOCK:
            self._block.append(values[: _BLOCK - self._in_block])
            self._in_block += len(self._block[-1])
        self.add(values)
        if not self.exact:
            self._keys = None
        elif self._keys is not None:
            self._keys.append(keys)

    def spread(self, independent: int) -> Spread:
        """See `BoundedSample`; with intervals. Puts values that are all held in order of time."""
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
    """(n,) int64, the number of each value's bin; they ascend as the values do."""
    numbers = np.abs(values.astype(np.float64)).view(np.int64) >> _SHIFT
    found: np.ndarray = np.where(values < 0, -numbers, numbers)
    return found


def _middles(numbers: np.ndarray) -> np.ndarray:
    """(n,) float64, the middle of each bin; that of 0 is 0."""
    bits = (np.abs(numbers) << _SHIFT) + (1 << (_SHIFT - 1))
    found: np.ndarray = np.sign(numbers) * bits.view(np.float64)
    return found

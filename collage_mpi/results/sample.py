"""A sample of numbers in bounded memory: the values themselves, or counts if there are many.

Up to `bound` values, all statistics are exact. Beyond, values are counted in bins whose width is at
most 2**-11 (0.05 %) of the value, and a percentile is the middle of its bin. Counts, mean, standard
deviation and maximum are always exact.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from collage_mpi.results.statistics import (
    MISS,
    PERCENTILES,
    Interval,
    Spread,
    binomial_ranks,
    describe,
    percentile,
    percentile_name,
    support_needed,
    time_above,
)

_SHIFT = 52 - 11  # of a float64's mantissa, what is left out of a bin's number
_BLOCK = 1 << 15  # values in time order that tell how long slow spells last
_ENOUGH_RANKS = 1 << 17  # from this sample size on, ranks come from the normal approximation


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
        """The value of a rank, from 1."""
        numbers, counts = self._bins
        place = int(np.searchsorted(np.cumsum(counts), max(1, min(rank, self.n))))
        return float(np.clip(_middles(numbers[place : place + 1])[0], *self._ends))

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """The distribution function: values, ascending, and how many lie at or below each."""
        if self._kept is not None:
            x, counts = np.unique(self.values, return_counts=True)
        else:
            x, counts = np.clip(_middles(self._bins[0]), *self._ends), self._bins[1]
        return x, np.cumsum(counts)

    def percentile(self, q: float, independent: int) -> float | None:
        """As `statistics.percentile`."""
        if self._kept is not None:
            return percentile(self.values, q, independent)
        if min(independent, self.n) < support_needed(q):
            return None
        return self.at_rank(math.ceil(q * self.n))

    def spread(self, independent: int) -> Spread:
        """As `statistics.describe`, without intervals."""
        if self._kept is not None:
            return describe(self.values, independent)
        independent = min(independent, self.n)
        found = {percentile_name(q): self.percentile(q, independent) for q in PERCENTILES}
        median = found["p50"]
        numbers, counts = self._bins
        over = None
        if median is not None:
            over = float(counts[_middles(numbers) > 3 * median].sum() / self.n)
        return Spread(
            n=self.n,
            independent=independent,
            percentiles=found,
            intervals={},
            mean=self._mean,
            std=math.sqrt(self._squares / (self.n - 1)) if independent >= 2 else None,
            maximum=self._ends[1],
            over_3_medians=over,
        )

    def interval(self, q: float, most: int, block: np.ndarray, miss: float = MISS) -> Interval:
        """As `statistics.quantile_interval`.

        Args:
            most: the most independent values that the sample is worth.
            block: some of its values, one after the other in time, which tell how long slow
                spells last.
        """
        samples = min(most, int(self.n / time_above(block, np.sort(block), q)))
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
        """As `statistics.describe`, with intervals."""
        if self._keys is not None:
            keys = np.concatenate(self._keys) if self._keys else np.empty(0, np.int64)
            order = np.argsort(keys, order=keys.dtype.names) if self._keys else slice(None)
            return describe(self.values[order], independent, ci=True)
        found = super().spread(independent)
        block = np.concatenate(self._block)
        for q in PERCENTILES:
            found.intervals[percentile_name(q)] = self.interval(q, independent, block)
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

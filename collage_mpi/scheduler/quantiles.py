"""A running quantile in constant memory.

Owns: the histogram and its resolution.
Does not know: what is observed.
"""

from __future__ import annotations

PER_OCTAVE = 32  # buckets a factor of two: a resolution of 2.2 %
MIN_COUNT = 50  # below that a quantile says nothing yet


class RunningQuantile:
    """Quantiles of positive integers seen so far, within 2.2 %.

    A histogram with buckets of equal width within each power of two, as in HDR
    Histogram (Tene). `add` is O(1); `quantile` walks at most some 2,000 buckets and
    remembers its answer until 2 % more has been added.
    """

    def __init__(self) -> None:
        self.count = 0
        self._buckets: dict[int, int] = {}
        self._known: dict[float, tuple[int, int]] = {}  # q -> (count then, value)

    def add(self, value: int) -> None:
        """One observation; below 1 counts as 1."""
        value = max(1, value)
        octave = value.bit_length() - 1
        place = ((value - (1 << octave)) * PER_OCTAVE) >> octave
        bucket = octave * PER_OCTAVE + place
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1

    def quantile(self, q: float) -> int | None:
        """The upper edge of the bucket that holds quantile q; None before MIN_COUNT."""
        if self.count < MIN_COUNT:
            return None
        then, value = self._known.get(q, (0, 0))
        if self.count > then + then // 50:
            value = self._walk(q)
            self._known[q] = self.count, value
        return value

    def _walk(self, q: float) -> int:
        below = 0
        for bucket in sorted(self._buckets):
            below += self._buckets[bucket]
            if below >= q * self.count:
                break
        octave, place = divmod(bucket, PER_OCTAVE)
        return (1 << octave) + (((place + 1) << octave) // PER_OCTAVE)

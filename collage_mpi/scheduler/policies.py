"""Accept policies: when a collage's cell may resolve its image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from collage_mpi.errors import UsageError
from collage_mpi.scheduler.events import Score

POLICIES = ("first", "grace", "confident", "backup")
AUTO = "auto"  # one of them, by the networks; as long as these are not known, as first

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


class AcceptPolicy(Protocol):
    """Decides from when on a collage's answer for an image counts."""

    @property
    def name(self) -> str:
        """As shown in tables and legends."""
        ...

    @property
    def needs_scores(self) -> bool:
        """Whether it decides by the collage's scores: made up ones would mislead it."""
        ...

    def accept_at_ns(
        self, t0_ns: int, now_ns: int, score: Score, latencies: RunningQuantile
    ) -> int | None:
        """The time from which the answer counts; at or before now_ns means at once.

        None: only where no single rank can answer any more.

        Args:
            t0_ns: when the group was released.
            now_ns: now.
            score: the collage's record for the image.
            latencies: of single answers so far, in ns from their group's release.
        """
        ...


@dataclass(frozen=True)
class First:
    """The first answer wins, whoever gives it (arXiv 1904.12222)."""

    name: str = "first"
    needs_scores: bool = False

    def accept_at_ns(
        self, t0_ns: int, now_ns: int, score: Score, latencies: RunningQuantile
    ) -> int:
        """At once."""
        return now_ns


@dataclass(frozen=True)
class Delay:
    """A time since release: fixed, or a running quantile of the singles' latencies.

    Attributes:
        fixed_ns: the time; with a quantile, what is used until it is known (None: nothing).
        quantile: 0..1, or None. Over all single ranks, late answers included: one rank of
            nine that is slow for long owns the 0.95.
    """

    fixed_ns: int | None
    quantile: float | None = None

    @property
    def name(self) -> str:
        """As shown in tables and legends."""
        return (
            f"{(self.fixed_ns or 0) / 1e6:g} ms" if self.quantile is None else f"q{self.quantile:g}"
        )

    def ns(self, latencies: RunningQuantile) -> int | None:
        """The time now; None while a quantile is not known and there is no default."""
        known = None if self.quantile is None else latencies.quantile(self.quantile)
        return self.fixed_ns if known is None else known


@dataclass(frozen=True)
class Grace:
    """The collage counts only once the grace time has passed since the group's t0.

    Until then the single classifiers, which are a little more accurate, have the field
    to themselves. While a quantile is not known and has no default, as `first`.
    """

    delay: Delay
    needs_scores: bool = False

    @property
    def name(self) -> str:
        """As shown in tables and legends."""
        return f"grace {self.delay.name}"

    def accept_at_ns(
        self, t0_ns: int, now_ns: int, score: Score, latencies: RunningQuantile
    ) -> int:
        """When the grace time ends."""
        delay_ns = self.delay.ns(latencies)
        return now_ns if delay_ns is None else t0_ns + delay_ns


@dataclass(frozen=True)
class Confident:
    """The collage counts at once where its score is high enough, else only when time is up.

    An unsure cell is kept: the single classifier has until the accept deadline, since the
    group's t0, to answer instead. While a quantile is not known and has no default, as `first`.

    Attributes:
        confidence: the least score, 0..1, that counts at once. It means what it says only
            if the network's scores are calibrated.
        deadline: when an unsure cell counts after all; None: when no single rank can answer.
    """

    confidence: float
    deadline: Delay | None

    @property
    def needs_scores(self) -> bool:
        """Any score will do for a confidence of 0."""
        return self.confidence > 0

    @property
    def name(self) -> str:
        """As shown in tables and legends."""
        late = "" if self.deadline is None else f", else {self.deadline.name}"
        return f"confident {self.confidence:g}{late}"

    def accept_at_ns(
        self, t0_ns: int, now_ns: int, score: Score, latencies: RunningQuantile
    ) -> int | None:
        """At once if it is sure, else at the accept deadline."""
        if score.score >= self.confidence:
            return now_ns
        if self.deadline is None:
            return None
        delay_ns = self.deadline.ns(latencies)
        return now_ns if delay_ns is None else t0_ns + delay_ns


@dataclass(frozen=True)
class Backup:
    """The collage counts only where no single rank can answer: it costs no accuracy."""

    name: str = "backup"
    needs_scores: bool = False

    def accept_at_ns(
        self, t0_ns: int, now_ns: int, score: Score, latencies: RunningQuantile
    ) -> int | None:
        """Never by itself."""
        return None


def make_delay(what: str, fixed_ns: int | None, quantile: float | None) -> Delay:
    """A delay from settings `<what>-ms` and `<what>-quantile`. Raises UsageError with neither."""
    if fixed_ns is None and quantile is None:
        raise UsageError(f"{what} needs a time: --{what}-ms 150, or --{what}-quantile 0.95")
    return Delay(fixed_ns, quantile)

"""Accept policies: from when on a collage's answer for an image counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from collage_mpi.errors import UsageError
from collage_mpi.scheduler.events import Score

POLICIES = ("first", "grace", "confident", "backup")
AUTO = "auto"  # chosen by the networks; "first" as long as the networks are not known

PER_OCTAVE = 32  # buckets between a number and its double: a resolution of 2.2 %
MIN_COUNT = 50  # with fewer observations a quantile says nothing


class RunningQuantile:
    """Quantiles of the positive integers seen so far, exact to 2.2 %.

    It is a histogram with buckets of equal width within each power of two, as in HDR Histogram
    (Tene). `add` is O(1). `quantile` reads at most some 2,000 buckets, and keeps its result until
    the count has grown by 2 %.
    """

    def __init__(self) -> None:
        self.count = 0
        self._buckets: dict[int, int] = {}
        self._known: dict[float, tuple[int, int]] = {}  # q -> (count then, value)

    def add(self, value: int) -> None:
        """Add one observation; a value below 1 counts as 1."""
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
        """Whether the collage's scores matter, so that made-up scores would mislead the policy."""
        ...

    def accept_at_ns(
        self, t0_ns: int, now_ns: int, score: Score, latencies: RunningQuantile
    ) -> int | None:
        """When the answer starts to count: at once if the time is not after `now_ns`.

        Args:
            t0_ns: time from which the group's latency counts.
            now_ns: the present time.
            score: the collage's answer for the image.
            latencies: of single ranks' answers so far, in ns since the t0 of their group.

        Returns:
            A time in ns, or None: the answer counts only if no single rank can answer any more.
        """
        ...


@dataclass(frozen=True)
class First:
    """The first answer counts, whichever network gives it (arXiv 1904.12222)."""

    name: str = "first"
    needs_scores: bool = False

    def accept_at_ns(
        self, t0_ns: int, now_ns: int, score: Score, latencies: RunningQuantile
    ) -> int:
        """At once."""
        return now_ns


@dataclass(frozen=True)
class Delay:
    """A time since the group's t0: fixed, or a running quantile of the single ranks' latencies.

    Attributes:
        fixed_ns: the time. With a quantile it is used until the quantile is known; None: no time.
        quantile: 0..1, or None. It is taken over all single ranks and includes late answers, so one
            slow rank of nine determines the quantile 0.95.
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
        """The present delay; None while the quantile is not known and `fixed_ns` is None."""
        known = None if self.quantile is None else latencies.quantile(self.quantile)
        return self.fixed_ns if known is None else known


@dataclass(frozen=True)
class Grace:
    """The collage's answer counts only after the grace time, from the group's t0.

    Until then only single ranks, whose network is a little more accurate, resolve images. While a
    quantile is not known and has no default, this is `first`.
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
    """The collage's answer counts at once if its score is high enough, else at a deadline.

    An unsure answer is kept, and a single rank can answer instead until the accept deadline, which
    counts from the group's t0. While a quantile is not known and has no default, an unsure answer
    counts at once.

    Attributes:
        confidence: the least score, 0..1, that counts at once. It is a probability only if the
            network's scores are calibrated.
        deadline: when an unsure answer counts; None: only if no single rank can answer.
    """

    confidence: float
    deadline: Delay | None

    @property
    def needs_scores(self) -> bool:
        """True unless the confidence is 0, which every score reaches."""
        return self.confidence > 0

    @property
    def name(self) -> str:
        """As shown in tables and legends."""
        late = "" if self.deadline is None else f", else {self.deadline.name}"
        return f"confident {self.confidence:g}{late}"

    def accept_at_ns(
        self, t0_ns: int, now_ns: int, score: Score, latencies: RunningQuantile
    ) -> int | None:
        """At once if the score reaches the confidence, else at the accept deadline."""
        if score.score >= self.confidence:
            return now_ns
        if self.deadline is None:
            return None
        delay_ns = self.deadline.ns(latencies)
        return now_ns if delay_ns is None else t0_ns + delay_ns


@dataclass(frozen=True)
class Backup:
    """The collage's answer counts only if no single rank can answer, so it costs no accuracy."""

    name: str = "backup"
    needs_scores: bool = False

    def accept_at_ns(
        self, t0_ns: int, now_ns: int, score: Score, latencies: RunningQuantile
    ) -> int | None:
        """None: it never counts by itself."""
        return None


def make_delay(what: str, fixed_ns: int | None, quantile: float | None) -> Delay:
    """The delay that the settings `<what>-ms` and `<what>-quantile` ask for.

    Raises:
        UsageError: neither is set.
    """
    if fixed_ns is None and quantile is None:
        raise UsageError(f"{what} needs a time: --{what}-ms 150, or --{what}-quantile 0.95")
    return Delay(fixed_ns, quantile)

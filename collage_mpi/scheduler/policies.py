"""Accept policies: when a collage's cell may resolve its image.

Owns: that one decision.
Does not know: ranks, tasks, timers, schemes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from collage_mpi.errors import UsageError
from collage_mpi.scheduler.events import Score
from collage_mpi.scheduler.quantiles import RunningQuantile

POLICIES = ("first", "grace", "confident", "backup")
AUTO = "auto"  # one of them, by the networks; as long as these are not known, as first


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

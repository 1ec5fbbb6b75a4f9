"""Accept policies: from when on a collage's answer for an image counts."""

from __future__ import annotations

from dataclasses import dataclass

FIRST = "first"
AUTO = "auto"  # chosen by the networks; as "first" as long as the networks are not known


@dataclass(frozen=True)
class First:
    """The first answer counts, whichever network gives it (arXiv 1904.12222)."""

    name: str = FIRST
    needs_scores: bool = False
    deadline_ns: None = None


@dataclass(frozen=True)
class Confident:
    """The collage's answer counts at once if its score is high enough, else at a deadline.

    An unsure answer is kept, and a single rank can answer instead until the deadline, which counts
    from the group's t0.

    Attributes:
        confidence: the least score that counts at once; above 1, no answer does. It is a
            probability only if the network's scores are calibrated.
        deadline_ns: when an unsure answer counts; None: only if no single rank can answer.
    """

    confidence: float
    deadline_ns: int | None

    @property
    def needs_scores(self) -> bool:
        """Whether the collage's scores matter, so that made-up scores would mislead the policy."""
        return 0 < self.confidence <= 1

    @property
    def name(self) -> str:
        """As shown in tables and legends."""
        late = "" if self.deadline_ns is None else f", else {self.deadline_ns / 1e6:g} ms"
        return f"confident {min(self.confidence, 1):g}{late}"


AcceptPolicy = First | Confident

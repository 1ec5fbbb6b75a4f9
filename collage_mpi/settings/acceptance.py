"""The settings for when a collage's answer counts, and when an image or a collage is late."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from collage_mpi.errors import UsageError
from collage_mpi.scheduler.policies import AUTO, FIRST, AcceptPolicy, Confident, First
from collage_mpi.system.fields import Settings, setting

UNTIL_CHOSEN = 0.9  # score that counts in a job with `agree`, which replaces it

_accept = partial(setting, group="when a collage's answer counts")
_late = partial(setting, group="late images")


@dataclass(frozen=True, repr=False)
class AcceptSettings(Settings):
    """When a collage's answer counts."""

    confidence: float | None = _accept(
        None,
        "an answer of a collage counts at once if its score is at least this. Otherwise it is "
        "kept, see --deadline-ms. 0: every answer counts at once, so the first answer to an image "
        "wins. 1: no answer counts at once. auto: the threshold in the collage network's file, or "
        "1 if the file has none for this single network (docs/weights.md)",
        unset=AUTO,
        auto=True,
        at_least=0,
        at_most=1,
    )
    agree: float | None = _accept(
        None,
        "scheme cascade: choose the lowest score that counts, without labels, so that at most 1 - "
        "A of all images get another answer than the single network's (95 % confidence). Both "
        "networks first classify a sample of the images to choose the score. Audits may raise it",
        metavar="A",
        above=0,
        below=1,
    )
    deadline_ms: float | None = _accept(
        None,
        "an answer with a lower score than --confidence counts this long after its group entered "
        "the job; the source of its row is then kept. Without a deadline it counts only if no "
        "single rank can answer the image",
        at_least=0,
    )
    audit: float = _accept(
        0.01,
        "scheme cascade: share of the images to audit. If a collage's answer for such an image is "
        "accepted, the single network classifies the image as well, and the two answers are "
        "compared",
        at_least=0,
        at_most=1,
    )

    def _check(self) -> None:
        if self.agree is not None and self.confidence is not None:
            raise UsageError(
                f"agree is {self.agree:g} with confidence {self.confidence:g}: agree chooses the "
                "score that counts; leave out --confidence, or --agree"
            )
        if self.agree is not None and self.deadline_ms is not None:
            raise UsageError(
                f"agree is {self.agree:g} with a deadline: after the deadline an answer counts "
                "whatever its score, so agree could not bound the changed answers; leave out "
                "--deadline-ms, or --agree"
            )

    def accept_policy(self) -> AcceptPolicy:
        """The accept policy of the collage."""
        if self.agree is not None:
            return Confident(UNTIL_CHOSEN, None)
        if not self.confidence:
            return First(AUTO if self.confidence is None else FIRST)
        confidence = self.confidence if self.confidence < 1 else math.inf
        return Confident(confidence, ms_to_ns(self.deadline_ms))


@dataclass(frozen=True, repr=False)
class LateSettings(Settings):
    """When an image or a collage is late."""

    hedge_ms: float | None = _late(
        None,
        "scheme hedge: an image is late after this long and gets a second copy when a rank is idle",
        at_least=0,
    )
    linger_ms: float | None = _late(
        None,
        "send a collage that is not full this long after its group's first image",
        unset="when it is full",
        at_least=0,
    )


def ms_to_ns(value_ms: float | None) -> int | None:
    """Milliseconds as whole ns; None stays None."""
    return None if value_ms is None else round(value_ms * 1e6)

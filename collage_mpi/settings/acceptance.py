"""The settings for when a collage's answer counts, an image is late, and an image is given up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from collage_mpi.errors import UsageError
from collage_mpi.scheduler.policies import (
    AUTO,
    POLICIES,
    AcceptPolicy,
    Backup,
    Confident,
    Delay,
    First,
    Grace,
    make_delay,
)
from collage_mpi.system.fields import Settings, setting

MOST_ATTEMPTS = 255  # a row stores the attempt in one byte

_accept = partial(setting, group="when a collage's answer counts")
_late = partial(setting, group="late and failed images")


@dataclass(frozen=True, repr=False)
class AcceptSettings(Settings):
    """When a collage's answer counts."""

    accept: str = _accept(
        AUTO,
        "when a collage's answer for an image counts. first: at once. grace: after the grace "
        "time. confident: at once if its score is high enough, else at the deadline. backup: "
        "only if no single rank can answer the image. auto: confident with the threshold in the "
        "collage network's file, or backup if the file has none for this single network "
        "(docs/weights.md)",
        choices=(AUTO, *POLICIES),
    )
    grace_ms: float | None = _accept(
        None,
        "accept grace: a collage's answer counts this long after its group entered the job",
        at_least=0,
    )
    grace_quantile: float | None = _accept(
        None,
        "accept grace: the grace time as a running quantile of the single ranks' latencies. Until "
        "50 latencies are known, --grace-ms applies; without --grace-ms a collage's answer counts "
        "at once",
        above=0,
        below=1,
    )
    confidence: float = _accept(
        0.9,
        "accept confident: an answer counts at once if its score is at least this",
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
    accept_deadline_ms: float | None = _accept(
        None,
        "accept confident: an answer with a lower score counts this long after its group entered "
        "the job. Without a deadline it counts only if no single rank can answer the image",
        at_least=0,
    )
    accept_deadline_quantile: float | None = _accept(
        None,
        "accept confident: the deadline as a running quantile of the single ranks' latencies",
        above=0,
        below=1,
    )
    audit: float = _accept(
        0.01,
        "scheme cascade: share of the images to audit. If a collage's answer for such an image is "
        "accepted, the single network classifies the image as well, and the two answers are "
        "compared",
        at_least=0,
        at_most=1,
    )
    audit_seed: int = _accept(0, "seed of the draw of audited images", at_least=0)

    def _check(self) -> None:
        if self.agree is not None and self.accept != AUTO:
            raise UsageError(
                f"agree is {self.agree:g} with accept {self.accept}: agree chooses the score that "
                "counts; leave out --accept and --confidence, or --agree"
            )
        deadlines = self.accept_deadline_ms, self.accept_deadline_quantile
        if self.agree is not None and deadlines != (None, None):
            raise UsageError(
                f"agree is {self.agree:g} with an accept deadline: after the deadline an answer "
                "counts whatever its score, so agree could not bound the changed answers; leave "
                "out --accept-deadline-ms and --accept-deadline-quantile, or --agree"
            )

    def accept_policy(self) -> AcceptPolicy:
        """The accept policy of the collage. Raises UsageError if it needs a time and has none."""
        name = self.accept if self.agree is None else "confident"
        if name == "grace":
            return Grace(make_delay("grace", _ms_to_ns(self.grace_ms), self.grace_quantile))
        if name == "confident":
            given = _ms_to_ns(self.accept_deadline_ms), self.accept_deadline_quantile
            late = None if given == (None, None) else make_delay("accept-deadline", *given)
            return Confident(self.confidence, late)
        return Backup() if name == "backup" else First(name)


@dataclass(frozen=True, repr=False)
class LateSettings(Settings):
    """When an image is late, and when it is given up."""

    hedge_ms: float | None = _late(
        None,
        "schemes hedge and collage-hedge: an image is late after this long and gets a second copy",
        at_least=0,
    )
    hedge_quantile: float | None = _late(
        None,
        "schemes hedge and collage-hedge: the time of --hedge-ms as a running quantile of the "
        "single ranks' latencies",
        above=0,
        below=1,
    )
    hedge_budget: float = _late(
        0.25,
        "schemes hedge and collage-hedge: largest number of second copies, as a share of the "
        "images",
        at_least=0,
        at_most=1,
    )
    linger_ms: float | None = _late(
        None,
        "send a collage that is not full this long after its group's first image",
        unset="when it is full",
        at_least=0,
    )
    image_timeout_s: float | None = _late(
        None,
        "give up an image after this long, and write an error row for it",
        unset="never",
        at_least=0,
    )
    max_attempts: int = _late(
        3,
        "number of times that an image is sent to single ranks before it gets an error row",
        at_least=1,
        at_most=MOST_ATTEMPTS,
    )

    def hedge_delay(self) -> Delay:
        """The time after which an image is late. Raises UsageError if no time is given."""
        return make_delay("hedge", _ms_to_ns(self.hedge_ms), self.hedge_quantile)


def _ms_to_ns(value_ms: float | None) -> int | None:
    return None if value_ms is None else round(value_ms * 1e6)

"""Accept policies: when a collage's cell may resolve its image.

Owns: that one decision.
Does not know: ranks, tasks, timers, schemes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from collage_mpi.errors import UsageError
from collage_mpi.scheduler.events import Score

POLICIES = ("first", "grace")


class AcceptPolicy(Protocol):
    """Decides from when on a collage's answer for an image counts."""

    @property
    def name(self) -> str:
        """As shown in tables and legends."""
        ...

    def accept_at_ns(self, t0_ns: int, now_ns: int, score: Score) -> int:
        """The time from which the answer counts; at or before now_ns means at once."""
        ...


@dataclass(frozen=True)
class First:
    """The first answer wins, whoever gives it (arXiv 1904.12222)."""

    name: str = "first"

    def accept_at_ns(self, t0_ns: int, now_ns: int, score: Score) -> int:
        """At once."""
        return now_ns


@dataclass(frozen=True)
class Grace:
    """The collage counts only once `grace_ns` have passed since the group's t0.

    Until then the single classifiers, which are a little more accurate, have
    the field to themselves.
    """

    grace_ns: int

    @property
    def name(self) -> str:
        """As shown in tables and legends."""
        return f"grace {self.grace_ns / 1e6:g} ms"

    def accept_at_ns(self, t0_ns: int, now_ns: int, score: Score) -> int:
        """When the grace time ends."""
        return t0_ns + self.grace_ns


def make_policy(name: str, grace_ns: int | None = None) -> AcceptPolicy:
    """The policy called `name`. Raises UsageError for a name or value that is none."""
    if name == "first":
        return First()
    if name == "grace":
        if grace_ns is None or grace_ns < 0:
            raise UsageError("accept policy grace needs a time: --grace-ms 150 (0 or more)")
        return Grace(grace_ns)
    raise UsageError(f"accept policy is {name!r}; known are: {', '.join(POLICIES)}")

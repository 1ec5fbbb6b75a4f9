"""The reply timeout: which worker ranks are present, silent or lost.

A rank is *silent* if it has owed an answer and sent nothing for the reply timeout; it may recover.
After the same time again it is *lost*, and a lost rank stays lost.

Only time that rank 0 spent watching counts. While rank 0 itself is stopped or stalled (a suspended
job, a hanging disk), messages of its ranks stay unread, and the ranks may be stopped as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

SECOND_NS = 1_000_000_000
LEAST_REPLY_NS = 30 * SECOND_NS  # a GPU that is reset, a page that comes from a slow disk
TIMES_LONGEST = 10  # of the longest service time seen: no healthy rank has ever been slower
SCAN_EVERY_NS = SECOND_NS // 10
LONGEST_LOOK_NS = 2 * SCAN_EVERY_NS  # rank 0 looks thousands of times a second: else it was away

# Layers of detection, beside those of process_monitor.
TIMEOUT, START, MPI_ERROR = "timeout", "start", "mpi"


class Silence(NamedTuple):
    """A rank has become silent, or has been silent for the timeout `again`: then it counts as
    lost.
    """

    rank: int
    why: str
    again: bool


@dataclass(frozen=True)
class Loss:
    """A rank that is lost for good.

    Attributes:
        layer: what noticed it.
        silent_ns: since its last message.
        at_ns: rank 0's clock.
    """

    rank: int
    why: str
    layer: str
    at_ns: int
    silent_ns: int

    def describe(self, start_ns: int, host: str, kinds: Iterable[str]) -> dict[str, Any]:
        """For the manifest."""
        return {
            "rank": self.rank,
            "host": host,
            "kinds": list(kinds),
            "why": self.why,
            "layer": self.layer,
            "at_s": round((self.at_ns - start_ns) / SECOND_NS, 6),
            "silent_s": round(self.silent_ns / SECOND_NS, 6),
        }


class WatchedTime:
    """The time that rank 0 spent watching: at most LONGEST_LOOK_NS of each gap between looks."""

    def __init__(self, now_ns: int) -> None:
        self.watched_ns = 0  # at the last look
        self._looked_ns = now_ns

    def at(self, now_ns: int) -> int:
        """The time watched until now."""
        return self.watched_ns + min(now_ns - self._looked_ns, LONGEST_LOOK_NS)

    def look(self, now_ns: int) -> int:
        """Rank 0 looks now; returns the time watched."""
        self.watched_ns, self._looked_ns = self.at(now_ns), now_ns
        return self.watched_ns


@dataclass
class _Member:
    heard_ns: int
    owed: int = 0
    since_ns: int = 0  # of the silence, while something is owed, in time watched
    suspected_ns: int | None = None  # likewise


class ReplyTimeouts:
    """Is told about every send and message; `overdue` returns ranks that are silent for too
    long.
    """

    def __init__(
        self, ranks: Iterable[int], now_ns: int, reply_timeout_ns: int | None = None
    ) -> None:
        """With `reply_timeout_ns` None: LEAST_REPLY_NS, or TIMES_LONGEST the longest service
        time.
        """
        self.reply_timeout_ns = reply_timeout_ns
        self.losses: dict[int, Loss] = {}
        self.watch = WatchedTime(now_ns)
        self._members = {rank: _Member(now_ns) for rank in ranks}
        self._longest_ns = 0
        self._scan_at_ns = 0

    @property
    def present(self) -> list[int]:
        """Ranks that are not lost."""
        return list(self._members)

    @property
    def silent(self) -> list[int]:
        """Ranks that are not lost and have owed an answer for too long."""
        return [rank for rank, m in self._members.items() if m.suspected_ns is not None]

    @property
    def patience_ns(self) -> int:
        """The reply timeout now."""
        if self.reply_timeout_ns is not None:
            return self.reply_timeout_ns
        return max(LEAST_REPLY_NS, TIMES_LONGEST * self._longest_ns)

    def sent(self, rank: int, now_ns: int, tasks: int = 1) -> None:
        """This many tasks were sent to the rank, which now owes their answers."""
        member = self._members.get(rank)
        if member is not None:
            if member.owed == 0:
                member.since_ns = self.watch.at(now_ns)
            member.owed += tasks

    def heard(self, rank: int, now_ns: int, answers: int = 0) -> None:
        """The rank has sent a message, with the ends of this many tasks."""
        member = self._members.get(rank)
        if member is not None:
            member.owed = max(0, member.owed - answers)
            member.heard_ns, member.since_ns = now_ns, self.watch.at(now_ns)
            member.suspected_ns = None

    def settle(self) -> None:
        """A session is over; no rank owes an answer any more."""
        for member in self._members.values():
            member.owed, member.suspected_ns = 0, None

    def served(self, service_ns: int) -> None:
        """A network took this long for a task, including an injected delay."""
        self._longest_ns = max(self._longest_ns, service_ns)

    def lose(self, rank: int, layer: str, why: str, now_ns: int) -> Loss | None:
        """Mark the rank as lost; None if that was known."""
        member = self._members.pop(rank, None)
        if member is None:
            return None
        loss = Loss(rank, why, layer, now_ns, max(0, now_ns - member.heard_ns))
        self.losses[rank] = loss
        return loss

    def part(self, rank: int) -> None:
        """The rank has left normally."""
        self._members.pop(rank, None)

    def overdue(self, now_ns: int) -> list[Silence]:
        """Ranks that have just become silent, and those that stayed silent; it scans only now and
        then.

        Call it at every look, because it measures how long rank 0 has watched.
        """
        watched_ns = self.watch.look(now_ns)
        if now_ns < self._scan_at_ns:
            return []
        self._scan_at_ns = now_ns + SCAN_EVERY_NS
        found: list[Silence] = []
        patience_ns = self.patience_ns
        for rank, member in self._members.items():
            silent_ns = watched_ns - member.since_ns
            if member.owed == 0 or silent_ns < patience_ns:
                continue
            why = f"no answer for {silent_ns / SECOND_NS:.1f} s"
            if member.suspected_ns is None:
                member.suspected_ns = watched_ns
                found.append(Silence(rank, why, again=False))
            elif watched_ns - member.suspected_ns >= patience_ns:
                found.append(Silence(rank, why, again=True))
        return found

"""The reply timeout: which worker ranks are present, silent or lost.

A rank is *silent* if it has owed an answer and sent nothing for the reply timeout; it may recover.
After the same time again it is *lost*, and a lost rank stays lost.

Only time in which rank 0 polls counts. While rank 0 itself is stopped or stalled (a suspended job,
a hanging disk), messages of its ranks stay unread, and the ranks may be stopped as well.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

SECOND_NS = 1_000_000_000
LEAST_REPLY_NS = 30 * SECOND_NS  # a GPU reset, or a page fault on a slow disk, can take so long
TIMES_LONGEST = 10  # no healthy rank has been slower than 10 times the longest service time
SCAN_EVERY_NS = SECOND_NS // 10
# Rank 0 looks thousands of times a second. After a longer gap it was stopped or stalled.
LONGEST_LOOK_NS = 2 * SCAN_EVERY_NS

# Layers of detection, besides those of process_monitor.
TIMEOUT, START, MPI_ERROR = "timeout", "start", "mpi"


class Silence(NamedTuple):
    """A rank has become silent; or (`again`) it was silent for the timeout once more, and so counts
    as lost."""

    rank: int
    why: str
    again: bool


@dataclass(frozen=True)
class Loss:
    """A lost rank.

    Attributes:
        why: for messages.
        layer: the layer of detection that noticed the loss.
        at_ns: when, on rank 0's clock.
        silent_ns: time since its last message.
    """

    rank: int
    why: str
    layer: str
    at_ns: int
    silent_ns: int

    def describe(self, start_ns: int, host: str, kinds: Iterable[str]) -> dict[str, Any]:
        """The loss as the manifest records it."""
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
    """Counts the time in which rank 0 polls: at most LONGEST_LOOK_NS of each gap between looks."""

    def __init__(self, now_ns: int) -> None:
        self.watched_ns = 0  # the count at the last look
        self._looked_ns = now_ns

    def at(self, now_ns: int) -> int:
        """The count at this time."""
        return self.watched_ns + min(now_ns - self._looked_ns, LONGEST_LOOK_NS)

    def look(self, now_ns: int) -> int:
        """Note that rank 0 looks now, and return the count."""
        self.watched_ns, self._looked_ns = self.at(now_ns), now_ns
        return self.watched_ns


@dataclass
class _Member:
    heard_ns: int
    owed: int = 0
    since_ns: int = 0  # watched time of its last message, or when it began to owe an answer
    suspected_ns: int | None = None  # watched time when it became silent


class ReplyTimeouts:
    """Is told about every send and message; `overdue` returns ranks that were silent too long."""

    def __init__(
        self, ranks: Iterable[int], now_ns: int, reply_timeout_ns: int | None = None
    ) -> None:
        """If `reply_timeout_ns` is None, the timeout is LEAST_REPLY_NS or, if that is more,
        TIMES_LONGEST times the longest service time."""
        self.reply_timeout_ns = reply_timeout_ns
        self.losses: dict[int, Loss] = {}
        self.watch = WatchedTime(now_ns)
        self._members = {rank: _Member(now_ns) for rank in ranks}
        self.longest_ns = 0
        self._scan_at_ns = 0

    @property
    def present(self) -> list[int]:
        """Ranks that are not lost."""
        return list(self._members)

    @property
    def owing(self) -> list[int]:
        """Ranks that are not lost and owe an answer."""
        return [rank for rank, m in self._members.items() if m.owed]

    @property
    def silent(self) -> list[int]:
        """Ranks that are not lost and have owed an answer for too long."""
        return [rank for rank, m in self._members.items() if m.suspected_ns is not None]

    @property
    def timeout_ns(self) -> int:
        """The present reply timeout."""
        if self.reply_timeout_ns is not None:
            return self.reply_timeout_ns
        return max(LEAST_REPLY_NS, TIMES_LONGEST * self.longest_ns)

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
            member.owed = member.owed - answers if member.owed > answers else 0
            member.heard_ns, member.since_ns = now_ns, self.watch.at(now_ns)
            member.suspected_ns = None

    def settle(self) -> None:
        """A session is over; no rank owes an answer any more."""
        for member in self._members.values():
            member.owed, member.suspected_ns = 0, None

    def served(self, service_ns: int) -> None:
        """A network took this long for a task."""
        self.longest_ns = max(self.longest_ns, service_ns)

    def lose(self, rank: int, layer: str, why: str, now_ns: int) -> Loss | None:
        """Mark the rank as lost; None if it was lost before."""
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
        """Ranks that have just become silent, and ranks that stayed silent.

        Ranks are scanned every SCAN_EVERY_NS. Call it at every look, because it also counts the
        watched time.
        """
        watched_ns = self.watch.look(now_ns)
        if now_ns < self._scan_at_ns:
            return []
        self._scan_at_ns = now_ns + SCAN_EVERY_NS
        found: list[Silence] = []
        timeout_ns = self.timeout_ns
        for rank, member in self._members.items():
            silent_ns = watched_ns - member.since_ns
            if member.owed == 0 or silent_ns < timeout_ns:
                continue
            why = f"no answer for {silent_ns / SECOND_NS:.1f} s"
            if member.suspected_ns is None:
                member.suspected_ns = watched_ns
                found.append(Silence(rank, why, again=False))
            elif watched_ns - member.suspected_ns >= timeout_ns:
                found.append(Silence(rank, why, again=True))
        return found

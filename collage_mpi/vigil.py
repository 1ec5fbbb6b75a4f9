"""Which worker ranks are there, silent or lost: what is known of each, and for how long.

Owns: when each rank was last heard, what it owes, the reply timeout, the list of losses.
Does not know: MPI, processes, sockets, what a lost rank's tasks are.

A rank is *silent* when it has owed an answer and sent nothing for the reply timeout; it may
recover. After the same time again it is *lost*, and a lost rank stays lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

SECOND_NS = 1_000_000_000
LEAST_REPLY_NS = 30 * SECOND_NS  # a GPU that is reset, a page that comes from a slow disk
TIMES_LONGEST = 10  # of the longest service time seen: no healthy rank has ever been slower
SCAN_EVERY_NS = SECOND_NS // 10

TIMEOUT, START, MPI_ERROR = "timeout", "start", "mpi"  # layers of detection, with watches'


class Suspicion(NamedTuple):
    """A rank is silent."""

    rank: int
    why: str


class Overdue(NamedTuple):
    """A silent rank has been so for as long again: it is to be counted as lost."""

    rank: int
    why: str


@dataclass(frozen=True)
class Loss:
    """A rank that is gone for good.

    Attributes:
        layer: what noticed it.
        silent_ns: since it was last heard.
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


@dataclass
class _Member:
    heard_ns: int
    owed: int = 0
    since_ns: int = 0  # of the silence, while something is owed
    suspected: bool = False


class Vigil:
    """Told of every send and message; `overdue` says who has been silent for too long."""

    def __init__(
        self, ranks: Iterable[int], now_ns: int, reply_timeout_ns: int | None = None
    ) -> None:
        """`reply_timeout_ns` None: LEAST_REPLY_NS, or TIMES_LONGEST the longest service time."""
        self.reply_timeout_ns = reply_timeout_ns
        self.losses: dict[int, Loss] = {}
        self._members = {rank: _Member(now_ns) for rank in ranks}
        self._longest_ns = 0
        self._scan_at_ns = 0

    @property
    def present(self) -> list[int]:
        """Ranks that are not lost."""
        return list(self._members)

    @property
    def silent(self) -> list[int]:
        """Those of them that owe an answer for too long."""
        return [rank for rank, member in self._members.items() if member.suspected]

    @property
    def patience_ns(self) -> int:
        """The reply timeout now."""
        if self.reply_timeout_ns is not None:
            return self.reply_timeout_ns
        return max(LEAST_REPLY_NS, TIMES_LONGEST * self._longest_ns)

    def sent(self, rank: int, now_ns: int, tasks: int = 1) -> None:
        """The rank has been sent tasks: it owes so many answers more."""
        member = self._members.get(rank)
        if member is not None:
            if member.owed == 0:
                member.since_ns = now_ns
            member.owed += tasks

    def heard(self, rank: int, now_ns: int, answers: int = 0) -> None:
        """The rank has sent a message, with the ends of so many tasks."""
        member = self._members.get(rank)
        if member is not None:
            member.owed = max(0, member.owed - answers)
            member.heard_ns = member.since_ns = now_ns
            member.suspected = False

    def settle(self) -> None:
        """A session is over: what was owed is owed no more."""
        for member in self._members.values():
            member.owed, member.suspected = 0, False

    def served(self, service_ns: int) -> None:
        """A network took so long for a task, injected delay included."""
        self._longest_ns = max(self._longest_ns, service_ns)

    def lose(self, rank: int, layer: str, why: str, now_ns: int) -> Loss | None:
        """The rank is gone; None when that was known."""
        member = self._members.pop(rank, None)
        if member is None:
            return None
        loss = Loss(rank, why, layer, now_ns, max(0, now_ns - member.heard_ns))
        self.losses[rank] = loss
        return loss

    def part(self, rank: int) -> None:
        """The rank has left as it should."""
        self._members.pop(rank, None)

    def overdue(self, now_ns: int) -> list[Suspicion | Overdue]:
        """Ranks that have just become silent, and those that stayed it; a scan now and then."""
        if now_ns < self._scan_at_ns:
            return []
        self._scan_at_ns = now_ns + SCAN_EVERY_NS
        found: list[Suspicion | Overdue] = []
        patience_ns = self.patience_ns
        for rank, member in self._members.items():
            silent_ns = now_ns - member.since_ns
            if member.owed == 0 or silent_ns < patience_ns:
                continue
            why = f"no answer for {silent_ns / SECOND_NS:.1f} s"
            if not member.suspected:
                member.suspected = True
                found.append(Suspicion(rank, why))
            elif silent_ns >= 2 * patience_ns:
                found.append(Overdue(rank, why))
        return found

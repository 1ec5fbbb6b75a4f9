"""Combines the layers that detect lost ranks, and reports losses to the user and to the core.

The layers, from fast to slow: MPI's own error (ULFM), a pidfd for a rank on this machine, a TCP
connection for a rank on another, the reply timeout for a rank that hangs. If MPI or the timeout
gives a rank up, the rank is killed if it is on this machine, so that it cannot come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from collage_mpi.core.events import RankLost, RankSilent
from collage_mpi.errors import RankGone
from collage_mpi.faults.process_monitor import Ended, ProcessMonitor
from collage_mpi.faults.reply_timeout import MPI_ERROR, START, TIMEOUT, ReplyTimeouts
from collage_mpi.faults.tcp_link import Offer
from collage_mpi.kinds import SINGLE
from collage_mpi.mpi.transport import Gone
from collage_mpi.system.printable import counted
from collage_mpi.system.tell import tell

LOOK_EVERY_NS = 1_000_000  # between looks at processes and clocks; a look takes about 1 us


class FailureDetector:
    """The worker ranks of a world, present and lost, over one or several sessions.

    Attributes:
        keep_going: whether the job goes on without a lost rank; see `tolerate`.
        all_needed: whether a rank that stays silent counts as lost even without `keep_going`,
            because no other rank can do its work.
        leaving: whether ranks are expected to end now.
        sent: see `ReplyTimeouts`.
    """

    def __init__(
        self,
        ranks: Iterable[int],
        now_ns: int,
        process_monitor: ProcessMonitor | None = None,
        name: str = "run",
    ) -> None:
        """`process_monitor`: only if fault-tolerant; `name`: of the command, for messages."""
        self.timeouts = ReplyTimeouts(ranks, now_ns)
        self.sent = self.timeouts.sent
        self.keep_going = self.all_needed = False
        self.leaving = False
        self._monitor = process_monitor
        self._name = name
        self._start_ns = now_ns
        self._look_at_ns = 0
        self._ended: list[Ended] = []  # ranks that the next `look` reports
        self._kinds: dict[int, list[str]] = {}  # rank -> its kinds, in this session
        self._hosts: dict[int, str] = {}

    @property
    def fault_tolerant(self) -> bool:
        """Whether the world survives the loss of a worker."""
        return self._monitor is not None

    def offer(self) -> Offer | None:
        """What workers need to let themselves be watched."""
        return self._monitor.offer() if self._monitor else None

    def tolerate(
        self, keep_going: bool, reply_timeout_s: float | None, *, all_needed: bool = False
    ) -> None:
        """Set what a session does about lost and silent ranks; see the attributes.

        Args:
            keep_going: the job goes on without lost ranks.
            reply_timeout_s: a rank that owes an answer for longer is silent; None: see
                `ReplyTimeouts`.
            all_needed: every rank that stays silent counts as lost.
        """
        self.keep_going, self.all_needed = keep_going, all_needed
        self.timeouts.reply_timeout_ns = (
            None if reply_timeout_s is None else round(reply_timeout_s * 1e9)
        )

    def begin(self, kinds: Mapping[int, Iterable[str]]) -> None:
        """A session begins with these kinds of networks on the ranks."""
        self.timeouts.settle()
        self._kinds = {rank: sorted(held) for rank, held in kinds.items()}

    def met(self, rank: int, host: str, longest_ns: int) -> None:
        """The rank is ready; its longest trial batch took this long."""
        self._hosts[rank] = host
        self.timeouts.served(longest_ns)

    def heard(self, rank: int, now_ns: int, tasks: int = 0, longest_ns: int = 0) -> None:
        """A message came from the rank, with the ends of so many tasks; the longest service time of
        these."""
        self.timeouts.heard(rank, now_ns, tasks)
        if longest_ns > self.timeouts.longest_ns:
            self.timeouts.longest_ns = longest_ns

    def gone(self, found: Gone) -> None:
        """MPI reports the rank as lost; the next `look` returns it."""
        self.kill(found.rank)  # it must not go on working, because the job goes on without it
        self._ended.append(Ended(found.rank, MPI_ERROR, found.why))

    def look(self, now_ns: int) -> list[RankSilent | RankLost]:
        """Ranks that have become silent or were lost since the last look. The user is told here.

        Act on the result only after all messages that have arrived by now. Then the transport
        drops the lost ranks.

        Raises:
            RankGone: a rank is lost and the job must not go on without it.
        """
        if now_ns < self._look_at_ns and not self._ended:
            return []
        self._look_at_ns = now_ns + LOOK_EVERY_NS
        events: list[RankSilent | RankLost] = []
        for sign in self.timeouts.overdue(now_ns):
            if not sign.again:
                events.append(RankSilent(sign.rank, sign.why))
            elif self.keep_going or self.all_needed:
                self._ended.append(self._killed(sign.rank, sign.why, TIMEOUT))
        if self._monitor is not None:
            self._ended += self._monitor.look()
        ended, self._ended = self._ended, []
        events += [RankLost(e.rank, e.why) for e in ended if self._lose(e, now_ns)]
        return events

    def end(self, rank: int, why: str, now_ns: int) -> None:
        """Give a rank up: it counts as lost, and is killed if that is possible from here."""
        self._lose(self._killed(rank, why, START), now_ns)

    def kill(self, rank: int) -> bool:
        """Send SIGKILL to a rank; False if it is not on this machine."""
        return self._monitor is not None and self._monitor.kill(rank)

    def describe(self) -> list[dict[str, Any]]:
        """The lost ranks, for the manifest."""
        return [
            loss.describe(self._start_ns, self._hosts.get(rank, ""), self._kinds.get(rank, ()))
            for rank, loss in self.timeouts.losses.items()
        ]

    def _killed(self, rank: int, why: str, layer: str) -> Ended:
        return Ended(rank, layer, f"{why}; {'killed' if self.kill(rank) else 'written off'}")

    def _lose(self, ended: Ended, now_ns: int) -> bool:
        """Note and report a loss; False if it was known."""
        if self.leaving:
            self.timeouts.part(ended.rank)
            return False
        loss = self.timeouts.lose(ended.rank, ended.layer, ended.why, now_ns)
        if loss is None:
            return False
        text = f"rank {ended.rank}{self._on(ended.rank)} is lost: {ended.why}"
        if not self.keep_going:
            raise RankGone(f"{text}. Go on with the same command")
        tell(f"collage-mpi {self._name}: {text}{self._left(ended.rank)}", any_rank=True)
        return True

    def _on(self, rank: int) -> str:
        host, kinds = self._hosts.get(rank), self._kinds.get(rank)
        return (f" ({'+'.join(kinds)})" if kinds else "") + (f" on {host}" if host else "")

    def _left(self, lost: int) -> str:
        """How many ranks are left of each kind that the lost rank held, as text."""
        left = {
            kind: sum(kind in self._kinds.get(rank, ()) for rank in self.timeouts.present)
            for kind in self._kinds.get(lost, ())
        }
        for kind, n in left.items():
            if n == 0 and kind != SINGLE:
                return f"; no {kind} rank is left: the job goes on as scheme none"
        return "".join(f"; {counted(n, f'{kind} rank')} left" for kind, n in left.items())

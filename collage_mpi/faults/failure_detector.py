"""Lost ranks: what the layers of detection saw, told to the user and to the scheduler.

Owns: whether the job goes on without a lost rank, the layers put together, the messages.
Does not know: how a process is watched, what becomes of a lost rank's tasks.

The layers, from fast to slow: MPI's own error (ULFM), a pidfd for a rank of this machine, a
connection for one of another, the reply timeout for a rank that hangs. A rank that MPI or the
timeout gives up is killed where it is on this machine, so that it cannot come back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

from collage_mpi.errors import CollageError, ExitCode
from collage_mpi.faults.process_monitor import Ended
from collage_mpi.faults.reply_timeout import MPI_ERROR, START, TIMEOUT, ReplyTimeouts, Suspicion
from collage_mpi.faults.tcp_link import Offer
from collage_mpi.kinds import SINGLE
from collage_mpi.mpi.transport import Gone
from collage_mpi.scheduler.events import RankLost, RankSuspected
from collage_mpi.system.printable import counted
from collage_mpi.system.tell import tell

LOOK_EVERY_NS = 1_000_000  # at processes: a system call of 1 us; at clocks likewise


class RankGone(CollageError):
    """A rank is lost, and the job was not to go on without it."""

    exit_code = ExitCode.INCOMPLETE


class Monitor(Protocol):
    """What is needed of the watch over processes."""

    def offer(self) -> Offer: ...
    def look(self) -> list[Ended]: ...
    def kill(self, rank: int) -> bool: ...


class FailureDetector:
    """The worker ranks of a world, present and lost, over one or several sessions.

    Attributes:
        keep_going: whether the job goes on without a lost rank; each session sets it.
        all_needed: whether a rank that stays silent is lost even so: others cannot do its work.
        leaving: whether ranks are meant to end now.
    """

    def __init__(
        self,
        ranks: Iterable[int],
        now_ns: int,
        process_monitor: Monitor | None = None,
        name: str = "run",
    ) -> None:
        """`process_monitor` in a fault-tolerant world; the command's `name`, for messages."""
        self.timeouts = ReplyTimeouts(ranks, now_ns)
        self.keep_going = self.all_needed = False
        self.leaving = False
        self._monitor = process_monitor
        self._name = name
        self._start_ns = now_ns
        self._look_at_ns = 0
        self._ended: list[Ended] = []  # seen, not yet acted upon
        self._kinds: dict[int, list[str]] = {}  # by rank, in this session
        self._hosts: dict[int, str] = {}

    @property
    def fault_tolerant(self) -> bool:
        """Whether the world outlives its workers."""
        return self._monitor is not None

    def offer(self) -> Offer | None:
        """How workers let themselves be watched."""
        return self._monitor.offer() if self._monitor else None

    def begin(self, kinds: Mapping[int, Iterable[str]]) -> None:
        """A session begins with these kinds of networks on the ranks."""
        self.timeouts.settle()
        self._kinds = {rank: sorted(held) for rank, held in kinds.items()}

    def met(self, rank: int, host: str, longest_ns: int) -> None:
        """The rank is ready; the longest batch that it has tried took so long."""
        self._hosts[rank] = host
        self.timeouts.served(longest_ns)

    def sent(self, rank: int, now_ns: int, tasks: int = 1) -> None:
        """The rank has been sent so many tasks."""
        self.timeouts.sent(rank, now_ns, tasks)

    def heard(self, rank: int, now_ns: int, service_ns: Collection[int]) -> None:
        """A message has come from the rank, with the ends of tasks that took so long each."""
        self.timeouts.heard(rank, now_ns, len(service_ns))
        self.timeouts.served(max(service_ns, default=0))

    def gone(self, found: Gone) -> None:
        """MPI says that a rank is lost; the next `look` tells it."""
        self.kill(found.rank)  # it must not go on working for a job that is without it
        self._ended.append(Ended(found.rank, MPI_ERROR, found.why))

    def look(self, now_ns: int) -> list[RankSuspected | RankLost]:
        """What has become of ranks since, told to the user.

        To be acted upon after the messages that have come by now; then the transport drops
        the lost ones.

        Raises:
            RankGone: a rank is lost and the job is not to go on without it.
        """
        if now_ns < self._look_at_ns and not self._ended:
            return []
        self._look_at_ns = now_ns + LOOK_EVERY_NS
        events: list[RankSuspected | RankLost] = []
        for sign in self.timeouts.overdue(now_ns):
            if isinstance(sign, Suspicion):
                events.append(RankSuspected(now_ns, sign.rank, sign.why))
            elif self.keep_going or self.all_needed:
                self._ended.append(self._killed(sign.rank, sign.why, TIMEOUT))
        if self._monitor is not None:
            self._ended += self._monitor.look()
        ended, self._ended = self._ended, []
        events += [RankLost(now_ns, e.rank, e.why) for e in ended if self._lose(e, now_ns)]
        return events

    def end(self, rank: int, why: str, now_ns: int) -> None:
        """The rank is of no use: it is lost, and killed where that can be done from here."""
        self._lose(self._killed(rank, why, START), now_ns)

    def kill(self, rank: int) -> bool:
        """SIGKILL a rank; False when it is not on this machine."""
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
        """Note and tell a loss; False when it was known."""
        if self.leaving:
            self.timeouts.part(ended.rank)
            return False
        loss = self.timeouts.lose(ended.rank, ended.layer, ended.why, now_ns)
        if loss is None:
            return False
        text = f"rank {ended.rank}{self._on(ended.rank)} is lost: {ended.why}"
        if not self.keep_going:
            raise RankGone(f"{text}. Go on with the same command and --resume")
        tell(f"collage-mpi {self._name}: {text}{self._left(ended.rank)}", any_rank=True)
        return True

    def _on(self, rank: int) -> str:
        host, kinds = self._hosts.get(rank), self._kinds.get(rank)
        return (f" ({'+'.join(kinds)})" if kinds else "") + (f" on {host}" if host else "")

    def _left(self, lost: int) -> str:
        """How many ranks can still do what the lost one did."""
        left = {
            kind: sum(kind in self._kinds.get(rank, ()) for rank in self.timeouts.present)
            for kind in self._kinds.get(lost, ())
        }
        for kind, n in left.items():
            if n == 0 and kind != SINGLE:
                return f"; no {kind} rank is left: the job goes on as scheme none"
        return "".join(f"; {counted(n, f'{kind} rank')} left" for kind, n in left.items())

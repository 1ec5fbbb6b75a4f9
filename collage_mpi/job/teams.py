"""Several teams in one world: rank 0 and the coordinators of the other teams tell each other how
they ended. Each of them is a job of its own on the run; everything else goes by the ledger.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from collage_mpi.core.events import RankLost
from collage_mpi.errors import CollageError, EnvironmentFault, UsageError
from collage_mpi.job import messages
from collage_mpi.job.messages import Ended, Halt, Message
from collage_mpi.job.worker import Endpoint, Rank0Watch
from collage_mpi.job.worker_group import WorkerGroup
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.transport import Gone, RankFailure, Received
from collage_mpi.system.backoff import GROUP_BACKOFF, Backoff

LOOK_EVERY_NS = 50_000_000
ASK_EVERY_NS = 2_000_000_000
END_LIMIT_S = 60.0  # for a team to end once the run is complete, or was stopped
OVER = "rank 0 has ended the job"
_FAULTS = {int(error.exit_code): error for error in (UsageError, EnvironmentFault)}


class OtherTeams:
    """Rank 0's view of the other teams.

    Attributes:
        ended: rank of a coordinator -> how it ended.
    """

    def __init__(self, group: WorkerGroup, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """`group`: the other teams' coordinators."""
        self.ended: dict[int, Ended] = {}
        self._group, self._clock = group, clock
        self._come: set[int] = set()  # coordinators that have said something
        self._look_at_ns = 0
        self._halted = False

    @property
    def awaited(self) -> bool:
        """Whether a team has come and is at work."""
        return bool(self._come & {*self._group.present} - self.ended.keys())

    def look(self) -> bool:
        """Take what the teams say; whether a team was lost.

        Raises:
            CollageError: a team has a fault, or is lost, and the job must not go on without it.
        """
        now_ns = self._clock()
        if now_ns < self._look_at_ns:
            return False
        self._look_at_ns = now_ns + LOOK_EVERY_NS
        signs = self._group.detector.look(now_ns)
        for arrival in self._group.transport.poll():
            if isinstance(arrival, Gone):
                self._group.detector.gone(arrival)
            elif isinstance(arrival, Received):
                self._group.detector.heard(arrival.rank, arrival.at_ns)
                self._hear(arrival.rank, messages.unpack(arrival.message, arrival.rank))
        lost = [sign.rank for sign in signs if isinstance(sign, RankLost)]
        for rank in lost:
            self._group.transport.drop(rank)
        return bool(lost)

    def _hear(self, rank: int, said: Message) -> None:
        self._come.add(rank)
        if not isinstance(said, Ended):
            return
        self.ended[rank] = said
        kind: type[CollageError] | None = _FAULTS.get(said.exit_code)
        if kind is not None and not self._group.detector.keep_going:
            raise kind(f"the team of rank {rank}: {said.why}")

    def halt(self, reason: str) -> None:
        """Tell all teams to stop."""
        if not self._halted:
            self._halted = True
            for rank in self._group.present:
                self._group.tell(rank, Halt(reason))

    def wait(self, look: Callable[[], object], is_complete: Callable[[], bool]) -> None:
        """Wait until every team has ended, is lost, or is silent for too long after the end.

        Args:
            look: is called again and again. It calls `look` of this object.
            is_complete: whether the run is.
        """
        backoff, until_ns, asked_ns = Backoff(GROUP_BACKOFF), None, self._clock()
        while self.awaited and (until_ns is None or self._clock() < until_ns):
            look()
            if until_ns is None and self._clock() >= asked_ns:
                asked_ns = self._clock() + ASK_EVERY_NS
                if self._halted or is_complete():
                    until_ns = self._clock() + round(END_LIMIT_S * 1e9)
            backoff.pause()


class RankZero:
    """Rank 0, as the coordinator of another team sees it.

    Attributes:
        gone: rank 0 is lost; also set by the thread that monitors it.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        monitor: Rank0Watch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.gone = threading.Event()
        self._endpoint, self._monitor, self._clock = endpoint, monitor, clock
        self._reason: str | None = None
        self._code: int | None = None  # of the job, once rank 0 has told to leave

    def stop_reason(self) -> str | None:
        """Poll, and say why to stop, or None. If rank 0 is lost, this team goes on."""
        while self._code is None and not self.gone.is_set():
            try:
                message = self._endpoint.poll_control()
            except RankFailure:
                self.gone.set()
                break
            if message is None:
                break
            said = messages.unpack(message, 0)
            if isinstance(said, messages.Rank0):
                self._monitor.meet(said.host, said.process, said.tcp_link)
                self._say(messages.Here())
            elif isinstance(said, Halt):
                self._reason = said.reason
            elif isinstance(said, messages.Stop):
                self._monitor.release()
                self._say(messages.Bye())
                self._code, self._reason = said.exit_code, self._reason or OVER
        return self._reason

    def end(self, code: int, why: str) -> int:
        """Tell rank 0 how this team ended, and wait for the exit code of the job.

        Returns:
            The exit code; that of this team if rank 0 is lost.
        """
        self.stop_reason()
        if self._code is None:
            self._say(Ended(int(code), why[:2000]))
        backoff = Backoff(GROUP_BACKOFF)
        while self._code is None and not self.gone.is_set():
            self.stop_reason()
            backoff.pause()
        return int(code) if self._code is None else self._code

    def wait_to_leave(self) -> None:
        """Wait until rank 0 says that MPI may end, or the time is over; see `messages.Leave`."""
        backoff = Backoff(GROUP_BACKOFF)
        until_s = self._clock() + messages.LEAVE_WAIT_S
        while not self.gone.is_set() and self._clock() < until_s:
            message = self._endpoint.poll_control()
            if message is not None and isinstance(messages.unpack(message, 0), messages.Leave):
                return
            backoff.pause()

    def _say(self, message: Message) -> None:
        if not self.gone.is_set():
            buffer = self._endpoint.buffer(wire.CONTROL_BYTES)
            self._endpoint.send(buffer, messages.pack(buffer, 0, message))

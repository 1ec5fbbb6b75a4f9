"""The ranks that a coordinator works with: start-up, measuring, losses and the end."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from collage_mpi.errors import (
    CollageError,
    DataFault,
    EnvironmentFault,
    ExitCode,
    UsageError,
)
from collage_mpi.faults.failure_detector import FailureDetector
from collage_mpi.faults.process_monitor import ProcessMonitor
from collage_mpi.faults.reply_timeout import SECOND_NS
from collage_mpi.job import messages
from collage_mpi.job.messages import Bye, Fault, Hello, Here, Measured, Message, Shards, Welcome
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.transport import CoordinatorTransport, Gone, Received
from collage_mpi.scheduler.events import RankLost
from collage_mpi.system.backoff import GROUP_BACKOFF, Backoff
from collage_mpi.system.hard_exit import remove_shared_memory
from collage_mpi.system.printable import numbered
from collage_mpi.system.process_tree import this_process

HERE_LIMIT_S = 30.0  # MPI is up, and a rank sends this answer before anything else
HELLO_LIMIT_S = 600.0  # time to load weights from a slow, shared file system
MEASURE_LIMIT_S = 120.0
STOP_LIMIT_S = 60.0  # for a rank that owes an answer: it may be computing
IDLE_STOP_S = 10.0  # for a rank that owes none, and for messages to leave
SILENT_STOP_S = 5.0  # for a rank that is silent already
MEASURE_ROUNDS = 3
MEASURE_ENOUGH_S = 0.1  # no round is begun after this time
# How an error message names the control message that has not come.
OWED: dict[type[Message], str] = {
    Here: "sign of life",
    Hello: "hello",
    Measured: "service time of its network",
}

_FAULTS = {int(error.exit_code): error for error in (UsageError, EnvironmentFault, DataFault)}

Answer = TypeVar("Answer", Here, Hello, Measured, Bye)


@dataclass
class _Wait(Generic[Answer]):
    """A wait for one control message of a type from each of some ranks.

    Attributes:
        what: the type.
        missing: ranks that are not lost and have sent neither the answer nor a fault.
        interrupted: says why to end the wait and the job, or None.
        heard: is called often, with the number of ranks that have answered.
        answers, faults: by rank.
    """

    what: type[Answer]
    missing: set[int]
    interrupted: Callable[[], str | None] = lambda: None
    heard: Callable[[int], object] = lambda count: None
    answers: dict[int, Answer] = field(default_factory=dict)
    faults: dict[int, CollageError] = field(default_factory=dict)


class WorkerGroup:
    """The ranks that this rank coordinates, over one or several sessions."""

    def __init__(
        self,
        transport: CoordinatorTransport,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
        process_monitor: ProcessMonitor | None = None,
        name: str = "run",
        others: WorkerGroup | None = None,
    ) -> None:
        """Start with all ranks of the transport.

        Args:
            transport: to the ranks.
            clock: monotonic, in seconds.
            backoff: how to wait while nothing happens.
            process_monitor: only in a fault-tolerant world.
            name: of the command, for messages.
            others: only of the lead: the other teams' coordinators.
        """
        self.transport, self.others = transport, others
        self.session = 0
        self.detector = FailureDetector(self.ranks, _ns(clock()), process_monitor, name)
        self._clock = clock
        self._backoff = backoff or Backoff(GROUP_BACKOFF)
        self._stopped = False
        self._measured: dict[Hashable, dict[str, list[Measured]]] = {}

    @property
    def ranks(self) -> Sequence[int]:
        """All ranks that this rank coordinates, lost ranks included."""
        return self.transport.workers

    @property
    def present(self) -> list[int]:
        """The ranks that are not lost."""
        return self.detector.timeouts.present

    def greet(self) -> None:
        """Tell every rank where its coordinator is, so that the rank ends soon after it."""
        rank_0 = messages.Rank0(socket.gethostname(), this_process(), self.detector.offer())
        for rank in self.ranks:
            self.tell(rank, rank_0)

    def welcome(
        self,
        welcomes: Mapping[int, Welcome],
        limit_s: float = HELLO_LIMIT_S,
        interrupted: Callable[[], str | None] = lambda: None,
        heard: Callable[[int], object] = lambda count: None,
        shards: Sequence[Shards] = (),
    ) -> dict[int, Hello]:
        """Begin a session: welcome each rank and wait for its hello.

        If the job goes on without lost ranks, a rank that does not say hello in time counts as
        lost. So does a rank that cannot work on its host, if other ranks can.

        Args:
            welcomes: for each rank.
            limit_s: how long to wait.
            interrupted: says why to end the wait and the job, or None.
            heard: is called often, with the number of ranks that are ready.
            shards: are sent first, if ranks read the input.

        Returns:
            The hellos, by rank.

        Raises:
            UsageError, EnvironmentFault, DataFault: a rank cannot work.
        """
        self.detector.begin({rank: welcome.networks for rank, welcome in welcomes.items()})
        if self.session == 0 and self.detector.keep_going:
            self._collect(_Wait(Here, set(self.present), interrupted), HERE_LIMIT_S)
        self.session += 1
        for rank in self.present:
            for part in shards:
                self.tell(rank, part)
            self.tell(rank, welcomes[rank])
        hellos = self._collect(_Wait(Hello, set(self.present), interrupted, heard), limit_s)
        for rank, hello in hellos.items():
            self.detector.met(rank, hello.host, hello.longest_ns)
        return hellos

    def measure(self, rank: int, kind: str, batch: int) -> Measured | None:
        """Service time of a kind's network on a rank, while the other ranks wait.

        None if the rank is lost and the job goes on.
        """
        return self.measure_together((rank,), kind, batch).get(rank)

    def measure_together(
        self,
        ranks: Collection[int],
        kind: str,
        batch: int,
        interrupted: Callable[[], str | None] = lambda: None,
    ) -> dict[int, Measured]:
        """As `measure`, on several ranks at the same time; without ranks that are lost.

        `interrupted`: as in `welcome`.
        """
        asked = set(ranks).intersection(self.present)
        for rank in sorted(asked):
            self.tell(rank, messages.Measure(kind, batch))
        return self._collect(_Wait(Measured, asked, interrupted), MEASURE_LIMIT_S)

    def measure_in_turn(
        self,
        who: Mapping[str, Collection[int]],
        networks: Hashable,
        batches: Mapping[str, int],
    ) -> dict[str, list[Measured]]:
        """Service times by kind while all other ranks wait; the kinds are measured in turn.

        Sessions with the same networks share one measurement.

        Args:
            who: kind -> ranks that hold its network. The first rank that is not lost is measured.
            networks: identifies the networks; equal for sessions that share a measurement.
            batches: kind -> inputs of a task.
        """
        key = (networks, *batches.items())
        if key not in self._measured:
            found: dict[str, list[Measured]] = {}
            until_s = self._clock() + MEASURE_ENOUGH_S
            for number in range(MEASURE_ROUNDS):
                if number and self._clock() > until_s:
                    break
                for kind, batch in batches.items():
                    measured = self._measure_any(who[kind], kind, batch)
                    if measured is not None:
                        found.setdefault(kind, []).append(measured)
            self._measured[key] = found
        return self._measured[key]

    def _measure_any(self, ranks: Collection[int], kind: str, batch: int) -> Measured | None:
        """The service time on the first rank that answers."""
        alive = (rank for rank in ranks if rank in self.present)
        measured = (self.measure(rank, kind, batch) for rank in alive)
        return next((each for each in measured if each is not None), None)

    def start(self, start: messages.Start) -> None:
        """Tell all ranks that tasks will follow."""
        remove_shared_memory()  # all ranks have answered, so no rank opens it by name any more
        for rank in self.present:
            self.tell(rank, start)

    def end(self) -> None:
        """Tell all ranks that the session is over; another may follow."""
        for rank in self.present:
            self.tell(rank, messages.End())

    def stop(self, exit_code: int, limit_s: float = STOP_LIMIT_S) -> list[int]:
        """Tell all ranks to end with this exit code, and wait for their Bye.

        Args:
            exit_code: of the job.
            limit_s: for ranks that owe an answer; others have IDLE_STOP_S at most.

        Returns:
            The ranks that did not say Bye in time. In a world that is not fault-tolerant,
            ranks that were given up before are included, because MPI cannot end without them. Ranks
            that ended without a message are not included.
        """
        if self._stopped:
            return []
        self._stopped = self.detector.leaving = True
        for rank in self.present:
            self.tell(rank, messages.Stop(int(exit_code)))
        plain = not self.detector.fault_tolerant  # only then MPI_Finalize is called
        parted = self._goodbyes(limit_s)
        stuck = set(self.present) - parted
        if plain:
            stuck |= self.detector.timeouts.losses.keys()
        for rank in stuck:
            self.detector.kill(rank)
        if stuck:
            return sorted(stuck)
        # Tell all that said Bye: a rank may count as silent because another one was slow.
        for rank in sorted(parted) if plain else ():
            self.tell(rank, messages.Leave())
        if not self.transport.flush(IDLE_STOP_S):
            return sorted(parted)
        if plain:
            self.transport.close()
        return []

    def _goodbyes(self, limit_s: float) -> set[int]:
        """The ranks that say Bye in time."""
        timeouts = self.detector.timeouts
        silent, owing = set(timeouts.silent), set(timeouts.owing)
        parted: set[int] = set()
        for ranks, most_s in (
            (set(self.present) - owing, IDLE_STOP_S),
            (owing - silent, timeouts.timeout_ns / SECOND_NS),
            (silent, SILENT_STOP_S),
        ):
            wait = _Wait(Bye, ranks - parted)
            self._gather(wait, min(limit_s, most_s))
            parted |= wait.answers.keys()
        return parted

    def tell(self, rank: int, message: Message) -> None:
        """Send a control message to the rank."""
        buffer = self.transport.buffer(wire.CONTROL_BYTES)
        nbytes = messages.pack(buffer, self.session, message)
        self.transport.send_control(rank, buffer, nbytes)

    def _collect(self, wait: _Wait[Answer], limit_s: float) -> dict[int, Answer]:
        """Wait for the answers, and return them by rank.

        Raises:
            CollageError: the fault of a rank; EnvironmentFault if an answer has not come in time.
        """
        self._gather(wait, limit_s)
        if self.detector.keep_going:
            self._go_on_without(wait, limit_s)
        elif wait.missing:
            names = numbered("rank", sorted(wait.missing))
            hint = "are their hosts up, and can they read the weights?"
            if wait.what is Measured:
                hint = "the network is too slow there, or the host is busy with other work"
            owed = OWED[wait.what]
            raise EnvironmentFault(f"no {owed} from {names} within {limit_s:g} s; {hint}")
        return wait.answers

    def _go_on_without(self, wait: _Wait[Answer], limit_s: float) -> None:
        """Give up ranks without an answer. Raises a rank's fault if no rank can work."""
        if wait.faults and not wait.answers:
            raise next(iter(wait.faults.values()))
        silent = f"no {OWED[wait.what]} within {limit_s:g} s"
        reasons = dict.fromkeys(wait.missing, silent)
        reasons |= {rank: f"it cannot work: {fault}" for rank, fault in wait.faults.items()}
        for rank, why in sorted(reasons.items()):
            self.detector.end(rank, why, _ns(self._clock()))
            self.transport.drop(rank)

    def _gather(self, wait: _Wait[Answer], limit_s: float) -> None:
        """Take messages until no rank is missing or the time is over.

        Only time in which this process ran counts, so a suspended job does not use it up.
        """
        watch = self.detector.timeouts.watch
        until_ns = watch.watched_ns + _ns(limit_s)
        while wait.missing and watch.watched_ns <= until_ns:
            if self._turn(wait):
                self._backoff.reset()
            else:
                self._backoff.pause()
            wait.heard(len(wait.answers))
            reason = wait.interrupted()
            if reason is not None:
                raise _Interrupted(reason)

    def _turn(self, wait: _Wait[Answer]) -> bool:
        """Poll once; whether a message came."""
        signs = self.detector.look(_ns(self._clock()))
        found = self.transport.poll()
        for arrival in found:
            if isinstance(arrival, Gone):
                self.detector.gone(arrival)
            elif isinstance(arrival, Received):
                self._take(arrival, wait)
        for sign in signs:
            if isinstance(sign, RankLost):
                self.transport.drop(sign.rank)
        wait.missing.intersection_update(self.present)
        return any(isinstance(arrival, Received) for arrival in found)

    def _take(self, arrival: Received, wait: _Wait[Answer]) -> None:
        """Note a message if the wait is for it."""
        rank = arrival.rank
        self.detector.heard(rank, _ns(self._clock()), ())
        said = self._said(arrival)
        if isinstance(said, wait.what):
            wait.answers[rank] = said
        elif isinstance(said, Fault) and not self._stopped:
            wait.faults[rank] = self._borne(rank, said)
        else:
            return
        wait.missing.discard(rank)

    def _borne(self, rank: int, told: Fault) -> CollageError:
        """A rank's fault, if the job goes on without lost ranks; otherwise the fault is raised.

        Whatever its kind, the fault is that of the rank alone unless every rank has one.
        """
        fault = _FAULTS.get(told.exit_code, EnvironmentFault)(f"rank {rank}: {told.message}")
        if self.detector.keep_going:
            return fault
        raise fault

    def _said(self, arrival: Received) -> Message | None:
        """The control message if it belongs to this session; None for late answers."""
        header = wire.read_header(arrival.message)
        if header.session != self.session or header.type != wire.CONTROL:
            return None
        return messages.unpack(arrival.message, arrival.rank)


class _Interrupted(CollageError):
    """A signal came before the job began."""

    exit_code = ExitCode.INCOMPLETE


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)

"""The workers as rank 0 sees them: start-up, measuring, losses and the end.

Owns: who has said hello, the bounds on waiting for it, telling all of them to stop.
Does not know: tasks, images, rows, how a loss is noticed.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import TypeVar

from collage_mpi.errors import (
    CollageError,
    DataFault,
    EnvironmentFault,
    ExitCode,
    UsageError,
)
from collage_mpi.faults.failure_detector import FailureDetector, Monitor
from collage_mpi.job import messages
from collage_mpi.job.cost_ratio import Ratio, ratio_of
from collage_mpi.job.messages import Bye, Fault, Hello, Here, Measured, Message, Shards, Welcome
from collage_mpi.kinds import SINGLE
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.transport import CoordinatorTransport, Gone, Received
from collage_mpi.scheduler.events import RankLost
from collage_mpi.system.backoff import GROUP_BACKOFF, Backoff
from collage_mpi.system.hard_exit import remove_shared_memory
from collage_mpi.system.pidfd import this_process
from collage_mpi.system.printable import numbered

HERE_LIMIT_S = 30.0  # MPI is up, and the answer is the first thing a rank does
HELLO_LIMIT_S = 600.0  # loading weights from a cold, shared file system
MEASURE_LIMIT_S = 120.0
STOP_LIMIT_S = 60.0  # a rank may be loading its weights, or in the midst of a network
SILENT_STOP_S = 5.0  # and one that has owed an answer for too long has had its time
MEASURE_ROUNDS = 15  # where delays are multiplied by what is found
FEW_ROUNDS = 3  # where it is only recorded
MEASURE_ENOUGH_S = 20.0  # slow networks get fewer rounds
# What a rank owes when its control message of a sort does not come.
OWED: dict[type[Message], str] = {
    Here: "sign of life",
    Hello: "hello",
    Measured: "service time of its network",
}

_FAULTS = {int(error.exit_code): error for error in (UsageError, EnvironmentFault, DataFault)}

Answer = TypeVar("Answer", Here, Hello, Measured, Bye)


class WorkerGroup:
    """All worker ranks of the world, over one or several sessions."""

    def __init__(
        self,
        transport: CoordinatorTransport,
        clock: Callable[[], float] = time.monotonic,
        backoff: Backoff | None = None,
        process_monitor: Monitor | None = None,
        name: str = "run",
    ) -> None:
        """`clock` in seconds; `process_monitor` in a fault-tolerant world; the command's `name`."""
        self.transport = transport
        self.others: WorkerGroup | None = None  # of the lead: the other teams' coordinators
        self.session = 0
        self.detector = FailureDetector(self.ranks, _ns(clock()), process_monitor, name)
        self._clock = clock
        self._backoff = backoff or Backoff(GROUP_BACKOFF)
        self._stopped = False
        self._faults: dict[int, CollageError] = {}  # what ranks of this session cannot do
        self._measured: dict[Hashable, dict[str, list[Measured]]] = {}

    @property
    def ranks(self) -> Sequence[int]:
        """Every rank that works for this one, lost ones too."""
        return self.transport.workers

    @property
    def present(self) -> list[int]:
        """Those that are not lost."""
        return self.detector.timeouts.present

    def greet(self) -> None:
        """Tell every rank who and where rank 0 is, so that none outlives it for long."""
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
        """Begin a session: tell each rank what it is; their hellos, by rank.

        `shards` go to all ranks first, where they read the input.
        `heard` is told again and again how many ranks are ready.
        When the job goes on without lost ranks, so does this: whoever has not said hello
        within the limit, or cannot work on its host where others can, is lost.

        Raises:
            UsageError, EnvironmentFault, DataFault: what a rank could not do; with the
                rank and its host named.
        """
        self.detector.begin({rank: welcome.networks for rank, welcome in welcomes.items()})
        if self.session == 0 and self.detector.keep_going:
            self._collect(Here, set(self.present), HERE_LIMIT_S, interrupted)
        self.session += 1
        for rank in self.present:
            for part in shards:
                self.tell(rank, part)
            self.tell(rank, welcomes[rank])
        hellos = self._collect(Hello, set(self.present), limit_s, interrupted, heard)
        for rank, hello in hellos.items():
            self.detector.met(rank, hello.host, hello.longest_ns)
        return hellos

    def measure(self, rank: int, kind: str, batch: int = 1) -> Measured | None:
        """Idle service time of a kind's network on a rank, the others waiting.

        None when the rank is lost meanwhile and the job goes on.
        """
        self.tell(rank, messages.Measure(kind, batch))
        return self._collect(Measured, {rank}, MEASURE_LIMIT_S, lambda: None).get(rank)

    def service_times(
        self,
        who: Mapping[str, Collection[int]],
        networks: Hashable,
        rounds: int = MEASURE_ROUNDS,
    ) -> tuple[dict[str, int], Ratio | None]:
        """Idle service times by kind in ns, and the other network's over the single's.

        The kinds are measured in turn, `rounds` times. As service time the shortest is
        taken: other work on the host can only lengthen one. Sessions with the same networks
        share one measurement: their injected delays are then the same.

        Args:
            who: ranks that may be measured for each kind; the first that is not lost is.
            networks: what they are, to know them again.
            rounds: at most; slow networks get fewer.
        """
        found = self._rounds(who, networks, dict.fromkeys(who, 1), rounds)
        other = next((kind for kind in found if kind != SINGLE), None)
        ratio = None if other is None else ratio_of(found[other], found.get(SINGLE, ()))
        return _shortest_ns(found), ratio

    def batch_times(
        self,
        who: Mapping[str, Collection[int]],
        networks: Hashable,
        batches: Mapping[str, int],
        rounds: int = MEASURE_ROUNDS,
    ) -> dict[str, int]:
        """Idle service times of a batch of so many inputs by kind in ns; see `service_times`."""
        return _shortest_ns(self._rounds(who, networks, batches, rounds))

    def _rounds(
        self,
        who: Mapping[str, Collection[int]],
        networks: Hashable,
        batches: Mapping[str, int],
        rounds: int,
    ) -> dict[str, list[Measured]]:
        key = (networks, *batches.items(), rounds)
        if key not in self._measured:
            found: dict[str, list[Measured]] = {}
            until_s = self._clock() + MEASURE_ENOUGH_S
            for number in range(rounds):
                if number and self._clock() > until_s:
                    break
                for kind, batch in batches.items():
                    measured = self._measure_any(who[kind], kind, batch)
                    if measured is not None:
                        found.setdefault(kind, []).append(measured)
            self._measured[key] = found
        return self._measured[key]

    def _measure_any(self, ranks: Collection[int], kind: str, batch: int) -> Measured | None:
        """The service time on the first of the ranks that lives to tell it."""
        for rank in ranks:
            if rank in self.present:
                measured = self.measure(rank, kind, batch)
                if measured is not None:
                    return measured
        return None

    def start(self, cost_ratio: float, batch_costs: Mapping[str, float] | None = None) -> None:
        """Tasks will follow; see `messages.Start`."""
        remove_shared_memory()  # all have spoken, so that nobody looks for it by name any more
        for rank in self.present:
            self.tell(rank, messages.Start(cost_ratio, dict(batch_costs or {})))

    def end(self) -> None:
        """The session is over; another may follow."""
        for rank in self.present:
            self.tell(rank, messages.End())

    def stop(self, exit_code: int, limit_s: float = STOP_LIMIT_S) -> list[int]:
        """Everybody ends with this exit code.

        Returns:
            The ranks that did not say that they end within limit_s, and in a plain world those
            that were given up: with one of them MPI itself could not end. A rank that has
            ended without a word is none of them.
        """
        if self._stopped:
            return []
        self._stopped = self.detector.leaving = True
        for rank in self.present:
            self.tell(rank, messages.Stop(int(exit_code)))
        silent = self._not_parting(limit_s)
        if not self.detector.fault_tolerant:
            silent |= self.detector.timeouts.losses.keys()
        if silent:
            for rank in silent:
                self.detector.kill(rank)
            return sorted(silent)
        if not self.detector.fault_tolerant:
            for rank in self.present:
                self.tell(rank, messages.Leave())
        if not self.transport.flush(limit_s):
            return self.present
        if not self.detector.fault_tolerant:  # such a world has no MPI_Finalize to prepare for
            self.transport.close()
        return []

    def _not_parting(self, limit_s: float) -> set[int]:
        """Ranks that do not say goodbye in their time."""
        answers: dict[int, Bye] = {}
        late = set(self.detector.timeouts.silent)
        missing = set(self.present) - late
        self._gather(Bye, missing, answers, limit_s, lambda: None)
        late -= answers.keys()
        self._gather(Bye, late, answers, min(limit_s, SILENT_STOP_S), lambda: None)
        return (missing | late) & set(self.present)

    def tell(self, rank: int, message: Message) -> None:
        """Send a control message."""
        buffer = self.transport.buffer(wire.CONTROL_BYTES)
        nbytes = messages.pack(buffer, self.session, message)
        self.transport.send_control(rank, buffer, nbytes)

    def _collect(
        self,
        what: type[Answer],
        missing: set[int],
        limit_s: float,
        interrupted: Callable[[], str | None],
        heard: Callable[[int], object] = lambda count: None,
    ) -> dict[int, Answer]:
        """One control message of the wanted sort from each rank in `missing`.

        Raises:
            CollageError: a rank's fault; EnvironmentFault when the time is over.
        """
        answers: dict[int, Answer] = {}
        self._faults = {}
        self._gather(what, missing, answers, limit_s, interrupted, heard)
        if self.detector.keep_going:
            self._go_on_without(what, missing, limit_s, bool(answers))
        elif missing:
            names = numbered("rank", sorted(missing))
            hint = "are their hosts up, and can they read the weights?"
            if what is Measured:
                hint = "the network is too slow there, or the host busy with other work"
            raise EnvironmentFault(f"no {OWED[what]} from {names} within {limit_s:g} s; {hint}")
        return answers

    def _go_on_without(
        self, what: type[Message], missing: set[int], limit_s: float, quorum: bool
    ) -> None:
        """Those that are silent or cannot work are lost. Raises a fault that all ranks have."""
        if self._faults and not quorum:
            raise next(iter(self._faults.values()))
        reasons = {rank: f"no {OWED[what]} within {limit_s:g} s" for rank in missing}
        reasons |= {rank: f"it cannot work: {fault}" for rank, fault in self._faults.items()}
        for rank, why in sorted(reasons.items()):
            self.detector.end(rank, why, _ns(self._clock()))
            self.transport.drop(rank)

    def _gather(
        self,
        what: type[Answer],
        missing: set[int],
        answers: dict[int, Answer],
        limit_s: float,
        interrupted: Callable[[], str | None],
        heard: Callable[[int], object] = lambda count: None,
    ) -> None:
        """Move ranks from `missing` to `answers` until none is left or the time is over.

        The time that rank 0 watched: a job that was suspended meanwhile has not used it up.
        """
        watch = self.detector.timeouts.watch
        until_ns = watch.watched_ns + _ns(limit_s)
        while missing and watch.watched_ns <= until_ns:
            if self._turn(what, missing, answers):
                self._backoff.reset()
            else:
                self._backoff.pause()
            heard(len(answers))
            reason = interrupted()
            if reason is not None:
                raise _Interrupted(reason)

    def _turn(self, what: type[Answer], missing: set[int], answers: dict[int, Answer]) -> bool:
        """Poll once; lost ranks leave `missing`. Whether a message has come."""
        signs = self.detector.look(_ns(self._clock()))
        found = self.transport.poll()
        for arrival in found:
            if isinstance(arrival, Gone):
                self.detector.gone(arrival)
            elif isinstance(arrival, Received):
                self._take(arrival, what, missing, answers)
        for sign in signs:
            if isinstance(sign, RankLost):
                self.transport.drop(sign.rank)
        missing.intersection_update(self.present)
        return any(isinstance(arrival, Received) for arrival in found)

    def _take(
        self,
        arrival: Received,
        what: type[Answer],
        missing: set[int],
        answers: dict[int, Answer],
    ) -> None:
        """A message that may be the one that is waited for."""
        self.detector.heard(arrival.rank, _ns(self._clock()), ())
        said = self._said(arrival)
        if isinstance(said, Fault) and not self._stopped:
            error = _fault(arrival.rank, said)
            if not (self.detector.keep_going and isinstance(error, EnvironmentFault)):
                raise error
            self._faults[arrival.rank] = error
            missing.discard(arrival.rank)
        elif isinstance(said, what):
            answers[arrival.rank] = said
            missing.discard(arrival.rank)

    def _said(self, arrival: Received) -> Message | None:
        """A control message of this session; anything else is a late answer."""
        header = wire.read_header(arrival.message)
        if header["session"] != self.session or header["type"] != wire.CONTROL:
            return None
        return messages.unpack(arrival.message, arrival.rank)


class _Interrupted(CollageError):
    """A signal came before the job had begun."""

    exit_code = ExitCode.INCOMPLETE


def _fault(rank: int, told: Fault) -> CollageError:
    return _FAULTS.get(told.exit_code, EnvironmentFault)(f"rank {rank}: {told.message}")


def _shortest_ns(rounds: Mapping[str, Sequence[Measured]]) -> dict[str, int]:
    return {kind: min(m.service_ns for m in found) for kind, found in rounds.items()}


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)

"""The ranks that a coordinator works with: start-up, measuring, losses and the end."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from collage_mpi.core.events import RankLost
from collage_mpi.errors import ExitCode, Interrupted
from collage_mpi.faults.failure_detector import FailureDetector
from collage_mpi.faults.process_monitor import ProcessMonitor
from collage_mpi.faults.reply_timeout import SECOND_NS
from collage_mpi.job import messages
from collage_mpi.job.group_steps import (
    GREETED,
    MEMBER,
    STUCK,
    Asked,
    Gone,
    GroupSteps,
    Heard,
    Tell,
)
from collage_mpi.job.messages import Bye, Hello, Here, Measured, Message, Shards, Welcome
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.transport import CoordinatorTransport, Received
from collage_mpi.mpi.transport import Gone as TransportGone
from collage_mpi.system.backoff import GROUP_BACKOFF, Backoff
from collage_mpi.system.hard_exit import remove_shared_memory
from collage_mpi.system.process_tree import this_process

HERE_LIMIT_S = 30.0  # MPI is up, and a rank sends this answer before anything else
HELLO_LIMIT_S = 600.0  # time to load weights from a slow, shared file system
MEASURE_LIMIT_S = 120.0
STOP_LIMIT_S = 60.0  # for a rank that owes an answer: it may be computing
IDLE_STOP_S = 10.0  # for a rank that owes none, and for messages to leave
SILENT_STOP_S = 5.0  # for a rank that is silent already
MEASURE_ROUNDS = 3
MEASURE_ENOUGH_S = 0.1  # no round is begun after this time

Answer = TypeVar("Answer", Here, Hello, Measured, Bye)


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
        self.steps = GroupSteps(self.ranks)
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
        unseen = [rank for rank in self.present if self.steps.states[rank] == GREETED]
        if unseen and self.detector.keep_going:
            self._ask({}, dict.fromkeys(unseen, HERE_LIMIT_S))
            self._answers(Here, interrupted)
        self.session += 1
        told: dict[int, Sequence[Message]]
        told = {rank: [*shards, welcomes[rank]] for rank in self.present}
        self._ask(told, dict.fromkeys(told, limit_s))
        hellos = self._answers(Hello, interrupted, heard)
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
        asked = sorted(set(ranks).intersection(self.present))
        told = dict.fromkeys(asked, (messages.Measure(kind, batch),))
        self._ask(told, dict.fromkeys(asked, MEASURE_LIMIT_S))
        return self._answers(Measured, interrupted)

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
        self._ask(dict.fromkeys(self.present, (start,)))

    def end(self) -> None:
        """Tell all ranks that the session is over, as far as they do not know; another may
        follow."""
        working = [rank for rank in self.present if "end" in MEMBER[self.steps.states[rank]]]
        self._ask(dict.fromkeys(working, (messages.End(),)))

    def release(self, ranks: Collection[int]) -> None:
        """Let ranks go while others go on. Their processes end where MPI allows this, which is in
        a fault-tolerant world. Elsewhere they sleep, without their networks.
        """
        alone = self.detector.fault_tolerant
        told = messages.Stop(int(ExitCode.COMPLETE)) if alone else messages.Release()
        self._ask(dict.fromkeys(ranks, (told,)))
        for rank in ranks if alone else ():
            self.detector.timeouts.part(rank)

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
        timeouts = self.detector.timeouts
        owing, silent = set(timeouts.owing), set(timeouts.silent)
        most_s = dict.fromkeys(self.present, IDLE_STOP_S)
        most_s |= dict.fromkeys(owing, timeouts.timeout_ns / SECOND_NS)
        most_s |= dict.fromkeys(silent, SILENT_STOP_S)
        told = dict.fromkeys(self.present, (messages.Stop(int(exit_code)),))
        self._ask(told, {rank: min(limit_s, each_s) for rank, each_s in most_s.items()})
        parted = self._answers(Bye).keys()
        plain = not self.detector.fault_tolerant  # only then MPI_Finalize is called
        stuck = {rank for rank, state in self.steps.states.items() if state == STUCK}
        if plain:
            stuck |= timeouts.losses.keys()
        for rank in stuck:
            self.detector.kill(rank)
        if stuck:
            return sorted(stuck)
        if not plain:
            return []  # a rank that has said Bye may have left, and needs no other message
        # Ranks receive until Leave: MPI may hold a message, such as a cancel, until it is received.
        if not self.transport.flush(IDLE_STOP_S):
            return sorted(parted)
        # Tell all that said Bye: a rank may count as silent because another one was slow.
        for rank in sorted(parted):
            self.tell(rank, messages.Leave())
        if not self.transport.flush(IDLE_STOP_S):
            return sorted(parted)
        self.transport.close()
        return []

    def tell(self, rank: int, message: Message) -> None:
        """Send a control message to the rank."""
        buffer = self.transport.buffer(wire.CONTROL_BYTES)
        nbytes = messages.pack(buffer, self.session, message)
        self.transport.send_control(rank, buffer, nbytes)

    def _ask(
        self,
        told: Mapping[int, Sequence[Message]],
        limits_s: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        """Tell ranks something, and expect an answer of each rank that has a limit."""
        keep_going = self.detector.keep_going
        self._step([*self._gone(self.steps.states), Asked(told, limits_s, keep_going)])

    def _answers(
        self,
        what: type[Answer],
        interrupted: Callable[[], str | None] = lambda: None,
        heard: Callable[[int], object] = lambda count: None,
    ) -> dict[int, Answer]:
        """Take messages until no answer is awaited; the answers by rank.

        Only time in which this process ran counts, so a suspended job does not use it up.

        Raises:
            CollageError: as in `GroupSteps.step`, or the wait was interrupted.
        """
        while self.steps.awaited:
            if self._turn():
                self._backoff.reset()
            else:
                self._backoff.pause()
            heard(len(self.steps.answers))
            reason = interrupted()
            if reason is not None:
                raise Interrupted(f"{reason}: go on with the same command")
        return {r: each for r, each in self.steps.answers.items() if isinstance(each, what)}

    def _turn(self) -> bool:
        """Poll once; whether a message came."""
        signs = self.detector.look(_ns(self._clock()))
        heard: list[Heard] = []
        found = self.transport.poll()
        for arrival in found:
            if isinstance(arrival, TransportGone):
                self.detector.gone(arrival)
            elif isinstance(arrival, Received):
                self.detector.heard(arrival.rank, _ns(self._clock()))
                said = self._said(arrival)
                heard += () if said is None else (Heard(arrival.rank, said),)
        for sign in signs:
            if isinstance(sign, RankLost):
                self.transport.drop(sign.rank)
        self._step([*heard, *self._gone(self.steps.awaited)])
        return any(isinstance(arrival, Received) for arrival in found)

    def _gone(self, ranks: Collection[int]) -> list[Gone]:
        return [Gone(rank) for rank in set(ranks).difference(self.present)]

    def _step(self, events: Sequence[Asked | Heard | Gone]) -> None:
        for action in self.steps.step(self.detector.timeouts.watch.watched_ns, events):
            if isinstance(action, Tell):
                self.tell(*action)
            else:
                self.detector.end(action.rank, action.why, _ns(self._clock()))
                self.transport.drop(action.rank)

    def _said(self, arrival: Received) -> Message | None:
        """The control message if it belongs to this session; None for late answers."""
        header = wire.read_header(arrival.message)
        if header.session != self.session or header.type != wire.CONTROL:
            return None
        return messages.unpack(arrival.message, arrival.rank)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)

"""A coordinator's loop: tells the core what happens, in order of time, and runs its actions."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from collage_mpi.core import events as ev
from collage_mpi.core.core import Core
from collage_mpi.core.states import READY
from collage_mpi.job.leased_images import LeasedImages
from collage_mpi.job.messages import Bye, Changed, unpack
from collage_mpi.job.packing import Packer
from collage_mpi.job.worker_group import WorkerGroup
from collage_mpi.kinds import SINGLE
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.answers import unpack_ends, unpack_use, use_bytes
from collage_mpi.mpi.tasks import cancel_message_bytes, pack_cancel
from collage_mpi.mpi.transport import Gone, Received
from collage_mpi.results.number_sets import Draw
from collage_mpi.results.row_sink import PART_BYTES, RowSink
from collage_mpi.shards.readahead import Images
from collage_mpi.system.backoff import Backoff
from collage_mpi.system.bottleneck import Use
from collage_mpi.system.printable import numbered
from collage_mpi.system.tell import tell
from collage_mpi.workload.arrivals import Arrivals, ClosedLoop

REPORT_EVERY_NS = 10_000_000  # at this interval the cost of a report does not matter
REST_NS = 1_000_000  # rest of a team without images; polling every 0.2 ms took 12 % of a core
ROWS = 4096  # resolved images whose rows are taken out at once; fewer wait for WRITE_EVERY_NS
WRITE_EVERY_NS = 1_000_000_000
# A job that has waited so long for others lets ranks go. It notices sooner that a job has died, and
# then its ranks are there.
RELEASE_NS = 60_000_000_000
AGAIN_NS = 1_000_000_000  # until ranks that were not idle are let go
RELEASED, SHOWN = "released", 8
TOLD_WRONG = 3  # times that a wrong answer of a rank is told
REFUTED = 1000  # rows that are named, of those that were refuted after they were written


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the loop.

    Attributes:
        credit: most messages that a rank may have at a time.
        clock: monotonic clock, in ns.
        backoff: how to wait while nothing happens.
        arrivals: when images arrive.
        stop_reason: says why to stop, or None.
        report: called every REPORT_EVERY_NS, and at the end.
        draw: which images are audited.
        releases: let idle ranks go while other jobs hold all images that are left.
    """

    credit: int
    clock: Callable[[], int]
    backoff: Backoff
    arrivals: Arrivals
    stop_reason: Callable[[], str | None]
    report: Callable[[], object]
    draw: Draw
    releases: bool = True


class ReadyRank(NamedTuple):
    """A worker that has said hello."""

    rank: int
    kinds: frozenset[str]
    host: str
    like: str = ""  # see `RankReady`
    devices: tuple[str, ...] = ()

    @property
    def named(self) -> str:
        """As messages name it."""
        devices = f"{' and '.join(self.devices)} of " if self.devices else ""
        return f"rank {self.rank} ({devices}{self.host})"


class PollWatch:
    """The longest time between two polls, which bounds the error of receive time stamps."""

    def __init__(self) -> None:
        self.longest_ns = 0
        self.polls = 0
        self._last_ns: int | None = None

    def polled(self, now_ns: int) -> None:
        """Note that the coordinator polls now."""
        if self._last_ns is not None and now_ns - self._last_ns > self.longest_ns:
            self.longest_ns = now_ns - self._last_ns
        self._last_ns = now_ns
        self.polls += 1


class WorkMeter:
    """Time of the coordinator's own work: mean ns for an answer, a sent message, a pasted collage.

    The time for an answer counts the poll that found it, decoding, deciding and recording, without
    the sends and the pasting that follow from it.
    """

    def __init__(self) -> None:
        self.receives = self.sends = self.encodes = 0
        self.receive_ns = self.send_ns = self.encode_ns = 0
        self.process_cpu_ns = self.loop_cpu_ns = 0
        self.busy_ns = 0  # in turns in which something happened
        self._began_ns: int | None = None
        self._elapsed_ns = 0

    def begin(self) -> None:
        """Start to count the processor time of the process, and of this thread."""
        self._began_ns = time.monotonic_ns()
        self.process_cpu_ns -= time.process_time_ns()
        self.loop_cpu_ns -= time.thread_time_ns()

    def use(self, reading_ns: int, decoding_ns: int) -> Use:
        """What this process has done with its time.

        Args:
            reading_ns: time that its reader read files.
            decoding_ns: time that its reader decoded pictures.
        """
        elapsed_ns = self._elapsed_ns
        if self._began_ns is not None:
            elapsed_ns = time.monotonic_ns() - self._began_ns
        return Use(elapsed_ns, reading_ns, decoding_ns, computing_ns=self.busy_ns)

    def end(self) -> None:
        """Stop counting processor time."""
        self.loop_cpu_ns += time.thread_time_ns()
        self.process_cpu_ns += time.process_time_ns()
        if self._began_ns is not None:
            self._elapsed_ns, self._began_ns = time.monotonic_ns() - self._began_ns, None

    def sent(self, took_ns: int, encodes_ns: Sequence[int]) -> None:
        """Add a message: its time, and for each of its tasks the part that pasting took."""
        self.sends += 1
        self.send_ns += took_ns
        if any(encodes_ns):
            encode_ns = sum(encodes_ns)
            self.send_ns -= encode_ns
            self.encodes += len(encodes_ns)
            self.encode_ns += encode_ns

    def means(self) -> dict[str, float]:
        """Mean ns per answer, message and collage (0 if there was none), and total CPU time."""
        return {
            "process_cpu_ns": self.process_cpu_ns,
            "loop_cpu_ns": self.loop_cpu_ns,
            "receive_ns": self.receive_ns / max(1, self.receives),
            "send_ns": self.send_ns / max(1, self.sends),
            "encode_ns": self.encode_ns / max(1, self.encodes),
        }


class Coordinator:
    """Runs one session from the first RankReady to Finish."""

    def __init__(
        self,
        core: Core,
        worker_group: WorkerGroup,
        packer: Packer,
        rows: RowSink,
        leased: LeasedImages,
        settings: LoopSettings,
    ) -> None:
        self.core, self.rows = core, rows
        self.transport, self.ranks = worker_group.transport, worker_group.detector
        self._group = worker_group
        self.session = worker_group.session
        self.credit, self.clock, self.backoff = settings.credit, settings.clock, settings.backoff
        self.polls = PollWatch()
        self.work = WorkMeter()
        self.finish: ev.Finish | None = None
        self.retired: dict[int, str] = {}
        self.released: set[int] = set()  # ranks that were let go
        # (rank, shard, row) of rows that were refuted after they were written, the first REFUTED
        self.refuted: list[tuple[int, int, int]] = []
        self.unfit: dict[int, str] = {}  # ranks whose answers to known inputs are wrong -> why
        self._uses: dict[int, bytes] = {}
        self._ready: dict[int, ReadyRank] = {}
        self.changes: list[tuple[int, Changed]] = []  # by rank, in order
        self._stop_reason, self._report = settings.stop_reason, settings.report
        self._draw, self._arrivals = settings.draw, settings.arrivals
        self._releases = settings.releases
        self._packer, self._leased, self._paused = packer, leased, False
        self._stopped = self._input_closed = self._letting_in = self._stepping = False
        self._report_at_ns = self._write_at_ns = self._release_at_ns = 0
        # Events that arose while others were handled; each entry holds those of one moment.
        self._events: deque[tuple[int, Sequence[ev.Event | partial[ev.Arrived]]]] = deque()
        self._left: list[Any] = []  # messages that have left, for the next step
        self._cancels: dict[int, list[int]] = {}  # rank -> cancelled tasks, not sent yet
        self._actions: Mapping[type, Callable[[Any], object]] = {
            ev.Admit: self._admit,
            ev.Send: self._send,
            ev.Cancel: lambda a: self._cancels.setdefault(a.rank, []).append(a.task),
            **dict.fromkeys((ev.Resolved, ev.Released), packer.held.release),
            ev.Differed: self._differed,
            ev.Judged: leased.judged,
            ev.Retire: lambda a: self.retired.update({a.rank: a.reason}),
            ev.Recall: lambda a: self.retired.pop(a.rank, None),
            ev.Finish: self._finished,
        }

    @property
    def uses(self) -> dict[int, Use]:
        """Rank -> what it has done with its time, as far as it has told."""
        return {rank: unpack_use(use) for rank, use in self._uses.items()}

    def run(self, ready: list[ReadyRank], lost: Mapping[int, str] | None = None) -> ev.Finish:
        """Run the session from the first admission to its end.

        Args:
            ready: the ranks that said hello.
            lost: ranks that were lost before the loop begins -> why.
        """
        self.work.begin()
        self._arrivals.start(self.clock())
        for worker in ready:
            self._ready[worker.rank] = worker
            known = *worker[:3], self.credit, worker.like
            self._step(self.clock(), ev.RankReady(*known))
        for rank, why in (lost or {}).items():
            self._step(self.clock(), ev.RankLost(rank, why))
        try:
            while self.finish is None:
                if self.turn():
                    self.backoff.reset()
                else:
                    self._pause()
            self._leased.look_for_pairs()
            self._report()
        finally:
            # Also after an error: tasks must match the images.
            self.core.close(self.clock(), self._left)
            self.write()
            self.work.end()
        return self.finish

    def write(self) -> None:
        """Hand over the rows of what is resolved."""
        self._write_at_ns = self.clock() + WRITE_EVERY_NS
        self.rows.image_rows(*self.core.table.take())
        self.rows.task_rows(self.core.take_tasks())

    def _pause(self) -> None:
        """Wait a little; longer if no image is in hand."""
        in_hand = self.core.admission.unresolved or self._leased.remaining
        if in_hand or self._input_closed:
            self.backoff.pause(self._until_timer_ns())
        else:
            self.backoff.rest(REST_NS)

    def turn(self) -> bool:
        """Poll once and act: first on answers, then on lost ranks, then on timers.

        Returns:
            Whether anything happened.
        """
        now_ns = self.clock()
        self.polls.polled(now_ns)
        signs = self.ranks.look(now_ns)  # before the poll: a dead rank's last answers count
        found = self.transport.poll()
        if found:
            self._received(found, now_ns)
        for sign in signs:
            self._step(self.clock(), sign)
            if isinstance(sign, ev.RankLost):
                self.transport.drop(sign.rank)
        if now_ns >= self._leased.look_at_ns:
            self._hear_of_leases(now_ns)
            self._look_for_stop()
        arrived = self._let_in() if self._arrivals.waiting else False
        wake_ns = self.core.wake_ns
        fired = wake_ns is not None and wake_ns <= self.clock() and self.finish is None
        if fired:
            self._step(self.clock())
        if self._cancels:
            self._send_cancels()
        if self.core.table.vector_bytes >= PART_BYTES:
            self.write()
        if now_ns >= self._report_at_ns:
            self._report_at_ns = now_ns + REPORT_EVERY_NS
            if self.core.table.done >= ROWS or now_ns >= self._write_at_ns:
                self.write()
            self._report()
        happened = bool(found or signs) or arrived or fired
        if happened:
            self.work.busy_ns += self.clock() - now_ns
        return happened

    # ---- events -------------------------------------------------------------

    def _step(self, now_ns: int, *events: ev.Event | partial[ev.Arrived]) -> None:
        """Tell the core of one moment, and of all that follows from it.

        An event may be given as a function, which makes it when its turn has come.
        """
        self._events.append((now_ns, events))
        if self._stepping:
            return  # the loop below, further up the stack, takes them
        self._stepping = True
        core, actions = self.core, self._actions
        while self._events:
            at_ns, of_one_moment = self._events.popleft()
            if self.finish is None:
                told: list[ev.Event] = self._left
                self._left = []
                for each in of_one_moment:
                    told.append(each() if isinstance(each, partial) else each)
                # A time stamp may be older than events handled since, but the core's time grows.
                for action in core.step(at_ns if at_ns > core.now_ns else core.now_ns, told):
                    actions[type(action)](action)
        self._stepping = False

    def _received(self, found: Sequence[Received | Gone], began_ns: int) -> None:
        """Tell the core of all answers that a poll has found, together."""
        work, at_ns = self.work, 0
        ends: list[ev.Event] = []
        before_ns = work.send_ns + work.encode_ns
        for arrival in found:
            if isinstance(arrival, Received):
                ends += self._ends(arrival)
                at_ns = arrival.at_ns
            else:
                self.ranks.gone(arrival)
        if ends:
            self._step(at_ns, *ends)
        if self._cancels:
            self._send_cancels()
        work.receive_ns += self.clock() - began_ns - (work.send_ns + work.encode_ns - before_ns)

    def _ends(self, arrival: Received) -> Sequence[ev.Event]:
        """What a message tells: the ends of tasks, or that a rank does no more of a kind."""
        rank, message, at_ns = arrival
        start_ns = self.clock()
        header = wire.read_header(message)
        if header.session != self.session:
            return []  # a late answer of an earlier session
        if header.type == wire.CONTROL:
            told = unpack(message, rank)
            if isinstance(told, Bye):
                return []  # of a rank that was let go
            if isinstance(told, Changed):
                self.changes.append((rank, told))
                if told.why and told.runtime:
                    tell(f"warning: rank {rank} stays with {told.runtime}; {told.why}")
                elif told.why:
                    return self._unfit(rank, told)
                return []
        if header.type != wire.ANSWERS:
            raise wire.WireFault(f"rank {rank} sent type {header.type} in mid-run")
        ends = unpack_ends(rank, header, message, at_ns, self.clock, start_ns)
        self._uses[rank] = use_bytes(message)
        longest_ns = max([end.compute_ns if type(end) is ev.Answered else 0 for end in ends])
        self.ranks.heard(rank, at_ns, header.n_tasks, longest_ns)
        self.work.receives += header.n_tasks
        return ends

    def _unfit(self, rank: int, told: Changed) -> Sequence[ev.Event]:
        """The rank does no more tasks of a kind; none at all if its exact network is wrong."""
        if told.kind != SINGLE:
            tell(f"warning: rank {rank} does no more {told.kind} tasks; {told.why}")
            return [ev.RankUnfit(rank, told.kind)]
        worker, self.unfit[rank] = self._ready[rank], told.why
        tell(
            f"warning: {worker.named} gets no more work: {told.why}. Have its device examined, and "
            f"leave {worker.host} out of the next job"
        )
        return [ev.RankUnfit(rank, kind) for kind in sorted(worker.kinds)]

    def _hear_of_leases(self, now_ns: int) -> None:
        """Take what the ledger grants, and which first networks to ask."""
        leased = self._leased
        leased.look_for_pairs()
        in_hand = self.core.admission.unresolved + self.core.checks.asked
        if leased.resting(in_hand):
            self.write()
        came = leased.look(now_ns, in_hand)
        if came and isinstance(self._arrivals, ClosedLoop):
            self._arrivals.granted(self.clock())  # latencies of awaited images count from now
        self._note_pause()
        if self._paused and self._releases and now_ns >= self._release_at_ns:
            self._release()
        for stages in leased.stages():
            self._step(self.clock(), stages)

    def _look_for_stop(self) -> None:
        reason = None if self._stopped else self._stop_reason()
        if reason is not None:
            self._stopped = True
            self._step(self.clock(), ev.StopRequested(reason))

    def _note_pause(self) -> None:
        paused = self._leased.paused
        if paused and not self._paused:
            self._step(self.clock(), ev.InputPaused())
            self._release_at_ns = self.clock() + RELEASE_NS
        self._paused = paused

    def _release(self) -> None:
        """Let the idle ranks go, but one of each kind: the core gives them up."""
        self._release_at_ns = self.clock() + AGAIN_NS
        kinds: set[str] = set()  # of the ranks that stay
        idle = []
        for rank in (each for each in self.core.ranks.known.values() if each.status == READY):
            if not rank.kinds <= kinds:
                kinds |= rank.kinds
            elif not rank.tasks:
                idle.append(rank.id)
        if idle:
            ranks = numbered("rank", idle, SHOWN)
            tell(f"no image is free: {ranks} released, the others wait", logging.INFO)
            self.released.update(idle)
            self._step(self.clock(), *(ev.RankLost(rank, RELEASED) for rank in idle))
            self._group.release(idle)

    def _until_timer_ns(self) -> int | None:
        """Time until the next timer or arrival; None if there is none."""
        now_ns = self.clock()
        times_ns = (self._arrivals.next_ns(now_ns), self.core.wake_ns)
        next_ns = min((at_ns for at_ns in times_ns if at_ns is not None), default=None)
        return None if next_ns is None else max(0, next_ns - now_ns)

    # ---- actions ------------------------------------------------------------

    def _admit(self, action: ev.Admit) -> None:
        """Let images arrive. In a closed loop t0 is now, before they are read (C3)."""
        self._arrivals.admit(self.clock(), action.images)
        if not self._letting_in:  # otherwise `_let_in`, further up the stack, takes them
            self._let_in()

    def _let_in(self) -> bool:
        """Let images arrive that are due and have been read. This never waits for the disk."""
        self._letting_in = True
        leased, arrived = self._leased, False
        while not leased.exhausted and (count := self._arrivals.due(self.clock())):
            found = leased.take(count)
            if found is None:
                break
            now_ns = self.clock()
            t0_ns, asked_ns = self._arrivals.enter(now_ns, len(found[1]))
            came = partial(self._came, *found, t0_ns, now_ns - asked_ns)
            self._step(now_ns, came)
            arrived = True
        if leased.exhausted and not self._input_closed:
            self._input_closed = True
            self._step(self.clock(), ev.InputClosed())
        if arrived:
            self._note_pause()
        self._letting_in = False
        return arrived

    def _came(
        self, first: int, images: Images, t0_ns: int | np.ndarray, read_ns: int
    ) -> ev.Arrived:
        """The event of images that were read, made when the core is ready for it: only then it is
        known where the next group begins."""
        first = max(first, self.core.next)
        drawn = self._draw.some(images.placed) if self._draw.share else None
        mine = self._leased.draws(first, images.position)
        if mine is not None:
            drawn = mine if drawn is None else drawn | mine
        if images.pixels is not None or images.files is not None:
            self._packer.held.add(first, images)
        return ev.Arrived(first, images.placed, t0_ns, read_ns, drawn, images.faults)

    def _send(self, send: ev.Send) -> None:
        start_ns = self.clock()
        tasks, rank = send.tasks, send.rank
        packed = self._packer.pack(rank, tasks, self.transport.buffer)
        now_ns = self.clock()
        self._left.append(ev.Left([task.id for task in tasks], now_ns, packed.encodes_ns))
        self.ranks.sent(rank, now_ns, len(tasks))
        self.transport.send_task(rank, packed.buffer, packed.nbytes)
        self.work.sent(self.clock() - start_ns, packed.encodes_ns)

    def _send_cancels(self) -> None:
        """Send the collected cancels, in one message for each rank."""
        cancels, self._cancels = self._cancels, {}
        for rank, tasks in cancels.items():
            start_ns = self.clock()
            buffer = self.transport.buffer(cancel_message_bytes(len(tasks)))
            nbytes = pack_cancel(buffer, self.session, tasks)
            self.transport.send_task(rank, buffer, nbytes)
            self.work.sent(self.clock() - start_ns, ())

    def _differed(self, action: ev.Differed) -> None:
        """Tell of a rank that is outvoted, the first times; note a row that has its answer."""
        if action.wrong is None:
            return
        shard, row = action.image
        if action.written and len(self.refuted) < REFUTED:
            self.refuted.append((action.wrong, shard, row))
        if self.core.checks.of[action.wrong].wrong <= TOLD_WRONG:
            worker = self._ready[action.wrong]
            counts = "" if action.written else ", whose answer counts"
            tell(
                f"warning: {worker.named} answered row {row:,} of shard {shard} otherwise than two "
                f"other ranks{counts}; if this happens again, take {worker.host} out of the job "
                "and have it examined"
            )

    def _finished(self, action: ev.Finish) -> None:
        self.finish = action

"""A coordinator's loop: feeds the scheduler with events in order of time, and runs its actions."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from collage_mpi.job.image_buffer import ImageBuffer, ImageRun
from collage_mpi.job.messages import Changed, unpack
from collage_mpi.job.recorder import Recorder
from collage_mpi.job.team import Supply
from collage_mpi.job.worker_group import WorkerGroup
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.answers import task_ends, unpack_results, unpack_use
from collage_mpi.mpi.tasks import cancel_message_bytes, pack_cancel
from collage_mpi.mpi.transport import Received, Sent
from collage_mpi.scheduler import Scheduler
from collage_mpi.scheduler import events as ev
from collage_mpi.system.backoff import Backoff
from collage_mpi.system.bottleneck import Use
from collage_mpi.system.tell import tell
from collage_mpi.workload.arrivals import Arrivals, ClosedLoop

REPORT_EVERY_NS = 10_000_000  # at this interval the cost of a report does not matter
REST_NS = 1_000_000  # rest of a team without images; polling every 0.2 ms took 12 % of a core
DROPPED_TIMERS = 64  # cancelled timers that may stay in the heap; without a limit it would grow


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
        runs: whether images arrive as runs.
    """

    credit: int
    clock: Callable[[], int]
    backoff: Backoff
    arrivals: Arrivals
    stop_reason: Callable[[], str | None]
    report: Callable[[], object]
    runs: bool = False


class ReadyRank(NamedTuple):
    """A worker that has said hello."""

    rank: int
    kinds: frozenset[str]
    host: str


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
        encode_ns = sum(encodes_ns)
        self.sends += 1
        self.send_ns += took_ns - encode_ns
        if encode_ns:
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
        scheduler: Scheduler,
        worker_group: WorkerGroup,
        feed: ImageBuffer,
        recorder: Recorder,
        supply: Supply,
        settings: LoopSettings,
    ) -> None:
        """`supply` is attached to `feed` and `recorder` already."""
        self.scheduler, self.feed, self.recorder = scheduler, feed, recorder
        self.transport, self.ranks = worker_group.transport, worker_group.detector
        self.session = worker_group.session
        self.credit, self.clock, self.backoff = settings.credit, settings.clock, settings.backoff
        self.polls = PollWatch()
        self.work = WorkMeter()
        self.finish: ev.Finish | None = None
        self.retired: dict[int, str] = {}
        self.uses: dict[int, Use] = {}  # rank -> what it has done with its time
        self.changes: list[tuple[int, Changed]] = []  # by rank, in order
        self._stop_reason, self._report = settings.stop_reason, settings.report
        self._arrive = self._runs if settings.runs else self._images
        self._stopped = False
        self._input_closed = False
        self._report_at_ns = 0
        # Events that arose while others were handled; each entry holds those of one moment.
        self._events: deque[Sequence[ev.Event]] = deque()
        self._handling = False
        self._leaving: dict[int, tuple[int, ...]] = {}  # a message's first task -> its tasks
        self._cancels: dict[int, list[int]] = {}  # rank -> cancelled tasks, not sent yet
        self._timers: list[tuple[int, int]] = []  # heap of (at_ns, timer)
        self._dropped_timers: set[int] = set()
        self._arrivals = settings.arrivals
        self._supply, self._paused = supply, False
        self._letting_in = False
        self._last_ns = 0
        self._stamp_ns = 0
        self._actions: Mapping[type, Callable[[Any], object]] = {
            ev.Admit: self._admit,
            ev.Send: lambda a: self._send((a,)),
            ev.SendBatch: lambda a: self._send(a.sends),
            ev.Cancel: lambda a: self._cancels.setdefault(a.rank, []).append(a.task),
            ev.Resolve: self._resolve,
            ev.ResolveRun: lambda a: self.recorder.run_resolved(a, self._stamp_ns),
            ev.SetTimer: lambda a: heapq.heappush(self._timers, (a.at_ns, a.timer)),
            ev.CancelTimer: self._drop_timer,
            ev.Retire: lambda a: self.retired.update({a.rank: a.reason}),
            ev.Recall: lambda a: self.retired.pop(a.rank, None),
            ev.Release: lambda a: self.feed.images.release(a.images),
            ev.Finish: self._finished,
        }

    def run(self, ready: list[ReadyRank], lost: Mapping[int, str] | None = None) -> ev.Finish:
        """Run the session from the first admission to its end.

        Args:
            ready: the ranks that said hello.
            lost: ranks that were lost before the loop begins -> why.
        """
        self.work.begin()
        self._arrivals.start(self.clock())
        for worker in ready:
            self._handle(ev.RankReady(self.clock(), *worker, self.credit))
        for rank, why in (lost or {}).items():
            self._handle(ev.RankLost(self.clock(), rank, why))
        try:
            while self.finish is None:
                if self.turn():
                    self.backoff.reset()
                else:
                    self._pause()
            if self._supply.book is not None:
                self._supply.book.look()
            self._report()
        finally:
            # Also after an error: groups and tasks must match the images.
            self.recorder.finish(self.clock())
            self.work.end()
        return self.finish

    def _pause(self) -> None:
        """Wait a little; longer if no image is in hand, when only the lead can send something."""
        in_hand = self.scheduler.groups.unresolved or self.feed.reader.remaining
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
            self.work.receive_ns += self.clock() - now_ns
        for arrival in found:
            if isinstance(arrival, Received):
                self._received(arrival)
            elif isinstance(arrival, Sent):
                self._handle(ev.SendDone(arrival.at_ns, self._leaving.pop(arrival.token)))
            else:
                self.ranks.gone(arrival)
        for sign in signs:
            self._missed(sign)
        if now_ns >= self._supply.look_at_ns:
            self._hear_of_supply(now_ns)
            self._look_for_stop()
        arrived = self._let_in() if self._arrivals.waiting else False
        fired = self._fire_timers() if self._timers else False
        if self._cancels:
            self._send_cancels()
        if now_ns >= self._report_at_ns:
            self._report_at_ns = now_ns + REPORT_EVERY_NS
            self.recorder.write_late()
            self._report()
        happened = bool(found or signs) or arrived or fired
        if happened:
            self.work.busy_ns += self.clock() - now_ns
        return happened

    # ---- events -------------------------------------------------------------

    def _handle(self, *events: ev.Event) -> None:
        """Handle one event, or several of one moment, and all events that follow from them."""
        if self._handling:
            self._events.append(events)
            return  # the loop below, further up the stack, takes them
        self._handling = True
        self._act_upon(events)
        while self._events:
            self._act_upon(self._events.popleft())
        self._handling = False

    def _act_upon(self, events: Sequence[ev.Event]) -> None:
        if self.finish is not None or not events:
            return
        # A time stamp may be older than events handled since, but the scheduler's time must grow.
        self._stamp_ns = events[0].now_ns
        if self._stamp_ns < self._last_ns:
            events = [event._replace(now_ns=self._last_ns) for event in events]
        self._last_ns = events[0].now_ns
        for action in self.scheduler.handle(*events):
            self._actions[type(action)](action)

    def _received(self, arrival: Received) -> None:
        start_ns = self.clock()
        header = wire.read_header(arrival.message)
        if header.session != self.session:
            return  # a late answer of an earlier session
        if header.type == wire.CONTROL:
            told = unpack(arrival.message, arrival.rank)
            if isinstance(told, Changed):
                self.changes.append((arrival.rank, told))
                if told.why:
                    tell(f"warning: rank {arrival.rank} stays with {told.runtime}; {told.why}")
                return
        if header.type != wire.ANSWERS:
            raise wire.WireFault(f"rank {arrival.rank} sent type {header.type} in mid-run")
        results = unpack_results(arrival.message, header)
        self.uses[arrival.rank] = unpack_use(arrival.message)
        decode_ns = self.clock() - start_ns
        services_ns = [result.compute_ns for result in results]
        self.ranks.heard(arrival.rank, arrival.at_ns, services_ns)
        before_ns = self.work.send_ns + self.work.encode_ns
        self.recorder.ended(results, arrival.at_ns, decode_ns)
        self._handle(*task_ends(arrival.rank, arrival.at_ns, results))
        self.recorder.settled([result.task for result in results])
        if self._cancels:
            self._send_cancels()
        sending_ns = self.work.send_ns + self.work.encode_ns - before_ns
        self.work.receive_ns += self.clock() - start_ns - sending_ns
        self.work.receives += len(results)

    def _missed(self, sign: ev.RankSuspected | ev.RankLost) -> None:
        """A rank is silent, or lost with its tasks."""
        self._handle(sign)
        if isinstance(sign, ev.RankLost):
            self.recorder.lost(sign.rank, sign.now_ns, sign.why)
            self.transport.drop(sign.rank)

    def _hear_of_supply(self, now_ns: int) -> None:
        """Take what the lead has sent: leases, and a new threshold."""
        supply = self._supply
        if supply.book is not None:
            supply.book.look()
        if supply.look(now_ns, self.scheduler.groups.unresolved):
            assert isinstance(self._arrivals, ClosedLoop)
            self._arrivals.granted(self.clock())  # latencies of awaited images count from now
        self._note_pause()
        while supply.book is not None and supply.book.heard:
            confidence = supply.book.heard.pop(0).confidence
            self._handle(ev.Threshold(self.clock(), confidence))

    def _look_for_stop(self) -> None:
        reason = None if self._stopped else self._stop_reason()
        if reason is not None:
            self._stopped = True
            self._handle(ev.StopRequested(self.clock(), reason))

    def _note_pause(self) -> None:
        paused = self._supply.paused
        if paused and not self._paused:
            self._handle(ev.InputPaused(self.clock()))
        self._paused = paused

    def _fire_timers(self) -> bool:
        fired = False
        while self._timers and self.finish is None:
            at_ns, timer = self._timers[0]
            now_ns = self.clock()
            if at_ns > now_ns:
                break
            heapq.heappop(self._timers)
            if timer in self._dropped_timers:
                self._dropped_timers.discard(timer)
            else:
                self._handle(ev.TimerFired(now_ns, timer))
                fired = True
        return fired

    def _drop_timer(self, action: ev.CancelTimer) -> None:
        """Cancel a timer. The heap is cleaned when most of its entries are cancelled timers."""
        dropped = self._dropped_timers
        dropped.add(action.timer)
        if len(dropped) > DROPPED_TIMERS and 2 * len(dropped) > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[1] not in dropped]
            heapq.heapify(self._timers)
            dropped.clear()

    def _until_timer_ns(self) -> int | None:
        """Time until the next timer or arrival; None if there is none."""
        now_ns = self.clock()
        next_ns = self._arrivals.next_ns(now_ns)
        if self._timers and (next_ns is None or self._timers[0][0] < next_ns):
            next_ns = self._timers[0][0]
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
        arrived = False
        while not self.feed.exhausted and (count := self._arrivals.due(self.clock())):
            arrivals = self._arrive(count)
            if not arrivals:
                break
            self._handle(*arrivals)
            arrived = True
        if self.feed.exhausted and not self._input_closed:
            self._input_closed = True
            self._handle(ev.InputClosed(self.clock()))
        if arrived:
            self._note_pause()
        self._letting_in = False
        return arrived

    def _images(self, count: int) -> list[ev.Event]:
        """ImageArrived events for the next images, one for each image."""
        admitted, draw, now_ns = self.feed.admit(count), self.feed.draw, self.clock()
        entries = self._arrivals.enter(now_ns, len(admitted)) if admitted else ()
        size = self.scheduler.settings.group_size
        self.recorder.totals.admitted += len(admitted)
        arrivals: list[ev.Event] = []
        for (image, record), (t0_ns, asked_ns) in zip(admitted, entries, strict=True):
            record.t0_ns, record.read_ns = t0_ns, now_ns - asked_ns
            drawn = draw.share > 0 and draw.one(record.shard, record.row)
            if self._supply.book is not None:
                drawn |= self._supply.book.calibrates(image, record.index)
            fault, group = record.fault or "", self._supply.group_of(image, size)
            arrivals.append(ev.ImageArrived(now_ns, image, t0_ns, fault, group, drawn))
        return arrivals

    def _runs(self, count: int) -> list[ev.Event]:
        """ImageArrived events for the next images, one for each run."""
        found, now_ns = self.feed.admit_runs(count), self.clock()
        arrivals: list[ev.Event] = []
        size = self.scheduler.settings.group_size
        if found:
            count = sum([run.length for run in found])
            self.recorder.totals.admitted += count
            t0_ns, asked_ns = next(self._arrivals.enter(now_ns, count))
        for run in found:
            run.t0_ns, run.read_ns = t0_ns, now_ns - asked_ns
            for first, length, drawn in self._stretches(run):
                group = self._supply.group_of(first, size)
                arrivals.append(ev.ImageArrived(now_ns, first, t0_ns, "", group, drawn, length))
        return arrivals

    def _stretches(self, run: ImageRun) -> Iterator[tuple[int, int, bool]]:
        """Split a run before and after each drawn image: (first image, count, drawn)."""
        book, first = self._supply.book, run.first
        drawn = self.feed.draw.some(run.places)  # (n,) bool
        if book is not None:
            indices = enumerate(run.columns.index.tolist(), first)
            drawn |= [book.calibrates(image, index) for image, index in indices]
        for place in np.flatnonzero(drawn).tolist():
            if first < run.first + place:
                yield first, run.first + place - first, False
            yield run.first + place, 1, True
            first = run.first + place + 1
        if first < run.end:
            yield first, run.end - first, False

    def _send(self, sends: Sequence[ev.Send]) -> None:
        """Send these tasks in one message."""
        start_ns = self.clock()
        packed = self.feed.pack(sends, self.transport.buffer)
        rank, token, now_ns = sends[0].rank, None, self.clock()
        if packed.pixels:
            token = sends[0].task
            self._leaving[token] = tuple([send.task for send in sends])
        self.recorder.sent(sends, now_ns, packed.encodes_ns)
        self.ranks.sent(rank, now_ns, len(sends))
        self.transport.send_task(rank, packed.buffer, packed.nbytes, token)
        self.work.sent(self.clock() - start_ns, packed.encodes_ns)

    def _send_cancels(self) -> None:
        """Send the collected cancels, in one message for each rank."""
        cancels, self._cancels = self._cancels, {}
        for rank, tasks in cancels.items():
            start_ns = self.clock()
            buffer = self.transport.buffer(cancel_message_bytes(len(tasks)))
            nbytes = pack_cancel(buffer, self.session, tasks)
            self.transport.send_task(rank, buffer, nbytes, None)
            self.work.sent(self.clock() - start_ns, ())

    def _resolve(self, action: ev.Resolve) -> None:
        if self._supply.book is not None:
            self._supply.book.resolved(action)
        self.recorder.resolved(action, self._stamp_ns)

    def _finished(self, action: ev.Finish) -> None:
        self.finish = action

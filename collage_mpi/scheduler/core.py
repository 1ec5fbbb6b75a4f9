"""The scheduler's core: events, groups, timers, outcomes, the end.

Owns: the state of the job and its eight invariants (docs/architecture.md).
Does not know: which rank is chosen and when a task leaves (dispatch), what becomes of
an image whose task failed (rescue), what redundancy a scheme adds, when a collage's
answer counts, MPI, clocks, torch, arrays, files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.dispatch import Dispatch
from collage_mpi.scheduler.events import Action, Event, Score
from collage_mpi.scheduler.quantiles import RunningQuantile
from collage_mpi.scheduler.rescue import NOBODY, Rescue
from collage_mpi.scheduler.schemes import SINGLE, Later, Scheme
from collage_mpi.scheduler.state import (
    GroupState,
    ImageState,
    RankState,
    RankStatus,
    TaskState,
)

SECOND_NS = 1_000_000_000


class ProtocolViolation(Exception):
    """The driver broke the contract of the events: a defect, never a user's mistake."""


@dataclass(frozen=True)
class SchedulerSettings:
    """What the scheduler is told once.

    Attributes:
        group_size: images of a full group (s*s).
        ranks: worker ranks that must be ready or lost before the first Admit.
        depth: groups in flight (closed loop).
        drain: release the next groups only when no task is under way at all.
        linger_ns: close a group this long after its first image; None waits for it to fill.
        image_timeout_ns: give up a group's images this long after its t0; None never does.
        max_attempts: single tasks made for one image before it becomes an error row.
        max_failures: failures in a row after which a rank is retired.
        end_ns: how long late answers are waited for once every image is resolved.
        stop_ns: how long answers under way are waited for after StopRequested.
        park_ns: how long images wait when every capable rank is suspected.
    """

    group_size: int
    ranks: int
    depth: int = 1
    drain: bool = False
    linger_ns: int | None = None
    image_timeout_ns: int | None = None
    max_attempts: int = 3
    max_failures: int = 5
    end_ns: int = 30 * SECOND_NS
    stop_ns: int = 5 * SECOND_NS
    park_ns: int = 30 * SECOND_NS


class Scheduler:
    """Feed it events with `handle`; carry out the actions it returns, in order."""

    def __init__(self, settings: SchedulerSettings, scheme: Scheme) -> None:
        self.settings = settings
        self.scheme = scheme
        self.dispatch = Dispatch()
        self.latencies = RunningQuantile()  # of single answers, late ones too
        self._now_ns = 0
        self._reported: set[int] = set()
        self._timers: dict[int, Callable[[], None]] = {}
        self._filling: GroupState | None = None
        self.rescue = Rescue(self, settings.max_attempts)
        self._drain_timer: int | None = None
        self._drain_over = False
        self._next_group = self._next_timer = 0
        self._last_image = -1
        self._promised = 0  # admitted, not yet arrived
        self._in_flight = 0  # closed groups with unresolved images
        self._unresolved = 0
        self._reserved = 0  # unresolved images with an answer that counts later
        self._errors = 0
        self._input_closed = False
        self._stopping: str | None = None
        self._ending = False
        self._finished = False
        self._handlers: dict[type, Callable[..., None]] = {
            ev.RankReady: self._on_rank_ready,
            ev.ImageArrived: self._on_image_arrived,
            ev.InputClosed: self._on_input_closed,
            ev.StopRequested: self._on_stop,
            ev.SendDone: self._on_send_done,
            ev.Answered: self._on_answered,
            ev.Failed: self._on_failed,
            ev.Skipped: self._on_skipped,
            ev.RankSuspected: self._on_suspected,
            ev.RankLost: self._on_lost,
            ev.TimerFired: self._on_timer,
        }

    def handle(self, event: Event) -> list[Action]:
        """Take one event and return what to do about it, in order.

        Raises:
            ProtocolViolation: time runs backwards, an id is unknown or used twice,
                or an event follows Finish.
        """
        if event.now_ns < self._now_ns:
            raise ProtocolViolation(f"time runs backwards: {event.now_ns} < {self._now_ns}")
        if self._finished:
            raise ProtocolViolation(f"event after Finish: {event}")
        self._now_ns = event.now_ns
        actions = self.dispatch.actions = []
        self._handlers[type(event)](event)
        self._admit()
        self._maybe_finish()
        return actions

    # ---- ranks --------------------------------------------------------------

    def _on_rank_ready(self, event: ev.RankReady) -> None:
        if event.rank in self._reported:
            raise ProtocolViolation(f"rank {event.rank} is ready twice, or after it was lost")
        rank = RankState(event.rank, event.kinds, event.host, event.credit)
        self._reported.add(rank.id)
        self._enter(rank)

    def _on_suspected(self, event: ev.RankSuspected) -> None:
        rank = self.dispatch.ranks.get(event.rank)
        if rank is None or rank.status is not RankStatus.READY or not rank.outstanding:
            return  # a rank that owes nothing is not silent: its last answer has just come
        rank.status = RankStatus.SUSPECTED
        self.rescue.suspects[rank.id] = rank
        self.rescue.leave(rank, event.why)

    def _on_lost(self, event: ev.RankLost) -> None:
        self._reported.add(event.rank)
        rank = self.dispatch.ranks.get(event.rank)
        if rank is not None and rank.status is not RankStatus.LOST:
            self._lose(rank, event.why)
        if len(self._reported) >= self.settings.ranks and not self._anybody_alive():
            self.stop(NOBODY)

    def _lose(self, rank: RankState, why: str) -> None:
        rank.status = RankStatus.LOST
        self.rescue.suspects.pop(rank.id, None)
        covered = list(rank.outstanding.values())
        for task in covered:
            self.dispatch.end(task)
        self.rescue.leave(rank, why)
        for task in covered:
            self.rescue.redo(task, f"rank {rank.id} was lost: {why}")
        self.rescue.ranks_changed()

    def _recover(self, rank: RankState) -> None:
        if rank.status is RankStatus.SUSPECTED:
            rank.status = RankStatus.READY
            del self.rescue.suspects[rank.id]
            if not rank.retired:
                self._enter(rank)

    def _enter(self, rank: RankState) -> None:
        self.dispatch.enter(rank)
        self.rescue.ranks_changed()

    def _anybody_alive(self) -> bool:
        return any(
            rank.status is not RankStatus.LOST and rank.kinds & self.scheme.kinds
            for rank in self.dispatch.ranks.values()
        )

    # ---- images and groups --------------------------------------------------

    def _on_image_arrived(self, event: ev.ImageArrived) -> None:
        if event.image <= self._last_image:
            raise ProtocolViolation(f"image {event.image} arrived twice or out of order")
        if self._input_closed:
            raise ProtocolViolation(f"image {event.image} arrived after InputClosed")
        self._last_image = event.image
        self._promised = max(0, self._promised - 1)
        group = self._filling or self._open_group(event.intended_ns)
        image = ImageState(event.image, group, len(group.images), event.intended_ns)
        group.images.append(image)
        group.unresolved += 1
        self._unresolved += 1
        if event.fault:
            self.dispatch.skip_turn(SINGLE)
            self.error(image, event.fault)
        elif self._stopping is None:
            self.scheme.image_arrived(self, image)
            if not image.tasks:
                self.rescue.image(image)
        if len(group.images) == self.settings.group_size:
            self._close_group(group)

    def _open_group(self, t0_ns: int) -> GroupState:
        group = GroupState(self._next_group, t0_ns)
        self._next_group += 1
        self._filling = group
        if self.settings.linger_ns is not None:
            self._set_timer(
                self._now_ns + self.settings.linger_ns, partial(self._close_group, group), group
            )
        if self.settings.image_timeout_ns is not None:
            self._set_timer(
                t0_ns + self.settings.image_timeout_ns, partial(self._give_up, group), group
            )
        return group

    def _close_group(self, group: GroupState, given_up: bool = False) -> None:
        if group.closed:
            return
        group.closed = True
        self._filling = None
        if group.unresolved == 0:
            self._drop_timers(group)
            return
        self._in_flight += 1
        if self._stopping is None and not given_up:
            self.scheme.group_closed(self, group)
            for image in group.images:
                self.rescue.image(image)

    def _on_input_closed(self, event: ev.InputClosed) -> None:
        self._input_closed = True
        self._promised = 0
        if self._filling is not None:
            self._close_group(self._filling)

    def _give_up(self, group: GroupState) -> None:
        if self._stopping is not None:
            return  # what was not answered in time will be done again, by the next session
        limit_s = (self.settings.image_timeout_ns or 0) / SECOND_NS
        self._close_group(group, given_up=True)
        for image in group.images:
            if image.resolved:
                continue
            if image.reserve is not None:
                self._use_reserve(image)
            else:
                because = f": {image.reason}" if image.reason else ""
                self.error(image, f"no answer within {limit_s:g} s{because}")

    def _admit(self) -> None:
        """Ask for whole groups while fewer than `depth` are in flight (C6)."""
        if self._input_closed or self._stopping is not None:
            return
        if len(self._reported) < self.settings.ranks:
            return
        size, depth = self.settings.group_size, self.settings.depth
        filling = len(self._filling.images) if self._filling else 0
        if self.settings.drain:
            missing = depth if self._drained() else 0
        else:
            missing = depth - self._in_flight - -(-(filling + self._promised) // size)
        if missing > 0:
            self._promised += missing * size
            self.dispatch.actions.append(ev.Admit(missing * size))

    def _drained(self) -> bool:
        """Whether all ranks are idle; those that are silent, or take for ever, do not count."""
        if self._unresolved or self._promised:
            return False
        busy = len(self.dispatch.tasks) - self.rescue.silent_tasks()
        if busy > 0 and not self._drain_over:
            if self._drain_timer is None:
                self._drain_timer = self._set_timer(
                    self._now_ns + self.settings.end_ns, self._stop_draining, None
                )
            return False
        if self._drain_timer is not None:
            self._cancel_timer(self._drain_timer)
        self._drain_timer, self._drain_over = None, False
        return True

    def _stop_draining(self) -> None:
        self._drain_timer, self._drain_over = None, True

    # ---- tasks --------------------------------------------------------------

    def _on_send_done(self, event: ev.SendDone) -> None:
        self.dispatch.send_done(event.task)

    def _terminal(self, task_id: int, rank_id: int) -> TaskState:
        """The task that a terminal event names, now over."""
        task = self.dispatch.tasks.get(task_id)
        if task is None or task.rank.id != rank_id:
            raise ProtocolViolation(f"rank {rank_id} ends task {task_id}, which it does not have")
        self.dispatch.end(task)
        return task

    def _on_answered(self, event: ev.Answered) -> None:
        task = self._terminal(event.task, event.rank)
        if len(event.cells) != len(task.items):
            raise ProtocolViolation(
                f"task {task.id} has {len(task.items)} items, its answer {len(event.cells)} cells"
            )
        task.rank.failures = 0
        if task.kind == SINGLE:
            self._observe(task)
        self.scheme.answered(self, task, event.cells, event.now_ns)
        for image, cell in zip(task.images, event.cells, strict=True):
            if cell is None and not image.resolved:
                self._absent(image, task)
        self._alive(task.rank)

    def _absent(self, image: ImageState, task: TaskState) -> None:
        if task.kind == SINGLE:
            image.failures += 1
            self.rescue.note(image, task, "the network gave no answer")
        self.rescue.image(image)

    def _on_failed(self, event: ev.Failed) -> None:
        task = self._terminal(event.task, event.rank)
        self.rescue.redo(task, event.reason, retryable=event.retryable)
        self._recover(task.rank)
        task.rank.failures += 1
        if task.rank.failures >= self.settings.max_failures and self._dispensable(task.rank):
            task.rank.retired = True
            why = f"{task.rank.failures} failures in a row, the last: {event.reason}"
            self.rescue.leave(task.rank, why)
            self.dispatch.actions.append(ev.Retire(task.rank.id, why))
        self._alive(task.rank)

    def _dispensable(self, rank: RankState) -> bool:
        """Another ready rank can do each kind that this one does."""
        return not rank.retired and all(self.dispatch.count(kind) > 1 for kind in rank.kinds)

    def _on_skipped(self, event: ev.Skipped) -> None:
        task = self._terminal(event.task, event.rank)
        if task.kind == SINGLE:
            self._observe(task)  # censored: it would have taken at least as long
        for image in task.images:
            self.rescue.image(image)
        self._alive(task.rank)

    def _observe(self, task: TaskState) -> None:
        for image in task.images:
            self.latencies.add(self._now_ns - image.t0_ns)

    def _alive(self, rank: RankState) -> None:
        """What the rank said has been dealt with: it takes more, if it was silent again."""
        self._recover(rank)
        self.dispatch.pump(rank)
        if self._stopping is None:
            self.scheme.rank_free(self)

    # ---- outcomes, and what schemes may ask for (schemes.Core) ---------------

    def accept(self, image: ImageState, task: TaskState, score: Score) -> None:
        """Resolve the image by this answer, now."""
        self._resolve(image, task.source, (task.id,), score, "")

    def reserve(self, image: ImageState, task: TaskState, score: Score, at_ns: int) -> None:
        """Keep the answer; it resolves the image at `at_ns` unless another did before."""
        image.reserve = (score, task)
        self._reserved += 1
        self.later(image, at_ns, Scheduler._use_reserve)

    def later(self, image: ImageState, at_ns: int, call: Later) -> None:
        """Call with the image at `at_ns` if it is unresolved then; a group shares one timer."""
        together = image.group.due.setdefault((at_ns, call), [])
        together.append(image)
        if len(together) == 1:
            self._set_timer(at_ns, partial(self._due, image.group, at_ns, call), image.group)

    def _due(self, group: GroupState, at_ns: int, call: Later) -> None:
        for image in group.due.pop((at_ns, call)):
            if not image.resolved:
                call(self, image)

    def _use_reserve(self, image: ImageState) -> None:
        if image.reserve is not None:
            score, task = image.reserve
            self.accept(image, task, score)

    def error(self, image: ImageState, reason: str) -> None:
        """Give the image up: an error row."""
        self._errors += 1
        self._resolve(image, "error", (), None, reason)

    def _resolve(
        self,
        image: ImageState,
        source: str,
        tasks: tuple[int, ...],
        score: Score | None,
        reason: str,
    ) -> None:
        group = image.group
        image.resolved = True
        outcome = "ok" if score is not None else "error"
        self.dispatch.actions.append(
            ev.Resolve(image.id, source, tasks, group.id, image.cell, score, outcome, reason)
        )
        self.dispatch.resolved(image)
        self.rescue.forget(image)
        self.scheme.resolved(image)
        if image.reserve is not None:
            self._reserved -= 1
        group.unresolved -= 1
        self._unresolved -= 1
        if group.unresolved == 0 and group.closed:
            self._in_flight -= 1
            self._drop_timers(group)

    # ---- timers and the end -------------------------------------------------

    def _set_timer(self, at_ns: int, call: Callable[[], None], group: GroupState | None) -> int:
        timer = self._next_timer
        self._next_timer += 1
        self._timers[timer] = call
        if group is not None:
            group.timers.add(timer)
        self.dispatch.actions.append(ev.SetTimer(timer, max(at_ns, self._now_ns)))
        return timer

    def start_park_timer(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call after park_ns; the result cancels it."""
        timer = self._set_timer(self._now_ns + self.settings.park_ns, call, None)
        return partial(self._cancel_timer, timer)

    def _cancel_timer(self, timer: int) -> None:
        if self._timers.pop(timer, None) is not None:
            self.dispatch.actions.append(ev.CancelTimer(timer))

    def _drop_timers(self, group: GroupState) -> None:
        for timer in sorted(group.timers):
            self._cancel_timer(timer)
        group.timers.clear()

    def _on_timer(self, event: ev.TimerFired) -> None:
        call = self._timers.pop(event.timer, None)
        if call is not None:
            call()

    def _on_stop(self, event: ev.StopRequested) -> None:
        self.stop(event.reason)

    def stop(self, reason: str) -> None:
        """No further sends; what is under way may still answer for `stop_ns`."""
        if self._stopping is not None:
            return
        self._stopping = reason
        self.dispatch.close()
        self._set_timer(self._now_ns + self.settings.stop_ns, self._finish, None)

    def _maybe_finish(self) -> None:
        if self._finished:
            return
        done = self._input_closed and self._unresolved == 0
        if self._stopping is None and not done:
            return
        if not self.dispatch.tasks and not self._reserved:
            self._finish()
        elif self._stopping is None and not self._ending:
            self._ending = True
            self._set_timer(self._now_ns + self.settings.end_ns, self._finish, None)

    def _finish(self) -> None:
        if self._finished:
            return
        self._finished = True
        if self._input_closed and self._unresolved == 0:
            status = ev.COMPLETE_WITH_ERRORS if self._errors else ev.COMPLETE
            self.dispatch.actions.append(ev.Finish(status, ""))
        else:
            self.dispatch.actions.append(ev.Finish(ev.INCOMPLETE, self._stopping or ""))

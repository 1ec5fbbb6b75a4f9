"""The scheduler: handles each event, decides the images' outcomes, and notices the end.

docs/architecture.md lists its eight invariants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from collage_mpi.kinds import SINGLE
from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.dispatch import Dispatch
from collage_mpi.scheduler.endgame import EndGame
from collage_mpi.scheduler.events import Action, Event, Score
from collage_mpi.scheduler.groups import Groups, Timers
from collage_mpi.scheduler.rank_speed import Health, Paces
from collage_mpi.scheduler.ranks import ReadyRanks
from collage_mpi.scheduler.retries import NOBODY, Retries
from collage_mpi.scheduler.schemes import Later, Scheme
from collage_mpi.scheduler.settings import SchedulerSettings
from collage_mpi.scheduler.state import (
    GroupState,
    ImageState,
    RankState,
    TaskState,
    Turn,
)
from collage_mpi.scheduler.transitions import IMAGE, LOST, OPEN, RANK, READY, SILENT


class ProtocolViolation(Exception):
    """The driver broke the contract of the events. This is a defect, never a user's mistake."""


class Scheduler:
    """Feed it events with `handle`; carry out the actions it returns, in order."""

    def __init__(self, settings: SchedulerSettings, scheme: Scheme) -> None:
        self.settings = settings
        self.scheme = scheme
        costs = settings.costs, settings.batch_costs, settings.batch
        health = Health(*costs) if scheme.watches_health else None
        pulls = scheme.assign == "pull"
        bundle = scheme.bundle(settings)
        self.turn = Turn()
        ranks = ReadyRanks(self.turn, health, Paces(*costs) if pulls else None, pulls=pulls)
        self.dispatch = Dispatch(self.turn, ranks, scheme.main, settings.batch, bundle)
        self.timers = Timers(self.turn)
        self.groups = Groups(
            settings,
            self.turn,
            self.dispatch,
            self.timers,
            closed=self._closed,
        )
        self.retries = Retries(self, settings)
        self.endgame = EndGame(self.dispatch, settings.max_attempts) if settings.endgame else None
        self._reported: set[int] = set()
        self._last_image = -1
        self._reserved = 0  # unresolved images with a reserved answer
        self._errors = 0
        self._stopping: str | None = None
        self._ending = False
        self._finished = False
        self._paused = False  # as far as is known, no further image will arrive
        if self.dispatch.bundles is not None and scheme.calibrate:
            self.dispatch.bundles.begin_calibration()
        self._gathers = settings.together and (settings.batch > 1 or bundle is not None)
        self._handlers: dict[type, Callable[..., None]] = {
            ev.RankReady: self._on_rank_ready,
            ev.ImageArrived: self._on_image_arrived,
            ev.InputPaused: self._on_input_paused,
            ev.InputClosed: lambda event: self.groups.end_input(),
            ev.StopRequested: lambda event: self.stop(event.reason),
            ev.SendDone: lambda event: self.dispatch.tasks.send_done(event.tasks),
            ev.Answered: self._on_answered,
            ev.Failed: self._on_failed,
            ev.Skipped: self._on_skipped,
            ev.RankSuspected: self._on_suspected,
            ev.RankLost: self._on_lost,
            ev.Threshold: self._on_threshold,
            ev.TimerFired: lambda event: self.timers.fire(event.timer),
        }

    def handle(self, *events: Event) -> list[Action]:
        """Take one event, or several of the same moment, and return the actions in order.

        Raises:
            ProtocolViolation: time runs backwards, an id is unknown or used twice,
                or an event follows Finish.
        """
        turn, handlers = self.turn, self._handlers
        actions = turn.actions = []
        for event in events:
            if event.now_ns < turn.now_ns:
                raise ProtocolViolation(f"time runs back: {event.now_ns} < {turn.now_ns}")
            if self._finished:
                raise ProtocolViolation(f"event after Finish: {event}")
            turn.now_ns = event.now_ns
            handlers[type(event)](event)
        groups = self.groups
        if self._stopping is None:
            if len(self._reported) >= self.settings.ranks:
                groups.admit(self.retries.silent_tasks)
            if self.endgame is not None and (groups.input_closed or self._paused):
                self.endgame.copy(groups.in_flight.values())
        if turn.released:
            actions.append(ev.Release(tuple(turn.released)))
            turn.released.clear()
        if self._stopping is not None or not groups.unresolved:
            self._maybe_finish()
        return actions

    # ---- ranks --------------------------------------------------------------

    def _on_rank_ready(self, event: ev.RankReady) -> None:
        if event.rank in self._reported:
            raise ProtocolViolation(f"rank {event.rank} is ready twice, or after it was lost")
        rank = RankState(event.rank, event.kinds, event.host, event.credit)
        self._reported.add(rank.id)
        self._enter(rank)
        self.dispatch.pump(rank)

    def _on_suspected(self, event: ev.RankSuspected) -> None:
        rank = self.dispatch.ranks.known.get(event.rank)
        if rank is None or "silent" not in RANK[rank.status] or not rank.outstanding:
            return  # a rank that owes no answer is not silent: its last answer has just come
        rank.status = RANK[rank.status]["silent"]
        self.retries.suspects[rank.id] = rank
        self.retries.leave(rank, event.why)
        self._look_at_open_group()

    def _on_lost(self, event: ev.RankLost) -> None:
        self._reported.add(event.rank)
        rank = self.dispatch.ranks.known.get(event.rank)
        if rank is not None and rank.status != LOST:
            self._lose(rank, event.why)
        if len(self._reported) >= self.settings.ranks and not self._anybody_alive():
            self.stop(NOBODY)

    def _lose(self, rank: RankState, why: str) -> None:
        rank.status = RANK[rank.status]["gone"]
        self.retries.suspects.pop(rank.id, None)
        covered = list(rank.outstanding.values())
        for task in covered:
            self.dispatch.tasks.end(task, "rank lost")
        self.retries.leave(rank, why)
        self.retries.lost(covered, f"rank {rank.id} was lost: {why}")
        self._look_at_open_group()

    def _recover(self, rank: RankState) -> None:
        if rank.status in SILENT:
            rank.status = RANK[rank.status]["heard"]
            del self.retries.suspects[rank.id]
            if rank.status == READY:
                self._enter(rank)

    def _enter(self, rank: RankState) -> None:
        self.dispatch.ranks.enter(rank)
        self.dispatch.pulled.serve(everyone=True)
        self.retries.ranks_changed()

    def _anybody_alive(self) -> bool:
        return any(
            rank.status != LOST and rank.kinds & self.scheme.needs
            for rank in self.dispatch.ranks.known.values()
        )

    # ---- images and groups --------------------------------------------------

    def _on_image_arrived(self, event: ev.ImageArrived) -> None:
        if event.image <= self._last_image:
            raise ProtocolViolation(f"image {event.image} arrived twice or out of order")
        if self.groups.input_closed:
            raise ProtocolViolation(f"image {event.image} arrived after InputClosed")
        self._last_image = event.image + event.length - 1
        if self._paused:
            self._paused = False
            if self.endgame is not None:
                self.endgame.put_off()
        if event.group is not None:
            self.groups.number_from(event.group)
        placed = 0
        while placed < event.length:
            placed += self._place(event, placed)

    def _place(self, event: ev.ImageArrived, placed: int) -> int:
        """Put images of the event, without the first `placed`, into a group.

        Returns:
            How many images the group had room for.
        """
        groups, dispatch = self.groups, self.dispatch
        gathers = dispatch.gathering = self._gathers or dispatch.calibrating
        group = groups.filling or groups.open(event.intended_ns)
        if not group.images:
            self.scheme.group_opened(self, group)
        count = min(event.length - placed, self.settings.group_size - group.size)
        image = groups.place(event.image + placed, group, event.intended_ns, count)
        image.drawn = event.drawn
        if event.fault:
            dispatch.ranks.pools[SINGLE].skip_turn()
            self.error(image, event.fault)
        elif self._stopping is None:
            self.scheme.image_arrived(self, image)
            if not image.tasks:
                self.retries.image(image)
        if group.size == self.settings.group_size:
            groups.close(group)
        dispatch.gathering = False
        if gathers and (groups.batch_is_in or not self._gathers):
            dispatch.flush()
        return count

    def _closed(self, group: GroupState) -> None:
        if self._stopping is None:
            self.scheme.group_closed(self, group)
            for image in list(group.images):
                self.retries.image(image)

    def _look_at_open_group(self) -> None:
        """Check whether the open group's images still wait for something that will come."""
        if self.groups.filling is not None and self._stopping is None:
            for image in list(self.groups.filling.images):
                self.retries.image(image)

    def _on_input_paused(self, event: ev.InputPaused) -> None:
        self._paused = True
        self.groups.pause()

    # ---- tasks --------------------------------------------------------------

    def _terminal(self, task_id: int, rank_id: int, how: str, service_ns: int = 0) -> TaskState:
        """End the task that a terminal event names, and return it."""
        task = self.dispatch.tasks.out.get(task_id)
        if task is None or task.rank.id != rank_id:
            raise ProtocolViolation(f"rank {rank_id} ends task {task_id}, which it does not have")
        self.dispatch.tasks.end(task, how, service_ns)
        return task

    def _on_answered(self, event: ev.Answered) -> None:
        task = self._terminal(event.task, event.rank, "answered", event.compute_ns)
        if len(event.cells) != len(task.items):
            raise ProtocolViolation(
                f"task {task.id} has {len(task.items)} items, its answer {len(event.cells)} cells"
            )
        task.rank.failures = 0
        lacks = None in event.cells
        if lacks:  # the images without an answer need something else than the others
            task.take_apart()
        cells, unread = _without_unread(task, event) if event.unread else (event.cells, ())
        self.scheme.answered(self, task, cells, event.now_ns)
        if lacks:
            self._absent(task, cells)
        if unread:
            self.retries.unread(task, unread)
        self._alive(task.rank)

    def _absent(self, task: TaskState, cells: Sequence[Score | None]) -> None:
        absent = [
            image
            for image, cell in zip(task.images, cells, strict=True)
            if cell is None and not image.resolved
        ]
        if task.kind == self.scheme.main:
            for image in absent:
                image.failures += not task.spare
                self.retries.note(image, task, "the network gave no answer")
        for image in absent:
            self.retries.image(image)

    def _on_failed(self, event: ev.Failed) -> None:
        task = self._terminal(event.task, event.rank, "failed")
        task.rank.failures += not event.of_input
        if task.rank.failures >= self.settings.max_failures and self._dispensable(task.rank):
            task.rank.status = RANK[task.rank.status]["failing"]
            why = f"{task.rank.failures} failures in a row, the last: {event.reason}"
            self.retries.leave(task.rank, why)
            self.turn.actions.append(ev.Retire(task.rank.id, why))
        self.retries.redo(task, event.reason, event.unread)
        self._recover(task.rank)
        self._alive(task.rank)

    def _dispensable(self, rank: RankState) -> bool:
        """Whether another ready rank holds each kind of network that this rank holds."""
        count = self.dispatch.ranks.count
        return rank.status == READY and all(count(kind) > 1 for kind in rank.kinds)

    def _on_skipped(self, event: ev.Skipped) -> None:
        self._alive(self._terminal(event.task, event.rank, "skipped").rank)

    def _alive(self, rank: RankState) -> None:
        """The rank has just ended a task: it recovers if it was silent, and gets more work."""
        if rank.status in SILENT:
            self._recover(rank)
        if rank.messages < rank.credit:
            self.dispatch.pump(rank)
            self.dispatch.pulled.serve()
            if self._stopping is None:
                self.scheme.rank_free(self)

    def _on_threshold(self, event: ev.Threshold) -> None:
        self.scheme.judge_by(event.confidence)
        self.dispatch.end_calibration(bundles=event.confidence is not None)
        self._look_at_open_group()

    # ---- outcomes, and what schemes may ask for (schemes.Core) ---------------

    def accept(self, image: ImageState, task: TaskState, score: Any) -> None:
        """Resolve the image by this answer now; an image that is decided gets its audit from it.

        `score` is a sequence with one score for each image if the image is a run.
        """
        if image.decided_ns is not None:
            self._use_kept(image, other=score)
        else:
            self._resolve(image, task.source, (task.id,), score, "")

    def decide(self, image: ImageState, task: TaskState, score: Any) -> None:
        """Accept this answer; a drawn image is resolved later.

        A drawn image is resolved when the other network has answered too, or cannot answer.
        """
        if not image.drawn:
            self.accept(image, task, score)
            return
        image.decided_ns = self.turn.now_ns
        self.keep(image, task, score)
        asked = any(other.kind == self.dispatch.main for other in image.tasks)
        if image.reserve is not None and not asked:  # nothing is left to wait for but its timer
            self._use_kept(image)

    def reconsider(self, image: ImageState) -> None:
        """Decide again how the image goes on, because what it waited for will not come."""
        self.retries.image(image)

    def reserve(self, image: ImageState, task: TaskState, score: Score, at_ns: int) -> None:
        """Keep the answer. It resolves the image at `at_ns` unless another answer does before."""
        image.status = IMAGE[image.status]["held"]
        image.reserve = (score, task)
        self._reserved += 1
        self.later(image, at_ns, Scheduler._use_reserve)

    def keep(self, image: ImageState, task: TaskState, score: Score) -> None:
        """Keep the answer. It resolves the image only where an error row would."""
        image.backup = (score, task)
        self.retries.image(image)

    def later(self, image: ImageState, at_ns: int, call: Later) -> None:
        """Run `call(self, image)` at `at_ns` if the image is unresolved then.

        The calls of one group with the same time share a timer.
        """
        together = image.group.due.setdefault((at_ns, call), [])
        together.append(image)
        if len(together) == 1:
            self.timers.set(at_ns, partial(self._due, image.group, at_ns, call), image.group)

    def _due(self, group: GroupState, at_ns: int, call: Later) -> None:
        for image in group.due.pop((at_ns, call)):
            if not image.resolved:
                call(self, image)

    def _use_reserve(self, image: ImageState) -> None:
        if image.reserve is not None:
            self._use_kept(image)

    def _use_kept(self, image: ImageState, other: Score | None = None) -> None:
        decided = image.decided_ns is not None
        kept = image.backup or image.reserve
        assert kept is not None
        score, task = kept
        source = task.source if decided else "kept"
        self._resolve(image, source, (task.id,), score, "", other=other)

    def error(self, image: ImageState, reason: str) -> None:
        """Give the image up: it becomes an error row, unless an answer was kept for this case."""
        if image.count > 1:
            for each in image.apart():
                self.error(each, reason)
            return
        if image.backup is not None:
            self._use_kept(image)
            return
        self._errors += 1
        self._resolve(image, "error", (), None, reason)

    def _resolve(
        self,
        image: ImageState,
        source: str,
        tasks: tuple[int, ...],
        score: Any,
        reason: str,
        *,
        other: Score | None = None,
    ) -> None:
        given_up, before = score is None, image.status
        image.status = IMAGE[image.status]["given up" if given_up else "accepted"]
        outcome = "error" if given_up else "ok"
        where = image.group.id, image.cell
        if image.count > 1:
            self.turn.actions.append(ev.ResolveRun(image.id, source, tasks[0], *where, score))
        else:
            resolve = ev.Resolve(image.id, source, tasks, *where, score, outcome, reason)
            if image.drawn:
                resolve = _with_audit(resolve, image, other)
            self.turn.actions.append(resolve)
        self.dispatch.resolved(image)
        if before != OPEN:  # it may be parked or deferred
            self.retries.forget(image)
        if image.reserve is not None:
            self._reserved -= 1
        self.groups.resolved(image)
        self.scheme.resolved(image)

    # ---- timers and the end -------------------------------------------------

    def stop(self, reason: str) -> None:
        """Send nothing more. Tasks under way may still be answered for `stop_ns`."""
        if self._stopping is not None:
            return
        self._stopping = reason
        self.dispatch.close()
        self.timers.start(self.settings.stop_ns, self._finish)

    def _maybe_finish(self) -> None:
        if self._finished:
            return
        if self._stopping is None and not self._done():
            return
        if not self.dispatch.tasks.out and not self._reserved:
            self._finish()
        elif self._stopping is None and not self._ending:
            self._ending = True
            self.timers.start(self.settings.late_ns, self._finish)

    def _done(self) -> bool:
        return self.groups.input_closed and self.groups.unresolved == 0

    def _finish(self) -> None:
        if self._finished:
            return
        self._finished = True
        if self._done():
            status = ev.COMPLETE_WITH_ERRORS if self._errors else ev.COMPLETE
            self.turn.actions.append(ev.Finish(status, ""))
        else:
            self.turn.actions.append(ev.Finish(ev.INCOMPLETE, self._stopping or ""))


def _with_audit(resolve: ev.Resolve, image: ImageState, other: Score | None) -> ev.Resolve:
    """Add to a drawn image's Resolve what the audit found.

    `other` is the second network's answer if the kept answer was accepted.
    """
    if image.decided_ns is not None:
        audited = ev.FAILED if other is None else ev.DONE
        return resolve._replace(audited=audited, other=other, decided_ns=image.decided_ns)
    if image.backup is not None and image.backup[1].id not in resolve.tasks:
        return resolve._replace(audited=ev.DONE, other=image.backup[0])
    return resolve


def _without_unread(
    task: TaskState, event: ev.Answered
) -> tuple[tuple[Score | None, ...], list[tuple[ImageState, ev.Unread]]]:
    """Take the unread images out of the task; the cells of the others, and the unread images."""
    each = list(zip(task.images, event.cells, event.unread, strict=True))
    task.images = [image for image, _, why in each if why is None]
    cells = tuple(cell for _, cell, why in each if why is None)
    return cells, [(image, why) for image, _, why in each if why is not None]

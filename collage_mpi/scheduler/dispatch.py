"""Which rank gets a task, and when the task leaves.

A task is bound to a rank when it is made or, if ranks pull, to the first rank that has room. One
message takes up to `batch` tasks of one kind, and a rank has at most `credit` messages at a time.
Tasks that wait for the same busy rank leave together. While groups come in (`gathering`), a task
waits until there are `batch` tasks of its kind for the rank, or until `flush`. At other times no
task waits for a batch to fill.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from itertools import chain

from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.backlog import PullQueue, has_failed
from collage_mpi.scheduler.bundles import Bundle, BundleQueue
from collage_mpi.scheduler.ranks import ReadyRanks
from collage_mpi.scheduler.state import (
    GroupState,
    ImageState,
    Order,
    RankState,
    TaskState,
    Turn,
)
from collage_mpi.scheduler.tasks import TaskBook
from collage_mpi.scheduler.transitions import CANCELLED, TASK


class RankQueues:
    """Tasks that are bound to a rank and wait until they can be sent to it."""

    def __init__(self, tasks: TaskBook, batch: int) -> None:
        self._tasks, self._batch = tasks, batch
        self._gathered: dict[int, RankState] = {}  # ranks with an incomplete batch

    def add(self, rank: RankState, task: TaskState, *, gather: bool) -> None:
        """Queue the task; with `gather` it first waits until its batch is complete."""
        if not gather:
            rank.queue[task.id] = task
            return
        gathered = rank.gathered.setdefault(task.kind, OrderedDict())
        gathered[task.id] = task
        if len(gathered) < self._batch:
            self._gathered[rank.id] = rank
        else:
            del rank.gathered[task.kind]
            rank.queue.update(gathered)

    def flush(self) -> list[RankState]:
        """Queue all incomplete batches; the ranks that have one."""
        ranks, self._gathered = list(self._gathered.values()), {}
        for rank in ranks:
            for gathered in rank.gathered.values():
                rank.queue.update(gathered)
            rank.gathered.clear()
        return ranks

    def send(self, rank: RankState) -> None:
        """Send the rank's queued tasks, up to its credit."""
        while rank.queue and rank.messages < rank.credit and not self._tasks.closed:
            task = rank.queue.popitem(last=False)[1]
            self._tasks.send(rank, [task] if self._batch == 1 else self._with_others(rank, task))

    def _with_others(self, rank: RankState, task: TaskState) -> list[TaskState]:
        """The task and the tasks of its kind that directly follow it, a batch at most."""
        tasks = [task]
        while rank.queue and len(tasks) < self._batch:
            following = next(iter(rank.queue.values()))
            if following.kind != tasks[0].kind or has_failed(tasks[0]) or has_failed(following):
                break
            del rank.queue[following.id]
            tasks.append(following)
        return tasks


class Dispatch:
    """Chooses ranks for tasks and sends the tasks.

    Attributes:
        main: the kind whose tasks count as an image's attempts.
        gathering: whether new tasks wait until their batch is complete.
    """

    def __init__(
        self,
        turn: Turn,
        ranks: ReadyRanks,
        main: str,
        batch: int,
        bundle: Bundle | None,
    ) -> None:
        """`bundle`: how waiting images leave together; None if each image leaves by itself."""
        self.main, self.ranks = main, ranks
        self.gathering = False
        self.tasks = TaskBook(turn, ranks, main, None if bundle is None else bundle.order.kind)
        self.bundles: BundleQueue | None = None
        if bundle is not None:
            assert ranks.paces is not None
            self.bundles = BundleQueue(self.tasks, ranks, ranks.paces, bundle, main)
        self.pulled = self.bundles or PullQueue(self.tasks, ranks)
        self.turn = turn
        self._bound = RankQueues(self.tasks, batch)
        self._just_made: list[TaskState] = []  # tasks for any rank, made while gathering

    # ---- ranks --------------------------------------------------------------

    def leave(self, rank: RankState) -> list[TaskState]:
        """The rank takes no more work; the unsent tasks that must be moved to other ranks."""
        self.ranks.leave(rank)
        return self.tasks.withdraw(rank.clear()) + self.pulled.stranded(rank.kinds)

    @property
    def calibrating(self) -> bool:
        """Whether a confidence threshold is being chosen."""
        return self.bundles is not None and self.bundles.calibrating

    @property
    def wants_images(self) -> bool:
        """Whether a ready rank of the kind that new images are sent to is idle."""
        bundles = self.bundles
        if bundles and bundles.bundling and self.ranks.has_idle(bundles.bundle.order.kind):
            return True
        return self.ranks.has_idle(self.main)

    def close(self) -> None:
        """Send nothing more, and forget all tasks that wait."""
        self.tasks.closed = True
        for rank in self.ranks.known.values():
            self.tasks.withdraw(rank.clear())
            self.ranks.load_changed(rank)
        self.tasks.withdraw(self.pulled.clear())

    def waiting(self) -> list[TaskState]:
        """All tasks that are not sent yet."""
        bound = chain.from_iterable(rank.waiting() for rank in self.ranks.known.values())
        return [*bound, *self.pulled.waiting()]

    def end_calibration(self, *, bundles: bool) -> None:
        """The threshold is chosen: from now on any image may leave in a bundle.

        If `bundles` is false, images leave in no bundle while a rank takes single images.
        """
        if self.bundles is not None:
            self.bundles.end_calibration(bundles=bundles)
            for rank in sorted(self.ranks.known.values(), key=lambda r: self.ranks.pace_ns(r.id)):
                self.pump(rank)

    def take_apart(self, groups: Iterable[GroupState]) -> list[GroupState]:
        """Split all runs into single images if tasks of the end game cannot hold runs.

        Args:
            groups: all groups with unresolved images.

        Returns:
            The groups, as a list.
        """
        groups = list(groups)
        if self.bundles is not None:
            self.bundles.take_apart()
            for image in [image for group in groups for image in group.images]:
                if not image.resolved:
                    image.apart()
        return groups

    # ---- making tasks -------------------------------------------------------

    def to_next(
        self, order: Order, images: list[ImageState], avoid: Collection[int]
    ) -> TaskState | None:
        """Make a task for the next rank of the kind in turn; None if all are in `avoid`."""
        return self._make(order, images, self.ranks.pools[order.kind].pick_next(avoid))

    def to_spread(self, orders: Sequence[Order], images: list[ImageState]) -> None:
        """Make a task for each order, each for a different rank of the first order's kind."""
        pool = self.ranks.pools[orders[0].kind]
        if self.ranks.pulls:
            for order in orders[: len(pool)]:
                self.to_any(order, images)
            return
        for order, rank in zip(orders, pool.pick_spread(len(orders)), strict=False):
            self._make(order, images, rank)

    def to_least(
        self, order: Order, images: list[ImageState], avoid: Collection[int]
    ) -> TaskState | None:
        """Make a task for the least loaded rank of the kind; None if all are in `avoid`."""
        return self._make(order, images, self.ranks.pools[order.kind].pick_least(avoid))

    def to_idle(
        self, order: Order, images: list[ImageState], avoid: Collection[int]
    ) -> TaskState | None:
        """Make a task for an idle rank of the kind; None if there is none outside `avoid`."""
        if self.tasks.closed:
            return None
        return self._make(order, images, self.ranks.pick_idle(order.kind, avoid))

    def to_best(
        self, order: Order, images: list[ImageState], avoid: Collection[int] = ()
    ) -> TaskState | None:
        """Make a task for the rank that would finish it first; None if all are in `avoid`.

        If the ranks' speed is not watched, the task goes to the least loaded rank or, if ranks
        pull, to the first that has room.
        """
        health = self.ranks.health
        if health is None:
            return (self.to_any if self.ranks.pulls else self.to_least)(order, images, avoid)
        return self._make(order, images, health.pick(order.kind, self.turn.now_ns, avoid))

    def to_any(
        self, order: Order, images: list[ImageState], avoid: Collection[int] = ()
    ) -> TaskState | None:
        """Make a task for the first rank of the kind that has room; None if all are in `avoid`."""
        task = self.pulled.add(order, images, avoid)
        if task is not None and self.gathering:
            self._just_made.append(task)
        elif task is not None:
            self.pulled.offer(task)
        return task

    def _make(
        self, order: Order, images: list[ImageState], rank_id: int | None
    ) -> TaskState | None:
        if rank_id is None:
            return None
        rank = self.ranks.known[rank_id]
        task = self.tasks.make(order, images, rank)
        self._bound.add(rank, task, gather=self.gathering)
        if rank.queue:
            self.pump(rank)
        self.ranks.load_changed(rank)
        return task

    def flush(self) -> None:
        """Let all gathered tasks leave: no further task will join their batches."""
        made, self._just_made = self._just_made, []
        for task in made:
            self.pulled.offer(task)
        for rank in self._bound.flush():
            self.pump(rank)
            if self.ranks.health is not None:
                self.ranks.health.changed(rank)

    def pump(self, rank: RankState) -> None:
        """Send tasks bound to the rank, then tasks for any rank, up to its credit."""
        if rank.messages < rank.credit:
            if rank.queue:
                self._bound.send(rank)
            if self.ranks.pulls:
                while rank.messages < rank.credit and self.pulled.pull(rank):
                    pass

    # ---- what needs no task any more ----------------------------------------

    def resolved(self, image: ImageState) -> None:
        """The image has its outcome: cancel or drop each task that has no unresolved image left."""
        tasks = image.tasks
        if len(tasks) > 1:
            tasks = sorted(tasks, key=lambda task: not task.spare)
        for task in tasks:
            task.pending -= 1
            if task.pending > 0:
                continue
            task.status = TASK[task.status]["moot"]
            if task.status == CANCELLED:
                self.turn.actions.append(ev.Cancel(task.id, task.rank.id))
                if self.ranks.health is not None:
                    self.ranks.health.changed(task.rank)
            elif not self.pulled.forget(task) and task.rank.forget(task):
                self.ranks.load_changed(task.rank)
        image.tasks = []
        self.tasks.release(image)

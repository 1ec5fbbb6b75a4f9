"""Images that wait and were never sent leave together, as one task of another kind."""

from __future__ import annotations

from collections.abc import Collection
from math import ceil, inf
from typing import NamedTuple

from collage_mpi.scheduler.backlog import AGAIN, EVERYTHING, FRESH, LATE, NO_RANKS, PullQueue
from collage_mpi.scheduler.rank_speed import Paces
from collage_mpi.scheduler.ranks import ReadyRanks
from collage_mpi.scheduler.state import ImageState, Order, RankState, TaskState
from collage_mpi.scheduler.tasks import TaskBook


class Bundle(NamedTuple):
    """How images leave together as one task.

    Attributes:
        order: of that task.
        least: images that must wait for it; 1 if no rank takes single images.
        most: images of a task. A rank that is slow beside others takes only full ones, and nothing
            that a quicker one could take.
        beyond_idle: idle ranks are counted off what waits.
        patient: a slow rank takes a bundle only while more images wait than the other ranks would
            answer in the time that the slow rank needs.
    """

    order: Order
    least: int
    most: int
    beyond_idle: bool = False
    patient: bool = False


class BundleQueue(PullQueue):
    """A rank takes first what was sent before; else a bundle, if enough waits; else one image.

    A run leaves in bundles alone, or image by image.

    Attributes:
        calibrating: drawn images alone may leave in a bundle, and have to.
    """

    runs_leave = False

    def __init__(
        self,
        tasks: TaskBook,
        ranks: ReadyRanks,
        paces: Paces,
        batch: int,
        bundle: Bundle,
        main: str,
    ) -> None:
        """`main`: the kind of the images' own tasks, which ranks of known `paces` take."""
        super().__init__(tasks, ranks, batch)
        self.bundle = bundle
        self.calibrating = False
        self._paces = paces
        self._main, self._kind = main, bundle.order.kind
        self._ended = False  # no bundle leaves while a rank takes images by themselves
        self._looked_ns = -1
        self._tried: list[TaskState] = []  # tasks that wait, and a few more, of images that failed

    @property
    def bundling(self) -> bool:
        """Whether what waits leaves together."""
        return not (self._ended and self._ranks.count(self._main))

    @property
    def pairing(self) -> bool:
        """Whether an image that may leave in a bundle leaves in no other way: both networks are to
        classify the images that choose a threshold."""
        return self.calibrating and self._ranks.count(self._kind) > 0

    def end_calibration(self, *, bundles: bool) -> None:
        """From now on any image may leave in a bundle; none while a rank takes images by
        themselves if `bundles` is false. That holds for what waits already, too."""
        self.calibrating, self._ended = False, not bundles
        self._renew()

    def add(
        self, order: Order, images: list[ImageState], avoid: Collection[int] = ()
    ) -> TaskState | None:
        """As of any task."""
        task = super().add(order, images, avoid)
        if task is not None and images[0].tried:
            self._tried.append(task)
        return task

    def offer(self, task: TaskState) -> None:
        """As of any task. At each time one idle rank is looked at: a slow one that has long been
        idle is taken for one of unknown speed, and others may be slow no more by that."""
        now_ns = self._ranks.now_ns
        if self._looked_ns != now_ns:
            self._looked_ns = now_ns
            rank = self._paces.forget_one(now_ns)
            if rank is not None:
                self._ranks.room_changed(rank)
                self.serve()
        super().offer(task)

    def serve(self, *, everyone: bool = False) -> None:
        """What a rank may not take may have changed: ask the ranks with room, the fastest first.

        Slow ranks are asked only if `everyone`: a rank that enters may make others slow. Beside,
        they take whole bundles, and what is barred to all quick ranks, of which there may be fewer
        now.
        """
        main = self.backlogs[self._main]
        self._tried = [task for task in self._tried if task.id in main.tasks]
        for task in self._tried:
            super().offer(task)
        for kind in (self._main, self._kind):
            limit_ns = inf if everyone or not self.bundling else self._paces.limit_ns(kind)
            passed: set[int] = set()
            room = self._ranks.rooms[kind]
            while main.tasks and (rank := room.pick(passed, limit_ns)) is not None:
                if not self.pull(self._ranks.known[rank]):
                    passed.add(rank)
        # Where a pace has changed, a slow rank may leave fewer images to the others than before
        while self.bundle.patient and main.fresh_inputs >= self.bundle.most:
            rank = self._pick_for_bundle()
            if rank is None or not self.pull(self._ranks.known[rank]):
                break

    def take_apart(self) -> None:
        """Of what waits each image has a task of its own."""
        main = self.backlogs[self._main]
        parts: list[TaskState] = []
        for task in main.tasks.values():
            parts += [self._tasks.cut(task, 1) for _ in range(task.inputs - 1)]
        for part in parts:
            main.add(part)
        if parts:
            self._renew()

    def _renew(self) -> None:
        self.backlogs[self._main].renew(lambda task: self._sort(task.attempt, task.images[0]))

    def stranded(self, kinds: Collection[str]) -> list[TaskState]:
        """As of any rank; images that waited for a bundle may have to be sent by themselves."""
        return super().stranded({*kinds, self._main})

    def least(self, rank: int) -> int:
        """Images that must wait for the rank to take a bundle."""
        bundle = self.bundle
        if not self._ranks.count(self._main):
            return 1
        if self.is_slow(self._kind, rank):
            tasks = self._paces.meanwhile(self._kind, rank) if bundle.patient else 1
            return ceil(bundle.most * max(1.0, tasks))
        if self.pairing:
            return 1
        if not bundle.beyond_idle:
            return bundle.least
        limit_ns = self._paces.limit_ns(self._main)
        return bundle.least + self._ranks.rooms[self._main].idle_within(limit_ns)

    def is_slow(self, kind: str, rank: int) -> bool:
        """Whether the rank is slow beside the others of the kind."""
        return self._paces.service_ns(rank) > self._paces.limit_ns(kind)

    def _sort(self, attempt: int, image: ImageState) -> int:
        if attempt > 1 or image.bundled:
            return AGAIN
        alone = self.calibrating and not image.drawn and self._ranks.count(self._main)
        if self.bundling and not alone:
            return FRESH
        return LATE if self.calibrating else AGAIN

    def _may_wait(self, kind: str, avoid: Collection[int], sort: int) -> bool:
        if sort == FRESH and self._ranks.count(self._kind):
            return True
        return super()._may_wait(kind, avoid, sort)

    def _taker(self, task: TaskState) -> int | None:
        fresh = self.bundling and self._sort_of(task) == FRESH
        rank = None
        if not (fresh and self.pairing):
            barred = self.barred(task)
            rank = self._ranks.rooms[task.kind].pick(barred, self._limit_ns(task, barred))
        return self._pick_for_bundle() if rank is None and fresh else rank

    def _fits(self, rank: RankState, task: TaskState) -> bool:
        barred = self.barred(task)
        if rank.id in barred:
            return False
        return self._paces.service_ns(rank.id) <= self._limit_ns(task, barred)

    def _limit_ns(self, task: TaskState, barred: Collection[int]) -> float:
        """No rank slower than this may take the task by itself: a quicker one will."""
        if not self.bundling:
            return inf
        quick = self._paces.has_quick(task.kind, barred)
        return self._paces.limit_ns(task.kind) if quick else inf

    def _next(self, rank: RankState) -> list[TaskState]:
        again = rank.id in self._ranks.rooms[self._main]
        tasks = self._take(self._main, rank, (AGAIN,)) if again else []
        tasks = tasks or self._take_bundles(rank)
        sorts = (AGAIN, LATE) if self.pairing else EVERYTHING
        for kind in self.backlogs:
            if not tasks and rank.id in self._ranks.rooms[kind]:
                tasks = self._take(kind, rank, sorts)
        return tasks

    def _take_bundles(self, rank: RankState) -> list[TaskState]:
        """Up to a batch of them, whole ones if there are several; [] if too little waits."""
        bundle, main, room = self.bundle, self.backlogs[self._main], self._ranks.rooms[self._kind]
        if not self.bundling or rank.id not in room or main.fresh_inputs < self.least(rank.id):
            return []
        share = main.fresh_inputs // (bundle.most * max(1, room.idle))
        tasks: list[TaskState] = []
        most = self._ranks.portion(self._kind, rank.id, self._batch)
        for _ in range(min(most, max(1, share))):
            waited = self._tasks.withdraw(main.take_fresh(bundle.most, self._tasks.cut))
            images = sorted((task.images[0] for task in waited), key=lambda image: image.id)
            for image in images:
                image.bundled = True
            tasks.append(self._tasks.make(bundle.order, images, rank))
        return tasks

    def _pick_for_bundle(self) -> int | None:
        """The rank with room that takes what waits as a bundle, where one does: a quick one, else
        a slow one, which takes only full bundles. Of slow ones the fastest needs the least."""
        waiting, room = self.backlogs[self._main].fresh_inputs, self._ranks.rooms[self._kind]
        quick = room.pick(NO_RANKS, self._paces.limit_ns(self._kind))
        for rank in (quick, *room.fastest()):
            if rank is not None and waiting >= self.least(rank):
                return rank
        return None

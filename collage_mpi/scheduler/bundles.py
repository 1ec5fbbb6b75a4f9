"""Bundles: images that wait and were never sent leave together, as one task of another kind."""

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
    """When and how images leave together as one task.

    Attributes:
        order: kind, source and attempt of that task.
        least: a bundle leaves only if at least so many images wait. If no rank takes single
            images, one image is enough.
        most: images of a full bundle. A slow rank takes only full bundles, and no other task that
            a quicker rank could take.
        patient: a slow rank takes a bundle only while more images wait than the other ranks would
            answer in the time that the slow rank needs.
    """

    order: Order
    least: int
    most: int
    patient: bool


class BundleQueue(PullQueue):
    """A queue whose ranks take first images sent before, then a bundle, then single images.

    A run is split: its images leave in bundles or one by one.

    Attributes:
        calibrating: a confidence threshold is being chosen. Only drawn images may leave in a
            bundle, and they leave in no other way.
    """

    runs_leave = False

    def __init__(
        self,
        tasks: TaskBook,
        ranks: ReadyRanks,
        paces: Paces,
        bundle: Bundle,
        main: str,
    ) -> None:
        """`main`: the kind of the images' own tasks; `paces`: the ranks' service times."""
        super().__init__(tasks, ranks)
        self.bundle = bundle
        self.calibrating = False
        self._paces = paces
        self._main, self._kind = main, bundle.order.kind
        self._ended = False  # no bundle leaves while a rank takes single images
        self._looked_ns = -1
        self._tried: list[TaskState] = []  # waiting tasks of images that failed; some may have left

    @property
    def bundling(self) -> bool:
        """Whether waiting images may leave in bundles."""
        return not (self._ended and self._ranks.count(self._main))

    @property
    def pairing(self) -> bool:
        """Whether fresh images leave only in bundles.

        While a threshold is chosen, both networks must classify the drawn images.
        """
        return self.calibrating and self._ranks.count(self._kind) > 0

    def begin_calibration(self) -> None:
        """From now on fresh images leave only in bundles, until the threshold is chosen."""
        self.calibrating = True

    def end_calibration(self, *, bundles: bool) -> None:
        """The threshold is chosen. From now on any image may leave in a bundle, waiting ones too.

        If `bundles` is false, none does while a rank takes single images.
        """
        self.calibrating, self._ended = False, not bundles
        self._renew()

    def add(
        self, order: Order, images: list[ImageState], avoid: Collection[int] = ()
    ) -> TaskState | None:
        """Add a task as in any queue, and remember the tasks of images that failed before."""
        task = super().add(order, images, avoid)
        if task is not None and images[0].tried:
            self._tried.append(task)
        return task

    def offer(self, task: TaskState) -> None:
        """Offer a task as in any queue, after a look at one idle rank (once for each time stamp).

        The speed of a slow rank that has long been idle is forgotten. This changes the median,
        so other ranks may no longer count as slow.
        """
        now_ns = self._ranks.now_ns
        if self._looked_ns != now_ns:
            self._looked_ns = now_ns
            rank = self._paces.forget_one(now_ns)
            if rank is not None:
                self._ranks.room_changed(rank)
                self.serve()
        super().offer(task)

    def serve(self, *, everyone: bool = False) -> None:
        """Let the ranks with room pull, the fastest first, because the limits may have changed.

        Slow ranks pull only if `everyone`, which is set when a rank enters, as that may make
        other ranks slow. Otherwise slow ranks take only full bundles, and tasks that no quick
        rank may take.
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
        # If a speed has changed, fewer waiting images than before may be enough for a slow rank.
        while self.bundle.patient and main.fresh_inputs >= self.bundle.most:
            rank = self._pick_for_bundle()
            if rank is None or not self.pull(self._ranks.known[rank]):
                break

    def take_apart(self) -> None:
        """Split the waiting runs, so that each image has a task of its own."""
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
        """As in any queue. Images that waited for a bundle may have to be sent as single images."""
        return super().stranded({*kinds, self._main})

    def least(self, rank: int) -> int:
        """How many images must wait before the rank takes a bundle."""
        bundle = self.bundle
        if not self._ranks.count(self._main):
            return 1
        if self.is_slow(self._kind, rank):
            tasks = self._paces.meanwhile(self._kind, rank) if bundle.patient else 1
            return ceil(bundle.most * max(1.0, tasks))
        return 1 if self.pairing else bundle.least

    def is_slow(self, kind: str, rank: int) -> bool:
        """Whether the rank is slow compared with the other ranks of the kind."""
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
        """The service time above which a rank leaves the single image to a quicker rank."""
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
        """Up to a batch of bundles, all full if there are several; [] if too few images wait."""
        bundle, main, room = self.bundle, self.backlogs[self._main], self._ranks.rooms[self._kind]
        if not self.bundling or rank.id not in room or main.fresh_inputs < self.least(rank.id):
            return []
        share = main.fresh_inputs // (bundle.most * max(1, room.idle))
        tasks: list[TaskState] = []
        most = self._paces.portion(self._kind, rank.id)
        for _ in range(min(most, max(1, share))):
            waited = self._tasks.withdraw(main.take_fresh(bundle.most, self._tasks.cut))
            images = sorted((task.images[0] for task in waited), key=lambda image: image.id)
            for image in images:
                image.bundled = True
            tasks.append(self._tasks.make(bundle.order, images, rank))
        return tasks

    def _pick_for_bundle(self) -> int | None:
        """The rank with room that takes the waiting images as a bundle, or None.

        Quick ranks come first. Slow ranks take only full bundles, and the fastest of them needs
        the fewest waiting images.
        """
        waiting, room = self.backlogs[self._main].fresh_inputs, self._ranks.rooms[self._kind]
        quick = room.pick(NO_RANKS, self._paces.limit_ns(self._kind))
        for rank in (quick, *room.fastest()):
            if rank is not None and waiting >= self.least(rank):
                return rank
        return None

"""Retries: the next step for an image whose task failed, was lost with its rank, or is silent.

The first line of this table that applies to an unresolved image decides:

    an answer is reserved for it                      its timer will resolve it
    a task of it is on a rank that is not silent      wait for the task
    the scheme will still make a task for it          wait for that task
    one attempt is left, all others lost their rank   wait until no rank was lost for settle_ns
    attempts are left, and a ready main rank          one more task
    a task of it is on a silent rank                  park the image: the rank may recover
    attempts are left, and a main rank is silent      park the image
    the scheme has no ready and no silent rank        stop the job, to be resumed
    otherwise                                         an error row

The main kind of rank does the retries: single ranks, or collage ranks if the scheme has no single
ranks. Only failures and lost ranks count against max_attempts, silence does not. If several ranks
die at about the same time, each may have been sent the image of the one before although the image
is not the cause. Therefore the last attempt waits until no more ranks are lost.

An image that a host could not read is sent to ranks of other hosts, if there are any. The error
row names the hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import repeat
from typing import Protocol

from collage_mpi.kinds import SINGLE
from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler import schemes
from collage_mpi.scheduler.groups import Timers
from collage_mpi.scheduler.settings import SchedulerSettings
from collage_mpi.scheduler.state import ImageState, Order, RankState, TaskState, Turn
from collage_mpi.scheduler.transitions import (
    ANSWERED,
    DEFERRED,
    IMAGE,
    PARKED,
    RANK,
    RETIRED,
    SILENT,
    SUSPECTED,
)

NOBODY = "no rank is left that could classify an image"
NAMED_HOSTS = 3  # hosts that the reason of an error row names at most


class RetryCore(schemes.Core, Protocol):
    """What retries need of the scheduler."""

    scheme: schemes.Scheme
    turn: Turn
    timers: Timers

    def stop(self, reason: str) -> None:
        """End the job as incomplete."""
        ...

    def error(self, image: ImageState, reason: str) -> None:
        """Give the image up with an error row."""
        ...


class Waiting:
    """Images that wait for a change of the ranks; all of them share one timer."""

    def __init__(self, timers: Timers, over: Callable[[], None]) -> None:
        """`over` is called when the timer fires."""
        self.images: dict[int, ImageState] = {}
        self._timers, self._over = timers, over
        self._cancel: Callable[[], None] | None = None

    def add(self, image: ImageState, delay_ns: int) -> None:
        """Let the image wait. The first image starts the timer, with this delay."""
        self.images[image.id] = image
        if self._cancel is None:
            self._cancel = self._timers.start(delay_ns, self._fired)

    def take(self) -> list[ImageState]:
        """Remove and return all images. The timer goes on until `settle`."""
        images, self.images = list(self.images.values()), {}
        return images

    def forget(self, image: ImageState) -> None:
        """Remove the image, if it waits."""
        if self.images.pop(image.id, None) is not None:
            self.settle()

    def settle(self) -> None:
        """Cancel the timer if no image waits."""
        if not self.images and self._cancel is not None:
            self._cancel()
            self._cancel = None

    def _fired(self) -> None:
        self._cancel = None
        self._over()


class Retries:
    """Decides the next step for each image that no task covers (invariant 4: progress)."""

    def __init__(self, core: RetryCore, settings: SchedulerSettings) -> None:
        self.core = core
        self.max_attempts = settings.max_attempts
        self.suspects: dict[int, RankState] = {}
        self._park_ns, self._settle_ns = settings.park_ns, settings.settle_ns
        self._parked = Waiting(core.timers, self._give_up)  # until a silent rank recovers
        self._deferred = Waiting(core.timers, self._end_deferral)  # until no more ranks are lost
        self._lost_ns = 0  # when the last rank was lost

    # ---- ranks --------------------------------------------------------------

    def leave(self, rank: RankState, why: str) -> None:
        """The rank takes no more work: move its unsent tasks, and retry what a silent rank owes."""
        queued = self.core.dispatch.leave(rank)
        self._recall_retired(rank)
        for task in queued:
            self._move(task)
        if rank.status in SILENT:
            for task in list(rank.outstanding.values()):
                self.redo(task, f"rank {rank.id} is silent: {why}", failed=False)

    def _recall_retired(self, gone: RankState) -> None:
        """Let a retired rank work again for each kind that has no ready rank any more."""
        for kind in gone.kinds:
            if self.core.dispatch.ranks.count(kind) == 0:
                for rank in self.core.dispatch.ranks.known.values():
                    resting = rank.status == RETIRED
                    if resting and kind in rank.kinds and rank is not gone:
                        rank.status = RANK[rank.status]["recalled"]
                        rank.failures = 0
                        self.core.turn.actions.append(ev.Recall(rank.id))
                        self.core.dispatch.ranks.enter(rank)
                        self.core.dispatch.pump(rank)
                        break

    def lost(self, tasks: list[TaskState], why: str) -> None:
        """A rank was lost with these tasks, which have ended: retry their images."""
        self._lost_ns = self.core.turn.now_ns
        for task in tasks:
            if task.kind == self.core.scheme.main:
                for image in task.images:
                    image.losses += 1
            self.redo(task, why)
        self.ranks_changed()

    def silent_tasks(self) -> int:
        """Number of tasks that silent ranks have."""
        return sum(len(rank.outstanding) for rank in self.suspects.values())

    # ---- images -------------------------------------------------------------

    def redo(
        self,
        task: TaskState,
        reason: str,
        unread: Sequence[ev.Unread | None] = (),
        *,
        failed: bool = True,
    ) -> None:
        """Retry the images of a task that failed or was lost, or whose rank is silent.

        Args:
            reason: why, for the images' error rows.
            unread: empty, or why each image could not be read.
            failed: False if the rank is silent, which counts as no failure.
        """
        main = self.core.scheme.main
        images = []
        self.core.dispatch.tasks.take_apart(task)
        for image, why in zip(task.images, unread or repeat(None), strict=False):
            if image.resolved:
                continue
            images.append(image)
            self.note(image, task, reason if why is None else _not_read(image, task, why))
            if failed and task.kind == main and not task.spare:
                image.failures += 1
        # Images of a bundle are retried one by one, if a rank takes single images.
        dispatch = self.core.dispatch
        bundled = dispatch.bundles is not None and dispatch.ranks.count(main) > 0
        if task.kind != main and not bundled and task.attempt < self.max_attempts:
            self._again(task, images)
        for image in images:
            self.image(image)

    def unread(self, task: TaskState, images: Sequence[tuple[ImageState, ev.Unread]]) -> None:
        """Retry the images that a rank could not read, of a task whose others it answered."""
        for image, why in images:
            if not image.resolved:
                self.note(image, task, _not_read(image, task, why))
                image.failures += task.kind == self.core.scheme.main and not task.spare
        for image, _ in images:
            self.image(image)

    def note(self, image: ImageState, task: TaskState, reason: str) -> None:
        """Remember why the image needs another task, in case it becomes an error row."""
        if task.kind == self.core.scheme.main:
            image.tried.add(task.rank.id)
            image.reason = reason
        elif not image.reason:
            image.reason = reason

    def _again(self, task: TaskState, images: list[ImageState]) -> None:
        """Send a collage again, for images with no answer kept and no other copy under way."""
        images = [i for i in images if not i.held and not _covered(i, {task.kind})]
        if not images or self.core.dispatch.tasks.closed:
            return
        order = Order(task.kind, task.source, task.attempt + 1)
        holders = _holders(images)
        if self.core.dispatch.to_best(order, images, {task.rank.id, *holders}) is None:
            self.core.dispatch.to_best(order, images, holders)

    def _move(self, task: TaskState) -> None:
        """Move a task that was never sent to another rank. It is still the same attempt."""
        runs = self.core.dispatch.tasks.take_apart(task)
        for images in [[image] for image in task.images] if runs else [task.images]:
            self._move_images(task, [image for image in images if not image.resolved])

    def _move_images(self, task: TaskState, images: list[ImageState]) -> None:
        if images:
            order = Order(task.kind, task.source, task.attempt)
            avoid = _holders(images).union(*(image.tried for image in images))
            self.core.dispatch.to_best(order, images, avoid)
        for image in images:
            self.image(image)

    def image(self, image: ImageState) -> None:
        """Take the next step for the image, by the table at the top of this module."""
        if image.status in ANSWERED or self.core.dispatch.tasks.closed:
            return
        scheme = self.core.scheme
        if _covered(image, scheme.needs) or scheme.covers_later(self.core, image.group):
            return
        if image.count > 1:
            for each in self.core.dispatch.tasks.apart(image):
                self.image(each)
            return
        failures_left = image.failures < self.max_attempts
        if failures_left and self._losses_may_be_to_blame(image):
            self._defer(image)
            return
        if failures_left and self._retry(image):
            return
        own = any(task.kind in scheme.needs for task in image.tasks)  # on silent ranks
        if own or (failures_left and self._silent(scheme.main)):
            self._park(image)
        elif failures_left and not self._anybody():
            self.core.stop(NOBODY)
        else:
            self.core.error(image, image.reason or f"no {scheme.main} rank is left")

    def _retry(self, image: ImageState) -> bool:
        order, images = self.core.scheme.retry(image), self._together(image)
        holders = _holders(images)
        tried = holders.union(*(image.tried for image in images))
        avoided = [tried, holders]  # if every rank was tried, any ready rank will do
        if image.hosts:
            avoided.insert(0, tried.union(self._at(image.hosts)))
        return any(self.core.dispatch.to_best(order, images, each) for each in avoided)

    def _at(self, hosts: Collection[str]) -> list[int]:
        return [rank.id for rank in self.core.dispatch.ranks.known.values() if rank.host in hosts]

    def _together(self, image: ImageState) -> list[ImageState]:
        """The images to send with this one: another collage takes all of its group in need."""
        if self.core.scheme.main == SINGLE:
            return [image]
        return [i for i in image.group.images if self._in_need(i)]

    def _in_need(self, image: ImageState) -> bool:
        if image.status in ANSWERED or image.failures >= self.max_attempts:
            return False
        return not _covered(image, self.core.scheme.needs)

    def _silent(self, kind: str) -> bool:
        ranks = self.suspects.values()
        return any(kind in rank.kinds and rank.status == SUSPECTED for rank in ranks)

    def _anybody(self) -> bool:
        """Whether a rank that the scheme can use is ready, or silent and may recover."""
        kinds = self.core.scheme.needs
        return any(self.core.dispatch.ranks.count(kind) or self._silent(kind) for kind in kinds)

    # ---- waiting for the ranks ----------------------------------------------

    def _park(self, image: ImageState) -> None:
        if image.status != PARKED:
            image.status = IMAGE[image.status]["silence"]
        self._deferred.forget(image)
        self._parked.add(image, self._park_ns)

    def _defer(self, image: ImageState) -> None:
        if image.status != DEFERRED:
            image.status = IMAGE[image.status]["losses"]
        self._parked.forget(image)
        self._deferred.add(image, self._settled_at_ns() - self._now_ns())

    def forget(self, image: ImageState) -> None:
        """The image is resolved and waits no longer."""
        self._parked.forget(image)
        self._deferred.forget(image)

    def ranks_changed(self) -> None:
        """A rank came, recovered or was lost: decide again about the parked images."""
        self._look_at(self._parked.take())
        self._parked.settle()

    def _end_deferral(self) -> None:
        """Decide again about the deferred images; they wait on if another rank was lost."""
        self._look_at(self._deferred.take())

    def _look_at(self, images: list[ImageState]) -> None:
        """Decide again about images that waited."""
        for image in images:
            if image.status in (PARKED, DEFERRED):
                image.status = IMAGE[image.status]["looked at"]
            self.image(image)

    def _give_up(self) -> None:
        """The parked images have waited long enough for silent ranks."""
        for image in self._parked.take():
            if image.status != PARKED:
                continue
            if any(self.core.dispatch.ranks.count(kind) for kind in self.core.scheme.needs):
                self.core.error(
                    image, image.reason or "every rank that could classify it is silent"
                )
            else:
                self.core.stop("every rank that could classify an image is silent")

    def _losses_may_be_to_blame(self, image: ImageState) -> bool:
        last = image.failures == self.max_attempts - 1
        return (
            last and 0 < image.failures <= image.losses and self._settled_at_ns() > self._now_ns()
        )

    def _settled_at_ns(self) -> int:
        return self._lost_ns + self._settle_ns

    def _now_ns(self) -> int:
        return self.core.turn.now_ns


def _covered(image: ImageState, kinds: Collection[str]) -> bool:
    """Whether the image has a task of one of these kinds on a rank that is not silent."""
    for task in image.tasks:  # noqa: SIM110 - `any` takes three times as long
        if task.rank.status not in SILENT and task.kind in kinds:
            return True
    return False


def _holders(images: list[ImageState]) -> set[int]:
    return {task.rank.id for image in images for task in image.tasks}


def _not_read(image: ImageState, task: TaskState, why: ev.Unread) -> str:
    """The reason, after the names of the hosts that could not read the image so far."""
    if task.rank.host not in image.hosts:
        image.hosts += (task.rank.host,)
    named = ", ".join(host.partition(".")[0] for host in image.hosts[:NAMED_HOSTS])
    more = len(image.hosts) - NAMED_HOSTS
    return f"on {named}{f' and {more} more' if more > 0 else ''}: {why.reason}"

"""The end game: when no image is left to come, idle ranks copy those that are still out.

Robust dynamic load balancing (rDLB; Mohammed, Cavelan and Ciorba, arXiv 1905.08073). A rank with
nothing to do gets the oldest of the images that have the fewest copies, so that a slow rank holds
nobody. A copy is of the scheme's main kind, has an attempt of its own and no part in max_attempts.
An image that has failed or lost a rank gets none: it might take the idle ranks along.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heapreplace
from operator import itemgetter

from collage_mpi.kinds import SINGLE
from collage_mpi.scheduler.dispatch import Dispatch
from collage_mpi.scheduler.state import GroupState, ImageState, Order

MOST_COPIES = 8  # of an image: all of them on slow ranks is as good as impossible
MOST_ATTEMPTS = 255  # one byte of a row


class EndGame:
    """Copies for idle ranks, O(log images) each."""

    def __init__(self, dispatch: Dispatch, max_attempts: int) -> None:
        self._dispatch = dispatch
        self._most_sends = MOST_ATTEMPTS - max_attempts  # those that are left are for retries
        # heap of (copies, number, image) once it begins
        self._order: list[tuple[int, int, ImageState]] | None = None
        self._cuts = 0  # of runs, by then

    def put_off(self) -> None:
        """Images come after all: the next end begins with all that is out then."""
        self._order = None

    def copy(self, groups: Iterable[GroupState]) -> None:
        """No further image is left to come: a copy to each rank that is idle.

        `groups`: those with unresolved images, in order.
        """
        if self._order is None or self._cuts < self._dispatch.tasks.cuts:
            groups = self._dispatch.take_apart(groups)
            found = [(image.copies, image.id, image) for group in groups for image in group.images]
            self._order, self._cuts = sorted(found, key=itemgetter(0, 1)), self._dispatch.tasks.cuts
        while self._order and self._dispatch.ranks.has_idle(self._dispatch.main):
            copies, number, image = self._order[0]
            if image.copies > copies:  # with another of its group
                heapreplace(self._order, (image.copies, number, image))
            elif not self._wants_copy(image) or not self._copy(image):
                heappop(self._order)

    def _wants_copy(self, image: ImageState) -> bool:
        well = not image.failures and not image.losses
        few = image.copies < MOST_COPIES and image.sends < self._most_sends
        tasks = image.tasks  # none of one that is resolved
        if self._dispatch.bundles is not None:  # what waits does so for a bundle, or a quicker rank
            tasks = [task for task in tasks if task.sent]
        return well and few and bool(tasks)

    def _copy(self, image: ImageState) -> bool:
        """Whether an idle rank took it."""
        main, images = self._dispatch.main, [image]
        if main == SINGLE:
            source = "endgame"
        else:  # as any collage, of whatever else of its group is still out
            source, images = main, [i for i in image.group.images if self._wants_copy(i)]
        avoid = {task.rank.id for i in images for task in i.tasks}
        avoid.update(*(i.tried for i in images))
        attempt = max(i.sends for i in images) + 1
        order = Order(main, source, attempt, spare=True)
        if self._dispatch.to_idle(order, images, avoid) is None:
            return False
        for each in images:
            each.copies += 1
        return True

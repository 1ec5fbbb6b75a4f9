"""The end game: when no image is left to come, idle ranks copy those that are still out.

Owns: which image gets the next copy.
Does not know: how an image's first tasks are made, second chances.

Robust dynamic load balancing (rDLB; Mohammed, Cavelan and Ciorba, arXiv 1905.08073). A rank with
nothing to do gets the oldest of the images that have the fewest copies, so that a slow rank holds
nobody. A copy is of the scheme's main kind, has an attempt of its own and no part in max_attempts.
An image that has failed or lost a rank gets none: it might take the idle ranks along.
"""

from __future__ import annotations

from heapq import heappop, heapreplace

from collage_mpi.kinds import SINGLE
from collage_mpi.scheduler.dispatch import Dispatch, Order
from collage_mpi.scheduler.state import ImageState

MOST_COPIES = 8  # of an image: all of them on slow ranks is as good as impossible
MOST_ATTEMPTS = 255  # one byte of a row


class EndGame:
    """Copies for idle ranks, O(log images) each."""

    def __init__(self, dispatch: Dispatch, max_attempts: int) -> None:
        self._dispatch = dispatch
        self._most_sends = MOST_ATTEMPTS - max_attempts  # those that are left are for retries
        self._unresolved: dict[int, ImageState] = {}
        self._order: list[tuple[int, int]] | None = None  # heap of (copies, image) once it begins

    def arrived(self, image: ImageState) -> None:
        """It may need a copy."""
        self._unresolved[image.id] = image
        self._order = None  # a pause is over: the next one begins with all that is out then

    def resolved(self, image: ImageState) -> None:
        """It needs none."""
        self._unresolved.pop(image.id, None)

    def copy(self) -> None:
        """No further image is left to come: a copy to each rank that is idle."""
        if self._order is None:
            self._order = [(0, number) for number in sorted(self._unresolved)]
        while self._order and self._dispatch.has_idle(self._dispatch.main):
            copies, number = self._order[0]
            image = self._unresolved.get(number)
            if image is not None and image.copies > copies:  # with another of its group
                heapreplace(self._order, (image.copies, number))
            elif image is None or not self._wants_copy(image) or not self._copy(image):
                heappop(self._order)

    def _wants_copy(self, image: ImageState) -> bool:
        well = not image.resolved and not image.failures and not image.losses
        few = image.copies < MOST_COPIES and image.sends < self._most_sends
        return well and few and bool(image.tasks)

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

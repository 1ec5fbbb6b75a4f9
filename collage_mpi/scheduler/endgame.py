"""The end game: when no new image is left, idle ranks get copies of images still being computed.

This is robust dynamic load balancing (rDLB; Mohammed, Cavelan and Ciorba, arXiv 1905.08073). An
idle rank gets the oldest of the images with the fewest copies, so that the job does not wait for a
slow rank. A copy is a task of the scheme's main kind with an attempt number of its own. It does not
count against max_attempts. An image that has failed, or whose rank was lost, gets no copy, because
it might make the idle ranks fail too.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heapreplace
from operator import itemgetter

from collage_mpi.kinds import SINGLE
from collage_mpi.scheduler.dispatch import Dispatch
from collage_mpi.scheduler.state import GroupState, ImageState, Order

MOST_COPIES = 8  # of an image: it is very unlikely that all of them are on slow ranks
MOST_ATTEMPTS = 255  # the largest attempt number: a row stores it in one byte


class EndGame:
    """Makes copies for idle ranks, in O(log images) each."""

    def __init__(self, dispatch: Dispatch, max_attempts: int) -> None:
        self._dispatch = dispatch
        self._most_sends = MOST_ATTEMPTS - max_attempts  # the other numbers are kept for retries
        # heap of (copies, number, image); None until the end game begins
        self._order: list[tuple[int, int, ImageState]] | None = None
        self._cuts = 0  # how many runs were cut when the heap was made

    def put_off(self) -> None:
        """Images have arrived after all: start anew, with the images of that time, at the end."""
        self._order = None

    def copy(self, groups: Iterable[GroupState]) -> None:
        """Send a copy to each idle rank.

        Args:
            groups: all groups with unresolved images, in order.
        """
        if self._order is None or self._cuts < self._dispatch.tasks.cuts:
            groups = self._dispatch.take_apart(groups)
            found = [(image.copies, image.id, image) for group in groups for image in group.images]
            self._order, self._cuts = sorted(found, key=itemgetter(0, 1)), self._dispatch.tasks.cuts
        while self._order and self._dispatch.ranks.has_idle(self._dispatch.main):
            copies, number, image = self._order[0]
            if image.copies > copies:  # it was copied together with another image of its group
                heapreplace(self._order, (image.copies, number, image))
            elif not self._wants_copy(image) or not self._copy(image):
                heappop(self._order)

    def _wants_copy(self, image: ImageState) -> bool:
        well = not image.failures and not image.losses
        few = image.copies < MOST_COPIES and image.sends < self._most_sends
        tasks = image.tasks  # empty if the image is resolved
        if self._dispatch.bundles is not None:  # waiting tasks wait for a bundle or a quicker rank
            tasks = [task for task in tasks if task.sent]
        return well and few and bool(tasks)

    def _copy(self, image: ImageState) -> bool:
        """Send a copy to an idle rank; False if no rank may take it."""
        main, images = self._dispatch.main, [image]
        if main == SINGLE:
            source = "endgame"
        else:  # a copied collage holds all images of its group that are still out
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

"""Schemes with copies of an image: at once, or when the first task is late."""

from __future__ import annotations

from collections import OrderedDict

from collage_mpi.errors import UsageError
from collage_mpi.kinds import SINGLE
from collage_mpi.scheduler.schemes.base import (
    ASSIGNED,
    HEDGE,
    PLAIN,
    REPLICA,
    Core,
    Scheme,
    SchemeSettings,
    register,
)
from collage_mpi.scheduler.state import ImageState


@register
class ReplicateScheme(Scheme):
    """Sends every image to two single ranks; the first answer counts.

    The first copy goes to the same rank as without further copies, so that schemes are compared on
    the same injected delays: with 2N ranks, image i goes to ranks i and N + i. With `pull` any
    different ranks take the copies.
    """

    name = "replicate"
    takes = frozenset({"assign"})
    assigns = ("turn", "pull")
    replicas = 2

    @property
    def label(self) -> str:
        """As shown in tables and legends."""
        return f"{self.name} {self.replicas}" + ASSIGNED[self.assign]

    def image_arrived(self, core: Core, image: ImageState) -> None:
        """Send all copies at once."""
        core.dispatch.to_spread([PLAIN, *[REPLICA] * (self.replicas - 1)], [image])


@register
class HedgeScheme(Scheme):
    """Sends a second copy to an idle rank when the first answer is late.

    These are the hedged requests of Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013. If no
    rank is idle, a late image gets its copy when a rank becomes idle.
    """

    name = "hedge"
    takes = frozenset({"assign", "hedge_ns"})

    def __init__(self, settings: SchemeSettings) -> None:
        super().__init__(settings)
        if settings.hedge_ns is None:
            raise UsageError(f"scheme {self.name} needs a time: --hedge-ms 150")
        self._after_ns = settings.hedge_ns
        self._late: OrderedDict[int, ImageState] = OrderedDict()

    @property
    def label(self) -> str:
        """As shown in tables and legends."""
        return f"{super().label} after {self._after_ns / 1e6:g} ms"

    def image_arrived(self, core: Core, image: ImageState) -> None:
        """Make the first task, and set the time of the second."""
        super().image_arrived(core, image)
        core.later(image, image.t0_ns + self._after_ns, self._is_late)

    def _is_late(self, core: Core, image: ImageState) -> None:
        self._late[image.id] = image
        self.rank_free(core)

    def rank_free(self, core: Core) -> None:
        """Send copies of the late images, oldest first, while ranks are idle."""
        copied, dispatch = [], core.dispatch
        for image in self._late.values():
            if not dispatch.ranks.has_idle(SINGLE):
                break
            avoid = {task.rank.id for task in image.tasks} | image.tried
            if dispatch.to_idle(HEDGE, [image], avoid) is not None:
                copied.append(image.id)
        for image_id in copied:
            del self._late[image_id]

    def resolved(self, image: ImageState) -> None:
        """The image needs no copy any more."""
        self._late.pop(image.id, None)

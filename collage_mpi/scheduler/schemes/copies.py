"""Schemes with copies of an image: at once, when the first task is late, or with its group."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from collage_mpi.errors import UsageError
from collage_mpi.kinds import BACKUP, SINGLE
from collage_mpi.scheduler.policies import Delay
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
from collage_mpi.scheduler.state import GroupState, ImageState, Order

BATCH = Order(BACKUP, BACKUP)


@register
class ReplicateScheme(Scheme):
    """Sends every image to several single ranks; the first answer counts.

    The first copy goes to the same rank as without further copies, so that schemes are compared on
    the same injected delays: with 2N ranks, image i goes to ranks i and N + i. With `pull` any
    different ranks take the copies.
    """

    name = "replicate"
    takes = frozenset({"assign", "replicas"})
    assigns = ("turn", "pull")
    mark = ("#D55E00", "s")

    def __init__(self, settings: SchemeSettings) -> None:
        super().__init__(settings)
        self._orders = [PLAIN, *[REPLICA] * (settings.replicas - 1)]

    @property
    def label(self) -> str:
        """As shown in tables and legends."""
        return f"{self.name} {len(self._orders)}" + ASSIGNED[self.assign]

    def image_arrived(self, core: Core, image: ImageState) -> None:
        """Send all copies at once."""
        core.dispatch.to_spread(self._orders, [image])


class Hedger:
    """Sends second copies of late images to idle single ranks, within a budget.

    These are the hedged requests of Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013. If no
    rank is idle, a late image gets its copy when a rank becomes idle.

    Args:
        delay: time from the image's t0 until it is late.
        budget: most copies per image on average, 0..1.
    """

    def __init__(self, delay: Delay, budget: float) -> None:
        self.delay, self.budget = delay, budget
        self._images = self._hedges = 0
        self._late: OrderedDict[int, ImageState] = OrderedDict()

    @property
    def label(self) -> str:
        """As shown in tables and legends."""
        return f"after {self.delay.name}, at most {self.budget:.0%}"

    def watch(self, core: Core, image: ImageState) -> None:
        """Set the time at which the image is late."""
        self._images += 1
        delay_ns = self.delay.ns(core.latencies)
        if delay_ns is not None:
            core.later(image, image.t0_ns + delay_ns, self._is_late)

    def _is_late(self, core: Core, image: ImageState) -> None:
        self._late[image.id] = image
        self.copy(core)

    def copy(self, core: Core) -> None:
        """Send copies of the late images, oldest first, while ranks are idle."""
        copied, dispatch = [], core.dispatch
        for image in self._late.values():
            spent = self._hedges + 1 > self.budget * self._images
            if spent or not dispatch.ranks.has_idle(SINGLE):
                break
            avoid = {task.rank.id for task in image.tasks} | image.tried
            if dispatch.to_idle(HEDGE, [image], avoid) is not None:
                self._hedges += 1
                copied.append(image.id)
        for image_id in copied:
            del self._late[image_id]

    def forget(self, image: ImageState) -> None:
        """The image needs no copy any more."""
        self._late.pop(image.id, None)


@register
class HedgeScheme(Scheme):
    """Sends a second copy to an idle rank when the first is late, within a budget.

    A class that inherits from another scheme too adds these copies to the other scheme.
    """

    name = "hedge"
    takes = frozenset({"assign", "hedge_delay", "hedge_budget"})
    mark = ("#E69F00", "D")

    def __init__(self, settings: SchemeSettings) -> None:
        super().__init__(settings)
        if settings.hedge_delay is None:
            raise UsageError(f"scheme {self.name} needs --hedge-ms or --hedge-quantile")
        self.hedger = Hedger(settings.hedge_delay, settings.hedge_budget)

    @property
    def label(self) -> str:
        """As shown in tables and legends."""
        return f"{super().label} {self.hedger.label}"

    def image_arrived(self, core: Core, image: ImageState) -> None:
        """Make the first task, and set the time of the second."""
        super().image_arrived(core, image)
        self.hedger.watch(core, image)

    def rank_free(self, core: Core) -> None:
        """Send copies, because a rank may be idle."""
        self.hedger.copy(core)

    def resolved(self, image: ImageState) -> Iterable[ImageState]:
        """The image needs no copy any more."""
        self.hedger.forget(image)
        return super().resolved(image)


@register
class BatchBackupScheme(Scheme):
    """A single task for each image at once, and the full group as a batch; the first answer counts.

    The backup rank holds the single network or a cheaper one. Images that are resolved before the
    batch leaves are left out of it.
    """

    name = "batch-backup"
    needs = frozenset({SINGLE, BACKUP})
    mark = ("#D55E00", "P")

    def group_closed(self, core: Core, group: GroupState) -> None:
        """Send the unresolved images to the best backup rank."""
        images = [image for image in group.images if not image.resolved]
        if images:
            core.dispatch.to_best(BATCH, images)

    def covers_later(self, core: Core, group: GroupState) -> bool:
        """Whether the group is open, so that its batch is still to be made."""
        return not group.closed and core.dispatch.ranks.count(BACKUP) > 0

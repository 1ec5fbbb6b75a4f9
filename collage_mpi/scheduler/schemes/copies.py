"""Copies of an image on further ranks: at once, when the first is late, or with all its group."""

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
    """Every image to several single ranks; the first answer wins.

    The first copy goes where it would go without the others, so that schemes compare on
    the same draws: of 2N ranks, image i to ranks i and N + i. Or they are pulled, by as many
    different ranks.
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
        """All copies at once."""
        core.dispatch.to_spread(self._orders, [image])


class Hedger:
    """Second copies to idle single ranks for images that are late, within a budget.

    Hedged requests of Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013. An image
    that is late while no rank is idle gets its copy when one becomes so.

    Args:
        delay: since the image's t0 until it counts as late.
        budget: copies allowed per image so far, 0..1.
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
        """The image's first copy has left: set a time for the second."""
        self._images += 1
        delay_ns = self.delay.ns(core.latencies)
        if delay_ns is not None:
            core.later(image, image.t0_ns + delay_ns, self._is_late)

    def _is_late(self, core: Core, image: ImageState) -> None:
        self._late[image.id] = image
        self.copy(core)

    def copy(self, core: Core) -> None:
        """Copies of the late images, oldest first, while ranks are idle."""
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
        """It is late no more."""
        self._late.pop(image.id, None)


@register
class HedgeScheme(Scheme):
    """A second copy to an idle rank once the first is late, within a budget.

    Beside another scheme it adds the copies to it.
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
        """The first copy, and a time for the second."""
        super().image_arrived(core, image)
        self.hedger.watch(core, image)

    def rank_free(self, core: Core) -> None:
        """An idle rank may take a copy."""
        self.hedger.copy(core)

    def resolved(self, image: ImageState) -> Iterable[ImageState]:
        """Nobody waits for a copy of it."""
        self.hedger.forget(image)
        return super().resolved(image)


@register
class BatchBackupScheme(Scheme):
    """Singles at once, and the group again as one batch when it is full; the first answer wins.

    The backup rank holds the single network, or a cheaper one. What is resolved before the batch
    leaves is left out of it.
    """

    name = "batch-backup"
    needs = frozenset({SINGLE, BACKUP})
    mark = ("#D55E00", "P")

    def group_closed(self, core: Core, group: GroupState) -> None:
        """The images not yet resolved, to the best backup rank."""
        images = [image for image in group.images if not image.resolved]
        if images:
            core.dispatch.to_best(BATCH, images)

    def covers_later(self, core: Core, group: GroupState) -> bool:
        """The batch of an open group is still to come."""
        return not group.closed and core.dispatch.ranks.count(BACKUP) > 0

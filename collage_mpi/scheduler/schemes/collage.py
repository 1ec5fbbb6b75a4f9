"""The group's collage beside its singles, alone, or with second copies of what is late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.scheduler.events import Score
from collage_mpi.scheduler.schemes.base import WHOLE, Core, Scheme, SchemeSettings, register
from collage_mpi.scheduler.schemes.copies import HedgeScheme
from collage_mpi.scheduler.state import GroupState, ImageState, Order, TaskState


@register
class CollageScheme(Scheme):
    """Singles at once, and the group's collage when the group is full.

    arXiv 1904.12222; `collage_copies` > 1 sends the same collage to several ranks. With
    placement `fastest`, where ranks hold both networks, it goes to those that would finish it
    first when the group begins, and the group's singles to the others.
    """

    name = "collage"
    needs = frozenset({SINGLE, COLLAGE})
    takes = frozenset({"assign", "policy", "collage_copies", "placement"})
    mark = ("#0072B2", "^")

    def __init__(self, settings: SchemeSettings) -> None:
        super().__init__(settings)
        self.policy = settings.policy
        self.copies = settings.collage_copies
        self.fastest = settings.placement == "fastest"

    @property
    def label(self) -> str:
        """As shown in tables and legends."""
        return super().label + (", fastest" if self.fastest else "")

    @property
    def watches_health(self) -> bool:
        """Whether it needs to know how fast the ranks have been lately."""
        return self.fastest or super().watches_health

    def group_opened(self, core: Core, group: GroupState) -> None:
        """The fastest ranks are kept for the collage."""
        if self.fastest:
            group.apart = frozenset(core.dispatch.ranks.first_to_finish(COLLAGE, self.copies))

    def group_closed(self, core: Core, group: GroupState) -> None:
        """The images not yet resolved, as one collage, to the best collage ranks, or to the
        first that have room."""
        images = [image for image in group.images if not image.resolved]
        if images and self.assign == "pull" and not self.fastest:
            core.dispatch.to_spread([WHOLE] * self.copies, images)
            return
        taken: list[int] = []
        while images and len(taken) < self.copies:
            task = core.dispatch.to_best(WHOLE, images, taken)
            if task is None:
                return
            taken.append(task.rank.id)

    def answered(
        self,
        core: Core,
        task: TaskState,
        cells: Sequence[Score | None],
        now_ns: int,
        evidence: Any = None,
    ) -> None:
        """A collage's cells count when the policy says so; absent ones never."""
        if task.kind != COLLAGE:
            super().answered(core, task, cells, now_ns)
            return
        for image, cell in zip(task.images, cells, strict=True):
            if cell is None or image.resolved:
                continue
            at_ns = self.policy.accept_at_ns(image.t0_ns, now_ns, cell, core.latencies)
            if at_ns is None:
                core.keep(image, task, cell)
            elif at_ns <= now_ns:
                core.accept(image, task, cell)
            elif image.reserve is None:
                core.reserve(image, task, cell, at_ns)

    def covers_later(self, core: Core, group: GroupState) -> bool:
        """The collage of an open group is still to come."""
        return not group.closed and core.dispatch.ranks.count(COLLAGE) > 0


@register
class CollageOnlyScheme(CollageScheme):
    """Every image by its cell of the collage alone: the cheapest, and the least accurate.

    What a collage leaves absent, or a failed one would have held, goes out again as another
    collage of its own.
    """

    name = "collage-only"
    needs = frozenset({COLLAGE})
    takes = frozenset({"assign", "collage_copies", "placement"})
    assigns = ("turn", "pull")
    mark = ("#56B4E9", "v")
    main = COLLAGE

    def image_arrived(self, core: Core, image: ImageState) -> None:
        """Its group's collage will cover it."""

    def retry(self, image: ImageState) -> Order:
        """Another collage."""
        return Order(COLLAGE, COLLAGE, image.sends + 1)


@register
class CollageHedgeScheme(HedgeScheme, CollageScheme):
    """A collage, and a second single copy of what nobody has answered in time.

    An image whose single and whose collage are late goes to an idle single rank; so does
    one whose cell is held back by the accept policy.
    """

    name = "collage-hedge"
    needs = CollageScheme.needs
    takes = HedgeScheme.takes | CollageScheme.takes
    mark = ("#0072B2", "<")

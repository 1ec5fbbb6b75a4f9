"""Schemes with a collage of each group: beside single tasks, or alone."""

from __future__ import annotations

from collections.abc import Sequence

from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.scheduler.events import Score
from collage_mpi.scheduler.schemes.base import WHOLE, Core, Scheme, SchemeSettings, register
from collage_mpi.scheduler.state import GroupState, ImageState, Order, TaskState


@register
class CollageScheme(Scheme):
    """A single task for each image at once, and a collage of the group when the group is full.

    This is the scheme of arXiv 1904.12222. `collage_copies` > 1 sends the same collage to several
    ranks. With placement `fastest` ranks hold both networks: the collage goes to the ranks that
    would finish it first at the time when the group is opened, and the single tasks to the others.
    """

    name = "collage"
    needs = frozenset({SINGLE, COLLAGE})
    takes = frozenset({"assign", "policy", "collage_copies", "placement"})

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
        """Whether it needs to know which rank would finish a task first."""
        return self.fastest or super().watches_health

    def group_opened(self, core: Core, group: GroupState) -> None:
        """Keep the fastest ranks for the collage."""
        if self.fastest:
            group.apart = frozenset(core.dispatch.ranks.first_to_finish(COLLAGE, self.copies))

    def group_closed(self, core: Core, group: GroupState) -> None:
        """Send the unresolved images as one collage to the best ranks, or the first with room."""
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
    ) -> None:
        """A cell counts from the time that the policy says; a cell without an answer never does."""
        if task.kind != COLLAGE:
            super().answered(core, task, cells, now_ns)
            return
        for image, cell in zip(task.images, cells, strict=True):
            if cell is None or image.resolved:
                continue
            at_ns = self.policy.accept_at_ns(image.t0_ns, now_ns, cell)
            if at_ns is None:
                core.keep(image, task, cell)
            elif at_ns <= now_ns:
                core.accept(image, task, cell)
            elif image.reserve is None:
                core.reserve(image, task, cell, at_ns)

    def covers_later(self, core: Core, group: GroupState) -> bool:
        """Whether the group is open, so that its collage is still to be made."""
        return not group.closed and core.dispatch.ranks.count(COLLAGE) > 0


@register
class CollageOnlyScheme(CollageScheme):
    """Only the collage of each group, without single tasks: the cheapest, and the least accurate.

    Images that a collage did not answer, and images of a failed collage, are sent again as another
    collage.
    """

    name = "collage-only"
    needs = frozenset({COLLAGE})
    takes = frozenset({"assign", "collage_copies", "placement"})
    assigns = ("turn", "pull")
    main = COLLAGE

    def image_arrived(self, core: Core, image: ImageState) -> None:
        """Make no task: the group's collage will cover the image."""

    def retry(self, image: ImageState) -> Order:
        """The next task to try: another collage."""
        return Order(COLLAGE, COLLAGE, image.sends + 1)

"""The group's collage beside its singles, alone, or with second copies of what is late.

Owns: schemes `collage`, `collage-only` and `collage-hedge`.
Does not know: when a collage's answer counts (the policies), credit, queues, lost ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collage_mpi.errors import UsageError
from collage_mpi.scheduler.dispatch import Order
from collage_mpi.scheduler.events import Score
from collage_mpi.scheduler.policies import AcceptPolicy, First
from collage_mpi.scheduler.schemes.base import COLLAGE, SINGLE, WHOLE, Core, Scheme
from collage_mpi.scheduler.schemes.copies import Hedger
from collage_mpi.scheduler.state import GroupState, ImageState, TaskState


class CollageScheme(Scheme):
    """Singles at once, and the group's collage when the group is full.

    arXiv 1904.12222; `copies` > 1 sends the same collage to several ranks. With `fastest`,
    where ranks hold both networks, it goes to those that would finish it first when the
    group begins, and the group's singles to the others.
    """

    name = "collage"
    kinds = frozenset({SINGLE, COLLAGE})

    def __init__(
        self, policy: AcceptPolicy, copies: int = 1, assign: str = "turn", fastest: bool = False
    ) -> None:
        super().__init__(assign)
        if copies < 1:
            raise UsageError(f"collage copies is {copies}; at least 1 is needed")
        self.policy = policy
        self.copies = copies
        self.fastest = fastest

    @property
    def label(self) -> str:
        """As shown in tables and legends."""
        return super().label + (", fastest" if self.fastest else "")

    @property
    def watches_health(self) -> bool:
        """Whether it needs to know how fast the ranks are of late."""
        return self.fastest or super().watches_health

    def group_opened(self, core: Core, group: GroupState) -> None:
        """The fastest ranks are kept for the collage."""
        if self.fastest:
            group.apart = frozenset(core.dispatch.first_to_finish(COLLAGE, self.copies))

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
            if at_ns <= now_ns:
                core.accept(image, task, cell)
            elif image.reserve is None:
                core.reserve(image, task, cell, at_ns)

    def covers_later(self, core: Core, group: GroupState) -> bool:
        """The collage of an open group is still to come."""
        return not group.closed and core.dispatch.has_rank(COLLAGE)


class CollageOnlyScheme(CollageScheme):
    """Every image by its cell of the collage alone: the cheapest, and the least accurate.

    What a collage leaves absent, or a failed one would have held, goes out again as another
    collage of its own.
    """

    name = "collage-only"
    kinds = frozenset({COLLAGE})
    main = COLLAGE

    def __init__(self, copies: int = 1, fastest: bool = False, assign: str = "turn") -> None:
        super().__init__(First(), copies, assign, fastest)

    def image_arrived(self, core: Core, image: ImageState) -> None:
        """Its group's collage will cover it."""

    def retry(self, image: ImageState) -> Order:
        """Another collage."""
        return Order(COLLAGE, "collage", image.sends + 1)


class CollageHedgeScheme(CollageScheme):
    """A collage, and a second single copy of what nobody has answered in time.

    An image whose single and whose collage are late goes to an idle single rank; so does
    one whose cell is held back by the accept policy.
    """

    name = "collage-hedge"

    def __init__(
        self,
        policy: AcceptPolicy,
        hedger: Hedger,
        copies: int = 1,
        assign: str = "turn",
        fastest: bool = False,
    ) -> None:
        super().__init__(policy, copies, assign, fastest)
        self.hedger = hedger

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

    def resolved(self, image: ImageState) -> None:
        """Nobody waits for a copy of it."""
        self.hedger.forget(image)

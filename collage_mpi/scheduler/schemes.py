"""Schemes: which tasks are made of an image and of a group, what an answer means.

Owns: the redundancy of each scheme. A new scheme is a small class here.
Does not know: credit, queues, lost ranks, retries (the core does those).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from collage_mpi.errors import UsageError
from collage_mpi.scheduler.events import Score
from collage_mpi.scheduler.policies import AcceptPolicy
from collage_mpi.scheduler.state import GroupState, ImageState, TaskState

SINGLE, COLLAGE = "single", "collage"
SCHEMES = ("none", "collage")


class Dispatcher(Protocol):
    """What the core offers to a scheme."""

    def dispatch_next(self, kind: str, images: list[ImageState]) -> TaskState | None:
        """A task to the next rank of the kind in turn; None if there is no rank."""
        ...

    def dispatch_least(
        self, kind: str, images: list[ImageState], attempt: int, avoid: Collection[int]
    ) -> TaskState | None:
        """A task to the least loaded rank of the kind that is not to be avoided."""
        ...

    def accept(self, image: ImageState, source: str, task: TaskState, score: Score) -> None:
        """Resolve the image by this answer, now."""
        ...

    def reserve(self, image: ImageState, task: TaskState, score: Score, at_ns: int) -> None:
        """Keep the answer; it resolves the image at `at_ns` unless another did before."""
        ...

    def has_rank(self, kind: str) -> bool:
        """Whether any ready rank holds a network of the kind."""
        ...


class Scheme(Protocol):
    """The one interface of all schemes."""

    name: str
    kinds: frozenset[str]  # of network that it can use

    def image_arrived(self, core: Dispatcher, image: ImageState) -> None:
        """An image has a place in a group."""
        ...

    def group_closed(self, core: Dispatcher, group: GroupState) -> None:
        """The group has all the images it will have."""
        ...

    def answered(
        self, core: Dispatcher, task: TaskState, cells: Sequence[Score | None], now_ns: int
    ) -> None:
        """A task of this scheme was answered; cells match task.items."""
        ...

    def covers_later(self, core: Dispatcher, group: GroupState) -> bool:
        """Whether a task still to be made will cover the group's images."""
        ...


class NoneScheme:
    """Every image to one single rank; no redundancy."""

    name = "none"
    kinds = frozenset({SINGLE})

    def image_arrived(self, core: Dispatcher, image: ImageState) -> None:
        """To the next single rank in turn."""
        core.dispatch_next(SINGLE, [image])

    def group_closed(self, core: Dispatcher, group: GroupState) -> None:
        """Nothing to add."""

    def answered(
        self, core: Dispatcher, task: TaskState, cells: Sequence[Score | None], now_ns: int
    ) -> None:
        """Each record resolves its image."""
        for image, cell in zip(task.images, cells, strict=True):
            if cell is not None and not image.resolved:
                core.accept(image, SINGLE if task.attempt == 1 else "retry", task, cell)

    def covers_later(self, core: Dispatcher, group: GroupState) -> bool:
        """Never."""
        return False


class CollageScheme(NoneScheme):
    """Singles at once, and the group's collage when the group is full.

    arXiv 1904.12222; `copies` > 1 sends the same collage to several ranks.
    """

    name = "collage"
    kinds = frozenset({SINGLE, COLLAGE})

    def __init__(self, policy: AcceptPolicy, copies: int = 1) -> None:
        if copies < 1:
            raise UsageError(f"collage copies is {copies}; at least 1 is needed")
        self.policy = policy
        self.copies = copies

    def group_closed(self, core: Dispatcher, group: GroupState) -> None:
        """The images not yet resolved, as one collage, to the least loaded collage ranks."""
        images = [image for image in group.images if not image.resolved]
        taken: list[int] = []
        while images and len(taken) < self.copies:
            task = core.dispatch_least(COLLAGE, images, 1, taken)
            if task is None:
                return
            taken.append(task.rank.id)

    def answered(
        self, core: Dispatcher, task: TaskState, cells: Sequence[Score | None], now_ns: int
    ) -> None:
        """A collage's cells count when the policy says so; absent ones never."""
        if task.kind != COLLAGE:
            super().answered(core, task, cells, now_ns)
            return
        t0_ns = task.group.t0_ns
        for image, cell in zip(task.images, cells, strict=True):
            if cell is None or image.resolved:
                continue
            at_ns = self.policy.accept_at_ns(t0_ns, now_ns, cell)
            if at_ns <= now_ns:
                core.accept(image, COLLAGE, task, cell)
            elif image.reserve is None:
                core.reserve(image, task, cell, at_ns)

    def covers_later(self, core: Dispatcher, group: GroupState) -> bool:
        """The collage of an open group is still to come."""
        return not group.closed and core.has_rank(COLLAGE)


def make_scheme(name: str, policy: AcceptPolicy, copies: int = 1) -> Scheme:
    """The scheme called `name`. Raises UsageError for an unknown name."""
    if name == "none":
        return NoneScheme()
    if name == "collage":
        return CollageScheme(policy, copies)
    raise UsageError(f"scheme is {name!r}; known are: {', '.join(SCHEMES)}")

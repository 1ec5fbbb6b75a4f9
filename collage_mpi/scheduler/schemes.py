"""Schemes: which tasks are made of an image and of a group, what an answer means.

Owns: the redundancy of each scheme. A new scheme is a small class here.
Does not know: credit, queues, lost ranks, retries (the core does those).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from collage_mpi.errors import UsageError
from collage_mpi.scheduler.dispatch import Dispatch, Order
from collage_mpi.scheduler.events import Score
from collage_mpi.scheduler.policies import AcceptPolicy, Delay, First
from collage_mpi.scheduler.quantiles import RunningQuantile
from collage_mpi.scheduler.state import GroupState, ImageState, TaskState

SINGLE, COLLAGE = "single", "collage"
SCHEMES = ("none", "replicate", "hedge", "collage")
USE_COLLAGE = frozenset({"collage"})  # the others leave collage ranks idle
ASSIGNMENTS = ("turn", "least")

PLAIN = Order(SINGLE, "single")
REPLICA = Order(SINGLE, "replica")
HEDGE = Order(SINGLE, "hedge")
WHOLE = Order(COLLAGE, "collage")


class Core(Protocol):
    """What the core offers to a scheme."""

    dispatch: Dispatch
    latencies: RunningQuantile

    def accept(self, image: ImageState, task: TaskState, score: Score) -> None:
        """Resolve the image by this answer, now."""
        ...

    def reserve(self, image: ImageState, task: TaskState, score: Score, at_ns: int) -> None:
        """Keep the answer; it resolves the image at `at_ns` unless another did before."""
        ...

    def later(self, image: ImageState, at_ns: int, call: Later) -> None:
        """Call with the core and the image at `at_ns` if it is unresolved then."""
        ...


Later = Callable[[Any, ImageState], None]


class Scheme:
    """Every image to one single rank; no redundancy. The base of all schemes.

    `assign` says to which: the next in turn, as in the paper, or the least loaded, the
    fair baseline where there are more ranks than images of a group.
    """

    name = "none"
    kinds = frozenset({SINGLE})  # of network that it can use

    def __init__(self, assign: str = "turn") -> None:
        if assign not in ASSIGNMENTS:
            raise UsageError(f"assign is {assign!r}; known are: {', '.join(ASSIGNMENTS)}")
        self.assign = assign

    @property
    def label(self) -> str:
        """As shown in tables and legends."""
        return self.name if self.assign == "turn" else f"{self.name}, least loaded"

    def image_arrived(self, core: Core, image: ImageState) -> None:
        """An image has a place in a group."""
        if self.assign == "turn":
            core.dispatch.to_next(PLAIN, [image])
        else:
            core.dispatch.to_least(PLAIN, [image], ())

    def group_closed(self, core: Core, group: GroupState) -> None:
        """The group has all the images it will have."""

    def answered(
        self, core: Core, task: TaskState, cells: Sequence[Score | None], now_ns: int
    ) -> None:
        """A task was answered; cells match task.items. Each record resolves its image."""
        for image, cell in zip(task.images, cells, strict=True):
            if cell is not None and not image.resolved:
                core.accept(image, task, cell)

    def rank_free(self, core: Core) -> None:
        """A rank has ended a task and was given what waited for it."""

    def resolved(self, image: ImageState) -> None:
        """An image has its outcome, from whomever."""

    def covers_later(self, core: Core, group: GroupState) -> bool:
        """Whether a task still to be made will cover the group's images."""
        return False


class ReplicateScheme(Scheme):
    """Every image to several single ranks; the first answer wins.

    The first copy goes where it would go without the others, so that schemes compare on
    the same draws: of 2N ranks, image i to ranks i and N + i.
    """

    name = "replicate"

    def __init__(self, copies: int) -> None:
        super().__init__()
        if copies < 2:
            raise UsageError(f"replicas is {copies}; scheme replicate needs at least 2")
        self._orders = [PLAIN, *[REPLICA] * (copies - 1)]

    @property
    def label(self) -> str:
        """As shown in tables and legends."""
        return f"replicate {len(self._orders)}"

    def image_arrived(self, core: Core, image: ImageState) -> None:
        """All copies at once."""
        core.dispatch.to_spread(self._orders, [image])


class HedgeScheme(Scheme):
    """A second copy to an idle rank once the first is late, within a budget.

    Hedged requests of Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013. An image
    that is late while no rank is idle gets its copy when one becomes so.

    Args:
        delay: since the image's t0 until it counts as late.
        budget: copies allowed per image so far, 0..1.
    """

    name = "hedge"

    def __init__(self, delay: Delay, budget: float, assign: str = "turn") -> None:
        super().__init__(assign)
        if not 0 <= budget <= 1:
            raise UsageError(f"hedge budget is {budget:g}; it needs a share, 0 to 1")
        self.delay, self.budget = delay, budget
        self._images = self._hedges = 0
        self._late: OrderedDict[int, ImageState] = OrderedDict()

    @property
    def label(self) -> str:
        """As shown in tables and legends."""
        return f"{super().label} after {self.delay.name}, at most {self.budget:.0%}"

    def image_arrived(self, core: Core, image: ImageState) -> None:
        """The first copy, and a time for the second."""
        super().image_arrived(core, image)
        self._images += 1
        delay_ns = self.delay.ns(core.latencies)
        if delay_ns is not None:
            core.later(image, image.t0_ns + delay_ns, self._is_late)

    def _is_late(self, core: Core, image: ImageState) -> None:
        self._late[image.id] = image
        self.rank_free(core)

    def rank_free(self, core: Core) -> None:
        """Copies of the late images, oldest first, while ranks are idle."""
        copied = []
        for image in self._late.values():
            if self._hedges + 1 > self.budget * self._images or not core.dispatch.has_idle(SINGLE):
                break
            avoid = {task.rank.id for task in image.tasks} | image.tried
            if core.dispatch.to_idle(HEDGE, [image], avoid) is not None:
                self._hedges += 1
                copied.append(image.id)
        for image_id in copied:
            del self._late[image_id]

    def resolved(self, image: ImageState) -> None:
        """It is late no more."""
        self._late.pop(image.id, None)


class CollageScheme(Scheme):
    """Singles at once, and the group's collage when the group is full.

    arXiv 1904.12222; `copies` > 1 sends the same collage to several ranks.
    """

    name = "collage"
    kinds = frozenset({SINGLE, COLLAGE})

    def __init__(self, policy: AcceptPolicy, copies: int = 1, assign: str = "turn") -> None:
        super().__init__(assign)
        if copies < 1:
            raise UsageError(f"collage copies is {copies}; at least 1 is needed")
        self.policy = policy
        self.copies = copies

    def group_closed(self, core: Core, group: GroupState) -> None:
        """The images not yet resolved, as one collage, to the least loaded collage ranks."""
        images = [image for image in group.images if not image.resolved]
        taken: list[int] = []
        while images and len(taken) < self.copies:
            task = core.dispatch.to_least(WHOLE, images, taken)
            if task is None:
                return
            taken.append(task.rank.id)

    def answered(
        self, core: Core, task: TaskState, cells: Sequence[Score | None], now_ns: int
    ) -> None:
        """A collage's cells count when the policy says so; absent ones never."""
        if task.kind != COLLAGE:
            super().answered(core, task, cells, now_ns)
            return
        t0_ns = task.group.t0_ns
        for image, cell in zip(task.images, cells, strict=True):
            if cell is None or image.resolved:
                continue
            at_ns = self.policy.accept_at_ns(t0_ns, now_ns, cell, core.latencies)
            if at_ns <= now_ns:
                core.accept(image, task, cell)
            elif image.reserve is None:
                core.reserve(image, task, cell, at_ns)

    def covers_later(self, core: Core, group: GroupState) -> bool:
        """The collage of an open group is still to come."""
        return not group.closed and core.dispatch.has_rank(COLLAGE)


@dataclass(frozen=True)
class SchemeSettings:
    """What the schemes are made from.

    Attributes:
        name: one of SCHEMES.
        assign: one of ASSIGNMENTS, for first copies.
        policy: accept policy (collage).
        collage_copies: ranks that get the same collage (collage).
        replicas: ranks that get the same image (replicate).
        hedge_delay: when an image is late (hedge).
        hedge_budget: copies allowed per image, 0..1 (hedge).
    """

    name: str
    assign: str = "turn"
    policy: AcceptPolicy = field(default_factory=First)
    collage_copies: int = 1
    replicas: int = 2
    hedge_delay: Delay | None = None
    hedge_budget: float = 0.25


def make_scheme(settings: SchemeSettings) -> Scheme:
    """The scheme of the settings. Raises UsageError for what cannot work."""
    if settings.name == "none":
        return Scheme(settings.assign)
    if settings.name == "replicate":
        return ReplicateScheme(settings.replicas)
    if settings.name == "hedge":
        if settings.hedge_delay is None:
            raise UsageError("scheme hedge needs --hedge-ms or --hedge-quantile")
        return HedgeScheme(settings.hedge_delay, settings.hedge_budget, settings.assign)
    if settings.name == "collage":
        return CollageScheme(settings.policy, settings.collage_copies, settings.assign)
    raise UsageError(f"scheme is {settings.name!r}; known are: {', '.join(SCHEMES)}")

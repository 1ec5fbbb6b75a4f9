"""What a scheme is and is made from, and the scheme without redundancy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from collage_mpi.kinds import COLLAGE, RESOLVING_KINDS, SINGLE
from collage_mpi.scheduler.bundles import Bundle
from collage_mpi.scheduler.dispatch import Dispatch
from collage_mpi.scheduler.events import Score
from collage_mpi.scheduler.policies import AcceptPolicy, Delay, First, RunningQuantile
from collage_mpi.scheduler.settings import SchedulerSettings
from collage_mpi.scheduler.state import GroupState, ImageState, Order, TaskState
from collage_mpi.scheduler.transitions import SETTLED

ASSIGNMENTS = ("turn", "least", "finish", "pull")
ASSIGNED = {
    "turn": "",
    "least": ", least loaded",
    "finish": ", first to finish",
    "pull": ", pulled",
}

PLAIN = Order(SINGLE, SINGLE)
REPLICA = Order(SINGLE, "replica")
HEDGE = Order(SINGLE, "hedge")
WHOLE = Order(COLLAGE, COLLAGE)


# (image, its place in the task that was encoded, evidence of that task, evidence of each other
# image in it, in order) -> the image's record, or None where they say nothing
Decode = Callable[[int, int, Any, Sequence[Any]], Score | None]


def tell_nothing(image: int, place: int, evidence: Any, others: Sequence[Any]) -> None:
    """A `Decode` for whoever has no evidence: nothing is decoded."""


@dataclass(frozen=True, kw_only=True)
class SchemeSettings:
    """What the schemes are made from; each takes those that it names in `takes`.

    Bounds and choices are checked where users give the values (settings/redundancy).

    Attributes:
        name: one of SCHEMES.
        assign: one of ASSIGNMENTS, for first copies.
        policy: when a collage's answer counts.
        collage_copies: ranks that get the same collage.
        replicas: ranks that get the same image.
        hedge_delay: when an image is late.
        hedge_budget: copies allowed per image, 0..1.
        placement: one of PLACEMENTS: collages to ranks of their own, or to the fastest of ranks
            that hold both networks.
        parity_k: images of a stripe.
        decode: how an image's record is made from the answers of others.
        bundle_from: images that must wait for a collage (cascade); None: as many as pay.
        beyond_idle: idle ranks are counted off them.
        calibrate: no cell is sure, and only drawn images are collaged, until a threshold is told.
    """

    name: str
    assign: str
    policy: AcceptPolicy
    collage_copies: int
    replicas: int
    hedge_delay: Delay | None
    hedge_budget: float
    placement: str
    parity_k: int
    decode: Decode
    bundle_from: int | None
    beyond_idle: bool
    calibrate: bool


# What a scheme that builds on another works with, of the settings that only the other one takes.
NOT_TAKEN: Mapping[str, Any] = {"assign": "turn", "policy": First(), "placement": "fixed"}


class Core(Protocol):
    """What the core offers to a scheme."""

    dispatch: Dispatch
    latencies: RunningQuantile

    def accept(self, image: ImageState, task: TaskState, score: Any) -> None:
        """Resolve the image by this answer, now; a run by a score an image."""
        ...

    def decide(self, image: ImageState, task: TaskState, score: Any) -> None:
        """This answer counts from now on; a drawn image is resolved by it once another network
        has answered too, or none can."""
        ...

    def accept_from(
        self, image: ImageState, task: TaskState, others: tuple[int, ...], score: Score
    ) -> None:
        """Resolve the image, now, by the task's answer and those of the other tasks."""
        ...

    def reconsider(self, image: ImageState) -> None:
        """What was waited for on the image's behalf will not come: see what else can be done."""
        ...

    def reserve(self, image: ImageState, task: TaskState, score: Score, at_ns: int) -> None:
        """Keep the answer; it resolves the image at `at_ns` unless another did before."""
        ...

    def keep(self, image: ImageState, task: TaskState, score: Score) -> None:
        """Keep the answer; it resolves the image only in place of an error row."""
        ...

    def later(self, image: ImageState, at_ns: int, call: Later) -> None:
        """Call with the core and the image at `at_ns` if it is unresolved then."""
        ...


Later = Callable[[Any, ImageState], None]


REGISTERED: dict[str, type[Scheme]] = {}
SchemeClass = TypeVar("SchemeClass", bound="type[Scheme]")


def register(scheme: SchemeClass) -> SchemeClass:
    """Make a scheme known by its name; a decorator of its class."""
    assert scheme.name not in REGISTERED, f"two schemes {scheme.name}"
    REGISTERED[scheme.name] = scheme
    return scheme


@register
class Scheme:
    """Every image to one single rank; no redundancy. The base of all schemes.

    `assign` says to which: the next in turn, as in the paper; the least loaded, the fair
    baseline where there are more ranks than images of a group; the one that would
    finish first, by the ranks' running service times; or the first that has room.

    Attributes:
        name: as settings and messages say it.
        needs: kinds of network; ranks that hold no other are left idle.
        takes: the settings that it reads, by name.
        assigns: of ASSIGNMENTS, those with a meaning of their own; others are as `turn`.
        mark: colour and marker of its points in figures.
        main: the kind whose failures count, and that is tried again.
        only: setting of a run -> its values that go with the scheme, where not all do.
        kept_source: source of an image that is resolved by an answer which was kept for it; None:
            as of any other answer of that task.
        placement, credit: which ranks hold a second network, and how many messages a rank may
            have at a time, where nobody says it.
        kinds: those needed whose answers resolve images by themselves.
        bundles_runs: images that come in together may be runs, of which bundles are cut.
        calibrate: only drawn images leave in a bundle until a threshold is told.
    """

    name: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({SINGLE})
    takes: ClassVar[frozenset[str]] = frozenset({"assign"})
    assigns: ClassVar[tuple[str, ...]] = ASSIGNMENTS
    mark: ClassVar[tuple[str, str]] = ("#000000", "o")
    main: ClassVar[str] = SINGLE
    only: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    kept_source: ClassVar[str | None] = None
    placement: ClassVar[str] = "fixed"
    credit: ClassVar[int] = 2
    bundles_runs: ClassVar[bool] = False
    calibrate = False

    def __init__(self, settings: SchemeSettings) -> None:
        self.assign = settings.assign if settings.assign in self.assigns else "turn"
        self.kinds = self.needs & RESOLVING_KINDS

    @property
    def label(self) -> str:
        """As shown in tables and legends."""
        return self.name + ASSIGNED[self.assign]

    @property
    def watches_health(self) -> bool:
        """Whether it needs to know how fast the ranks have been lately."""
        return self.assign == "finish"

    @property
    def asks_latencies(self) -> bool:
        """Whether it may ask how long single answers have taken so far."""
        return not self.takes.isdisjoint(("policy", "hedge_delay"))

    def judge_by(self, confidence: float | None) -> None:
        """From now on an answer of at least this score is sure; None: no such answer is asked for.

        Said to schemes that tell sure answers from others.
        """

    def bundle(self, settings: SchedulerSettings) -> Bundle | None:
        """How images that wait leave together; None: each by itself."""
        return None

    def group_opened(self, core: Core, group: GroupState) -> None:
        """A group begins; its first image follows."""

    def image_arrived(self, core: Core, image: ImageState) -> None:
        """An image has a place in a group."""
        if self.assign == "turn":
            core.dispatch.to_next(PLAIN, [image], image.group.apart)
        elif self.assign == "least":
            core.dispatch.to_least(PLAIN, [image], image.group.apart)
        elif self.assign == "pull":
            core.dispatch.to_any(PLAIN, [image], image.group.apart)
        else:
            core.dispatch.to_best(PLAIN, [image], image.group.apart)

    def image_placed(self, core: Core, image: ImageState) -> None:
        """What its arrival asks for is done: also said of one that cannot be read."""

    def group_closed(self, core: Core, group: GroupState) -> None:
        """The group has all the images it will have."""

    def answered(
        self,
        core: Core,
        task: TaskState,
        cells: Sequence[Score | None],
        now_ns: int,
        evidence: Any = None,
    ) -> None:
        """A task was answered; cells match task.items. Each record resolves its image."""
        for image, cell in task.each(cells):
            if cell is not None and image.status not in SETTLED:
                core.accept(image, task, cell)

    def rank_free(self, core: Core) -> None:
        """A rank has ended a task and was given what waited for it."""

    def resolved(self, image: ImageState) -> Iterable[ImageState]:
        """An image has its outcome, from whomever; the unresolved images that needed its own
        answer, which will not come now."""
        return ()

    def covers_later(self, core: Core, group: GroupState) -> bool:
        """Whether a task still to be made will cover the group's images."""
        return False

    def may_follow(self, image: ImageState, *, silent: bool) -> bool:
        """Whether answers of several tasks, there or under way, may yet resolve it together.

        Those of silent ranks count only if `silent`.
        """
        return False

    def retry(self, image: ImageState) -> Order:
        """What to try next for an image that nobody is at work on."""
        return Order(SINGLE, "retry" if image.sends else SINGLE, image.sends + 1)

"""The base class of all schemes, which is the scheme without redundancy, and its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, TypeVar

from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.scheduler.bundles import Bundle
from collage_mpi.scheduler.dispatch import Dispatch
from collage_mpi.scheduler.events import Score
from collage_mpi.scheduler.policies import AcceptPolicy, First
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


@dataclass(frozen=True, kw_only=True)
class SchemeSettings:
    """The settings of all schemes; a scheme uses those that it names in `takes`.

    Bounds and choices are checked where users give the values (settings/redundancy).

    Attributes:
        name: one of SCHEME_NAMES.
        assign: one of ASSIGNMENTS; how the rank of a first copy is chosen.
        policy: when a collage's answer counts.
        collage_copies: number of ranks that get the same collage.
        hedge_ns: time from its t0 after which an image is late.
        placement: one of PLACEMENTS. Collages go to ranks of their own (fixed), or to the fastest
            of the ranks that hold both networks (fastest).
        calibrate: until a threshold is chosen, no cell counts and only drawn images are collaged.
    """

    name: str
    assign: str
    policy: AcceptPolicy
    collage_copies: int
    hedge_ns: int | None
    placement: str
    calibrate: bool


# Values of the settings that a scheme does not take but that its base class reads.
NOT_TAKEN: Mapping[str, Any] = {"assign": "turn", "policy": First(), "placement": "fixed"}


class Core(Protocol):
    """The methods of the scheduler that a scheme may call."""

    dispatch: Dispatch

    def accept(self, image: ImageState, task: TaskState, score: Any) -> None:
        """Resolve the image by this answer now; a run by a sequence with a score for each image."""
        ...

    def decide(self, image: ImageState, task: TaskState, score: Any) -> None:
        """Accept this answer. A drawn image is resolved by it when the other network has answered
        too, or cannot answer."""
        ...

    def reconsider(self, image: ImageState) -> None:
        """Decide again how the image goes on, because what it waited for will not come."""
        ...

    def reserve(self, image: ImageState, task: TaskState, score: Score, at_ns: int) -> None:
        """Keep the answer. It resolves the image at `at_ns` unless another answer does before."""
        ...

    def keep(self, image: ImageState, task: TaskState, score: Score) -> None:
        """Keep the answer. It resolves the image only where an error row would."""
        ...

    def later(self, image: ImageState, at_ns: int, call: Later) -> None:
        """Run `call(core, image)` at `at_ns` if the image is unresolved then."""
        ...


Later = Callable[[Any, ImageState], None]


REGISTERED: dict[str, type[Scheme]] = {}
SchemeClass = TypeVar("SchemeClass", bound="type[Scheme]")


def register(scheme: SchemeClass) -> SchemeClass:
    """Register a scheme under its name; a class decorator."""
    assert scheme.name not in REGISTERED, f"two schemes {scheme.name}"
    REGISTERED[scheme.name] = scheme
    return scheme


@register
class Scheme:
    """Sends every image to one single rank, without redundancy. The base of all schemes.

    `assign` says to which rank: the next in turn, as in the paper (`turn`); the least loaded
    (`least`), a fair baseline if there are more ranks than images in a group; the rank that would
    finish first, by recent service times (`finish`); or the first that has room (`pull`).

    Attributes:
        name: as in settings and messages.
        needs: kinds of network that it uses; ranks that hold none of them stay idle.
        takes: names of the settings that it uses.
        assigns: values of `assign` that it supports; any other value is taken as `turn`.
        main: kind of the tasks that retries use, and whose failures count.
        replicas: number of single ranks that each image is sent to at once.
        only: setting of a run -> its allowed values, for settings with restrictions.
        placement, credit: defaults of the settings that say which ranks hold a second network, and
            how many messages a rank may have at a time.
        bundles_runs: images that arrive together may be runs, from which bundles are cut.
        calibrate: only drawn images leave in a bundle until a threshold is chosen.
    """

    name: ClassVar[str] = "none"
    needs: ClassVar[frozenset[str]] = frozenset({SINGLE})
    takes: ClassVar[frozenset[str]] = frozenset({"assign"})
    assigns: ClassVar[tuple[str, ...]] = ASSIGNMENTS
    main: ClassVar[str] = SINGLE
    replicas: ClassVar[int] = 1
    only: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    placement: ClassVar[str] = "fixed"
    credit: ClassVar[int] = 2
    bundles_runs: ClassVar[bool] = False
    calibrate = False

    def __init__(self, settings: SchemeSettings) -> None:
        self.assign = settings.assign if settings.assign in self.assigns else "turn"

    @property
    def label(self) -> str:
        """As shown in tables and legends."""
        return self.name + ASSIGNED[self.assign]

    @property
    def watches_health(self) -> bool:
        """Whether it needs to know which rank would finish a task first."""
        return self.assign == "finish"

    def judge_by(self, confidence: float | None) -> None:
        """From now on a cell counts if its score is at least `confidence`; None: no cell counts.

        Called only if the scheme calibrates.
        """

    def bundle(self, settings: SchedulerSettings) -> Bundle | None:
        """How waiting images leave together; None: each leaves by itself."""
        return None

    def group_opened(self, core: Core, group: GroupState) -> None:
        """Called when a group is opened, before its first image arrives."""

    def image_arrived(self, core: Core, image: ImageState) -> None:
        """Called when an image has its place in a group: make its first task."""
        if self.assign == "turn":
            core.dispatch.to_next(PLAIN, [image], image.group.apart)
        elif self.assign == "least":
            core.dispatch.to_least(PLAIN, [image], image.group.apart)
        elif self.assign == "pull":
            core.dispatch.to_any(PLAIN, [image], image.group.apart)
        else:
            core.dispatch.to_best(PLAIN, [image], image.group.apart)

    def group_closed(self, core: Core, group: GroupState) -> None:
        """Called when the group gets no further image."""

    def answered(
        self,
        core: Core,
        task: TaskState,
        cells: Sequence[Score | None],
        now_ns: int,
    ) -> None:
        """Called when a task is answered: each score resolves its image.

        Args:
            cells: one for each item of the task; None if the network gave no answer for it.
            now_ns: the present time.
        """
        for image, cell in task.each(cells):
            if cell is not None and image.status not in SETTLED:
                core.accept(image, task, cell)

    def rank_free(self, core: Core) -> None:
        """Called when a rank has ended a task and got the tasks that waited for it."""

    def resolved(self, image: ImageState) -> None:
        """Called when an image has its outcome."""

    def covers_later(self, core: Core, group: GroupState) -> bool:
        """Whether the scheme will make another task for the group's images."""
        return False

    def retry(self, image: ImageState) -> Order:
        """The next task to try for an image that no task covers."""
        return Order(SINGLE, "retry" if image.sends else SINGLE, image.sends + 1)

"""Schemes: what an arrival, a full group and an answer add to the work that waits.

A scheme handles no credit, queues, retries or lost ranks. Its class names the kinds of network
that it needs and the settings that it takes. The base class is the scheme without redundancy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from collage_mpi.core.policies import AcceptPolicy, Confident, First
from collage_mpi.core.states import DECIDED, DRAWN, TROUBLED
from collage_mpi.errors import UsageError
from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.plugins import Names

if TYPE_CHECKING:  # settings import this module, and `--help` must not wait for numpy
    import numpy as np

    from collage_mpi.core.outcomes import Answer
    from collage_mpi.core.ranks import Rank
    from collage_mpi.core.work import Task

Core = Any  # `core.core.Core`, which imports this module

ASSIGNMENTS = ("turn", "pull")
PLACEMENTS = ("fixed", "fastest")
LEAST = 3  # images of a collage; for two, a single answer each is faster


@dataclass(frozen=True, kw_only=True)
class SchemeSettings:
    """The settings of all schemes; a scheme uses those that it names in `takes`.

    Bounds and choices are checked where users give the values (settings/run_settings).

    Attributes:
        name: one of SCHEME_NAMES.
        assign: turn: image i of a group goes to the i-th rank, as in the paper. pull: a rank that
            has room takes the oldest work.
        accept: kind -> when an answer of its network counts, in the order in which a cascade asks
            them. Answers of other kinds count at once.
        collage_copies: number of ranks that get the same collage.
        hedge_ns: time from its t0 after which an image is late.
        placement: one of PLACEMENTS. Collages go to ranks of their own (fixed), or to the fastest
            of the ranks that hold both networks (fastest).
        calibrate: until a threshold is chosen, no answer of a first network counts. They are tried
            until one is chosen, too.
    """

    name: str
    assign: str
    accept: Mapping[str, AcceptPolicy]
    collage_copies: int
    hedge_ns: int | None
    placement: str
    calibrate: bool


# Values of the settings that a scheme does not take but that its base class reads.
NOT_TAKEN: Mapping[str, Any] = {"assign": "turn", "accept": {}, "placement": "fixed"}

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

    Attributes:
        name: as in settings and messages.
        needs: kinds of network that it uses; ranks that hold none of them stay idle. The class of a
            cascade has only the last one.
        takes: names of the settings that it uses.
        assigns: values of `assign` that it supports. If it supports one, it uses this one always.
        main: kind of the tasks that retries use, and whose failures count.
        replicas: number of single ranks that each image is sent to at once.
        only: setting of a run -> its allowed values, for settings with restrictions.
        placement, credit: defaults of the settings that say which ranks hold a second network, and
            how many messages a rank may have at a time.
        label: as shown in tables and legends.
        grouped: groups are units of its work.
        mixes: a collage holds images of any groups, in its first cells.
        redundant: an image may have several tasks though nothing went wrong.
        gathers: images that come in together leave only when all are there, also if each message
            has one input.
        fastest_of: kind -> how many of the fastest ranks its tasks are for; other kinds are for
            all.
        promises: how many answers differ from the exact network's is promised, so that no unsure
            answer counts, whatever fails.
        covers, first_sends: tasks that an image can count on when it arrives, and how many of them
            are of the main kind.
    """

    name: ClassVar[str] = "none"
    needs: frozenset[str] = frozenset({SINGLE})
    takes: ClassVar[frozenset[str]] = frozenset({"assign"})
    assigns: ClassVar[tuple[str, ...]] = ASSIGNMENTS
    main: ClassVar[str] = SINGLE
    replicas: ClassVar[int] = 1
    only: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    placement: ClassVar[str] = "fixed"
    credit: ClassVar[int] = 2
    grouped: ClassVar[bool] = False
    mixes: ClassVar[bool] = False
    redundant: ClassVar[bool] = False
    gathers: ClassVar[bool] = False
    fastest_of: Mapping[str, int] = {}
    promises = False
    covers = 1
    first_sends = 1

    def __init__(self, settings: SchemeSettings) -> None:
        turns = settings.assign == "turn" and "turn" in self.assigns
        self.pulls = "pull" in self.assigns and not turns
        self.accept = dict(settings.accept)
        copies = f" {self.replicas}" if self.replicas > 1 else ""
        self.label = self.name + copies + (", pulled" if self.pulls else "")
        self.serves = tuple(sorted(self.needs))

    def arrived(self, core: Core, slots: np.ndarray) -> None:
        """Images have arrived that can be read, at neighbouring positions of any groups."""
        if not self.pulls:
            self.in_turn(core, slots)
        elif core.ranks.ready[SINGLE]:
            core.fresh.add(slots)
        else:
            core.release(slots)

    def in_turn(self, core: Core, slots: np.ndarray) -> None:
        """Bind each image to the single ranks in turn, and further copies to further ranks."""
        turns = core.ranks.turns(SINGLE, len(slots), self.replicas)
        if not turns:
            core.release(slots)
            return
        core.table.holds[slots] += len(turns[0]) - 1
        core.sends(slots, len(turns[0]) - 1)
        for first, ranks in enumerate(turns):
            for row, rank in enumerate(ranks):
                source = "replica" if row else SINGLE
                core.bind(rank, core.work(SINGLE, source, 1, slots[first :: len(turns)]))

    def group_full(self, core: Core, slots: np.ndarray) -> None:
        """A group gets no further image; these are its unresolved ones."""

    def next(self, core: Core, rank: Rank) -> bool:
        """Let a rank that has room take the oldest work that it may take; whether it took some."""
        fresh = () if rank.id in core.ranks.fastest(COLLAGE) else (core.fresh,)
        return bool(
            core.take_again(rank, SINGLE)
            or core.take_fresh(rank, SINGLE, *fresh)
            or core.take_late(rank)
            or core.take_copy(rank)
        )

    def waiting(self, core: Core) -> int:
        """Number of single tasks that the images in `core.fresh` will become."""
        return core.fresh.count * self.replicas

    def accepts_all(self, kind: str) -> bool:
        """Whether each answer of a network of this kind counts at once."""
        return isinstance(self.accept.get(kind, First()), First)

    def answered(self, core: Core, answer: Answer, items: np.ndarray) -> None:
        """Tasks are answered; `items`: (k,) int64, their answers for unresolved images.

        An unsure answer is kept. A sure one that is audited waits for the audit.
        """
        if answer.kind == self.main:
            core.outcomes.accept(answer, items)
            return
        policy = self.accept.get(answer.kind, First())
        sure = core.sure(answer, items, policy)
        unsure, items = items[~sure], items[sure]
        drawn = core.table.state[answer.slots[items]] & DRAWN != 0
        if drawn.any():
            core.outcomes.keep(answer, items[drawn], DECIDED)
            items = items[~drawn]
        core.outcomes.accept(answer, items)
        if len(unsure):
            core.keep(answer, unsure, policy.deadline_ns)

    def left(self, core: Core, tasks: Sequence[Task]) -> None:
        """Tasks have left."""

    def nobody(self, core: Core, kind: str) -> None:
        """No ready rank of the kind is left."""
        if kind == SINGLE:
            core.strand(core.fresh)

    def judge_by(self, core: Core, kinds: Sequence[str], confidence: float | None) -> None:
        """From now on only these first networks are asked; see `events.Stages`."""


@register
class ReplicateScheme(Scheme):
    """Sends every image to two single ranks; the first answer counts.

    In turn, the first copy goes to the same rank as without further copies: with 2N ranks, image i
    goes to ranks i and N + i. Where ranks pull, another rank takes the second copy when the first
    has left.
    """

    name = "replicate"
    replicas = 2
    redundant = True

    def left(self, core: Core, tasks: Sequence[Task]) -> None:
        """The first copy has left: another rank may take the second."""
        for task in tasks:
            others = core.ranks.others(SINGLE, (task.rank,))
            if self.pulls and task.source == SINGLE and next(others, None) is not None:
                held = (task.rank,)
                core.place(core.work(SINGLE, "replica", 1, task.slots, held, held))


@register
class HedgeScheme(Scheme):
    """Sends a second copy to an idle rank when the first answer is late.

    These are the hedged requests of Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013. If no
    rank is idle, a late image gets its copy when a rank becomes idle.
    """

    name = "hedge"
    takes = frozenset({"assign", "hedge_ns"})
    redundant = True

    def __init__(self, settings: SchemeSettings) -> None:
        super().__init__(settings)
        if settings.hedge_ns is None:
            raise UsageError(f"scheme {self.name} needs a time: --deadline-ms 150")
        self._after_ns = settings.hedge_ns
        self.label += f" after {self._after_ns / 1e6:g} ms"

    def arrived(self, core: Core, slots: np.ndarray) -> None:
        """Make the first task, and set the time of the second."""
        super().arrived(core, slots)
        for t0_ns, own in core.by_t0(slots):
            core.later(t0_ns + self._after_ns, core.note_late, own)


@register
class CollageScheme(Scheme):
    """A single task for each image at once, and a collage of the group when the group is full.

    This is the scheme of arXiv 1904.12222. `collage_copies` > 1 sends the same collage to several
    ranks. With placement `fastest` ranks hold both networks: the fastest `collage_copies` ranks
    take no single tasks, and a rank passes over the collages that they would end sooner.
    """

    name = "collage"
    needs = frozenset({SINGLE, COLLAGE})
    takes = frozenset({"assign", "accept", "collage_copies", "placement"})
    grouped = True
    redundant = True
    covers = 2

    def __init__(self, settings: SchemeSettings) -> None:
        super().__init__(settings)
        self.copies = settings.collage_copies
        if settings.placement == "fastest":
            self.label += ", fastest"
            if SINGLE in self.needs:
                self.fastest_of = {COLLAGE: self.copies}

    def group_full(self, core: Core, slots: np.ndarray) -> None:
        """Let the unresolved images wait as collages: for the best ranks, or the first with
        room."""
        for _ in range(min(self.copies, len(core.ranks.ready[COLLAGE])) if len(slots) else 0):
            core.place(core.work(COLLAGE, COLLAGE, 1, slots))
        core.help(slots)

    def next(self, core: Core, rank: Rank) -> bool:
        """The oldest collage or single image that the rank may take."""
        return core.take_again(rank, COLLAGE) or super().next(core, rank)


@register
class CollageOnlyScheme(CollageScheme):
    """Only the collage of each group, without single tasks: the cheapest, and the least accurate.

    Images that a collage did not answer, and images of a failed collage, are sent again as another
    collage.
    """

    name = "collage-only"
    needs = frozenset({COLLAGE})
    takes = frozenset({"assign", "collage_copies", "placement"})
    main = COLLAGE
    covers, first_sends = 1, 0

    def arrived(self, core: Core, slots: np.ndarray) -> None:
        """Make no task: the group's collage will cover the images."""

    def next(self, core: Core, rank: Rank) -> bool:
        """The oldest collage, or a copy of one."""
        return bool(core.take_again(rank, COLLAGE) or core.take_copy(rank))


@register
class CascadeScheme(Scheme):
    """Stages of networks: what one is unsure of goes to the next, and the last one is exact.

    A rank with room takes what the latest stages wait for. Otherwise, if enough new images wait, it
    takes the oldest of them for the first stage, or else the oldest image for the exact network.
    While no images wait this is scheme `none`; the more images wait, the more a rank answers in one
    call. It is a cascade of classifiers (Streeter, arXiv 1802.07697) whose first stage grows with
    the queue.
    """

    name = "cascade"
    takes = frozenset({"assign", "accept", "placement", "calibrate"})
    assigns = ("pull",)
    only: ClassVar[Mapping[str, tuple[str, ...]]] = {"assign": ("pull",)}
    placement = "fastest"
    gathers = True  # they can leave together
    mixes = True
    credit = 1  # images in a rank's second message would wait, and could not leave together

    def __init__(self, settings: SchemeSettings) -> None:
        super().__init__(settings)
        self.label = self.name + (", ranks apart" if settings.placement == "fixed" else "")
        self.serves = self.stages = (*self.accept, self.main)
        self.needs = frozenset(self.stages)
        self.asked: Sequence[str] = self.stages[:-1]  # the others get no further image
        self.promises = self.calibrating = settings.calibrate
        if self.calibrating:
            self.accept = dict.fromkeys(self.asked, Confident(inf, None))
        # What a collage says of an image depends on how many there are.
        self.whole = self.calibrating and self.stages[0] == COLLAGE

    def first(self, core: Core, after: int = 0) -> str | None:
        """The first of the stages from number `after` on that is asked and that a ready rank holds;
        None if only the exact one is left."""
        stages = (kind for kind in self.stages[after:-1] if kind in self.asked)
        return next((kind for kind in stages if core.ranks.ready[kind]), None)

    def arrived(self, core: Core, slots: np.ndarray) -> None:
        """While a threshold is chosen all stages classify drawn images, and the exact network all
        others."""
        first, exact = self.first(core), core.ranks.ready[self.main]
        if not first and not exact:
            core.release(slots)
            return
        if exact and first and self.calibrating:
            drawn = core.table.state[slots] & DRAWN != 0
            core.alone.add(slots[~drawn])
            slots = slots[drawn]
        (core.alone if exact and not first else core.fresh).add(slots)

    def least(self, core: Core, kind: str) -> int:
        """How many images must wait before they leave together, for a network of this kind."""
        size = core.settings.group_size
        if not core.ranks.ready[self.main]:
            return 1
        if (self.calibrating or self.whole) and core.fresh.count:
            oldest = int(core.table.position[core.fresh.parts[0][0]])
            return 1 if oldest // size < core.next // size else size
        return min(max(LEAST, int(core.settings.costs.get(kind, 1.0)) + 1), size)

    def waiting(self, core: Core) -> int:
        """Number of tasks that the images will become: of the first stage, and single ones."""
        return core.fresh.count // core.settings.group_size + core.alone.count

    def next(self, core: Core, rank: Rank) -> bool:
        """What the latest stages wait for, then new images together, then new ones alone."""
        if any(core.take_again(rank, kind) for kind in reversed(self.stages[1:])):
            return True
        first = self.first(core)
        alone = (core.alone,) if self.calibrating else (core.fresh, core.alone)
        return bool(
            (
                (first and core.fresh.count >= self.least(core, first))
                and core.take_fresh(rank, first, core.fresh)
            )
            or core.take_fresh(rank, self.main, *alone)
            or core.take_copy(rank)
        )

    def answered(self, core: Core, answer: Answer, items: np.ndarray) -> None:
        """What a stage was unsure of, and nothing else covers, waits for the next stage. The exact
        one gets it without further words, as all images in need."""
        super().answered(core, answer, items)
        kind = self.first(core, self.stages.index(answer.kind) + 1)
        if kind is not None:
            slots, table = core.table.open(answer.slots[items]), core.table
            covers = table.holds[slots] - table.deaf[slots] - answer.tasks[0].covers
            slots = slots[(covers == 0) & (table.state[slots] & (TROUBLED | DECIDED) == 0)]
            if len(slots):
                core.place(core.work(kind, kind, 1, slots))

    def nobody(self, core: Core, kind: str) -> None:
        """Without one of the stages the others get its new images."""
        self.arrived(core, core.in_order([core.fresh.clear(), core.alone.clear()]))

    def judge_by(self, core: Core, kinds: Sequence[str], confidence: float | None) -> None:
        """Stages are chosen, or the threshold: then any image may go through them."""
        self.asked, self.calibrating = kinds, bool(kinds) and confidence is None
        least = inf if confidence is None else confidence
        for kind in self.stages[:-1]:
            score = least if kind in kinds else inf
            self.accept[kind] = Confident(score, self.accept[kind].deadline_ns)
        self.nobody(core, self.stages[0])


SCHEMES = tuple(REGISTERED)
SCHEME_NAMES = Names("scheme", "collage_mpi.schemes", Scheme, SCHEMES)


def scheme_class(name: str) -> type[Scheme]:
    """The class of the scheme with this name.

    Raises:
        UsageError: no scheme has this name.
        EnvironmentFault: the package that adds the scheme is broken.
    """
    if name not in REGISTERED:
        added = SCHEME_NAMES.load(name)
        if added is None:
            raise UsageError(f"scheme is {name!r}; known are: {', '.join(SCHEME_NAMES)}")
        return REGISTERED.setdefault(name, added)
    return REGISTERED[name]


def make_scheme(settings: SchemeSettings) -> Scheme:
    """The scheme that the settings name. Settings that it does not take are ignored.

    Raises:
        UsageError: no scheme has the name, or its settings contradict each other.
        EnvironmentFault: the package that adds the scheme is broken.
    """
    scheme = scheme_class(settings.name)
    if settings.placement == "fastest" and "placement" not in scheme.takes:
        raise UsageError(
            f"placement fastest is for collages, and scheme {settings.name} makes none: "
            "leave it out"
        )
    idle = {name: value for name, value in NOT_TAKEN.items() if name not in scheme.takes}
    return scheme(replace(settings, **idle))

"""What the scheduler remembers of images, groups, tasks and ranks, and what it is to do now."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from collage_mpi.scheduler.events import Action, Item, Score
from collage_mpi.scheduler.transitions import OPEN, READY, SETTLED, WAITING


class Turn:
    """The present time, and what the scheduler is to do about the events at hand.

    Attributes:
        actions: in order.
        released: images whose pixels nobody needs any more.
    """

    def __init__(self) -> None:
        self.now_ns = 0
        self.actions: list[Action] = []
        self.released: list[int] = []


class Order(NamedTuple):
    """What sort of task is wanted.

    Attributes:
        source: what an image that the task resolves is said to be resolved by.
        spare: a copy that counts as no attempt, and is cancelled first.
    """

    kind: str
    source: str
    attempt: int = 1
    spare: bool = False


class ImageState:
    """An image between arrival and the end of its last task, or a run of `count` images.

    The images of a run arrived together, have numbers and cells in sequence, and share all that
    has happened to them. A run is taken apart before something happens to some of its images only.
    """

    __slots__ = (
        "backup",
        "bundled",
        "cell",
        "copies",
        "count",
        "decided_ns",
        "drawn",
        "failures",
        "group",
        "holders",
        "hosts",
        "id",
        "losses",
        "reason",
        "reserve",
        "sends",
        "status",
        "t0_ns",
        "tasks",
        "tried",
    )

    def __init__(
        self, image: int, group: GroupState, cell: int, t0_ns: int, count: int = 1
    ) -> None:
        self.id = image
        self.group = group
        self.cell = cell
        self.t0_ns = t0_ns
        self.count = count
        self.status = OPEN
        self.holders = 0  # sends that still read its pixels
        self.tasks: list[TaskState] = []  # queued or outstanding, covering it
        self.sends = 0  # tasks of the main kind made for it so far
        self.failures = 0  # of them failed, lost or without an answer
        self.losses = 0  # of its tasks of that kind, lost with their rank
        self.copies = 0  # of the end game
        self.bundled = False  # it was sent with others, in a task of another kind
        self.drawn = False  # the single network is asked about it, whatever a collage says
        self.decided_ns: int | None = None  # when its kept answer was accepted, while that is asked
        self.tried: set[int] = set()  # ranks that failed or lost it
        self.backup: tuple[Score, TaskState] | None = None  # counts if no other will come
        self.reserve: tuple[Score, TaskState] | None = None  # an answer that counts later
        self.hosts: tuple[str, ...] = ()  # that could not read it
        self.reason = ""  # why its last task failed

    @property
    def held(self) -> bool:
        """Whether an answer is kept for it."""
        return self.reserve is not None or self.backup is not None

    @property
    def resolved(self) -> bool:
        """Whether it has its outcome."""
        return self.status in SETTLED

    @property
    def cells(self) -> range:
        """Those of its images."""
        return range(self.cell, self.cell + self.count)

    def cut(self, count: int) -> ImageState:
        """Split off the first `count` images of the run; the result is a run with the same history
        and no task."""
        return self._cut([count])[0]

    def _cut(self, counts: Sequence[int]) -> list[ImageState]:
        cut = []
        for count in counts:
            first = ImageState(self.id, self.group, self.cell, self.t0_ns, count)
            first.status, first.reason, first.hosts = self.status, self.reason, self.hosts
            first.holders, first.sends, first.copies = self.holders, self.sends, self.copies
            first.failures, first.losses = self.failures, self.losses
            first.bundled, first.drawn = self.bundled, self.drawn
            first.backup, first.reserve = self.backup, self.reserve
            first.decided_ns = self.decided_ns
            first.tried = set(self.tried)
            self.id, self.cell, self.count = self.id + count, self.cell + count, self.count - count
            cut.append(first)
        at = self.group.images.index(self)
        self.group.images[at:at] = cut
        return cut

    def apart(self) -> list[ImageState]:
        """Each image of the run by itself; its tasks hold these from now on."""
        if self.count == 1:
            return [self]
        cut = self._cut([1] * (self.count - 1))
        for image in cut:
            image.tasks = list(self.tasks)
        for task in self.tasks:
            at = task.images.index(self)
            task.images = [*task.images[:at], *cut, *task.images[at:]]
            task.pending += len(cut)
        return [*cut, self]


class GroupState:
    """Images encoded together; membership is by arrival order only."""

    __slots__ = ("apart", "closed", "due", "id", "images", "size", "t0_ns", "timers", "unresolved")

    def __init__(self, group: int, t0_ns: int) -> None:
        self.id = group
        self.t0_ns = t0_ns
        self.images: list[ImageState] = []
        self.size = 0  # images that have come
        self.closed = False
        self.apart: frozenset[int] = frozenset()  # ranks that its singles leave alone
        self.unresolved = 0
        self.timers: set[int] = set()
        # what is to be done with which images, and when; one timer an entry
        self.due: dict[tuple[int, Callable[..., None]], list[ImageState]] = {}


class TaskState:
    """One send to one rank, from creation to its terminal event."""

    __slots__ = (
        "attempt",
        "avoid",
        "group",
        "id",
        "images",
        "inputs",
        "items",
        "kind",
        "message",
        "pending",
        "rank",
        "send_done",
        "source",
        "spare",
        "status",
    )

    def __init__(
        self,
        task: int,
        order: Order,
        rank: RankState,
        images: list[ImageState],
        avoid: Collection[int] = (),
    ) -> None:
        self.id = task
        self.kind, self.source, self.attempt, self.spare = order
        self.rank = rank
        self.status = WAITING
        self.avoid = avoid  # ranks that it must not go to while it is bound to none
        self.images = images
        self.inputs = images[0].count if len(images) == 1 else 1  # of a batch
        self.items: Sequence[Item] = ()
        self.group = images[0].group
        self.pending = len(images)  # images and runs of these, not yet resolved
        self.message: Message | None = None  # that it left in
        self.send_done = False

    @property
    def sent(self) -> bool:
        """Whether it has left."""
        return self.message is not None

    def take_apart(self) -> bool:
        """Each image by itself; whether there were runs."""
        before = len(self.images)
        self.images = list(chain.from_iterable([image.apart() for image in self.images]))
        return len(self.images) > before

    def each(self, cells: Sequence[Score | None]) -> Iterable[tuple[ImageState, Any]]:
        """Each image with its one of the cells, or run with those of its images."""
        if len(self.images) == len(cells):  # there is no run
            return zip(self.images, cells, strict=True)
        return [(self.images[0], cells)] if len(self.images) == 1 else self._each_run(cells)

    def _each_run(self, cells: Sequence[Score | None]) -> Iterator[tuple[ImageState, Any]]:
        at = 0
        for image in self.images:
            count = image.count  # of which some may be cut off meanwhile
            yield image, cells[at] if count == 1 else cells[at : at + count]
            at += count


class Message:
    """Tasks that left for a rank together: one batch there, over when its last one ends."""

    __slots__ = ("inputs", "left")

    def __init__(self, tasks: int) -> None:
        self.left = tasks  # not over yet
        self.inputs = 0  # of its network


class RankState:
    """A worker rank: what it can do, what it has, what waits for it."""

    __slots__ = (
        "credit",
        "failures",
        "gathered",
        "host",
        "id",
        "kinds",
        "messages",
        "outstanding",
        "queue",
        "status",
    )

    def __init__(self, rank: int, kinds: frozenset[str], host: str, credit: int) -> None:
        self.id = rank
        self.kinds = kinds
        self.host = host
        self.credit = credit
        self.status = READY
        self.failures = 0  # in a row
        self.outstanding: dict[int, TaskState] = {}
        self.messages = 0  # that the outstanding tasks left in
        self.queue: OrderedDict[int, TaskState] = OrderedDict()
        # kind -> tasks that wait for the others of their batch to come
        self.gathered: dict[str, OrderedDict[int, TaskState]] = {}

    @property
    def load(self) -> int:
        """Tasks outstanding or waiting to be sent."""
        load = len(self.outstanding) + len(self.queue)
        return load + sum(map(len, self.gathered.values())) if self.gathered else load

    def waiting(self) -> Iterator[TaskState]:
        """Tasks not sent yet, those that are next first."""
        return chain(self.queue.values(), *(kind.values() for kind in self.gathered.values()))

    def clear(self) -> list[TaskState]:
        """Nothing waits for it any more; what did."""
        waited = list(self.waiting())
        self.queue.clear()
        self.gathered.clear()
        return waited

    def forget(self, task: TaskState) -> bool:
        """The task need not be sent; whether it waited."""
        if self.queue.pop(task.id, None) is not None:
            return True
        gathered = self.gathered.get(task.kind)
        return gathered is not None and gathered.pop(task.id, None) is not None

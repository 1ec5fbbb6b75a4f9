"""The scheduler's records of images, groups, tasks and ranks, and the present turn's actions."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

from collage_mpi.scheduler.events import Action, Item, Score
from collage_mpi.scheduler.transitions import OPEN, READY, SETTLED, WAITING


class Turn:
    """The present time, and the results of the events that are being handled.

    Attributes:
        now_ns: time of the present event.
        actions: what the driver is to do, in order.
        released: images whose pixels no task needs any more.
    """

    def __init__(self) -> None:
        self.now_ns = 0
        self.actions: list[Action] = []
        self.released: list[int] = []


class Order(NamedTuple):
    """What kind of task is to be made.

    Attributes:
        kind: of the network that computes the task.
        source: the source of images that the task resolves, as in the results.
        attempt: 1 for the first task of an image.
        spare: a copy that does not count as an attempt, and is cancelled first.
    """

    kind: str
    source: str
    attempt: int = 1
    spare: bool = False


class ImageState:
    """An image from its arrival to the end of its last task, or a run of `count` images.

    The images of a run arrived together, have consecutive numbers and cells, and have the same
    history. A run is split before something happens to only some of its images.
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
        self.tasks: list[TaskState] = []  # its tasks that wait or are outstanding
        self.sends = 0  # tasks of the main kind that were made for it
        self.failures = 0  # tasks of the main kind that failed, were lost or gave no answer
        self.losses = 0  # tasks of the main kind that were lost with their rank
        self.copies = 0  # copies that the end game made
        self.bundled = False  # it was sent in a bundle
        self.drawn = False  # it is audited: the single network classifies it too
        self.decided_ns: int | None = None  # when its kept answer was accepted, before the audit
        self.tried: set[int] = set()  # ranks whose task for it failed or was lost
        self.backup: tuple[Score, TaskState] | None = None  # an answer instead of an error row
        self.reserve: tuple[Score, TaskState] | None = None  # an answer that counts at its timer
        self.hosts: tuple[str, ...] = ()  # hosts that could not read it
        self.reason = ""  # why its last task failed

    @property
    def held(self) -> bool:
        """Whether an answer is kept for the image."""
        return self.reserve is not None or self.backup is not None

    @property
    def resolved(self) -> bool:
        """Whether the image has its outcome."""
        return self.status in SETTLED

    @property
    def cells(self) -> range:
        """The cells of its images."""
        return range(self.cell, self.cell + self.count)

    def cut(self, count: int) -> ImageState:
        """Split off the first `count` images; the result is a run with the same history and no
        task."""
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
        """Split the run into single images, in its tasks and its group too, and return them."""
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
    """Images that share a collage if the scheme makes one. Groups are filled in arrival order."""

    __slots__ = ("apart", "closed", "due", "id", "images", "size", "t0_ns", "timers", "unresolved")

    def __init__(self, group: int, t0_ns: int) -> None:
        self.id = group
        self.t0_ns = t0_ns
        self.images: list[ImageState] = []
        self.size = 0  # number of images that have arrived
        self.closed = False
        self.apart: frozenset[int] = frozenset()  # ranks that get none of its single images
        self.unresolved = 0
        self.timers: set[int] = set()
        # (time, what to call) -> images to call it with; each entry has one timer
        self.due: dict[tuple[int, Callable[..., None]], list[ImageState]] = {}


class TaskState:
    """A task for one rank, from its making to its terminal event."""

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
        self.avoid = avoid  # ranks that must not take it while it is bound to no rank
        self.images = images
        self.inputs = images[0].count if len(images) == 1 else 1  # what it adds to a batch
        self.items: Sequence[Item] = ()
        self.group = images[0].group
        self.pending = len(images)  # entries of `images` that are not resolved
        self.message: Message | None = None  # the message that it left in
        self.send_done = False

    @property
    def sent(self) -> bool:
        """Whether it has left."""
        return self.message is not None

    def take_apart(self) -> bool:
        """Split its runs into single images; False if there were no runs."""
        before = len(self.images)
        self.images = list(chain.from_iterable([image.apart() for image in self.images]))
        return len(self.images) > before

    def each(self, cells: Sequence[Score | None]) -> Iterable[tuple[ImageState, Any]]:
        """Pairs (image, its cell), or (run, cells of its images)."""
        if len(self.images) == len(cells):  # there is no run
            return zip(self.images, cells, strict=True)
        return [(self.images[0], cells)] if len(self.images) == 1 else self._each_run(cells)

    def _each_run(self, cells: Sequence[Score | None]) -> Iterator[tuple[ImageState, Any]]:
        at = 0
        for image in self.images:
            count = image.count  # now: the caller may cut the run
            yield image, cells[at] if count == 1 else cells[at : at + count]
            at += count


class Message:
    """Tasks that left for a rank together, which computes them as one batch.

    The message is over when its last task ends.
    """

    __slots__ = ("inputs", "left")

    def __init__(self, tasks: int) -> None:
        self.left = tasks  # tasks that have not ended
        self.inputs = 0  # inputs of the network, in all tasks


class RankState:
    """A worker rank: its networks, its outstanding tasks, and the tasks that wait for it."""

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
        self.messages = 0  # number of messages with outstanding tasks
        self.queue: OrderedDict[int, TaskState] = OrderedDict()
        # kind -> tasks of an incomplete batch
        self.gathered: dict[str, OrderedDict[int, TaskState]] = {}

    @property
    def load(self) -> int:
        """Number of tasks that are outstanding or wait to be sent."""
        load = len(self.outstanding) + len(self.queue)
        return load + sum(map(len, self.gathered.values())) if self.gathered else load

    def waiting(self) -> Iterator[TaskState]:
        """The tasks that wait to be sent, in order."""
        return chain(self.queue.values(), *(kind.values() for kind in self.gathered.values()))

    def clear(self) -> list[TaskState]:
        """Remove and return the tasks that wait."""
        waited = list(self.waiting())
        self.queue.clear()
        self.gathered.clear()
        return waited

    def forget(self, task: TaskState) -> bool:
        """Remove a task that need not be sent; False if it did not wait."""
        if self.queue.pop(task.id, None) is not None:
            return True
        gathered = self.gathered.get(task.kind)
        return gathered is not None and gathered.pop(task.id, None) is not None

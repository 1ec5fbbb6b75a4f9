"""What the scheduler remembers of images, groups, tasks and ranks.

Owns: the mutable records and the two ways to choose a rank in O(1).
Does not know: schemes, policies, when anything happens.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from itertools import chain

from collage_mpi.scheduler.events import Item, Score
from collage_mpi.scheduler.transitions import OPEN, READY, SETTLED, WAITING


class ImageState:
    """An image between arrival and the end of its last task."""

    __slots__ = (
        "backup",
        "bundled",
        "cell",
        "copies",
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

    def __init__(self, image: int, group: GroupState, cell: int, t0_ns: int) -> None:
        self.id = image
        self.group = group
        self.cell = cell
        self.t0_ns = t0_ns
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


class GroupState:
    """Images encoded together; membership is by arrival order only."""

    __slots__ = ("apart", "closed", "due", "id", "images", "t0_ns", "timers", "unresolved")

    def __init__(self, group: int, t0_ns: int) -> None:
        self.id = group
        self.t0_ns = t0_ns
        self.images: list[ImageState] = []
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
        kind: str,
        source: str,
        rank: RankState,
        images: list[ImageState],
        attempt: int,
        avoid: Collection[int] = (),
    ) -> None:
        self.id = task
        self.kind = kind
        self.source = source  # what an image that it resolves is said to be resolved by
        self.rank = rank
        self.status = WAITING
        self.avoid = avoid  # ranks that it must not go to while it is bound to none
        self.images = images
        self.items: tuple[Item, ...] = ()
        self.group = images[0].group
        self.attempt = attempt
        self.pending = len(images)  # of these, not yet resolved
        self.message: Message | None = None  # that it left in
        self.send_done = False
        self.spare = False  # a copy that counts as no attempt, and is cancelled first

    @property
    def sent(self) -> bool:
        """Whether it has left."""
        return self.message is not None


class Message:
    """Tasks that left for a rank together: one batch there, over when its last one ends."""

    __slots__ = ("inputs", "left")

    def __init__(self, tasks: int, inputs: int) -> None:
        self.left = tasks  # not over yet
        self.inputs = inputs


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


class Pool:
    """The ready ranks of one kind, chosen round-robin or by least load.

    `pick_next` walks the ranks in order, so that image i of a full group goes
    to the i-th rank. `pick_least` takes the least loaded; buckets by load make
    it O(1) amortised, since a load changes by one at a time.
    """

    def __init__(self) -> None:
        self._order: list[int] = []
        self._cursor = 0
        self._load: dict[int, int] = {}
        self._levels: list[dict[int, None]] = [{}]
        self._lowest = 0  # no rank has a smaller load

    def __len__(self) -> int:
        return len(self._order)

    def __contains__(self, rank: int) -> bool:
        return rank in self._load

    def add(self, rank: int, load: int) -> None:
        """Enter a ready rank. O(number of ranks), rare."""
        self._order = sorted({*self._order, rank})
        self._load[rank] = load
        self._level(load)[rank] = None

    def discard(self, rank: int) -> None:
        """Take a rank out, if it is in. O(number of ranks), rare."""
        if rank in self._load:
            del self._levels[self._load.pop(rank)][rank]
            self._order.remove(rank)

    def change(self, rank: int, load: int) -> None:
        """Note a rank's new load, if it is in."""
        if rank in self._load:
            del self._levels[self._load[rank]][rank]
            self._load[rank] = load
            self._level(load)[rank] = None

    def has_other(self, ranks: Collection[int]) -> bool:
        """Whether there is a rank that is not one of these."""
        if not ranks:
            return bool(self._order)
        return len(self._order) > sum(rank in self._load for rank in ranks)

    def pick_next(self, avoid: Collection[int] = ()) -> int | None:
        """The next rank in turn that is not in `avoid`, or None if there is none."""
        for _ in range(len(self._order)):
            rank = self._order[self._cursor % len(self._order)]
            self._cursor = (self._cursor + 1) % len(self._order)
            if rank not in avoid:
                return rank
        return None

    def pick_spread(self, copies: int) -> list[int]:
        """`copies` different ranks (fewer if there are fewer) for one image, in turn.

        The ranks are taken as `copies` rows: the next one of the first row, and those
        under it, so that first copies go where they would go without the others.
        """
        copies = min(copies, len(self._order))
        if copies == 0:
            return []
        stride = len(self._order) // copies
        place = self._cursor % stride
        self._cursor = place + 1
        return [self._order[place + row * stride] for row in range(copies)]

    def pick_idle(self, avoid: Collection[int] = ()) -> int | None:
        """A rank with nothing outstanding or queued that is not in `avoid`, or None."""
        return next((rank for rank in self._levels[0] if rank not in avoid), None)

    def pick_least(self, avoid: Collection[int] = ()) -> int | None:
        """The least loaded rank not in `avoid`, longest unchanged first, or None."""
        if not self._order:
            return None
        while not self._levels[self._lowest]:
            self._lowest += 1
        for load in range(self._lowest, len(self._levels)):
            for rank in self._levels[load]:
                if rank not in avoid:
                    return rank
        return None

    def skip_turn(self) -> None:
        """The next rank in turn stands aside: its image needs none."""
        self._cursor += 1

    def _level(self, load: int) -> dict[int, None]:
        self._lowest = min(self._lowest, load)
        while len(self._levels) <= load:
            self._levels.append({})
        return self._levels[load]

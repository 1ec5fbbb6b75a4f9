"""The ranks that take work: who is idle, who has room, and which of them gets a task."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from math import inf

from collage_mpi.scheduler.rank_speed import Health, Paces
from collage_mpi.scheduler.state import RankState, TaskState, Turn

_Place = tuple[float, float, int]  # service time, turn, rank


class RankPool:
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


class Room:
    """The ranks of one kind that have room for a message, where ranks pull.

    A rank is found in O(credit): only ranks that may not have the task are passed over.
    """

    def __init__(self) -> None:
        self._turn = 0  # of equally fast ranks the one that has had room for longest comes first
        self._ranks: dict[int, tuple[int, _Place]] = {}  # rank -> messages it has, its place
        self._levels: list[list[_Place]] = [[]]  # the same, sorted, by messages

    def __contains__(self, rank: int) -> bool:
        return rank in self._ranks

    def __len__(self) -> int:
        return len(self._ranks)

    @property
    def idle(self) -> int:
        """Ranks without a message."""
        return len(self._levels[0])

    def idle_within(self, limit_ns: float) -> int:
        """Those of them that are not slower than the limit."""
        return bisect_left(self._levels[0], (limit_ns, inf, 0))

    def add(self, rank: int, messages: int, pace_ns: float) -> None:
        """The rank, of that running service time, has room beside so many messages."""
        if rank in self._ranks:
            self.discard(rank)
        while len(self._levels) <= messages:
            self._levels.append([])
        self._turn += 1
        place = (pace_ns, self._turn, rank)
        insort(self._levels[messages], place)
        self._ranks[rank] = messages, place

    def discard(self, rank: int) -> None:
        """It takes nothing, for now or for good."""
        found = self._ranks.pop(rank, None)
        if found is not None:
            level = self._levels[found[0]]
            del level[bisect_left(level, found[1])]

    def pick(self, avoid: Collection[int], limit_ns: float = inf) -> int | None:
        """The rank with the fewest messages, of these the fastest, that is not in `avoid` nor
        slower than the limit; or None."""
        for level in self._levels:
            for pace_ns, _, rank in level:
                if pace_ns > limit_ns:
                    break
                if rank not in avoid:
                    return rank
        return None

    def fastest(self) -> Iterator[int]:
        """For each number of messages the fastest rank with so many, the smallest number first."""
        return (level[0][2] for level in self._levels if level)


class ReadyRanks:
    """All ranks that were ready once, and of those that take work, by kind, how busy they are.

    Attributes:
        known: rank -> its record.
        health: their order of finish, where it is watched; `paces`: their service times.
        pulls: whether a task is bound to no rank until one has room for it.
        counts_tasks: whether it is asked which rank has least to do. Where ranks pull it is only
            asked which rank has nothing, which its messages say.
        pools: kind -> the ready ranks that hold a network of it.
    """

    def __init__(
        self,
        turn: Turn,
        health: Health | None = None,
        paces: Paces | None = None,
        *,
        pulls: bool = False,
    ) -> None:
        self.known: dict[int, RankState] = {}
        self.health, self.paces, self.pulls = health, health or paces, pulls
        self._turn = turn
        self.counts_tasks = health is not None or not pulls
        self.pools: defaultdict[str, RankPool] = defaultdict(RankPool)
        self._rooms: defaultdict[str, Room] = defaultdict(Room)
        self._changed: dict[int, RankState] = {}  # whose room is looked at before it is asked for

    def enter(self, rank: RankState) -> None:
        """The rank takes work."""
        self.known[rank.id] = rank
        for kind in sorted(rank.kinds):
            self.pools[kind].add(rank.id, rank.load)
        if self.paces is not None:
            self.paces.enter(rank, self.now_ns)
        self.room_changed(rank)

    def leave(self, rank: RankState) -> None:
        """The rank takes no more work."""
        for kind in rank.kinds:
            self.pools[kind].discard(rank.id)
        self.room_changed(rank)
        if self.paces is not None:
            self.paces.leave(rank)

    @property
    def now_ns(self) -> int:
        """The present time."""
        return self._turn.now_ns

    # ---- who there is -------------------------------------------------------

    def count(self, kind: str) -> int:
        """How many ready ranks hold a network of the kind."""
        return len(self.pools[kind])

    def has_idle(self, kind: str) -> bool:
        """Whether a ready rank of the kind has nothing to do."""
        return self.pools[kind].pick_idle() is not None

    def pick_idle(self, kind: str, avoid: Collection[int]) -> int | None:
        """A rank of the kind that has nothing to do, the fastest where that is watched."""
        if self.health is None:
            return self.pools[kind].pick_idle(avoid)
        return self.health.pick_idle(kind, self._turn.now_ns, avoid)

    def first_to_finish(self, kind: str, count: int) -> list[int]:
        """The ranks that would finish a task of the kind first; () if ranks are not watched."""
        return [] if self.health is None else self.health.first(kind, count, self.now_ns)

    def pace_ns(self, rank: int) -> float:
        """Running service time of a single image on the rank; 0 if none is known."""
        return 0.0 if self.paces is None else self.paces.service_ns(rank)

    def portion(self, kind: str, rank: int, batch: int) -> int:
        """Tasks of a message for the rank, a batch at most."""
        return batch if batch == 1 or self.paces is None else self.paces.portion(kind, rank)

    # ---- what has changed ---------------------------------------------------

    def begins(self, rank: RankState) -> None:
        """The rank is sent one more message."""
        if self.health is not None and not rank.messages:
            self.health.turned(rank, self.now_ns)
        rank.messages += 1
        if self.paces is not None:
            self.paces.busy(rank.id)
        self.room_changed(rank)

    def ended(self, task: TaskState, service_ns: int) -> None:
        """The task is over. With the last task of a message its rank has one message less.

        `service_ns`: how long the rank was at work on the task, 0 if that is not known.
        """
        rank = task.rank
        over = task.message is not None and not task.message.left
        if over:
            rank.messages -= 1
            if self.paces is not None:
                self.paces.observe(task, service_ns)
                if not rank.messages:
                    self.paces.idle(rank.id, self.now_ns)
            self.room_changed(rank)
        if self.health is not None:
            self.health.turned(rank, self.now_ns)
        if self.counts_tasks or (over and not rank.messages):
            self.load_changed(rank)

    def load_changed(self, rank: RankState) -> None:
        """What the rank has to do is more or less."""
        load = rank.load
        for kind in rank.kinds:
            self.pools[kind].change(rank.id, load)
        if self.health is not None:
            self.health.changed(rank)

    def room_changed(self, rank: RankState) -> None:
        """Its number of messages, its service time or whether it takes work has changed."""
        if self.pulls:
            self._changed.pop(rank.id, None)  # of ranks that are equal the last to change is last
            self._changed[rank.id] = rank

    @property
    def rooms(self) -> Mapping[str, Room]:
        """Kind -> the ready ranks that hold a network of it and have room, where ranks pull."""
        if self._changed:
            changed, self._changed = self._changed, {}
            for rank in changed.values():
                for kind in rank.kinds:
                    if rank.messages < rank.credit and rank.id in self.pools[kind]:
                        self._rooms[kind].add(rank.id, rank.messages, self.pace_ns(rank.id))
                    else:
                        self._rooms[kind].discard(rank.id)
        return self._rooms

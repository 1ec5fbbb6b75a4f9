"""The ranks that take work: which are idle, which have room, and which gets a task."""

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

    `pick_next` takes the ranks in order, so that image i of a full group goes to the i-th rank.
    `pick_least` takes the rank with the fewest tasks. It is O(1) amortised, because ranks are kept
    in buckets by load and a load changes by one at a time.
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
        """Add a ready rank. O(number of ranks), rare."""
        self._order = sorted({*self._order, rank})
        self._load[rank] = load
        self._level(load)[rank] = None

    def discard(self, rank: int) -> None:
        """Remove a rank, if it is there. O(number of ranks), rare."""
        if rank in self._load:
            del self._levels[self._load.pop(rank)][rank]
            self._order.remove(rank)

    def change(self, rank: int, load: int) -> None:
        """Note the new load of a rank, if it is there."""
        if rank in self._load:
            del self._levels[self._load[rank]][rank]
            self._load[rank] = load
            self._level(load)[rank] = None

    def has_other(self, ranks: Collection[int]) -> bool:
        """Whether there is a rank besides these."""
        if not ranks:
            return bool(self._order)
        return len(self._order) > sum(rank in self._load for rank in ranks)

    def pick_next(self, avoid: Collection[int]) -> int | None:
        """The next rank in turn that is not in `avoid`, or None if there is none."""
        for _ in range(len(self._order)):
            rank = self._order[self._cursor % len(self._order)]
            self._cursor = (self._cursor + 1) % len(self._order)
            if rank not in avoid:
                return rank
        return None

    def pick_spread(self, copies: int) -> list[int]:
        """Up to `copies` different ranks for one image, in turn.

        The ranks are laid out in `copies` rows. The result is the next rank of the first row, and
        the ranks below it. So the first copies go to the ranks in turn, as without further copies.
        """
        copies = min(copies, len(self._order))
        if copies == 0:
            return []
        stride = len(self._order) // copies
        place = self._cursor % stride
        self._cursor = place + 1
        return [self._order[place + row * stride] for row in range(copies)]

    def pick_idle(self, avoid: Collection[int] = ()) -> int | None:
        """A rank without tasks that is not in `avoid`, or None."""
        return next((rank for rank in self._levels[0] if rank not in avoid), None)

    def pick_least(self, avoid: Collection[int]) -> int | None:
        """The least loaded rank not in `avoid`, or None; of equals, the longest unchanged."""
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
        """Skip the next rank in turn, because its image is not sent."""
        self._cursor += 1

    def _level(self, load: int) -> dict[int, None]:
        self._lowest = min(self._lowest, load)
        while len(self._levels) <= load:
            self._levels.append({})
        return self._levels[load]


class Room:
    """The ranks of one kind that have room for a message, if ranks pull.

    A rank is found in O(credit), plus the ranks in `avoid` that are skipped.
    """

    def __init__(self) -> None:
        self._turn = 0  # grows: of equally fast ranks the one that has had room longest is first
        self._ranks: dict[int, tuple[int, _Place]] = {}  # rank -> its messages, its place
        self._levels: list[list[_Place]] = [[]]  # number of messages -> sorted places

    def __contains__(self, rank: int) -> bool:
        return rank in self._ranks

    def __len__(self) -> int:
        return len(self._ranks)

    @property
    def idle(self) -> int:
        """Number of ranks without a message."""
        return len(self._levels[0])

    def add(self, rank: int, messages: int, pace_ns: float) -> None:
        """Add a rank that has room; `messages`: those that it has, `pace_ns`: its service time."""
        if rank in self._ranks:
            self.discard(rank)
        while len(self._levels) <= messages:
            self._levels.append([])
        self._turn += 1
        place = (pace_ns, self._turn, rank)
        insort(self._levels[messages], place)
        self._ranks[rank] = messages, place

    def discard(self, rank: int) -> None:
        """Remove a rank that has no room, or takes no more work."""
        found = self._ranks.pop(rank, None)
        if found is not None:
            level = self._levels[found[0]]
            del level[bisect_left(level, found[1])]

    def pick(self, avoid: Collection[int], limit_ns: float = inf) -> int | None:
        """The rank with the fewest messages, or None; of equals, the fastest.

        Ranks that are in `avoid` or slower than the limit are skipped.
        """
        for level in self._levels:
            for pace_ns, _, rank in level:
                if pace_ns > limit_ns:
                    break
                if rank not in avoid:
                    return rank
        return None

    def fastest(self) -> Iterator[int]:
        """The fastest rank for each number of messages, the smallest number first."""
        return (level[0][2] for level in self._levels if level)


class ReadyRanks:
    """All ranks that were ever ready, and how busy those are that take work.

    Attributes:
        known: rank -> its record.
        health: the order in which ranks would finish; None if it is not watched.
        paces: the ranks' service times; None if they are not watched.
        pulls: a task is bound to a rank only when the rank has room for it.
        counts_tasks: each change of a rank's load is noted. If ranks pull, it is enough to know
            which ranks are idle, which the number of their messages says.
        pools: kind -> the ready ranks that hold a network of this kind.
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
        self._changed: dict[int, RankState] = {}  # ranks whose room is worked out when asked for

    def enter(self, rank: RankState) -> None:
        """Add a rank that takes work."""
        self.known[rank.id] = rank
        for kind in sorted(rank.kinds):
            self.pools[kind].add(rank.id, rank.load)
        if self.paces is not None:
            self.paces.enter(rank, self.now_ns)
        self.room_changed(rank)

    def leave(self, rank: RankState) -> None:
        """Remove a rank that takes no more work."""
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
        """Number of ready ranks that hold a network of the kind."""
        return len(self.pools[kind])

    def has_idle(self, kind: str) -> bool:
        """Whether a ready rank of the kind is idle."""
        return self.pools[kind].pick_idle() is not None

    def pick_idle(self, kind: str, avoid: Collection[int]) -> int | None:
        """An idle rank of the kind, or None; the fastest one if speed is watched."""
        if self.health is None:
            return self.pools[kind].pick_idle(avoid)
        return self.health.pick_idle(kind, self._turn.now_ns, avoid)

    def first_to_finish(self, kind: str, count: int) -> list[int]:
        """At most `count` ranks that would finish a task first; [] if that is not watched."""
        return [] if self.health is None else self.health.first(kind, count, self.now_ns)

    def pace_ns(self, rank: int) -> float:
        """Recent service time of a single image on the rank; 0 if none is known."""
        return 0.0 if self.paces is None else self.paces.service_ns(rank)

    def portion(self, kind: str, rank: int) -> int:
        """Most tasks of a message for the rank. Only ranks that pull are asked."""
        assert self.paces is not None
        return self.paces.portion(kind, rank)

    # ---- what has changed ---------------------------------------------------

    def begins(self, rank: RankState) -> None:
        """Note that the rank is sent one more message."""
        if self.health is not None and not rank.messages:
            self.health.turned(rank, self.now_ns)
        rank.messages += 1
        if self.paces is not None:
            self.paces.busy(rank.id)
        self.room_changed(rank)

    def ended(self, task: TaskState, service_ns: int) -> None:
        """Note that the task is over. With the last task of a message the message is over.

        `service_ns`: how long the rank worked on the task, 0 if that is not known.
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
        """The number of the rank's tasks has changed."""
        load = rank.load
        for kind in rank.kinds:
            self.pools[kind].change(rank.id, load)
        if self.health is not None:
            self.health.changed(rank)

    def room_changed(self, rank: RankState) -> None:
        """The rank's messages, its service time, or whether it takes work has changed."""
        if self.pulls:
            self._changed.pop(rank.id, None)  # the rank that changed last comes last among equals
            self._changed[rank.id] = rank

    @property
    def rooms(self) -> Mapping[str, Room]:
        """Kind -> the ready ranks of this kind that have room, if ranks pull."""
        if self._changed:
            changed, self._changed = self._changed, {}
            for rank in changed.values():
                for kind in rank.kinds:
                    if rank.messages < rank.credit and rank.id in self.pools[kind]:
                        self._rooms[kind].add(rank.id, rank.messages, self.pace_ns(rank.id))
                    else:
                        self._rooms[kind].discard(rank.id)
        return self._rooms

"""How fast the ranks have been lately, which of them are slow, and which would finish a task first.

A rank's service time is the median of its last few, compute and held, each divided by the
cost of its kind of network, and of its batch: robust against one slow answer, and soon aware
of a rank that is slow for long. A task that takes longer than that is expected to take as long
again as it is late: what has lasted long in a heavy tail will last. A rank that has not
answered yet comes first while it is idle, and counts as a typical one once it has a task.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict, deque
from collections.abc import Collection, Iterator, Mapping
from math import inf

from collage_mpi.scheduler.settings import batch_factor
from collage_mpi.scheduler.state import RankState, TaskState

WINDOW = 9  # service times remembered of a rank
SLOW = 1.5  # times the median pace of the ranks of a kind: a rank beyond it is slow
PROBE_AFTER = 100  # of its service times idle: a slow rank is tried again


class Pace:
    """One rank's service times, and when its present task began."""

    __slots__ = ("_last", "_sorted", "begun_ns", "service_ns")

    def __init__(self) -> None:
        self._last: deque[float] = deque()
        self._sorted: list[float] = []
        self.service_ns = 0.0  # of a single image; 0 until one is known
        self.begun_ns = 0  # since when it has been at work, or idle

    def observe(self, service_ns: float) -> None:
        """One more service time."""
        if len(self._last) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self._last.popleft())]
        self._last.append(service_ns)
        insort(self._sorted, service_ns)
        self.service_ns = self._sorted[(len(self._sorted) - 1) // 2]


class Paces:
    """Running service times of the ranks, and which of them are slow beside the others of a kind.

    Args:
        costs: kind -> its network's service time over the single's; 1 where it is not named.
        batch_costs: kind -> what a further input of a batch takes over the first; 1 likewise.
        batch: tasks in a whole batch.
    """

    def __init__(
        self,
        costs: Mapping[str, float],
        batch_costs: Mapping[str, float] | None = None,
        batch: int = 1,
    ) -> None:
        self._costs = dict(costs)
        self._batch_costs = dict(batch_costs or {})
        self._batch = batch
        self._paces: dict[int, Pace] = {}
        self._ranks: dict[int, RankState] = {}
        self._idle: dict[int, int] = {}  # rank -> since when it has nothing to do
        # kind -> (service time, rank) of those that take work, sorted
        self._by_pace: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)

    def enter(self, rank: RankState, now_ns: int) -> None:
        """The rank takes work."""
        pace = self._paces.setdefault(rank.id, Pace())
        pace.begun_ns = now_ns
        self._ranks[rank.id] = rank
        self._sort(rank)

    def leave(self, rank: RankState) -> None:
        """It takes no more work."""
        self._idle.pop(rank.id, None)
        if self._ranks.pop(rank.id, None) is not None:
            self._unsort(rank, self._paces[rank.id].service_ns)

    def _sort(self, rank: RankState) -> None:
        entry = (self._paces[rank.id].service_ns, rank.id)
        for kind in rank.kinds:
            insort(self._by_pace[kind], entry)

    def _unsort(self, rank: RankState, service_ns: float) -> None:
        entry = (service_ns, rank.id)
        for kind in rank.kinds:
            entries = self._by_pace[kind]
            del entries[bisect_left(entries, entry)]

    def service_ns(self, rank: int) -> float:
        """Running service time of a single image on the rank; 0 until one is known."""
        return self._paces[rank].service_ns

    def limit_ns(self, kind: str) -> float:
        """The service time beyond which a rank of the kind is slow; without end while less than
        half of them are known."""
        entries = self._by_pace[kind]
        median_ns = entries[(len(entries) - 1) // 2][0] if entries else 0.0
        return SLOW * median_ns or inf

    def meanwhile(self, kind: str, rank: int) -> float:
        """How many tasks of the kind the quick ranks begin while the rank does one.

        The task that each quick rank is at work on already does not count.
        """
        limit_ns = self.limit_ns(kind)
        quick = bisect_right(self._by_pace[kind], (limit_ns, inf))
        return quick * (SLOW * self._paces[rank].service_ns / limit_ns - 1)

    def has_quick(self, kind: str, avoid: Collection[int]) -> bool:
        """Whether a rank of the kind that is not slow, nor in `avoid`, takes work."""
        limit_ns = self.limit_ns(kind)
        quick = bisect_right(self._by_pace[kind], (limit_ns, inf))
        for rank in avoid:
            there = rank in self._ranks and kind in self._ranks[rank].kinds
            quick -= there and self._paces[rank].service_ns <= limit_ns
        return quick > 0

    def idle(self, rank: int, now_ns: int) -> None:
        """It has nothing to do from now on."""
        self._idle[rank] = now_ns

    def busy(self, rank: int) -> None:
        """It has."""
        self._idle.pop(rank, None)

    def forget_one(self, now_ns: int) -> RankState | None:
        """Look at one idle rank, each in turn. If it is slow and has been idle for PROBE_AFTER of
        its service times, these are forgotten: the rank, if so."""
        rank_id = next(iter(self._idle), None)
        if rank_id is None:
            return None
        since_ns, pace = self._idle.pop(rank_id), self._paces[rank_id]
        rank = self._ranks.get(rank_id)
        if rank is None:
            return None
        slow = any(pace.service_ns > self.limit_ns(kind) for kind in rank.kinds)
        if not slow or now_ns - since_ns <= PROBE_AFTER * pace.service_ns:
            self._idle[rank_id] = since_ns
            return None
        self._unsort(rank, pace.service_ns)
        self._paces[rank_id] = Pace()
        self._sort(rank)
        return rank

    def observe(self, task: TaskState, service_ns: int) -> bool:
        """An answer says how long the rank was at work on it; whether it says anything."""
        if service_ns <= 0:
            return False
        rank, pace = task.rank, self._paces[task.rank.id]
        before_ns = pace.service_ns
        pace.observe(service_ns / self._message_cost(task))
        if pace.service_ns != before_ns and rank.id in self._ranks:
            self._unsort(rank, before_ns)
            self._sort(rank)
        return True

    def _message_cost(self, task: TaskState) -> float:
        """What the message that the task left in takes, over one single image."""
        inputs = 1 if task.message is None else task.message.inputs
        return self._costs.get(task.kind, 1.0) * self._batch_cost(task.kind, inputs)

    def _batch_cost(self, kind: str, size: int) -> float:
        """A batch over one input."""
        return batch_factor(size, self._batch_costs.get(kind, 1.0))


class Health(Paces):
    """Beside the paces, the ranks of a kind in order of finish.

    Idle ranks are sorted by their service time, busy ones by when they would be done with
    one more task: both stay true as time passes, but for a task that is overdue, whose rank
    is sorted in again when its turn comes (and, for a while, a rank nothing is known of).
    So a choice is O(log ranks) amortised. Args as of `Paces`.
    """

    def __init__(
        self,
        costs: Mapping[str, float],
        batch_costs: Mapping[str, float] | None = None,
        batch: int = 1,
    ) -> None:
        super().__init__(costs, batch_costs, batch)
        self._typical = Pace()  # of all ranks, for one that has not answered yet
        self._orders: dict[str, _Order] = {}
        self._changed: dict[str, set[int]] = {}  # kind -> ranks to be sorted in before a choice

    def enter(self, rank: RankState, now_ns: int) -> None:
        """The rank takes work."""
        super().enter(rank, now_ns)
        self.changed(rank)

    def leave(self, rank: RankState) -> None:
        """It takes no more work."""
        super().leave(rank)
        for kind in rank.kinds:
            if kind in self._orders:
                self._orders[kind].remove(rank.id)
            self._changed[kind].discard(rank.id)

    # ---- what happens to a rank ---------------------------------------------

    def turned(self, rank: RankState, now_ns: int) -> None:
        """It begins a task, or is idle, from now on."""
        self._paces[rank.id].begun_ns = now_ns

    def changed(self, rank: RankState) -> None:
        """What it has to do, or its service time, is another."""
        if rank.id in self._ranks:
            for kind in rank.kinds:
                self._changed.setdefault(kind, set()).add(rank.id)

    def observe(self, task: TaskState, service_ns: int) -> bool:
        """As of `Paces`."""
        if not super().observe(task, service_ns):
            return False
        self._typical.observe(service_ns / self._message_cost(task))
        self.changed(task.rank)
        return True

    # ---- choices ------------------------------------------------------------

    def pick(self, kind: str, now_ns: int, avoid: Collection[int] = ()) -> int | None:
        """The rank that would finish one more task of the kind first, or None."""
        order = self._sorted(kind, now_ns)
        late = order.slowest_idle()
        if late is not None and late not in avoid and self._wants_probe(late, now_ns):
            return late
        return self._by_finish(order, kind, now_ns, avoid)

    def first(self, kind: str, count: int, now_ns: int) -> list[int]:
        """The `count` ranks that would finish first, fewer if there are fewer."""
        found: list[int] = []
        order = self._sorted(kind, now_ns)
        while len(found) < count:
            rank = self._by_finish(order, kind, now_ns, found)
            if rank is None:
                break
            found.append(rank)
        return found

    def pick_idle(self, kind: str, now_ns: int, avoid: Collection[int] = ()) -> int | None:
        """The fastest idle rank, or None."""
        return next((r for r in self._sorted(kind, now_ns).idle() if r not in avoid), None)

    def _wants_probe(self, rank: int, now_ns: int) -> bool:
        pace = self._paces[rank]
        return now_ns - pace.begun_ns > PROBE_AFTER * pace.service_ns > 0

    def _by_finish(
        self, order: _Order, kind: str, now_ns: int, avoid: Collection[int]
    ) -> int | None:
        cost = self._costs.get(kind, 1.0)
        idle = next((r for r in order.idle() if r not in avoid), None)
        idle_ns = None if idle is None else now_ns + self._paces[idle].service_ns * cost
        place = 0
        while (entry := order.busy_at(place)) is not None:
            at_ns, rank = entry
            if idle_ns is not None and at_ns >= idle_ns:
                break
            if rank in avoid:
                place += 1
                continue
            true_ns = self._finish_ns(self._ranks[rank], kind, now_ns)
            if true_ns > at_ns:  # overdue since it was sorted in
                order.put_busy(rank, true_ns)
                continue
            return rank
        return idle

    # ---- times --------------------------------------------------------------

    def _finish_ns(self, rank: RankState, kind: str, now_ns: int) -> float:
        """When one more task of the kind would be done."""
        pace = self._paces[rank.id]
        service_ns = pace.service_ns or self._typical.service_ns
        first = next(iter(rank.outstanding.values()), None)
        over_ns = 0.0
        if first is not None:
            over_ns = now_ns - pace.begun_ns - service_ns * self._message_cost(first)
        free_ns = now_ns + abs(over_ns)
        each_ns = service_ns + max(0.0, over_ns)
        waiting = rank.load - len(rank.outstanding)
        for task in rank.outstanding.values():
            waiting += task.pending > 0 and task.message is not first.message  # type: ignore[union-attr]
        share = self._batch_cost(kind, self._batch) / self._batch  # of a batch
        return free_ns + each_ns * (waiting * share + self._costs.get(kind, 1.0))

    def _sorted(self, kind: str, now_ns: int) -> _Order:
        """The ranks of the kind, those that have changed since the last choice sorted in."""
        order = self._orders.setdefault(kind, _Order())
        changed = self._changed.setdefault(kind, set())
        for rank_id in changed:
            rank = self._ranks[rank_id]
            if rank.load:
                order.put_busy(rank_id, self._finish_ns(rank, kind, now_ns))
            else:
                order.put_idle(rank_id, self._paces[rank_id].service_ns)
        changed.clear()
        return order


class _Order:
    """The ready ranks of one kind, the idle and the busy ones each sorted by a number."""

    def __init__(self) -> None:
        self._idle: list[tuple[float, int]] = []
        self._busy: list[tuple[float, int]] = []
        self._where: dict[int, tuple[list[tuple[float, int]], tuple[float, int]]] = {}

    def remove(self, rank: int) -> None:
        if rank in self._where:
            entries, entry = self._where.pop(rank)
            del entries[bisect_left(entries, entry)]

    def put_idle(self, rank: int, service_ns: float) -> None:
        self._put(self._idle, rank, service_ns)

    def put_busy(self, rank: int, finish_ns: float) -> None:
        self._put(self._busy, rank, finish_ns)

    def _put(self, entries: list[tuple[float, int]], rank: int, key: float) -> None:
        self.remove(rank)
        entry = key, rank
        insort(entries, entry)
        self._where[rank] = entries, entry

    def idle(self) -> Iterator[int]:
        return (rank for _, rank in self._idle)

    def slowest_idle(self) -> int | None:
        return self._idle[-1][1] if self._idle else None

    def busy_at(self, place: int) -> tuple[float, int] | None:
        return self._busy[place] if place < len(self._busy) else None

"""How fast the ranks have been recently, which are slow, and which would finish a task first.

A rank's service time is the median over its last few messages. Each counts its computation, divided
by the cost of its kind of network and of its batch. The median ignores a single slow answer, and
soon shows that a rank stays slow. A task that is late by some time is expected to take
that time once more, because in a heavy tail what has lasted long will last. A rank that has not
answered yet is chosen first while it is idle; once it has a task it counts as a typical rank.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import defaultdict, deque
from collections.abc import Collection, Mapping
from math import ceil, inf

from collage_mpi.scheduler.settings import batch_factor
from collage_mpi.scheduler.state import RankState, TaskState

WINDOW = 9  # service times that are kept of a rank
SLOW = 1.5  # a rank is slow if its service time is over SLOW times the median of its kind
PROBE_AFTER = 100  # a slow rank is tried again when it was idle for this many service times
SLICE_NS = 5_000_000  # less work than this is not split: a message costs rank 0 some 50 us


class Ranking:
    """Ranks sorted by a number.

    Attributes:
        entries: (number, rank), sorted.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[float, int]] = []
        self._numbers: dict[int, float] = {}

    def put(self, rank: int, number: float) -> None:
        """Set the rank's number."""
        self.discard(rank)
        insort(self.entries, (number, rank))
        self._numbers[rank] = number

    def discard(self, rank: int) -> None:
        """Remove the rank, if it is there."""
        number = self._numbers.pop(rank, None)
        if number is not None:
            del self.entries[bisect_left(self.entries, (number, rank))]


class Pace:
    """One rank's recent service times, and when its present task began."""

    __slots__ = ("_last", "_sorted", "begun_ns", "service_ns")

    def __init__(self) -> None:
        self._last: deque[float] = deque()
        self._sorted: list[float] = []
        self.service_ns = 0.0  # median, for a single image; 0 until one is known
        self.begun_ns = 0  # when the rank began its present task, or became idle

    def observe(self, service_ns: float) -> None:
        """Add a service time."""
        if len(self._last) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self._last.popleft())]
        self._last.append(service_ns)
        insort(self._sorted, service_ns)
        self.service_ns = self._sorted[(len(self._sorted) - 1) // 2]


class Paces:
    """Recent service times of the ranks, and which ranks are slow compared with others of a kind.

    Args:
        costs: kind -> service time of its network divided by that of the single network; 1 if the
            kind is missing.
        batch_costs: kind -> time of a further input of a batch divided by the time of the first; 1
            if the kind is missing.
        batch: tasks in a full batch.
    """

    def __init__(
        self,
        costs: Mapping[str, float],
        batch_costs: Mapping[str, float],
        batch: int,
    ) -> None:
        self._costs = dict(costs)
        self._batch_costs = dict(batch_costs)
        self._batch = batch
        self._paces: dict[int, Pace] = {}
        self._ranks: dict[int, RankState] = {}
        self._idle: dict[int, int] = {}  # rank -> since when it has been idle
        # kind -> the ranks that take work, by service time
        self._by_pace: defaultdict[str, Ranking] = defaultdict(Ranking)

    def enter(self, rank: RankState, now_ns: int) -> None:
        """Add a rank that takes work."""
        pace = self._paces.setdefault(rank.id, Pace())
        pace.begun_ns = now_ns
        self._ranks[rank.id] = rank
        self._sort(rank)

    def leave(self, rank: RankState) -> None:
        """Remove a rank that takes no more work."""
        self._idle.pop(rank.id, None)
        self._ranks.pop(rank.id, None)
        for kind in rank.kinds:
            self._by_pace[kind].discard(rank.id)

    def _sort(self, rank: RankState) -> None:
        for kind in rank.kinds:
            self._by_pace[kind].put(rank.id, self._paces[rank.id].service_ns)

    def service_ns(self, rank: int) -> float:
        """Recent service time of a single image on the rank; 0 until one is known."""
        return self._paces[rank].service_ns

    def limit_ns(self, kind: str) -> float:
        """The service time above which a rank of the kind is slow.

        Infinite while fewer than half of the service times are known.
        """
        entries = self._by_pace[kind].entries
        median_ns = entries[(len(entries) - 1) // 2][0] if entries else 0.0
        return SLOW * median_ns or inf

    def portion(self, kind: str, rank: int) -> int:
        """Most tasks of a message for the rank: a batch, or fewer if the rank is slow.

        A slow rank gets what it can finish in the time that the others need for a batch, but at
        least SLICE_NS of work.
        """
        if self._batch == 1:
            return 1
        pace_ns, limit_ns = self._paces[rank].service_ns, self.limit_ns(kind)
        if pace_ns <= limit_ns:
            return self._batch
        unsplit = ceil(SLICE_NS / (pace_ns * self._costs.get(kind, 1.0)))
        return min(self._batch, max(int(self._batch * limit_ns / (SLOW * pace_ns)), unsplit))

    def meanwhile(self, kind: str, rank: int) -> float:
        """How many tasks of the kind the quick ranks begin while the slow rank does one.

        The task that each quick rank is computing already does not count.
        """
        limit_ns = self.limit_ns(kind)
        quick = bisect_right(self._by_pace[kind].entries, (limit_ns, inf))
        return quick * (SLOW * self._paces[rank].service_ns / limit_ns - 1)

    def has_quick(self, kind: str, avoid: Collection[int]) -> bool:
        """Whether some rank of the kind is neither slow nor in `avoid`."""
        limit_ns = self.limit_ns(kind)
        quick = bisect_right(self._by_pace[kind].entries, (limit_ns, inf))
        for rank in avoid:
            there = rank in self._ranks and kind in self._ranks[rank].kinds
            quick -= there and self._paces[rank].service_ns <= limit_ns
        return quick > 0

    def idle(self, rank: int, now_ns: int) -> None:
        """The rank is idle from now on."""
        self._idle[rank] = now_ns

    def busy(self, rank: int) -> None:
        """The rank has work from now on."""
        self._idle.pop(rank, None)

    def forget_one(self, now_ns: int) -> RankState | None:
        """Forget the service times of one rank that is slow and has long been idle.

        Each call looks at one idle rank, each in turn. It is long idle after PROBE_AFTER of its
        service times.

        Returns:
            The rank, or None if nothing was forgotten.
        """
        rank_id = next(iter(self._idle), None)
        if rank_id is None:
            return None
        since_ns, pace = self._idle.pop(rank_id), self._paces[rank_id]
        rank = self._ranks.get(rank_id)
        if rank is None:
            return None
        recent = now_ns - since_ns <= PROBE_AFTER * pace.service_ns
        if recent or not any(pace.service_ns > self.limit_ns(kind) for kind in rank.kinds):
            self._idle[rank_id] = since_ns
            return None
        self._paces[rank_id] = Pace()
        self._sort(rank)
        return rank

    def observe(self, task: TaskState, service_ns: int) -> bool:
        """Note how long the rank worked on an answered task; False if `service_ns` is not known."""
        if service_ns <= 0:
            return False
        rank, pace = task.rank, self._paces[task.rank.id]
        before_ns = pace.service_ns
        pace.observe(service_ns / self._message_cost(task))
        if pace.service_ns != before_ns and rank.id in self._ranks:
            self._sort(rank)
        return True

    def _message_cost(self, task: TaskState) -> float:
        """Cost of the task's message, relative to one single image."""
        inputs = 1 if task.message is None else task.message.inputs
        cost = self._costs.get(task.kind, 1.0)
        return cost if inputs == 1 else cost * self._batch_cost(task.kind, inputs)

    def _batch_cost(self, kind: str, size: int) -> float:
        """Cost of a batch, relative to one input."""
        return batch_factor(size, self._batch_costs.get(kind, 1.0))


class Health(Paces):
    """Service times, and the ranks of a kind in the order in which they would finish a task.

    Idle ranks are sorted by service time, and busy ranks by the time at which they would finish one
    more task. Both orders stay right as time passes, except for a rank with an overdue task, which
    is sorted again when it would be chosen (and, for a while, a rank that has not answered yet). So
    a choice is O(log ranks) amortised. The arguments are those of `Paces`.
    """

    def __init__(
        self,
        costs: Mapping[str, float],
        batch_costs: Mapping[str, float],
        batch: int,
    ) -> None:
        super().__init__(costs, batch_costs, batch)
        self._typical = Pace()  # over all ranks, for a rank that has not answered yet
        # kind -> idle ranks by service time; kind -> busy ranks by when they would finish
        self._idlers: defaultdict[str, Ranking] = defaultdict(Ranking)
        self._finishers: defaultdict[str, Ranking] = defaultdict(Ranking)
        # kind -> ranks to be sorted again before the next choice
        self._changed: defaultdict[str, set[int]] = defaultdict(set)

    def enter(self, rank: RankState, now_ns: int) -> None:
        """Add a rank that takes work."""
        super().enter(rank, now_ns)
        self.changed(rank)

    def leave(self, rank: RankState) -> None:
        """Remove a rank that takes no more work."""
        super().leave(rank)
        for kind in rank.kinds:
            self._idlers[kind].discard(rank.id)
            self._finishers[kind].discard(rank.id)
            self._changed[kind].discard(rank.id)

    # ---- what happens to a rank ---------------------------------------------

    def turned(self, rank: RankState, now_ns: int) -> None:
        """The rank begins a task now, or becomes idle."""
        self._paces[rank.id].begun_ns = now_ns

    def changed(self, rank: RankState) -> None:
        """The rank's work or its service time has changed."""
        if rank.id in self._ranks:
            for kind in rank.kinds:
                self._changed[kind].add(rank.id)

    def observe(self, task: TaskState, service_ns: int) -> bool:
        """As in `Paces`."""
        if not super().observe(task, service_ns):
            return False
        self._typical.observe(service_ns / self._message_cost(task))
        self.changed(task.rank)
        return True

    # ---- choices ------------------------------------------------------------

    def pick(self, kind: str, now_ns: int, avoid: Collection[int] = ()) -> int | None:
        """The rank that would finish one more task of the kind first, or None."""
        self._sort_in(kind, now_ns)
        for _, late in self._idlers[kind].entries[-1:]:  # the slowest idle rank
            if late not in avoid and self._wants_probe(late, now_ns):
                return late
        return self._by_finish(kind, now_ns, avoid)

    def first(self, kind: str, count: int, now_ns: int) -> list[int]:
        """The ranks that would finish first, at most `count`."""
        found: list[int] = []
        self._sort_in(kind, now_ns)
        while len(found) < count:
            rank = self._by_finish(kind, now_ns, found)
            if rank is None:
                break
            found.append(rank)
        return found

    def pick_idle(self, kind: str, now_ns: int, avoid: Collection[int] = ()) -> int | None:
        """The fastest idle rank, or None."""
        self._sort_in(kind, now_ns)
        return self._fastest_idle(kind, avoid)

    def _wants_probe(self, rank: int, now_ns: int) -> bool:
        pace = self._paces[rank]
        return now_ns - pace.begun_ns > PROBE_AFTER * pace.service_ns > 0

    def _fastest_idle(self, kind: str, avoid: Collection[int]) -> int | None:
        return next((r for _, r in self._idlers[kind].entries if r not in avoid), None)

    def _by_finish(self, kind: str, now_ns: int, avoid: Collection[int]) -> int | None:
        cost, busy = self._costs.get(kind, 1.0), self._finishers[kind]
        idle = self._fastest_idle(kind, avoid)
        idle_ns = None if idle is None else now_ns + self._paces[idle].service_ns * cost
        place = 0
        while place < len(busy.entries):
            at_ns, rank = busy.entries[place]
            if idle_ns is not None and at_ns >= idle_ns:
                break
            if rank in avoid:
                place += 1
                continue
            true_ns = self._finish_ns(self._ranks[rank], kind, now_ns)
            if true_ns > at_ns:  # its task became overdue after it was sorted
                busy.put(rank, true_ns)
                continue
            return rank
        return idle

    # ---- times --------------------------------------------------------------

    def _finish_ns(self, rank: RankState, kind: str, now_ns: int) -> float:
        """When the rank would finish one more task of the kind."""
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
        share = self._batch_cost(kind, self._batch) / self._batch  # cost of a task in a full batch
        return free_ns + each_ns * (waiting * share + self._costs.get(kind, 1.0))

    def _sort_in(self, kind: str, now_ns: int) -> None:
        """Sort the ranks of the kind that have changed since the last choice."""
        idle, busy, changed = self._idlers[kind], self._finishers[kind], self._changed[kind]
        for rank_id in changed:
            rank = self._ranks[rank_id]
            if rank.load:
                idle.discard(rank_id)
                busy.put(rank_id, self._finish_ns(rank, kind, now_ns))
            else:
                busy.discard(rank_id)
                idle.put(rank_id, self._paces[rank_id].service_ns)
        changed.clear()

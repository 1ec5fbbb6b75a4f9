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
from collections.abc import Collection, Mapping
from math import ceil, inf

from collage_mpi.scheduler.settings import batch_factor
from collage_mpi.scheduler.state import RankState, TaskState

WINDOW = 9  # service times remembered of a rank
SLOW = 1.5  # times the median pace of the ranks of a kind: a rank beyond it is slow
PROBE_AFTER = 100  # of its service times idle: a slow rank is tried again
SLICE_NS = 5_000_000  # work that is not split: a message of its own costs rank 0 some 50 us


class Ranking:
    """Ranks sorted by a number.

    Attributes:
        entries: (number, rank), sorted.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[float, int]] = []
        self._numbers: dict[int, float] = {}

    def put(self, rank: int, number: float) -> None:
        """The rank's number is this from now on."""
        self.discard(rank)
        insort(self.entries, (number, rank))
        self._numbers[rank] = number

    def discard(self, rank: int) -> None:
        """Take the rank out, if it is in."""
        number = self._numbers.pop(rank, None)
        if number is not None:
            del self.entries[bisect_left(self.entries, (number, rank))]


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
        batch_costs: Mapping[str, float],
        batch: int,
    ) -> None:
        self._costs = dict(costs)
        self._batch_costs = dict(batch_costs)
        self._batch = batch
        self._paces: dict[int, Pace] = {}
        self._ranks: dict[int, RankState] = {}
        self._idle: dict[int, int] = {}  # rank -> since when it has nothing to do
        # kind -> those that take work, by service time
        self._by_pace: defaultdict[str, Ranking] = defaultdict(Ranking)

    def enter(self, rank: RankState, now_ns: int) -> None:
        """The rank takes work."""
        pace = self._paces.setdefault(rank.id, Pace())
        pace.begun_ns = now_ns
        self._ranks[rank.id] = rank
        self._sort(rank)

    def leave(self, rank: RankState) -> None:
        """It takes no more work."""
        self._idle.pop(rank.id, None)
        self._ranks.pop(rank.id, None)
        for kind in rank.kinds:
            self._by_pace[kind].discard(rank.id)

    def _sort(self, rank: RankState) -> None:
        for kind in rank.kinds:
            self._by_pace[kind].put(rank.id, self._paces[rank.id].service_ns)

    def service_ns(self, rank: int) -> float:
        """Running service time of a single image on the rank; 0 until one is known."""
        return self._paces[rank].service_ns

    def limit_ns(self, kind: str) -> float:
        """The service time beyond which a rank of the kind is slow; without end while less than
        half of them are known."""
        entries = self._by_pace[kind].entries
        median_ns = entries[(len(entries) - 1) // 2][0] if entries else 0.0
        return SLOW * median_ns or inf

    def portion(self, kind: str, rank: int) -> int:
        """Tasks of a message for the rank: a batch. For a slow rank as many as take it as long as
        a batch takes the others, but no fewer than take it SLICE_NS."""
        pace_ns, limit_ns = self._paces[rank].service_ns, self.limit_ns(kind)
        if pace_ns <= limit_ns:
            return self._batch
        unsplit = ceil(SLICE_NS / (pace_ns * self._costs.get(kind, 1.0)))
        return min(self._batch, max(int(self._batch * limit_ns / (SLOW * pace_ns)), unsplit))

    def meanwhile(self, kind: str, rank: int) -> float:
        """How many tasks of the kind the quick ranks begin while the rank does one.

        The task that each quick rank is at work on already does not count.
        """
        limit_ns = self.limit_ns(kind)
        quick = bisect_right(self._by_pace[kind].entries, (limit_ns, inf))
        return quick * (SLOW * self._paces[rank].service_ns / limit_ns - 1)

    def has_quick(self, kind: str, avoid: Collection[int]) -> bool:
        """Whether a rank of the kind that is not slow, nor in `avoid`, takes work."""
        limit_ns = self.limit_ns(kind)
        quick = bisect_right(self._by_pace[kind].entries, (limit_ns, inf))
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
        recent = now_ns - since_ns <= PROBE_AFTER * pace.service_ns
        if recent or not any(pace.service_ns > self.limit_ns(kind) for kind in rank.kinds):
            self._idle[rank_id] = since_ns
            return None
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
            self._sort(rank)
        return True

    def _message_cost(self, task: TaskState) -> float:
        """What the message that the task left in takes, over one single image."""
        inputs = 1 if task.message is None else task.message.inputs
        cost = self._costs.get(task.kind, 1.0)
        return cost if inputs == 1 else cost * self._batch_cost(task.kind, inputs)

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
        batch_costs: Mapping[str, float],
        batch: int,
    ) -> None:
        super().__init__(costs, batch_costs, batch)
        self._typical = Pace()  # of all ranks, for one that has not answered yet
        # kind -> the idle ranks by service time; the busy ones by when they would be done
        self._idlers: defaultdict[str, Ranking] = defaultdict(Ranking)
        self._finishers: defaultdict[str, Ranking] = defaultdict(Ranking)
        # kind -> ranks to be sorted in before a choice
        self._changed: defaultdict[str, set[int]] = defaultdict(set)

    def enter(self, rank: RankState, now_ns: int) -> None:
        """The rank takes work."""
        super().enter(rank, now_ns)
        self.changed(rank)

    def leave(self, rank: RankState) -> None:
        """It takes no more work."""
        super().leave(rank)
        for kind in rank.kinds:
            self._idlers[kind].discard(rank.id)
            self._finishers[kind].discard(rank.id)
            self._changed[kind].discard(rank.id)

    # ---- what happens to a rank ---------------------------------------------

    def turned(self, rank: RankState, now_ns: int) -> None:
        """It begins a task, or is idle, from now on."""
        self._paces[rank.id].begun_ns = now_ns

    def changed(self, rank: RankState) -> None:
        """What it has to do, or its service time, is another."""
        if rank.id in self._ranks:
            for kind in rank.kinds:
                self._changed[kind].add(rank.id)

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
        self._sort_in(kind, now_ns)
        for _, late in self._idlers[kind].entries[-1:]:  # the slowest one
            if late not in avoid and self._wants_probe(late, now_ns):
                return late
        return self._by_finish(kind, now_ns, avoid)

    def first(self, kind: str, count: int, now_ns: int) -> list[int]:
        """The `count` ranks that would finish first, fewer if there are fewer."""
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
            if true_ns > at_ns:  # overdue since it was sorted in
                busy.put(rank, true_ns)
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

    def _sort_in(self, kind: str, now_ns: int) -> None:
        """Sort in the ranks of the kind that have changed since the last choice."""
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

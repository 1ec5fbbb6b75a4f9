"""The ranks: what each may do next, how fast it is, and the order in which they are served."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from math import inf
from typing import TYPE_CHECKING

from collage_mpi.core.settings import batch_factor
from collage_mpi.core.states import LOST, RANK, READY, SILENT
from collage_mpi.core.work import Queue
from collage_mpi.kinds import COLLAGE

if TYPE_CHECKING:
    from collage_mpi.core.work import Task, Work

WINDOW = 9  # service times that are kept of a rank
SLOW = 1.5  # a rank is slow if its service time is over SLOW times the median of its kind
SLICE_NS = 5_000_000  # less work than this is not split: a message costs rank 0 some 50 us
PROBE_AFTER = 100  # a slow rank is tried again when it was idle for this many service times


class Rank:
    """A worker rank: its networks, its tasks, the work that is bound to it, and its speed.

    Its service time, `pace_ns`, is the median over its last messages, for a single image: 0 until
    one is known. The median ignores one slow answer, and soon shows that a rank stays slow.
    """

    def __init__(
        self, rank: int, kinds: frozenset[str], host: str, credit: int, like: str = ""
    ) -> None:
        self.id, self.kinds, self.host, self.credit, self.like = rank, kinds, host, credit, like
        self.status = READY
        self.failures = 0  # in a row
        self.tasks: dict[int, Task] = {}  # sent and not ended
        self.messages = 0  # with such tasks
        self.bound = Queue()
        self.pace_ns = 0.0
        self.idle_ns: int | None = None  # since when it has been idle
        self.turn = 0  # grows with each change of it: of equal ranks the longest unchanged is first
        self.place: tuple[int, float, int, Rank] | None = None  # among those with room
        self._last: deque[float] = deque()
        self._sorted: list[float] = []

    @property
    def load(self) -> int:
        """Number of tasks that are out or wait for it."""
        return len(self.tasks) + len(self.bound.works)

    @property
    def heard(self) -> bool:
        """Whether it is neither silent nor lost."""
        return self.status not in SILENT and self.status != LOST

    def move(self, event: str) -> None:
        """Change its status; KeyError if the event cannot happen now."""
        self.status = RANK[self.status][event]

    def observe(self, service_ns: float) -> None:
        """Add a service time of a single image."""
        if len(self._last) == WINDOW:
            del self._sorted[bisect_left(self._sorted, self._last.popleft())]
        self._last.append(service_ns)
        insort(self._sorted, service_ns)
        self.pace_ns = self._sorted[(len(self._sorted) - 1) // 2]

    def forget(self) -> None:
        """Forget its service times, so that it is tried again."""
        self._last.clear()
        self._sorted.clear()
        self.pace_ns = 0.0

    def __lt__(self, other: Rank) -> bool:
        return self.id < other.id


class Ranks:
    """All ranks that were ever ready; those that take work by kind, speed and room."""

    def __init__(
        self,
        costs: Mapping[str, float],
        batch_costs: Mapping[str, float],
        fastest_of: Mapping[str, int],
    ) -> None:
        """`costs`, `batch_costs`: as in `CoreSettings`; `fastest_of`: as in `Scheme`."""
        self.known: dict[int, Rank] = {}
        self.ready: defaultdict[str, list[int]] = defaultdict(list)  # kind -> ranks, ascending
        # kind -> ranks with room: fewest messages first, then the fastest, then who waited longest
        self.room: defaultdict[str, list[tuple[int, float, int, Rank]]] = defaultdict(list)
        self._costs, self._batch_costs, self._fastest_of = costs, batch_costs, fastest_of
        self._paces: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
        self._cursor: defaultdict[str, int] = defaultdict(int)
        self._turn = 0

    # ---- who there is -------------------------------------------------------

    def enter(self, rank: Rank, now_ns: int) -> None:
        """The rank takes work from now on."""
        self.known[rank.id] = rank
        for kind in rank.kinds:
            insort(self.ready[kind], rank.id)
            insort(self._paces[kind], (rank.pace_ns, rank.id))
        self.changed(rank, now_ns)

    def leave(self, rank: Rank, now_ns: int) -> None:
        """The rank takes no more work, if it did."""
        for kind in rank.kinds:
            if rank.id in self.ready[kind]:
                self.ready[kind].remove(rank.id)
                self._paces[kind].remove((rank.pace_ns, rank.id))
        self.changed(rank, now_ns)

    def drop(self, rank: Rank, kind: str) -> None:
        """The rank takes no more work of this kind."""
        if rank.id in self.ready[kind]:
            self.ready[kind].remove(rank.id)
            self._paces[kind].remove((rank.pace_ns, rank.id))
        if rank.place is not None:
            del self.room[kind][bisect_left(self.room[kind], rank.place)]
        rank.kinds -= {kind}

    def others(self, kind: str, avoid: Collection[int]) -> Iterator[Rank]:
        """The ready ranks of the kind that are not in `avoid`."""
        return (self.known[rank] for rank in self.ready[kind] if rank not in avoid)

    def any_silent(self, kinds: Collection[str]) -> bool:
        """Whether a silent rank, which is not retired, holds one of the kinds."""
        return any(
            rank.status == "suspected" and not rank.kinds.isdisjoint(kinds)
            for rank in self.known.values()
        )

    def idle(self, kind: str) -> int:
        """How many ranks of the kind have no message."""
        return bisect_left(self.room[kind], (1,))

    def wants(self, kind: str) -> bool:
        """Whether a rank of the kind that could take a new image has no message and no work."""
        apart = self.fastest(COLLAGE)
        room = self.room[kind][: self.idle(kind)]
        return any(not rank.bound.works and rank.id not in apart for *_, rank in room)

    # ---- turns, as in the paper ---------------------------------------------

    def turns(self, kind: str, count: int, rows: int) -> list[list[Rank]]:
        """The ranks of the next `count` images in turn: `rows` different ones for each image, until
        the ranks repeat.

        The ranks are laid out in `rows` rows. An image gets the next rank of the first row and
        those below it, so the first copies go to the ranks in turn, as without further copies.
        """
        apart = self.fastest(COLLAGE)
        ready = [self.known[rank] for rank in self.ready[kind] if rank not in apart]
        rows = min(rows, len(ready))
        if not rows:
            return []
        stride = len(ready) // rows
        first = self._cursor[kind] % stride
        self._cursor[kind] = (first + count - 1) % stride + 1
        places = range(first, first + min(stride, count))
        return [[ready[at % stride + row * stride] for row in range(rows)] for at in places]

    def skip_turn(self, kind: str) -> None:
        """Skip the next rank in turn, because its image is not sent."""
        self._cursor[kind] += 1

    # ---- speed --------------------------------------------------------------

    def cost(self, kind: str, inputs: int) -> float:
        """Cost of a message with so many inputs, relative to one single image."""
        further = self._batch_costs.get(kind, 1.0)
        return self._costs.get(kind, 1.0) * batch_factor(inputs, further)

    def observe(self, rank: Rank, service_ns: float) -> None:
        """Note how long the rank took for a single image."""
        before = rank.pace_ns
        rank.observe(service_ns)
        self._sort(rank, before)

    def forget(self, rank: Rank, now_ns: int) -> None:
        """Forget the speed of a rank."""
        before = rank.pace_ns
        rank.forget()
        self._sort(rank, before)
        self.changed(rank, now_ns)

    def _sort(self, rank: Rank, before: float) -> None:
        if rank.pace_ns != before and rank.status == READY:
            for kind in rank.kinds:
                paces = self._paces[kind]
                del paces[bisect_left(paces, (before, rank.id))]
                insort(paces, (rank.pace_ns, rank.id))

    def limit_ns(self, kind: str) -> float:
        """The service time above which a rank is slow; inf until it is known. It is SLOW times the
        median, or SLOW times that of the last rank that the kind is for if that is less."""
        paces = self._paces[kind]
        place = (len(paces) + 1) // 2
        if self._fastest_of:
            place = min(self._fastest_of.get(kind, place), place)
        return SLOW * paces[place - 1][0] or inf if paces else inf

    def portion(self, rank: Rank, kind: str, waiting: int, most: int, now_ns: int) -> int:
        """How many of the waiting inputs the rank takes, up to `most`: 0 if it passes over them.

        Only a slow rank leaves work to others: what quicker ranks would end sooner. Each of them
        ends what it is computing, and then takes its share of what waits, unless it is kept for
        another kind. A slow rank that was idle for long is tried again.
        """
        limit = self.limit_ns(kind)
        if rank.pace_ns <= limit:
            return most
        whole = self.cost(kind, most)
        if rank.pace_ns * whole <= SLICE_NS:
            return most
        if rank.idle_ns is not None and now_ns - rank.idle_ns > PROBE_AFTER * rank.pace_ns:
            self.forget(rank, now_ns)
            return most
        apart = self.fastest(COLLAGE) if kind != COLLAGE else ()
        quick = sum(each not in apart for pace, each in self._paces[kind] if pace <= limit)
        if not quick:
            return most
        ends = whole * (1 + waiting / most / quick) * limit / SLOW / rank.pace_ns
        first, further = self.cost(kind, 1), self._batch_costs.get(kind, 1.0)
        if ends < first:
            return 0
        return min(most, 1 + int((ends / first - 1) / further)) if further else most

    def quicker(self, kind: str, avoid: Collection[int]) -> bool:
        """Whether a rank of the kind is neither slow nor in `avoid`."""
        limit = self.limit_ns(kind)
        return any(rank not in avoid for pace, rank in self._paces[kind] if pace <= limit)

    def fastest(self, kind: str) -> list[int]:
        """The fastest ranks if the tasks of the kind are for them, otherwise none; never all ranks.
        Ranks of unknown speed come first."""
        if not self._fastest_of:
            return []
        most = min(self._fastest_of.get(kind, 0), len(self.ready[kind]) - 1)
        return [rank for _, rank in self._paces[kind][: max(0, most)]]

    def best(self, work: Work, has: Callable[[Rank, Work], bool]) -> Rank | None:
        """The rank with the fewest tasks that `has` none of the images of the work. Ranks that have
        not tried them come first. Of equally loaded ranks, those of `fastest` come first."""
        kind = work.like.kind
        own = self.fastest(kind)
        for avoid in (work.avoid, work.held):
            ranks = self.others(kind, avoid)
            for rank in sorted(ranks, key=lambda r: (r.load, r.id not in own, r.turn)):
                if not has(rank, work):
                    return rank
        return None

    # ---- room ---------------------------------------------------------------

    def changed(self, rank: Rank, now_ns: int) -> None:
        """The rank's messages, its speed, or whether it takes work has changed."""
        self._turn = turn = self._turn + 1
        place, rank.turn = rank.place, turn
        if rank.messages:
            rank.idle_ns = None
        elif rank.idle_ns is None:
            rank.idle_ns = now_ns
        rank.place = None
        if rank.status == READY and rank.messages < rank.credit:
            rank.place = (rank.messages, rank.pace_ns, turn, rank)
        for kind in rank.kinds:
            room = self.room[kind]
            if place is not None:
                del room[bisect_left(room, place)]
            if rank.place is not None:
                insort(room, rank.place)

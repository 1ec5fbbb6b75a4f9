"""What waits for any rank of a kind, oldest image first, and the ranks of it that have room, the
least busy first and of these the fastest."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection
from heapq import heapify, heappop, heappush
from itertools import islice
from math import inf
from operator import itemgetter

from collage_mpi.scheduler.state import TaskState

# What waits, by what it waits for. An image that is sent again, or was sent before, goes first; of
# the others the oldest one, of which those that are FRESH may leave in a bundle.
AGAIN, LATE, FRESH = range(3)
EVERYTHING = (AGAIN, LATE, FRESH)
SPARE = 64  # entries of tasks that are gone, beside one a task that waits

_Entry = tuple[bool, int, int]
_Place = tuple[float, float, int]  # service time, turn, rank


class Backlog:
    """Tasks bound to no rank yet.

    A task is taken in O(log tasks) amortised, a rank with room found in O(credit): both pass
    over those alone that may not go together, which for a rank are the tasks of images that it
    has or has failed, and for a task the ranks that have or have failed its images.
    """

    def __init__(self) -> None:
        self.tasks: dict[int, TaskState] = {}
        # Of these, tasks whose images may leave together in a task of another kind, oldest first.
        self.fresh: dict[int, TaskState] = {}
        # A heap of each sort, of some tasks that are gone too: (not AGAIN, oldest image, task).
        self._order: list[list[_Entry]] = [[] for _ in EVERYTHING]
        self._turn = 0  # of equally fast ranks the one that has had room for longest comes first
        self._ranks: dict[int, tuple[int, _Place]] = {}  # with room -> messages it has, its place
        self._levels: list[list[_Place]] = [[]]  # the same, sorted, by messages

    # ---- tasks --------------------------------------------------------------

    def waiting(self) -> list[TaskState]:
        """All that wait, in no order."""
        return list(self.tasks.values())

    def add(self, task: TaskState, sort: int = AGAIN) -> None:
        """It waits."""
        self.tasks[task.id] = task
        if sort == FRESH:
            self.fresh[task.id] = task
        heappush(self._order[sort], (sort != AGAIN, task.images[0].id, task.id))

    def renew(self, sort: Callable[[TaskState], int]) -> None:
        """All that waits is of another sort, the oldest image first."""
        waiting = sorted(self.tasks.values(), key=lambda task: (task.images[0].id, task.id))
        self.clear()
        for task in waiting:
            self.add(task, sort(task))

    def forget(self, task: TaskState) -> None:
        """It need not be sent."""
        del self.tasks[task.id]
        self.fresh.pop(task.id, None)
        if sum(map(len, self._order)) > 2 * len(self.tasks) + SPARE:
            for heap in self._order:
                heap[:] = [entry for entry in heap if entry[2] in self.tasks]
                heapify(heap)

    def clear(self) -> None:
        """Nothing waits any more."""
        self.tasks.clear()
        self.fresh.clear()
        for heap in self._order:
            heap.clear()

    def take(
        self, fits: Callable[[TaskState], bool], sorts: Collection[int] = EVERYTHING
    ) -> TaskState | None:
        """The first one of these sorts that fits, which waits no more; None if none does."""
        passed, found = [], None
        while found is None and (heaps := [self._order[s] for s in sorts if self._order[s]]):
            heap = min(heaps, key=itemgetter(0))
            entry = heappop(heap)
            task = self.tasks.get(entry[2])
            if task is not None and fits(task):
                found = self.tasks.pop(task.id)
                self.fresh.pop(task.id, None)
            elif task is not None:
                passed.append((heap, entry))
        for heap, entry in passed:
            heappush(heap, entry)
        return found

    def take_fresh(self, most: int) -> list[TaskState]:
        """The oldest fresh tasks, up to `most`, which wait no more."""
        taken = list(islice(self.fresh.values(), most))
        for task in taken:
            self.forget(task)
        return taken

    # ---- ranks --------------------------------------------------------------

    def __contains__(self, rank: int) -> bool:
        return rank in self._ranks

    @property
    def idle(self) -> int:
        """Ranks without a message."""
        return len(self._levels[0])

    def idle_within(self, limit_ns: float) -> int:
        """Those of them that are not slower than the limit."""
        return bisect_left(self._levels[0], (limit_ns, inf, 0))

    def room(self, rank: int, messages: int, pace_ns: float) -> None:
        """The rank, of that running service time, has room beside so many messages."""
        self.no_room(rank)
        while len(self._levels) <= messages:
            self._levels.append([])
        self._turn += 1
        place = (pace_ns, self._turn, rank)
        insort(self._levels[messages], place)
        self._ranks[rank] = messages, place

    def no_room(self, rank: int) -> None:
        """It takes nothing, for now or for good."""
        found = self._ranks.pop(rank, None)
        if found is not None:
            level = self._levels[found[0]]
            del level[bisect_left(level, found[1])]

    def pick(self, avoid: Collection[int], limit_ns: float = inf) -> int | None:
        """The rank with room and the fewest messages, of these the fastest, that is not in
        `avoid` nor slower than the limit; or None."""
        for level in self._levels:
            for pace_ns, _, rank in level:
                if pace_ns > limit_ns:
                    break
                if rank not in avoid:
                    return rank
        return None

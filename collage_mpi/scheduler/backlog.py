"""Tasks that wait for any rank of their kind, and what a rank with room takes of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Set
from functools import partial
from heapq import heapify, heappop, heappush

from collage_mpi.scheduler.ranks import ReadyRanks
from collage_mpi.scheduler.state import ImageState, Order, RankState, TaskState
from collage_mpi.scheduler.tasks import TaskBook

# A task that waits is of one of three sorts. Of an image that was sent before it goes first. Of the
# others the oldest image goes first; those that are FRESH may leave in a bundle.
AGAIN, LATE, FRESH = range(3)
EVERYTHING = (AGAIN, LATE, FRESH)
SPARE = 64  # entries of tasks that are gone, beside one a task that waits

NO_RANKS: frozenset[int] = frozenset()
_Entry = tuple[bool, int, int]


class Backlog:
    """Tasks of one kind that are bound to no rank yet, oldest image first.

    A task is taken in O(log tasks) amortised, past those alone that the rank may not take.
    """

    def __init__(self) -> None:
        self.tasks: dict[int, TaskState] = {}
        self.inputs = 0  # of all of them
        # Of these, tasks whose images may leave together in a task of another kind, oldest first.
        self.fresh: dict[int, TaskState] = {}
        self.fresh_inputs = 0
        # A heap of each sort, of some tasks that are gone too: (not AGAIN, oldest image, task).
        self._order: list[list[_Entry]] = [[] for _ in EVERYTHING]

    def add(self, task: TaskState, sort: int = AGAIN) -> None:
        """It waits."""
        self.tasks[task.id] = task
        self.inputs += task.inputs
        if sort == FRESH:
            self.fresh[task.id] = task
            self.fresh_inputs += task.inputs
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
        self._fewer(task, task.inputs)
        self.fresh.pop(task.id, None)
        if sum(map(len, self._order)) > 2 * len(self.tasks) + SPARE:
            for heap in self._order:
                heap[:] = [entry for entry in heap if entry[2] in self.tasks]
                heapify(heap)

    def clear(self) -> None:
        """Nothing waits any more."""
        self.tasks.clear()
        self.inputs = self.fresh_inputs = 0
        self.fresh.clear()
        for heap in self._order:
            heap.clear()

    def take(
        self,
        fits: Callable[[TaskState], bool],
        sorts: Collection[int] = EVERYTHING,
        cut: Callable[[TaskState], TaskState] = lambda task: task,
    ) -> TaskState | None:
        """The first one of these sorts that fits, which waits no more; None if none does.

        `cut` may split off the first images of a run: the result then is their task, and the rest
        waits on.
        """
        passed, order = [], self._order
        found: TaskState | None = None
        while found is None and (heaps := [order[sort] for sort in sorts if order[sort]]):
            heap = min(heaps)
            entry = heappop(heap)
            task = self.tasks.get(entry[2])
            if task is None:
                continue
            if fits(task):
                found = cut(task)
                self._fewer(task, found.inputs)
                if found is task:
                    del self.tasks[task.id]
                    self.fresh.pop(task.id, None)
                else:
                    heappush(heap, (entry[0], task.images[0].id, task.id))
            else:
                passed.append((heap, entry))
        for heap, entry in passed:
            heappush(heap, entry)
        return found

    def take_fresh(
        self, most: int, cut: Callable[[TaskState, int], TaskState] = lambda task, count: task
    ) -> list[TaskState]:
        """The tasks of the oldest fresh images, up to `most`, which wait no more. `cut` splits off
        the first images of a run."""
        taken: list[TaskState] = []
        while most > 0 and self.fresh:
            task = next(iter(self.fresh.values()))
            if task.inputs > most:
                self._fewer(task, most)
                task = cut(task, most)
            else:
                self.forget(task)
            most -= task.inputs
            taken.append(task)
        return taken

    def _fewer(self, task: TaskState, inputs: int) -> None:
        """So many of its images wait no more."""
        self.inputs -= inputs
        if task.id in self.fresh:
            self.fresh_inputs -= inputs


class PullQueue:
    """Tasks that no rank has: a rank that has room pulls those that have waited longest.

    A message takes up to `batch` tasks of one kind, a run counts as one task an image; of fewer
    each idle rank gets its share. A slow rank gets as many as take it as long as a batch takes the
    others.
    """

    runs_leave = True  # as one task

    def __init__(self, tasks: TaskBook, ranks: ReadyRanks, batch: int) -> None:
        self.backlogs: defaultdict[str, Backlog] = defaultdict(Backlog)
        self._tasks, self._ranks, self._batch = tasks, ranks, batch
        self._nobody = RankState(0, frozenset(), "", 0)  # whose the tasks are while they wait

    def add(
        self, order: Order, images: list[ImageState], avoid: Collection[int] = ()
    ) -> TaskState | None:
        """A task that waits for a rank that is not in `avoid`; None if none may come."""
        sort = self._sort(order.attempt, images[0])
        if not self._may_wait(order.kind, avoid, sort):
            return None
        task = self._tasks.make(order, images, self._nobody, avoid)
        self.backlogs[order.kind].add(task, sort)
        return task

    def offer(self, task: TaskState) -> None:
        """Let ranks with room pull until the task has left, or none of them may take it."""
        while task.id in self.backlogs[task.kind].tasks:
            rank = self._taker(task)
            if rank is None or not self.pull(self._ranks.known[rank]):
                return

    def serve(self, *, everyone: bool = False) -> None:
        """What a rank may take may have changed by more than its room."""

    def pull(self, rank: RankState) -> bool:
        """Send the rank a message of what waits longest; whether there was any, and room for it."""
        tasks = [] if self._tasks.closed else self._next(rank)
        if tasks:
            self._tasks.send(rank, tasks)
            if self._ranks.counts_tasks or rank.messages == 1:
                self._ranks.load_changed(rank)
        return bool(tasks)

    def forget(self, task: TaskState) -> bool:
        """The task need not be sent; whether it waited here."""
        waited = task.rank is self._nobody
        if waited:
            self.backlogs[task.kind].forget(task)
        return waited

    def waiting(self) -> list[TaskState]:
        """All tasks that wait."""
        return [task for backlog in self.backlogs.values() for task in backlog.tasks.values()]

    def clear(self) -> list[TaskState]:
        """Nothing waits any more; what did."""
        waited = self.waiting()
        for backlog in self.backlogs.values():
            backlog.clear()
        return waited

    def stranded(self, kinds: Collection[str]) -> list[TaskState]:
        """A rank of these kinds has left: tasks that no other rank may take, taken out, oldest
        images first; the others may now go to ranks that failed their image."""
        waiting = [task for task in self.waiting() if task.kind in kinds]
        waiting.sort(key=lambda task: task.images[0].id)
        stranded = [t for t in waiting if not self._may_wait(t.kind, held_by(t), self._sort_of(t))]
        for task in self._tasks.withdraw(stranded):
            self.backlogs[task.kind].forget(task)
        for task in waiting:
            self.offer(task)
        return stranded

    def barred(self, task: TaskState) -> Set[int]:
        """Ranks that the task must not go to now: those that failed its images are better than
        none."""
        image = task.images[0]
        if not (task.avoid or image.tried) and len(image.tasks) == 1 == len(task.images):
            return NO_RANKS  # it is its image's first
        held = held_by(task)
        tried = held.union(*(image.tried for image in task.images))
        return tried if self._ranks.pools[task.kind].has_other(tried) else held

    def _sort(self, attempt: int, image: ImageState) -> int:
        """Of a task of the image that comes to wait."""
        return AGAIN

    def _sort_of(self, task: TaskState) -> int:
        """Of a task that waits."""
        return FRESH if task.id in self.backlogs[task.kind].fresh else AGAIN

    def _may_wait(self, kind: str, avoid: Collection[int], sort: int) -> bool:
        """Whether a rank that takes work may come to take such a task."""
        return self._ranks.pools[kind].has_other(avoid)

    def _taker(self, task: TaskState) -> int | None:
        """A rank with room that may pull until the task has left."""
        room = self._ranks.rooms[task.kind]
        return room.pick(self.barred(task)) if room else None

    def _fits(self, rank: RankState, task: TaskState) -> bool:
        return rank.id not in self.barred(task)

    def _next(self, rank: RankState) -> list[TaskState]:
        """Up to a batch of tasks of one kind for a rank."""
        for kind, backlog in self.backlogs.items():
            waits = backlog.tasks and rank.id in self._ranks.pools[kind]
            if waits and (tasks := self._take(kind, rank)):
                return tasks
        return []

    def _take(
        self, kind: str, rank: RankState, sorts: Collection[int] = EVERYTHING
    ) -> list[TaskState]:
        """The next batch for the rank; of less than a batch for each idle rank its share."""
        backlog = self.backlogs[kind]
        waiting = backlog.inputs - (0 if FRESH in sorts else backlog.fresh_inputs)
        share = self._ranks.portion(kind, rank.id, self._batch)
        if waiting < share * self._ranks.count(kind):  # else there is enough for all
            share = min(share, -(-waiting // max(1, self._ranks.rooms[kind].idle)))
        most = share
        tasks: list[TaskState] = []

        def cut(task: TaskState) -> TaskState:
            width = share if self.runs_leave else 1
            alone = len(task.images[0].tasks) == 1  # no other task has its images
            return self._tasks.cut(task, width) if alone and task.inputs > width else task

        while share > 0 and (task := backlog.take(partial(self._fits, rank), sorts, cut)):
            apart = most > 1 and has_failed(task)
            if tasks and (apart or task.inputs > share):
                backlog.add(task)
                break
            share = 0 if apart else share - task.inputs
            task.rank = rank
            tasks.append(task)
        return tasks


def has_failed(task: TaskState) -> bool:
    """An image of it may fail again, kill its rank even: it takes no others along."""
    for image in task.images:  # noqa: SIM110 - `any` takes three times as long
        if image.failures:
            return True
    return False


def held_by(task: TaskState) -> set[int]:
    """Ranks that have its images already, and those that it has to avoid."""
    return {other.rank.id for image in task.images for other in image.tasks}.union(task.avoid)

"""Queues of tasks that are not bound to a rank yet, and which of them a rank with room takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Set
from functools import partial
from heapq import heapify, heappop, heappush

from collage_mpi.scheduler.ranks import ReadyRanks
from collage_mpi.scheduler.state import ImageState, Order, RankState, TaskState
from collage_mpi.scheduler.tasks import TaskBook

# The three sorts of waiting tasks. AGAIN: the image was sent before; these tasks go first. Among
# LATE and FRESH tasks the oldest image goes first. Only FRESH tasks may leave in a bundle.
AGAIN, LATE, FRESH = range(3)
EVERYTHING = (AGAIN, LATE, FRESH)
SPARE = 64  # stale heap entries that are always tolerated, so that few tasks cause no clean-up

NO_RANKS: frozenset[int] = frozenset()
_Entry = tuple[bool, int, int]


class Backlog:
    """Tasks of one kind that are bound to no rank yet, oldest image first.

    Taking a task costs O(log tasks) amortised. Only tasks that the rank may not take are skipped.
    """

    def __init__(self) -> None:
        self.tasks: dict[int, TaskState] = {}
        self.inputs = 0  # images of all waiting tasks
        # The waiting tasks that may leave in a bundle, oldest first.
        self.fresh: dict[int, TaskState] = {}
        self.fresh_inputs = 0
        # One heap for each sort, with entries (not AGAIN, oldest image, task id). Entries of tasks
        # that wait no longer are skipped when they are popped.
        self._order: list[list[_Entry]] = [[] for _ in EVERYTHING]

    def add(self, task: TaskState, sort: int = AGAIN) -> None:
        """Let the task wait."""
        self.tasks[task.id] = task
        self.inputs += task.inputs
        if sort == FRESH:
            self.fresh[task.id] = task
            self.fresh_inputs += task.inputs
        heappush(self._order[sort], (sort != AGAIN, task.images[0].id, task.id))

    def renew(self, sort: Callable[[TaskState], int]) -> None:
        """Sort all waiting tasks anew, the oldest image first; `sort` says which sort a task is."""
        waiting = sorted(self.tasks.values(), key=lambda task: (task.images[0].id, task.id))
        self.clear()
        for task in waiting:
            self.add(task, sort(task))

    def forget(self, task: TaskState) -> None:
        """Remove a waiting task that need not be sent any more."""
        del self.tasks[task.id]
        self._fewer(task, task.inputs)
        self.fresh.pop(task.id, None)
        if sum(map(len, self._order)) > 2 * len(self.tasks) + SPARE:
            for heap in self._order:
                heap[:] = [entry for entry in heap if entry[2] in self.tasks]
                heapify(heap)

    def clear(self) -> None:
        """Remove all tasks."""
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
        """Remove and return the first task of these sorts that `fits`; None if no task does.

        `cut` may split off the first images of a run. Then the task of the first images is
        returned, and the rest keeps waiting.
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
        """Remove and return the tasks of up to `most` of the oldest fresh images.

        `cut` splits off the first images of a run.
        """
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
        """Subtract `inputs` images of the task from the counts."""
        self.inputs -= inputs
        if task.id in self.fresh:
            self.fresh_inputs -= inputs


class PullQueue:
    """Tasks without a rank: a rank that has room pulls the tasks that have waited longest.

    A message holds up to a batch of tasks of one kind; each image of a run counts as a task. If
    less than a batch for each idle rank waits, the idle ranks share it equally. A slow rank gets
    only as many tasks as it can finish in the time that other ranks need for a batch.
    """

    runs_leave = True  # a run may leave as one task

    def __init__(self, tasks: TaskBook, ranks: ReadyRanks) -> None:
        self.backlogs: defaultdict[str, Backlog] = defaultdict(Backlog)
        self._tasks, self._ranks = tasks, ranks
        self._nobody = RankState(0, frozenset(), "", 0)  # stands for the rank of a waiting task

    def add(
        self, order: Order, images: list[ImageState], avoid: Collection[int] = ()
    ) -> TaskState | None:
        """Make a task that waits for a rank not in `avoid`; None if no such rank may come."""
        sort = self._sort(order.attempt, images[0])
        if not self._may_wait(order.kind, avoid, sort):
            return None
        task = self._tasks.make(order, images, self._nobody, avoid)
        self.backlogs[order.kind].add(task, sort)
        return task

    def offer(self, task: TaskState) -> None:
        """Let ranks with room pull until the task has left, or until none of them may take it."""
        while task.id in self.backlogs[task.kind].tasks:
            rank = self._taker(task)
            if rank is None or not self.pull(self._ranks.known[rank]):
                return

    def serve(self, *, everyone: bool = False) -> None:
        """Called when the tasks that a rank may take can have changed: no change in this queue."""

    def pull(self, rank: RankState) -> bool:
        """Send the rank a message of the tasks that have waited longest; False if there is none."""
        tasks = [] if self._tasks.closed else self._next(rank)
        if tasks:
            self._tasks.send(rank, tasks)
            if self._ranks.counts_tasks or rank.messages == 1:
                self._ranks.load_changed(rank)
        return bool(tasks)

    def forget(self, task: TaskState) -> bool:
        """Remove a task that need not be sent any more; False if it was not waiting here."""
        waited = task.rank is self._nobody
        if waited:
            self.backlogs[task.kind].forget(task)
        return waited

    def waiting(self) -> list[TaskState]:
        """All tasks that wait."""
        return [task for backlog in self.backlogs.values() for task in backlog.tasks.values()]

    def clear(self) -> list[TaskState]:
        """Remove and return all waiting tasks."""
        waited = self.waiting()
        for backlog in self.backlogs.values():
            backlog.clear()
        return waited

    def stranded(self, kinds: Collection[str]) -> list[TaskState]:
        """Called when a rank of these kinds has left: offer the waiting tasks again.

        The others may go to ranks that failed their image before.

        Returns:
            The tasks that no other rank may take, oldest image first. They wait no longer.
        """
        waiting = [task for task in self.waiting() if task.kind in kinds]
        waiting.sort(key=lambda task: task.images[0].id)
        stranded = [t for t in waiting if not self._may_wait(t.kind, held_by(t), self._sort_of(t))]
        for task in self._tasks.withdraw(stranded):
            self.backlogs[task.kind].forget(task)
        for task in waiting:
            self.offer(task)
        return stranded

    def barred(self, task: TaskState) -> Set[int]:
        """Ranks that the task must not go to now.

        A rank that failed one of its images is allowed if all ranks of the kind have.
        """
        image = task.images[0]
        if not (task.avoid or image.tried) and len(image.tasks) == 1 == len(task.images):
            return NO_RANKS  # the first task of its image
        held = held_by(task)
        tried = held.union(*(image.tried for image in task.images))
        return tried if self._ranks.pools[task.kind].has_other(tried) else held

    def _sort(self, attempt: int, image: ImageState) -> int:
        """The sort of a new task of the image."""
        return AGAIN

    def _sort_of(self, task: TaskState) -> int:
        """The sort of a waiting task."""
        return FRESH if task.id in self.backlogs[task.kind].fresh else AGAIN

    def _may_wait(self, kind: str, avoid: Collection[int], sort: int) -> bool:
        """Whether a working rank outside `avoid` could take a task of this kind and sort."""
        return self._ranks.pools[kind].has_other(avoid)

    def _taker(self, task: TaskState) -> int | None:
        """A rank with room that should pull next so that the task leaves, or None."""
        room = self._ranks.rooms[task.kind]
        return room.pick(self.barred(task)) if room else None

    def _fits(self, rank: RankState, task: TaskState) -> bool:
        return rank.id not in self.barred(task)

    def _next(self, rank: RankState) -> list[TaskState]:
        """The tasks of the rank's next message: up to a batch, all of one kind."""
        for kind, backlog in self.backlogs.items():
            waits = backlog.tasks and rank.id in self._ranks.pools[kind]
            if waits and (tasks := self._take(kind, rank)):
                return tasks
        return []

    def _take(
        self, kind: str, rank: RankState, sorts: Collection[int] = EVERYTHING
    ) -> list[TaskState]:
        """The rank's next batch of this kind; its share if less than a batch an idle rank waits."""
        backlog = self.backlogs[kind]
        waiting = backlog.inputs - (0 if FRESH in sorts else backlog.fresh_inputs)
        share = self._ranks.portion(kind, rank.id)
        if waiting < share * self._ranks.count(kind):  # too little for all: share it
            share = min(share, -(-waiting // max(1, self._ranks.rooms[kind].idle)))
        most = share
        tasks: list[TaskState] = []

        def cut(task: TaskState) -> TaskState:
            width = share if self.runs_leave else 1
            alone = len(task.images[0].tasks) == 1  # no other task holds its images
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
    """Whether an image of the task has failed before.

    The image may fail again, or even kill the rank, so the task is sent alone.
    """
    for image in task.images:  # noqa: SIM110 - `any` takes three times as long
        if image.failures:
            return True
    return False


def held_by(task: TaskState) -> set[int]:
    """Ranks that have a task of its images already, and ranks that the task must avoid."""
    return {other.rank.id for image in task.images for other in image.tasks}.union(task.avoid)

"""What waits for any rank of a kind, and the ranks of it that have room.

Owns: one kind's queue, oldest image first; its ranks with room, least busy first.
Does not know: which rank a task must not go to, credit, when a message leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from heapq import heapify, heappop, heappush

from collage_mpi.scheduler.state import TaskState

SPARE = 64  # entries of tasks that are gone, beside one a task that waits


class Backlog:
    """Tasks bound to no rank yet.

    A task is taken in O(log tasks) amortised, a rank with room found in O(credit): both pass
    over those alone that may not go together, which for a rank are the tasks of images that it
    has or has failed, and for a task the ranks that have or have failed its images.
    """

    def __init__(self) -> None:
        self.tasks: dict[int, TaskState] = {}
        self._order: list[tuple[int, int]] = []  # heap of (oldest image, task), of some gone too
        self._messages: dict[int, int] = {}  # rank with room -> messages that it has
        self._levels: list[dict[int, None]] = [{}]  # the same, by messages

    # ---- tasks --------------------------------------------------------------

    def waiting(self) -> list[TaskState]:
        """All that wait, in no order."""
        return list(self.tasks.values())

    def add(self, task: TaskState) -> None:
        """It waits."""
        self.tasks[task.id] = task
        heappush(self._order, (task.images[0].id, task.id))

    def forget(self, task: TaskState) -> None:
        """It need not be sent."""
        del self.tasks[task.id]
        if len(self._order) > 2 * len(self.tasks) + SPARE:
            self._order = [entry for entry in self._order if entry[1] in self.tasks]
            heapify(self._order)

    def take(self, fits: Callable[[TaskState], bool]) -> TaskState | None:
        """The first one that fits, which waits no more; None if none does."""
        passed, found = [], None
        while found is None and self._order:
            entry = heappop(self._order)
            task = self.tasks.get(entry[1])
            if task is not None and fits(task):
                found = self.tasks.pop(task.id)
            elif task is not None:
                passed.append(entry)
        for entry in passed:
            heappush(self._order, entry)
        return found

    # ---- ranks --------------------------------------------------------------

    def __contains__(self, rank: int) -> bool:
        return rank in self._messages

    @property
    def has_room(self) -> bool:
        """Whether any rank has."""
        return bool(self._messages)

    @property
    def idle(self) -> int:
        """Ranks without a message."""
        return len(self._levels[0])

    def room(self, rank: int, messages: int) -> None:
        """The rank has room beside so many messages."""
        self.no_room(rank)
        while len(self._levels) <= messages:
            self._levels.append({})
        self._levels[messages][rank] = None
        self._messages[rank] = messages

    def no_room(self, rank: int) -> None:
        """It takes nothing, for now or for good."""
        messages = self._messages.pop(rank, None)
        if messages is not None:
            del self._levels[messages][rank]

    def pick(self, avoid: Collection[int]) -> int | None:
        """The rank with room and the fewest messages that is not in `avoid`, or None."""
        for level in self._levels:
            for rank in level:
                if rank not in avoid:
                    return rank
        return None

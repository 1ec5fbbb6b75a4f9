"""Work that waits, and tasks: work that was sent to a rank."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Collection

import numpy as np

from collage_mpi.core.events import Positions
from collage_mpi.core.states import SENT, TASK

MOST_ATTEMPTS = 255  # the largest attempt number: a row stores it in one byte


class Work:
    """Images that wait for a network: on one rank, or on any rank that may take them.

    Attributes:
        kind, source, attempt: of the tasks that it becomes.
        avoid: ranks that have its images or have tried them. They take it if no other rank can.
        held: those of `avoid` that have its images. They never take it.
        spare: it is a copy, which counts as no attempt.
    """

    __slots__ = ("attempt", "avoid", "held", "kind", "positions", "source", "spare")

    def __init__(
        self,
        kind: str,
        source: str,
        attempt: int,
        positions: Positions,
        avoid: Collection[int] = (),
        held: Collection[int] = (),
        *,
        spare: bool = False,
    ) -> None:
        self.kind, self.source, self.positions = kind, source, positions
        self.attempt = min(attempt, MOST_ATTEMPTS)
        self.avoid, self.held, self.spare = avoid, held, spare

    @property
    def like(self) -> tuple[str, str, int, bool]:
        """What the images of one task have in common."""
        return self.kind, self.source, self.attempt, self.spare

    def cut(self, most: int) -> Work | None:
        """Leave only so many images in it; work for the others, if there are any."""
        own, rest = self.positions[:most], self.positions[most:]
        self.positions = own
        if not len(rest):
            return None
        return Work(*self.like[:3], rest, self.avoid, self.held, spare=self.spare)

    def __lt__(self, other: Work) -> bool:
        return bool(self.positions[0] < other.positions[0])


class Fresh:
    """Images that were never sent, oldest first, as ranges of positions."""

    def __init__(self) -> None:
        self.ranges: deque[range] = deque()
        self.count = 0

    def add(self, positions: range) -> None:
        """Add images that follow all earlier ones."""
        last = self.ranges[-1] if self.ranges else range(0)
        self.count += len(positions)
        if last and last.stop == positions.start:
            self.ranges[-1] = range(last.start, positions.stop)
        else:
            self.ranges.append(positions)

    @property
    def oldest(self) -> int:
        """The oldest image; there must be one."""
        return self.ranges[0].start

    def take(self, most: int) -> Positions:
        """Remove and return up to `most` of the oldest images, as a range if they are
        neighbours."""
        taken: list[range] = []
        while most > 0 and self.ranges:
            first = self.ranges.popleft()
            if len(first) > most:
                self.ranges.appendleft(first[most:])
                first = first[:most]
            taken.append(first)
            most -= len(first)
        self.count -= sum(map(len, taken))
        return joined(taken)

    def merge(self, other: Fresh) -> None:
        """Take over the images of another one."""
        ranges = sorted([*self.clear(), *other.clear()], key=lambda each: each.start)
        for positions in ranges:
            self.add(positions)

    def clear(self) -> list[range]:
        """Remove and return all."""
        ranges, self.count = list(self.ranges), 0
        self.ranges.clear()
        return ranges


class Queue:
    """Work of one kind for any rank that may take it, oldest image first."""

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.count = 0  # images

    def add(self, work: Work) -> None:
        """Let the work wait."""
        if self.works and work < self.works[-1]:
            insort(self.works, work)
        else:
            self.works.append(work)
        self.count += len(work.positions)

    def pop(self, place: int) -> Work:
        """Remove and return one."""
        work = self.works.pop(place)
        self.count -= len(work.positions)
        return work

    def clear(self) -> list[Work]:
        """Remove and return all."""
        works, self.works, self.count = self.works, [], 0
        return works


class Message:
    """Tasks that left together, which their rank computes as one batch."""

    __slots__ = ("inputs", "left")

    def __init__(self, tasks: int, inputs: int) -> None:
        self.left, self.inputs = tasks, inputs


class Task:
    """What was sent to a rank, from its leaving to its end and to the outcome of its images."""

    __slots__ = (
        *("id", "rank", "kind", "source", "attempt", "spare", "positions", "cells", "message"),
        *("covers", "status", "left", "resolved", "kept", "sent_ns", "encode_ns", "said", "end"),
    )

    def __init__(
        self, task: int, rank: int, work: Work, cells: np.ndarray | None, now_ns: int
    ) -> None:
        self.id, self.rank, self.positions, self.cells = task, rank, work.positions, cells
        self.kind, self.source, self.attempt, self.spare = work.like
        self.status = SENT
        self.covers = True  # its images count on it: not if its rank is silent
        self.left = len(self.positions)  # images without an outcome, as far as it was told
        self.resolved = 0  # images that it resolved
        self.kept = 0  # images whose kept answer is its own
        self.sent_ns, self.encode_ns = now_ns, 0
        self.said: tuple[int, ...] = ()
        self.end: tuple[object, ...] = ()  # of its row, until its last kept answer is used
        self.message: Message

    def __len__(self) -> int:
        return len(self.positions)

    def move(self, event: str) -> None:
        """Change its status; KeyError if the event cannot happen now."""
        self.status = TASK[self.status][event]


def joined(ranges: list[range]) -> Positions:
    """Ranges in ascending order as one range if they touch, else as (n,) int64."""
    if not ranges:
        return range(0)
    whole = range(ranges[0].start, ranges[-1].stop)
    if len(ranges) == 1 or len(whole) == sum(map(len, ranges)):
        return whole if ranges[0].step == 1 else ranges[0]
    return np.concatenate([np.arange(each.start, each.stop) for each in ranges])


def overlap(first: Positions, second: Positions) -> bool:
    """Whether two ascending sequences share a position."""
    if first[0] > second[-1] or second[0] > first[-1]:
        return False
    return bool(np.isin(np.asarray(first), np.asarray(second)).any())

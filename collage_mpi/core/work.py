"""Work that waits, and tasks: work that was sent to a rank. Images are arrays of slots."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from collage_mpi.core.states import SENT, TASK
from collage_mpi.kinds import KIND

MOST_ATTEMPTS = 255  # the largest attempt number: a row stores it in one byte
NOTHING = np.empty(0, np.int64)
NOBODY: frozenset[Task] = frozenset()


class Like(NamedTuple):
    """What the images of a task have in common. `spare`: a copy, which counts as no attempt."""

    kind: str
    source: str
    attempt: int
    spare: bool = False


FIRST = {kind: Like(kind, kind, 1) for kind in KIND}


class Work:
    """Images that wait for a network: on one rank, or on any rank that may take them.

    Attributes:
        first: the position of its first image.
        avoid: ranks that have its images or have tried them. They take it if no other rank can.
        held: those of `avoid` that have its images. They never take it.
    """

    __slots__ = ("avoid", "first", "held", "like", "slots")

    def __init__(
        self,
        like: Like,
        slots: np.ndarray,
        first: int,
        avoid: Collection[int] = (),
        held: Collection[int] = (),
    ) -> None:
        self.like, self.slots, self.first, self.avoid, self.held = like, slots, first, avoid, held

    def __lt__(self, other: Work) -> bool:
        return self.first < other.first


class Fresh:
    """Images that wait in the order of their positions."""

    def __init__(self) -> None:
        self.parts: deque[np.ndarray] = deque()
        self.count = 0

    def add(self, slots: np.ndarray) -> None:
        """Add images that follow all earlier ones."""
        if len(slots):
            self.parts.append(slots)
            self.count += len(slots)

    def take(self, most: int) -> np.ndarray:
        """Remove and return up to `most` of the oldest images; there must be one."""
        if self.count and len(first := self.parts[0]) > most:
            self.count -= most
            self.parts[0] = first[most:]
            return first[:most]
        found = []
        while most and self.count:
            part = self.parts.popleft()
            if len(part) > most:
                self.parts.appendleft(part[most:])
                part = part[:most]
            self.count -= len(part)
            most -= len(part)
            found.append(part)
        return joined(found)

    def clear(self) -> np.ndarray:
        """Remove and return all."""
        return self.take(self.count) if self.count else NOTHING


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
        self.count += len(work.slots)

    def pop(self, place: int) -> Work:
        """Remove and return one."""
        work = self.works.pop(place)
        self.count -= len(work.slots)
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
    """What was sent to a rank, from its leaving to its end and to the outcome of its images.

    Attributes:
        slots, positions: of its images, (n,) int64.
        cells: of its images in their picture; None: those of their group.
        covers: its images count on it: not if its rank is silent.
        peers: other tasks that are out and share images with it.
        resolved, kept: images that it resolved, and those whose kept answer is its own.
        outcome: how it ended, a code of OUTCOMES; None as long as it is out.
    """

    __slots__ = (
        *("id", "rank", "kind", "source", "attempt", "spare", "slots", "positions", "cells"),
        *("message", "covers", "status", "peers", "resolved", "kept", "sent_ns", "encode_ns"),
        *("outcome", "done_ns", "compute_ns", "reason"),
    )

    def __init__(
        self,
        task: int,
        rank: int,
        like: Like,
        slots: np.ndarray,
        positions: np.ndarray,
        cells: np.ndarray | None,
        message: Message,
        now_ns: int,
    ) -> None:
        self.id, self.rank, self.message = task, rank, message
        self.kind, self.source, self.attempt, self.spare = like
        self.slots, self.positions, self.cells = slots, positions, cells
        self.status, self.covers = SENT, True
        self.peers: frozenset[Task] = NOBODY
        self.resolved = self.kept = self.encode_ns = 0
        self.sent_ns = now_ns
        self.outcome: int | None = None
        self.done_ns = self.compute_ns = 0
        self.reason = ""

    def __len__(self) -> int:
        return len(self.slots)

    def move(self, event: str) -> None:
        """Change its status; IllegalMove if the event cannot happen now."""
        self.status = TASK[self.status][event]


def joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays of slots one after another."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def overlap(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two arrays share a slot."""
    return not set(first.tolist()).isdisjoint(second.tolist())

"""A clock that tests move, and ranks in virtual time behind the coordinator's transport.

Owns: stand-ins for the clock, the reader, the writer, a worker's endpoint, and a cluster whose
ranks serve messages in order, skip what was cancelled before they began, and take as long
as the test says, for a batch as long as for its slowest task.
Nothing here sleeps.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from rows_by_name import group_rows
from wire_tasks import pack_wire_tasks, unpack_results

from collage_mpi.job import messages
from collage_mpi.job.leased_images import Close, Lease, Said
from collage_mpi.job.messages import Message
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.answers import (
    ANSWERED,
    SKIPPED,
    Score,
    WireResult,
    pack_results,
)
from collage_mpi.mpi.tasks import (
    WireTask,
    pack_cancel,
    unpack_cancel,
    unpack_places,
    unpack_tasks,
)
from collage_mpi.mpi.transport import Received
from collage_mpi.rows import PLACED, GroupRow, ImageRow, TaskRow
from collage_mpi.shards.order import Range
from collage_mpi.shards.readahead import Images

MS = 1_000_000
SESSION = 7
SHAPE = (4, 4, 1)
CLASSES = 10


class Clock:
    """Integer ns; `sleep` moves it, and every look moves it by `tick_ns`."""

    def __init__(self, tick_ns: int = 0) -> None:
        self.now_ns = 1_000_000_000
        self.tick_ns = tick_ns

    def __call__(self) -> int:
        self.now_ns += self.tick_ns
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


class Record(NamedTuple):
    """An image of the input, and why its row cannot be used."""

    row: int
    fault: str | None = None
    labelled: bool = True


def record(index: int, fault: str | None = None) -> Record:
    """An image whose top-left pixel, and label, is its index modulo CLASSES."""
    return Record(index, fault)


def images_of(records: list[Record], by_place: bool = False, start: int = 0) -> Images:
    """The images, as a reader gives them; `start`: how many it gave before."""
    rows = np.array([each.row for each in records], np.int64)
    at, placed = np.arange(start, start + len(records)), np.zeros(len(records), PLACED)
    placed["row"] = rows
    placed["has_label"] = [each.fault is None and each.labelled for each in records]
    placed["label"] = np.where(placed["has_label"], rows % CLASSES, 0)
    faults = {place: each.fault for place, each in enumerate(records) if each.fault}
    if by_place:
        return Images(at, rows, placed, faults=faults)
    pixels = np.zeros((len(records), *SHAPE), np.uint8)
    good = [each.fault is None for each in records]
    pixels[good, 0, 0, 0] = rows[good] % CLASSES
    return Images(at, rows, placed, pixels, faults=faults)


class ListReader:
    """Images from a list; with `every_ns`, that many ns lie between two batches of `batch`."""

    def __init__(
        self,
        records: list[Record],
        clock: Clock,
        every_ns: int = 0,
        batch: int = 1,
        *,
        by_place: bool = False,
    ) -> None:
        self._left = deque(records)
        self._clock, self._every_ns, self._batch = clock, every_ns, batch
        self._start_ns, self._taken, self._by_place = clock.now_ns, 0, by_place
        self.failed = False

    @property
    def remaining(self) -> int:
        return len(self._left)

    @property
    def ready(self) -> int:
        if not self._every_ns:
            return len(self._left)
        read = (self._clock.now_ns - self._start_ns) // self._every_ns * self._batch
        return min(len(self._left), read - self._taken)

    def add(self, ranges: Sequence[Range]) -> None:
        """Does nothing: it has its images."""

    def take(self, n: int) -> Images:
        if self.failed:
            raise OSError("the disk is gone")
        taken = [self._left.popleft() for _ in range(min(n, self.ready))]
        self._taken += len(taken)
        return images_of(taken, self._by_place, self._taken - len(taken))


class ListWriter:
    """Rows in lists."""

    session = 1

    def __init__(self) -> None:
        self.images: list[Any] = []
        self.tasks: list[Any] = []

    def image_rows(self, rows: np.ndarray, vectors: Sequence[np.ndarray] = ()) -> None:
        self.images += [_told(ImageRow(*row)) for row in rows.tolist()]

    idle = True

    def flush(self) -> None:
        """All rows are written already."""

    @property
    def groups(self) -> list[GroupRow]:
        return group_rows(self.images)

    def task_rows(self, rows: np.ndarray) -> None:
        self.tasks += [_told(TaskRow(*row)) for row in rows.tolist()]


def _told(row: Any) -> Any:
    """A row with its reason as a text."""
    return row._replace(reason=row.reason.decode())


# (rank, task, its images' top-left pixels) -> the task's end, or None: it never answers
Behave = Callable[[int, WireTask, list[int]], "WireResult | None"]


def group_of(task: WireTask) -> int:
    """The group of a task's first image, in groups of four."""
    return task.items[0][0] // 4


def truthful(rank: int, task: WireTask, pixels: list[int]) -> WireResult:
    """Every item's class is its top-left pixel."""
    return WireResult(task.task, ANSWERED, cells=tuple(Score(p, 0.9) for p in pixels))


class LoneJob:
    """The ledger as a job knows it that is alone: all images in one lease, then the end.

    Args:
        images: how many.
    """

    def __init__(self, images: int) -> None:
        self.said: list[Any] = []  # pairs of answers
        everything = Lease(0, ((0, images),))
        self.told: deque[Said] = deque([*([everything] if images else []), Close()])

    def hear(self) -> Said | None:
        return self.told.popleft() if self.told else None

    def holds(self, positions: np.ndarray) -> np.ndarray:
        return np.ones(len(positions), bool)

    def rested(self, number: int) -> None:
        """Nobody waits for it."""

    def pairs(self, pairs: Any) -> None:
        self.said.append(pairs)


class Cluster:
    """The coordinator's transport over ranks in virtual time.

    Args:
        service_ns: time that a rank takes for a task, (rank, task) -> ns.
        behave: how the task ends.
        wire_ns: from send to arrival, either way.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        side: int = 2,
        service_ns: Callable[[int, WireTask], int] = lambda rank, task: MS,
        behave: Behave = truthful,
        wire_ns: int = 20_000,
    ) -> None:
        self.clock, self.side = clock, side
        self.service_ns, self.behave, self.wire_ns = service_ns, behave, wire_ns
        self.queues: dict[int, deque[tuple[int, list[tuple[WireTask, list[int]]]]]] = {}
        self.free_at: dict[int, int] = {}
        self.cancelled: dict[int, int] = {}  # task -> when its rank knew
        self.tasks: list[tuple[int, WireTask]] = []  # (rank, task) in the order sent
        self.messages: list[tuple[int, int]] = []  # (rank, inputs of its network) of each
        self.cancels = 0  # messages
        self.dropped: list[int] = []  # lost ranks
        self.starts: dict[int, int] = {}  # task -> when its rank began it
        self._up: list[tuple[int, int, int, np.ndarray]] = []  # heap
        self._sequence = 0

    def buffer(self, nbytes: int) -> np.ndarray:
        return np.zeros(nbytes, np.uint8)

    def send_task(self, rank: int, buffer: np.ndarray, nbytes: int) -> None:
        message = buffer[:nbytes].copy()
        arrives_ns = self.clock.now_ns + self.wire_ns
        assert wire.read_header(message).session == SESSION
        if wire.read_header(message).type == wire.CANCEL:
            self.cancels += 1
            for cancelled in unpack_cancel(message):
                self.cancelled[cancelled] = arrives_ns
            return
        tasks, pixels = unpack_tasks(message)
        assert len({task.kind for task in tasks}) == 1
        alone = tasks[0].kind == "single"
        self.messages.append((rank, sum(len(t.items) if alone else 1 for t in tasks)))
        self.tasks += [(rank, task) for task in tasks]
        # As much for each item, or one collage a task.
        items = [len(t.items) if t.kind == "single" or t.by_place else 1 for t in tasks]
        each = len(pixels) // sum(items)
        parts = np.split(pixels, [each * count for count in accumulate(items)][:-1])
        batch = [(task, self._corners(task, part)) for task, part in zip(tasks, parts, strict=True)]
        self.queues.setdefault(rank, deque()).append((arrives_ns, batch))

    def _corners(self, task: WireTask, pixels: np.ndarray) -> list[int]:
        """Top-left pixel of each item, from the bytes that travelled; of a `record` by place."""
        if task.by_place:
            return [row % CLASSES for _, row in unpack_places(pixels)]
        if task.kind == "single":
            return pixels.reshape(-1, *SHAPE)[:, 0, 0, 0].tolist()  # (n, 4, 4, 1)
        px = self.side * SHAPE[0]
        collage = pixels.reshape(px, px, 1)
        places = [divmod(cell, self.side) for _, cell in task.items]
        return [int(collage[r * SHAPE[0], c * SHAPE[0], 0]) for r, c in places]

    def drop(self, rank: int) -> None:
        self.dropped.append(rank)
        self.queues.pop(rank, None)
        self._up = [entry for entry in self._up if entry[2] != rank]
        heapq.heapify(self._up)

    def poll(self) -> list[Received]:
        self._serve(self.clock.now_ns)
        found: list[Received] = []
        while self._up and self._up[0][0] <= self.clock.now_ns:
            _, _, rank, message = heapq.heappop(self._up)
            found.append(Received(rank, message, self.clock()))
        return found

    def _serve(self, now_ns: int) -> None:
        for rank, queue in self.queues.items():
            while queue:
                start_ns = max(self.free_at.get(rank, 0), queue[0][0])
                if start_ns > now_ns:
                    break
                self._end(rank, queue.popleft()[1], start_ns)

    def _end(self, rank: int, batch: list[tuple[WireTask, list[int]]], start_ns: int) -> None:
        stale = {t.task for t, _ in batch if self.cancelled.get(t.task, start_ns + 1) <= start_ns}
        results = [WireResult(task, SKIPPED) for task in stale]
        end_ns = start_ns
        for task, corners in batch:
            if task.task not in stale:
                self.starts[task.task] = start_ns
                end_ns = max(end_ns, start_ns + self.service_ns(rank, task))
                result = self.behave(rank, task, corners)
                results += [] if result is None else [result]
        if end_ns > start_ns:
            self.free_at[rank] = end_ns
        if results:
            self.answer(rank, results, end_ns + self.wire_ns)

    def answer(
        self,
        rank: int,
        results: WireResult | list[WireResult],
        at_ns: int | None = None,
        session: int = SESSION,
    ) -> None:
        """Results in one message that arrives at a time, by default now."""
        out = np.zeros(16384, np.uint8)
        results = results if isinstance(results, list) else [results]
        message = out[: pack_results(out, session, results)]
        self.push(rank, message, at_ns)

    def push(self, rank: int, message: np.ndarray, at_ns: int | None = None) -> None:
        """Any message that arrives at a time, by default now."""
        self._sequence += 1
        when_ns = self.clock.now_ns if at_ns is None else at_ns
        heapq.heappush(self._up, (when_ns, self._sequence, rank, message))


class FakeMonitor:
    """What watches rank 0 for a worker."""

    def __init__(self) -> None:
        self.met: list[Any] = []
        self.released = False

    def meet(self, *rank_0: Any) -> None:
        self.met.append(rank_0)

    def release(self) -> None:
        self.released = True


class FakeEndpoint:
    """A worker's transport: what rank 0 sends is put in by the test."""

    def __init__(self, rank: int = 1) -> None:
        self.rank = rank
        self.control: deque[np.ndarray] = deque()
        self.inbox: deque[np.ndarray] = deque()
        self.sent: list[np.ndarray] = []
        self.fault_tolerant = True
        self.ring: tuple[int, int] | None = None  # (nbytes, slots)
        self.at_poll: Callable[[], None] = lambda: None

    def open_tasks(self, nbytes: int, slots: int) -> None:
        self.ring = (nbytes, slots)

    def close_tasks(self) -> None:
        self.ring = None

    def poll_control(self) -> np.ndarray | None:
        return self.control.popleft() if self.control else None

    def poll_tasks(self) -> list[np.ndarray]:
        self.at_poll()
        if self.ring is None:
            return []
        messages, self.inbox = list(self.inbox), deque()
        return messages

    def buffer(self, nbytes: int) -> np.ndarray:
        return np.zeros(nbytes, np.uint8)

    def send(self, buffer: np.ndarray, nbytes: int) -> None:
        self.sent.append(buffer[:nbytes].copy())

    # ---- for the test -------------------------------------------------------

    def tell(self, message: Message, session: int = SESSION) -> None:
        """A control message from rank 0."""
        out = np.zeros(wire.CONTROL_BYTES, np.uint8)
        self.control.append(out[: messages.pack(out, session, message)])

    def give(self, tasks: list[WireTask], pixels: list[np.ndarray], session: int = SESSION) -> None:
        """A task message from rank 0."""
        out = np.zeros(65536, np.uint8)
        self.inbox.append(out[: pack_wire_tasks(out, session, tasks, pixels)])

    def cancel(self, *tasks: int, session: int = SESSION) -> None:
        """A cancel message from rank 0."""
        out = np.zeros(256, np.uint8)
        self.inbox.append(out[: pack_cancel(out, session, tasks)])

    def results(self) -> list[WireResult]:
        """All task ends sent so far."""
        answers = [m for m in self.sent if wire.read_header(m).type == wire.ANSWERS]
        return [result for message in answers for result in unpack_results(message)]

    def told(self) -> list[Message]:
        """All control messages sent so far."""
        found = [m for m in self.sent if wire.read_header(m).type == wire.CONTROL]
        return [messages.unpack(message, self.rank) for message in found]

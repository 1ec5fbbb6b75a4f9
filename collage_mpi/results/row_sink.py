"""Takes the rows of a session into buffers, which a thread writes as parts. A simulation keeps its
rows in memory instead.

The thread gets full buffers, and at a
`tick` also buffers older than `flush_s`. Its work (CRC, write, 4 to 8 ms of fsync) releases the
GIL, so rank 0 keeps polling. If the disk is so slow that the queue fills, the caller waits, because
memory must stay bounded.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from collage_mpi.errors import CollageError, EnvironmentFault
from collage_mpi.results import PARTS_FOLDER, PENDING_FOLDER, VECTORS_FOLDER, parts
from collage_mpi.results.manifest import Json
from collage_mpi.results.reader import Results, groups_of
from collage_mpi.results.vectors import VectorBuffer, Write, extras_of
from collage_mpi.rows import IMAGES, STORED, TASKS, TableLayout

ROWS_PER_PART = 4096  # about 0.8 MB of images
FLUSH_S = 10.0  # a kill loses at most the rows of ten seconds, whose images are done again
VECTORS_PER_PART_BYTES = 32 << 20  # at this size a part is written even if it has fewer rows
QUEUE_BYTES = 64 << 20  # rows and vectors that may wait for a slow disk; then the caller waits
INTACT = "All parts written before are intact."

_T = TypeVar("_T")


class QueueThread(Generic[_T]):
    """A thread that processes the items of a queue in order. After a failure it drops all others.

    Attributes:
        fault: the failure; None if there was none.
    """

    def __init__(self, name: str, waiting: queue.Queue[_T | None]) -> None:
        """Start the thread.

        Args:
            name: of the thread.
            waiting: the queue, which may be bounded.
        """
        self.fault: CollageError | None = None
        self._queue = waiting
        # A daemon thread, so that a rank that ends by an exception does not wait for its disk.
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether all queued items are done or have failed."""
        return self._queue.unfinished_tasks == 0

    def end(self) -> None:
        """Process all queued items and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def do(self, thing: _T) -> None:
        """Process an item, in the thread. Raises OSError, CollageError."""
        raise NotImplementedError

    def path_of(self, thing: _T) -> Path:
        """The file to name in the error message if `do` fails."""
        raise NotImplementedError

    def _work(self) -> None:
        while (thing := self._queue.get()) is not None:
            if self.fault is None:
                self.fault = self._fault_of(thing)
            self._queue.task_done()

    def _fault_of(self, thing: _T) -> CollageError | None:
        """Calls `do`. Returns its failure, or None."""
        try:
            self.do(thing)
        except CollageError as error:
            return error
        except OSError as error:
            fault = unwritable(self.path_of(thing), error)
            fault.__cause__ = error  # which may name a limit of the machine
            return fault
        except Exception as error:  # otherwise the queue stays full, and rank 0 waits for ever
            return EnvironmentFault(
                f"{self.path_of(thing)}: cannot be written: {type(error).__name__}: {error}. "
                f"{INTACT} Run again with --resume."
            )
        return None


def unwritable(path: Path, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        f"{path}: cannot be written: {error.strerror or error}. {INTACT} "
        "Make room or choose a place you may write to, then run again with --resume."
    )


class _Part(NamedTuple):
    """A part that is to be written, and the vectors to write before it."""

    table: TableLayout
    number: int
    payload: memoryview
    before: Write | None

    @property
    def nbytes(self) -> int:
        """Bytes that are freed once the part is written. A buffer is held whole even if it is not
        full."""
        more = 0 if self.before is None else self.before.nbytes
        return memoryview(self.payload.obj).nbytes + more


class _Queue(queue.Queue[_Part | None]):
    """A queue whose size is counted in bytes. `queue.Queue` calls these methods."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._held = 0

    def _qsize(self) -> int:
        return self._held

    def _put(self, item: _Part | None) -> None:
        super()._put(item)
        self._held += item.nbytes if item else 1

    def _get(self) -> _Part | None:
        item: _Part | None = super()._get()
        self._held -= item.nbytes if item else 1
        return item


class PartThread(QueueThread[_Part]):
    """Writes parts, in a thread of its own."""

    def __init__(
        self,
        directory: Path,
        session: int,
        check: Callable[[], object] | None,
        written: Callable[[TableLayout, int, memoryview], object] = lambda *part: None,
    ) -> None:
        """Start the thread.

        Args:
            directory: folder of the parts.
            session: its number is in the names of the parts.
            check: raises once this session may no longer write parts.
            written: called for each part on the disk, with its table, number and packed rows.
        """
        self._directory, self._session, self._check = directory, session, check
        self._written = written
        self._numbers = dict.fromkeys((table.name for table in STORED), 0)
        super().__init__("collage-mpi rows", _Queue(QUEUE_BYTES))

    def put(self, table: TableLayout, payload: memoryview, before: Write | None = None) -> None:
        """Queue a part and the vectors to write before it. Waits while QUEUE_BYTES are queued."""
        self._numbers[table.name] += 1
        self._queue.put(_Part(table, self._numbers[table.name], payload, before))

    def path_of(self, thing: _Part) -> Path:
        """See `QueueThread`."""
        return parts.part_path(self._directory, thing.table, self._session, thing.number)

    def do(self, thing: _Part) -> None:
        """Write the vectors before the part, so that a row never lacks its vector."""
        table, number, payload, before = thing
        if before is not None:
            before.write(number)
        parts.write_part(self.path_of(thing), table, payload, self._check)
        self._written(table, number, payload)


class Writer(Protocol):
    """Where rows go: (n,) of IMAGE_ROW and of TASK_ROW."""

    session: int

    def image_rows(self, rows: np.ndarray, vectors: Sequence[np.ndarray] = (), /) -> object: ...
    def task_rows(self, rows: np.ndarray, /) -> object: ...


class Buffer:
    """The rows of one table that are not in a part yet."""

    def __init__(
        self,
        table: TableLayout,
        thread: PartThread,
        rows: int,
        beside: VectorBuffer | None = None,
    ) -> None:
        """`beside`: buffer of the vectors that are written before each part."""
        self.table, self.beside = table, beside
        self.total = 0  # rows taken in this session
        self._thread = thread
        self._size = table.packer.size
        self._capacity = rows * self._size
        self._recent = memoryview(b"")
        self._fresh()

    @property
    def room(self) -> int:
        """How many rows it takes until it is handed over."""
        return (self._capacity - self._used) // self._size

    def _fresh(self) -> None:
        self._bytes = bytearray(self._capacity)
        self._used = 0

    def extend(self, rows: np.ndarray) -> None:
        """Take packed rows, (n,) of the table's dtype.

        Raises:
            EnvironmentFault: an earlier part could not be written, for example for a full disk.
        """
        if self._thread.fault is not None:
            raise self._thread.fault
        data = memoryview(rows.tobytes())
        self.total += len(rows)
        while data:
            part = data[: self._capacity - self._used]
            self._bytes[self._used : self._used + len(part)] = part
            self._used += len(part)
            data = data[len(part) :]
            if self._used == self._capacity:
                self.hand_over()

    def hand_over(self) -> None:
        """Give the filled part of the buffer to the thread and take a new one."""
        if self._used:
            part = memoryview(self._bytes)[: self._used]
            before = None if self.beside is None else self.beside.take()
            self._thread.put(self.table, part, before)
            if self._used < self._capacity:  # the part of a team may have only a few rows
                part = memoryview((bytes(self._recent) + part)[-self._capacity :])
            self._recent = part
        self._fresh()
        if self._thread.fault is not None:
            raise self._thread.fault

    def recent(self) -> np.ndarray:
        """A copy of the latest rows, (n,) of the table's dtype, in order. n is at least the
        capacity of a buffer, unless there are fewer rows."""
        both = bytes(self._recent) + memoryview(self._bytes)[: self._used]
        return np.frombuffer(both, self.table.dtype)


class Pending(NamedTuple):
    """A part of a team that is on the disk and not published yet.

    Attributes:
        images: the rows of the part, (n,) of IMAGE_ROW; None for tasks.
    """

    table: str
    number: int
    images: np.ndarray | None


class RowSink:
    """Takes the rows of one session. Only one thread of the caller may use it.

    Attributes:
        pending: in a run of several teams, the parts that have been written, in order.
        task_rows: takes rows of tasks; see `Buffer.extend`.
    """

    def __init__(
        self,
        out: Path,
        manifest: Json,
        session: int,
        check: Callable[[], object] | None = None,
        *,
        rows_per_part: int = ROWS_PER_PART,
        flush_s: float = FLUSH_S,
    ) -> None:
        """Start the thread.

        Args:
            out: the run's folder.
            manifest: of the run. If it has several teams, the parts are written to the pending
                folder, and the lead publishes them.
            session: its number.
            check: raises once this session may no longer write parts.
            rows_per_part: rows of a full buffer.
            flush_s: age in seconds at which `tick` hands over buffered rows.
        """
        self.out = out
        self.session = session
        self.pending: deque[Pending] = deque()
        alone = (manifest.get("teams") or 1) == 1
        parts, vectors = (PARTS_FOLDER, VECTORS_FOLDER) if alone else (PENDING_FOLDER,) * 2
        written = {} if alone else {"written": self._wait_for_lead}
        self._thread = PartThread(out / parts, session, check, **written)
        self._vectors = None
        if extras_of(manifest):
            self._vectors = VectorBuffer(out / vectors, session, manifest, check)
        self._images, self._tasks = (
            Buffer(table, self._thread, rows_per_part, self._vectors if table is IMAGES else None)
            for table in STORED
        )
        self.task_rows = self._tasks.extend
        self._flush_ns = int(flush_s * 1e9)
        self._flushed_ns = time.monotonic_ns()

    @property
    def written(self) -> bool:
        """Whether any row was taken in this session."""
        return any(self.counts.values())

    @property
    def counts(self) -> dict[str, int]:
        """Rows taken in this session, by table."""
        return {buffer.table.name: buffer.total for buffer in (self._images, self._tasks)}

    @property
    def idle(self) -> bool:
        """Whether all rows that were handed over are on the disk."""
        return self._thread.idle

    def recent_tasks(self) -> np.ndarray:
        """A copy of the latest task rows, (n,) of TASK_ROW: see `Buffer.recent`."""
        return self._tasks.recent()

    def keep(self, layout: np.dtype) -> None:
        """Set the structured dtype of the vectors."""
        assert self._vectors is not None
        self._vectors.layout = layout

    def image_rows(self, rows: np.ndarray, vectors: Sequence[np.ndarray] = ()) -> None:
        """Take rows of images, (n,) of IMAGE_ROW; see `Buffer.extend`.

        `vectors`: those of the answered images, (floats,) float32 each, if the run keeps any.
        """
        done = 0
        while len(rows):
            part, rows = rows[: self._images.room], rows[self._images.room :]
            if self._vectors is not None:
                answered = part[part["answered"]]
                self._vectors.extend(answered, vectors[done : done + len(answered)])
                done += len(answered)
            self._images.extend(part)
            if self._vectors is not None and self._vectors.nbytes >= VECTORS_PER_PART_BYTES:
                self._images.hand_over()

    def tick(self) -> None:
        """Hand over buffered rows if they are `flush_s` old. Call this regularly."""
        if time.monotonic_ns() - self._flushed_ns > self._flush_ns:
            self.flush()

    def flush(self) -> None:
        """Hand all buffered rows to the thread now. This does not wait for the disk."""
        for buffer in (self._tasks, self._images):
            buffer.hand_over()
        self._flushed_ns = time.monotonic_ns()

    def drain(self) -> CollageError | None:
        """Write the remaining rows and end the thread. Returns why a write failed, or None."""
        fault: CollageError | None = None
        try:
            self.flush()
        except CollageError as error:
            fault = error
        self._thread.end()
        return fault or self._thread.fault

    def _wait_for_lead(self, table: TableLayout, number: int, payload: memoryview) -> None:
        images = np.frombuffer(payload, table.dtype) if table is IMAGES else None
        self.pending.append(Pending(table.name, number, images))


class MemoryWriter:
    """Takes rows as `RowSink` does, but keeps them in memory: some 200 bytes an image. The column
    `reason` is only as wide as the longest reason of the rows that came together."""

    session = 1

    def __init__(self) -> None:
        self._rows = {table.name: [np.empty(0, _narrow(table, 0))] for table in STORED}
        self.task_rows = partial(self._take, TASKS)

    def image_rows(self, rows: np.ndarray, vectors: Sequence[np.ndarray] = ()) -> None:
        """Take rows, (n,) of IMAGE_ROW; it keeps no vectors."""
        self._take(IMAGES, rows)

    def _take(self, table: TableLayout, rows: np.ndarray) -> None:
        longest = int(np.char.str_len(rows["reason"]).max(initial=0))
        self._rows[table.name].append(rows.astype(_narrow(table, longest)))

    def results(self, path: Path, manifest: Json) -> Results:
        """The rows as a run, as if it had been read from `path`."""
        images, tasks = (self._all(table) for table in STORED)
        groups = groups_of(images, manifest)
        return Results(path, manifest, images, groups, tasks, complete=True)

    def _all(self, table: TableLayout) -> np.ndarray:
        """All rows of a table, (n,), which are then forgotten."""
        found = self._rows.pop(table.name)
        widest = max((part.dtype for part in found), key=lambda dtype: dtype.itemsize)
        return np.concatenate(found, dtype=widest)


def _narrow(table: TableLayout, longest: int) -> np.dtype:
    """The dtype of a table whose reasons have at most `longest` bytes."""
    names = table.dtype.names or ()
    reason = f"S{max(1, longest)}"
    return np.dtype([(n, reason if n == "reason" else table.dtype[n]) for n in names])

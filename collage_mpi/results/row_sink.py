"""Takes the rows of a session into buffers, which a thread writes as parts. A simulation keeps its
rows in memory instead.

The thread gets full buffers, and at a `tick` also buffers older than `flush_s`. Its work (CRC,
write, 4 to 8 ms of fsync) releases the GIL, so rank 0 keeps polling. A part that a file server
fails to write is written again, for `LOST_S`. If the disk is so slow that the queue fills, the
caller waits, because memory must stay bounded.
"""

from __future__ import annotations

import errno
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from collage_mpi.errors import CollageError, EnvironmentFault
from collage_mpi.ledger.owner import LOST_S
from collage_mpi.ledger.records import FORMAT, Part
from collage_mpi.ledger.spans import Spans
from collage_mpi.results import PARTS_FOLDER, parts
from collage_mpi.results.columns import Form
from collage_mpi.results.manifest import Json
from collage_mpi.results.reader import Results, groups_of
from collage_mpi.rows import IMAGES, SOURCE_CODE, STORED, TASKS, TableLayout
from collage_mpi.shards.order import ranges_of

ROWS_PER_PART = 4096  # about 0.8 MB of images
FLUSH_S = 10.0  # a kill loses at most the rows of ten seconds, whose images are done again
PART_BYTES = 64 << 20  # of vectors: then a part is written even if it has fewer rows
QUEUE_BYTES = 64 << 20  # rows and vectors that may wait for a slow disk; then the caller waits
INTACT = "All parts written before are intact."
# What file servers say that work again later, and of a name that is there after a lost reply.
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EEXIST)
AGAIN_S = 1.0


def unwritable(path: Path, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        f"{path}: cannot be written: {error.strerror or error}. {INTACT} "
        "Make room or choose a place you may write to, then repeat the command."
    )


class _Part(NamedTuple):
    """A part that is to be written, and the kept values of its answered images."""

    table: TableLayout
    number: int
    payload: memoryview
    vectors: Sequence[np.ndarray] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that are freed once the part is written. A buffer is held whole even if it is not
        full."""
        return memoryview(self.payload.obj).nbytes + sum(each.nbytes for each in self.vectors)


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


class PartThread:
    """Writes parts in order, in a thread of its own. After a failure it drops all others.

    Attributes:
        fault: the failure; None if there was none.
        form: of the parts' files.
        numbers: table -> number of its last part.
    """

    def __init__(
        self,
        directory: Path,
        session: int,
        written: Callable[[Part], object],
        form: Form,
    ) -> None:
        """Start the thread.

        Args:
            directory: folder of the parts.
            session: its number is in the names of the parts.
            written: is told of each part of images that is on the disk.
            form: of the parts' files.
        """
        self.fault: CollageError | None = None
        self._directory, self._session, self._written = directory, session, written
        self.form = form
        self.numbers = dict.fromkeys((table.name for table in STORED), 0)
        self._queue = _Queue(QUEUE_BYTES)
        # A daemon thread, so that a rank that ends by an exception does not wait for its disk.
        self._thread = threading.Thread(target=self._work, name="collage-mpi rows", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether all queued parts are written or have failed."""
        return self._queue.unfinished_tasks == 0

    def end(self) -> None:
        """Write all queued parts and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def put(
        self, table: TableLayout, payload: memoryview, vectors: Sequence[np.ndarray] = ()
    ) -> None:
        """Queue a part. Waits while QUEUE_BYTES are queued."""
        self.numbers[table.name] += 1
        self._queue.put(_Part(table, self.numbers[table.name], payload, vectors))

    def _work(self) -> None:
        while (part := self._queue.get()) is not None:
            if self.fault is None:
                self.fault = self._fault_of(part)
            self._queue.task_done()

    def _fault_of(self, part: _Part) -> CollageError | None:
        """Writes a part, as often as it takes. Returns why that failed, or None."""
        path = parts.part_path(self._directory, part.table, self._session, part.number)
        until_s = time.monotonic() + LOST_S
        while True:
            try:
                self._write(path, part)
                return None
            except CollageError as error:
                return error
            except OSError as error:
                if error.errno not in PASSING or time.monotonic() >= until_s:
                    fault = unwritable(path, error)
                    fault.__cause__ = error  # which may name a limit of the machine
                    return fault
            except Exception as error:  # otherwise the queue stays full, and rank 0 waits for ever
                return EnvironmentFault(
                    f"{path}: cannot be written: {type(error).__name__}: {error}. {INTACT} Repeat "
                    "the command."
                )
            time.sleep(AGAIN_S)

    def _write(self, path: Path, part: _Part) -> None:
        rows = np.frombuffer(part.payload, part.table.dtype)
        size, crc = parts.write_part(path, part.table, rows, self.form, part.vectors)
        if part.table is IMAGES:
            failed = rows["source"] == SOURCE_CODE["error"]
            errors = _spans(rows[failed])
            self._written(Part(path.name, size, crc, _spans(rows), errors, rows=len(rows)))


def _spans(rows: np.ndarray) -> Spans:
    """The positions of rows, (n,) of IMAGE_ROW."""
    return tuple(ranges_of(np.sort(rows["position"].astype(np.int64))))


class Writer(Protocol):
    """Where rows go: (n,) of IMAGE_ROW and of TASK_ROW."""

    session: int

    def image_rows(self, rows: np.ndarray, vectors: Sequence[np.ndarray] = (), /) -> object: ...
    def task_rows(self, rows: np.ndarray, /) -> object: ...


class Buffer:
    """The rows of one table that are not in a part yet."""

    def __init__(self, table: TableLayout, thread: PartThread, rows: int) -> None:
        self.table = table
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
        self._vectors: list[np.ndarray] = []
        self._vectors_bytes = 0

    def extend(self, rows: np.ndarray, vectors: Sequence[np.ndarray] = ()) -> None:
        """Take packed rows, (n,) of the table's dtype.

        `vectors`: kept values of those that are answered; then n is at most `room`.

        Raises:
            EnvironmentFault: an earlier part could not be written, for example for a full disk.
        """
        if self._thread.fault is not None:
            raise self._thread.fault
        data = memoryview(rows.tobytes())
        self._vectors += vectors
        self._vectors_bytes += sum(vector.nbytes for vector in vectors)
        self.total += len(rows)
        while data:
            part = data[: self._capacity - self._used]
            self._bytes[self._used : self._used + len(part)] = part
            self._used += len(part)
            data = data[len(part) :]
            if self._used == self._capacity or self._vectors_bytes >= PART_BYTES:
                self.hand_over()

    def hand_over(self) -> None:
        """Give the filled part of the buffer to the thread and take a new one."""
        if self._used:
            part = memoryview(self._bytes)[: self._used]
            self._thread.put(self.table, part, self._vectors)
            if self._used < self._capacity:  # a part may have only a few rows
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


class RowSink:
    """Takes the rows of one session. Only one thread of the caller may use it.

    Attributes:
        task_rows: takes rows of tasks; see `Buffer.extend`.
    """

    def __init__(
        self,
        out: Path,
        manifest: Mapping[str, Any],
        session: int,
        written: Callable[[Part], object],
        *,
        about: Mapping[str, Any] | None = None,
        rows_per_part: int = ROWS_PER_PART,
        flush_s: float = FLUSH_S,
    ) -> None:
        """Start the thread.

        Args:
            out: the run's folder.
            manifest: of the run.
            session: its number.
            written: is told, in the thread, of each part of images that is on the disk.
            about: what the files say of the job.
            rows_per_part: rows of a full buffer.
            flush_s: age in seconds at which `tick` hands over buffered rows.
        """
        self.out = out
        self.session = session
        fingerprints = [shard["fingerprint"] for shard in manifest["shards"]]
        told = {name: manifest.get(name) for name in ("run_id", "inputs")}
        form = Form(fingerprints, {"format": FORMAT, **told, "jobs": {session: {**(about or {})}}})
        self._thread = PartThread(out / PARTS_FOLDER, session, written, form)
        self._images, self._tasks = (Buffer(table, self._thread, rows_per_part) for table in STORED)
        self.task_rows = self._tasks.extend
        self._flush_ns = int(flush_s * 1e9)
        self._flushed_ns = time.monotonic_ns()

    @property
    def counts(self) -> dict[str, int]:
        """Rows taken in this session, by table."""
        return {buffer.table.name: buffer.total for buffer in (self._images, self._tasks)}

    @property
    def parts(self) -> dict[str, int]:
        """Parts made in this session, by table."""
        return dict(self._thread.numbers)

    @property
    def failed(self) -> bool:
        """Whether some of the rows could not be written."""
        return self._thread.fault is not None

    @property
    def idle(self) -> bool:
        """Whether all rows that were handed over are on the disk."""
        return self._thread.idle

    def recent_tasks(self) -> np.ndarray:
        """A copy of the latest task rows, (n,) of TASK_ROW: see `Buffer.recent`."""
        return self._tasks.recent()

    def keep(self, layout: np.dtype) -> None:
        """Set the structured dtype of the vectors."""
        self._thread.form.layout = layout

    def image_rows(self, rows: np.ndarray, vectors: Sequence[np.ndarray] = ()) -> None:
        """Take rows of images, (n,) of IMAGE_ROW; see `Buffer.extend`.

        `vectors`: those of the answered images, (floats,) float32 each, if the run keeps any.
        """
        while len(rows):
            part, rows = rows[: self._images.room], rows[self._images.room :]
            answered = int(part["answered"].sum()) if len(vectors) else 0
            self._images.extend(part, vectors[:answered])
            vectors = vectors[answered:]

    def tick(self, *, soon: bool = False) -> None:
        """Hand over buffered rows if they are `flush_s` old; half as old if `soon`. Call this
        regularly.
        """
        if time.monotonic_ns() - self._flushed_ns > self._flush_ns >> soon:
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

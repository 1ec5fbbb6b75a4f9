"""Between the row and the disk: buffers on the hot path, one thread behind a bounded queue.

Owns: packing rows, when a buffer becomes a part, the writer thread, how a failed write is
kept for the caller.
Does not know: the run directory's other files, what the columns mean.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import CollageError, EnvironmentFault
from collage_mpi.results import parts
from collage_mpi.results.rows import TABLES, TableLayout, reason_bytes
from collage_mpi.results.vectors import Beside, Write

QUEUE_BYTES = 64 << 20  # of rows and vectors behind a slow disk, then the caller waits
INTACT = "All parts written before are intact."

_Part = tuple[TableLayout, int, memoryview, Write | None]


class _Queue(queue.Queue[_Part | None]):
    """Of parts, bounded by the bytes that they hold; `queue.Queue` asks these four."""

    def _init(self, maxsize: int) -> None:
        super()._init(maxsize)
        self._held = 0

    def _qsize(self) -> int:
        return self._held

    def _put(self, item: _Part | None) -> None:
        super()._put(item)
        self._held += _nbytes(item)

    def _get(self) -> _Part | None:
        item: _Part | None = super()._get()
        self._held -= _nbytes(item)
        return item


def _nbytes(part: _Part | None) -> int:
    """What is freed once it is written: a part-filled buffer is held as a whole."""
    if part is None:
        return 1
    _, _, payload, before = part
    return memoryview(payload.obj).nbytes + (0 if before is None else before.nbytes)


class Buffer:
    """The rows of one table that are not yet a part."""

    def __init__(
        self,
        table: TableLayout,
        thread: PartThread,
        rows: int,
        beside: Beside | None = None,
    ) -> None:
        """`beside` is what else is written with each part, before it."""
        self.table, self.beside = table, beside
        self.total = 0  # rows taken in this session
        self._thread = thread
        self._size = table.packer.size
        self._capacity = rows * self._size
        self._pack_into = table.packer.pack_into
        self._has_reason = table.has_reason
        self._recent = memoryview(b"")
        self._fresh()

    def _fresh(self) -> None:
        self._bytes = bytearray(self._capacity)
        self._used = 0

    def add(self, row: tuple[Any, ...]) -> None:
        """Pack one row; about a microsecond."""
        if self._has_reason and type(row[-1]) is str:
            row = (*row[:-1], reason_bytes(row[-1]))
        self._pack_into(self._bytes, self._used, *row)
        self._used += self._size
        self.total += 1
        if self._used == self._capacity:
            self.hand_over()
        elif self._thread.fault is not None:
            raise self._thread.fault

    def hand_over(self) -> None:
        """Give the filled part of the buffer to the thread and take a new one."""
        if self._used:
            part = memoryview(self._bytes)[: self._used]
            before = None if self.beside is None else self.beside.take()
            self._thread.put(self.table, part, before)
            if self._used < self._capacity:  # a team's, which may be of a few rows
                part = memoryview((bytes(self._recent) + part)[-self._capacity :])
            self._recent = part
        self._fresh()
        if self._thread.fault is not None:
            raise self._thread.fault

    def recent(self) -> np.ndarray:
        """A copy of the last rows, (n,) of the table's dtype, in their order: at least as many as
        a buffer holds, where so many have come."""
        both = bytes(self._recent) + memoryview(self._bytes)[: self._used]
        return np.frombuffer(both, self.table.dtype)


class PartThread:
    """Writes parts in order; after a failure it only empties the queue.

    `check` raises once the parts are not this session's to write any more; `written` is called
    with each part that is on the disk: its table, its number and its packed rows.
    """

    def __init__(
        self,
        directory: Path,
        session: int,
        check: Callable[[], object] | None,
        written: Callable[[TableLayout, int, memoryview], object] = lambda *part: None,
    ) -> None:
        self.fault: CollageError | None = None
        self._written = written
        self._directory = directory
        self._session = session
        self._check = check
        self._numbers = {table.name: 1 for table in TABLES}
        self._queue = _Queue(QUEUE_BYTES)
        # A daemon: a rank that dies of an exception must not wait for its disk.
        self._thread = threading.Thread(target=self._work, name="collage-mpi rows", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether all that was put is on the disk, or has failed."""
        return self._queue.unfinished_tasks == 0

    def put(self, table: TableLayout, payload: memoryview, before: Write | None = None) -> None:
        """Queue one part, and what is written before it; waits while QUEUE_BYTES are ahead."""
        self._queue.put((table, self._number(table), payload, before))

    def end(self) -> None:
        """Write what is queued and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _number(self, table: TableLayout) -> int:
        number = self._numbers[table.name]
        self._numbers[table.name] = number + 1
        return number

    def _path(self, table: TableLayout, number: int) -> Path:
        return parts.part_path(self._directory, table, self._session, number)

    def _write(
        self, table: TableLayout, number: int, payload: memoryview, before: Write | None
    ) -> None:
        """What goes with the part is there before it, so a row never stands alone."""
        if before is not None:
            before.write(number)
        parts.write_part(self._path(table, number), table, payload, self._check)
        self._written(table, number, payload)

    def _work(self) -> None:
        while (part := self._queue.get()) is not None:
            if self.fault is None:
                self.fault = self._fault_of(part)
            self._queue.task_done()

    def _fault_of(self, part: _Part) -> CollageError | None:
        """Write it; what kept it from being written."""
        path = self._path(*part[:2])
        try:
            self._write(*part)
        except CollageError as error:
            return error
        except OSError as error:
            fault = unwritable(path, error)
            fault.__cause__ = error  # which may be a limit of the machine
            return fault
        except Exception as error:  # else nobody empties the queue, and rank 0 waits for ever
            return EnvironmentFault(
                f"{path}: cannot be written: {type(error).__name__}: {error}. {INTACT} Run "
                "again with --resume."
            )
        return None


def unwritable(path: Path, error: OSError) -> EnvironmentFault:
    return EnvironmentFault(
        f"{path}: cannot be written: {error.strerror or error}. {INTACT} "
        "Make room or choose a place you may write to, then run again with --resume."
    )

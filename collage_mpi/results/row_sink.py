"""Where rows go in: three buffers and the thread behind them, of a run or of one of its teams.

Owns: a row by fields or as it is, when buffers are handed over, the parts of a team that wait to
be published.
Does not know: the manifest as a file, claims, when a run is complete.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from collage_mpi.errors import CollageError
from collage_mpi.results.buffers import Buffer, PartThread
from collage_mpi.results.file_names import PARTS_FOLDER, PENDING_FOLDER, VECTORS_FOLDER
from collage_mpi.results.manifest import Json
from collage_mpi.results.rows import GROUPS, IMAGES, TABLES, TASKS, TableLayout
from collage_mpi.results.vectors import Beside, extras_of

ROWS_PER_PART = 4096  # about 0.8 MB of images
FLUSH_S = 10.0  # a kill costs the rows of the last ten seconds: they are done again


class Pending(NamedTuple):
    """A part of a team that is on the disk and that no reader sees yet; `images`: its rows, (n,)
    of IMAGE_ROW, where they are of images."""

    table: str
    number: int
    images: np.ndarray | None


class RowSink:
    """Takes the rows of one session. Not shared between threads of the caller.

    Attributes:
        pending: parts of a run of several teams, as they come on the disk.
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
            manifest: of the run; one of several teams has its parts published by the lead.
            session: this one's number.
            check: raises once the parts are not this session's to write any more.
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
            self._vectors = Beside(out / vectors, session, manifest, check)
        self._images, self._groups, self._tasks = (
            Buffer(
                table,
                self._thread,
                rows_per_part,
                self._vectors if table is IMAGES else None,
            )
            for table in TABLES
        )
        self._flush_ns = int(flush_s * 1e9)
        self._flushed_ns = time.monotonic_ns()

    @property
    def written(self) -> bool:
        """Whether any row was taken in this session."""
        return any(self.counts.values())

    @property
    def counts(self) -> dict[str, int]:
        """Rows taken in this session, by table."""
        return {
            buffer.table.name: buffer.total for buffer in (self._images, self._groups, self._tasks)
        }

    @property
    def idle(self) -> bool:
        """Whether all that was handed over is on the disk."""
        return self._thread.idle

    def recent_tasks(self) -> np.ndarray:
        """A copy of the latest task rows, (n,) of TASK_ROW: some seconds' or 4,096 and more."""
        return self._tasks.recent()

    def image(self, row: tuple[Any, ...] | None = None, /, **fields: Any) -> None:
        """Record one image: an ImageRow (or a tuple in its order), or its fields by name.

        By name, `source` may be a name of SOURCES and `session` defaults to this one.

        Raises:
            EnvironmentFault: an earlier part could not be written (disk full...).
            struct.error, TypeError: a value does not fit its column.
        """
        self._images.add(row if row is not None else self._row(IMAGES, fields))

    def vector(self, shard: int, row: int, vector: np.ndarray) -> None:
        """What is kept of an answered image, (floats,) float32: before its own row."""
        assert self._vectors is not None
        self._vectors.add(shard, row, vector)

    def group(self, row: tuple[Any, ...] | None = None, /, **fields: Any) -> None:
        """Record one group: a GroupRow, or its fields by name. Raises as `image`."""
        self._groups.add(row if row is not None else self._row(GROUPS, fields))

    def task(self, row: tuple[Any, ...] | None = None, /, **fields: Any) -> None:
        """Record one task: a TaskRow, or its fields by name. Raises as `image`."""
        self._tasks.add(row if row is not None else self._row(TASKS, fields))

    def tick(self) -> None:
        """Hand over what was buffered when it is `flush_s` old. To be called again and again."""
        if time.monotonic_ns() - self._flushed_ns > self._flush_ns:
            self.flush()

    def flush(self) -> None:
        """Hand all buffered rows to the thread now; does not wait for the disk."""
        for buffer in (self._tasks, self._groups, self._images):
            buffer.hand_over()
        self._flushed_ns = time.monotonic_ns()

    def drain(self) -> CollageError | None:
        """Hand over the rest, end the thread; the fault of any write, if there was one."""
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

    def _row(self, table: TableLayout, fields: dict[str, Any]) -> tuple[Any, ...]:
        """Fields by name to a row: names to codes, this session as the default."""
        for column, codes in table.coded.items():
            value = fields.get(column)
            if type(value) is str:
                fields[column] = codes[value]
        found: tuple[Any, ...] = table.row(**{"session": self.session, **table.defaults, **fields})
        return found

"""Rows kept in memory instead of on disk: a million images are summarised in seconds."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from collage_mpi.errors import CollageError
from collage_mpi.results.manifest import Json
from collage_mpi.results.reader import Results
from collage_mpi.results.row_sink import ROWS_PER_PART, Buffer
from collage_mpi.results.rows import TABLES, TableLayout
from collage_mpi.results.vectors import Write


class MemoryWriter:
    """Takes rows as RunWriter does; some 200 bytes an image with its tasks."""

    session = 1

    def __init__(self) -> None:
        self._kept = _KeptParts()
        self._buffers = {t.name: Buffer(t, self._kept, ROWS_PER_PART, self.session) for t in TABLES}
        self.image, self.group, self.task = (buffer.add for buffer in self._buffers.values())

    def results(self, path: Path, manifest: Json) -> Results:
        """What was written, as if it were read back from `path`."""
        for buffer in self._buffers.values():
            buffer.hand_over()
        images, groups, tasks = map(self._kept.rows, TABLES)
        return Results(path, manifest, images, groups, tasks, complete=True)


class _KeptParts:
    """Parts with reasons only as long as the longest: few rows have one."""

    fault: CollageError | None = None

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = defaultdict(list)

    def put(self, table: TableLayout, payload: memoryview, before: Write | None = None) -> None:
        rows = np.frombuffer(payload, table.dtype)
        longest = int(np.char.str_len(rows["reason"]).max()) if table.has_reason else 0
        self._parts[table.name].append(rows.astype(_narrow(table, longest)))

    def rows(self, table: TableLayout) -> np.ndarray:
        """(n,) with the columns of a table."""
        found = self._parts.pop(table.name, [np.empty(0, _narrow(table, 0))])
        widest = max((part.dtype for part in found), key=lambda dtype: dtype.itemsize)
        return np.concatenate([part.astype(widest, copy=False) for part in found])


def _narrow(table: TableLayout, longest: int) -> np.dtype:
    """The columns of a table with reasons of so many bytes."""
    names = table.dtype.names or ()
    reason = f"S{max(1, longest)}"
    return np.dtype([(n, reason if n == "reason" else table.dtype[n]) for n in names])

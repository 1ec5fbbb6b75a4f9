"""Rows kept in memory instead of on disk: a million images are summarised in seconds.

Owns: packing rows without their reasons, and the Results that they make.
Does not know: files, who writes rows, statistics.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.results.manifest import Json
from collage_mpi.results.reader import Results
from collage_mpi.results.rows import (
    GROUPS,
    IMAGES,
    REASON_BYTES,
    TASKS,
    GroupRow,
    ImageRow,
    TableLayout,
    TaskRow,
    reason_bytes,
)


class _Rows:
    """One table's rows, packed. Reasons, which few rows have, are kept aside."""

    def __init__(self, table: TableLayout) -> None:
        self._packed = bytearray()
        self._reasons: dict[int, bytes] = {}
        self._has_reason = table.has_reason
        fmt, self._dtype = table.packer.format, table.dtype
        if table.has_reason:  # the last column, "...96s": one byte here
            fmt = fmt.removesuffix(f"{REASON_BYTES}s") + "x"
            self._dtype = _with_reason(table.dtype, 1)
        self._packer = struct.Struct(fmt)
        assert self._packer.size == self._dtype.itemsize

    def add(self, row: tuple[Any, ...]) -> None:
        if self._has_reason:
            if row[-1]:
                self._reasons[len(self._packed) // self._packer.size] = reason_bytes(row[-1])
            row = row[:-1]
        self._packed += self._packer.pack(*row)

    def array(self) -> np.ndarray:
        """(n,) with the table's columns; reasons only as long as the longest."""
        rows = np.frombuffer(self._packed, self._dtype)
        if not self._reasons:
            return rows
        longest = max(map(len, self._reasons.values()))
        wide = rows.astype(_with_reason(self._dtype, longest))
        for place, reason in self._reasons.items():
            wide["reason"][place] = reason
        return wide


def _with_reason(dtype: np.dtype, nbytes: int) -> np.dtype:
    names = dtype.names or ()
    fields = [(name, dtype[name] if name != "reason" else f"S{nbytes}") for name in names]
    return np.dtype(fields)


class MemoryWriter:
    """Takes rows as RunWriter does; some 200 bytes an image with its tasks."""

    session = 1

    def __init__(self) -> None:
        self._images, self._groups, self._tasks = map(_Rows, (IMAGES, GROUPS, TASKS))

    def image(self, row: ImageRow) -> None:
        """Keep one image's row."""
        self._images.add(row)

    def group(self, row: GroupRow) -> None:
        """Keep one group's row."""
        self._groups.add(row)

    def task(self, row: TaskRow) -> None:
        """Keep one task's row."""
        self._tasks.add(row)

    def results(self, path: Path, manifest: Json) -> Results:
        """What was written, as if it were read back from `path`."""
        images, groups, tasks = (rows.array() for rows in (self._images, self._groups, self._tasks))
        return Results(path, manifest, images, groups, tasks, complete=True)

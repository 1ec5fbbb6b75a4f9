"""A column of a list: one value for each row, in memory while it is small, and in a file otherwise.
So a list of 10 million pictures takes as much memory as a short one.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import DTypeLike

from collage_mpi.system.files import reading, writing

HELD_BYTES = 4 << 20  # of a column; a larger one is in a file
ROWS_AT_ONCE = 1 << 15
GAP = 64  # rows between two that are read together


class Values(Protocol):
    """A column, or a numpy array."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any) -> Any: ...


class Column:
    """Values of one type and shape, by row. It is read like an array, and grows at its end.

    A column that outgrows `held_bytes` goes to a temporary file without a name, which ends with the
    process. TMPDIR says where. Several threads may read at a time.

    Attributes:
        dtype, shape: of a value.
    """

    def __init__(
        self,
        dtype: DTypeLike,
        shape: tuple[int, ...] = (),
        rows: int = 0,
        held: bytes = b"",
        file: BinaryIO | None = None,
        start: int = 0,
        held_bytes: int | None = None,
    ) -> None:
        """An empty column, or one of `rows` values that is there already, which then cannot grow.

        Args:
            dtype, shape: of a value.
            rows: number of values.
            held: their bytes, if they are in memory.
            file: holds them, beginning at byte `start`.
            held_bytes: by default HELD_BYTES.
        """
        self.dtype, self.shape = np.dtype(dtype), shape
        self._each = self.dtype.itemsize * math.prod(shape)
        self._rows, self._held, self._file, self._start = rows, bytearray(held), file, start
        self._most = HELD_BYTES if held_bytes is None else held_bytes

    @classmethod
    def of(cls, some: Iterable[np.ndarray], dtype: DTypeLike = np.int64) -> Column:
        """The values of several arrays, one array after the other."""
        found = cls(dtype)
        for values in some:
            found.append(values)
        return found

    def __len__(self) -> int:
        return self._rows

    def append(self, values: np.ndarray) -> None:
        """Add values, (k, ...). Raises EnvironmentFault if there is no room for them."""
        data = np.ascontiguousarray(values, self.dtype).tobytes()
        self._rows += len(values)
        self._held += data
        if self._file is None and len(self._held) <= self._most:
            return
        with writing(Path(tempfile.gettempdir(), "a list of images (TMPDIR names the folder)")):
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # ends with self
            left = memoryview(self._held)
            while left:
                left = left[os.write(self._file.fileno(), left) :]
        self._held = bytearray()

    def pad(self, rows: int) -> None:
        """Add zeros until there are so many rows."""
        while (lacking := min(rows - self._rows, ROWS_AT_ONCE)) > 0:
            self.append(np.zeros((lacking, *self.shape), self.dtype))

    def __getitem__(self, rows: Any) -> Any:
        """A value, the values of a slice without step, or those of an array of rows: (k,) integers
        from 0, or (n,) bool."""
        if isinstance(rows, slice):
            first, stop, step = rows.indices(self._rows)
            if step != 1:
                raise IndexError("a slice of a column has no step")
            return self._read(first, max(first, stop))
        if isinstance(rows, np.ndarray) and rows.dtype == bool:
            rows = np.flatnonzero(rows)
        if isinstance(rows, np.ndarray) and self._file is None:
            return np.frombuffer(self._held, self.dtype).reshape(-1, *self.shape)[rows]
        if isinstance(rows, np.ndarray):
            found = np.empty((len(rows), *self.shape), self.dtype)
            for places, first, stop in spans(rows):
                found[places] = self._read(first, stop)[rows[places] - first]
            return found
        row = range(self._rows)[rows]
        return self._read(row, row + 1)[0]

    def _read(self, first: int, stop: int) -> np.ndarray:
        size, start = (stop - first) * self._each, first * self._each
        if self._file is None:
            data = bytes(self._held[start : start + size])
        else:
            data = self._from_file(self._start + start, size)
        return np.frombuffer(data, self.dtype).reshape(stop - first, *self.shape)

    def _from_file(self, start: int, size: int) -> bytes:
        """Bytes of the file. Raises EnvironmentFault."""
        assert self._file is not None
        found: list[bytes] = []
        with reading(f"{self._file.name}: a list of images"):
            while size > 0:
                data = os.pread(self._file.fileno(), size, start)
                if not data:
                    raise OSError(0, "it is shorter than it was")
                found.append(data)
                start, size = start + len(data), size - len(data)
        return b"".join(found)


def pieces(column: Values) -> Iterator[np.ndarray]:
    """Yields all values of a column in order, ROWS_AT_ONCE at a time."""
    for first in range(0, len(column), ROWS_AT_ONCE):
        yield column[first : first + ROWS_AT_ONCE]


def spans(rows: np.ndarray) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yields (places, first, stop): the places in `rows`, (k,) int64 in any order, of those in
    [first, stop), which lie so near to each other that they are read together."""
    order = np.argsort(rows, kind="stable")
    near = rows[order]
    far = (np.diff(near) > GAP) | (np.diff(near // ROWS_AT_ONCE) != 0)
    cuts = [0, *(np.flatnonzero(far) + 1).tolist(), len(rows)]
    for start, end in pairwise(cuts):
        if start < end:
            yield order[start:end], int(near[start]), int(near[end - 1]) + 1

"""Shards that store picture files unchanged and decode them when they are read.

The bytes of all images lie end to end in one dataset, and `ends` gives the end of each. HDF5's own
variable-length type would put them into a heap that has no checksum and is read one image at a
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.shards.hdf5 import H5_LOCK, text_array
from collage_mpi.shards.pictures import Fit
from collage_mpi.shards.schema import row_crc32
from collage_mpi.shards.writer import ShardWriter

CHUNK_BYTES = 1 << 20  # of the dataset of bytes; an image may lie across two


class EncodedWriter(ShardWriter):
    """Appends picture files unchanged; everything else is as in `ShardWriter`.

    Args:
        path: the shard.
        fit: how a reader makes pixels of the files.
        class_names: as for `ShardWriter`.
        source: as for `ShardWriter`.
        recipe: as for `ShardWriter`.
    """

    storage = "encoded"

    def __init__(
        self,
        path: Path | str,
        fit: Fit,
        *,
        class_names: Sequence[str] | None = None,
        source: str = "",
        recipe: str = "",
    ) -> None:
        self.fit = self._fit = fit
        self._ends: list[np.ndarray] = []
        self._nbytes = 0
        super().__init__(path, fit.shape, class_names=class_names, source=source, recipe=recipe)

    def append_files(
        self,
        files: Sequence[bytes],
        labels: np.ndarray | Sequence[int] | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        """Add pictures. The caller must know that they can be decoded.

        Args:
            files: the bytes of n files, none empty.
            labels: as for `ShardWriter.append`.
            ids: as for `ShardWriter.append`.

        Raises:
            DataFault: an empty file, or labels or ids that do not fit.
            EnvironmentFault: the disk is full or gone.
        """
        if not files:
            return
        if not all(files):
            raise DataFault(f"{self.path}: an encoded image of 0 bytes")
        tags = self._admit(len(files), labels, ids)
        self._store(np.frombuffer(b"".join(files), dtype=np.uint8), "encoded", self._nbytes)
        ends = self._nbytes + np.cumsum([len(data) for data in files], dtype=np.int64)
        self._ends.append(ends)
        self._nbytes = int(ends[-1])
        plain = [None] * len(files) if tags is None else tags.tolist()
        crcs = [row_crc32(data, tag) for data, tag in zip(files, plain, strict=True)]
        self._count_in(np.array(crcs, dtype=np.uint32), tags, ids)

    def append(
        self,
        images: np.ndarray,
        labels: np.ndarray | Sequence[int] | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        """Always raises DataFault, because this shard takes files and no pixels."""
        raise DataFault(f"{self.path}: a shard of encoded images takes files, not pixels")

    def _create_pixels(self, file: Any, rows: int) -> None:
        file.create_dataset(
            "encoded", shape=(0,), maxshape=(None,), chunks=(CHUNK_BYTES,), dtype=np.uint8
        )

    def _write_more(self, file: Any) -> None:
        file.create_dataset("ends", data=np.concatenate(self._ends))  # (n,) int64
        file.attrs["fit"] = text_array([self._fit.text()])[0]


def read_files(encoded: Any, ends: np.ndarray, rows: np.ndarray) -> list[bytes]:
    """The bytes of ascending `rows`. Neighbouring rows are read together.

    Args:
        encoded: the open dataset.
        ends: (n,) int64, of all images in the shard.
        rows: (m,) int64; repeats are allowed.
    """
    starts = np.where(rows > 0, ends[rows - 1], 0).tolist()  # of these rows: a shard has many
    stops = ends[rows].tolist()
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    found: list[bytes] = []
    for first, end in pairwise([0, *breaks.tolist(), len(rows)]):
        low = starts[first]
        with H5_LOCK:
            block = encoded[low : stops[end - 1]].tobytes()
        found += [block[starts[i] - low : stops[i] - low] for i in range(first, end)]
    return found

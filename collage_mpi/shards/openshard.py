"""Sources in HDF5 files: shards, and files of other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.shards.foreign import ArrayLayout
from collage_mpi.shards.guard import inspect_shard, opened
from collage_mpi.shards.hdf5 import H5_LOCK, still_reading
from collage_mpi.shards.members import Texts
from collage_mpi.shards.schema import ShardInfo, label_problem, rows_crc32
from collage_mpi.shards.source import Checks, ReadAs, Source, slices_of

FILTER_CACHE_BYTES = 64 << 20  # chunk cache, only for files whose chunks are compressed or cut rows


class OpenShard(Source):
    """One open file. Checksums and labels are in memory, and pixels are read on demand.

    Attributes:
        crc32: (n,) uint32; None for a file of another program, which has no checksums.
    """

    name = "images"
    checks: ClassVar[Checks] = "rows"
    suffixes = (".h5",)
    own = ArrayLayout("images", "labels", "")  # of files of this package

    def __init__(self, info: ShardInfo) -> None:
        super().__init__(info)
        self._layout = ArrayLayout.from_json(info.layout) if info.layout else self.own
        with still_reading(info.path):
            self._file: Any = opened(info.path)
            if _wants_cache(self._file[self._layout.images]):
                self._file.close()
                self._file = opened(info.path, cache_bytes=FILTER_CACHE_BYTES)
            self._images = self._file[self._layout.images]
            if info.has_labels:  # (n,) int64
                labels = self._file[self._layout.labels][...].reshape(-1)
                self.labels = labels.astype(np.int64, copy=False)
            self.crc32: Any = None if info.layout else self._file["crc32"][...]
            shape = self._images.shape
        found = (shape[0], *self._layout.image_shape(shape))
        rows = info.count if self.crc32 is None else len(self.crc32)
        if found != (info.count, *info.shape) or rows != info.count:
            raise DataFault(f"{info.path}: has changed since it was checked. Start again.")
        wrong = None if self.labels is None else label_problem(self.labels, info.class_names)
        if wrong:
            raise DataFault(f"{info.path}: {wrong}")

    @classmethod
    def describe(cls, path: Path, read_as: ReadAs) -> ShardInfo:
        """Check and describe the file in a child process; see `guard`."""
        return inspect_shard(path)

    def sound(self, pixels: np.ndarray, places: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(m,) bool: whether the checksums of `pixels[places]`, as read from `rows`, match."""
        found = super().sound(pixels, places, rows)
        if self.crc32 is not None:
            tags = None if self.labels is None else self.labels[rows]
            own = [pixels[place] for place in places.tolist()]
            found &= rows_crc32(own, tags) == self.crc32[rows]
        return found

    def read_into(self, out: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        """Read ascending `rows`, repeats allowed, into `out[places]`, (n, ...) items.

        Neighbouring rows are read as one slice: 200,000 rows of 28 px a second in random order, and
        millions in file order. Index lists of h5py read 12,000 (analysis/reports/shards.md).
        """
        with still_reading(self.path):
            for start, stop, first in slices_of(rows):
                block = self._images[first : first + stop - start]
                out[places[start:stop]] = self._layout.arrange(block)

    @classmethod
    def ids(cls, info: ShardInfo) -> Sequence[str] | None:
        """The ids in the file, in the order of its rows; None if it has none.

        Raises:
            DataFault: the dataset does not hold n texts.
            EnvironmentFault: the shard can no longer be read.
        """
        with still_reading(info.path), opened(info.path) as file:
            values = file["ids"][...] if "ids" in file and not info.layout else None
        if values is None:
            return None
        if values.shape != (info.count,) or values.dtype.kind not in "SOU":
            raise DataFault(
                f"{info.path}: dataset ids is {values.dtype} {values.shape}; needed: {info.count} "
                "texts"
            )

        def text(row: int) -> str:
            found = values[row]
            return found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)

        return Texts(info.count, text)

    def close(self) -> None:
        with H5_LOCK:
            self._file.close()


def _wants_cache(images: Any) -> bool:
    """Whether the chunks have a filter or cut rows, so that reading single rows needs a cache."""
    cut = images.chunks is not None and images.chunks[1:] != images.shape[1:]
    return bool(cut or images.id.get_create_plist().get_nfilters())


class ForeignShard(OpenShard):
    """A file of another program, which has other dataset names and axes and no checksums."""

    name, checks = "foreign", ""

"""Several shards as one input: any rows, in any order, each checked.

Owns: global index <-> (shard, row), reading runs of rows, checksums on the way in.
Does not know: threads (readahead.py), the safety of a first open (guard.py).
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.shards.check import opened
from collage_mpi.shards.guard import inspect_shards
from collage_mpi.shards.hdf5 import H5_LOCK
from collage_mpi.shards.schema import ShardInfo, cells_name, label_problem, rows_crc32

OPEN_FILES = 64
"""Files kept open at once; opening another takes about a millisecond."""

FILTER_CACHE_BYTES = 64 << 20  # for foreign shards with compressed chunks only


class ShardSet:
    """Shards read as one list of images, global index 0 to len-1 in file order.

    Make one with `ShardSet.open`. Methods may be called from several threads.

    Attributes:
        infos: one description a shard, in order.
        shape: (H, W, C) of every image.
        class_names: the names of labels 0, 1, ...; None if the shards have none.
    """

    def __init__(self, infos: Sequence[ShardInfo]) -> None:
        _check_alike(infos)
        self.infos = tuple(infos)
        self.shape = infos[0].shape
        self.class_names = infos[0].class_names
        self._starts = np.cumsum([0, *(info.count for info in infos)])  # (shards + 1,)
        self._lock = threading.RLock()
        self._open: OrderedDict[int, _OpenShard] = OrderedDict()  # least recently used first
        self._closed = False

    @classmethod
    def open(cls, paths: Sequence[Path | str]) -> ShardSet:
        """Check and open shards; a directory stands for its `*.h5` files, sorted.

        Raises:
            EnvironmentFault: nothing there, or not readable.
            DataFault: damaged, foreign, or shards that do not fit together.
        """
        return cls(inspect_shards(expand_paths(paths)))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """The (shard number, row) of a global index. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def read(self, indices: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Read images in any order, repeats allowed.

        Args:
            indices: (n,) global indices.

        Returns:
            (n, H, W, C) uint8 and (n,) int64 labels, or None without labels.

        Raises:
            DataFault: a row's checksum does not match; names file and row.
            EnvironmentFault: a file can no longer be read.
            IndexError: an index out of range.
        """
        pixels, labels, good = self.read_checked(indices)
        if not good.all():
            raise DataFault(self.row_fault(int(np.asarray(indices)[np.argmin(good)])))
        return pixels, labels

    def read_checked(
        self, indices: np.ndarray | Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Like `read`, but a bad row is zeros and False in the third array, (n,) bool."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"images {wanted.min()}..{wanted.max()} of {len(self)}")
        pixels = np.empty((len(wanted), *self.shape), dtype=np.uint8)
        labels = np.empty(len(wanted), dtype=np.int64) if self.infos[0].has_labels else None
        stored = np.empty(len(wanted), dtype=np.uint32)
        for shard, places in self._by_shard(wanted):
            rows = wanted[places] - self._starts[shard]  # ascending
            with self._lock:
                source = self._shard(shard)
                source.read_into(pixels, places, rows)
            stored[places] = source.crc32[rows]
            if labels is not None and source.labels is not None:
                labels[places] = source.labels[rows]
        good = rows_crc32(pixels, labels) == stored
        pixels[~good] = 0
        return pixels, labels, good

    @property
    def cell_sizes(self) -> frozenset[int]:
        """Edges in pixels of the cells that all shards store beside their images."""
        return frozenset.intersection(*(frozenset(info.cell_sizes) for info in self.infos))

    def read_cells(
        self, indices: np.ndarray | Sequence[int], px: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Stored cells of one of `cell_sizes`.

        Args:
            indices: (n,) global indices, repeats allowed.
            px: edge of a cell.

        Returns:
            (n, px, px, C) uint8, and (n,) bool, False where the checksum does not match.

        Raises:
            EnvironmentFault: a file can no longer be read.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        cells = np.empty((len(wanted), px, px, self.shape[2]), dtype=np.uint8)
        stored = np.empty(len(wanted), dtype=np.uint32)
        for shard, places in self._by_shard(wanted):
            rows = wanted[places] - self._starts[shard]
            with self._lock:
                source = self._shard(shard)
                source.read_into(cells, places, rows, cells_name(px))
                stored[places] = source.cells_crc32(px)[rows]
        return cells, rows_crc32(cells, None) == stored

    def row_fault(self, index: int) -> str:
        """The sentence for a row whose checksum does not match."""
        shard, row = self.locate(index)
        return f"{self.infos[shard].path}: row {row}: checksum does not match its pixels and label"

    def read_all(self) -> tuple[np.ndarray, np.ndarray | None]:
        """All images in file order; see `read`."""
        return self.read(np.arange(len(self)))

    def labels(self) -> np.ndarray | None:
        """(n,) int64 labels of all images without reading pixels; None without labels."""
        if not self.infos[0].has_labels:
            return None
        with self._lock:
            return np.concatenate([self._shard(k).labels for k in range(len(self.infos))])

    def close(self) -> None:
        """Close the files; later reads raise. May be called twice."""
        with self._lock:
            self._closed = True
            for shard in self._open.values():
                shard.close()
            self._open.clear()

    def __enter__(self) -> ShardSet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _by_shard(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(shard, places in `wanted` whose index lies in it, ascending by index)."""
        order = np.argsort(wanted, kind="stable")
        cuts = np.searchsorted(wanted[order], self._starts)
        for shard in np.flatnonzero(np.diff(cuts)).tolist():
            yield shard, order[cuts[shard] : cuts[shard + 1]]

    def _shard(self, number: int) -> _OpenShard:
        """The open shard; the caller holds the lock while it uses the file."""
        if self._closed:
            raise ValueError("this ShardSet is closed")
        if number not in self._open:
            if len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[number] = _OpenShard(self.infos[number])
        self._open.move_to_end(number)
        return self._open[number]


class _OpenShard:
    """One open file: checksums and labels in memory, pixels on demand."""

    def __init__(self, info: ShardInfo) -> None:
        self.path = info.path
        self._cells_crc32: dict[int, np.ndarray] = {}
        try:
            with H5_LOCK:
                self._file: Any = opened(info.path)
                if self._file["images"].id.get_create_plist().get_nfilters():
                    self._file.close()  # compressed: without a cache each row unpacks a chunk
                    self._file = opened(info.path, cache_bytes=FILTER_CACHE_BYTES)
                self._images = self._file["images"]
                self.crc32 = self._file["crc32"][...]  # (n,) uint32
                self.labels = self._file["labels"][...] if info.has_labels else None  # (n,) int64
        except (OSError, RuntimeError, KeyError) as error:
            raise EnvironmentFault(f"{info.path}: can no longer be read: {error}") from error
        if self._images.shape != (info.count, *info.shape) or len(self.crc32) != info.count:
            raise DataFault(f"{info.path}: has changed since it was checked. Start again.")
        wrong = None if self.labels is None else label_problem(self.labels, info.class_names)
        if wrong:
            raise DataFault(f"{info.path}: {wrong}")

    def cells_crc32(self, px: int) -> np.ndarray:
        """(n,) uint32: the checksums of the stored cells, read once."""
        if px not in self._cells_crc32:
            with H5_LOCK:
                self._cells_crc32[px] = self._file[f"{cells_name(px)}_crc32"][...]
        return self._cells_crc32[px]

    def read_into(
        self, out: np.ndarray, places: np.ndarray, rows: np.ndarray, dataset: str = "images"
    ) -> None:
        """Read ascending `rows`, repeats allowed, to `out[places]`, (n, H, W, C) uint8.

        Each run of neighbours is one slice: 200,000 single 28 px rows a second and
        millions in order, where h5py's index lists read 12,000 (docs/shards.md).
        """
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        try:
            with H5_LOCK:
                source = self._images if dataset == "images" else self._file[dataset]
                for start, stop in pairwise([0, *breaks.tolist(), len(rows)]):
                    first = int(rows[start])
                    out[places[start:stop]] = source[first : first + stop - start]
        except (OSError, RuntimeError) as error:
            raise EnvironmentFault(f"{self.path}: can no longer be read: {error}") from error

    def close(self) -> None:
        with H5_LOCK:
            self._file.close()


def expand_paths(paths: Sequence[Path | str]) -> list[Path]:
    """Files as given, directories as their `*.h5` files in sorted order.

    A `.sha256` that lies beside its shard is passed over: a shell's `train*` names it too.

    Raises:
        EnvironmentFault: a directory without shards, no path, or one given twice.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.suffix == ".sha256" and path.with_suffix("").is_file():
            continue
        if not path.is_dir():
            files.append(path)
            continue
        inside = sorted(item for item in path.glob("*.h5") if not item.name.startswith("."))
        if not inside:
            raise EnvironmentFault(f"{path}: no *.h5 file in this directory")
        _check_complete(inside)
        files.extend(inside)
    if not files:
        raise EnvironmentFault("no shard given; needed: one or more .h5 files or directories")
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise EnvironmentFault(f"{file}: given twice; each shard may appear once")
        seen.add(file.resolve())
    return files


def _check_complete(files: Sequence[Path]) -> None:
    """Refuse a directory that lacks one of `name-00000-of-00006.h5` and its siblings."""
    found: dict[tuple[str, int], int] = {}
    for file in files:
        match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.h5", file.name)
        if match:
            key = (match.group(1), int(match.group(2)))
            found[key] = found.get(key, 0) + 1
    for (stem, needed), count in found.items():
        if count != needed:
            raise EnvironmentFault(
                f"{files[0].parent}: {count} of the {needed} shards {stem}-*-of-{needed:05d}.h5 "
                "are here; copy the others, or name the files one by one to use these"
            )


def _check_alike(infos: Sequence[ShardInfo]) -> None:
    first = infos[0]
    for info in infos[1:]:
        for what in ("shape", "class_names", "has_labels"):
            one, other = getattr(first, what), getattr(info, what)
            if one != other:
                raise DataFault(
                    f"{info.path}: {what} is {other}, but {first.path} has {one}; the shards "
                    "of one job must be alike"
                )

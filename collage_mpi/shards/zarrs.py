"""Source for a Zarr array of images. Zarr reads a missing chunk as the fill value. Here its rows
are faults, because a lost chunk and a chunk that was never written look the same.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.plugins import optional
from collage_mpi.shards.guard import (
    are_items,
    axes_of,
    named_faults,
    the_images,
    the_labels,
    what,
)
from collage_mpi.shards.members import Member, MemberIndex, check_rows, check_unit
from collage_mpi.shards.remote import is_there, url_of
from collage_mpi.shards.schema import (
    DTYPES,
    PART_MARK,
    ArrayLayout,
    ShardInfo,
    label_problem,
    split_part,
    stamp_of,
)
from collage_mpi.shards.source import ReadAs, Source, digests_of, fingerprint_of, slices_of
from collage_mpi.system.files import reading

MARKS = ("zarr.json", ".zarray", ".zgroup")  # of version 3, and of version 2
_still = partial(reading, also=Exception)  # codecs raise nearly anything on damaged chunks
ABSENT = "its chunk is not stored: lost, or left out when it was written because it is blank"


class ZarrSource(Source):
    """One Zarr array: pictures, (n, H, W), (n, H, W, C) or (n, C, H, W) uint8, or other items."""

    name, remote = "zarr", True

    def __init__(self, info: ShardInfo) -> None:
        super().__init__(info)
        assert info.layout is not None
        self._layout = info.layout
        with _still(info.path):
            self._images = _node(info.path, self._layout.images)
            if self._layout.labels is not None:
                self.labels = _labels(info.path, self._layout.labels)
        found = (self._images.shape[0], *self._layout.image_shape(self._images.shape))
        if found != (info.count, *info.shape):
            raise DataFault(f"{info.path}: has changed since it was checked. Start again.")

    @classmethod
    def takes(cls, path: Path) -> bool:
        folder = split_part(path)[0]
        if url_of(folder):
            return folder.suffix == ".zarr"
        return any(os.path.isfile(os.path.join(folder, mark)) for mark in MARKS)

    @classmethod
    def describe(cls, path: Path, read_as: ReadAs) -> ShardInfo:
        folder = split_part(path)[0]
        with _still(path):
            layout = find_layout(path)
            images = _node(path, layout.images)
            check_rows(path, images.shape[0])
            unit = getattr(images, "shards", None) or images.chunks
            check_unit(path, "a chunk", math.prod(unit) * images.dtype.itemsize, _stored(folder))
            names = read_as.class_names
            if not read_as.labels:
                layout = replace(layout, labels=None)
            elif layout.labels is not None:
                wrong = label_problem(_labels(path, layout.labels), names)
                if wrong:
                    raise DataFault(f"{path}: labels: {wrong}. --input-labels none takes no labels")
            return ShardInfo(
                path=path,
                count=images.shape[0],
                shape=layout.image_shape(images.shape),
                dtype=images.dtype.name,
                class_names=names,
                has_labels=layout.labels is not None,
                source=f"{folder.name}, array {layout.images or '/'}",
                fingerprint=cls.fingerprint(path),
                stamp=stamp_of(path),
                storage=cls.name,
                layout=layout,
            )

    @classmethod
    def fingerprint(cls, path: Path) -> str:
        """A hash of the names and sizes of all files in the folder, and of their bytes if these are
        few. For a URL it is a hash of the array's metadata, because some servers cannot list files.
        """
        folder, part = split_part(path)
        if url_of(folder):
            with _still(path):
                about = _node(path, find_layout(path).images).metadata.to_dict()
            return hashlib.sha256(f"{about} {part}".encode()).hexdigest()
        files = sorted(os.path.join(top, f) for top, _, found in os.walk(folder) for f in found)
        members = [Member(os.path.relpath(f, folder), f, os.path.getsize(f)) for f in files]
        index = MemberIndex.of((member.id, member) for member in members)
        index = replace(index, digests=digests_of(index, members.__getitem__))
        return hashlib.sha256(f"{fingerprint_of(index)} {part}".encode()).hexdigest()

    def read_into(self, out: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        """Read rows; see `Source.read_into`. Rows of missing chunks get a fault."""
        with _still(self.path):
            for start, stop, first in slices_of(rows):
                block = np.asarray(self._images[first : first + stop - start])
                out[places[start:stop]] = self._layout.arrange(block)
            sizes = getattr(self._images, "shards", None) or self._images.chunks  # of files
            chunks = rows // sizes[0]
            absent = [
                number for number in set(chunks.tolist()) if not self._is_stored(number, sizes)
            ]
        for row in rows[np.isin(chunks, absent)].tolist():
            self.row_faults[row] = ABSENT

    def _is_stored(self, number: int, sizes: Sequence[int]) -> bool:
        """Whether all files with chunks of the `number`-th group of rows exist.

        Args:
            sizes: shape of the chunks, or of Zarr's shards if chunks are stored in shards.
        """
        counts = [-(-n // size) for n, size in zip(self._images.shape, sizes, strict=True)]
        key_of = self._images.metadata.encode_chunk_key
        top = os.path.join(split_part(self.path)[0], self._layout.images)
        keys = (key_of((number, *(int(i) for i in at))) for at in np.ndindex(*counts[1:]))
        return all(is_there(os.path.join(top, key)) for key in keys)


def _stored(folder: Path) -> int:
    """The bytes of all files in a folder; 0 for a URL."""
    found = os.walk(folder) if url_of(folder) is None else ()
    return sum(os.path.getsize(os.path.join(top, f)) for top, _, files in found for f in files)


def find_layout(path: Path) -> ArrayLayout:
    """Find the arrays of images and labels, as in HDF5, and the axes by shape.

    Raises:
        DataFault: no array can be the images, several can, or its type is not supported.
    """
    folder, part = split_part(path)
    node, images, labels = _node(path), part, None
    with named_faults(path):
        if hasattr(node, "arrays"):
            typed = f"{folder}{PART_MARK}"
            found = sorted(node.arrays(), key=lambda each: each[0])  # zarr lists them in any order
            arrays = {f"{part}/{name}".strip("/"): array for name, array in found}
            images = the_images(arrays, f"{typed}NAME")
            alone = f"Name the images alone to take no labels: {typed}{images}"
            labels = the_labels(arrays, images, arrays[images], alone)
            node = arrays[images]
        if not are_items(node):
            raise DataFault(
                f"{path}: the array is {what(node)}; needed: {', '.join(DTYPES)} with 2 axes or "
                "more, none of them empty"
            )
    axes = axes_of(node.shape) if node.dtype == np.uint8 else ()
    return ArrayLayout(images, labels, axes[0] if axes else "")


def _labels(path: Path, name: str) -> np.ndarray:
    """(n,) int64; `the_labels` found that there is a whole number for each image."""
    found: np.ndarray = _node(path, name)[...].reshape(-1).astype(np.int64)
    return found


def _node(path: Path, name: str | None = None) -> Any:
    zarr = optional("zarr", "zarr", str(path))
    folder, part = split_part(path)
    return zarr.open(
        url_of(folder) or str(folder), path=(part if name is None else name) or None, mode="r"
    )

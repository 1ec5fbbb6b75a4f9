"""Writes shards atomically, with a checksum for each row and for the file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.shards.guard import H5_LOCK, FileToWrite, create_file, text_array
from collage_mpi.shards.schema import (
    DTYPES,
    FORMAT,
    VERSION,
    ShardInfo,
    checked_names,
    chunk_rows,
    label_problem,
    publish,
    rows_crc32,
)
from collage_mpi.system.files import temporary_name, writing


class ShardWriter:
    """Writes one shard in batches. The file appears when it is closed.

    It is a context manager: after an exception inside the block there is no file. Labels, ids and
    checksums stay in memory until the end (about 40 bytes an image), but pixels do not.

    Args:
        path: the shard, usually `something.h5`; an existing file is replaced.
        item: shape (H, W, C) of uint8 pictures, or the dtype of other items, such as
            `np.dtype((np.uint16, (64, 64, 12)))`, whose base is one of `schema.DTYPES`.
        class_names: the name of label 0, 1, ...
        source: where the images come from, in words.
        rows_per_chunk: images in a chunk; None for `chunk_rows`.
        recipe: identifies how the shard was made; stored as an attribute.

    Raises:
        DataFault: a shard cannot hold this shape, dtype or these names.
        EnvironmentFault: the folder cannot be written.
    """

    def __init__(
        self,
        path: Path | str,
        item: tuple[int, ...] | np.dtype,
        *,
        class_names: Sequence[str] | None = None,
        source: str = "",
        rows_per_chunk: int | None = None,
        recipe: str = "",
    ) -> None:
        self.path = Path(path)
        self.shape, self.dtype = _checked_item(item)
        self.class_names = None if class_names is None else checked_names(class_names)
        self.source = source
        self.recipe = recipe
        self.count = 0
        self._labels: list[np.ndarray] = []
        self._ids: list[str] = []
        self._crcs: list[np.ndarray] = []
        self._temporary = temporary_name(self.path)
        row_bytes = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        rows = rows_per_chunk or chunk_rows(row_bytes)
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = FileToWrite(self._temporary, "w+")
        with H5_LOCK:
            self._file: Any = create_file(self._stream)
            self._file.create_dataset(
                "images",
                shape=(0, *self.shape),
                maxshape=(None, *self.shape),
                chunks=(rows, *self.shape),
                dtype=self.dtype,
            )

    def append(
        self,
        images: np.ndarray,
        labels: np.ndarray | Sequence[int] | None = None,
        ids: Sequence[str] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            images: (n, ...) items, such as (n, H, W, C) uint8; also (n, H, W) if C is 1.
            labels: (n,) integers. Either all batches of a shard have labels or none has.
            ids: n strings. Either all batches have ids or none has.

        Raises:
            DataFault: a shape, dtype, label or id does not fit the shard.
            EnvironmentFault: the file cannot be written, for example for a full disk.
        """
        pixels = _checked_images(images, self.shape, self.dtype)
        if len(pixels) == 0:
            return
        tags = None if labels is None else _checked_labels(labels, len(pixels), self.class_names)
        for what, given, before in (("labels", tags, self._labels), ("ids", ids, self._ids)):
            if self.count and (given is not None) != bool(before):
                raise DataFault(f"{self.path}: either every batch has {what} or none has")
        if ids is not None and len(ids) != len(pixels):
            raise DataFault(f"{self.path}: {len(ids)} ids for {len(pixels)} images")
        self._store(pixels)
        self._crcs.append(rows_crc32(pixels, tags))
        if tags is not None:
            self._labels.append(tags)
        self._ids.extend(ids or ())
        self.count += len(pixels)

    def close(self) -> ShardInfo:
        """Complete and sync the file, rename it into place, and write its SHA-256 beside it.

        Raises:
            DataFault: no image was appended.
            EnvironmentFault: the file cannot be written, for example for a full disk.
        """
        if self.count == 0:
            self.abandon()
            raise DataFault(f"{self.path}: a shard needs at least one image; none was given")
        try:
            with writing(self.path):
                self._finish_file()
                fingerprint = publish(self._temporary, self.path)
        finally:
            self.abandon()  # no effect after a rename
        return ShardInfo(
            path=self.path,
            count=self.count,
            shape=self.shape,
            dtype=self.dtype,
            class_names=self.class_names,
            has_labels=bool(self._labels),
            source=self.source,
            fingerprint=fingerprint,
        )

    def abandon(self) -> None:
        """Remove the temporary file. Does nothing after `close`."""
        with H5_LOCK:
            self._file.close()
        self._stream.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *raised: object) -> None:
        if raised[0] is not None:
            self.abandon()
        elif not self._stream.closed:
            self.close()

    def _store(self, pixels: np.ndarray) -> None:
        with H5_LOCK:
            dataset = self._file["images"]
            dataset.resize(self.count + len(pixels), axis=0)
            dataset[self.count :] = pixels
        if self._stream.failure is not None:
            self.abandon()
            with writing(self.path):
                raise self._stream.failure

    def _finish_file(self) -> None:
        with H5_LOCK:
            file = self._file
            file.create_dataset("crc32", data=np.concatenate(self._crcs))  # (n,) uint32
            if self._labels:
                file.create_dataset("labels", data=np.concatenate(self._labels))  # (n,) int64
            if self._ids:
                file.create_dataset("ids", data=text_array(self._ids))  # (n,) UTF-8
            if self.class_names is not None:
                file.attrs["class_names"] = text_array(self.class_names)
            file.attrs["format"] = text_array([FORMAT])[0]
            file.attrs["version"] = VERSION
            file.attrs["count"] = self.count
            file.attrs["source"] = text_array([self.source])[0]
            if self.recipe:
                file.attrs["recipe"] = text_array([self.recipe])[0]
            file.close()
        if self._stream.failure is not None:
            raise self._stream.failure
        os.fsync(self._stream.fileno())
        self._stream.close()


def write_shard(
    path: Path | str,
    images: np.ndarray,
    labels: np.ndarray | Sequence[int] | None = None,
    ids: Sequence[str] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    source: str = "",
) -> ShardInfo:
    """Write a shard from arrays in memory. For arguments and errors see `ShardWriter`."""
    pixels = np.asarray(images)
    grey = pixels.ndim == 3 and pixels.dtype == np.uint8
    item = np.dtype((pixels.dtype, (*pixels.shape[1:3], 1) if grey else pixels.shape[1:]))
    _checked_item(item)
    rows = chunk_rows(item.itemsize, len(pixels))
    with ShardWriter(
        path, item, class_names=class_names, source=source, rows_per_chunk=rows
    ) as writer:
        writer.append(pixels, labels, ids)
        return writer.close()


def _checked_item(item: Sequence[int] | np.dtype) -> tuple[tuple[int, ...], str]:
    """The shape of an item and the name of its dtype. Raises DataFault."""
    if isinstance(item, np.dtype):
        shape, dtype = item.shape, item.base.name
    else:
        shape, dtype = tuple(item), "uint8"
    if not shape or min(shape) < 1 or dtype not in DTYPES:
        raise DataFault(
            f"items of {dtype} {tuple(shape)}: a shard holds {', '.join(DTYPES)}, such as "
            "(height, width, channels), and no axis is empty"
        )
    return tuple(map(int, shape)), dtype


def _checked_images(images: np.ndarray, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    pixels = np.asarray(images)
    if pixels.ndim == 3 and len(shape) == 3 and shape[2] == 1:
        pixels = pixels[..., None]  # (n, H, W, 1)
    if pixels.dtype != dtype or pixels.shape[1:] != shape:
        raise DataFault(
            f"images are {pixels.dtype} of shape {pixels.shape}; this shard needs {dtype} of "
            f"shape (n, {', '.join(map(str, shape))})"
        )
    return np.ascontiguousarray(pixels)


def _checked_labels(
    labels: np.ndarray | Sequence[int], count: int, class_names: tuple[str, ...] | None
) -> np.ndarray:
    given = np.asarray(labels)
    if given.shape != (count,) or given.dtype.kind not in "iu":
        raise DataFault(
            f"labels are {given.dtype} of shape {given.shape}; {count} images need "
            f"integers of shape ({count},)"
        )
    tags = given.astype(np.int64)
    problem = label_problem(tags, class_names)
    if problem:
        raise DataFault(problem)
    return tags

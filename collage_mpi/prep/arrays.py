"""Reads images for new shards, from arrays in other programs' files and from shards.

HDF5 datasets and IDX files, the format of MNIST, become uint8 images and class numbers. Files are
opened in this process, so a damaged file may end a preparation, but never a job. Pictures are
decoded at the wanted size, so that nothing is resized twice.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.shards.foreign import ArrayLayout, find_labels, named_faults
from collage_mpi.shards.guard import opened
from collage_mpi.shards.hdf5 import H5_LOCK
from collage_mpi.shards.inputs import ids_of
from collage_mpi.shards.pictures import PictureFit, fit_pixels
from collage_mpi.shards.reader import ShardSet
from collage_mpi.shards.schema import CHANNELS, label_problem, split_part
from collage_mpi.shards.source import ReadAs, slices_of
from collage_mpi.system.files import reading


class PixelRows:
    """The images of a dataset, by row, as uint8 of one size.

    Args:
        dataset: an open dataset, or an array.
        layout: its axes.
        bounds: the values that become 0 and 255; None for 0 and the largest value of an unsigned
            type, or 0 and 1 for float.
        fit: how to resize the images; None keeps their size.

    Raises:
        DataFault: the values are no numbers, or signed and `bounds` is None.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        dataset: Any,
        layout: ArrayLayout,
        bounds: tuple[float, float] | None,
        fit: PictureFit | None,
    ) -> None:
        self.dataset, self.layout, self.fit = dataset, layout, fit
        self.bounds = _bounds(dataset, layout) if bounds is None else bounds
        stored = layout.image_shape(tuple(int(size) for size in dataset.shape))
        self.shape = (int(dataset.shape[0]), *(stored if fit is None else fit.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(m, H, W, C) uint8, the images of the rows, in any order. Raises DataFault if a value is
        out of bounds.
        """
        order = np.argsort(rows, kind="stable")
        blocks = []
        ascending = rows[order]
        for start, stop, first in slices_of(ascending):
            with H5_LOCK:
                block = self.dataset[first : first + stop - start]
            blocks.append(to_pixels(self.layout.arrange(block), self.bounds, first))
        pixels = np.concatenate(blocks)[np.argsort(order)]  # (m, H, W, C)
        return pixels if self.fit is None else np.stack([fit_pixels(p, self.fit) for p in pixels])


def to_pixels(block: np.ndarray, bounds: tuple[float, float], first: int) -> np.ndarray:
    """Scale values from `bounds` to uint8, 0 to 255, rounded.

    Args:
        block: (n, ...) numbers.
        bounds: (low, high).
        first: number of the first row, for messages.

    Raises:
        DataFault: a value is NaN or out of bounds.
    """
    low, high = bounds
    if block.dtype == np.uint8 and bounds == (0, 255):
        return np.ascontiguousarray(block)
    inside = (block >= low) & (block <= high)  # False for NaN
    if not inside.all():
        row = int(np.flatnonzero(~inside.reshape(len(block), -1).all(axis=1))[0])
        wrong = block[row][~inside[row]].flat[0]
        raise DataFault(
            f"image {first + row} holds {wrong:g}, outside {low:g} to {high:g}: give its true "
            "--range LOW:HIGH"
        )
    return np.rint((block.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def to_labels(
    values: np.ndarray, names: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Convert labels to class numbers. They may be whole numbers, one-hot rows or names.

    Args:
        values: (n,), (n, 1), (n, 1, 1, 1) or (n, classes).
        names: the classes in order, if known.

    Returns:
        (n,) int64, and the class names. If the labels are names whose order is unknown, they are
        sorted.

    Raises:
        DataFault: the values have another form.
    """
    values = squeezed(values)
    if values.ndim == 2 and values.dtype.kind in "biuf":
        ones = (values == 1).sum(axis=1) == 1
        if not (ones & ((values != 0).sum(axis=1) == 1)).all():
            raise DataFault(f"labels of shape {values.shape} are not one-hot")
        return values.argmax(axis=1).astype(np.int64), names
    if values.ndim == 1 and values.dtype.kind in "OSU":
        texts = [v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values.tolist()]
        known = tuple(sorted(set(texts))) if names is None else names
        unknown = set(texts) - set(known)
        if unknown:
            raise DataFault(f"label {min(unknown)!r} is none of the {len(known)} classes named")
        numbers = {name: number for number, name in enumerate(known)}
        return np.array([numbers[text] for text in texts], dtype=np.int64), known
    if values.ndim == 1 and values.dtype.kind in "biuf":
        whole = values.astype(np.int64)
        if (whole == values).all():
            return whole, names
    raise DataFault(
        f"labels are {values.dtype} {values.shape}; needed: whole numbers, names, or one-hot rows"
    )


def labels_for(
    count: int, values: np.ndarray, names: tuple[str, ...] | None, where: str
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Like `to_labels`, with a check that there are `count` labels and that they are in range.

    Args:
        where: names the source of the labels in messages.
    """
    try:
        labels, names = to_labels(values.reshape(-1) if values.size == count else values, names)
    except DataFault as fault:
        raise DataFault(f"{where}: {fault}") from fault
    if len(labels) != count:
        raise DataFault(f"{where}: {len(labels)} labels for {count} images")
    wrong = label_problem(labels, names)
    if wrong:
        raise DataFault(f"{where}: {wrong}")
    return labels, names


def squeezed(values: np.ndarray) -> np.ndarray:
    """(n, 1, ..., 1) -> (n,). Other shapes are unchanged."""
    return values.reshape(-1) if values.ndim > 1 and values.size == len(values) else values


def read_labels(text: str) -> np.ndarray:
    """Read a file of labels: HDF5, as FILE or FILE::DATASET, or .npy.

    Raises:
        DataFault: it is unclear which dataset has the labels.
        EnvironmentFault: the file cannot be read.
    """
    path = Path(text)
    with reading(path, "no labels can be read of it"):
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        with named_faults(path), H5_LOCK, opened(path) as file:
            return np.asarray(find_labels(file, path)[...])


def parse_shape(text: str) -> tuple[int, int, int]:
    """Parse "H,W" or "H,W,C" to (H, W, C). Raises UsageError."""
    words = text.split(",")
    sizes = [int(word) for word in words if word.strip().isdecimal()]
    if len(words) not in (2, 3) or len(sizes) != len(words) or min(sizes) < 1:
        raise UsageError(f"--shape {text!r}; needed: H,W or H,W,C, such as 28,28")
    height, width, channels = (*sizes, 1)[:3]
    if channels not in CHANNELS:
        raise UsageError(f"--shape {text!r}: {channels} channels; needed: 1 or 3, the last number")
    return (height, width, channels)


def parse_range(text: str) -> tuple[float, float]:
    """Parse "LOW:HIGH" to (low, high). Raises UsageError."""
    low, _, high = text.partition(":")
    try:
        bounds = (float(low), float(high))
    except ValueError:
        bounds = (0.0, 0.0)
    if not np.isfinite(bounds).all() or bounds[0] >= bounds[1]:
        raise UsageError(f"--range {text!r}; needed: LOW:HIGH, such as 0:1")
    return bounds


def _bounds(dataset: Any, layout: ArrayLayout) -> tuple[float, float]:
    if dataset.dtype.kind == "u":
        return (0.0, float(np.iinfo(dataset.dtype).max))
    if dataset.dtype.kind == "f":
        return (0.0, 1.0)
    raise DataFault(
        f"dataset {layout.images!r} is {dataset.dtype}, which has a sign: say which values become "
        "black and white: --range LOW:HIGH"
        if dataset.dtype.kind == "i"
        else f"dataset {layout.images!r} is {dataset.dtype}; needed: numbers"
    )


GZIP_MAGIC = b"\x1f\x8b"
BLOCK_BYTES = 1 << 20
MAX_DIMS = 8
DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path | str) -> np.ndarray:
    """Read an IDX file, which may be gzipped.

    Its header has two zero bytes, a type code, the number of axes, and the length of each axis as
    big-endian uint32. The values follow. Memory grows with the bytes that are read, so a wrong
    header cannot exhaust it.

    Returns:
        The array, in native byte order.

    Raises:
        EnvironmentFault: the file is missing or unreadable.
        DataFault: the file is not IDX, is truncated, or is too long.
    """
    path = Path(path)
    with reading(path), path.open("rb") as raw:
        zipped = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        if not zipped:
            return _parse(raw, path)
        try:
            with gzip.open(raw, "rb") as stream:
                return _parse(stream, path)  # type: ignore[arg-type]
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise DataFault(f"{path}: damaged gzip file: {error}. Fetch it again.") from error


def _parse(stream: BinaryIO, path: Path) -> np.ndarray:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES:
        raise DataFault(
            f"{path}: not an IDX file: starts with {magic.hex(' ') or 'nothing'}; needed: two "
            f"zero bytes, a type code of {', '.join(f'{code:02x}' for code in DTYPES)}, "
            "the number of axes"
        )
    if not 1 <= magic[3] <= MAX_DIMS:
        raise DataFault(f"{path}: {magic[3]} axes; needed: 1 to {MAX_DIMS}")
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataFault(f"{path}: ends inside its header")
    shape = tuple(np.frombuffer(sizes, dtype=">u4").tolist())
    dtype = np.dtype(DTYPES[magic[2]])
    body = _read_exactly(stream, math.prod(shape) * dtype.itemsize, path, shape)
    return np.frombuffer(body, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _read_exactly(stream: BinaryIO, needed: int, path: Path, shape: tuple[int, ...]) -> bytearray:
    body = bytearray()
    while len(body) <= needed:
        block = stream.read(min(BLOCK_BYTES, needed + 1 - len(body)))
        if not block:
            break
        body += block
    if len(body) != needed:
        found = "more" if len(body) > needed else f"{len(body):,}"
        raise DataFault(
            f"{path}: the header says {shape}, which is {needed:,} bytes of values; the file "
            f"has {found}. Fetch it again."
        )
    return body


class ShardRows:
    """The images of open shards, by global index.

    Args:
        shards: must stay open while this object is in use.
        fit: how to resize the images; None keeps their size.
    """

    def __init__(self, shards: ShardSet, fit: PictureFit | None) -> None:
        self._shards = shards
        self._fit = fit if shards.fit is None else None  # pictures are decoded with `fit`
        self.shape = (len(shards), *(shards.shape if fit is None else fit.shape))
        self.dtype = np.dtype(shards.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(m, ...) items, the images of the rows. Raises DataFault if a row cannot be read."""
        pixels, _ = self._shards.read(rows)
        return pixels if self._fit is None else np.stack([fit_pixels(p, self._fit) for p in pixels])


def channels_of(path: Path) -> int:
    """The number of channels of a shard's images. Raises EnvironmentFault, DataFault."""
    with ShardSet.open([path], read_as=ReadAs(labels=False)) as shards:
        return shards.shape[2]


def all_ids(shards: ShardSet) -> list[str]:
    """The ids of all images, in order. In a shard without ids, they are NAME:ROW."""
    found: list[str] = []
    for info in shards.infos:
        name = split_part(info.path)[0].name
        found += ids_of(info) or [f"{name}:{row}" for row in range(info.count)]
    return found

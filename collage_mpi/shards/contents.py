"""Lists the datasets of another program's HDF5 file, and suggests the `prep hdf5` command for a
dataset that a job cannot use directly. Links to other files are never followed.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.shards.hdf5 import import_h5py
from collage_mpi.shards.schema import CHANNELS, split_part
from collage_mpi.system.printable import some_of

MAX_LISTED = 8
DEEPEST = 4  # levels of groups that are searched, because links may form a cycle
MAX_GROUPS = 1000


class ForeignFault(DataFault):
    """No images were found in another program's file. The message says what to type."""


@contextmanager
def named_faults(path: Path | str) -> Iterator[None]:
    """Adds the file's path to the message of a ForeignFault, and raises it as a DataFault."""
    try:
        yield
    except ForeignFault as fault:
        raise DataFault(f"{path}: {fault}") from fault


def own_dataset(file: Any, name: str) -> Any:
    """A dataset by name. Raises ForeignFault if it does not exist or is stored in other files."""
    h5py = import_h5py()
    if name not in file:
        raise ForeignFault(f"has no dataset {name!r}; it holds {listed(file)}")
    item = file[name]
    if not isinstance(item, h5py.Dataset) or not _is_here(file, name):
        raise ForeignFault(f"{name!r} is no dataset of this file itself: a group, or a link")
    if item.is_virtual or item.external:
        raise ForeignFault(f"dataset {name!r} lies in other files: name those instead")
    return item


def datasets(file: Any, group: str) -> Iterator[tuple[str, Any]]:
    """Yields (name, dataset) for the datasets directly in a group, without links."""
    h5py = import_h5py()
    for name in file[group] if group else file:
        whole = f"{group}/{name}" if group else name
        if _is_here(file, whole) and isinstance(file[whole], h5py.Dataset):
            yield whole, file[whole]


def groups_below(file: Any, top: str = "") -> list[str]:
    """The names of a group and of the groups in it, down to `DEEPEST` levels; the root is ""."""
    found = level = [top]
    for _ in range(DEEPEST):
        level = [
            whole
            for group in level
            for name in (file[group] if group else file)
            if _is_group(file, whole := f"{group}/{name}" if group else name)
        ]
        found = [*found, *level][:MAX_GROUPS]
        level = level[:MAX_GROUPS]
    return found


def _is_group(file: Any, name: str) -> bool:
    return _is_here(file, name) and isinstance(file[name], import_h5py().Group)


def _is_here(file: Any, name: str) -> bool:
    """Whether a name is a hard link, so neither a soft nor an external one."""
    return isinstance(file.get(name, getlink=True), import_h5py().HardLink)


def stored_in_full(images: Any, file_bytes: int) -> bool:
    """Whether a contiguous dataset ends within the file. Chunked datasets always pass: HDF5 reads
    missing chunks as the fill value.
    """
    if images.chunks is not None:
        return True
    start = images.id.get_offset()
    return start is not None and bool(start + images.size * images.dtype.itemsize <= file_bytes)


def listed(file: Any) -> str:
    """The datasets of the file, in words."""
    groups = groups_below(file)
    found = [f"{name} ({what(item)})" for group in groups for name, item in datasets(file, group)]
    return some_of(found, MAX_LISTED) or "no dataset"


def what(item: Any) -> str:
    """Type and shape of a dataset, in words."""
    return f"{item.dtype} {tuple(item.shape)}"


LOOK_ROWS = 64  # rows at each end from which the range of pixels is estimated


def convert(path: Path, images: str, labels: str | None, *flags: str) -> str:
    """The command that makes shards of the dataset `images`, in backquotes."""
    words = ["collage-mpi", "prep", "hdf5", str(split_part(path)[0]), "--images", images]
    words += ["--labels", labels] if labels else []
    return f"`{shlex.join([*words, *flags, '--out', 'shards'])}`"


def flags_for(item: Any, count: int | None = None) -> list[str] | None:
    """The flags that `prep hdf5` needs for a dataset of images; None if they are unclear.

    Args:
        item: the dataset.
        count: number of labels, if known.
    """
    if item.ndim not in (2, 3, 4) or min(item.shape) < 1 or item.dtype.kind not in "uif":
        return None
    shape: list[str] | None = []
    if item.ndim == 2:
        in_columns = count == item.shape[1] != item.shape[0]
        shape = _shape_flag(item.shape[0 if in_columns else 1])
    elif item.ndim == 4:
        first, last = item.shape[1] in CHANNELS, item.shape[3] in CHANNELS
        shape = None if not (first or last) else ["--axes", "NHWC"] if first and last else []
    bounds = range_flag(item)
    return None if shape is None or bounds is None else [*shape, *bounds]


def _shape_flag(values: int) -> list[str] | None:
    for channels in CHANNELS:
        side = math.isqrt(values // channels)
        if values > channels and side * side * channels == values:
            return ["--shape", f"{side},{side}" + (f",{channels}" if channels > 1 else "")]
    return None


def range_flag(item: Any) -> list[str] | None:
    """The --range flag for the values of a dataset; [] if none is needed, None if it is unclear."""
    if item.dtype == np.uint8:
        return []
    low, high = range_of(item)
    if item.dtype.kind == "f" and low >= 0 and high <= 1:
        return ["--range", "0:1"]
    if low >= 0 and high <= 255:
        return ["--range", "0:255"]
    if item.dtype == np.uint16:
        return ["--range", "0:65535"]
    if item.dtype.kind == "f" and low >= -1 and high <= 1:
        return ["--range=-1:1"]
    return None


def range_of(images: Any) -> tuple[float, float]:
    """The smallest and the largest value in the first and last LOOK_ROWS rows of a dataset."""
    rows = max(1, min(LOOK_ROWS, (32 << 20) // max(1, images.dtype.itemsize * images[0].size)))
    ends = np.concatenate([images[:rows], images[-rows:]])
    return float(ends.min()), float(ends.max())

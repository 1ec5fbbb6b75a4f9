"""HDF5 files of other programs: which dataset holds the images, which the labels.

Owns: the names looked for, axes told apart, the words when a file cannot be understood.
Does not know: how rows are read for a job, processes. Runs in the guard's process at
first open, like check.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.shards.hdf5 import import_h5py
from collage_mpi.shards.schema import CHANNELS, PART_MARK, label_problem, split_part

IMAGE_NAMES = ("images", "imgs", "image", "x", "data")
LABEL_NAMES = ("labels", "label", "y", "targets", "target")
LOOK_ROWS = 64  # from each end, to tell the range of float pixels
MAX_LISTED = 8


class ForeignFault(DataFault):
    """A file of another program that is not understood; says what to type."""


@dataclass(frozen=True)
class Layout:
    """Where images and labels lie in a file of another program.

    Attributes:
        images, labels: dataset names with their groups; no labels is None.
        axes: "NHWC", "NCHW", or "NHW" for grey images without a channel axis.
        unused: other datasets beside them.
    """

    images: str
    labels: str | None
    axes: str
    unused: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Layout:
        """Rebuild what `to_json` wrote."""
        return cls(**{**record, "unused": tuple(record["unused"])})

    def image_shape(self, stored: tuple[int, ...]) -> tuple[int, int, int]:
        """(H, W, C) of one image, from the dataset's shape."""
        if self.axes == "NHW":
            return (stored[1], stored[2], 1)
        if self.axes == "NCHW":
            return (stored[2], stored[3], stored[1])
        return (stored[1], stored[2], stored[3])

    def arrange(self, block: np.ndarray) -> np.ndarray:
        """Images as stored -> (n, H, W, C)."""
        if self.axes == "NHW":
            return block[..., None]
        return block.transpose(0, 2, 3, 1) if self.axes == "NCHW" else block


@dataclass(frozen=True)
class Foreign:
    """A file of another program that can be used as it is."""

    layout: Layout
    count: int
    shape: tuple[int, int, int]
    class_names: tuple[str, ...] | None


def is_foreign(file: Any) -> bool:
    """Whether an open file does not even claim to be a shard of this package."""
    return "format" not in file.attrs and "crc32" not in file


def understand(file: Any, path: Path) -> Foreign:
    """Find images and labels and check that they can be used.

    Args:
        file: the open `h5py.File`.
        path: its path, with `::PART` for one group or dataset of it.

    Raises:
        ForeignFault: what was found, what is needed, what to type.
    """
    layout = find_layout(file, path)
    images = file[layout.images]
    if images.dtype != np.uint8:
        raise ForeignFault(_not_uint8(images, layout, path))
    _check_stored(images, split_part(path)[0].stat().st_size)
    images[0], images[-1]  # a filter that is missing here shows now
    names = class_names_of(file)
    if layout.labels is not None:
        _check_labels(file[layout.labels], len(images), layout, path, names)
    shape = tuple(int(size) for size in images.shape)
    return Foreign(layout, shape[0], layout.image_shape(shape), names)


def find_layout(
    file: Any, path: Path, images: str | None = None, labels: str | None = None, axes: str = ""
) -> Layout:
    """The datasets of images and labels by name, and the axes by shape.

    Args:
        images, labels, axes: what is known already.

    Raises:
        ForeignFault: none, or several.
    """
    part = split_part(path)[1].strip("/")
    if images is None:
        images = _the_images(file, path, part)
    item = _dataset(file, images, path)
    if item.ndim not in (3, 4) or min(item.shape) < 1:
        raise ForeignFault(
            f"dataset {images!r} is {_what(item)}; needed: 3 or 4 axes, (n, H, W), "
            "(n, H, W, C) or (n, C, H, W), none of them empty"
        )
    group = images.rpartition("/")[0]
    beside = {name: one for name, one in _datasets(file, group) if name != images}
    if labels is None:
        known = [name for name in beside if name.rpartition("/")[2].lower() in LABEL_NAMES]
        if len(known) > 1:
            raise ForeignFault(
                f"labels may be in {' or '.join(known)}: {_convert(path, images, 'NAME')} takes one"
            )
        labels = known[0] if known else None
    else:
        _dataset(file, labels, path)
    unused = tuple(name for name in beside if name != labels)[:MAX_LISTED]
    return Layout(images, labels, axes or _axes(item, images, labels, path), unused)


def range_of(images: Any) -> tuple[float, float]:
    """Smallest and largest value in the first and last rows of a dataset."""
    rows = max(1, min(LOOK_ROWS, (32 << 20) // max(1, images.dtype.itemsize * images[0].size)))
    ends = np.concatenate([images[:rows], images[-rows:]])
    return float(ends.min()), float(ends.max())


def _the_images(file: Any, path: Path, part: str) -> str:
    """The one dataset that looks like images, in the part that is asked for."""
    h5py = import_h5py()
    if part and part not in file:
        raise ForeignFault(f"has no {part!r}; it holds {_listed(file)}")
    if part and isinstance(file[part], h5py.Dataset):
        return part
    groups = [part] if part else ["", *(name for name in file if _is_group(file, name))]
    found = {}
    for group in groups:
        names = [
            name
            for name, item in _datasets(file, group)
            if name.rpartition("/")[2].lower() in IMAGE_NAMES
            and item.ndim in (3, 4)
            and item.dtype.kind in "uif"
        ]
        if names:
            found[group] = names
    if not found:
        raise ForeignFault(
            f"is no shard of this package and no images are found in it: it holds "
            f"{_listed(file)}; looked for: a dataset {', '.join(IMAGE_NAMES)} of 3 or 4 axes, in "
            f"the root or a group. {_convert(path, 'NAME', None)} takes any"
        )
    if len(found) > 1 and "" not in found:
        example = f"{split_part(path)[0]}{PART_MARK}{next(iter(found))}"
        raise ForeignFault(f"has images in {', '.join(found)}: say which, such as {example}")
    names = found[""] if "" in found else next(iter(found.values()))
    if len(names) > 1:
        raise ForeignFault(
            f"images may be in {' or '.join(names)}: say which, such as "
            f"{split_part(path)[0]}{PART_MARK}{names[0]}"
        )
    return names[0]


def _axes(item: Any, images: str, labels: str | None, path: Path) -> str:
    if item.ndim == 3:
        return "NHW"
    first, last = item.shape[1] in CHANNELS, item.shape[3] in CHANNELS
    if first and last:
        raise ForeignFault(
            f"dataset {images!r} is {_what(item)}: its channels may be axis 1 or axis 3. "
            f"{_convert(path, images, labels)} --axes NHWC (or NCHW) takes your word"
        )
    if not (first or last):
        raise ForeignFault(
            f"dataset {images!r} is {_what(item)}; needed: 1 or 3 channels, as axis 1 or axis 3"
        )
    return "NHWC" if last else "NCHW"


def _not_uint8(images: Any, layout: Layout, path: Path) -> str:
    low, high = range_of(images)
    command = _convert(path, layout.images, layout.labels)
    if images.dtype.kind == "f" and low >= 0 and high <= 1:
        advice = f"Convert it: {command} --range 0:1"
    elif low >= 0 and high <= 255:
        advice = f"Convert it: {command} --range 0:255"
    elif images.dtype == np.uint16:
        advice = f"Convert it: {command} --range 0:65535"
    else:
        advice = (
            f"If these are pixels between two bounds, {command} --range LOW:HIGH converts "
            "them; pixels that were standardised must be made from the original ones"
        )
    return (
        f"dataset {layout.images!r} is {_what(images)} with values from {low:g} to {high:g} "
        f"(first and last rows); needed: uint8, 0 to 255. {advice}"
    )


def _check_labels(
    labels: Any, count: int, layout: Layout, path: Path, names: tuple[str, ...] | None
) -> None:
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
        raise ForeignFault(
            f"dataset {layout.labels!r} is {_what(labels)}; needed: whole numbers of shape "
            f"({count},). {_convert(path, layout.images, layout.labels)} takes names and one-hot "
            "labels too"
        )
    wrong = label_problem(labels[...].astype(np.int64), names)
    if wrong:
        raise ForeignFault(f"dataset {layout.labels!r}: {wrong}")


def _check_stored(images: Any, file_bytes: int) -> None:
    """Nothing past the end of the file; what was never written reads as its fill value."""
    if images.chunks is None:
        start = images.id.get_offset()
        if start is None or start + images.size > file_bytes:
            raise ForeignFault(f"dataset {images.name!r} is not stored in full: truncated")


def class_names_of(file: Any) -> tuple[str, ...] | None:
    """The attribute class_names, if it is a list of different names; else None."""
    value = np.atleast_1d(file.attrs.get("class_names", ()))
    try:
        names = tuple(n.decode("utf-8") if isinstance(n, bytes) else str(n) for n in value)
    except UnicodeDecodeError:
        return None
    return names if names and all(names) and len(set(names)) == len(names) else None


def _dataset(file: Any, name: str, path: Path) -> Any:
    h5py = import_h5py()
    if name not in file:
        raise ForeignFault(f"has no dataset {name!r}; it holds {_listed(file)}")
    item = file[name]
    if not isinstance(item, h5py.Dataset) or not _is_here(file, name):
        raise ForeignFault(f"{name!r} is no dataset of this file itself: a group, or a link")
    if item.is_virtual or item.external:
        raise ForeignFault(
            f"dataset {name!r} lies in other files: name those instead, or copy it into one "
            f"with {_convert(path, name, None)}"
        )
    return item


def _datasets(file: Any, group: str) -> Iterator[tuple[str, Any]]:
    """(name, dataset) directly in a group, links to elsewhere left out."""
    h5py = import_h5py()
    for name in file[group] if group else file:
        whole = f"{group}/{name}" if group else name
        if _is_here(file, whole) and isinstance(file[whole], h5py.Dataset):
            yield whole, file[whole]


def _is_group(file: Any, name: str) -> bool:
    return _is_here(file, name) and isinstance(file[name], import_h5py().Group)


def _is_here(file: Any, name: str) -> bool:
    """Whether a name is no soft or external link."""
    return isinstance(file.get(name, getlink=True), import_h5py().HardLink)


def _listed(file: Any) -> str:
    """The datasets of the root and its groups, in words."""
    groups = ["", *(name for name in file if _is_group(file, name))]
    found = [f"{name} ({_what(item)})" for group in groups for name, item in _datasets(file, group)]
    more = f" and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
    return (", ".join(found[:MAX_LISTED]) + more) or "no dataset"


def _what(item: Any) -> str:
    return f"{item.dtype} {tuple(item.shape)}"


def _convert(path: Path, images: str, labels: str | None) -> str:
    """The command that makes a shard of it."""
    words = ["collage-mpi", "prep", "hdf5", str(split_part(path)[0]), "--images", images]
    words += ["--labels", labels] if labels else []
    return shlex.join([*words, "--out", "shards"])

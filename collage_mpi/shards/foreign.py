"""Finds images and labels in HDF5 files of other programs, by the names and shapes of the datasets.
Like `check`, this runs in the child process of `guard` when a file is first opened.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.shards.contents import (
    ForeignFault,
    convert,
    datasets,
    flags_for,
    groups_below,
    listed,
    own_dataset,
    range_flag,
    range_of,
    stored_in_full,
    what,
)
from collage_mpi.shards.hdf5 import import_h5py
from collage_mpi.shards.schema import (
    CHANNELS,
    DTYPES,
    PART_MARK,
    ShardInfo,
    label_problem,
    split_part,
)

IMAGE_NAMES = ("images", "imgs", "image", "x", "data")
LABEL_NAMES = ("labels", "label", "y", "targets", "target")
MANY_AXES = range(3, 33)  # HDF5 allows 32 axes
MAX_UNUSED = 8  # unused datasets that are listed
NO_LABELS = "none"  # the user's word for ignoring the labels of a file


@dataclass(frozen=True)
class ArrayLayout:
    """The datasets of images and labels in another program's file, and the layout of the images.

    Attributes:
        images, labels: names of the datasets with their groups. labels is None if there are none.
        axes: "NHWC", "NCHW", or "NHW" for grey images without a channel axis; "" for items that
            are not pictures and stay unchanged.
        unused: names of other datasets in the group.
        flat: (H, W, C) if each image is stored as a row of values, in the order of `axes`.
        transposed: whether height and width of each image are swapped.
        columns: whether, with `flat`, each image is a column instead of a row (MATLAB).
    """

    images: str
    labels: str | None
    axes: str
    unused: tuple[str, ...] = ()
    flat: tuple[int, int, int] | None = None
    transposed: bool = False
    columns: bool = False

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> ArrayLayout:
        """Rebuild what `to_json` wrote."""
        pairs = record.items()
        found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in pairs}
        return cls(**found)

    def image_shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """(H, W, C) of an image, or the shape of another item, for a dataset of shape `stored`."""
        return self.arrange(np.empty((0, *stored[1:]), np.uint8)).shape[1:]

    def arrange(self, block: np.ndarray) -> np.ndarray:
        """Converts images from the stored layout to (n, H, W, C). Other items stay unchanged."""
        if self.flat is not None:
            height, width, channels = self.flat
            by_channel = self.axes == "NCHW"
            own = (channels, height, width) if by_channel else (height, width, channels)
            block = block.reshape(len(block), *own)
        if self.axes == "NHW":
            block = block[..., None]
        elif self.axes == "NCHW":
            block = block.transpose(0, 2, 3, 1)
        return block.swapaxes(1, 2) if self.transposed else block


@dataclass(frozen=True)
class LayoutHints:
    """The user's description of a file. Empty attributes are found by name and shape.

    Attributes:
        images: name of a dataset.
        labels: name of a dataset, or `NO_LABELS`.
        axes, transposed: as in `ArrayLayout`.
        shape: (H, W, C) if each image is stored as a row of values.
    """

    images: str | None = None
    labels: str | None = None
    axes: str = ""
    shape: tuple[int, int, int] | None = None
    transposed: bool = False


def is_foreign(file: Any) -> bool:
    """Whether an open file lacks the marks of a shard of this package."""
    return "format" not in file.attrs and "crc32" not in file


def understand(file: Any, path: Path) -> ShardInfo:
    """Find images and labels, check that a job can use them, and describe them. The fingerprint
    stays empty.

    Args:
        file: the open `h5py.File`.
        path: its path, with `::PART` for one group or dataset of the file.

    Raises:
        ForeignFault: images or labels are missing, ambiguous or not usable.
    """
    layout = find_layout(file, path, as_they_are=True)
    images = file[layout.images]
    no_pictures = "" if layout.axes else _no_pictures(file, layout, path)
    in_columns = layout.labels is not None and file[layout.labels].size != len(images)
    if no_pictures and (in_columns or not are_items(images)):
        raise ForeignFault(no_pictures)
    if not stored_in_full(images, split_part(path)[0].stat().st_size):
        raise ForeignFault(f"dataset {images.name!r} is not stored in full: truncated")
    images[0], images[-1]  # raises now if HDF5 lacks the dataset's compression filter
    names = class_names_of(file)
    if layout.labels is not None:
        _check_labels(file[layout.labels], len(images), layout, path, names)
    return ShardInfo(
        path=path,
        count=len(images),
        shape=layout.image_shape(images.shape),
        dtype=images.dtype.name,
        class_names=names,
        has_labels=layout.labels is not None,
        source=f"{split_part(path)[0].name}, dataset {layout.images}",
        fingerprint="",
        storage="foreign",
        layout=layout.to_json(),
        no_pictures=no_pictures,
    )


def are_items(array: Any) -> bool:
    """Whether the rows of an array can be items without conversion."""
    return array.dtype.name in DTYPES and len(array.shape) >= 2 and min(array.shape) >= 1


def _no_pictures(file: Any, layout: ArrayLayout, path: Path) -> str:
    """Says why the items are not pictures, and which command converts them."""
    images = file[layout.images]
    try:
        axes = _axes(file, layout.images, layout.labels, path)
    except ForeignFault as fault:
        return str(fault)
    return _not_uint8(images, replace(layout, axes=axes), path)


def find_layout(
    file: Any, path: Path, told: LayoutHints | None = None, as_they_are: bool = False
) -> ArrayLayout:
    """Find the datasets of images and labels by name, and the axes by shape.

    Args:
        told: what the user said about the file.
        as_they_are: accept items that are not pictures; their axes are "".

    Raises:
        ForeignFault: no dataset fits, or several do.
    """
    told = told or LayoutHints()
    part = split_part(path)[1].strip("/")
    images = told.images or _the_images(file, path, part)
    item = own_dataset(file, images)
    beside = [name for name, _ in datasets(file, images.rpartition("/")[0]) if name != images]
    labels = told.labels
    if labels is None:
        labels = _the_labels(beside, images, path, flags_for(item) or [])
    elif labels == NO_LABELS:
        labels = None
    else:
        own_dataset(file, labels)
    unused = tuple(name for name in beside if name != labels)[:MAX_UNUSED]
    columns = told.shape is not None and _in_columns(item, images, told.shape)
    if as_they_are and not _as_pictures(item):
        axes = ""
    elif told.shape is not None:
        axes = told.axes or "NHWC"
    else:
        axes = _axes(file, images, labels, path, told.axes)
    return ArrayLayout(images, labels, axes, unused, told.shape, told.transposed, columns)


def find_labels(file: Any, path: Path) -> Any:
    """The dataset of labels in a file that has only labels: the given one, the one with a known
    name, or the only one.

    Raises:
        ForeignFault: no dataset fits, or several do.
    """
    name, part = split_part(path)
    part = part.strip("/")
    if part and part not in file:
        raise ForeignFault(f"has no {part!r}; it holds {listed(file)}")
    if part and isinstance(file[part], import_h5py().Dataset):
        return own_dataset(file, part)
    inside = [one for group in groups_below(file, part) for one, _ in datasets(file, group)]
    found = [one for one in inside if one.rpartition("/")[2].lower() in LABEL_NAMES]
    found = found or (inside if len(inside) == 1 else [])
    if len(found) != 1:
        which = f"may be in {' or '.join(found)}" if found else "are not found"
        example = found[0] if found else "DATASET"
        raise ForeignFault(
            f"labels {which}: it holds {listed(file)}; say which, such as "
            f"--labels {name}{PART_MARK}{example}"
        )
    return own_dataset(file, found[0])


def _the_images(file: Any, path: Path, part: str) -> str:
    if part and part not in file:
        raise ForeignFault(f"has no {part!r}; it holds {listed(file)}")
    if part and isinstance(file[part], import_h5py().Dataset):
        return part
    groups = groups_below(file, part)
    found = _named_so(file, groups, MANY_AXES) or _named_so(file, groups, (2,))
    if not found:
        raise ForeignFault(
            f"is no shard of this package and no images are found in it: it holds "
            f"{listed(file)}; looked for: a dataset {', '.join(IMAGE_NAMES)} of 3 axes or more, or "
            f"of 2, in any group{_try_another(file, groups, path)}"
        )
    if len(found) > 1:
        example = f"{split_part(path)[0]}{PART_MARK}{next(iter(found))}"
        raise ForeignFault(f"has images in {', '.join(found)}: say which, such as {example}")
    names = next(iter(found.values()))
    if len(names) > 1:
        raise ForeignFault(
            f"images may be in {' or '.join(names)}: say which, such as "
            f"{split_part(path)[0]}{PART_MARK}{names[0]}"
        )
    return names[0]


def _named_so(file: Any, groups: Sequence[str], dims: Container[int]) -> dict[str, list[str]]:
    """Group -> its numeric datasets with a name of IMAGE_NAMES. Only the topmost level of groups
    that has such datasets is returned.
    """
    found = {
        group: [
            name
            for name, item in datasets(file, group)
            if name.rpartition("/")[2].lower() in IMAGE_NAMES
            and item.ndim in dims
            and item.dtype.kind in "uif"
        ]
        for group in groups
    }
    found = {group: names for group, names in found.items() if names}
    highest = min(map(_depth, found), default=0)
    return {group: names for group, names in found.items() if _depth(group) == highest}


def _depth(group: str) -> int:
    return len(group.split("/")) if group else 0


def _try_another(file: Any, groups: Sequence[str], path: Path) -> str:
    for group in groups:
        for name, item in datasets(file, group):
            flags = flags_for(item)
            if flags is not None:
                return f". {convert(path, name, None, *flags)} takes {name}"
    return ""


def _the_labels(beside: Sequence[str], images: str, path: Path, flags: Sequence[str]) -> str | None:
    known = [name for name in beside if name.rpartition("/")[2].lower() in LABEL_NAMES]
    if len(known) > 1:
        command = convert(path, images, known[0], *flags)
        raise ForeignFault(f"labels may be in {' or '.join(known)}: {command} takes one")
    return known[0] if known else None


def _in_columns(item: Any, images: str, shape: tuple[int, int, int]) -> bool:
    """Whether the columns, and not the rows, have the size of an image of this shape.

    Raises:
        ForeignFault: neither have.
    """
    values = math.prod(shape)
    if item.ndim >= 2 and len(item) >= 1 and math.prod(item.shape[1:]) == values:
        return False
    if item.ndim == 2 and item.shape[0] == values and item.shape[1] >= 1:
        return True
    raise ForeignFault(
        f"dataset {images!r} is {what(item)}; --shape {','.join(map(str, shape))} needs rows, or "
        f"columns, of {values} values"
    )


def _not_images(file: Any, images: str, labels: str | None, path: Path) -> str:
    item = file[images]
    flags = flags_for(item, int(file[labels].size) if labels else None)
    if flags is None:
        return (
            f"dataset {images!r} is {what(item)}; needed: 3 or 4 axes, (n, H, W), (n, H, W, C) "
            "or (n, C, H, W), none of them empty, or (n, values) and --shape H,W or H,W,C"
        )
    colour = " (--axes NCHW: colour by colour)" if "3" in flags[1].split(",")[2:] else ""
    return (
        f"dataset {images!r} is {what(item)}, images as rows or columns of values. "
        f"{convert(path, images, labels, *flags)} makes images of them{colour}; add --transpose "
        "where they then lie on their side"
    )


def channel_axes(shape: tuple[int, ...]) -> tuple[bool, bool]:
    """Whether axis 1, and whether axis 3, can be the channels of pictures of this shape."""
    return len(shape) == 4 and shape[1] in CHANNELS, len(shape) == 4 and shape[3] in CHANNELS


def _as_pictures(item: Any) -> bool:
    return item.dtype == np.uint8 and (item.ndim == 3 or any(channel_axes(item.shape)))


def _axes(file: Any, images: str, labels: str | None, path: Path, told: str = "") -> str:
    """The axes of pictures. Raises ForeignFault if the shape is not that of pictures."""
    item = file[images]
    if item.ndim not in (3, 4) or min(item.shape) < 1:
        raise ForeignFault(_not_images(file, images, labels, path))
    if told and item.ndim != len(told):
        need = f"needed for {told}: {len(told)} axes"
        raise ForeignFault(f"dataset {images!r} is {what(item)}; {need}")
    if told or item.ndim == 3:
        return told or "NHW"
    first, last = channel_axes(item.shape)
    if first and last:
        flags = flags_for(item) or ["--axes", "NHWC"]
        raise ForeignFault(
            f"dataset {images!r} is {what(item)}: its channels may be axis 1 or axis 3. "
            f"{convert(path, images, labels, *flags)} takes your word (or NCHW)"
        )
    if not (first or last):
        raise ForeignFault(
            f"dataset {images!r} is {what(item)}; needed: 1 or 3 channels, as axis 1 or axis 3"
        )
    return "NHWC" if last else "NCHW"


def _not_uint8(images: Any, layout: ArrayLayout, path: Path) -> str:
    low, high = range_of(images)
    flags = range_flag(images)
    if flags:
        command = convert(path, layout.images, layout.labels, *flags)
        advice = f"{command} converts it"
    else:
        advice = (
            "If these are pixels between two bounds, `collage-mpi prep hdf5 --range=LOW:HIGH` "
            "converts them. If they were standardised, start from the original pixels"
        )
    return (
        f"dataset {layout.images!r} is {what(images)} with values from {low:g} to {high:g} "
        f"(first and last rows); needed: uint8, 0 to 255. {advice}"
    )


def _check_labels(
    labels: Any, count: int, layout: ArrayLayout, path: Path, names: tuple[str, ...] | None
) -> None:
    if labels.shape[:1] != (count,) or labels.size != count or labels.dtype.kind not in "iu":
        other = labels.shape[:1] == (count,) and labels.ndim <= 2  # names, one-hot, floats
        advice = (
            f"{convert(path, layout.images, layout.labels)} takes names and one-hot labels too"
            if other
            else f"{convert(path, layout.images, NO_LABELS)} leaves them out; --labels FILE takes "
            "those of another file"
        )
        raise ForeignFault(
            f"dataset {layout.labels!r} is {what(labels)}; needed: whole numbers of shape "
            f"({count},). {advice}"
        )
    wrong = label_problem(labels[...].reshape(-1).astype(np.int64), names)
    if wrong:
        raise ForeignFault(f"dataset {layout.labels!r}: {wrong}")


def class_names_of(file: Any) -> tuple[str, ...] | None:
    """The attribute class_names if it is a list of distinct names; otherwise None."""
    value = np.atleast_1d(file.attrs.get("class_names", ()))
    try:
        names = tuple(n.decode("utf-8") if isinstance(n, bytes) else str(n) for n in value)
    except UnicodeDecodeError:
        return None
    return names if names and all(names) and len(set(names)) == len(names) else None

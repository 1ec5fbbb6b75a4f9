"""Finds images and labels in HDF5 files and Zarr groups of other programs: the one dataset that can
be images, and the one that can be their labels. Where there are several, the user names them. For
HDF5 this runs in the child process of `guard` when a file is first opened.

The only module that imports h5py. It opens files, and has the lock for all calls of h5py.
"""

from __future__ import annotations

import io
import math
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.shards.schema import (
    CHANNELS,
    DTYPES,
    PART_MARK,
    ArrayLayout,
    ShardInfo,
    hdf5_command,
    label_problem,
    split_part,
)
from collage_mpi.system.printable import some_of

H5_LOCK = threading.RLock()
"""Held around every h5py call of this package: libhdf5 is not safe for two threads."""


@contextmanager
def still_reading(path: Path | str) -> Iterator[None]:
    """Holds the lock. An error of h5py inside is raised as an EnvironmentFault, because the file
    was sound when it was checked.
    """
    try:
        with H5_LOCK:
            yield
    except (OSError, RuntimeError, KeyError) as error:
        raise EnvironmentFault(f"{path}: can no longer be read: {error}") from error


def import_h5py() -> Any:
    """Import h5py, with HDF5's file locks switched off unless the user has set them.

    File locks fail on many network file systems, and this package never writes to a file that
    another process has open. HDF5 before 1.10.7 can be told only by the environment variable.
    """
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    import h5py

    return h5py


def cause_of(error: BaseException) -> str:
    """The text of the system's error within HDF5's long message; the whole message if it has
    none."""
    told = re.search(r"error message = '([^']+)'", str(error))
    return told[1] if told else str(error)


class FileToWrite(io.FileIO):
    """The file that HDF5 writes to. The first error is kept in `failure` instead of being raised.

    If a write fails, for example on a full disk, libhdf5 cannot close its objects and crashes the
    process at exit (seen with HDF5 2.0). So every write seems to succeed, and the caller checks
    `failure` after each step.
    """

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of `data`. An error is kept in `failure`."""
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while len(view) and self.failure is None:
                view = view[super().write(view) :]
        except OSError as error:
            self.failure = error
        return size

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer`, with zeros after the end of the file, as HDF5's own driver does."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while count := super().readinto(view[filled:]):
            filled += count
        view[filled:] = bytes(len(view) - filled)
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        """Set the length. An error is kept in `failure`."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0


def create_file(stream: FileToWrite) -> Any:
    """Create an `h5py.File` in `stream`, in the HDF5 1.10 layout, whose metadata has checksums.

    Raises:
        OSError: the file cannot be written.
    """
    return import_h5py().File(stream, "w", libver=("v110", "v110"))


def text_array(texts: Sequence[str]) -> np.ndarray:
    """Strings as an array of fixed-length UTF-8, because HDF5's heap for variable-length strings
    has no checksum."""
    if any("\0" in text for text in texts):
        raise DataFault("names, ids and the source cannot hold a NUL character")
    raw = [text.encode("utf-8") for text in texts]
    longest = max(1, max(map(len, raw)))
    kind = import_h5py().string_dtype("utf-8", longest)
    return np.array(raw, dtype=kind)


def open_file(path: Path, *, cache_bytes: int = 0) -> Any:
    """Open an `h5py.File` to read, without file locks. Raises OSError.

    By default there is no chunk cache. Then HDF5 reads only the wanted rows of a chunk without
    filter, which is 5 x faster in shuffled order. The operating system caches the file anyway.
    """
    h5py = import_h5py()
    try:
        return h5py.File(path, "r", rdcc_nbytes=cache_bytes, locking=False)
    except ValueError as error:
        if "locking" not in str(error):
            raise
        # an old libhdf5 without this argument reads the variable that import_h5py sets
        return h5py.File(path, "r", rdcc_nbytes=cache_bytes)


MAX_LISTED = 8
DEEPEST = 4  # levels of groups that are searched, because links may form a cycle
MAX_GROUPS = 1000
NO_LABELS = "none"  # the user's word for ignoring the labels of a file


class ForeignFault(DataFault):
    """No images were found in another program's file. The message says what to type."""


@contextmanager
def named_faults(path: Path | str) -> Iterator[None]:
    """Adds the file's path to the message of a ForeignFault, and raises it as a DataFault."""
    try:
        yield
    except ForeignFault as fault:
        raise DataFault(f"{path}: {fault}") from fault


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
    images, labels = find_datasets(file, path)
    item = own_dataset(file, images)
    if not are_items(item):
        raise ForeignFault(
            f"dataset {images!r} is {what(item)}; needed: {', '.join(DTYPES)} with 2 axes or more, "
            f"none of them empty. {hdf5_command(path, images, labels, '--range=LOW:HIGH')} "
            "converts other numbers"
        )
    axes = only_axes(images, item, path, labels) if item.dtype == np.uint8 else ""
    layout = ArrayLayout(images, labels, axes)
    if not stored_in_full(item, split_part(path)[0].stat().st_size):
        raise ForeignFault(f"dataset {images!r} is not stored in full: truncated")
    item[0], item[-1]  # raises now if HDF5 lacks the dataset's compression filter
    names = class_names_of(file)
    if labels is not None:
        wrong = label_problem(file[labels][...].reshape(-1).astype(np.int64), names)
        if wrong:
            raise ForeignFault(f"dataset {labels!r}: {wrong}")
    return ShardInfo(
        path=path,
        count=len(item),
        shape=layout.image_shape(item.shape),
        dtype=item.dtype.name,
        class_names=names,
        has_labels=labels is not None,
        source=f"{split_part(path)[0].name}, dataset {images}",
        fingerprint="",
        storage="foreign",
        layout=layout,
    )


def find_datasets(
    file: Any, path: Path, images: str | None = None, labels: str | None = None
) -> tuple[str, str | None]:
    """The names of the datasets of images and of labels; None for no labels.

    Args:
        file: the open file.
        path: its path, with `::PART` for one group or dataset of the file.
        images, labels: names that the user gives; labels may be `NO_LABELS`.

    Raises:
        ForeignFault: a dataset does not exist, or several can be meant.
    """
    part = _part(file, path)
    if images is not None:
        own_dataset(file, images)
    if images is None and part and isinstance(file[part], import_h5py().Dataset):
        images = part
    items = _datasets_below(file, part if images is None else images.rpartition("/")[0])
    typed = hdf5_command(path, "NAME", "NAME")
    one_group = f"{split_part(path)[0]}{PART_MARK}GROUP"
    found = images or the_images(items, f"{typed}, or take the datasets of one group: {one_group}")
    item = own_dataset(file, found)
    if labels is None:
        say_which = f"Say which, or {NO_LABELS}: {hdf5_command(path, found, 'NAME')}"
        return found, the_labels(items, found, item, say_which)
    if labels == NO_LABELS:
        return found, None
    own_dataset(file, labels)
    return found, labels


def the_images(items: Mapping[str, Any], typed: str) -> str:
    """The name of the only dataset of numbers with three axes or more; of two, if none has more.

    Args:
        items: name -> dataset.
        typed: what to type to name the dataset.

    Raises:
        ForeignFault: none is found, or several are.
    """
    rows = [n for n, item in items.items() if len(item.shape) > 1 and item.dtype.kind in "uif"]
    rows = [name for name in rows if math.prod(items[name].shape[1:]) != 1]  # one value: a label
    found = [name for name in rows if len(items[name].shape) > 2] or rows
    if len(found) == 1:
        return found[0]
    if not found:
        raise ForeignFault(
            f"is no shard of this package and holds no images: it holds {listed(items)}; needed: a "
            "dataset of numbers with 3 axes or more, or with 2"
        )
    raise ForeignFault(
        f"{len(found)} datasets can be the images: {listed(items, found)}. Say which: {typed}"
    )


def the_labels(items: Mapping[str, Any], images: str, pixels: Any, typed: str) -> str | None:
    """The name of the only dataset with one whole number for each image; None if there is none.

    Args:
        items: name -> dataset.
        images: name of the images.
        pixels: their dataset.
        typed: what to type to name the dataset, or to take no labels.

    Raises:
        ForeignFault: several are found.
    """
    n = pixels.shape[0]
    found = [
        name
        for name, item in items.items()
        if name != images
        and item.dtype.kind in "iu"
        and item.shape[:1] == (n,)
        and math.prod(item.shape) == n
    ]
    if len(found) > 1:
        raise ForeignFault(
            f"{len(found)} datasets can be the labels of {images}: {listed(items, found)}. {typed}"
        )
    return found[0] if found else None


def find_labels(file: Any, path: Path) -> Any:
    """The dataset of labels in a file that has only labels: the named one, or the only one.

    Raises:
        ForeignFault: no dataset has this name, or no name is given and the file holds several.
    """
    part = _part(file, path)
    if part and isinstance(file[part], import_h5py().Dataset):
        return own_dataset(file, part)
    items = _datasets_below(file, part)
    if len(items) != 1:
        typed = f"--labels {split_part(path)[0]}{PART_MARK}NAME"
        raise ForeignFault(f"holds {listed(items)}; say which of them are the labels: {typed}")
    return own_dataset(file, *items)


def are_items(array: Any) -> bool:
    """Whether the rows of an array can be items without conversion."""
    return array.dtype.name in DTYPES and len(array.shape) >= 2 and min(array.shape) >= 1


def axes_of(shape: tuple[int, ...]) -> tuple[str, ...]:
    """The axes that pictures of this shape can have: none, or one, or both orders of four axes."""
    if len(shape) == 3:
        return ("NHW",)
    orders = {"NHWC": 3, "NCHW": 1} if len(shape) == 4 else {}
    return tuple(order for order, axis in orders.items() if shape[axis] in CHANNELS)


def only_axes(images: str, item: Any, path: Path, labels: str | None) -> str:
    """The axes of pictures, by the axis with 1 or 3 channels; "" if they are not pictures.

    Args:
        images, labels: names of the datasets.
        item: the dataset of images.
        path: of the file.

    Raises:
        ForeignFault: the channels can be axis 1 or axis 3.
    """
    found = axes_of(item.shape)
    if len(found) > 1:
        raise ForeignFault(
            f"dataset {images!r} is {what(item)}: its channels can be axis 1 or axis 3. "
            f"{hdf5_command(path, images, labels, '--axes', 'NHWC')} says which (or NCHW)"
        )
    return "".join(found)


def class_names_of(file: Any) -> tuple[str, ...] | None:
    """The attribute class_names if it is a list of distinct names; otherwise None."""
    value = np.atleast_1d(file.attrs.get("class_names", ()))
    try:
        names = tuple(n.decode("utf-8") if isinstance(n, bytes) else str(n) for n in value)
    except UnicodeDecodeError:
        return None
    return names if names and all(names) and len(set(names)) == len(names) else None


def own_dataset(file: Any, name: str) -> Any:
    """A dataset by name. Raises ForeignFault if it does not exist or is stored in other files."""
    if name not in file:
        raise ForeignFault(f"has no {name!r}; it holds {listed(_datasets_below(file))}")
    item = file[name]
    if not isinstance(item, import_h5py().Dataset) or not _is_here(file, name):
        raise ForeignFault(f"{name!r} is no dataset of this file itself: a group, or a link")
    if item.is_virtual or item.external:
        raise ForeignFault(f"dataset {name!r} lies in other files: name those instead")
    if not item.shape:
        raise ForeignFault(f"dataset {name!r} is a single value, or none")
    return item


def _part(file: Any, path: Path) -> str:
    part = split_part(path)[1].strip("/")
    if part and part not in file:
        own_dataset(file, part)
    return part


def _datasets_below(file: Any, top: str = "") -> dict[str, Any]:
    """Name -> dataset, of a group and of the groups in it, down to `DEEPEST` levels, without
    links. The root is ""."""
    found, level = {}, [top]
    for _ in range(DEEPEST + 1):
        names = [
            whole
            for group in level[:MAX_GROUPS]
            for name in (file[group] if group else file)
            if _is_here(file, whole := f"{group}/{name}" if group else name)
        ]
        items = {name: file[name] for name in names}
        found.update(
            {
                name: item
                for name, item in items.items()
                if isinstance(item, import_h5py().Dataset) and item.shape is not None
            }
        )
        level = [name for name in names if isinstance(file[name], import_h5py().Group)]
    return found


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


def listed(items: Mapping[str, Any], names: Iterable[str] = ()) -> str:
    """Some datasets in words; all of them if no names are given."""
    found = [f"{name} ({what(items[name])})" for name in names or items]
    return some_of(found, MAX_LISTED) or "no dataset"


def what(item: Any) -> str:
    """Type and shape of a dataset, in words."""
    return f"{item.dtype} {tuple(item.shape)}"

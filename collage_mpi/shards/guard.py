"""HDF5: opens files, with the lock for all calls of h5py; finds images and labels in files of other
programs (the one dataset that can be images, and the one that can be their labels; where there are
several, the user names them); checks the structure, checksums and labels of files, in a child
process, under a time and a memory limit; and reads them (`OpenShard`). The only module that imports
h5py.

libhdf5 can loop or crash on damaged files (24 endless loops and a segfault in 7,923 mutated
shards), and a rank must not. The child is a new process (`python -m collage_mpi.shards.guard`) and
not a fork of the rank, because a fork after MPI_Init hangs. If a server forks the ranks, it forks
the child too, which saves the import of h5py. The child takes one JSON request on stdin and answers
with one JSON line a shard. So one child checks many shards, and it is known which shard killed it.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import resource
import shlex
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault
from collage_mpi.shards.members import Texts
from collage_mpi.shards.pictures import SUFFIXES
from collage_mpi.shards.schema import (
    CHANNELS,
    DTYPES,
    FORMAT,
    HASH_LIMIT_BYTES,
    PART_MARK,
    VERSION,
    ArrayLayout,
    ShardInfo,
    checked_names,
    hdf5_command,
    label_problem,
    read_sidecar,
    remake_command,
    rows_crc32,
    sha256_of,
    sidecar_path,
    split_part,
    stamp_of,
)
from collage_mpi.shards.source import Checks, ReadAs, Source, slices_of
from collage_mpi.system.environment import without_rank
from collage_mpi.system.files import require_regular
from collage_mpi.system.forked import of_server
from collage_mpi.system.printable import some_of
from collage_mpi.system.process_tree import ask_apart, own_command, stat_of

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
    if file.get(name, getlink=True) is None:
        raise ForeignFault(f"has no {name!r}; it holds {listed(_datasets_below(file))}")
    if not _is_here(file, name) or not isinstance(item := file[name], import_h5py().Dataset):
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


HOW_TO_MAKE = "`collage-mpi prep --help` says how to make shards, data_prep/README.md their schema."
INPUTS = "folders of pictures, .h5, .tar, .parquet and .zarr, and .txt, .csv and .json lists"
OTHER_FILES = {  # endings of files that are no input -> what they are, and what to give instead
    SUFFIXES: "is one picture. Give the folder that holds it",
    (".gz", ".tgz", ".bz2", ".xz", ".zst"): "is compressed, and pictures are read from where they "
    "lie in a file. Unpack it (gunzip, bunzip2, unxz, unzstd), and give the .tar file",
    (".zip", ".rar", ".7z"): "is an archive. Unpack it, and give the folder",
    (".npy", ".npz"): "is a NumPy file. Write its array to HDF5 (h5py: file['images'] = array) or "
    "to Zarr, and give that file",
}
BLOCK_BYTES = 8 << 20
MAX_PROBLEMS = 20


def inspect_here(path: Path, *, hash_file: bool) -> ShardInfo:
    """Check the structure in this process and describe the shard.

    Args:
        path: the shard.
        hash_file: compare the SHA-256 of the whole file with the `.sha256` file beside it. If there
            is no such file, the SHA-256 is always computed.

    Raises:
        DataFault: not a shard, damaged, or not the file that was hashed.
        OSError: the file cannot be read.
    """
    stamp = stamp_of(path)  # first, so that a later check notices every change from here on
    recorded = read_sidecar(path)
    actual = sha256_of(path) if hash_file or recorded is None else recorded
    if recorded is not None and actual != recorded:
        more = (
            f"`{shlex.join(['collage-mpi', 'prep', 'verify', str(path)])}` says which rows are "
            "affected. If you remove the .sha256 file, these become error rows and the others are "
            "used."
        )
        raise DataFault(f"{path}: {hash_mismatch(path)} {more}")
    with H5_LOCK, opened(path) as file:
        return replace(describe(file, path), fingerprint=actual, stamp=stamp)


def verify_here(path: Path) -> list[str]:
    """All problems of a shard, in about `MAX_PROBLEMS` lines. Raises OSError."""
    problems = []
    try:
        recorded = read_sidecar(path)
        if recorded is None:
            problems.append(f"no {sidecar_path(path).name} beside it: its bytes cannot be proven")
        elif sha256_of(path) != recorded:
            problems.append(hash_mismatch(path))
        with H5_LOCK, opened(path) as file:
            about = describe(file, path, for_verify=True)
            if about.layout is not None:
                return _foreign_problems(file, path, about.layout, problems)
            problems += _row_problems(file, about)
    except DataFault as fault:
        problems.append(str(fault).removeprefix(f"{path}: "))
    return problems


def _foreign_problems(file: Any, path: Path, layout: ArrayLayout, problems: list[str]) -> list[str]:
    """Problems of another program's file. It has no checksums of rows, so all images are read."""
    images = file[layout.images]
    rows = max(1, BLOCK_BYTES // max(1, images[0].size))
    try:
        for start in range(0, len(images), rows):
            images[start : start + rows]
    except (OSError, RuntimeError) as error:
        problems.append(f"images cannot be read ({error})")
    if read_sidecar(path) is None:
        name = split_part(path)[0].name
        problems[0] = (
            "another program's file, without checksums: its bytes cannot be proven. "
            f"`sha256sum {name} > {name}.sha256` beside it records them as they are now; "
            f"`{remake_command([path])}` makes shards that have checksums"
        )
    return problems


def hash_mismatch(path: Path) -> str:
    """The message for a file whose SHA-256 differs from the recorded one."""
    return (
        f"its SHA-256 is not the one in {sidecar_path(path).name}: the file has changed since "
        "it was written. Copy it or make it again."
    )


def opened(path: Path, *, cache_bytes: int = 0) -> Any:
    """Open a file. Raises DataFault if it is not HDF5, OSError if it cannot be read."""
    path = split_part(path)[0]
    require_regular(path)
    with path.open("rb"):
        pass  # if the file is missing or forbidden, this OSError is clearer than HDF5's
    try:
        return open_file(path, cache_bytes=cache_bytes)
    except (OSError, RuntimeError) as error:
        name = path.name.lower()
        for ends, about in OTHER_FILES.items():
            if name.endswith(ends):
                raise DataFault(f"{path}: {about}. Inputs are {INPUTS}.") from error
        raise DataFault(f"{path}: cannot be opened as HDF5: {error}. {HOW_TO_MAKE}") from error


def describe(file: Any, path: Path, *, for_verify: bool = False) -> ShardInfo:
    """Check attributes, datasets, storage and labels of an open file, and describe it. The
    fingerprint stays empty.

    Args:
        for_verify: do not check the range of the labels, because the caller does.

    Raises:
        DataFault: the first problem.
    """
    try:
        if foreign := is_foreign(file):
            return understand(file, path)
        if split_part(path)[1]:
            raise DataFault("a shard of this package is used as a whole")
        _check_format(file)
        _refuse_removed(file)
        count = int(file.attrs["count"]) if "count" in file.attrs else None
        shape = _check_images(file, count, os.path.getsize(path))
        _rows_of(file, "crc32", "uint32", shape[0])
        names = _class_names(file)
        has_labels = "labels" in file
        if has_labels:
            wrong = label_problem(_rows_of(file, "labels", "int64", shape[0]), names)
            if wrong and not for_verify:
                raise DataFault(wrong)
        source = _text(file.attrs["source"]) if "source" in file.attrs else ""
    except DataFault as fault:
        more = "" if foreign else f". {HOW_TO_MAKE}"
        raise DataFault(f"{path}: {fault}{more}") from None
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        detail = f"{type(error).__name__}: {error}"
        raise DataFault(f"{path}: damaged HDF5 structure ({detail}). {HOW_TO_MAKE}") from error
    return ShardInfo(
        path=path,
        count=shape[0],
        shape=shape[1:],
        dtype=file["images"].dtype.name,
        class_names=names,
        has_labels=has_labels,
        source=source,
        fingerprint="",
    )


def _check_images(file: Any, count: int | None, file_bytes: int) -> tuple[int, ...]:
    """Check the dataset of images. Returns its shape, (n, ...)."""
    images = _dataset(file, "images", DTYPES)
    shape = tuple(int(size) for size in images.shape)
    if len(shape) < 2 or count != shape[0] or min(shape) < 1:
        raise DataFault(
            f"attribute count is {count}, dataset images has shape {images.shape}; needed: "
            "count = n >= 1 and shape (n, ...), such as (n, height, width, channels)"
        )
    _check_storage(images, file_bytes)
    return shape


def _check_format(file: Any) -> None:
    found = _text(file.attrs["format"]) if "format" in file.attrs else None
    if found != FORMAT:
        raise DataFault(f"root attribute format is {found!r}; needed: {FORMAT!r}")
    version = int(file.attrs["version"]) if "version" in file.attrs else None
    if version != VERSION:
        raise DataFault(f"shard version {version}; this program reads version {VERSION}")


def _refuse_removed(file: Any) -> None:
    """Refuse what shards of version 1.0 could hold beside, or in place of, pixels."""
    if "encoded" in file and "images" not in file:
        raise DataFault(
            "holds picture files, which shards no longer hold. Make the shard again from its "
            "pictures, or classify their folder, tar or Parquet file. `Old shards` in "
            "data_prep/README.md takes the pictures out of this file"
        )
    cells = next((n for n in file if n.startswith("cells_") and f"{n}_crc32" in file), None)
    if cells is not None:
        raise DataFault(
            f"holds cells ({cells}), which shards no longer hold. Use the shard of which `shards "
            "add-cells` made this copy. `Old shards` in data_prep/README.md takes the cells out"
        )


def _dataset(file: Any, name: str, dtypes: Sequence[str], dims: int | None = None) -> Any:
    item = own_dataset(file, name)
    if item.dtype.name not in dtypes or dims not in (None, item.ndim):
        axes = "" if dims is None else f" with {dims} axes"
        raise DataFault(f"{name!r} must be a dataset of {' or '.join(dtypes)}{axes}")
    return item


def _check_storage(images: Any, file_bytes: int) -> None:
    """Check by the chunk index that every row is stored and that no chunk ends after the file."""
    if not stored_in_full(images, file_bytes):
        raise DataFault("the images are not stored in full: truncated")
    if images.chunks is None:
        return
    rows = images.chunks[0]
    if images.chunks[1:] != images.shape[1:]:
        raise DataFault(f"chunks of {images.chunks} cut images; a chunk holds whole images")
    firsts, ends = _chunks_of(images)
    if firsts != set(range(0, images.shape[0], rows)):
        needed = -(-images.shape[0] // rows)
        raise DataFault(f"{len(firsts)} chunks of images are stored; {needed} are needed")
    if max(ends, default=0) > file_bytes:
        raise DataFault("a chunk of images lies past the end of the file: truncated")


def _chunks_of(images: Any) -> tuple[set[int], list[int]]:
    """The first row of each stored chunk, and the byte after its last, in one pass over the index.

    A query for a single chunk walks the index from the start. For 20,000 chunks that takes over a
    minute, and one pass 30 ms.
    """
    firsts: set[int] = set()
    ends: list[int] = []

    def note(chunk: Any) -> None:
        firsts.add(int(chunk.chunk_offset[0]))
        ends.append(int(chunk.byte_offset) + int(chunk.size))

    if hasattr(images.id, "chunk_iter"):
        images.id.chunk_iter(note)
    else:  # libhdf5 before 1.12.3 gives only the number of chunks in one pass
        firsts.update(images.chunks[0] * k for k in range(images.id.get_num_chunks()))
    return firsts, ends


def _rows_of(file: Any, name: str, dtype: str, count: int) -> np.ndarray:
    item = _dataset(file, name, [dtype], 1)
    if item.shape != (count,):
        raise DataFault(f"{name!r} has shape {item.shape}; needed: ({count},)")
    return item[...]


def _class_names(file: Any) -> tuple[str, ...] | None:
    if "class_names" not in file.attrs:
        return None
    return checked_names([_text(name) for name in np.atleast_1d(file.attrs["class_names"])])


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str):
        return value
    raise DataFault(f"expected text, found {type(value).__name__}")


def _row_problems(file: Any, about: ShardInfo) -> list[str]:
    """Lines about rows whose checksum does not match, and about labels out of range."""
    bad: list[int] = []
    try:
        labels = file["labels"][...] if about.has_labels else None  # (n,) int64
        rows, stored = file["images"], file["crc32"][...]
        block = max(1, BLOCK_BYTES // (rows.dtype.itemsize * math.prod(rows.shape[1:])))
        for start in range(0, len(rows), block):
            some = slice(start, start + block)
            tags = None if labels is None else labels[some]
            wrong = np.flatnonzero(rows_crc32(rows[some], tags) != stored[some])
            bad.extend((wrong + start).tolist())
    except (OSError, RuntimeError, ValueError, MemoryError) as error:
        return [f"rows cannot be read ({type(error).__name__}: {error})"]
    problems = first_of([f"row {n}: checksum does not match its pixels and label" for n in bad])
    out = None if labels is None else label_problem(labels, about.class_names)
    return [*problems, out] if out else problems


def first_of(lines: list[str]) -> list[str]:
    """The first MAX_PROBLEMS lines, and a line with the number of others."""
    more = len(lines) - MAX_PROBLEMS
    return lines if more <= 0 else [*lines[:MAX_PROBLEMS], f"... and {more} more rows"]


CHILD_COMMAND = own_command("collage_mpi.shards.guard")
Answer = tuple[str, Any]  # "found" and what was found, or a key of FAULTS and its message
FAULTS = {"data": DataFault, "environment": EnvironmentFault}
MEMORY_BYTES = 2 << 30  # beside what the child holds when it begins
START_S = 60.0  # python and h5py from a cold network file system
BYTES_PER_S = 20e6  # hashing and reading that is slower than this counts as hung
DECODE_BYTES_PER_S = 2e6  # the same for verify, which decodes images: 20 to 40 MB/s on one core


def inspect_shard(path: Path | str, *, limit_s: float | None = None) -> ShardInfo:
    """Describe one shard after checking it.

    Raises:
        DataFault, EnvironmentFault: as `examine_shards` returns it.
    """
    [found] = examine_shards([Path(path)], limit_s=limit_s)
    if isinstance(found, CollageError):
        raise found
    return found


def examine_shards(
    paths: Sequence[Path], *, limit_s: float | None = None
) -> list[ShardInfo | CollageError]:
    """Describe shards after checking structure and, up to 256 MiB, their SHA-256.

    Args:
        paths: the files.
        limit_s: time for all files in seconds; the default grows with their size.

    Returns:
        For each file its description, or its fault. DataFault: the file is not a shard, is damaged,
        or hangs or crashes the HDF5 library. EnvironmentFault: it is missing or unreadable.
    """
    answers = map(_read_answer, _ask("inspect", paths, limit_s))
    return [a if isinstance(a, CollageError) else ShardInfo.from_json(a) for a in answers]


def verify_shard(path: Path | str, *, limit_s: float | None = None) -> list[str]:
    """All problems of one shard (checksums of file and rows, structure, labels); [] if none.

    Raises:
        EnvironmentFault: the file is missing or unreadable.
    """
    path = Path(path)
    (found,) = map(_read_answer, _ask("verify", [path], limit_s))
    if isinstance(found, EnvironmentFault):
        raise found
    return [str(found).removeprefix(f"{path}: ")] if isinstance(found, DataFault) else found


def _read_answer(answer: Answer) -> Any:
    """What the child found out about a file, or the fault that it met."""
    kind, found = answer
    return FAULTS[kind](found) if kind in FAULTS else found


def _ask(task: str, paths: Sequence[Path], limit_s: float | None) -> list[Answer]:
    """One answer for each path. If a child dies, the answer for the file that it was reading says
    so, and a new child goes on with the rest.
    """
    answers: list[Answer] = []
    while len(answers) < len(paths):
        rest = paths[len(answers) :]
        found, death = _run_child(task, rest, _limit_s(task, rest) if limit_s is None else limit_s)
        answers += found[: len(rest)]
        if len(answers) < len(paths):
            answers.append(("data", f"{paths[len(answers)]}: {death}"))
    return answers


def _run_child(task: str, paths: Sequence[Path], limit_s: float) -> tuple[list[Answer], str]:
    request = {"task": task, "paths": [str(path) for path in paths], "cpu_s": int(limit_s) + 5}
    threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    environment = {**without_rank(os.environ), **threads, **of_server}
    said = ask_apart(CHILD_COMMAND, request, limit_s, environment)
    answers = [json.loads(line) for line in said.lines]
    if said.code == 1 and not answers:
        raise EnvironmentFault(
            f"the shard checker `{' '.join(CHILD_COMMAND)}` did not start: "
            f"{said.last_word or 'no message'}. Is h5py installed and working?"
        )
    if said.code is None:
        return answers, (
            f"reading it did not end within {limit_s:g} s; the file is damaged (copy or make "
            "it again) or its file system hangs"
        )
    return answers, (
        f"reading it crashed the HDF5 library (exit code {said.code}); "
        "the file is damaged: copy or make it again"
    )


def _limit_s(task: str, paths: Sequence[Path]) -> float:
    files = (split_part(path)[0] for path in paths)
    sizes = (os.path.getsize(file) for file in files if os.path.isfile(file))
    return START_S + sum(sizes) / (DECODE_BYTES_PER_S if task == "verify" else BYTES_PER_S)


def main() -> None:
    """The child process: set the limits, then print a JSON line for each path."""
    request = json.load(sys.stdin)
    _limit_child(request["cpu_s"])
    for path in map(Path, request["paths"]):
        print(json.dumps(_answer(request["task"], path)), flush=True)


def _limit_child(cpu_s: int) -> None:
    # Virtual bytes at the start: gigabytes if a server that has imported torch forked this process.
    mapped = int(stat_of("self")[1][20]) if Path("/proc/self/stat").exists() else 0
    wanted = ((resource.RLIMIT_AS, mapped + MEMORY_BYTES), (resource.RLIMIT_CPU, cpu_s))
    for limit, value in (*wanted, (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        ceiling = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(limit, (ceiling, hard))
        except (ValueError, OSError):
            pass  # some systems refuse RLIMIT_AS; the parent's time limit still holds


def _answer(task: str, path: Path) -> Answer:
    try:
        file = split_part(path)[0]
        require_regular(file)
        if task == "verify":
            return "found", verify_here(path)
        hash_file = file.stat().st_size <= HASH_LIMIT_BYTES
        return "found", inspect_here(path, hash_file=hash_file).to_json()
    except CollageError as fault:
        return "data", str(fault)
    except OSError as error:
        return "environment", f"{path}: cannot be read: {error.strerror or error}"
    except MemoryError:
        return "data", f"{path}: reading it takes over {MEMORY_BYTES >> 20} MiB of memory"


if __name__ == "__main__":
    main()


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
        self._layout = info.layout or self.own
        with still_reading(info.path):
            self._file: Any = opened(info.path)
            if _wants_cache(self._file[self._layout.images]):
                self._file.close()
                self._file = opened(info.path, cache_bytes=FILTER_CACHE_BYTES)
            self._images = self._file[self._layout.images]
            labels: np.ndarray | None = None  # (n,) int64
            if info.has_labels:
                labels = self._file[self._layout.labels][...].reshape(-1)
                self.labels = labels = labels.astype(np.int64, copy=False)
            self.crc32: Any = None if info.layout else self._file["crc32"][...]
            shape = self._images.shape
        found = (shape[0], *self._layout.image_shape(shape))
        rows = info.count if self.crc32 is None else len(self.crc32)
        if found != (info.count, *info.shape) or rows != info.count:
            raise DataFault(f"{info.path}: has changed since it was checked. Start again.")
        wrong = None if labels is None else label_problem(labels, info.class_names)
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

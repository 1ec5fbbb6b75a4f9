"""The format of a shard (names, version, checksums, chunk sizes, class names), and the description
of a shard or another source.

Class names must be unique. Names that repeat in a list, such as ImageNet's, get their class number
appended.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from isal.isal_zlib import crc32

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.shards.members import MemberIndex
from collage_mpi.shards.pictures import PictureFit
from collage_mpi.shards.remote import Stamp, path_of, stat_of
from collage_mpi.system.files import reading, sha256_of_stream, write_atomic
from collage_mpi.system.records import read_record
from collage_mpi.system.tell import tell

FORMAT = "collage-mpi shard"
VERSION = 1
CHANNELS = (1, 3)  # of pictures
DTYPES = ("uint8", "uint16", "int16", "float16", "float32")  # of items

CHUNK_BYTES = 256 * 1024
"""The size of a chunk, about: 334 images of 28 x 28, or one of 224 x 224 x 3.

With one image a chunk, 28 px images are read 7 x slower in file order (analysis/reports/shards.md).
Larger chunks are not faster, and a damaged chunk would lose more images.
"""

HASH_LIMIT_BYTES = 256 << 20
"""Sources up to this size are hashed when they are first opened (0.2 s). For larger shards the
`.sha256` file is trusted, and the checksum of each row is verified when it is read."""
PART_MARK = "::"  # FILE::PART is one group, dataset or column of a file


@dataclass(frozen=True)
class ArrayLayout:
    """The datasets of images and labels in another program's file, and the layout of the images.

    Attributes:
        images, labels: names of the datasets with their groups. labels is None if there are none.
        axes: "NHWC", "NCHW", or "NHW" for grey images without a channel axis; "" for items that
            are not pictures and stay unchanged.
        flat: (H, W, C) if each image is stored as a row of values, in the order of `axes`.
        transposed: whether height and width of each image are swapped.
    """

    images: str
    labels: str | None
    axes: str
    flat: tuple[int, int, int] | None = None
    transposed: bool = False

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
class ShardInfo:
    """The description of one shard, or of another source.

    Attributes:
        path: the file or folder; `FILE::PART` for one group or dataset of another program's file.
        count: number of images, at least 1.
        shape: of one item, such as (H, W, C) for a picture or (D, H, W, C) for a volume.
        dtype: of the items' values, one of DTYPES.
        class_names: the name of label 0, 1, ...; None if there are none.
        has_labels: whether every image has a label.
        source: where the images come from, in words.
        fingerprint: SHA-256 of the content when a run began, 64 hex digits.
        stamp: size, time and inode of the file when it was checked; None if unknown.
        storage: the `name` of its `Source`: "images" (a shard), "foreign" (another program's HDF5
            file, without checksums), "folder" and others.
        fit: how encoded pictures are resized (text of a `PictureFit`); None for pixels.
        layout: where images and labels are in a foreign file; see `ArrayLayout`.
        index: file with the list of the source's members; None if there is none.
        members: the list of members, only in the process that has made it. It is not sent.
        listed: the fingerprint of the path as it was listed, if it is another one, because the
            source has grown or changed since the run began.
    """

    path: Path
    count: int
    shape: tuple[int, ...]
    class_names: tuple[str, ...] | None
    has_labels: bool
    source: str
    fingerprint: str
    stamp: Stamp | None = field(default=None, compare=False)
    storage: str = "images"
    fit: str | None = None
    layout: ArrayLayout | None = None
    index: str | None = field(default=None, compare=False)
    members: MemberIndex | None = field(default=None, compare=False, repr=False)
    dtype: str = "uint8"
    listed: str | None = field(default=None, compare=False)

    @property
    def of_path(self) -> str:
        """The fingerprint that the path has now."""
        return self.listed or self.fingerprint

    @property
    def is_picture(self) -> bool:
        """Whether its items are (H, W, C) uint8 with the channels of a picture."""
        return self.dtype == "uint8" and len(self.shape) == 3 and self.shape[2] in CHANNELS

    @property
    def conversion(self) -> str:
        """Which command makes pictures of another program's HDF5 file; "" if none is known."""
        if self.storage != "foreign" or self.is_picture or not self.layout:
            return ""
        flags = ("--shape", "H,W") if len(self.shape) == 1 else ("--range=LOW:HIGH",)
        typed = hdf5_command(self.path, self.layout.images, self.layout.labels, *flags)
        return f"{typed} makes pictures of them"

    def fitted(self, fit: PictureFit) -> ShardInfo:
        """The description of the same pictures resized in another way."""
        return replace(self, shape=fit.shape, fit=fit.text())

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values; `from_json` is its inverse."""
        own = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        del own["members"]  # before a copy
        return {**own, "path": str(self.path), "layout": self.layout and asdict(self.layout)}

    @classmethod
    def from_json(cls, record: object) -> ShardInfo:
        """Rebuild what `to_json` wrote. Raises ValueError, which says what is wrong."""
        return read_record(cls, record, lambda _, path: path_of(path))


def split_part(path: Path) -> tuple[Path, str]:
    """Split `FILE::PART` into the file and the part; the part is "" if there is none."""
    file, mark, part = str(path).partition(PART_MARK)
    return (path_of(file), part) if mark else (path, "")


def stamp_of(path: Path) -> Stamp:
    """A stamp that changes when the file is written to or replaced. Raises OSError."""
    return stat_of(split_part(path)[0])


def chunk_rows(row_bytes: int, count: int | None = None) -> int:
    """The number of images for a chunk, at least 1.

    Args:
        row_bytes: bytes of one image.
        count: number of images in the shard, if known. All chunks then get nearly the same number,
            so that the last chunk is not mostly padding.
    """
    rows = max(1, CHUNK_BYTES // row_bytes)
    chunks = -(-count // rows) if count else 0
    return -(-count // chunks) if count else rows


def row_crc32(pixels: bytes | memoryview, label: int | None) -> int:
    """CRC-32 of one row: its pixels, then its label as 8 little-endian bytes if it has one.

    It is zlib's CRC-32, computed by ISA-L in 4 us for a row of 224 x 224 x 3; zlib takes 55 us.
    """
    crc = int(crc32(pixels))
    return crc if label is None else int(crc32(label.to_bytes(8, "little", signed=True), crc))


def rows_crc32(images: np.ndarray | list[np.ndarray], labels: np.ndarray | None) -> np.ndarray:
    """CRC-32 of every row.

    Args:
        images: (n, ...) items, C-contiguous, or n such items.
        labels: (n,) int64, or None.

    Returns:
        (n,) uint32.
    """
    rows = [row.data.cast("B") for row in images]
    tags = [None] * len(rows) if labels is None else labels.tolist()
    return np.fromiter(map(row_crc32, rows, tags), dtype=np.uint32, count=len(rows))


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """The class names as a tuple. Raises DataFault if there are none, or they are not distinct, or
    one is empty."""
    if len(names) == 0 or len(set(names)) != len(names) or not all(names):
        raise DataFault("class names must be one or more, each different and not empty")
    return tuple(names)


def class_numbers(
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
        DataFault: the values have another form, or are out of range.
    """
    if values.ndim > 1 and values.size == len(values):
        values = values.reshape(-1)  # (n, 1, ..., 1) -> (n,)
    if values.ndim == 2 and values.dtype.kind in "biuf":
        ones = (values == 1).sum(axis=1) == 1
        if not (ones & ((values != 0).sum(axis=1) == 1)).all():
            raise DataFault(f"labels of shape {values.shape} are not one-hot")
        labels = values.argmax(axis=1).astype(np.int64)
    elif values.ndim == 1 and values.dtype.kind in "OSU":
        texts = [v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values.tolist()]
        names = tuple(sorted(set(texts))) if names is None else names
        unknown = set(texts) - set(names)
        if unknown:
            raise DataFault(f"label {min(unknown)!r} is none of the {len(names)} classes named")
        numbers = {name: number for number, name in enumerate(names)}
        labels = np.array([numbers[text] for text in texts], dtype=np.int64)
    elif (
        values.ndim == 1
        and values.dtype.kind in "biuf"
        and (values.astype(np.int64) == values).all()
    ):
        labels = values.astype(np.int64)
    else:
        raise DataFault(
            f"labels are {values.dtype} {values.shape}; needed: whole numbers, names, or one-hot "
            "rows"
        )
    wrong = label_problem(labels, names) if len(labels) else None
    if wrong:
        raise DataFault(wrong)
    return labels, names


def label_problem(labels: np.ndarray, class_names: tuple[str, ...] | None) -> str | None:
    """A message if `labels`, (n,) int64, are out of range; None if they are valid."""
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0:
        return f"label {lowest} is negative; labels are class numbers from 0 up"
    if class_names is not None and highest >= len(class_names):
        return f"label {highest} has no name; the shard names {len(class_names)} classes"
    return None


def sidecar_path(path: Path) -> Path:
    """The checksum file that belongs to a shard: `name.h5.sha256`."""
    path = split_part(path)[0]
    return path.with_name(path.name + ".sha256")


def sidecar_line(path: Path, digest: str) -> bytes:
    """The line for `sha256sum -c`, in which special characters of the name are escaped."""
    name = os.fsencode(path.name)
    plain = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    mark = b"" if plain == name else b"\\"  # tells sha256sum that the name is escaped
    return mark + digest.encode() + b"  " + plain + b"\n"


def read_sidecar(path: Path) -> str | None:
    """The digest in the `.sha256` file beside a shard; None if there is no such file.

    Raises:
        DataFault: the `.sha256` file has another content.
    """
    beside = sidecar_path(path)
    try:
        with beside.open("rb") as stream:
            text = stream.read(4096).decode("ascii", errors="replace")
    except FileNotFoundError:
        return None
    match = re.match(r"\\?([0-9a-fA-F]{64})(\s|$)", text)
    if match is None:
        raise DataFault(
            f"{beside}: not a SHA-256 line (64 hex digits, two spaces, the file's name). "
            "Write it again with sha256sum if you trust the shard, or make the shard again."
        )
    return _of_part(match.group(1).lower(), path)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hex digits. The digest of `FILE::PART` also depends on PART.

    Raises:
        OSError: the file cannot be read.
    """
    with split_part(path)[0].open("rb") as stream:
        return _of_part(sha256_of_stream(stream), path)


def _of_part(digest: str, path: Path) -> str:
    part = split_part(path)[1]
    return hashlib.sha256(f"{digest} {part}".encode()).hexdigest() if part else digest


def remake_command(paths: Sequence[Path | str], shape: tuple[int, ...] | None = None) -> str:
    """The `prep shards` command that makes new shards from shards or other programs' files.

    Args:
        paths: the files.
        shape: (H, W, C) of the new images, H = W; None keeps their shape.
    """
    words = ["collage-mpi", "prep", "shards", *map(str, paths)]
    if shape is None:
        return shlex.join([*words, "--out", "shards"])
    px, _, channels = map(str, shape)
    return shlex.join(
        [*words, "--size", px, "--channels", channels, "--out", f"shards-{px}x{px}x{channels}"]
    )


def hdf5_command(path: Path, images: str, labels: str | None, *flags: str) -> str:
    """The `prep hdf5` command that makes shards of two datasets, in backquotes."""
    words = ["collage-mpi", "prep", "hdf5", str(split_part(path)[0]), "--images", images]
    words += ["--labels", labels] if labels else []
    return f"`{shlex.join([*words, *flags, '--out', 'shards'])}`"


def publish(temporary: Path, path: Path) -> str:
    """Rename a complete, synced file into place and write its SHA-256 beside it. Returns the
    digest.

    Raises:
        OSError: the folder cannot be written.
    """
    fingerprint = sha256_of(temporary)
    beside = sidecar_path(path)
    beside.unlink(missing_ok=True)  # a kill must not leave the new shard with an older digest
    os.replace(temporary, path)
    write_atomic(beside, (sidecar_line(path, fingerprint),))  # syncs the folder for both
    return fingerprint


SHOWN = 5  # repeated names that the message lists


def read_class_names(path: Path) -> tuple[str, ...]:
    """The class names in a file: one a line, class 0 first. Empty lines are skipped.

    Raises:
        EnvironmentFault: the file cannot be read.
        UsageError: the file has no name, or repeated names cannot be made distinct.
    """
    with reading(path, also=UnicodeDecodeError):
        lines = path.read_text(encoding="utf-8").splitlines()
    return told_apart([line.strip() for line in lines if line.strip()])


def told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """The names, made distinct: a name that repeats gets its class number appended, and the user is
    told.

    Raises:
        UsageError: there is no name, a name is empty, or a changed name equals another.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        places[name].append(number)
    if not names or "" in places:
        where = f"class {places[''][0]} has none" if names else "there are none"
        raise UsageError(f"class names must be one or more, and none may be empty: {where}")
    doubles = {name: numbers for name, numbers in places.items() if len(numbers) > 1}
    if not doubles:
        return tuple(names)
    made = tuple(f"{n} ({i})" if n in doubles else n for i, n in enumerate(names))
    listed = _listed(doubles)
    if len(set(made)) < len(made):
        raise UsageError(f"class names are in the list more than once: {listed}; rename them")
    tell(f"note: a class name that is in the list more than once gets its class number: {listed}")
    return made


def _listed(doubles: dict[str, list[int]]) -> str:
    """The first few repeated names, such as `"crane" (134, 517)`."""
    shown = [f'"{name}" ({", ".join(map(str, doubles[name][:SHOWN]))})' for name in doubles]
    more = len(shown) - SHOWN
    return ", ".join(shown[:SHOWN]) + (f" and {more} more" if more > 0 else "")

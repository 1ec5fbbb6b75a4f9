"""The format of a shard: names, version, checksums, chunk sizes, class names, and the description
of a shard.

Class names in shards and weights must be unique; repeated names, as in ImageNet's list, get their
class number appended.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from isal.isal_zlib import crc32

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.shards.members import MemberIndex
from collage_mpi.shards.pictures import PictureFit
from collage_mpi.shards.remote import Stamp, path_of, stat_of
from collage_mpi.system.files import sha256_of_stream, write_atomic
from collage_mpi.system.tell import tell

FORMAT = "collage-mpi shard"
VERSION = 1
CHANNELS = (1, 3)  # of pictures
DTYPES = ("uint8", "uint16", "int16", "float16", "float32")  # of items

CHUNK_BYTES = 256 * 1024
"""A chunk holds about this much: 334 images of 28 x 28, one of 224 x 224 x 3.

Measured (analysis/reports/shards.md): one image a chunk reads 28 px images in order 7 x slower
than this; beyond it nothing is gained, and a bad chunk takes more images with it.
"""

HASH_LIMIT_BYTES = 256 << 20
"""Sources up to this size are hashed whole at first open (0.2 s); larger shards are
trusted to the `.sha256` beside them there, and to the checksum of each row later."""
PART_MARK = "::"  # FILE::PART is one group or dataset of another program's file


@dataclass(frozen=True)
class ShardInfo:
    """One shard, as its file describes itself.

    Attributes:
        path: the file; for one group of another program's file, `FILE::PART`.
        count: images in it, at least 1.
        shape: of one item, such as (H, W, C) of a picture or (D, H, W, C) of a volume.
        dtype: of its values, one of DTYPES.
        class_names: the name of label 0, 1, ...; None if the shard has none.
        has_labels: whether every image has a label.
        source: where the images come from, in words.
        fingerprint: SHA-256 of the file, 64 hex digits.
        cell_sizes: sizes in pixels of the cells stored beside the images (see cells.py).
        stamp: what the file system said about the file when it was checked; None if unknown.
        storage: the `name` of its `Source`: "images" (pixels), "encoded" (JPEG, PNG and so on,
            decoded when read), "foreign" (another program's HDF5 file, without checksums),
            "folder" and others.
        fit: of encoded images, how pictures become (height, width, channels); see
            `pictures.PictureFit`.
        layout: of foreign files, where images and labels are; see `foreign.ArrayLayout`.
        index: file that lists the members of the source; None if there is none.
        members: the members, in the process that has listed them. They are not sent.
        no_pictures: of items that are no pictures, why, and what makes pictures of them.
    """

    path: Path
    count: int
    shape: tuple[int, ...]
    class_names: tuple[str, ...] | None
    has_labels: bool
    source: str
    fingerprint: str
    cell_sizes: tuple[int, ...] = ()
    stamp: Stamp | None = field(default=None, compare=False)
    storage: str = "images"
    fit: str | None = None
    layout: dict[str, Any] | None = field(default=None, hash=False)
    index: str | None = field(default=None, compare=False)
    members: MemberIndex | None = field(default=None, compare=False, repr=False)
    dtype: str = "uint8"
    no_pictures: str = field(default="", compare=False)

    @property
    def is_picture(self) -> bool:
        """Whether its items are (H, W, C) uint8 with the channels of a picture."""
        return self.dtype == "uint8" and len(self.shape) == 3 and self.shape[2] in CHANNELS

    def fitted(self, fit: PictureFit) -> ShardInfo:
        """The same pictures, read as images of another size."""
        return replace(self, shape=fit.shape, fit=fit.text())

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values; `from_json` is its inverse."""
        record = dict(self.__dict__)
        del record["members"]
        record["path"] = str(self.path)
        record["class_names"] = None if self.class_names is None else list(self.class_names)
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> ShardInfo:
        """Rebuild what `to_json` wrote."""
        pairs = {**record, "path": path_of(record["path"])}.items()
        found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in pairs}
        return cls(**found)


@dataclass(frozen=True)
class BadShard:
    """A shard of the input that cannot be read; `reason` names the file."""

    path: Path
    reason: str


class ShardFault(EnvironmentFault):
    """A shard that was sound when the job began can no longer be read, or has changed."""

    def __init__(self, shard: int, message: str) -> None:
        """`shard` is its number in the `ShardSet`."""
        super().__init__(message)
        self.shard = shard


def split_part(path: Path) -> tuple[Path, str]:
    """`FILE::PART` as the file and its part; the part is "" if none is given."""
    file, mark, part = str(path).partition(PART_MARK)
    return (path_of(file), part) if mark else (path, "")


def stamp_of(path: Path) -> Stamp:
    """A stamp that changes when the file is written to or replaced. Raises OSError."""
    return stat_of(split_part(path)[0])


def chunk_rows(row_bytes: int, count: int | None = None) -> int:
    """Images that a chunk should hold, at least 1.

    Args:
        row_bytes: bytes of one image.
        count: images of the shard, if known. The chunks are then evened out, so that the last
            one is not mostly padding.
    """
    rows = max(1, CHUNK_BYTES // row_bytes)
    chunks = -(-count // rows) if count else 0
    return -(-count // chunks) if count else rows


def row_crc32(pixels: bytes | memoryview, label: int | None) -> int:
    """CRC-32 of one row: its pixels, then its label as 8 little-endian bytes if it has one.

    The values are zlib's, computed by ISA-L: 4 us for a row of 224 x 224 x 3, zlib takes 55.
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
    """Names of classes. Raises DataFault if there are none, equal ones, or an empty one."""
    if len(names) == 0 or len(set(names)) != len(names) or not all(names):
        raise DataFault("class names must be one or more, each different and not empty")
    return tuple(names)


def label_problem(labels: np.ndarray, class_names: tuple[str, ...] | None) -> str | None:
    """What is wrong with the range of `labels`, (n,) int64; None if they are good."""
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
    """The line that `sha256sum -c` reads, for any bytes in the name."""
    name = os.fsencode(path.name)
    plain = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    mark = b"" if plain == name else b"\\"  # says that the name is escaped
    return mark + digest.encode() + b"  " + plain + b"\n"


def read_sidecar(path: Path) -> str | None:
    """The digest recorded beside a shard; None if there is no such file.

    Raises:
        DataFault: the file beside the shard is not a SHA-256 line.
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
    """SHA-256 of a file's bytes as 64 hex digits. The digest of a part differs from its file's.

    Raises OSError.
    """
    with split_part(path)[0].open("rb") as stream:
        return _of_part(sha256_of_stream(stream), path)


def _of_part(digest: str, path: Path) -> str:
    part = split_part(path)[1]
    return hashlib.sha256(f"{digest} {part}".encode()).hexdigest() if part else digest


def remake_command(paths: Sequence[Path | str], shape: tuple[int, ...] | None = None) -> str:
    """The command that makes shards of these shards, or of other programs' files.

    Args:
        shape: (H, W, C) that the new images must have, H = W; None keeps their shape.
    """
    words = ["collage-mpi", "prep", "shards", *map(str, paths)]
    if shape is None:
        return shlex.join([*words, "--out", "shards"])
    px, _, channels = map(str, shape)
    return shlex.join(
        [*words, "--size", px, "--channels", channels, "--out", f"shards-{px}x{px}x{channels}"]
    )


def cells_name(px: int) -> str:
    """The name of the dataset with cells of `px` pixels; see cells.py."""
    return f"cells_{px}"


def publish(temporary: Path, path: Path) -> str:
    """Rename a complete, synced file into place and write its SHA-256 beside it; returns the
    digest.

    Raises:
        OSError: the folder cannot be written.
    """
    fingerprint = sha256_of(temporary)
    beside = sidecar_path(path)
    beside.unlink(missing_ok=True)  # an older shard's: none is better than a wrong one
    os.replace(temporary, path)
    write_atomic(beside, (sidecar_line(path, fingerprint),))  # syncs the folder for both
    return fingerprint


SHOWN = 5  # doubles that are named in the message


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names in a file, one a line, the name of class 0 first. Empty lines are skipped.

    Raises:
        EnvironmentFault: the file cannot be read.
        UsageError: the file holds no name.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFault(f"{path}: cannot be read: {error}") from error
    return told_apart([line.strip() for line in lines if line.strip()])


def told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """The names; a name that occurs more than once gets its class number appended.

    The user is told which names were changed.

    Raises:
        UsageError: there is no name, an empty one, or a changed name equals another one.
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

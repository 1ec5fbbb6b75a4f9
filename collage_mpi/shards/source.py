"""The interface of all sources of images (HDF5 shards, folders, tar files and others), and base
classes for sources of encoded pictures.
"""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.shards.members import Listing, Member, MemberIndex, read_member
from collage_mpi.shards.pictures import (
    DEFAULT_PX,
    PictureFit,
    UnreadablePicture,
    parse_fit,
    picture_pixels,
)
from collage_mpi.shards.remote import url_of
from collage_mpi.shards.schema import (
    HASH_LIMIT_BYTES,
    ShardInfo,
    read_sidecar,
    row_crc32,
    sha256_of,
    split_part,
    stamp_of,
)
from collage_mpi.system.files import reading
from collage_mpi.system.tell import tell

MOST_DECODERS = 16  # threads; some 5 % of the time of a picture holds the interpreter's lock


DEFAULT_FIT = PictureFit(DEFAULT_PX)


@dataclass(frozen=True)
class ReadAs:
    """How to read a source whose pictures have any size, or whose classes have no numbers.

    Attributes:
        fit: how pictures are resized.
        class_names: the classes in order, if the user or a network gives them.
        labels: whether to use the labels of the source.
        pictures: whether to refuse items that are not pictures.
    """

    fit: PictureFit = DEFAULT_FIT
    class_names: tuple[str, ...] | None = None
    labels: bool = True
    pictures: bool = True


PLAIN = ReadAs()
ANY_ITEMS = ReadAs(pictures=False)


@dataclass
class ReadMeter:
    """What reading has taken so far: time to read files, and to decode pictures, in ns."""

    reading_ns: int = 0
    decoding_ns: int = 0


class RowColumns(ABC):
    """What a source says of its rows besides the pictures, such as a caption, as Arrow holds it.

    Attributes:
        schema: pyarrow.Schema of the columns, which have different names and are not nested.
    """

    schema: Any

    @abstractmethod
    def take(self, rows: np.ndarray, names: Sequence[str]) -> Any:
        """Some columns of some rows, as a pyarrow.Table.

        Args:
            rows: (n,) int64, ascending. It is quick to ask for later rows next.
            names: of columns of `schema`.

        Raises:
            DataFault, EnvironmentFault: the columns cannot be read.
        """


Checks = Literal["rows", "file", ""]


class Source(ABC):
    """An open source. Its images have the rows 0 to count - 1.

    Another package can add a source: a subclass of this class or of `PictureSource`, named by an
    entry point of the group `collage_mpi.sources`. `--input NAME:PATH` then reads PATH with it.

    Attributes:
        name: of the kind of source; it is the `storage` of descriptions.
        suffixes: endings of the files that `takes` accepts.
        remote: whether the source can be a URL.
        checks: what shows that a read has got the bytes that were described. "rows": each row has
            a checksum. "file": the reader looks at the file after each read. "": nothing, so a
            change is looked for at the end of the job.
        path, info: path and description of the source.
        labels: (n,) int64, or None.
        row_faults: row -> why it cannot be used, for rows read so far.
        decoders: number of pictures that may be decoded at a time.
        meter: of the time to decode pictures.
    """

    name: ClassVar[str] = ""
    suffixes: ClassVar[tuple[str, ...]] = ()
    remote: ClassVar[bool] = False
    checks: ClassVar[Checks] = ""
    decoders: int = 1

    def __init__(self, info: ShardInfo) -> None:
        """Open a source, given its description. Raises EnvironmentFault, DataFault."""
        self.path, self.info = info.path, info
        self.row_faults: dict[int, str] = {}
        self.labels: np.ndarray | None = None
        self.meter = ReadMeter()

    @classmethod
    def takes(cls, path: Path) -> bool:
        """Whether a path is a source of this kind, by its name or its content."""
        return bool(cls.suffixes) and split_part(path)[0].name.lower().endswith(cls.suffixes)

    @classmethod
    @abstractmethod
    def describe(cls, path: Path, read_as: ReadAs) -> ShardInfo:
        """Check and describe a source: count, shape, classes, fingerprint.

        Raises:
            DataFault: the source is damaged, or has no image.
            EnvironmentFault: the source cannot be read.
        """

    @classmethod
    def fingerprint(cls, path: Path) -> str:
        """64 hex digits that depend only on the content, not on where it is. Raises OSError,
        DataFault.
        """
        return sha256_of(path)

    @abstractmethod
    def read_into(self, out: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        """Read rows into `out[places]`. If a row cannot be used, `row_faults` gets the reason.

        Args:
            out: (n, ...) items.
            places: (m,) int64, indices into `out`.
            rows: (m,) int64, ascending; repeats are allowed.

        Raises:
            EnvironmentFault: the source, or one of the rows, can no longer be read.
        """

    def sound(self, pixels: np.ndarray, places: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(m,) bool: whether `pixels[places]`, as read from `rows`, can be used."""
        return np.array([row not in self.row_faults for row in rows.tolist()], dtype=bool)

    @classmethod
    def ids(cls, info: ShardInfo) -> Sequence[str] | None:
        """The ids of the images, in the order of the rows; None if the source has none. A source of
        many rows should return `Texts`.

        Raises:
            DataFault, EnvironmentFault: the ids cannot be read.
        """
        return None

    @classmethod
    def columns(cls, info: ShardInfo) -> RowColumns | None:
        """The further columns of the rows, which travel to the output; None if there are none.

        Raises:
            DataFault, EnvironmentFault: the source cannot be read.
        """
        return None

    def close(self) -> None:  # noqa: B027 - many sources have nothing open
        """Close the files of the source."""


def slices_of(rows: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yields (start, stop, first row) for each run of consecutive numbers in ascending `rows`."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for start, stop in pairwise([0, *breaks.tolist(), len(rows)]):
        yield start, stop, int(rows[start])


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that decode pictures, in parallel because Pillow releases the GIL.

    One thread decodes about 500 photographs a second (analysis/reports/benchmarks.md), fewer than
    rank 0 can send.
    """
    return ThreadPoolExecutor(threads, "decode")


class PictureSource(Source):
    """A source of encoded pictures (JPEG, PNG and others), which are decoded when they are read."""

    def __init__(self, info: ShardInfo) -> None:
        super().__init__(info)
        self._fit = parse_fit(info.fit or "")

    @abstractmethod
    def files(self, rows: np.ndarray) -> list[bytes | None]:
        """The bytes of ascending `rows`; None for a row that cannot be read, whose reason must be
        put into `row_faults`. Raises EnvironmentFault if the source can no longer be read.
        """

    def read_into(self, out: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        """Read and decode rows; see `Source.read_into`.

        A decoder on a GPU would get all files of a call here. `--decoder gpu` waits for it.
        """
        files = self.files(rows)
        start_ns = time.monotonic_ns()
        spots = [out[place] for place in places.tolist()]
        threads = self.decoders
        each = map if threads == 1 else _pool(threads).map  # a pool takes 5 % of the time to decode
        deque(each(self._decode, spots, rows.tolist(), files), maxlen=0)  # raises a thread's error
        self.meter.decoding_ns += time.monotonic_ns() - start_ns

    def _decode(self, out: np.ndarray, row: int, data: bytes | None) -> None:
        if data is None:
            return
        try:
            out[...] = picture_pixels(data, self._fit)
        except UnreadablePicture as error:
            self.row_faults[row] = f"cannot be decoded: {error}"


def picture_info(
    source: type[Source], path: Path, read_as: ReadAs, count: int, fingerprint: str
) -> ShardInfo:
    """The description of a source of encoded pictures, without classes and labels."""
    return ShardInfo(
        path=path,
        count=count,
        shape=read_as.fit.shape,
        class_names=None,
        has_labels=False,
        source=split_part(path)[0].name,
        fingerprint=fingerprint,
        stamp=stamp_of(path),
        storage=source.name,
        fit=read_as.fit.text(),
    )


def fingerprint_of(
    index: MemberIndex, members: Iterable[Member], known: str | None = None
) -> tuple[str, np.ndarray | None]:
    """A SHA-256 of the names, offsets and sizes of members, and of their bytes if they are at most
    HASH_LIMIT_BYTES. Bytes at URLs are not read.

    Args:
        index: the list of all members.
        members: the same members, to read their bytes.
        known: digest of the bytes, if known. Then they are not part of the SHA-256.

    Returns:
        The SHA-256 as 64 hex digits; and `MemberIndex.crc32`.
    """
    found = hashlib.sha256(f"{index.digest()} {known or ''}".encode())
    if int(index.sizes.sum()) > HASH_LIMIT_BYTES:
        return found.hexdigest(), None
    crcs = np.zeros(len(index), np.uint32)
    for row, member in enumerate(members):
        with suppress(UnreadablePicture):
            data = b"" if url_of(member.path) else read_member(member)
            crcs[row] = row_crc32(data, None)
            found.update(b"" if known else data)
    return found.hexdigest(), crcs


class MemberSource(PictureSource):
    """A source with a list of pictures, which are files or parts of files."""

    def __init__(self, info: ShardInfo) -> None:
        super().__init__(info)
        self._members = self._known(info)
        self.labels = self._members.labels if info.has_labels else None

    @classmethod
    @abstractmethod
    def listed(cls, path: Path, read_as: ReadAs) -> Listing:
        """List all pictures, in an order that depends only on their names and places.

        Raises:
            DataFault, EnvironmentFault, OSError: the source is damaged, or cannot be read.
        """

    @classmethod
    @abstractmethod
    def _file(cls, path: Path, name: str) -> str:
        """The file that holds the picture with this name."""

    @classmethod
    def describe(cls, path: Path, read_as: ReadAs) -> ShardInfo:
        with reading(path):
            listing = cls.listed(path, read_as)
            index = listing.index()
            fingerprint, crc32 = cls._print(path, index)
            about = picture_info(cls, path, read_as, len(index), fingerprint)
        for warning in listing.warnings:
            tell(f"warning: {warning}")
        labels = index.labels is not None
        members = replace(index, crc32=crc32)
        return replace(about, class_names=listing.class_names, has_labels=labels, members=members)

    @classmethod
    def fingerprint(cls, path: Path) -> str:
        return cls._print(path, cls.listed(path, ReadAs(labels=False)).index())[0]

    @classmethod
    def _print(cls, path: Path, index: MemberIndex) -> tuple[str, np.ndarray | None]:
        """See `fingerprint_of`."""
        known = read_sidecar(path) if os.path.isfile(path) else None
        members = (cls._member(path, index, row) for row in range(len(index)))
        return fingerprint_of(index, members, known)

    @classmethod
    def ids(cls, info: ShardInfo) -> Sequence[str] | None:
        return cls._known(info).texts()

    @classmethod
    def _known(cls, info: ShardInfo) -> MemberIndex:
        """The list of members: from this process, from the file beside the run, or made again."""
        if info.members is not None:
            return info.members
        index = MemberIndex.load(Path(info.index)) if info.index else None
        if index is not None and len(index) == info.count:
            return index
        with reading(info.path):
            index = cls.listed(info.path, ReadAs(labels=False)).index()
            if cls._print(info.path, index)[0] != info.fingerprint:
                raise DataFault(f"{info.path}: has changed since it was listed. Start again.")
        return index

    @classmethod
    def _member(cls, path: Path, index: MemberIndex, row: int) -> Member:
        name, fault = index.name(row), index.faults.get(row)
        size, offset = int(index.sizes[row]), int(index.offsets[row])
        return Member(name, cls._file(path, name), size, offset, fault=fault)

    def files(self, rows: np.ndarray) -> list[bytes | None]:
        found: list[bytes | None] = []
        for row in rows.tolist():
            try:
                found.append(read_member(self._member(self.path, self._members, row)))
            except UnreadablePicture as fault:
                there = url_of(self.path) or os.path.exists(self.path)
                if not there:  # the whole source is gone, not one picture
                    raise EnvironmentFault(f"{self.path}: can no longer be read") from fault
                self.row_faults[row] = str(fault)
                found.append(None)
        return found

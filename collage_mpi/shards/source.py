"""What every source of images offers: HDF5 shards, folders, tar files and others. Rank 0 and
workers read a job's input only through this class.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

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
    sha256_of,
    split_part,
    stamp_of,
)
from collage_mpi.system.environment import allowed_cores
from collage_mpi.system.files import reading
from collage_mpi.system.tell import tell

MOST_DECODERS = 4  # threads; beside them are the loop, the writer and other ranks


DEFAULT_FIT = PictureFit(DEFAULT_PX)


@dataclass(frozen=True)
class ReadAs:
    """How sources without a size, or without numbered classes, are to be read.

    Attributes:
        fit: how pictures of any size become images.
        class_names: the classes in order, if the user or a network names them.
        labels: False takes no label from the source.
        pictures: refuse items that are no pictures.
    """

    fit: PictureFit = DEFAULT_FIT
    class_names: tuple[str, ...] | None = None
    labels: bool = True
    pictures: bool = True


PLAIN = ReadAs()
ANY_ITEMS = ReadAs(pictures=False)


class Source(ABC):
    """One source, open: its images by row, 0 to count - 1.

    A class of another package inherits this one, or `PictureSource`, and is named by an entry point
    of the group `collage_mpi.sources`. `--input NAME:PATH` then reads PATH with it.

    Attributes:
        name: of the sort of source; a description has it as `storage`.
        suffixes: endings of files that are a source each, for a folder that holds such files.
        labels: (n,) int64, or None.
        row_faults: row -> why it cannot be used, for rows read so far.
        remote: whether it reads URLs.
        decoders: cores that may decode pictures, at most MOST_DECODERS are used; None for all.
    """

    name: ClassVar[str] = ""
    suffixes: ClassVar[tuple[str, ...]] = ()
    remote: ClassVar[bool] = False
    decoders: int | None = None

    def __init__(self, info: ShardInfo) -> None:
        """Open a source that `describe` has described. Raises EnvironmentFault, DataFault."""
        self.path, self.info = info.path, info
        self.row_faults: dict[int, str] = {}
        self.labels: np.ndarray | None = None

    @classmethod
    def takes(cls, path: Path) -> bool:
        """Whether a path is such a source, by its name or by what lies there."""
        return bool(cls.suffixes) and split_part(path)[0].name.lower().endswith(cls.suffixes)

    @classmethod
    @abstractmethod
    def describe(cls, path: Path, read_as: ReadAs) -> ShardInfo:
        """Count, shape, classes and fingerprint of the source.

        Raises:
            DataFault: it is damaged, or has no image.
            EnvironmentFault: it cannot be read.
        """

    @classmethod
    def fingerprint(cls, path: Path) -> str:
        """64 hex digits that are the same for the same content, wherever it lies. Raises OSError,
        DataFault.
        """
        return sha256_of(path)

    @abstractmethod
    def read_into(self, out: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        """Read ascending `rows`, repeats allowed, to `out[places]`, (n, ...) items.

        Why a single row cannot be used is noted in `row_faults`.

        Raises:
            EnvironmentFault: the source, or one of the rows, can no longer be read.
        """

    def sound(self, pixels: np.ndarray, places: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(m,) bool: whether `pixels[places]`, as read from `rows`, can be used."""
        return np.array([row not in self.row_faults for row in rows.tolist()], dtype=bool)

    @classmethod
    def ids(cls, info: ShardInfo) -> list[str] | None:
        """The names of the n images of a source in the order of the rows, if they have any.

        Raises:
            DataFault, EnvironmentFault: they cannot be read.
        """
        return None

    def close(self) -> None:  # noqa: B027 - many have nothing open
        """Close its files."""


def slices_of(rows: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """(start, stop, first row) of each stretch of neighbours in ascending `rows`."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    for start, stop in pairwise([0, *breaks.tolist(), len(rows)]):
        yield start, stop, int(rows[start])


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that decode pictures. They run in parallel, because Pillow releases the interpreter
    lock.

    One thread decodes about 500 photographs a second (analysis/reports/benchmarks.md), fewer
    than rank 0 can feed.
    """
    return ThreadPoolExecutor(threads, "decode")


class PictureSource(Source):
    """A source of picture files (JPEG, PNG and others), which are decoded as they are read."""

    def __init__(self, info: ShardInfo) -> None:
        super().__init__(info)
        self._fit = parse_fit(info.fit or "")

    @abstractmethod
    def _files(self, rows: np.ndarray) -> list[bytes | None]:
        """The bytes of ascending `rows`; None for a row that cannot be read, once the reason is in
        `row_faults`. Raises EnvironmentFault where the source can no longer be read.
        """

    def _is_sound(self, row: int, data: bytes) -> bool:
        """Whether the bytes are those that were written; if not, `row_faults` says so."""
        return True

    def read_into(self, out: np.ndarray, places: np.ndarray, rows: np.ndarray) -> None:
        """Read and decode ascending `rows` to `out[places]`; bad rows are noted in `row_faults`."""
        files = self._files(rows)
        spots = [out[place] for place in places.tolist()]
        threads = min(MOST_DECODERS, self.decoders or allowed_cores())
        each = map if threads == 1 else _pool(threads).map  # handing over takes 5 % of decoding
        deque(each(self._decode, spots, rows.tolist(), files), maxlen=0)  # raises what one raised

    def files(self, rows: np.ndarray) -> list[bytes | None]:
        """The files of ascending `rows`; None for a bad row, which is noted in `row_faults`."""
        return [
            data if data is not None and self._is_sound(row, data) else None
            for row, data in zip(rows.tolist(), self._files(rows), strict=True)
        ]

    def _decode(self, out: np.ndarray, row: int, data: bytes | None) -> None:
        if data is None or not self._is_sound(row, data):
            return
        try:
            out[...] = picture_pixels(data, self._fit)
        except UnreadablePicture as error:
            self.row_faults[row] = f"cannot be decoded: {error}"


def picture_info(
    source: type[Source], path: Path, read_as: ReadAs, count: int, fingerprint: str
) -> ShardInfo:
    """The description of a source of pictures, without classes and labels."""
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


def fingerprint_of(index: MemberIndex, members: Iterable[Member], known: str | None = None) -> str:
    """64 hex digits for names, places and sizes; for the bytes too, if there are few and none of
    them comes from a URL.

    Args:
        index: of all members.
        members: the same, to be read.
        known: a digest of the bytes, if there is one.
    """
    found = hashlib.sha256(f"{index.digest()} {known or ''}".encode())
    if not known and int(index.sizes.sum()) <= HASH_LIMIT_BYTES:
        for member in members:
            with suppress(UnreadablePicture):
                found.update(b"" if url_of(member.path) else read_member(member))
    return found.hexdigest()


class MemberSource(PictureSource):
    """A source of which a list says where each picture lies: files, or parts of files."""

    def __init__(self, info: ShardInfo) -> None:
        super().__init__(info)
        self._members = self._known(info)
        self.labels = self._members.labels if info.has_labels else None

    @classmethod
    @abstractmethod
    def listed(cls, path: Path, read_as: ReadAs) -> Listing:
        """All pictures, in an order that depends on nothing but their names and places.

        Raises:
            DataFault, EnvironmentFault, OSError: the source is damaged, or cannot be read.
        """

    @classmethod
    @abstractmethod
    def _file(cls, path: Path, name: str) -> str:
        """The file in which the picture of that name lies."""

    @classmethod
    def describe(cls, path: Path, read_as: ReadAs) -> ShardInfo:
        with reading(path):
            listing = cls.listed(path, read_as)
            index = listing.index()
            about = picture_info(cls, path, read_as, len(index), cls._print(path, index))
        for warning in listing.warnings:
            tell(f"warning: {warning}")
        labels = index.labels is not None
        return replace(about, class_names=listing.class_names, has_labels=labels, members=index)

    @classmethod
    def fingerprint(cls, path: Path) -> str:
        return cls._print(path, cls.listed(path, ReadAs(labels=False)).index())

    @classmethod
    def _print(cls, path: Path, index: MemberIndex) -> str:
        known = read_sidecar(path) if os.path.isfile(path) else None
        members = (cls._member(path, index, row) for row in range(len(index)))
        return fingerprint_of(index, members, known)

    @classmethod
    def ids(cls, info: ShardInfo) -> list[str] | None:
        return cls._known(info).texts()

    @classmethod
    def _known(cls, info: ShardInfo) -> MemberIndex:
        """The list as it was made, or as it lies beside the run, or made anew."""
        if info.members is not None:
            return info.members
        index = MemberIndex.load(Path(info.index)) if info.index else None
        if index is not None and len(index) == info.count:
            return index
        with reading(info.path):
            index = cls.listed(info.path, ReadAs(labels=False)).index()
            if cls._print(info.path, index) != info.fingerprint:
                raise DataFault(f"{info.path}: has changed since it was listed. Start again.")
        return index

    @classmethod
    def _member(cls, path: Path, index: MemberIndex, row: int) -> Member:
        name, fault = index.name(row), index.faults.get(row)
        size, offset = int(index.sizes[row]), int(index.offsets[row])
        return Member(name, cls._file(path, name), size, offset, fault=fault)

    def _files(self, rows: np.ndarray) -> list[bytes | None]:
        found: list[bytes | None] = []
        for row in rows.tolist():
            try:
                found.append(read_member(self._member(self.path, self._members, row)))
            except UnreadablePicture as fault:
                there = url_of(self.path) or os.path.exists(self.path)
                if not there:  # its file system is gone, not one picture
                    raise EnvironmentFault(f"{self.path}: can no longer be read") from fault
                self.row_faults[row] = str(fault)
                found.append(None)
        return found

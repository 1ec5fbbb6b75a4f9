"""The interface of all sources of images (HDF5 shards, folders, tar files and others), and base
classes for sources of encoded pictures.
"""

from __future__ import annotations

import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.shards.column import Column, Values, pieces
from collage_mpi.shards.members import (
    DIGEST_BYTES,
    Listing,
    Member,
    MemberIndex,
    Stream,
    read_member,
)
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
from collage_mpi.shards.update import keys_of, pair
from collage_mpi.system.files import reading
from collage_mpi.system.tell import tell

TIMES_LOOKED_AT = 16  # files of a list
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
        content: read all pictures of a list of members, to know them by their bytes.
        in_time: is called for each picture that is listed, and raises if it takes too long.
        before: path of a source -> its members when they were listed before, whose bytes need not
            be read again if neither size nor time has changed.
        trust_dirs: take size and time from there too, where a folder has its time of before.
    """

    fit: PictureFit = DEFAULT_FIT
    class_names: tuple[str, ...] | None = None
    labels: bool = True
    pictures: bool = True
    content: bool = False
    in_time: Callable[[], object] = field(default=int, compare=False)
    before: Mapping[str, MemberIndex] = field(default_factory=dict, compare=False)
    trust_dirs: bool = field(default=False, compare=False)


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
        schema: pyarrow.Schema of the columns, which have different names.
        left_out: names of columns that do not travel to the output.
        unsaid: of the rows that were taken last, how many the source says nothing of any more,
            because it has changed since the images were listed.
    """

    schema: Any
    left_out: Sequence[str] = ()
    unsaid: int = 0

    @abstractmethod
    def take(self, rows: np.ndarray, names: Sequence[str]) -> Any:
        """Some columns of some rows, as a pyarrow.Table.

        Args:
            rows: (n,) int64, ascending. It is quick to ask for later rows next.
            names: of columns of `schema`.

        Raises:
            DataFault, EnvironmentFault: the columns cannot be read.
        """


Checks = Literal["rows", "file", "members", ""]


class Source(ABC):
    """An open source. Its images have the rows 0 to count - 1.

    Another package can add a source: a subclass of this class or of `PictureSource`, named by an
    entry point of the group `collage_mpi.sources`. `--input NAME:PATH` then reads PATH with it.

    Attributes:
        name: of the kind of source; it is the `storage` of descriptions.
        suffixes: endings of the files that `takes` accepts.
        remote: whether the source can be a URL.
        checks: what shows that a read has got the bytes that were described. "rows": each row has
            a checksum. "file": the reader looks at the file after each read. "members": each
            picture is a file, whose size and time are looked at after it is read. "": nothing, so
            a change is looked for at the end of the job.
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
        self.labels: Values | None = None
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

        A decoder on a GPU would get all files of a call here.
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


def digests_of(
    index: MemberIndex,
    member: Callable[[int], Member],
    before: MemberIndex | None = None,
    *,
    content: bool = False,
) -> Column | None:
    """`MemberIndex.digests`: of all members, or of none that is new if these are larger than
    HASH_LIMIT_BYTES and `content` is not asked for. Bytes at URLs are not read.

    Args:
        index: the list of all members.
        member: returns the member at a row.
        before: an earlier list, whose digests are taken for members of the same size and time.
    """
    same = np.full(len(index), -1, np.int64)  # row in the earlier list
    if before and before.digests is not None and before.times is not None:
        left, live = np.ones(len(before), bool), np.ones(len(index), bool)
        pair(same, left, keys_of(index), keys_of(before), live)
        first = 0
        for now in index.blocks():
            own = same[first : first + len(now)]  # a view
            was = before.take(own.clip(0))
            assert was.times is not None
            assert was.digests is not None
            assert now.times is not None
            known = (was.sizes[:] == now.sizes[:]) & (was.times[:] == now.times[:])
            own[~(known & (was.times[:] > 0) & was.digests[:].any(axis=1))] = -1
            first += len(now)
    first = unread = 0
    for some in pieces(index.sizes):
        unread += int(some[same[first : first + len(some)] < 0].sum())
        first += len(some)
    reads, found = content or unread <= HASH_LIMIT_BYTES, Column("u1", (DIGEST_BYTES,))
    if not reads and (same < 0).all():
        return None
    there = False
    for rows in pieces(np.arange(len(index))):
        own = same[rows]
        digests = np.zeros((len(rows), DIGEST_BYTES), np.uint8)
        if before and before.digests is not None and (own >= 0).any():
            digests[own >= 0] = before.digests[own[own >= 0]]
        for at in np.flatnonzero(own < 0).tolist() if reads else ():
            one = member(int(rows[at]))
            with suppress(UnreadablePicture):
                data = b"" if url_of(one.path) else read_member(one)
                if data:
                    digests[at] = _digest(data)
        there |= bool(digests.any())
        found.append(digests)
    return found if there else None


def _digest(data: bytes) -> np.ndarray:
    """(DIGEST_BYTES,) uint8, of the bytes of a picture."""
    return np.frombuffer(hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest(), np.uint8)


def fingerprint_of(index: MemberIndex, known: str | None = None) -> str:
    """A SHA-256, 64 hex digits, of the names, offsets and sizes of members, and of their digests if
    the members have at most HASH_LIMIT_BYTES.

    Args:
        index: the list of all members, with their digests.
        known: digest of the source, if known. Then those of its members are not used.
    """
    found = hashlib.sha256(f"{index.digest()} {known or ''}".encode())
    if index.nbytes <= HASH_LIMIT_BYTES and not known and index.digests is not None:
        for some in pieces(index.digests):
            found.update(some.tobytes())
    return found.hexdigest()


class MemberSource(PictureSource):
    """A source with a list of pictures, which are files or parts of files."""

    def __init__(self, info: ShardInfo) -> None:
        super().__init__(info)
        self._members = self._known(info)
        self.labels = self._members.labels if info.has_labels else None
        self._times = self._times_here() if self.checks == "members" else None

    @classmethod
    @abstractmethod
    def listed(cls, path: Path, read_as: ReadAs) -> Listing:
        """List all pictures, in an order that depends only on their names and places.

        Raises:
            DataFault, EnvironmentFault, OSError: the source is damaged, or cannot be read.
        """

    @classmethod
    def stream(cls, path: Path, read_as: ReadAs) -> Stream | None:
        """The pictures one by one, without labels, in an order that may depend on the disk; None if
        they have labels, or only `listed` finds them. Raises as `listed`, also while they are
        listed."""
        return None

    @classmethod
    @abstractmethod
    def _file(cls, path: Path, name: str) -> str:
        """The file that holds the picture with this name."""

    @classmethod
    def describe(cls, path: Path, read_as: ReadAs) -> ShardInfo:
        with reading(path):
            warnings, about = cls._described(path, read_as)
        for warning in warnings:
            tell(f"warning: {warning}")
        return about

    @classmethod
    def fingerprint(cls, path: Path) -> str:
        return cls._described(path, ReadAs(labels=False))[1].fingerprint

    @classmethod
    def _described(cls, path: Path, read_as: ReadAs) -> tuple[Sequence[str], ShardInfo]:
        """The description of a source, and what to warn of."""
        listed_ns = time.time_ns()
        listing = cls.listed(path, read_as)
        index, before = listing.index.listed_at(listed_ns), read_as.before.get(str(path))
        index = cls.with_digests(path, index, before, content=read_as.content)
        fingerprint = fingerprint_of(index, read_sidecar(path) if os.path.isfile(path) else None)
        read_as = replace(read_as, class_names=listing.class_names)
        return listing.warnings, cls.of_list(path, read_as, index, fingerprint)

    @classmethod
    def with_digests(
        cls, path: Path, index: MemberIndex, before: MemberIndex | None = None, *, content: bool
    ) -> MemberIndex:
        """A list with the digests of `digests_of`."""
        digests = digests_of(
            index, lambda row: cls._member(path, index, row), before, content=content
        )
        return replace(index, digests=digests)

    @classmethod
    def of_list(
        cls, path: Path, read_as: ReadAs, index: MemberIndex, fingerprint: str
    ) -> ShardInfo:
        """The description of a source, or of an extent of it, by its list."""
        about = picture_info(cls, path, read_as, len(index), fingerprint)
        return replace(
            about,
            class_names=read_as.class_names,
            has_labels=index.labels is not None,
            members=index,
        )

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
            about = cls._described(info.path, ReadAs(labels=False))[1]
        if about.fingerprint != info.fingerprint or about.members is None:
            raise DataFault(f"{info.path}: has changed since it was listed. Start again.")
        return about.members

    @classmethod
    def _member(cls, path: Path, index: MemberIndex, row: int, time_ns: int = 0) -> Member:
        """The member at a row. `time_ns`: the time that its file must have; 0: any."""
        return replace(index.member(row, cls._file(path, index.name(row))), time_ns=time_ns)

    def _times_here(self) -> Values | None:
        """The times that the files must have, (n,) int64 in ns, perhaps below 0; None if this host
        has other copies of the files, whose times differ."""
        times = self._members.times
        if times is None:
            return None
        for row in np.linspace(0, len(times) - 1, min(len(times), TIMES_LOOKED_AT)).astype(int):
            member = self._member(self.path, self._members, row)
            with suppress(OSError, ValueError):  # a name with a NUL is a ValueError
                if not url_of(member.path) and os.stat(member.path).st_mtime_ns == abs(times[row]):
                    return times
        return None

    def files(self, rows: np.ndarray) -> list[bytes | None]:
        found: list[bytes | None] = []
        some = self._members.take(rows)
        times = np.zeros(len(rows), np.int64) if self._times is None else abs(self._times[rows])
        for at, row in enumerate(rows.tolist()):
            try:
                data = read_member(self._member(self.path, some, at, int(times[at])))
                known = None if some.digests is None else some.digests[at]
                if known is not None and known.any() and (_digest(data) != known).any():
                    raise UnreadablePicture("it has changed since it was listed")
                found.append(data)
            except UnreadablePicture as fault:
                there = url_of(self.path) or os.path.exists(split_part(self.path)[0])
                if not there:  # the whole source is gone, not one picture
                    raise EnvironmentFault(f"{self.path}: can no longer be read") from fault
                self.row_faults[row] = str(fault)
                found.append(None)
        return found

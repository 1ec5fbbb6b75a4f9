"""The list of a source's members, one a row: their names, where their bytes are, and their labels.
Rank 0 makes the list once and saves it beside the run, so that workers need not make it again. Also
bounds on the memory that a byte of input may become, checked against the sizes that it declares.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy

from collage_mpi.errors import DataFault
from collage_mpi.shards.column import HELD_BYTES, ROWS_AT_ONCE, Column, Values, pieces, spans
from collage_mpi.shards.pictures import UnreadablePicture
from collage_mpi.shards.remote import read_range, url_of
from collage_mpi.system.files import UNREADABLE_OR_GONE, write_atomic
from collage_mpi.system.printable import storable

LARGEST_UNIT_BYTES = 1 << 29  # of what is decoded at once: a picture, a row group, a chunk
MOST_TIMES = 16  # larger units are taken if their bytes become at most this many times as many
MOST_ROWS = 1 << 31  # rank 0 holds some bytes an image
LARGEST_LIST_BYTES = 1 << 30
FRESH_NS = 2 * 10**9  # some file systems keep times to 1 or 2 s
DIGEST_BYTES = 16  # of a member's bytes, BLAKE2b
MAY_LACK = ("labels", "times", "digests", "gone")  # columns that a list may lack
UNDECLARED_BYTES = 64 << 20  # of a list at a URL whose server does not say its size


def check_unit(path: Path, what: str, nbytes: int, stored: int) -> None:
    """Check what is decoded at once.

    Args:
        path: the source, for the message.
        what: names the unit, such as "row group 3".
        nbytes: its declared size in memory.
        stored: its size in the file; 0 if it is not known.

    Raises:
        DataFault: the unit is too large.
    """
    if nbytes > LARGEST_UNIT_BYTES and nbytes > MOST_TIMES * stored:
        raise DataFault(
            f"{path}: {what} takes {nbytes:,} bytes of memory, from {stored:,} in the file. At "
            f"most {LARGEST_UNIT_BYTES:,} or {MOST_TIMES} times its bytes are read at once. Write "
            "it again in smaller pieces."
        )


def check_rows(path: Path, rows: int) -> None:
    """Raises DataFault if a source declares more images than a job can hold."""
    if rows > MOST_ROWS:
        raise DataFault(
            f"{path}: declares {rows:,} images; a source has at most {MOST_ROWS:,}. Split it."
        )


def list_bytes(declared: int) -> int:
    """The most bytes that are read of a list. `declared`: its size; 0 if its server does not say
    it."""
    return min(declared, LARGEST_LIST_BYTES) or UNDECLARED_BYTES


@dataclass(frozen=True)
class Member:
    """Where to read one picture, and its label.

    Attributes:
        id: its path relative to the given folder or file. It is only a name in the results, never a
            path to write to.
        path: the file that holds the picture, or its URL.
        nbytes: size of the picture.
        offset: where the picture starts in the file; 0 if it is a file of its own.
        label: class number, or None.
        fault: why the picture cannot be used; None if it can.
        time_ns: when its file was last changed, or a number that its server's ETag gives; 0 if that
            is not known.
    """

    id: str
    path: str
    nbytes: int
    offset: int = 0
    label: int | None = None
    fault: str | None = None
    time_ns: int = 0


def read_member(member: Member) -> bytes:
    """Read the bytes of a picture.

    Raises:
        UnreadablePicture: the member has a fault, cannot be read, or has another size or time than
            listed.
        EnvironmentFault: the server of a URL does not return the bytes.
    """
    if member.fault is not None:
        raise UnreadablePicture(member.fault)
    if not 0 < member.nbytes <= LARGEST_UNIT_BYTES:
        raise UnreadablePicture(f"{member.nbytes:,} bytes")
    url, more, time_ns = url_of(member.path), b"", member.time_ns
    try:
        if url:
            data = read_range(url, member.offset, member.nbytes)
        else:
            with open(member.path, "rb") as stream:
                stream.seek(member.offset)
                data = stream.read(member.nbytes)
                more = b"" if member.offset else stream.read(1)  # offset 0: a file of its own
                if member.time_ns:  # also if it changes meanwhile
                    time_ns = os.fstat(stream.fileno()).st_mtime_ns
    except OSError as error:
        raise UnreadablePicture(f"cannot be read: {error.strerror}") from error
    if len(data) < member.nbytes:
        raise UnreadablePicture(f"{len(data):,} of its {member.nbytes:,} bytes are there")
    if more:
        raise UnreadablePicture(f"it has grown: it had {member.nbytes:,} bytes when it was listed")
    if member.time_ns and time_ns != member.time_ns:
        raise UnreadablePicture("it has changed since it was listed")
    return data


class Texts(Sequence[str]):
    """Texts of rows, each made when it is asked for, because a list takes 100 bytes a row.

    Args:
        count: number of rows.
        read: returns the text of a row.
    """

    def __init__(self, count: int, read: Callable[[int], str]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self._read(each) for each in range(*row.indices(self._count))]
        return self._read(range(self._count)[row])


TYPES = {  # of the columns: dtype and shape of a value
    "names": ("|u1", ()),
    "ends": ("<i8", ()),
    "offsets": ("<i8", ()),
    "sizes": ("<i8", ()),
    "labels": ("<i8", ()),
    "times": ("<i8", ()),
    "digests": ("|u1", (DIGEST_BYTES,)),
    "gone": ("|b1", ()),
}


@dataclass(frozen=True, eq=False)
class MemberIndex:
    """The members of one source. The columns of a long list are on the disk, and are read some rows
    at a time (`blocks`, `take`).

    Attributes:
        names: all names, concatenated, encoded as in the file system, uint8.
        ends: (n,) int64, where each name ends in `names`.
        offsets, sizes: (n,) int64, bytes.
        labels: (n,) int64, or None.
        faults: row -> why the member cannot be used.
        times: (n,) int64, `Member.time_ns`, 0 if it is before 1970 or after 2262; below 0 if the
            picture may change without another time, because it was listed within FRESH_NS; None in
            a list of an earlier version.
        digests: (n, DIGEST_BYTES) uint8 of the bytes, zeros where they were not read; None if none
            were.
        gone: (n,) bool, the members that were there before; None if there are none.
        folders: path of each folder that was walked, relative to the first one -> its
            [st_ctime_ns, st_ino] before it was read. `save` and lists of some of the rows leave
            them out.
    """

    names: Values
    ends: Values
    offsets: Values
    sizes: Values
    labels: Values | None = None
    faults: Mapping[int, str] = field(default_factory=dict)
    times: Values | None = None
    digests: Values | None = None
    gone: Values | None = None
    folders: Mapping[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, members: Iterable[tuple[str, Member]]) -> MemberIndex:
        """Pack members one by one. If members have labels, those without one get label 0.

        Args:
            members: (the name by which the source finds the member again, the member).
        """
        members = iter(members)
        return cls.packed(map(_block, iter(lambda: [*islice(members, ROWS_AT_ONCE)], [])))

    @classmethod
    def packed(cls, blocks: Iterable[MemberIndex]) -> MemberIndex:
        """The members of several short lists, one list after the other. Where a list lacks a column
        that another list has, its values are zeros."""
        columns = {name: Column(*TYPES[name]) for name in TYPES if name not in MAY_LACK}
        rows, faults = 0, dict[int, str]()
        for block in blocks:
            faults |= {rows + row: why for row, why in block.faults.items()}
            found = {name: getattr(block, name) for name in TYPES}
            found["ends"] = block.ends[:] + len(columns["names"])
            for name, values in found.items():
                if values is not None:
                    column = columns.setdefault(name, Column(*TYPES[name]))
                    column.pad(0 if name == "names" else rows)
                    column.append(values[:])
            rows += len(block)
        for name, column in columns.items():
            column.pad(0 if name == "names" else rows)
        return cls(faults=faults, folders={}, **columns)

    @classmethod
    def joined(cls, lists: Iterable[MemberIndex]) -> MemberIndex:
        """`packed` for lists of any length."""
        return cls.packed(block for each in lists for block in each.blocks())

    def listed_at(self, listed_ns: int) -> MemberIndex:
        """The list, with times below 0 for what may change without another time, and without
        folders that may. `listed_ns`: Unix time when the list was begun."""
        assert self.times is not None
        latest = listed_ns - FRESH_NS
        times = (np.where(some > latest, -some, some) for some in pieces(self.times))
        folders = {path: at for path, at in self.folders.items() if 0 < at[0] <= latest}
        return replace(self, times=Column.of(times), folders=folders)

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, row: int) -> str:
        """The name of a member, decoded as the file system's names are."""
        row = range(len(self))[row]
        ends = self.ends[max(row - 1, 0) : row + 1].tolist()
        return os.fsdecode(self.names[ends[0] if row else 0 : ends[-1]].tobytes())

    def member(self, row: int, file: str) -> Member:
        """The member at a row. `file`: the path or URL of the file that holds it."""
        return Member(
            name_text(self.name(row)),
            file,
            int(self.sizes[row]),
            int(self.offsets[row]),
            None if self.labels is None else int(self.labels[row]),
            self.faults.get(row),
            0 if self.times is None else int(self.times[row]),
        )

    def texts(self) -> Texts:
        """All names as valid UTF-8 text, for results."""
        return Texts(len(self), lambda row: name_text(self.name(row)))

    @property
    def nbytes(self) -> int:
        """The size of all pictures together."""
        return sum(int(some.sum()) for some in pieces(self.sizes))

    def digest(self) -> str:
        """SHA-256 of names, offsets and sizes, from which labels and faults follow."""
        found = hashlib.sha256()
        for column in (self.names, self.ends, self.offsets, self.sizes):
            for some in pieces(column):
                found.update(some.tobytes())
        return found.hexdigest()

    @cached_property
    def content(self) -> str:
        """SHA-256 of all that the list says."""
        found = hashlib.sha256(self.digest().encode())
        for name in MAY_LACK:
            column = getattr(self, name)
            if column is None:
                found.update(b"-")
                continue
            for some in pieces(column):
                found.update(some.tobytes())
        found.update(json.dumps([*self.faults.items()]).encode())
        return found.hexdigest()

    @property
    def live(self) -> np.ndarray:
        """(n,) bool, the members that are not gone."""
        found: np.ndarray = np.ones(len(self), bool) if self.gone is None else ~self.gone[:]
        return found

    def raw_names(self) -> list[bytes]:
        """All names, as in the file system: of a block."""
        names, ends = self.names[:].tobytes(), [0, *self.ends[:].tolist()]
        return [names[start:end] for start, end in pairwise(ends)]

    def blocks(self, first: int = 0, stop: int | None = None) -> Iterator[MemberIndex]:
        """Yields the members of [first, stop) in order, ROWS_AT_ONCE at a time, in memory."""
        stop = len(self) if stop is None else stop
        for row in range(first, stop, ROWS_AT_ONCE):
            yield self._block(row, min(row + ROWS_AT_ONCE, stop))

    def _block(self, first: int, stop: int) -> MemberIndex:
        ends = self.ends[first:stop]
        start = int(self.ends[first - 1]) if first else 0
        more = {name: getattr(self, name) for name in MAY_LACK}
        near = range(first, stop) if self.faults else ()
        return MemberIndex(
            self.names[start : int(ends[-1])],
            ends - start,
            self.offsets[first:stop],
            self.sizes[first:stop],
            faults={row - first: self.faults[row] for row in near if row in self.faults},
            folders={},
            **{name: None if c is None else c[first:stop] for name, c in more.items()},
        )

    def take(self, rows: np.ndarray) -> MemberIndex:
        """The list of some members, (k,) int64 in any order, in memory."""
        names, ends = [b""] * len(rows), self.ends[rows]
        starts = np.where(rows > 0, self.ends[(rows - 1).clip(0)], 0)
        for places, _, _ in spans(rows):
            first, stop = int(starts[places[0]]), int(ends[places[-1]])
            data, own = self.names[first:stop].tobytes(), (starts[places] - first).tolist()
            for place, start, end in zip(
                places.tolist(), own, (ends[places] - first).tolist(), strict=True
            ):
                names[place] = data[start:end]
        more = {name: getattr(self, name) for name in MAY_LACK}
        near = rows.tolist() if self.faults else ()
        return MemberIndex(
            np.frombuffer(b"".join(names), np.uint8),
            np.cumsum([len(name) for name in names], dtype=np.int64),
            self.offsets[rows],
            self.sizes[rows],
            faults={at: self.faults[row] for at, row in enumerate(near) if row in self.faults},
            folders={},
            **{name: None if c is None else c[rows] for name, c in more.items()},
        )

    def save(self, path: Path) -> None:
        """Write the index atomically as .npz. Raises OSError."""
        write_atomic(path, self._zipped())

    def _zipped(self) -> Iterator[bytes]:
        columns = {name: getattr(self, name) for name in TYPES}
        faults = json.dumps(dict(self.faults)).encode()
        columns["faults"] = np.frombuffer(faults, np.uint8)
        sink = _Sink()
        with zipfile.ZipFile(sink, "w") as archive:
            for name, column in columns.items():
                if column is None:
                    continue
                dtype, shape = TYPES.get(name, TYPES["names"])
                about = {"descr": dtype, "fortran_order": False, "shape": (len(column), *shape)}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    npy.write_array_header_1_0(stream, about)
                    for some in pieces(column):
                        stream.write(np.ascontiguousarray(some, dtype).tobytes())
                        yield from sink.taken()
        yield from sink.taken()

    @classmethod
    def load(cls, path: Path) -> MemberIndex | None:
        """Open the index in a file; None if the file is missing or damaged. All is read once, and
        the columns of a large file stay there."""
        try:
            file = open(path, "rb")  # noqa: SIM115  # stays open
            held = os.fstat(file.fileno()).st_size <= HELD_BYTES
            with zipfile.ZipFile(file) as archive:
                columns = {
                    info.filename.removesuffix(".npy"): _column(archive, info, file, held=held)
                    for info in archive.infolist()
                }
            if held:
                file.close()
            faults = json.loads(columns.pop("faults")[:].tobytes())
            own = {name: columns[name] for name in TYPES if name in columns}
            rows = {len(column) for name, column in own.items() if name != "names"}
            right = {name: (c.dtype.str, c.shape) == TYPES[name] for name, c in own.items()}
            if len(rows) != 1 or not all(right.values()):
                return None
            faults = {int(row): str(why) for row, why in faults.items()}
            return cls(faults=faults, folders={}, **own)
        except UNREADABLE_OR_GONE:
            return None


def _block(members: Sequence[tuple[str, Member]]) -> MemberIndex:
    names = [os.fsencode(name) for name, _ in members]
    own = [member for _, member in members]
    labels = np.array([-1 if m.label is None else m.label for m in own], np.int64)
    times = [m.time_ns if 0 < m.time_ns < 1 << 63 else 0 for m in own]
    return MemberIndex(
        np.frombuffer(b"".join(names), np.uint8),
        np.cumsum([len(name) for name in names], dtype=np.int64),
        np.array([m.offset for m in own], np.int64),
        np.array([m.nbytes for m in own], np.int64),
        labels.clip(0) if (labels >= 0).any() else None,
        {row: m.fault for row, m in enumerate(own) if m.fault is not None},
        np.array(times, np.int64),
    )


class _Sink(io.RawIOBase):
    """Takes what zipfile writes."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []

    def write(self, data: Any) -> int:
        self._chunks.append(bytes(data))
        return len(data)

    def taken(self) -> list[bytes]:
        """What was written since the last call."""
        found, self._chunks = self._chunks, []
        return found


def _column(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: BinaryIO, *, held: bool
) -> Column:
    """A member of an .npz that is not compressed. Raises some of UNREADABLE_OR_GONE."""
    with archive.open(info) as stream:
        npy.read_magic(stream)
        shape, _, dtype = npy.read_array_header_1_0(stream)
        header, data = stream.tell(), stream.read() if held else b""
        while stream.read(1 << 20):  # so that its checksum is compared
            pass
    size = dtype.itemsize * math.prod(shape)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != header + size:
        raise zipfile.BadZipFile(f"{info.filename} is no plain column")
    about = dtype, shape[1:], shape[0]
    if held:
        return Column(*about, held=data, held_bytes=size)
    name, extra = struct.unpack("<HH", os.pread(file.fileno(), 4, info.header_offset + 26))
    return Column(*about, file=file, start=info.header_offset + 30 + name + extra + header)


def name_text(name: str) -> str:
    """A file's name as text that HDF5 can store. NUL and bytes that are not UTF-8 become \\xNN."""
    return storable(name).replace("\0", "\\x00")


class Stream(NamedTuple):
    """The pictures of a source, by the names by which it finds them again, while they are listed.

    Attributes:
        members: yields them.
        warnings: sentences for the user, once all are listed.
    """

    members: Iterator[tuple[str, Member]]
    warnings: Callable[[], tuple[str, ...]] = tuple


@dataclass(frozen=True)
class Listing:
    """All pictures of a source in order. Either all have labels or none has, except pictures with
    a fault.

    Attributes:
        file: returns the path or URL of the file that holds the picture of a row.
        class_names: name of class 0, 1, ...; None if there are none.
        warnings: sentences for the user.
    """

    index: MemberIndex
    file: Callable[[int], str]
    class_names: tuple[str, ...] | None
    warnings: tuple[str, ...] = ()

    def members(self, rows: Iterable[int]) -> tuple[Member, ...]:
        """The pictures of some rows."""
        return tuple(self.index.member(row, self.file(row)) for row in rows)

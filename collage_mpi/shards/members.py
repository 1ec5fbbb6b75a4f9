"""The list of a source's members, one a row: their names, where their bytes are, and their labels.
Rank 0 makes the list once and saves it beside the run, so that workers need not make it again. Also
bounds on the memory that a byte of input may become, checked against the sizes that it declares.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault
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
MAY_LACK = {"labels": (), "times": (), "digests": (DIGEST_BYTES,), "gone": ()}
"""Columns that a list may lack -> shape of a member's value."""
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


@dataclass(frozen=True, eq=False)
class MemberIndex:
    """The members of one source as arrays: 2 million pictures take some 150 MB.

    Attributes:
        names: all names, concatenated, encoded as in the file system.
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
    """

    names: bytes
    ends: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray | None = None
    faults: Mapping[int, str] = field(default_factory=dict)
    times: np.ndarray | None = None
    digests: np.ndarray | None = None
    gone: np.ndarray | None = None

    @classmethod
    def of(cls, members: Iterable[tuple[str, Member]]) -> MemberIndex:
        """Pack members one by one. If members have labels, those without one get label 0.

        Args:
            members: (the name by which the source finds the member again, the member).
        """
        names, faults = bytearray(), dict[int, str]()
        ends, offsets, sizes, labels, times = (array("q") for _ in range(5))
        for row, (name, member) in enumerate(members):
            names += os.fsencode(name)
            ends.append(len(names))
            offsets.append(member.offset)
            sizes.append(member.nbytes)
            labels.append(-1 if member.label is None else member.label)
            times.append(member.time_ns if 0 < member.time_ns < 1 << 63 else 0)
            if member.fault is not None:
                faults[row] = member.fault
        given = np.asarray(labels, np.int64)
        return cls(
            bytes(names),
            np.asarray(ends, np.int64),
            np.asarray(offsets, np.int64),
            np.asarray(sizes, np.int64),
            given.clip(0) if (given >= 0).any() else None,
            faults,
            np.asarray(times, np.int64),
        )

    def listed_at(self, listed_ns: int) -> MemberIndex:
        """The list, with times below 0 for what may change without another time. `listed_ns`: Unix
        time when the list was begun."""
        assert self.times is not None
        fresh = self.times > listed_ns - FRESH_NS
        return replace(self, times=np.where(fresh, -self.times, self.times))

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, row: int) -> str:
        """The name of a member, decoded as the file system's names are."""
        start = int(self.ends[row - 1]) if row else 0
        return os.fsdecode(self.names[start : int(self.ends[row])])

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

    def digest(self) -> str:
        """SHA-256 of names, offsets and sizes, from which labels and faults follow."""
        found = hashlib.sha256(self.names)
        for column in (self.ends, self.offsets, self.sizes):
            found.update(column.astype("<i8").tobytes())
        return found.hexdigest()

    @cached_property
    def content(self) -> str:
        """SHA-256 of all that the list says."""
        found = hashlib.sha256(self.digest().encode())
        for name in MAY_LACK:
            column = getattr(self, name)
            found.update(b"-" if column is None else column.tobytes())
        found.update(json.dumps([*self.faults.items()]).encode())
        return found.hexdigest()

    @property
    def live(self) -> np.ndarray:
        """(n,) bool, the members that are not gone."""
        return np.ones(len(self), bool) if self.gone is None else ~self.gone

    def raw_names(self) -> list[bytes]:
        """All names, as in the file system."""
        ends = [0, *self.ends.tolist()]
        return [self.names[start:end] for start, end in pairwise(ends)]

    def take(self, rows: np.ndarray) -> MemberIndex:
        """The list of some members, (k,) int64."""
        return MemberIndex.joined([self], rows)

    @classmethod
    def joined(cls, lists: Sequence[MemberIndex], rows: np.ndarray | None = None) -> MemberIndex:
        """The members of several lists, one list after the other; or only some `rows` of them."""
        starts = np.cumsum([0, *map(len, lists)])
        rows = np.arange(starts[-1]) if rows is None else rows
        names = [name for each in lists for name in each.raw_names()]
        names = [names[row] for row in rows.tolist()]
        faults = {n + row: why for n, one in zip(starts.tolist(), lists, strict=False)
                  for row, why in one.faults.items()}  # fmt: skip

        def column(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
            found = [getattr(one, name) for one in lists]
            if all(one is None for one in found):
                return None
            zeros = np.zeros((1, *shape), next(one for one in found if one is not None).dtype)
            whole = [
                zeros.repeat(len(of), axis=0) if one is None else one
                for one, of in zip(found, lists, strict=True)
            ]
            return np.concatenate(whole)[rows]

        return cls(
            b"".join(names),
            np.cumsum([len(name) for name in names], dtype=np.int64),
            np.concatenate([one.offsets for one in lists])[rows],
            np.concatenate([one.sizes for one in lists])[rows],
            faults={at: faults[row] for at, row in enumerate(rows.tolist()) if row in faults},
            **{name: column(name, shape) for name, shape in MAY_LACK.items()},
        )

    def save(self, path: Path) -> None:
        """Write the index atomically as .npz. Raises OSError."""
        stream = io.BytesIO()
        arrays = {"ends": self.ends, "offsets": self.offsets, "sizes": self.sizes}
        more = {name: getattr(self, name) for name in MAY_LACK}
        arrays |= {name: array for name, array in more.items() if array is not None}
        faults = json.dumps(dict(self.faults)).encode()
        texts = {"names": self.names, "faults": faults}
        arrays |= {key: np.frombuffer(text, np.uint8) for key, text in texts.items()}
        np.savez(stream, **arrays)  # type: ignore[arg-type]
        write_atomic(path, (stream.getbuffer(),))

    @classmethod
    def load(cls, path: Path) -> MemberIndex | None:
        """Read the index in a file; None if the file is missing or damaged."""
        try:
            with np.load(path, allow_pickle=False) as found:
                faults = json.loads(found["faults"].tobytes())
                return cls(
                    names=found["names"].tobytes(),
                    ends=found["ends"],
                    offsets=found["offsets"],
                    sizes=found["sizes"],
                    faults={int(row): str(why) for row, why in faults.items()},
                    **{name: found.get(name) for name in MAY_LACK},
                )
        except UNREADABLE_OR_GONE:
            return None


def name_text(name: str) -> str:
    """A file's name as text that HDF5 can store. NUL and bytes that are not UTF-8 become \\xNN."""
    return storable(name).replace("\0", "\\x00")


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

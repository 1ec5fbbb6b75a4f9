"""The members of a source, one a row: their names, where their bytes lie, and their labels. Rank 0
makes the list once and saves it beside the run, so that workers need not make it again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from collage_mpi.shards.pictures import UnreadablePicture
from collage_mpi.shards.remote import read_range, url_of
from collage_mpi.system.files import UNREADABLE_OR_GONE, write_atomic
from collage_mpi.system.printable import counted, storable

LARGEST_PICTURE_BYTES = 1 << 29


@dataclass(frozen=True)
class Member:
    """One picture, not read yet.

    Attributes:
        id: its place relative to the given folder or file; a name in the results, never a
            path to write to.
        path: the file that holds it.
        nbytes: of the picture.
        offset: where it starts in that file; 0 for a file of its own.
        label: class number, or None.
        fault: why it cannot be used, even if its bytes are sound; None for a good one.
    """

    id: str
    path: str
    nbytes: int
    offset: int = 0
    label: int | None = None
    fault: str | None = None


def read_member(member: Member) -> bytes:
    """The picture's bytes.

    Raises:
        UnreadablePicture: they are not those that were listed.
        EnvironmentFault: the server of a URL does not give them.
    """
    if member.fault is not None:
        raise UnreadablePicture(member.fault)
    if not 0 < member.nbytes <= LARGEST_PICTURE_BYTES:
        raise UnreadablePicture(f"{member.nbytes:,} bytes")
    url, more = url_of(member.path), b""
    try:
        if url:
            data = read_range(url, member.offset, member.nbytes)
        else:
            with open(member.path, "rb") as stream:
                stream.seek(member.offset)
                data = stream.read(member.nbytes)
                more = b"" if member.offset else stream.read(1)  # in a tar a header comes first
    except OSError as error:
        raise UnreadablePicture(f"cannot be read: {error.strerror}") from error
    if len(data) < member.nbytes:
        raise UnreadablePicture(f"{len(data):,} of its {member.nbytes:,} bytes are there")
    if more:
        raise UnreadablePicture(f"it has grown: it had {member.nbytes:,} bytes when it was listed")
    return data


@dataclass(frozen=True, eq=False)
class MemberIndex:
    """The members of one source, packed: 2 million pictures take some 150 MB.

    Attributes:
        names: all names as bytes, end to end, as the file system has them.
        ends: (n,) int64, where each name ends.
        offsets, sizes: (n,) int64, of the bytes.
        labels: (n,) int64, or None.
        faults: row -> why it cannot be used.
    """

    names: bytes
    ends: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray | None = None
    faults: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, members: Sequence[Member], names: Sequence[str]) -> MemberIndex:
        """Pack members under the names by which they are found again.

        Members with a fault have label 0 where the others have labels.
        """
        raw = [os.fsencode(name) for name in names]
        labels = [member.label for member in members]
        known = any(label is not None for label in labels)
        return cls(
            b"".join(raw),
            np.cumsum([len(name) for name in raw], dtype=np.int64),
            np.array([member.offset for member in members], dtype=np.int64),
            np.array([member.nbytes for member in members], dtype=np.int64),
            np.array([label or 0 for label in labels], dtype=np.int64) if known else None,
            {row: one.fault for row, one in enumerate(members) if one.fault is not None},
        )

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, row: int) -> str:
        """The name of a member, as the file system has it."""
        start = int(self.ends[row - 1]) if row else 0
        return os.fsdecode(self.names[start : int(self.ends[row])])

    def texts(self) -> list[str]:
        """All names as texts that a file of results can hold."""
        return [name_text(self.name(row)) for row in range(len(self))]

    def difference(self, before: MemberIndex) -> str:
        """What has come, gone or changed since an earlier list of the same source, in words."""
        new, old = (
            {one.name(r): int(one.sizes[r]) for r in range(len(one))} for one in (self, before)
        )
        found = {
            "more": [name for name in new if name not in old],
            "gone": [name for name in old if name not in new],
            "of another size": [n for n in new if n in old and new[n] != old[n]],
        }
        said = (
            f"{counted(len(names), 'picture')} {how}, such as {name_text(names[0])}"
            for how, names in found.items()
            if names
        )
        return "; ".join(said) or "the same names and sizes, and other content"

    def digest(self) -> str:
        """SHA-256 over names, places and sizes. Labels and faults follow from these."""
        found = hashlib.sha256(self.names)
        for array in (self.ends, self.offsets, self.sizes):
            found.update(array.astype("<i8").tobytes())
        return found.hexdigest()

    def save(self, path: Path) -> None:
        """Write the index, complete or not at all. Raises OSError."""
        stream = io.BytesIO()
        arrays = {"ends": self.ends, "offsets": self.offsets, "sizes": self.sizes}
        if self.labels is not None:
            arrays["labels"] = self.labels
        faults = json.dumps(dict(self.faults)).encode()
        texts = {"names": self.names, "faults": faults}
        arrays |= {key: np.frombuffer(text, np.uint8) for key, text in texts.items()}
        np.savez(stream, **arrays)  # type: ignore[arg-type]
        write_atomic(path, (stream.getbuffer(),))

    @classmethod
    def load(cls, path: Path) -> MemberIndex | None:
        """The index in a file; None if the file is not there, or damaged."""
        try:
            with np.load(path, allow_pickle=False) as found:
                faults = json.loads(found["faults"].tobytes())
                return cls(
                    names=found["names"].tobytes(),
                    ends=found["ends"],
                    offsets=found["offsets"],
                    sizes=found["sizes"],
                    labels=found.get("labels"),
                    faults={int(row): str(why) for row, why in faults.items()},
                )
        except UNREADABLE_OR_GONE:
            return None


def name_text(name: str) -> str:
    """A file's name as text that a shard can hold; other bytes and NUL become \\xNN."""
    return storable(name).replace("\0", "\\x00")


@dataclass(frozen=True)
class Listing:
    """All pictures of a source in order. Either all have labels or none has, except pictures with
    a fault.

    Attributes:
        warnings: sentences for the user.
        names: by which the source finds the pictures again; empty: their ids.
    """

    members: tuple[Member, ...]
    class_names: tuple[str, ...] | None
    warnings: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def index(self) -> MemberIndex:
        """The members, packed."""
        return MemberIndex.of(self.members, self.names or [one.id for one in self.members])

"""Parts: the files that hold a run's rows. A part is written once and never changed.

A part is a plain `.npy` file (numpy.load reads it) with a trailer of 20 bytes: a magic number, the
length and the CRC-32 of all bytes before. Rows and checksum are in one file, so one rename commits
both, and a kill never leaves one without the other.

A part's name contains its session, so two sessions never write the same file. Each team of a launch
is a session. When a session goes on with a run, it lists the parts of earlier sessions in the
manifest (`accepted`). A part of an earlier session that appears later does not count, because its
images were done again.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.results.manifest import finals
from collage_mpi.rows import TableLayout
from collage_mpi.system.files import UNREADABLE, reading, write_atomic

Accepted = dict[str, dict[str, list[list[int]]]]

_TRAILER = struct.Struct("<8sQI")  # magic number, bytes before the trailer, their CRC-32
_MARK = b"CMPIcrc1"
OURS = r"(images|tasks)-(\d{4,5})-(\d{6,18})\.npy"  # table, session, number
_NAME = re.compile(OURS)
ADVICE = (
    "Restore it from a copy, or move it away and run again with --resume: its images are then "
    "done again."
)
_LARGEST_BYTES = 1 << 30  # a part is about 1 MB, so a larger file is not a part


class PartName(NamedTuple):
    """A part. Sorting parts gives the order in which they were written."""

    session: int
    number: int  # from 1, counted for each session and table
    table: str
    path: Path


def part_path(directory: Path, table: TableLayout, session: int, number: int) -> Path:
    """The path of part `number` (from 1) of a table in a session."""
    return directory / f"{table.name}-{session:04d}-{number:06d}.npy"


def list_parts(directory: Path) -> list[PartName]:
    """The parts of all tables, in the order in which they were written.

    Raises:
        OSError: the folder cannot be listed.
    """
    found = []
    for path in directory.iterdir():
        match = _NAME.fullmatch(path.name)
        if match:
            found.append(PartName(int(match[2]), int(match[3]), match[1], path))
    return sorted(found)


def describe(names: Iterable[PartName]) -> Accepted:
    """Parts as a manifest lists them: session -> table -> [[first, last], ...] of numbers."""
    found: Accepted = {}
    for part in sorted(names):
        ranges = found.setdefault(str(part.session), {}).setdefault(part.table, [])
        if ranges and ranges[-1][1] == part.number - 1:
            ranges[-1][1] = part.number
        else:
            ranges.append([part.number, part.number])
    return found


def counting(manifest: Mapping[str, Any]) -> Callable[[PartName], bool]:
    """Returns a function that tells whether a part counts: its session belongs to the last launch,
    or the last launch accepted the part."""
    own, accepted = sessions_of(manifest), manifest["accepted"]

    def counts(part: PartName) -> bool:
        if part.session in own:
            return True
        ranges = accepted.get(str(part.session), {}).get(part.table, ())
        return any(first <= part.number <= last for first, last in ranges)

    return counts


def sessions_of(manifest: Mapping[str, Any]) -> range:
    """The sessions of the last launch: one for each of its teams."""
    first: int = manifest["session"]
    return range(first, first + (manifest.get("teams") or 1))


def launch_of(manifest: Mapping[str, Any]) -> dict[int, int]:
    """Session -> the first session of its launch. Only launches of several teams are listed."""
    launches = manifest.get("launches") or []
    return {session: first for first, n in launches for session in range(first, first + n)}


def began_ns(manifest: Mapping[str, Any]) -> dict[int, int]:
    """Session -> the Unix time, in ns, at which its clock began; for launches of several teams.

    The times align the clocks of a launch's teams. A team that was lost recorded none, so it counts
    as begun with the first team.
    """
    began = {session: final.get("began_ns") for session, final in finals(manifest).items()}
    return {
        session: began.get(session) or began.get(first) or 0
        for session, first in launch_of(manifest).items()
    }


def clock_offsets_ns(manifest: Mapping[str, Any], session: int) -> dict[int, int]:
    """The session and those that ran with it, as teams of one launch -> ns by which each clock
    began later than the session's."""
    launches, began = launch_of(manifest), began_ns(manifest)
    together = [each for each in launches if launches[each] == launches.get(session)] or [session]
    return {each: began.get(each, 0) - began.get(session, 0) for each in together}


def npy_header(dtype: np.dtype, rows: int) -> bytes:
    """The `.npy` header of a one-dimensional array."""
    out = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        out, {"descr": descr, "fortran_order": False, "shape": (rows,)}
    )
    return out.getvalue()


def write_part(
    path: Path, table: TableLayout, payload: memoryview, check: Callable[[], object] | None = None
) -> None:
    """Write the packed rows of one part atomically.

    Raises:
        OSError: the disk is full, there is no permission, or the file exists already.
        CollageError: of `check` (see `write_atomic`).
    """
    header = npy_header(table.dtype, len(payload) // table.dtype.itemsize)
    crc = zlib.crc32(payload, zlib.crc32(header))
    trailer = _TRAILER.pack(_MARK, len(header) + len(payload), crc)
    write_atomic(path, (header, payload, trailer), replace=False, check=check)


def read_part(path: Path, table: TableLayout) -> np.ndarray:
    """Read one part and verify its checksum.

    Returns:
        (n,) of the table's dtype.

    Raises:
        DataFault: the file is truncated or changed, or has other columns.
        EnvironmentFault: the file cannot be read.
    """
    with reading(path):
        if path.stat().st_size > _LARGEST_BYTES:
            raise DataFault(f"{path}: far too large for a part of a run. {ADVICE}")
        raw = path.read_bytes()
    rows = _stored_rows(path, _checked_body(path, raw))
    if rows.dtype != table.dtype:
        from collage_mpi.results.older import now_rows

        rows = now_rows(rows, table)
    if rows.dtype != table.dtype:
        found, wanted = (
            {name: d[name] for name in d.names or ()} for d in (rows.dtype, table.dtype)
        )
        wrong = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        raise DataFault(
            f"{path}: undamaged, but its columns are not those of this version of collage-mpi: "
            f"{', '.join(wrong)} (needed: {', '.join(wanted)}). Read it with the version that "
            "wrote it, or a later one."
        )
    return rows


def _stored_rows(path: Path, body: bytes) -> np.ndarray:
    """The rows of a part, with the columns that are in the file."""
    file = io.BytesIO(body)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("another version of .npy")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        rows = np.frombuffer(body, dtype, offset=file.tell())
        if dtype.names is None or shape != rows.shape:
            raise ValueError(f"{len(rows)} rows of {dtype}, but the header says shape {shape}")
    except UNREADABLE as error:
        raise DataFault(f"{path}: undamaged, but no part of a run: {error}") from error
    return rows


def _checked_body(path: Path, raw: bytes) -> bytes:
    """The bytes before the trailer. Raises DataFault if their length or checksum is wrong."""
    if len(raw) < _TRAILER.size:
        raise DataFault(f"{path}: only {len(raw)} bytes, truncated. {ADVICE}")
    mark, length, crc = _TRAILER.unpack(raw[-_TRAILER.size :])
    body = raw[: -_TRAILER.size]
    if mark != _MARK or length != len(body):
        raise DataFault(f"{path}: truncated or not a part of a run. {ADVICE}")
    found = zlib.crc32(body)
    if found != crc:
        raise DataFault(f"{path}: damaged (CRC-32 {found:08x} found, {crc:08x} recorded). {ADVICE}")
    return body

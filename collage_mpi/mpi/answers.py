"""The messages with answers, which a worker sends to its coordinator.

An answer has a record for each image, and a vector if values beyond the class are kept. If an image
could not be read, its record says whether the row or the host is at fault, and a line of text gives
the reason. Each message begins with what its rank has done with its time so far.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from collage_mpi.core.events import Answered, Failed, Skipped
from collage_mpi.mpi.protocol import (
    ANSWERS,
    HEADER,
    UP_BYTES,
    Header,
    WireFault,
    write,
)
from collage_mpi.rows import (
    ABSENT,
    BAD_ROW,
    CELL,
    MEASURED,
    PRESENT,
    UNREAD,
    Measured,
    measured_bytes,
    packer,
)
from collage_mpi.system.bottleneck import Use

ANSWERED, FAILED, SKIPPED = STATUSES = 1, 2, 3
REASON_BYTES = 4096  # of the lines of a task's reasons
LINE_BYTES = 60  # a line is not cut shorter; lines without room are left out instead

USE = np.dtype([(name, "<i8") for name in Use._fields])
BEGIN_BYTES = HEADER.itemsize + USE.itemsize  # of a message, before its results
RESULT = np.dtype(
    [
        # The first fields of a WireResult.
        ("task", "<i8"),
        ("status", "u1"),
        *((name, MEASURED[name]) for name in MEASURED.names or ()),
        # How many records, bytes and vectors of the message belong to the result.
        ("n_cells", "<u4"),
        ("reason_bytes", "<u2"),
        ("n_vectors", "<u4"),
        ("n_floats", "<u4"),  # of each vector
    ]
)
VECTOR = np.dtype("<f4")

_USE, _CELL = map(packer, (USE, CELL))
_RESULT = struct.Struct(f"<qB{MEASURED.itemsize}sIHII")  # what was measured stays as bytes
assert _RESULT.size == RESULT.itemsize
_COMPUTE, _COMPUTE_AT = struct.Struct("<q"), MEASURED.fields["compute_ns"][1]  # type: ignore[index]
_NO_USE = Use()


class Score(NamedTuple):
    """What a network says of one image: its class (index) and the class's probability, 0..1.

    `also`: 0 to 65,535; differs if more than the class is compared with another answer's, and that
    differs.
    """

    label: int
    score: float
    also: int = 0


class Unread(NamedTuple):
    """Why a rank that reads its images itself could not read one.

    Attributes:
        reason: one line.
        of_input: the image's row is bad. False if the whole file cannot be read on the rank's host.
    """

    reason: str
    of_input: bool


@dataclass(slots=True)
class WireResult(Measured):
    """How one task ended on its rank.

    Attributes:
        status: ANSWERED, FAILED or SKIPPED.
        cells: one score for each item, None if the network gave none; () unless answered.
        reason: why the task failed, or the first reason of `unread`.
        unread: () if all images were read, otherwise one entry for each item. In an answered task
            unread images were blank for the network, and their scores are not sent.
        vectors: (n, floats) float32, one for each input of the network; None if not needed.
    """

    task: int
    status: int
    cells: Sequence[Score | None] = ()
    reason: str = ""
    unread: tuple[Unread | None, ...] = ()
    vectors: np.ndarray | None = None


def in_messages(results: Sequence[WireResult], room: int = UP_BYTES) -> list[list[WireResult]]:
    """Split the results, in order, into as few parts as fit ANSWERS messages of `room` bytes."""
    parts: list[list[WireResult]] = []
    free = 0
    for result in results:
        needed = _bytes_of(result)
        if needed > free:  # always true for the first result, since each takes some bytes
            parts.append([])
            free = room - BEGIN_BYTES
        parts[-1].append(result)
        free -= needed
    return parts


def answer_message_bytes(items: int, vectors: int, floats: int) -> int:
    """Size of an ANSWERS message of one task, with the longest reason."""
    vectors_bytes = vectors * floats * VECTOR.itemsize
    return BEGIN_BYTES + RESULT.itemsize + items * CELL.itemsize + vectors_bytes + REASON_BYTES


def _bytes_of(result: WireResult) -> int:
    vectors = 0 if result.vectors is None else result.vectors.size * VECTOR.itemsize
    return RESULT.itemsize + _count(result) * CELL.itemsize + vectors + len(_text(result))


def _count(result: WireResult) -> int:
    return max(len(result.cells), len(result.unread))


def pack_results(
    out: np.ndarray, session: int, results: Sequence[WireResult], use: Use = _NO_USE
) -> int:
    """Write an ANSWERS message into `out` and return its length in bytes.

    `use`: what the rank has done with its time so far.

    Raises:
        WireFault: the message does not fit `out`.
    """
    reasons = [_text(result) for result in results]
    vectors = [
        np.ascontiguousarray(each.vectors, VECTOR) for each in results if each.vectors is not None
    ]
    records = [
        _RESULT.pack(
            result.task,
            result.status,
            measured_bytes(result),
            _count(result),
            len(reason),
            *((0, 0) if result.vectors is None else result.vectors.shape),
        )
        for result, reason in zip(results, reasons, strict=True)
    ]
    cells = [_CELL.pack(*cell) for result in results for cell in _cells(result)]
    text = np.frombuffer(b"".join(reasons), np.uint8)
    header = Header(ANSWERS, session, len(results), len(cells), text.nbytes)
    return write(
        out,
        header,
        b"".join([_USE.pack(*use), *records, *cells]),
        [*(each.view(np.uint8) for each in vectors), text],
    )


def use_bytes(message: np.ndarray) -> bytes:
    """The bytes of an ANSWERS message that say what its rank had done with its time."""
    return bytes(message.data[HEADER.itemsize : BEGIN_BYTES])


def unpack_use(use: bytes) -> Use:
    """What a rank had done with its time, of `use_bytes`."""
    return Use(*_USE.unpack(use))


def unpack_ends(
    rank: int,
    header: Header,
    message: np.ndarray,
    at_ns: int = 0,
    clock: Callable[[], int] | None = None,
    start_ns: int = 0,
) -> list[Answered | Failed | Skipped]:
    """The ends of tasks that an ANSWERS message tells, in order.

    Args:
        rank: that sent the message.
        header: its header.
        message: (n,) uint8.
        at_ns: when it was received.
        clock: tells how long the unpacking takes; None: it takes no time.
        start_ns: when the unpacking began.

    Raises:
        WireFault: sizes do not add up, or a status is unknown.
    """
    cells_at = BEGIN_BYTES + header.n_tasks * _RESULT.size
    vectors_at = cells_at + header.n_items * _CELL.size
    reasons_at = message.nbytes - header.payload_bytes
    if not vectors_at <= reasons_at:
        raise WireFault(f"an ANSWERS message of {message.nbytes} bytes does not match its counts")
    all_cells = np.frombuffer(message, CELL, header.n_items, cells_at)
    records = list(_RESULT.iter_unpack(message.data[BEGIN_BYTES:cells_at]))
    # Tasks that ended alike are told of together. Their cells and vectors lie one after another.
    together = len({(r[1], r[2], r[4], r[5] == r[3], r[6]) for r in records}) == 1
    numbers = [record[0] for record in records]
    if together and len(records) > 1 and records[0][1] == ANSWERED and not records[0][4]:
        _, status, measured, _, _, _, floats = records[0]
        count, rows = sum([r[3] for r in records]), sum([r[5] for r in records])
        records = [(0, status, measured, count, 0, rows, floats)]
    decode_ns = clock() - start_ns if clock else 0
    ends: list[Answered | Failed | Skipped] = []
    at, text, vector = 0, reasons_at, vectors_at
    for task, status, measured, count, length, rows, floats in records:
        cells, at = all_cells[at : at + count], at + count
        lines: Sequence[str] = ()
        if length:
            lines = message[text : text + length].tobytes().decode("utf-8", "replace").split("\n")
            text += length
        vectors = None
        if rows:
            last = vector + rows * floats * VECTOR.itemsize
            if last > reasons_at or rows != count:
                raise WireFault("the vectors of a message do not match its counts")
            vectors = message[vector:last].view(VECTOR).reshape(rows, floats)
            vector = last
        if status == ANSWERED:
            (compute_ns,) = _COMPUTE.unpack_from(measured, _COMPUTE_AT)
            tasks, own = numbers if len(records) == 1 else [task], (measured, decode_ns)
            ends.append(Answered(tasks, rank, cells, compute_ns, *own, lines, vectors, at_ns))
        elif status == FAILED:
            ends.append(Failed(task, rank, lines[0] if lines else "", cells, lines, decode_ns))
        elif status == SKIPPED:
            ends.append(Skipped(task, rank))
        else:
            raise WireFault(f"task {task} ended with status {status}; known are {STATUSES}")
    if (at, vector, text) != (header.n_items, reasons_at, message.nbytes):
        raise WireFault("the results of a message do not add up")
    return ends


def _text(result: WireResult) -> bytes:
    """The reason in a line, or a line for each unread image. They share REASON_BYTES."""
    reasons = [why.reason for why in result.unread if why is not None] or [result.reason]
    most = max(LINE_BYTES, REASON_BYTES // len(reasons) - 1)
    lines = [
        " ".join(reason.split()).encode("utf-8", "replace")[:most].decode("utf-8", "ignore")
        for reason in reasons[: (REASON_BYTES + 1) // (most + 1)]
    ]
    return "\n".join(lines).encode()


def _cells(result: WireResult) -> list[tuple[int, float, int, int]]:
    """(label, score, state, also) of each item's record."""
    absent = 0, 0.0, ABSENT, 0
    found = [absent if cell is None else (*cell[:2], PRESENT, cell[2]) for cell in result.cells]
    found = found or [absent] * len(result.unread)  # a failed task has no cells
    for place, why in enumerate(result.unread):
        if why is not None:
            found[place] = (0, 0.0, BAD_ROW if why.of_input else UNREAD, 0)
    return found

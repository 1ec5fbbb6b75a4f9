"""The messages with answers, which a worker sends to its coordinator.

An answer has a record for each image, and a vector if values beyond the class are kept. If an image
could not be read, its record says whether the row or the host is at fault, and a line of text gives
the reason. Each message begins with what its rank has done with its time so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from collage_mpi.mpi.protocol import (
    ANSWERS,
    HEADER,
    UP_BYTES,
    Header,
    WireFault,
    packer,
    read_header,
    write,
)
from collage_mpi.scheduler.events import Answered, Failed, Score, Skipped, Unread
from collage_mpi.system.bottleneck import Use

ANSWERED, FAILED, SKIPPED = STATUSES = 1, 2, 3
REASON_BYTES = 480

USE = np.dtype([(name, "<i8") for name in Use._fields])
BEGIN_BYTES = HEADER.itemsize + USE.itemsize  # of a message, before its results
RESULT = np.dtype(
    [
        # The first fields of a WireResult, in its order. Add a new field to both.
        ("task", "<i8"),
        ("status", "u1"),
        ("compute_ns", "<i8"),
        ("read_ns", "<i8"),
        ("runtime", "u1"),
        # How many records, bytes and vectors of the message belong to the result.
        ("n_cells", "<u4"),
        ("reason_bytes", "<u2"),
        ("n_vectors", "<u4"),
        ("n_floats", "<u4"),  # of each vector
    ]
)
CELL = np.dtype([("label", "<i4"), ("score", "<f4"), ("state", "u1"), ("reserved", "u1", (3,))])
ABSENT, PRESENT, UNREAD, BAD_ROW = range(4)  # states of a cell; UNREAD, BAD_ROW: not read
LOST_REASON = "it could not be read"  # used if the message had no room for the reason

VECTOR = np.dtype("<f4")

_USE, _RESULT, _CELL = map(packer, (USE, RESULT, CELL))
_NO_USE = Use()
_said = attrgetter(*(RESULT.names or ())[:-4])


class Cells(Sequence[Score | None]):
    """The cell records of an answer, unpacked when they are asked for."""

    def __init__(self, data: memoryview) -> None:
        """`data`: bytes of complete CELL records."""
        self.data = data

    def __len__(self) -> int:
        return len(self.data) // _CELL.size

    def __iter__(self) -> Iterator[Score | None]:
        return iter(_records(self.data))

    def __contains__(self, record: object) -> bool:
        if record is None:
            states = self.data[CELL.fields["state"][1] :: _CELL.size].tobytes()  # type: ignore[index]
            return states.count(PRESENT) < len(states)
        return record in _records(self.data)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            first, end, _ = place.indices(len(self))
            return Cells(self.data[first * _CELL.size : end * _CELL.size])
        return _record(*_CELL.unpack_from(self.data, range(len(self))[place] * _CELL.size))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and _records(self.data) == list(other)


def _record(label: int, score: float, state: int) -> Score | None:
    return Score(label, score) if state == PRESENT else None


def _records(data: memoryview) -> list[Score | None]:
    return [
        Score(label, score) if state == PRESENT else None
        for label, score, state in _CELL.iter_unpack(data)
    ]


@dataclass(slots=True)
class WireResult:
    """How one task ended on its rank.

    Attributes:
        status: ANSWERED, FAILED or SKIPPED.
        compute_ns: time in the network, GPU synchronised.
        read_ns: how long the network waited until its rank had read the images.
        runtime: runtime and format that answered, an index into `rows.ANSWERERS`.
        cells: one score for each item, None if the network gave none; () unless answered.
        reason: why the task failed, or the first reason of `unread`.
        unread: () if all images were read, otherwise one entry for each item. In an answered task
            unread images were blank for the network, and their scores are not sent.
        vectors: (n, floats) float32, one for each input of the network; None if not needed.
    """

    task: int
    status: int
    compute_ns: int = 0
    read_ns: int = 0
    runtime: int = 0
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
            *_said(result),
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


def unpack_use(message: np.ndarray) -> Use:
    """What the rank that sent an ANSWERS message had done with its time.

    Raises:
        WireFault: the message is too short.
    """
    if message.nbytes < BEGIN_BYTES:
        raise WireFault(f"an ANSWERS message of {message.nbytes} bytes does not match its counts")
    return Use(*_USE.unpack_from(message.data, HEADER.itemsize))


def unpack_results(message: np.ndarray, header: Header | None = None) -> list[WireResult]:
    """The results of an ANSWERS message.

    Args:
        message: (n,) uint8.
        header: of the message, if it was read already.

    Raises:
        WireFault: sizes do not add up, or a status is unknown.
    """
    header = header or read_header(message)
    n_results, n_cells = header.n_tasks, header.n_items
    cells_at = BEGIN_BYTES + n_results * _RESULT.size
    vectors_at = cells_at + n_cells * _CELL.size
    reasons_at = message.nbytes - header.payload_bytes
    if not vectors_at <= reasons_at:
        raise WireFault(f"an ANSWERS message of {message.nbytes} bytes does not match its counts")
    data = message.data  # slicing it takes a third of the time of slicing an array
    results, at, text, vector = [], cells_at, reasons_at, vectors_at
    for *said, count, length, rows, floats in _RESULT.iter_unpack(data[BEGIN_BYTES:cells_at]):
        result, end = WireResult(*said), at + count * _CELL.size
        if end > vectors_at:
            raise WireFault("the results of a message do not add up to its cells")
        own = data[at:end]
        result.cells = Cells(own) if count != 1 else (_record(*_CELL.unpack(own)),)
        if length:
            raw = message[text : text + length].tobytes()
            result.reason = raw.decode("utf-8", "replace")
            _note_unread(result, message[at:end].view(CELL)["state"].tolist())
        if rows:
            last = vector + rows * floats * VECTOR.itemsize
            if last > reasons_at:
                raise WireFault("the vectors of a message do not match its counts")
            result.vectors = message[vector:last].view(VECTOR).reshape(rows, floats)
            vector = last
        if result.status not in STATUSES:
            raise WireFault(
                f"task {result.task} ended with status {result.status}; known are {STATUSES}"
            )
        results.append(result)
        at, text = end, text + length
    if (at, vector, text) != (vectors_at, reasons_at, message.nbytes):
        raise WireFault("the results of a message do not add up")
    return results


def task_ends(
    rank: int, now_ns: int, results: Sequence[WireResult]
) -> list[Answered | Failed | Skipped]:
    """The terminal event for each result of a worker's message, all at one moment."""
    events: list[Answered | Failed | Skipped] = []
    for each in results:
        if each.status == ANSWERED:
            took_ns = each.compute_ns
            events.append(Answered(now_ns, each.task, rank, each.cells, took_ns, each.unread))
        elif each.status == FAILED:
            events.append(Failed(now_ns, each.task, rank, each.reason, each.unread))
        else:
            events.append(Skipped(now_ns, each.task, rank))
    return events


def _text(result: WireResult) -> bytes:
    """The reason, or a line for each unread image, cut off at REASON_BYTES."""
    lines = [" ".join(why.reason.split()) for why in result.unread if why is not None]
    text = "\n".join(lines) if lines else result.reason
    return text.encode("utf-8", "replace")[:REASON_BYTES]


def _cells(result: WireResult) -> list[tuple[int, float, int]]:
    """(label, score, state) of each item's record."""
    found = [(0, 0.0, ABSENT) if cell is None else (*cell, PRESENT) for cell in result.cells]
    found = found or [(0, 0.0, ABSENT)] * len(result.unread)  # a failed task has no cells
    for place, why in enumerate(result.unread):
        if why is not None:
            found[place] = (0, 0.0, BAD_ROW if why.of_input else UNREAD)
    return found


def _note_unread(result: WireResult, states: Sequence[int]) -> None:
    """Set `unread` from the states of the result's records and the lines of its reason."""
    if not any(state >= UNREAD for state in states):
        return
    lines = iter(result.reason.split("\n"))
    result.unread = tuple(
        Unread(next(lines, LOST_REASON), state == BAD_ROW) if state >= UNREAD else None
        for state in states
    )
    result.reason = next(why.reason for why in result.unread if why is not None)
    if result.status == FAILED:
        result.cells = ()

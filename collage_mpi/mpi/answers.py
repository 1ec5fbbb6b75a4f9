"""Answers as they travel from a worker to rank 0.

Owns: the bytes of ANSWERS messages, and their checks.
Does not know: MPI objects, what an answer is good for.

Vectors travel under schemes that decode an image from the answers of others (parity): what
the network gave for each of its inputs. Where ranks read the images, a record says of each that
was not read whose fault that is, and the reasons are lines of text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np

from collage_mpi.mpi.protocol import (
    ANSWERS,
    HEADER,
    UP_BYTES,
    Header,
    WireFault,
    packer,
    put_header,
    read_header,
)
from collage_mpi.scheduler.events import Score, Unread

ANSWERED, FAILED, SKIPPED = STATUSES = 1, 2, 3
REASON_BYTES = 480

RESULT = np.dtype(
    [
        # A WireResult's first fields, in their order; a new one stands here and there.
        ("task", "<i8"),
        ("status", "u1"),
        ("compute_ns", "<i8"),
        ("held_ns", "<i8"),
        ("drawn_ns", "<i8"),
        ("read_ns", "<i8"),
        # How much of the rest of the message is its own.
        ("n_cells", "<u4"),
        ("reason_bytes", "<u2"),
        ("n_vectors", "<u4"),
    ]
)
CELL = np.dtype([("label", "<i4"), ("score", "<f4"), ("state", "u1"), ("reserved", "u1", (3,))])
ABSENT, PRESENT, UNREAD, BAD_ROW = range(4)  # a cell's states; the last two were not read
LOST_REASON = "it could not be read"  # where there was no room for more

VECTOR = np.dtype("<f4")

_RESULT, _CELL = map(packer, (RESULT, CELL))
_said = attrgetter(*(RESULT.names or ())[:-3])


@dataclass(slots=True)
class WireResult:
    """How one task ended on its rank.

    Attributes:
        status: ANSWERED, FAILED or SKIPPED.
        compute_ns: time in the network, GPU synchronised.
        held_ns: injected delay on top of it.
        drawn_ns: service time that the delay model asked for, 0 without one.
        read_ns: waiting until its rank had read its images, where it did.
        cells: one record per item, None where the network gave none; () unless answered.
        unread: one an item if any of its images was not read: of an answered one those that are
            blank, whose cells do not travel; () otherwise. `reason` is then that of the first.
        vectors: (n, floats) float32, one an input of the network, where the scheme decodes from
            them; None otherwise. Of a message's results all have as many floats.
    """

    task: int
    status: int
    compute_ns: int = 0
    held_ns: int = 0
    drawn_ns: int = 0
    read_ns: int = 0
    cells: tuple[Score | None, ...] = ()
    reason: str = ""
    unread: tuple[Unread | None, ...] = ()
    vectors: np.ndarray | None = None


def in_messages(results: Sequence[WireResult], room: int = UP_BYTES) -> list[list[WireResult]]:
    """The results, in order, in as few parts as fit ANSWERS messages of `room` bytes."""
    parts: list[list[WireResult]] = []
    free = 0
    for result in results:
        needed = _bytes_of(result)
        if needed > free:  # the first one, too: none is of no bytes
            parts.append([])
            free = room - HEADER.itemsize
        parts[-1].append(result)
        free -= needed
    return parts


def answer_message_bytes(items: int, vectors: int, floats: int) -> int:
    """Size of an ANSWERS message of one task, with the longest reason."""
    vectors_bytes = vectors * floats * VECTOR.itemsize
    return HEADER.itemsize + RESULT.itemsize + items * CELL.itemsize + vectors_bytes + REASON_BYTES


def _bytes_of(result: WireResult) -> int:
    """Its part of a message."""
    vectors = 0 if result.vectors is None else result.vectors.size * VECTOR.itemsize
    cells = max(len(result.cells), len(result.unread)) * CELL.itemsize
    return RESULT.itemsize + cells + vectors + len(_text(result))


def pack_results(out: np.ndarray, session: int, results: Sequence[WireResult]) -> int:
    """Write an ANSWERS message into `out` and return its length in bytes.

    Raises:
        WireFault: it does not fit `out`.
    """
    reasons = [_text(result) for result in results]
    n_cells = sum(max(len(result.cells), len(result.unread)) for result in results)
    total = HEADER.itemsize + sum(map(_bytes_of, results))
    vectors = [result.vectors for result in results if result.vectors is not None]
    floats = vectors[0].shape[1] if vectors else 0
    if total > out.nbytes:
        raise WireFault(f"an answer of {total} bytes for a buffer of {out.nbytes}")
    data = out.data
    sizes = len(results), n_cells, sum(map(len, reasons))
    at = put_header(data, ANSWERS, session, *sizes, floats)
    for result, reason in zip(results, reasons, strict=True):
        rows = 0 if result.vectors is None else len(result.vectors)
        count = max(len(result.cells), len(result.unread))
        _RESULT.pack_into(data, at, *_said(result), count, len(reason), rows)
        at += _RESULT.size
    for result in results:
        for cell in result.cells:
            label, score = cell if cell is not None else (0, 0.0)
            _CELL.pack_into(data, at, label, score, PRESENT if cell is not None else ABSENT)
            at += _CELL.size
        if result.unread:
            at = _put_unread(data, at - len(result.cells) * _CELL.size, result)
    for array in vectors:  # (n, floats) float32
        out[at : at + array.size * VECTOR.itemsize].view(VECTOR)[:] = array.reshape(-1)
        at += array.size * VECTOR.itemsize
    for reason in reasons:
        out[at : at + len(reason)] = np.frombuffer(reason, np.uint8)
        at += len(reason)
    return at


def unpack_results(message: np.ndarray) -> list[WireResult]:
    """The results of an ANSWERS message.

    Raises:
        WireFault: sizes that do not add up or an unknown status.
    """
    header = read_header(message)
    n_results, n_cells = header["n_tasks"], header["n_items"]
    cells_at = HEADER.itemsize + n_results * _RESULT.size
    vectors_at = cells_at + n_cells * _CELL.size
    reasons_at = message.nbytes - header["payload_bytes"]
    if not vectors_at <= reasons_at:
        raise WireFault(f"an ANSWERS message of {message.nbytes} bytes does not match its counts")
    data = message.data  # slices of it take a third of the time that those of an array do
    records = list(_RESULT.iter_unpack(data[HEADER.itemsize : cells_at]))
    vectors = _vectors(message[vectors_at:reasons_at], sum(r[-1] for r in records), header)
    cells = [
        Score(label, score) if state == PRESENT else None
        for label, score, state in _CELL.iter_unpack(data[cells_at:vectors_at])
    ]
    results, first, text, row = [], 0, reasons_at, 0
    for *said, count, length, rows in records:
        result = WireResult(*said)
        result.cells = tuple(cells[first : first + count])
        if length:
            raw = message[text : text + length].tobytes()
            result.reason = raw.decode("utf-8", "replace")
            at = cells_at + first * _CELL.size
            states = message[at : at + len(result.cells) * _CELL.size].view(CELL)["state"]
            _note_unread(result, states.tolist())
        if vectors is not None and rows:
            result.vectors = vectors[row : row + rows]
        if result.status not in STATUSES:
            raise WireFault(
                f"task {result.task} ended with status {result.status}; known are {STATUSES}"
            )
        results.append(result)
        first, text, row = first + count, text + length, row + rows
    if first != n_cells or text != message.nbytes:
        raise WireFault("the results of a message do not add up")
    return results


def _vectors(raw: np.ndarray, count: int, header: Header) -> np.ndarray | None:
    """(count, floats) float32, a view; None where there are none. Raises WireFault: other bytes."""
    if raw.nbytes != count * header["n_floats"] * VECTOR.itemsize:
        raise WireFault(f"{raw.nbytes} bytes of vectors do not match the counts of their message")
    return raw.view(VECTOR).reshape(count, -1) if raw.nbytes else None


def _text(result: WireResult) -> bytes:
    """Its reason, or a line for each image that was not read, as far as there is room."""
    lines = [" ".join(why.reason.split()) for why in result.unread if why is not None]
    text = "\n".join(lines) if lines else result.reason
    return text.encode("utf-8", "replace")[:REASON_BYTES]


def _put_unread(data: memoryview, at: int, result: WireResult) -> int:
    """Mark the records, from `at` on, of items that were not read; where the next one begins.

    A failed task has no others.
    """
    for place, why in enumerate(result.unread):
        if why is not None or not result.cells:
            state = ABSENT if why is None else BAD_ROW if why.of_input else UNREAD
            _CELL.pack_into(data, at + place * _CELL.size, 0, 0.0, state)
    return at + len(result.unread) * _CELL.size


def _note_unread(result: WireResult, states: Sequence[int]) -> None:
    """What the states of its records, and the lines of its reason, say of images not read."""
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

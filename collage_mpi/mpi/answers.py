"""Answers as they travel from a worker to rank 0.

Owns: the bytes of ANSWERS messages, and their checks.
Does not know: MPI objects, what an answer is good for.

Vectors travel under schemes that decode an image from the answers of others (parity): what
the network gave for each of its inputs.
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
from collage_mpi.scheduler.events import Score

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
        ("retryable", "?"),
        ("of_input", "?"),
        ("read_ns", "<i8"),
        # How much of the rest of the message is its own.
        ("n_cells", "<u4"),
        ("reason_bytes", "<u2"),
        ("n_vectors", "<u4"),
    ]
)
CELL = np.dtype([("label", "<i4"), ("score", "<f4"), ("present", "u1"), ("reserved", "u1", (3,))])

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
        retryable: of a failed one: another rank may do better.
        of_input: of a failed one: an image is at fault, not the rank.
        read_ns: waiting until its rank had read its images, where it did.
        cells: one record per item, None where the network gave none; () unless answered.
        vectors: (n, floats) float32, one an input of the network, where the scheme decodes from
            them; None otherwise. Of a message's results all have as many floats.
    """

    task: int
    status: int
    compute_ns: int = 0
    held_ns: int = 0
    drawn_ns: int = 0
    retryable: bool = False
    of_input: bool = False
    read_ns: int = 0
    cells: tuple[Score | None, ...] = ()
    reason: str = ""
    vectors: np.ndarray | None = None


def in_messages(results: Sequence[WireResult], room: int = UP_BYTES) -> list[list[WireResult]]:
    """The results, in order, in as few parts as fit ANSWERS messages of `room` bytes."""
    parts: list[list[WireResult]] = []
    free = 0
    for result in results:
        needed = _bytes_of(result)
        if not parts or needed > free:
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
    cells = len(result.cells) * CELL.itemsize
    return RESULT.itemsize + cells + vectors + len(_short(result.reason))


def pack_results(out: np.ndarray, session: int, results: Sequence[WireResult]) -> int:
    """Write an ANSWERS message into `out` and return its length in bytes.

    Raises:
        WireFault: it does not fit `out`.
    """
    reasons = [_short(result.reason) for result in results]
    n_cells = sum(len(result.cells) for result in results)
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
        _RESULT.pack_into(data, at, *_said(result), len(result.cells), len(reason), rows)
        at += _RESULT.size
    for result in results:
        for cell in result.cells:
            label, score = cell if cell is not None else (0, 0.0)
            _CELL.pack_into(data, at, label, score, cell is not None)
            at += _CELL.size
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
    records = list(_RESULT.iter_unpack(message[HEADER.itemsize : cells_at].data))
    vectors = _vectors(message[vectors_at:reasons_at], sum(r[-1] for r in records), header)
    cells = [
        Score(label, score) if present else None
        for label, score, present in _CELL.iter_unpack(message[cells_at:vectors_at].data)
    ]
    results, first, text, row = [], 0, reasons_at, 0
    for *said, count, length, rows in records:
        result = WireResult(*said)
        result.cells = tuple(cells[first : first + count])
        if length:
            raw = message[text : text + length].tobytes()
            result.reason = raw.decode("utf-8", "replace")
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


def _short(reason: str) -> bytes:
    return reason.encode("utf-8", "replace")[:REASON_BYTES]

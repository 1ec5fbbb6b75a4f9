"""What travels between rank 0 and the workers: tags, headers, layouts.

Owns: the bytes of every message, typed and versioned, and their checks.
Does not know: MPI objects, sockets, policy, what an answer is good for.

Two channels go down (rank 0 to a worker) and one goes up. CONTROL carries text
in a buffer of fixed size: start-up, measuring, the end (job/messages). TASK and ANSWER carry
binary messages; both have room for several tasks, of one group or of several,
so that a batch needs no new layout:

    header | task records | item or cell records | pixels, or vectors and reasons

Vectors travel under schemes that decode an image from the answers of others (parity): what
the network gave for each of its inputs.

A message of another version, session or size than announced is refused with
WireFault; nothing is unpickled.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from collage_mpi.errors import EnvironmentFault
from collage_mpi.kinds import KINDS
from collage_mpi.scheduler.events import Score

VERSION = 3
MAGIC = 0xC011A6E1
TAG_CONTROL, TAG_TASK, TAG_UP = 11, 12, 13

CONTROL_BYTES = 64 * 1024
# The ends of tasks that take more go in several messages. 256 cells and a reason fit; times 4
# receives, times 1,000 ranks: 64 MB.
UP_BYTES = 16 * 1024

TASKS, CANCEL, ANSWERS, CONTROL = 1, 2, 3, 4
ANSWERED, FAILED, SKIPPED = STATUSES = 1, 2, 3
REASON_BYTES = 480

HEADER = np.dtype(
    [
        ("magic", "<u4"),
        ("version", "<u2"),
        ("type", "<u2"),
        ("session", "<u4"),
        ("n_tasks", "<u4"),
        ("n_items", "<u4"),
        ("payload_bytes", "<u8"),
        ("n_floats", "<u4"),  # of each vector
    ]
)
TASK = np.dtype(
    [
        ("task", "<i8"),
        ("group", "<i8"),
        ("attempt", "<u2"),
        ("kind", "u1"),
        ("reserved", "u1"),
        ("n_items", "<u4"),
    ]
)
ITEM = np.dtype([("image", "<i8"), ("cell", "<u4"), ("reserved", "<u4")])
RESULT = np.dtype(
    [
        ("task", "<i8"),
        ("compute_ns", "<i8"),
        ("held_ns", "<i8"),
        ("drawn_ns", "<i8"),
        ("n_cells", "<u4"),
        ("status", "u1"),
        ("retryable", "u1"),
        ("reason_bytes", "<u2"),
        ("n_vectors", "<u4"),
        ("reserved", "<u4"),
    ]
)
CELL = np.dtype([("label", "<i4"), ("score", "<f4"), ("present", "u1"), ("reserved", "u1", (3,))])

VECTOR = np.dtype("<f4")

_CODES = {"u1": "B", "u2": "H", "u4": "I", "u8": "Q", "i4": "i", "i8": "q", "f4": "f"}


def _packer(layout: np.dtype) -> struct.Struct:
    """A layout for `struct`, reserved bytes left out: a record in 0.3 us, by numpy in 2."""
    codes = [
        f"{layout[name].itemsize}x" if name == "reserved" else _CODES[layout[name].str[1:]]
        for name in layout.names or ()
    ]
    packer = struct.Struct("<" + "".join(codes))
    assert packer.size == layout.itemsize
    return packer


_HEADER, _TASK, _ITEM, _RESULT, _CELL = map(_packer, (HEADER, TASK, ITEM, RESULT, CELL))


class WireFault(Exception):
    """A message that this version of the program cannot have sent: a defect or a foreign peer."""


class ForeignPeer(WireFault, EnvironmentFault):
    """A message of another program or version: told to the user in one line."""


class Header(TypedDict):
    """What the header of a message says beyond magic and version."""

    type: int
    session: int
    n_tasks: int
    n_items: int
    payload_bytes: int
    n_floats: int


@dataclass(slots=True)  # not frozen: that takes four times as long to make
class WireTask:
    """One task as it travels.

    Attributes:
        items: (image, cell) pairs; of a collage, cells that are not named are blank.
    """

    task: int
    group: int
    attempt: int
    kind: str
    items: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class WireResult:
    """How one task ended on its rank.

    Attributes:
        status: ANSWERED, FAILED or SKIPPED.
        cells: one record per item, None where the network gave none; () unless answered.
        compute_ns: time in the network, GPU synchronised.
        held_ns: injected delay on top of it.
        drawn_ns: service time that the delay model asked for, 0 without one.
        vectors: (n, floats) float32, one an input of the network, where the scheme decodes from
            them; None otherwise. Of a message's results all have as many floats.
    """

    task: int
    status: int
    cells: tuple[Score | None, ...] = ()
    compute_ns: int = 0
    held_ns: int = 0
    drawn_ns: int = 0
    reason: str = ""
    retryable: bool = False
    vectors: np.ndarray | None = None


def task_message_bytes(tasks: int, items: int, pixels_bytes: int) -> int:
    """Size of a TASKS message."""
    return HEADER.itemsize + tasks * TASK.itemsize + items * ITEM.itemsize + pixels_bytes


def pack_tasks(
    out: np.ndarray, session: int, tasks: Sequence[WireTask], pixels: Sequence[np.ndarray]
) -> int:
    """Write a TASKS message into `out` and return its length in bytes.

    Args:
        out: (capacity,) uint8.
        session: number of the session it belongs to.
        tasks: one or more, of any groups.
        pixels: the networks' inputs in task order, each a C-contiguous uint8 array:
            one (H, W, C) per item of a single task, one (P, P, C) per collage task.

    Raises:
        WireFault: it does not fit `out`.
    """
    at = pack_task_records(out, session, tasks, sum(array.nbytes for array in pixels))
    for array in pixels:
        out[at : at + array.nbytes] = array.reshape(-1)
        at += array.nbytes
    return at


def pack_task_records(
    out: np.ndarray, session: int, tasks: Sequence[WireTask], payload: int
) -> int:
    """The part of a TASKS message before its pixels; where those, `payload` bytes, begin.

    Raises:
        WireFault: it does not fit `out`.
    """
    n_items = sum(len(task.items) for task in tasks)
    total = task_message_bytes(len(tasks), n_items, payload)
    if total > out.nbytes:
        raise WireFault(f"a message of {total} bytes for a buffer of {out.nbytes}")
    data = out.data
    at = _put_header(data, TASKS, session, len(tasks), n_items, payload)
    for task in tasks:
        kind = KINDS.index(task.kind)
        _TASK.pack_into(data, at, task.task, task.group, task.attempt, kind, len(task.items))
        at += _TASK.size
    for task in tasks:
        for image, cell in task.items:
            _ITEM.pack_into(data, at, image, cell)
            at += _ITEM.size
    return at


def unpack_tasks(message: np.ndarray) -> tuple[list[WireTask], np.ndarray]:
    """The tasks of a TASKS message and a view of their pixels.

    Args:
        message: (n,) uint8, exactly the bytes received.

    Returns:
        The tasks and (payload_bytes,) uint8, a view into `message`.

    Raises:
        WireFault: the counts do not match the size, or a kind is unknown.
    """
    header = read_header(message)
    n_tasks, n_items, payload = header["n_tasks"], header["n_items"], header["payload_bytes"]
    if task_message_bytes(n_tasks, n_items, payload) != message.nbytes:
        raise WireFault(f"a TASKS message of {message.nbytes} bytes does not match its counts")
    items_at = _HEADER.size + n_tasks * _TASK.size
    pixels_at = items_at + n_items * _ITEM.size
    records = list(_TASK.iter_unpack(message[_HEADER.size : items_at].data))
    if sum(record[-1] for record in records) != n_items:
        raise WireFault("the tasks of a message do not add up to its items")
    pairs = list(_ITEM.iter_unpack(message[items_at:pixels_at].data))
    tasks, first = [], 0
    for task, group, attempt, kind, count in records:
        if kind >= len(KINDS):
            raise WireFault(f"task {task} is of kind {kind}; known are 0 to {len(KINDS) - 1}")
        tasks.append(
            WireTask(task, group, attempt, KINDS[kind], tuple(pairs[first : first + count]))
        )
        first += count
    return tasks, message[pixels_at:]


def cancel_message_bytes(tasks: int) -> int:
    """Size of a CANCEL message."""
    return HEADER.itemsize + 8 * tasks


def pack_cancel(out: np.ndarray, session: int, tasks: Sequence[int]) -> int:
    """Write a CANCEL message for task ids into `out`; return its length in bytes."""
    at = _put_header(out.data, CANCEL, session, len(tasks), 0, 0)
    end = at + 8 * len(tasks)
    out[at:end].view("<i8")[:] = tasks
    return end


def unpack_cancel(message: np.ndarray) -> list[int]:
    """The task ids of a CANCEL message. Raises WireFault on a wrong size."""
    header = read_header(message)
    if message.nbytes != HEADER.itemsize + 8 * header["n_tasks"]:
        raise WireFault(f"a CANCEL message of {message.nbytes} bytes does not match its count")
    return list(message[HEADER.itemsize :].view("<i8").tolist())


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
    at = _put_header(data, ANSWERS, session, *sizes, floats)
    for result, reason in zip(results, reasons, strict=True):
        _RESULT.pack_into(
            data,
            at,
            result.task,
            result.compute_ns,
            result.held_ns,
            result.drawn_ns,
            len(result.cells),
            result.status,
            result.retryable,
            len(reason),
            0 if result.vectors is None else len(result.vectors),
        )
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
    cells_at = _HEADER.size + n_results * _RESULT.size
    vectors_at = cells_at + n_cells * _CELL.size
    reasons_at = message.nbytes - header["payload_bytes"]
    if not vectors_at <= reasons_at:
        raise WireFault(f"an ANSWERS message of {message.nbytes} bytes does not match its counts")
    records = list(_RESULT.iter_unpack(message[_HEADER.size : cells_at].data))
    vectors = _vectors(message[vectors_at:reasons_at], sum(r[-1] for r in records), header)
    cells = [
        Score(label, score) if present else None
        for label, score, present in _CELL.iter_unpack(message[cells_at:vectors_at].data)
    ]
    results, first, text, row = [], 0, reasons_at, 0
    for task, compute_ns, held_ns, drawn_ns, count, status, retryable, length, rows in records:
        if status not in STATUSES:
            raise WireFault(f"task {task} ended with status {status}; known are {STATUSES}")
        raw = message[text : text + length].tobytes() if length else b""
        reason = raw.decode("utf-8", "replace")
        own = tuple(cells[first : first + count])
        results.append(
            WireResult(
                task,
                status,
                own,
                compute_ns,
                held_ns,
                drawn_ns,
                reason,
                bool(retryable),
                None if vectors is None or not rows else vectors[row : row + rows],
            )
        )
        first, text, row = first + count, text + length, row + rows
    if first != n_cells or text != message.nbytes:
        raise WireFault("the results of a message do not add up")
    return results


def _vectors(raw: np.ndarray, count: int, header: Header) -> np.ndarray | None:
    """(count, floats) float32, a view; None where there are none. Raises WireFault: other bytes."""
    if raw.nbytes != count * header["n_floats"] * VECTOR.itemsize:
        raise WireFault(f"{raw.nbytes} bytes of vectors do not match the counts of their message")
    return raw.view(VECTOR).reshape(count, -1) if raw.nbytes else None


def pack_control(out: np.ndarray, session: int, text: bytes) -> int:
    """Write a CONTROL message into `out` and return its length in bytes.

    Raises:
        WireFault: it does not fit `out`.
    """
    end = HEADER.itemsize + len(text)
    if end > out.nbytes:
        raise WireFault(f"a control message of {end} bytes for a buffer of {out.nbytes}")
    _put_header(out.data, CONTROL, session, 0, 0, len(text))
    out[HEADER.itemsize : end] = np.frombuffer(text, np.uint8)
    return end


def unpack_control(message: np.ndarray) -> bytes:
    """The text of a CONTROL message. Raises WireFault on another type or a wrong size."""
    header = read_header(message)
    text = message[HEADER.itemsize :].tobytes()
    if header["type"] != CONTROL or len(text) != header["payload_bytes"]:
        raise WireFault(f"a message of type {header['type']} and {len(text)} bytes is no CONTROL")
    return text


def read_header(message: np.ndarray) -> Header:
    """The checked header of any message.

    Raises:
        WireFault: too short.
        ForeignPeer: of another program or version.
    """
    if message.nbytes < HEADER.itemsize:
        raise WireFault(f"a message of {message.nbytes} bytes; a header needs {HEADER.itemsize}")
    magic, version, kind, session, n_tasks, n_items, payload, floats = _HEADER.unpack_from(
        message.data
    )
    if magic != MAGIC or version != VERSION:
        raise ForeignPeer(
            f"a message with magic {magic:#x} version {version}; "
            f"needed are {MAGIC:#x} version {VERSION}: do all ranks run the same collage_mpi?"
        )
    return {
        "type": kind,
        "session": session,
        "n_tasks": n_tasks,
        "n_items": n_items,
        "payload_bytes": payload,
        "n_floats": floats,
    }


def _put_header(
    data: memoryview,
    kind: int,
    session: int,
    n_tasks: int,
    n_items: int,
    payload: int,
    floats: int = 0,
) -> int:
    _HEADER.pack_into(data, 0, MAGIC, VERSION, kind, session, n_tasks, n_items, payload, floats)
    return _HEADER.size


def _short(reason: str) -> bytes:
    return reason.encode("utf-8", "replace")[:REASON_BYTES]

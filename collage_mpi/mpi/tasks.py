"""The messages with tasks and cancels, which a coordinator sends to a worker.

A task carries the pixels of its images, or their files as they are stored, or only their places in
the input, where the worker reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from itertools import starmap
from typing import Protocol

import numpy as np

from collage_mpi.kinds import KINDS
from collage_mpi.mpi.protocol import (
    CANCEL,
    HEADER,
    TASKS,
    WireFault,
    read_header,
    write,
)
from collage_mpi.rows import packer

TASK = np.dtype(
    [
        ("task", "<i8"),
        # The kind's code, what the task carries, and the number of its item records.
        ("kind", "u1"),
        ("by_place", "?"),
        ("as_files", "?"),
        ("n_items", "<u4"),
    ]
)
# One record stands for `images` images with consecutive numbers and cells.
ITEM = np.dtype([("image", "<i8"), ("cell", "<u4"), ("images", "<u4")])
PLACE = np.dtype([("shard", "<u4"), ("row", "<u8")])
FILE = np.dtype([("nbytes", "<u4")])  # before its bytes
PIXELS = 1 << 31  # added to `nbytes`: pixels follow, because they are smaller than the file


class Task(Protocol):
    """What is packed of a task: its number, its kind, and how many images it has."""

    @property
    def id(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def positions(self) -> Sized: ...


_TASK, _ITEM, _PLACE, _FILE = map(packer, (TASK, ITEM, PLACE, FILE))


@dataclass(slots=True)  # not frozen: that takes four times as long to make
class WireTask:
    """One task of a message.

    Attributes:
        items: (image, cell) pairs. The other cells of a collage are blank.
        by_place: the task carries a place for each item instead of pixels, also if its worker is
            to paste the images.
        as_files: the task carries a `pack_file` for each item.
    """

    task: int
    kind: str
    items: Sequence[tuple[int, int]]
    by_place: bool = False
    as_files: bool = False


def task_message_bytes(tasks: int, items: int, pixels_bytes: int) -> int:
    """Largest size of a TASKS message: with a record for each item."""
    return HEADER.itemsize + tasks * TASK.itemsize + items * ITEM.itemsize + pixels_bytes


def pack_tasks(
    out: np.ndarray,
    session: int,
    tasks: Sequence[Task],
    items: Sequence[bytes],
    pixels: Sequence[np.ndarray] | bytes = (),
    following: int = 0,
    as_files: bool = False,
) -> int:
    """Write a TASKS message into `out` and return its length in bytes.

    The caller then writes the `following` bytes of pixels after it.

    Args:
        out: (capacity,) uint8.
        session: number of the session.
        tasks: one or more, of one kind.
        items: the ITEM records of each task.
        pixels: the networks' inputs in task order, each a C-contiguous uint8 array: one (H, W, C)
            for each item of a single task, one (P, P, C) for a collage task. The bytes of a PLACE
            for each image make tasks by place.
        following: bytes of further pixels.
        as_files: the pixels are a `pack_file` for each item.

    Raises:
        WireFault: the message does not fit `out` with the bytes that follow.
    """
    by_place = isinstance(pixels, bytes)
    arrays: Sequence[np.ndarray] = () if isinstance(pixels, bytes) else pixels
    named = pixels if isinstance(pixels, bytes) else b""
    kind, count, payload = KINDS.index(tasks[0].kind), 0, following + len(named)
    records = []
    for task, own in zip(tasks, items, strict=True):
        count += len(task.positions)
        records.append(_TASK.pack(task.id, kind, by_place, as_files, len(own) // _ITEM.size))
    for array in arrays:
        payload += array.nbytes
    head = TASKS, session, len(tasks), count, payload
    return write(out, head, b"".join([*records, *items, named]), arrays, following)


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
    items_at = HEADER.itemsize + header.n_tasks * _TASK.size
    pixels_at = message.nbytes - header.payload_bytes
    whole = pixels_at >= items_at and (pixels_at - items_at) % _ITEM.size == 0
    if not whole or header.n_items > message.nbytes:  # each image takes at least a byte
        raise WireFault(f"a TASKS message of {message.nbytes} bytes does not match its counts")
    records = list(_TASK.iter_unpack(message[HEADER.itemsize : items_at].data))
    runs = list(_ITEM.iter_unpack(message[items_at:pixels_at].data))
    own = sum([record[-1] for record in records])
    if own != len(runs) or sum([images for *_, images in runs]) != header.n_items:
        raise WireFault("the tasks of a message do not add up to its items")
    tasks, first = [], 0
    for task, kind, by_place, as_files, count in records:
        if kind >= len(KINDS):
            raise WireFault(f"task {task} is of kind {kind}; known are 0 to {len(KINDS) - 1}")
        items = tuple(
            (image + more, cell + more)
            for image, cell, images in runs[first : first + count]
            for more in range(images)
        )
        tasks.append(WireTask(task, KINDS[kind], items, by_place, as_files))
        first += count
    return tasks, message[pixels_at:]


def pack_places(places: Iterable[tuple[int, int]]) -> bytes:
    """The payload of tasks by place: (shard, row) of n items in n * PLACE.itemsize bytes."""
    return b"".join(starmap(_PLACE.pack, places))


def unpack_places(payload: np.ndarray) -> list[tuple[int, int]]:
    """(shard number, row) of each item of a task by place.

    Args:
        payload: (n * PLACE.itemsize,) uint8.

    Raises:
        WireFault: the payload has another size.
    """
    if payload.nbytes % _PLACE.size:
        raise WireFault(f"places of {payload.nbytes} bytes; each takes {_PLACE.size}")
    return list(_PLACE.iter_unpack(payload.data))


def pack_file(data: bytes | None, pixels: np.ndarray | None = None) -> np.ndarray:
    """A file as tasks carry it, or the image's pixels: (FILE.itemsize + bytes of it,) uint8."""
    if data is None:
        assert pixels is not None
        return np.frombuffer(_FILE.pack(pixels.nbytes | PIXELS) + pixels.tobytes(), np.uint8)
    return np.frombuffer(_FILE.pack(len(data)) + data, np.uint8)


def unpack_files(payload: np.ndarray, count: int) -> tuple[list[bytes | np.ndarray], int]:
    """The first `count` files of a payload, (n,) uint8, and the number of bytes that they take.

    In the place of a file there may be the bytes of its pixels, (k,) uint8.

    Raises:
        WireFault: the payload has fewer files.
    """
    files: list[bytes | np.ndarray] = []
    at, pixels = 0, False
    for _ in range(count):
        end = at + _FILE.size
        if end <= payload.nbytes:
            (nbytes,) = _FILE.unpack_from(payload.data, at)
            pixels = nbytes >= PIXELS
            at, end = end, end + nbytes % PIXELS
        if end > payload.nbytes:
            raise WireFault(f"a payload of {payload.nbytes} bytes does not hold {count} files")
        files.append(payload[at:end] if pixels else payload[at:end].tobytes())
        at = end
    return files, at


def cancel_message_bytes(tasks: int) -> int:
    """Size of a CANCEL message."""
    return HEADER.itemsize + 8 * tasks


def pack_cancel(out: np.ndarray, session: int, tasks: Sequence[int]) -> int:
    """Write a CANCEL message for task ids into `out`; return its length in bytes."""
    return write(out, (CANCEL, session, len(tasks), 0, 0), np.array(tasks, "<i8").tobytes())


def unpack_cancel(message: np.ndarray) -> list[int]:
    """The task ids of a CANCEL message. Raises WireFault on a wrong size."""
    if message.nbytes != cancel_message_bytes(read_header(message).n_tasks):
        raise WireFault(f"a CANCEL message of {message.nbytes} bytes does not match its count")
    return list(message[HEADER.itemsize :].view("<i8").tolist())

"""The format that all messages between a coordinator and its workers share.

Two channels go down (rank 0 to a worker) and one goes up. CONTROL carries text in a buffer of fixed
size: start-up, measuring, the end (job/messages). TASK and ANSWER carry binary messages (`tasks`,
`answers`). Both have room for several tasks, of one group or of several:

    header | task records | item or cell records | pixels or places, or vectors and reasons

A message of another version, or whose size does not match its header, is refused with WireFault.
Nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from collage_mpi.errors import EnvironmentFault
from collage_mpi.rows import packer

VERSION = 22
MAGIC = 0xC011A6E1
TAG_CONTROL, TAG_TASK, TAG_UP = 11, 12, 13

CONTROL_BYTES = 64 * 1024
# Longer answers are split into several messages. 256 cells and a reason fit. Rank 0 keeps 4
# receives of this size for each rank: 64 MB for 1,000 ranks.
UP_BYTES = 16 * 1024

TASKS, CANCEL, ANSWERS, CONTROL = 1, 2, 3, 4

HEADER = np.dtype(
    [
        ("magic", "<u4"),
        ("version", "<u2"),
        ("type", "<u2"),
        ("session", "<u4"),
        ("n_tasks", "<u4"),
        ("n_items", "<u4"),
        ("payload_bytes", "<u8"),
    ]
)

_HEADER = packer(HEADER)


class WireFault(Exception):
    """A message that this version of the program cannot have sent: a defect or a foreign peer."""


class ForeignPeer(WireFault, EnvironmentFault):
    """A message of another program or version. The user gets one line."""


class Header(NamedTuple):
    """The fields of a header after magic and version, in the order of HEADER.

    Attributes:
        type: TASKS, CANCEL, ANSWERS or CONTROL.
        session: number of the session.
        n_tasks, n_items: number of records.
        payload_bytes: size of pixels or places, of reasons, or of a control message's text.
    """

    type: int
    session: int
    n_tasks: int = 0
    n_items: int = 0
    payload_bytes: int = 0


def write(
    out: np.ndarray,
    header: tuple[int, ...],
    records: bytes,
    arrays: Sequence[np.ndarray] = (),
    following: int = 0,
) -> int:
    """Write a message into `out`, (capacity,) uint8, and return how many bytes it has written.

    Args:
        header: the fields of a `Header`.
        records: bytes after the header.
        arrays: written after the records, C-contiguous uint8.
        following: number of bytes that the caller writes after the arrays.

    Raises:
        WireFault: the message does not fit `out`.
    """
    head = _HEADER.pack(MAGIC, VERSION, *header) + records
    at = len(head)
    total = at + following
    for array in arrays:
        total += array.size
    if total > out.size:
        raise WireFault(f"a message of {total} bytes for a buffer of {out.size}")
    out.data[:at] = head
    for array in arrays:
        out[at : at + array.size] = array.reshape(-1)
        at += array.size
    return at


def read_header(message: np.ndarray) -> Header:
    """The checked header of any message.

    Raises:
        WireFault: the message is shorter than a header.
        ForeignPeer: the message comes from another program or version.
    """
    if message.nbytes < HEADER.itemsize:
        raise WireFault(f"a message of {message.nbytes} bytes; a header needs {HEADER.itemsize}")
    magic, version, kind, session, tasks, items, payload = _HEADER.unpack_from(message.data)
    if magic != MAGIC or version != VERSION:
        raise ForeignPeer(
            f"a message with magic {magic:#x} version {version}; "
            f"needed are {MAGIC:#x} version {VERSION}: do all ranks run the same collage_mpi?"
        )
    return Header(kind, session, tasks, items, payload)


def pack_control(out: np.ndarray, session: int, text: bytes) -> int:
    """Write a CONTROL message into `out`; see `write`."""
    return write(out, Header(CONTROL, session, payload_bytes=len(text)), text)


def unpack_control(message: np.ndarray) -> bytes:
    """The text of a CONTROL message. Raises WireFault on another type or a wrong size."""
    header = read_header(message)
    text = message[HEADER.itemsize :].tobytes()
    if header.type != CONTROL or len(text) != header.payload_bytes:
        raise WireFault(f"a message of type {header.type} and {len(text)} bytes is no CONTROL")
    return text

"""What every message between rank 0 and the workers begins with, and what CONTROL carries.

Owns: channels, types, versions and sessions, their checks, the errors of a wrong one.
Does not know: MPI objects, sockets, what a message says.

Two channels go down (rank 0 to a worker) and one goes up. CONTROL carries text
in a buffer of fixed size: start-up, measuring, the end (job/messages). TASK and ANSWER carry
binary messages (`tasks`, `answers`); both have room for several tasks, of one group or of several,
so that a batch needs no new layout:

    header | task records | item or cell records | pixels or places, or vectors and reasons

A message of another version, session or size than announced is refused with
WireFault; nothing is unpickled.
"""

from __future__ import annotations

import struct
from typing import TypedDict

import numpy as np

from collage_mpi.errors import EnvironmentFault

VERSION = 6
MAGIC = 0xC011A6E1
TAG_CONTROL, TAG_TASK, TAG_UP = 11, 12, 13

CONTROL_BYTES = 64 * 1024
# The ends of tasks that take more go in several messages. 256 cells and a reason fit; times 4
# receives, times 1,000 ranks: 64 MB.
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
        ("n_floats", "<u4"),  # of each vector
    ]
)

_CODES = {"b1": "?", "u1": "B", "u2": "H", "u4": "I", "u8": "Q", "i4": "i", "i8": "q", "f4": "f"}


def packer(layout: np.dtype) -> struct.Struct:
    """A layout for `struct`, reserved bytes left out: a record in 0.3 us, by numpy in 2."""
    codes = [
        f"{layout[name].itemsize}x" if name == "reserved" else _CODES[layout[name].str[1:]]
        for name in layout.names or ()
    ]
    packer = struct.Struct("<" + "".join(codes))
    assert packer.size == layout.itemsize
    return packer


_HEADER = packer(HEADER)


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


def pack_control(out: np.ndarray, session: int, text: bytes) -> int:
    """Write a CONTROL message into `out` and return its length in bytes.

    Raises:
        WireFault: it does not fit `out`.
    """
    end = HEADER.itemsize + len(text)
    if end > out.nbytes:
        raise WireFault(f"a control message of {end} bytes for a buffer of {out.nbytes}")
    put_header(out.data, CONTROL, session, 0, 0, len(text))
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


def put_header(
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

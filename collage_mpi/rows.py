"""The three tables of a run (images, groups, tasks): their columns, binary layouts and codes.

Rows are written by `struct` and read by numpy. Both layouts come from the row's class, so that they
agree. `struct` packs a row in about a microsecond, and raises at once if a value does not fit.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Annotated, NamedTuple, get_type_hints

import numpy as np

from collage_mpi.kinds import ENCODED_KINDS, KIND, SHARED_KINDS, TABLE

KEPT = "kept"  # an answer that was too uncertain to count at once, but counted later

# What the codes of rows stand for: kinds of network, and sources, which are kinds or why a task was
# sent. Codes are fixed. Only runs of earlier versions have "parity" and "coded".
_KINDS = {kind.code: kind.name for kind in TABLE} | {2: "parity", 4: "coded"}
KINDS = tuple(_KINDS[code] for code in range(len(_KINDS)))
_SOURCES = {kind.source: kind.name for kind in TABLE} | {4: "parity", 9: "coded"}
_SOURCES |= {2: "replica", 3: "hedge", 5: "retry", 6: "error", 7: "endgame", 10: KEPT, 13: "check"}
SOURCES = tuple(_SOURCES[code] for code in range(len(_SOURCES)))
OUTCOMES = ("answered", "skipped", "failed", "lost", "unfinished")
# Who answered: runtime and number format. "" is a null network or an older run, "own" an object of
# the user's code, which computes by itself.
ANSWERERS = (
    "",
    "own",
    *(
        f"{runtime} {precision}"
        for runtime in ("torch", "compile", "openvino", "onnx")
        for precision in ("float32", "float16", "bfloat16")
    ),
    "openvino int8",
    "onnx int8",
)
# Result of the audit, in which the single network is asked too; "" if there was none
AUDITS = ("", "done", "failed")

# Column that holds codes -> what they stand for
NAMES = {
    "runtime": ANSWERERS,
    "source": SOURCES,
    "audited": AUDITS,
    "kind": KINDS,
    "outcome": OUTCOMES,
}

SOURCE_CODE = {name: code for code, name in enumerate(SOURCES)}
KIND_CODE = {name: code for code, name in enumerate(KINDS)}
AUDIT_CODE = {name: code for code, name in enumerate(AUDITS)}
OUTCOME_CODE = {name: code for code, name in enumerate(OUTCOMES)}

# Sources whose task was encoded.
_ENCODED_KINDS = (*ENCODED_KINDS, "parity", "coded")
ENCODED = tuple(SOURCE_CODE[name] for name in (*_ENCODED_KINDS, KEPT))

# Columns for the answers of a cascade's networks that do not count, by their place in it.
OTHERS = (("other", "other_score"), ("other2", "other2_score"), ("other3", "other3_score"))
CHANGED = 3  # the bit of `stages` that says so of the first of them

# Sources of answers that a cascade accepts before it asks the single network.
ASKED_FIRST = tuple(SOURCE_CODE[kind] for kind in SHARED_KINDS)

_ENCODED_KIND = np.array([kind in _ENCODED_KINDS for kind in KINDS])

REASON_BYTES = 96
MOST_ITEMS = 65_535  # images of a task, by the type of the column

_STRUCT_OF = {
    "u1": "B",
    "b1": "?",
    "<u2": "H",
    "<u4": "I",
    "<u8": "Q",
    "<i2": "h",
    "<i4": "i",
    "<i8": "q",
    "<f4": "f",
    f"S{REASON_BYTES}": f"{REASON_BYTES}s",
}


def packer(layout: np.dtype) -> struct.Struct:
    """A `struct` packer for the layout; it packs a record in 0.3 us, numpy in 2 us.

    Reserved bytes are skipped.
    """
    codes = [
        f"{layout[name].itemsize}x"
        if name == "reserved"
        else _STRUCT_OF[layout[name].str.lstrip("|")]
        for name in layout.names or ()
    ]
    packer = struct.Struct("<" + "".join(codes))
    assert packer.size == layout.itemsize
    return packer


# Types of columns with their dtype. A plain `int` is stored as int64.
U1 = Annotated[int, "<u1"]
U2 = Annotated[int, "<u2"]
U4 = Annotated[int, "<u4"]
U8 = Annotated[int, "<u8"]
I2 = Annotated[int, "<i2"]
I4 = Annotated[int, "<i4"]
F4 = Annotated[float, "<f4"]
Flag = Annotated[bool, "?"]
Reason = Annotated[bytes | str, f"S{REASON_BYTES}"]


@dataclass(slots=True, kw_only=True)
class Measured:
    """What a worker measures of a task: columns of its images, to which rank 0 may add."""

    compute_ns: int = 0  # in the network, GPU synchronised, for the whole message
    read_ns: int = 0  # how long the network waited until its rank had read the images
    runtime: int = 0  # who answered, an index into ANSWERERS


class ImageRow(NamedTuple):
    """One image of the input and its outcome (C4). All `_ns` are rank 0's clock.

    `predicted`, `score`, `rank` and the parts of the latency are valid only if `answered` is true,
    `label` only if `has_label` is true, `other` and `other_score` only if `audited` is "done".

    In a cascade, `stages` says whose answers the columns OTHERS hold: bit i is set if column pair i
    has that of the first network at place i, whose image the exact network resolved. Without such a
    bit `other` is the exact network's answer, which audits an accepted one. Bit 3 + i is set if the
    answer of the network at place i is changed, as `RunSettings.agree_on` says.
    """

    shard: U4
    row: U8
    position: U8  # in the order of the run
    group: int  # counted by its session
    cell: I2
    source: U1  # index into SOURCES
    answered: Flag
    predicted: I4
    score: F4
    has_label: Flag
    label: I4
    rank: I4
    attempt: U1
    t0_ns: int  # since the session began
    latency_ns: int
    read_ns: int
    encode_ns: int
    decode_ns: int
    compute_ns: int  # of the answering task
    session: U2
    warmup: Flag
    audited: U1  # index into AUDITS
    other: I4  # class from the network whose answer does not count
    other_score: F4
    stages: U1
    other2: I4
    other2_score: F4
    other3: I4
    other3_score: F4
    runtime: U1  # index into ANSWERERS: runtime and number format of the answering task
    reason: Reason


class GroupRow(NamedTuple):
    """One group of images, which are admitted together. It ends when its last image is resolved.

    These rows are not stored: they follow from those of the images (`results.reader`).
    """

    group: int
    images: I4
    t0_ns: int
    latency_ns: int
    encode_ns: int
    classes: I4  # distinct labels in the group, 0 if the input has none
    collage_cells: I4  # images that the collage resolved
    session: U2
    warmup: Flag


class TaskRow(NamedTuple):
    """One task, sent to one rank, and how it ended.

    The `done_ns` of an unfinished task is the end of the session, so its duration is censored.
    """

    task: int
    rank: I4
    kind: U1  # index into KINDS
    group: int
    attempt: U1
    items: U2
    resolved: U2  # images that it resolved
    sent_ns: int
    done_ns: int
    compute_ns: int
    outcome: U1  # index into OUTCOMES
    session: U2
    warmup: Flag
    reason: Reason


@dataclass(frozen=True)
class TableLayout:
    """One table: its name, which is in file names, its row class and its two binary layouts."""

    name: str
    row: type
    dtype: np.dtype
    packer: struct.Struct
    coded: tuple[str, ...]  # columns of codes

    def only(self, *names: str) -> np.dtype:
        """A structured dtype of some of the columns, for `columns_of`."""
        return np.dtype([(name, self.dtype[name]) for name in names])


def _table(name: str, row: type) -> TableLayout:
    """Derive both layouts from the row class."""
    hints = get_type_hints(row, include_extras=True)
    types = [getattr(hint, "__metadata__", ("<i8",))[0] for hint in hints.values()]
    dtype = np.dtype(list(zip(hints, types, strict=True)))
    coded = tuple(column for column in hints if column in NAMES)
    return TableLayout(name, row, dtype, packer(dtype), coded)


# An image as it enters the job: where it lies in the input, and its label.
PLACED = np.dtype(
    [("shard", "<u4"), ("row", "<u8"), ("position", "<u8"), ("has_label", "?"), ("label", "<i4")]
)
# An image's answer in a message: its class and score, or why there is none. An answer with another
# class, or with another `also`, is changed.
CELL = np.dtype(
    [("label", "<i4"), ("score", "<f4"), ("state", "u1"), ("reserved", "u1"), ("also", "<u2")]
)
ABSENT, PRESENT, UNREAD, BAD_ROW = range(4)  # states of a cell; UNREAD, BAD_ROW: not read


IMAGES = _table("images", ImageRow)
GROUPS = _table("groups", GroupRow)
TASKS = _table("tasks", TaskRow)
TABLES = (IMAGES, GROUPS, TASKS)
STORED = (IMAGES, TASKS)  # the groups are computed

IMAGE_ROW = IMAGES.dtype
MEASURED = IMAGES.only(*(each.name for each in fields(Measured)))
_pack_measured, _of_measured = packer(MEASURED).pack, attrgetter(*MEASURED.names or ())
GROUP_ROW = GROUPS.dtype
TASK_ROW = TASKS.dtype


def measured_bytes(found: Measured) -> bytes:
    """What a worker has measured, as a record of MEASURED."""
    return _pack_measured(*_of_measured(found))


NOT_MEASURED = measured_bytes(Measured())
KEY_ROW = np.dtype([("shard", "<u4"), ("row", "<u8")])


def columns_of(rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A copy of some columns of the rows: (n,) of the structured dtype, which names them."""
    found = np.empty(len(rows), dtype)
    for name in dtype.names or ():
        found[name] = rows[name]
    return found


def flat_keys(rows: np.ndarray | Mapping[str, np.ndarray]) -> np.ndarray:
    """(n,) uint64, shard and row in one number. It is unique because no shard has 2**40 rows."""
    found: np.ndarray = rows["shard"].astype(np.uint64) << np.uint64(40)
    return found | rows["row"].astype(np.uint64)


def reason_bytes(text: str | bytes) -> bytes:
    """A reason as at most REASON_BYTES of UTF-8, cut between characters and without newlines."""
    if not text:
        return b""
    if isinstance(text, bytes):
        return text[:REASON_BYTES]
    raw = " ".join(text.split()).encode("utf-8", "replace")[:REASON_BYTES]
    return raw.decode("utf-8", "ignore").encode()


def inputs_of(tasks: np.ndarray) -> np.ndarray:
    """How many inputs the network got for each task: one an image, but one for an encoded task.

    Args:
        tasks: (n,) with the columns kind and items of TASK_ROW.

    Returns:
        (n,) int64.
    """
    items = np.maximum(tasks["items"], 1)
    return np.where(_ENCODED_KIND[tasks["kind"]], 1, items).astype(np.int64)


def ran_together(tasks: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    """The size of the batch that each task ran in. A batch is the tasks of one message that ran.

    The compute_ns of a task is that of its whole batch.

    Args:
        tasks: (n,) of TASK_ROW.
        own: (n,) int64, sizes of the tasks, such as `inputs_of`, to sum over the batch; by default
            each task counts as 1.

    Returns:
        (n,) int64. A task that did not run has its own size.
    """
    sizes = np.ones(len(tasks), np.int64) if own is None else own.copy()
    ran = np.flatnonzero(tasks["compute_ns"] > 0)
    keys = [tasks[name][ran] for name in ("session", "rank", "sent_ns", "done_ns")]
    order = np.lexsort(keys)
    if len(ran):
        new = np.zeros(len(ran), bool)
        for key in keys:
            new[1:] |= key[order][1:] != key[order][:-1]
        batch = np.cumsum(new)  # (ran,) int64, the number of each one's batch
        sizes[ran[order]] = np.bincount(batch, sizes[ran[order]]).astype(np.int64)[batch]
    return sizes


def pairs_in(rows: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which images a first network and the exact one have both answered, the score of the first
    one's answer, accepted or not, and whether it is changed.

    Args:
        rows: (n,) of IMAGE_ROW.
        kind: of the first network.

    Returns:
        (n,) bool, and (n,) float32 and (n,) bool, which are valid where the first is true.
    """
    place = KIND[kind].place
    accepted = rows["source"] == SOURCE_CODE[kind]
    both = accepted | (rows["stages"] >> place & 1 == 1)
    scores = np.where(accepted, rows["score"], rows[OTHERS[place][1]])
    changed = rows["stages"] >> place + CHANGED & 1 == 1
    return both & (rows["audited"] == AUDIT_CODE["done"]), scores, changed


def wait_ns(images: np.ndarray) -> np.ndarray:
    """The part of each image's latency that is not reading, encoding or service (C3).

    It is latency - read - encode - compute: the transfer, the queues at both ends and the
    time between two polls. Encode is subtracted only for answers of a collage, because
    single tasks leave before it is encoded. decode_ns is not part of the latency, which
    ends when the answer is received.

    Args:
        images: (n,) of IMAGE_ROW.

    Returns:
        (n,) int64 ns; meaningful where `answered`.
    """
    known = images["read_ns"] + images["compute_ns"]
    encoded = np.where(np.isin(images["source"], ENCODED), images["encode_ns"], 0)
    return images["latency_ns"] - known - encoded

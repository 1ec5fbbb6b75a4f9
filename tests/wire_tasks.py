"""Tasks and results on the wire as a worker knows them: rank 0 packs and unpacks them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from collage_mpi.core.events import LOST_REASON, Answered, Skipped
from collage_mpi.mpi.answers import (
    ANSWERED,
    BEGIN_BYTES,
    FAILED,
    RESULT,
    SKIPPED,
    Score,
    Unread,
    WireResult,
    unpack_ends,
)
from collage_mpi.mpi.protocol import read_header
from collage_mpi.mpi.tasks import ITEM, WireTask, pack_tasks
from collage_mpi.rows import BAD_ROW, MEASURED, PRESENT, UNREAD, packer

unpack = packer(MEASURED).unpack


class Packed(NamedTuple):
    """What `pack_tasks` takes of a task."""

    id: int
    kind: str
    positions: range


def pack_wire_tasks(
    out: np.ndarray, session: int, tasks: list[WireTask], pixels: Any = (), following: int = 0
) -> int:
    """A TASKS message of tasks as the worker knows them."""
    records = [
        np.array([(image, cell, 1) for image, cell in task.items], ITEM).tobytes() for task in tasks
    ]
    packed = [Packed(task.task, task.kind, range(len(task.items))) for task in tasks]
    files = tasks[0].as_files
    return pack_tasks(out, session, packed, records, pixels, following, as_files=files)


def unpack_results(message: np.ndarray) -> list[WireResult]:
    """The results of an ANSWERS message, as the worker packed them."""
    header, found = read_header(message), []
    ends = unpack_ends(0, header, message)
    records = message[BEGIN_BYTES:][: header.n_tasks * RESULT.itemsize].view(RESULT)
    counts = iter(records["n_cells"].tolist())
    for end in ends:
        if isinstance(end, Skipped):
            next(counts)
            found.append(WireResult(end.task, SKIPPED))
            continue
        lines, first = iter(end.reasons), 0
        for task in end.tasks if isinstance(end, Answered) else [end.task]:
            part = slice(first, first := first + next(counts))
            states = end.cells["state"][part].tolist()
            unread = tuple(
                Unread(next(lines, LOST_REASON), state == BAD_ROW)
                if state in (UNREAD, BAD_ROW)
                else None
                for state in states
            )
            cells = tuple(
                Score(int(cell["label"]), float(cell["score"]), int(cell["also"]))
                if state == PRESENT
                else None
                for cell, state in zip(end.cells[part], states, strict=True)
            )
            answered = isinstance(end, Answered)
            status, reason = ANSWERED if answered else FAILED, "\n".join(end.reasons)
            result = WireResult(task, status, reason=reason)
            if answered:
                for name, value in zip(MEASURED.names, unpack(end.measured), strict=True):
                    setattr(result, name, value)
                result.cells = cells
                result.vectors = None if end.vectors is None else end.vectors[part]
            if any(unread):
                result.unread = unread
                result.reason = next(why.reason for why in unread if why)
            found.append(result)
    return found

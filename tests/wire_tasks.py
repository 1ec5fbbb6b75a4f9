"""Tasks and results on the wire as a worker knows them: rank 0 packs and unpacks them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from collage_mpi.core.events import LOST_REASON, Answered, Failed
from collage_mpi.mpi.answers import (
    ANSWERED,
    FAILED,
    SKIPPED,
    Score,
    Unread,
    WireResult,
    unpack_ends,
)
from collage_mpi.mpi.protocol import read_header
from collage_mpi.mpi.tasks import ITEM, WireTask, pack_tasks
from collage_mpi.rows import BAD_ROW, PRESENT, UNREAD


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
    found = []
    for end in unpack_ends(0, read_header(message), message):
        if isinstance(end, Answered | Failed):
            states = end.cells["state"].tolist()
            lines = iter(end.reasons)
            unread = tuple(
                Unread(next(lines, LOST_REASON), state == BAD_ROW)
                if state in (UNREAD, BAD_ROW)
                else None
                for state in states
            )
            cells = tuple(
                Score(int(cell["label"]), float(cell["score"])) if state == PRESENT else None
                for cell, state in zip(end.cells, states, strict=True)
            )
            answered = isinstance(end, Answered)
            status, reason = ANSWERED if answered else FAILED, "\n".join(end.reasons)
            result = WireResult(end.task, status, reason=reason)
            if answered:
                result.compute_ns, result.read_ns = end.compute_ns, end.read_ns
                result.runtime, result.vectors, result.cells = end.runtime, end.vectors, cells
            if any(unread):
                result.unread = unread
                result.reason = next(why.reason for why in unread if why)
            found.append(result)
        else:
            found.append(WireResult(end.task, SKIPPED))
    return found

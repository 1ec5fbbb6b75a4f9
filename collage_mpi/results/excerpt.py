"""What of a run on the disk is held in memory for the tables and charts that need its rows.

Of a run of many rows that is each so many-th part, of some thousand rows in a row; beside these the
slowest group of each other part, and all that lies about the slowest group of all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collage_mpi.results.parts import began_ns, launch_of
from collage_mpi.results.reader import Results, Run
from collage_mpi.results.rows import GROUPS, IMAGES, TASKS, TableLayout
from collage_mpi.results.tally import Tally

ABOUT = 9  # groups before and behind the slowest one of which all is kept


def excerpt(run: Run, tally: Tally) -> Results:
    """Groups and tasks of a run, no images; `every` says which share of its parts.

    Raises:
        EnvironmentFault, DataFault: a part cannot be read, or is damaged.
    """
    rows, bound = run.rows_of(TASKS), run.bound
    every = 1 if bound is None or rows <= bound else -(-2 * rows // bound)
    groups = _joined(
        GROUPS,
        [
            rows if i % every == 0 else rows[_telling(rows, tally)]
            for i, rows in enumerate(run.chunks(GROUPS))
        ],
    )
    spans_ns = _about(run, groups, tally) if every > 1 else {}
    tasks = _joined(
        TASKS,
        [
            rows if i % every == 0 else rows[_within(rows, spans_ns)]
            for i, rows in enumerate(run.chunks(TASKS))
        ],
    )
    images = np.empty(0, IMAGES.dtype)
    return Results(run.path, run.manifest, images, groups, tasks, run.complete, every=every)


def _joined(table: TableLayout, parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, table.dtype), *parts])


def _telling(groups: np.ndarray, tally: Tally) -> np.ndarray:
    """The slowest measured group of a part, and those about the slowest of all: (n,) bool."""
    telling = _near(groups, tally)
    measured = np.flatnonzero(~groups["warmup"])
    if len(measured):
        telling[measured[int(np.argmax(groups["latency_ns"][measured]))]] = True
    return telling


def _near(groups: np.ndarray, tally: Tally) -> np.ndarray:
    slowest = tally.groups.slowest
    if slowest is None:
        return np.zeros(len(groups), bool)
    off = np.abs(groups["group"] - slowest["group"])
    found: np.ndarray = (groups["session"] == slowest["session"]) & (off <= ABOUT)
    return found


def _about(run: Run, groups: np.ndarray, tally: Tally) -> dict[int, tuple[int, int]]:
    """Session -> from when to when, in its own time, what was sent is kept."""
    near = groups[_near(groups, tally)]
    if not len(near):
        return {}
    session = int(near["session"][0])
    first_ns = int(near["t0_ns"].min())
    last_ns = int((near["t0_ns"] + near["latency_ns"]).max())
    launches, began = launch_of(run.manifest), began_ns(run.manifest)
    together = [each for each in launches if launches[each] == launches.get(session)] or [session]
    off_ns = {each: began.get(session, 0) - began.get(each, 0) for each in together}
    return {each: (first_ns + off, last_ns + off) for each, off in off_ns.items()}


def _within(tasks: np.ndarray, spans_ns: dict[int, tuple[int, int]]) -> np.ndarray:
    within = np.zeros(len(tasks), bool)
    for session, (first_ns, last_ns) in spans_ns.items():
        mine = (tasks["session"] == session) & (tasks["done_ns"] >= first_ns)
        within |= mine & (tasks["sent_ns"] <= last_ns)
    return within

"""A trace of service times made from finished runs: what their single ranks took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.kinds import SINGLE
from collage_mpi.results.reader import Results
from collage_mpi.results.rows import KIND_CODE, OUTCOME_CODE


@dataclass(frozen=True)
class Recorded:
    """A trace made from runs.

    Attributes:
        times_s: (machines, requests) float32, seconds.
        cut: entries left out at the ends of rows to make all as long as the shortest.
        short: (run, rank, tasks) of ranks with fewer tasks than were asked for: left out.
    """

    times_s: np.ndarray
    cut: int
    short: tuple[tuple[str, int, int], ...]


def record_trace(runs: Sequence[Results], least: int = 1) -> Recorded:
    """The service times that the single ranks of finished runs showed: a row a rank.

    compute + held of each answered task in the order of its end, warm-up groups left
    out. Collage ranks are left out too: a trace is of single images, and a run multiplies
    it by the cost ratio for a collage.

    Args:
        runs: at least one; rows follow in the order of runs, then ranks.
        least: ranks with fewer tasks are left out.

    Raises:
        DataFault: no rank has enough tasks.
    """
    rows: list[np.ndarray] = []
    short: list[tuple[str, int, int]] = []
    for run in runs:
        tasks = run.measured_tasks
        wanted = (tasks["outcome"] == OUTCOME_CODE["answered"]) & (
            tasks["kind"] == KIND_CODE[SINGLE]
        )
        tasks = np.sort(tasks[wanted], order=("session", "done_ns"))
        service_s = (tasks["compute_ns"] + tasks["held_ns"]) / 1e9  # (tasks,) float64
        for rank in np.unique(tasks["rank"]):
            mine = service_s[tasks["rank"] == rank]
            mine = mine[mine > 0]
            if len(mine) < max(1, least):
                short.append((str(run.path), int(rank), len(mine)))
            else:
                rows.append(mine)
    if not rows:
        raise DataFault(
            f"no rank of {', '.join(str(run.path) for run in runs)} answered {max(1, least)} "
            "measured tasks: a longer run, fewer --warmup-groups or a smaller --min-tasks is needed"
        )
    length = min(map(len, rows))
    times_s = np.stack([row[:length] for row in rows]).astype(np.float32)
    return Recorded(times_s, sum(len(row) - length for row in rows), tuple(short))

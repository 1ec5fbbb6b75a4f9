"""Traces: files of measured service times, and making one from finished runs.

Owns: the checks of a trace, which of a run's tasks enter one.
Does not know: how a trace is drawn from (delays), models fitted to it (fitting).

A trace is a plain .npy of (machines, requests) float, seconds, each row in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.system.npy import UNREADABLE
from collage_mpi.system.regular_file import require_regular
from collage_mpi.workload.service_times import LONGEST_S

if TYPE_CHECKING:
    from collage_mpi.results import Results


def load_trace(path: str) -> np.ndarray:
    """Measured service times, checked.

    Returns:
        (machines, requests) float64, seconds, all positive.

    Raises:
        EnvironmentFault: the file is missing or unreadable.
        DataFault: no .npy of numbers, empty, of the wrong shape, or not all positive.
    """
    times = load_numbers(path, "trace")
    if times.ndim == 1:
        times = times[None, :]
    if times.ndim != 2 or times.size == 0:
        raise DataFault(
            f"trace {path} has shape {times.shape}; needed is (machines, requests), not empty"
        )
    bad = ~(np.isfinite(times) & (times > 0) & (times <= LONGEST_S))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise DataFault(
            f"trace {path} holds {int(bad.sum()):,} times that are not positive seconds, the first "
            f"in row {row}, column {column}: {times[row, column]}"
        )
    return times


def load_numbers(path: str, what: str) -> np.ndarray:
    """Any array of real numbers from a .npy, as float64; `what` names it in messages.

    Raises:
        EnvironmentFault: the file is missing or unreadable.
        DataFault: it is no .npy of numbers; nothing is unpickled.
    """
    try:
        require_regular(path)
        # Mapped: what the header claims must be there, before memory is taken for it.
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise EnvironmentFault(
            f"{what} {path} cannot be read: {error.strerror or error}"
        ) from error
    except UNREADABLE as error:
        raise DataFault(f"{what} {path} is no .npy file of numbers: {error}") from error
    if not isinstance(found, np.ndarray):
        found.close()  # an .npz
        raise DataFault(f"{what} {path} is an .npz; it needs one array: numpy.save makes it")
    if found.dtype.kind not in "fiu":
        raise DataFault(f"{what} {path} holds {found.dtype}; it needs numbers")
    return found.astype(np.float64)


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
    from collage_mpi.results.rows import KIND_CODE, OUTCOME_CODE

    rows: list[np.ndarray] = []
    short: list[tuple[str, int, int]] = []
    for run in runs:
        tasks = run.measured_tasks
        wanted = (tasks["outcome"] == OUTCOME_CODE["answered"]) & (
            tasks["kind"] == KIND_CODE["single"]
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


def save_trace(path: Path, times_s: np.ndarray) -> None:
    """Write a trace, whole or not at all; an existing file is refused.

    Raises:
        EnvironmentFault: it is there already, or cannot be written.
    """
    import io

    from collage_mpi.system.files import write_atomic

    if path.exists():
        raise EnvironmentFault(f"{path} is there already: name another --out, or remove it")
    content = io.BytesIO()
    np.save(content, times_s, allow_pickle=False)
    try:
        write_atomic(path, (content.getvalue(),))
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written: {error.strerror or error}") from error

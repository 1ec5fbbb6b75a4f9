"""Reads and writes traces: .npy files of measured service times in seconds, (machines, requests),
each row in the order of time.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.system.files import reading, require_regular, save_file
from collage_mpi.workload.service_times import LONGEST_S


def load_trace(path: str) -> np.ndarray:
    """Read and check a trace.

    Returns:
        (machines, requests) float64, seconds, all positive.

    Raises:
        EnvironmentFault: the file is missing or unreadable.
        DataFault: the file is not a .npy of numbers, is empty, has a wrong shape, or a number is
            not positive.
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
    """Read an array of real numbers from a .npy file, as float64. Nothing is unpickled.

    Args:
        what: names the file in messages.

    Raises:
        EnvironmentFault: the file is missing or unreadable.
        DataFault: the file is not a .npy of numbers.
    """
    with reading(f"{what} {path}", "no .npy file of numbers"):
        require_regular(path)
        # Memory-mapped, so that a wrong header fails before memory is allocated.
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(found, np.ndarray):
        found.close()  # an .npz
        raise DataFault(f"{what} {path} is an .npz; it needs one array: numpy.save makes it")
    if found.dtype.kind not in "fiu":
        raise DataFault(f"{what} {path} holds {found.dtype}; it needs numbers")
    return found.astype(np.float64)


def save_trace(path: Path, times_s: np.ndarray) -> None:
    """Write a trace atomically.

    Raises:
        EnvironmentFault: the file exists, or cannot be written.
    """
    if path.exists():
        raise EnvironmentFault(f"{path} is there already: name another --out, or remove it")
    content = io.BytesIO()
    np.save(content, times_s, allow_pickle=False)
    save_file(path, content.getvalue())

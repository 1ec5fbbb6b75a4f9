"""Traces: .npy files of measured service times, (machines, requests) float, seconds, each row in
order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.system.files import UNREADABLE, require_regular
from collage_mpi.workload.service_times import LONGEST_S


def load_trace(path: str) -> np.ndarray:
    """Measured service times, checked.

    Returns:
        (machines, requests) float64, seconds, all positive.

    Raises:
        EnvironmentFault: the file is missing or unreadable.
        DataFault: not a .npy of numbers, empty, of the wrong shape, or not all positive.
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
        DataFault: not a .npy of numbers; nothing is unpickled.
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


def save_trace(path: Path, times_s: np.ndarray) -> None:
    """Write a trace, complete or not at all; an existing file is refused.

    Raises:
        EnvironmentFault: the file exists already, or cannot be written.
    """
    import io

    from collage_mpi.system.files import save_file

    if path.exists():
        raise EnvironmentFault(f"{path} is there already: name another --out, or remove it")
    content = io.BytesIO()
    np.save(content, times_s, allow_pickle=False)
    save_file(path, content.getvalue())

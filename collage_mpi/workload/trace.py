"""Reads and writes traces, and measures how heavy their tail is and how long slow periods last.

A trace is a .npy file of measured service times in seconds, (machines, requests), each row in the
order of time. The two numbers about the tail place a trace on the map of
analysis/reports/does-it-work.md. They are parameters of the two-state Markov process that
`workload/service_times` injects.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.scheduler.rank_speed import WINDOW
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


class Tail(NamedTuple):
    """The tail of service times.

    Attributes:
        weight: P99 divided by the median, over all requests. It does not show events that are rarer
            than one request in a hundred.
        spell: mean length of a slow period, in requests of a machine. It is 1 / (1 - share) if
            requests are slow independently, and infinite if slow periods are longer than the rows.
        share: share of the requests that are slow.
    """

    weight: float
    spell: float
    share: float

    @property
    def memories(self) -> float:
        """`spell` divided by WINDOW, the number of service times that the scheduler remembers."""
        return self.spell / WINDOW


def measure_tail(times_s: np.ndarray) -> Tail:
    """Measure the tail of service times.

    A request is *slow* if it takes longer than sqrt(median x P99), the middle on a logarithmic
    scale. The mean for the autocorrelation is the share of slow requests over all machines, not
    that of each machine, so that a machine that is always slow is one long period. The integrated
    autocorrelation time is t = 1 + 2 (r(1) + r(2) + ...), up to the first lag that white noise
    could have (2 / sqrt(n)). A Markov chain that is slow for a share p of the time has t = 2 L (1 -
    p) - 1, where L is the mean length of its slow periods. So L = (t + 1) / (2 (1 - p)). If the
    correlation does not fall to noise within half a row, L is infinite.

    Args:
        times_s: (machines, requests) float64, positive, in the order of time.
    """
    median, p99 = np.quantile(times_s, (0.5, 0.99))
    slow = times_s > math.sqrt(median * p99)  # (machines, requests)
    share, weight = float(slow.mean()), float(p99 / median)
    if share == 0:  # all service times are equal
        return Tail(weight, 1.0, 0.0)
    spell = (_autocorrelation_time(slow, share) + 1) / (2 * (1 - share))
    return Tail(weight, spell, share)


def _autocorrelation_time(slow: np.ndarray, share: float) -> float:
    """The integrated autocorrelation time in requests; at least 1, infinite if the rows are too
    short.

    Args:
        slow: (machines, requests) bool.
    """
    requests = slow.shape[1]
    about = slow - share
    size = 1 << (2 * requests - 1).bit_length()  # zero-padded, so that the lags do not wrap around
    spectrum = np.fft.rfft(about, size, axis=1)
    sums = np.fft.irfft(spectrum * spectrum.conj(), size, axis=1).sum(axis=0)[: requests // 2 + 1]
    pairs = slow.shape[0] * (requests - np.arange(len(sums)))
    correlation = sums / pairs / (share * (1 - share))  # (lags,), 1 at lag 0
    noise = np.flatnonzero(correlation < 2 / np.sqrt(pairs))
    if not len(noise):
        return math.inf
    return float(1 + 2 * correlation[1 : noise[0]].sum())

"""Traces: .npy files of measured service times, (machines, requests) float, seconds, each row in
order. Also measures their tail: how heavy it is, and how long slow periods last. The two numbers
place a trace on the map of analysis/reports/does-it-work.md. They are those of the two-state Markov
process that `workload/service_times` injects.
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
    with reading(f"{what} {path}", "no .npy file of numbers"):
        require_regular(path)
        # Mapped: what the header claims must be there, before memory is taken for it.
        found = np.load(path, mmap_mode="r", allow_pickle=False)
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
    if path.exists():
        raise EnvironmentFault(f"{path} is there already: name another --out, or remove it")
    content = io.BytesIO()
    np.save(content, times_s, allow_pickle=False)
    save_file(path, content.getvalue())


class Tail(NamedTuple):
    """The tail of service times.

    Attributes:
        weight: P99 divided by the median, of all requests of all machines together. Events
            rarer than one request in a hundred do not show in it.
        spell: mean length of a slow period, in requests of a machine: 1 / (1 - share) if each
            request is slow by itself; infinite if slow periods are longer than the rows.
        share: of the requests that are slow.
    """

    weight: float
    spell: float
    share: float

    @property
    def memories(self) -> float:
        """The slow period divided by WINDOW, the number of service times that the scheduler
        remembers.
        """
        return self.spell / WINDOW


def measure_tail(times_s: np.ndarray) -> Tail:
    """Weight and persistence of the tail.

    A request is *slow* if it takes longer than sqrt(median x P99), the middle on a logarithmic
    scale. The autocorrelation along the rows is taken about the share of all machines together, not
    about each machine's own share: a machine that is always slow is one long period. Summed up to
    the first lag that white noise could have (2 / sqrt(n)), r(1) + r(2) + ... gives the integrated
    autocorrelation time t = 1 + 2 sum r. A Markov chain that is slow for a share p of the time has
    t = 2 L (1 - p) - 1, where L is the mean length of its slow periods, so L = (t + 1) / (2 (1 -
    p)). If the sum does not come down to noise within half a row, L is infinite.

    Args:
        times_s: (machines, requests) float64, positive, in the order of time.
    """
    median, p99 = np.quantile(times_s, (0.5, 0.99))
    slow = times_s > math.sqrt(median * p99)  # (machines, requests)
    share, weight = float(slow.mean()), float(p99 / median)
    if share == 0:  # all alike
        return Tail(weight, 1.0, 0.0)
    spell = (_autocorrelation_time(slow, share) + 1) / (2 * (1 - share))
    return Tail(weight, spell, share)


def _autocorrelation_time(slow: np.ndarray, share: float) -> float:
    """The integrated time in requests; at least 1, infinite if half a row is too short.

    Args:
        slow: (machines, requests) bool.
    """
    requests = slow.shape[1]
    about = slow - share
    size = 1 << (2 * requests - 1).bit_length()  # room for the lags, so that no end meets a start
    spectrum = np.fft.rfft(about, size, axis=1)
    sums = np.fft.irfft(spectrum * spectrum.conj(), size, axis=1).sum(axis=0)[: requests // 2 + 1]
    pairs = slow.shape[0] * (requests - np.arange(len(sums)))
    correlation = sums / pairs / (share * (1 - share))  # (lags,), 1 at lag 0
    noise = np.flatnonzero(correlation < 2 / np.sqrt(pairs))
    if not len(noise):
        return math.inf
    return float(1 + 2 * correlation[1 : noise[0]].sum())

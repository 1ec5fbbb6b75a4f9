"""How heavy the tail of service times is, and how long slow periods last.

The two numbers place a trace on the map of reports/does-it-work.md. They are parameters of the
two-state Markov process that `collage_mpi.workload.straggler_settings` draws.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from collage_mpi.core.ranks import WINDOW


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

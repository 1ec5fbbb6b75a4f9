"""What kind of tail service times have: how heavy it is, and how long slow spells last.

Owns: the two measures, which place a trace on the map of docs/does-it-work.md.
Does not know: files, schemes.

They are those of the two-state Markov process that `workload/service_times` injects: a machine is
usual or slow, and a slow spell lasts so many requests on average.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from collage_mpi.scheduler.rank_speed import WINDOW


class Tail(NamedTuple):
    """Of service times.

    Attributes:
        weight: P99 over the median, of all requests of all machines together. What is rarer than
            one request in a hundred does not show in it.
        spell: mean length of a slow spell, in requests of a machine: 1 / (1 - share) where each
            request is slow by itself; infinite where spells outlast the rows.
        share: of the requests that are slow.
    """

    weight: float
    spell: float
    share: float

    @property
    def memories(self) -> float:
        """The spell over what the scheduler remembers of a rank, WINDOW service times."""
        return self.spell / WINDOW


def measure_tail(times_s: np.ndarray) -> Tail:
    """Weight and persistence.

    *Slow* is what takes longer than sqrt(median x P99), half way between them on a logarithmic
    scale. Its autocorrelation along the rows is taken about the share of all machines together, not
    about each one's own: a machine that is slow all along is one long spell. Summed up to the first
    lag that white noise could have (2 / sqrt(n)), r(1) + r(2) + ... makes the integrated
    autocorrelation time t = 1 + 2 sum r. A Markov chain that is slow for a share p of the time has
    t = 2 L (1 - p) - 1, with L the mean length of its slow spells, so L = (t + 1) / (2 (1 - p)).
    Where half a row is too short to come down to noise, L is infinite.

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
    """Integrated, in requests; at least 1, infinite where half a row is too short.

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

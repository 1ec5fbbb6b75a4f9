"""What networks take, from measurements beside other work: service times, the ratio of two of them
and how sure that ratio is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import comb
from statistics import median
from typing import NamedTuple

from collage_mpi.job.messages import Measured
from collage_mpi.kinds import SINGLE

SURE = 0.95  # of the interval


class Ratio(NamedTuple):
    """The median over rounds, and the interval of that median; see `ratio_of`."""

    median: float
    low: float
    high: float


def ratio_of(others: Sequence[Measured], singles: Sequence[Measured]) -> Ratio | None:
    """The other network's time over the single's, round by round, and the median of that.

    Both are measured in turn, so that what slows a host down meets both; processor time does
    not count what other processes took. On a busy host the shortest wall-clock times gave
    ratios from 0.45 to 1.55 for two networks whose ratio is 0.92; these give 0.89 to 0.94.

    Returns:
        With a 95 % interval from the order of the rounds (of fewer than six: the lowest and
        the highest); None where there is no round, or nothing to divide by.
    """
    rounds = list(zip(others, singles, strict=False))
    if all(m.cpu_ns is not None for pair in rounds for m in pair):
        times = [(other.cpu_ns or 0, single.cpu_ns or 0) for other, single in rounds]
    else:
        times = [(other.service_ns, single.service_ns) for other, single in rounds]
    if not times or min(single for _, single in times) <= 0:
        return None
    ratios = sorted(other / single for other, single in times)
    outside = _outside(len(ratios))
    return Ratio(median(ratios), ratios[outside], ratios[-1 - outside])


def ratio_among(rounds: Mapping[str, Sequence[Measured]]) -> Ratio | None:
    """The same of measurements by kind: of the first other network over the single one."""
    other = next((kind for kind in rounds if kind != SINGLE), None)
    return None if other is None else ratio_of(rounds[other], rounds.get(SINGLE, ()))


def _outside(n: int) -> int:
    """How many of n sorted values lie on either side of the interval of their median."""
    count, below = 0, 1 / 2**n  # chance that the true median is beyond the outermost value
    while 2 * below <= 1 - SURE and count < (n - 1) // 2:
        count += 1
        below += comb(n, count) / 2**n
    return max(0, count - 1)


def shortest_ns(rounds: Mapping[str, Sequence[Measured]]) -> dict[str, int]:
    """Service times by kind: the shortest, since other work on the host can only lengthen one."""
    return {kind: min(m.service_ns for m in found) for kind, found in rounds.items()}

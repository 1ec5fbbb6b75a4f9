"""Delay models: each draws a service time from a seed and a key.

A draw is the service time of one image, in seconds, on a rank without other load. Random numbers
are hashes of (seed, key), not a stream. So the draws of a rank do not depend on those of other
ranks, and two schemes can be compared on the same draws.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

LONGEST_S = 1e9  # longest draw; in ns it must fit in 63 bits
_NORMAL = NormalDist()
_TO_UNIT = 2.0**-53


def uniform(*key: object) -> float:
    """A uniformly distributed number in (0, 1), which is a hash of the key."""
    digest = blake2b(":".join(map(str, key)).encode(), digest_size=8).digest()
    return ((int.from_bytes(digest, "little") >> 11) + 0.5) * _TO_UNIT


class Moment(NamedTuple):
    """The arguments of a draw.

    Attributes:
        rank, group, attempt: of the task. Groups count from 0, attempts from 1. If a rank may run
            several images of a group, `group` is the number of the task's first image instead. For
            a network that waits, it is the number of the network's call.
        at_ns: when the rank begins the task, in ns since the start of the session.
    """

    rank: int
    group: int
    attempt: int
    at_ns: int


# A moment -> seconds for one image, without the factor of the rank.
Body = Callable[[Moment], float]


class Spells:
    """The slow periods of a rank: a two-state Markov process, in equilibrium at the start.

    The lengths of periods are exponential. Slow periods last `mean_s` on average and take `share`
    of the time. The process depends only on seed and rank.
    """

    def __init__(self, seed: int, rank: int, share: float, mean_s: float) -> None:
        self._random = random.Random(f"{seed}:spells:{rank}")
        self._always = share if share in (0.0, 1.0) else None
        self._first_slow = self._random.random() < share
        fast_s = mean_s * (1 - share) / share if 0 < share < 1 else mean_s
        self._means_s = (fast_s, mean_s)
        self._ends_s: list[float] = []

    def slow(self, at_s: float) -> bool:
        """Whether the rank is in a slow period `at_s` seconds after the start."""
        if self._always is not None:
            return self._always == 1.0
        while not self._ends_s or self._ends_s[-1] <= at_s:
            self._extend()
        passed = bisect_right(self._ends_s, at_s)
        return self._first_slow == (passed % 2 == 0)

    def _extend(self) -> None:
        slow = self._first_slow == (len(self._ends_s) % 2 == 0)
        length_s = self._random.expovariate(1 / self._means_s[slow])
        self._ends_s.append((self._ends_s[-1] if self._ends_s else 0.0) + length_s)


class DelayModel:
    """Injected delays: draws of a model, multiplied by a factor for each
    rank.
    """

    def __init__(
        self,
        body: Body | None,
        slow: Mapping[int, float],
        *,
        by_image: bool,
    ) -> None:
        """Make a model.

        Args:
            body: draws service times; None injects no delay.
            slow: rank -> further factor for its draws.
            by_image: the key of a draw has the task's first image instead of its group.
        """
        self.by_image = by_image
        self._body = body
        self._slow = dict(slow)

    def slowed(self, rank: int) -> float:
        """The factor of the rank."""
        return self._slow.get(rank, 1.0)

    def draw_ns(self, rank: int, group: int, attempt: int, at_ns: int = 0) -> int:
        """The service time of one image on the rank, in ns; 0 if no delay is injected."""
        if self._body is None:
            return 0
        drawn_s = self._body(Moment(rank, group, attempt, at_ns)) * self.slowed(rank)
        return round(min(drawn_s, LONGEST_S) * 1e9)


def service_ns(
    model: DelayModel, rank: int, tasks: Iterable[tuple[int, int, int]], at_ns: int, factor: float
) -> int:
    """The service time of tasks that a rank runs as one batch, in ns: the largest draw, times
    `factor`.

    The largest of independent draws is above that of a typical task. So this never makes batches
    look better than they are.

    Args:
        tasks: (group, first image, attempt) of each.
        at_ns: when the batch begins, in ns since the start of the session.
        factor: cost ratio of the kind, times `batch_factor`.
    """
    slowest_ns = 0
    for group, image, attempt in tasks:
        number = image if model.by_image else group
        slowest_ns = max(slowest_ns, model.draw_ns(rank, number, attempt, at_ns))
    return round(slowest_ns * factor)


# ---- the bodies -------------------------------------------------------------


def pinned(median_s: float) -> Body:
    """A constant service time."""
    return lambda moment: median_s


def lognormal(seed: int, median_s: float, sigma: float) -> Body:
    """median * exp(sigma * z). Key: (seed, rank, group, attempt)."""

    def draw(moment: Moment) -> float:
        z = _NORMAL.inv_cdf(uniform(seed, moment.rank, moment.group, moment.attempt))
        return median_s * _exp(sigma * z)

    return draw


def bimodal(seed: int, median_s: float, sigma: float, share: float, factor: float) -> Body:
    """`share` of the tasks are `factor` times slower, independently. Key: as lognormal."""
    usual = lognormal(seed, median_s, sigma)

    def draw(moment: Moment) -> float:
        mode = uniform(seed, moment.rank, moment.group, moment.attempt, "mode")
        return usual(moment) * (factor if mode < share else 1.0)

    return draw


def markov(
    seed: int, median_s: float, sigma: float, factor: float, spells: Callable[[int], Spells]
) -> Body:
    """`factor` times slower if the task begins in a slow period of its rank.

    Keys: (seed, rank, time since the start) for the periods, the rest as lognormal.

    Args:
        spells: rank -> its slow periods.
    """
    usual = lognormal(seed, median_s, sigma)
    known: dict[int, Spells] = {}

    def draw(moment: Moment) -> float:
        if moment.rank not in known:
            known[moment.rank] = spells(moment.rank)
        slow = known[moment.rank].slow(moment.at_ns / 1e9)
        return usual(moment) * (factor if slow else 1.0)

    return draw


def trace_rows(seed: int, times_s: np.ndarray) -> Body:
    """Each rank is a machine of the trace, whose times are used in order. Key: (rank, group).

    The seed decides which machine is which rank, and the entry for group 0. If there are more ranks
    than machines, the rows are used again: in another order, and shifted by a third of a row. So
    the two copies of an image need not both go to the slowest machine.

    Args:
        times_s: (machines, requests) float64, seconds.
    """
    machines, requests = times_s.shape
    shuffler = random.Random(f"placement:{seed}")
    orders = [_shuffled(machines, shuffler)]  # for each lap, the machines of its ranks
    start = shuffler.randrange(requests)

    def draw(moment: Moment) -> float:
        lap, place = divmod(moment.rank - 1, machines)
        while len(orders) <= lap:
            again = random.Random(f"placement:{seed}:{len(orders)}")
            orders.append(_shuffled(machines, again))
        entry = start + moment.group + lap * (requests // 3)
        return float(times_s[orders[lap][place], entry % requests])

    return draw


def _shuffled(count: int, shuffler: random.Random) -> list[int]:
    order = list(range(count))
    shuffler.shuffle(order)
    return order


def _exp(x: float) -> float:
    """exp(x), limited so that it does not overflow."""
    return math.exp(min(x, 60.0))

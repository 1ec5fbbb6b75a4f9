"""The settings of injected delays and of dead ranks, and the delay model that follows from them.

A draw is the service time of one image. A collage rank multiplies it by the cost ratio of its
network. analysis/simulating.md has the formula and key of each model.

Random numbers are hashes of (seed, key), not a stream. So the draws of a rank do not depend on
those of other ranks, and two schemes can be compared on the same draws.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from hashlib import blake2b
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from collage_mpi.errors import UsageError
from collage_mpi.system.fields import Settings, setting
from collage_mpi.system.printable import shown

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


# A moment -> seconds for one image without the factor of the rank, or a factor.
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


def lognormal(seed: int, median_s: float, sigma: float, slowing: Body = lambda moment: 1.0) -> Body:
    """median * exp(sigma * z), times what `slowing` gives. Key: (seed, rank, group, attempt)."""

    def draw(moment: Moment) -> float:
        z = _NORMAL.inv_cdf(uniform(seed, moment.rank, moment.group, moment.attempt))
        # The exponent is bounded, so that it does not overflow
        return median_s * math.exp(min(sigma * z, 60.0)) * slowing(moment)

    return draw


def some_tasks(seed: int, share: float, factor: float) -> Body:
    """`factor` for a share of the tasks, independently; 1 for the others. Key: as lognormal."""

    def slowing(moment: Moment) -> float:
        mode = uniform(seed, moment.rank, moment.group, moment.attempt, "mode")
        return factor if mode < share else 1.0

    return slowing


def slow_periods(factor: float, spells: Callable[[int], Spells]) -> Body:
    """`factor` for a task that begins in a slow period of its rank; 1 for the others.

    Args:
        spells: rank -> its slow periods.
    """
    known = cache(spells)
    return lambda moment: factor if known(moment.rank).slow(moment.at_ns / 1e9) else 1.0


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


Value = TypeVar("Value")

MODELS = ("none", "lognormal", "bimodal", "markov", "pinned")
USUAL_MS, USUAL_SIGMA = 100.0, 0.2
# Of the models bimodal and markov: share of the tasks or of the time that is slow, how many times
# slower these are, and the mean length of a slow period.
SLOW_SHARE, SLOW_FACTOR, SPELL_S = 0.05, 5.0, 2.0

_setting = partial(setting, group="injected delays, for experiments")


@dataclass(frozen=True, repr=False)
class StragglerSettings(Settings):
    """The injected delays. Each field has a help text."""

    straggler: str = _setting(
        "none",
        "injected service times: MODEL, MODEL:MS or MODEL:MS:SIGMA. pinned: each task takes MS ms "
        f"({USUAL_MS:g}). lognormal: MS is the median, and SIGMA ({USUAL_SIGMA:g}) the standard "
        "deviation of the logarithm. bimodal, markov: MS and SIGMA are those of tasks that are not "
        "slow. Or FILE.npy with measured times in seconds, of shape (machines, requests)",
        metavar="MODEL|FILE",
        shipped=True,
    )
    straggler_seed: int = _setting(0, "seed of the injected service times")
    slow_ranks: tuple[str, ...] = _setting(
        (),
        "ranks whose service times are FACTOR times longer in the whole run: drawn times, or "
        "without a model those of their networks",
        metavar="RANK:FACTOR",
    )
    cost_ratio: float | None = _setting(
        None,
        "service time of the scheme's other networks (collage, first) divided by that of "
        "the single network. Injected times are multiplied by this ratio",
        unset="measured; 1 if service times are injected",
        above=0,
        at_most=1e6,
    )
    batch_cost: float | None = _setting(
        None,
        "time that each further input of a batch takes, divided by the time of the first one; "
        "used for injected times",
        unset="measured; 1 if service times are injected",
        at_least=0,
    )

    def _check(self) -> None:
        self.slowed()
        self.model()

    @property
    def trace(self) -> str | None:
        """The file of the injected service times, if they come from a file."""
        return self.straggler if self.straggler.endswith(".npy") else None

    def model(self) -> tuple[str, float, float]:
        """The model of the injected service times: its name, its median in ms, and its sigma.

        Raises:
            UsageError: `straggler` is neither a model with numbers in their bounds nor a trace.
        """
        if self.trace:
            return "trace", USUAL_MS, USUAL_SIGMA
        name, *numbers = self.straggler.split(":")
        bounds = ((1e-6, 1e12), (0.0, 100.0))[: {"none": 0, "pinned": 1}.get(name, 2)]
        usual = [USUAL_MS, USUAL_SIGMA]
        with suppress(ValueError):
            pairs = zip(numbers, bounds, strict=False)
            found = [within(float(text), *of) for text, of in pairs]
            if name in MODELS and len(numbers) <= len(bounds):
                median_ms, sigma = found + usual[len(found) :]
                return name, median_ms, sigma
        raise UsageError(
            f"straggler is {shown(self.straggler)}; it needs FILE.npy, none, pinned:MS, or one of "
            f"{', '.join(MODELS[1:4])} with :MS:SIGMA"
            f", as in lognormal:{USUAL_MS:g}:{USUAL_SIGMA:g} (MS above 0, SIGMA 0 to 100)"
        )

    @property
    def injects(self) -> bool:
        """Whether service times are injected."""
        return self.straggler != "none"

    @property
    def waits(self) -> bool:
        """Whether a network of the run waits before it answers."""
        return self.injects or bool(self.slow_ranks)

    def slowed(self) -> dict[int, float]:
        """Rank -> factor that multiplies its service times."""
        needs = "RANK:FACTOR, a worker rank (1 or more) and a positive factor, as in 3:5"
        return by_rank(
            "slow", self.slow_ranks, needs, lambda text: within(float(text), 1e-300, 1e6)
        )

    def check_slow_ranks(self, world_size: int) -> None:
        """Raise UsageError if a slow rank is not a worker rank of the world."""
        check_ranks("slow", self.slowed(), world_size)

    def describe_delays(self) -> str:
        """The injected delays in one line, for tables and titles."""
        name, median_ms, sigma = self.model()
        told = {
            "none": "no injected delay",
            "trace": f"trace {Path(self.straggler).name}",
            "pinned": f"constant {median_ms:g} ms",
        }
        parts = [
            told.get(name, f"{name}, median {median_ms:g} ms, sigma {sigma:g}"),
            *(f", rank {rank} {factor:g}x slower" for rank, factor in self.slowed().items()),
        ]
        parts.append("" if name in ("none", "pinned") else f", seed {self.straggler_seed}")
        return "".join(parts)


def make_delays(settings: StragglerSettings, *, by_image: bool = False) -> DelayModel:
    """The delay model of the settings.

    Args:
        by_image: see `DelayModel`.

    Raises:
        EnvironmentFault, DataFault: the trace cannot be read, or is not a trace.
    """
    seed, slowed = settings.straggler_seed, settings.slowed()
    name, median_ms, sigma = settings.model()
    if settings.trace:
        from collage_mpi.workload.arrivals import load_trace

        return DelayModel(trace_rows(seed, load_trace(settings.trace)), slowed, by_image=by_image)
    median_s = median_ms / 1e3
    usual = partial(lognormal, seed, median_s, sigma)
    bodies: dict[str, Body | None] = {
        "none": None,
        "pinned": lambda moment: median_s,
        "lognormal": usual(),
        "bimodal": usual(some_tasks(seed, SLOW_SHARE, SLOW_FACTOR)),
        "markov": usual(
            slow_periods(SLOW_FACTOR, lambda rank: Spells(seed, rank, SLOW_SHARE, SPELL_S))
        ),
    }
    return DelayModel(bodies[name], slowed, by_image=by_image)


def by_rank(
    what: str, texts: Sequence[str], needs: str, read: Callable[[str], Value]
) -> dict[int, Value]:
    """Parse texts of the form RANK:VALUE. Raises UsageError if the form or the rank is invalid.

    Args:
        what: names the setting in messages.
        needs: the required form, for messages.
        read: parses VALUE; raises ValueError.
    """
    found = {}
    for text in texts:
        rank, _, value = text.partition(":")
        try:
            if int(rank) < 1:
                raise ValueError
            found[int(rank)] = read(value)
        except ValueError:
            raise UsageError(f"{what} rank {text!r}; it needs {needs}") from None
    return found


def check_ranks(what: str, ranks: Iterable[int], world_size: int) -> None:
    """Raise UsageError if a rank is not a worker rank of the world. `what` names the setting."""
    for rank in ranks:
        if rank >= world_size:
            raise UsageError(
                f"{what} rank {rank}; the world has worker ranks 1 to {world_size - 1}"
            )


def within(number: float, least: float, most: float) -> float:
    """The number. Raises ValueError if it is out of bounds or NaN."""
    if not least <= number <= most:
        raise ValueError
    return number


NO_DELAYS = StragglerSettings()


@dataclass(frozen=True)
class RankDeath:
    """When a rank stops answering: seconds since the start, or a number of tasks."""

    at_s: float | None = None
    tasks: int | None = None

    def reached(self, at_ns: int, answered: int) -> bool:
        """Whether the rank is dead at `at_ns`, given the number of tasks that it has answered."""
        if self.at_s is not None:
            return at_ns >= self.at_s * 1e9
        return self.tasks is not None and answered >= self.tasks

    def __str__(self) -> str:
        """When, in words."""
        return f"{self.at_s:g} s" if self.at_s is not None else f"{self.tasks} tasks"


def deaths_of(dead_ranks: Sequence[str]) -> dict[int, RankDeath]:
    """Rank -> when it stops answering.

    Raises:
        UsageError: a text is not of the form RANK:SECONDSs or RANK:TASKS.
    """
    needs = (
        "RANK:SECONDSs or RANK:TASKS for a worker rank (1 or more), as in 3:2.5s (answers "
        "nothing from then) or 3:20 (nothing after 20 tasks)"
    )
    return by_rank("dead", dead_ranks, needs, _death)


def describe_deaths(deaths: Mapping[int, RankDeath]) -> str:
    """The deaths in words, to be put after the delays."""
    return "".join(f", rank {rank} dead after {death}" for rank, death in deaths.items())


def _death(text: str) -> RankDeath:
    if text.endswith("s"):
        return RankDeath(at_s=within(float(text[:-1]), 0, 1e9))
    return RankDeath(tasks=int(within(int(text), 0, math.inf)))

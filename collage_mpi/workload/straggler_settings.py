"""The settings of injected delays and of dead ranks, and the delay model that follows from them.

A draw is the service time of one image. A collage rank multiplies it by the cost ratio of its
network. docs/stragglers.md has the formula and key of each model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from collage_mpi.errors import UsageError
from collage_mpi.system.fields import Settings, setting
from collage_mpi.workload import service_times
from collage_mpi.workload.service_times import Body, DelayModel, Spells

Value = TypeVar("Value")

_USUAL = "median {0.straggler_median_ms:g} ms, sigma {0.straggler_sigma:g}"
# Model -> format of its description in tables and titles.
_SHOWN = {
    "none": "no injected delay",
    "trace": "trace {file}",
    "lognormal": f"lognormal, {_USUAL}",
    "bimodal": f"bimodal, {_USUAL}",
    "markov": f"markov, {_USUAL}",
    "pinned": "constant {0.straggler_median_ms:g} ms",
}
MODELS = tuple(_SHOWN)
# Of the models bimodal and markov: share of the tasks or of the time that is slow, how many times
# slower these are, and the mean length of a slow period.
SLOW_SHARE, SLOW_FACTOR, SPELL_S = 0.05, 5.0, 2.0

_setting = partial(setting, group="injected delays, for experiments")


@dataclass(frozen=True, repr=False)
class StragglerSettings(Settings):
    """The injected delays. Each field has a help text."""

    straggler: str = _setting("none", "model of the injected service times", choices=MODELS)
    straggler_seed: int = _setting(0, "seed of the injected service times")
    straggler_median_ms: float = _setting(
        100.0,
        "median service time (lognormal), median of the tasks that are not slow (bimodal, markov), "
        "or the service time of every task (pinned)",
        above=0,
    )
    straggler_sigma: float = _setting(
        0.2,
        "standard deviation of the logarithm of the service time (lognormal, bimodal, markov)",
        at_least=0,
        at_most=100,
    )
    trace_file: str | None = _setting(
        None,
        "file of measured service times in seconds, .npy of shape (machines, requests), for the "
        "model trace",
        metavar="FILE",
        shipped=True,
    )
    slow_ranks: tuple[str, ...] = _setting(
        (),
        "ranks whose service times are FACTOR times longer in the whole run: drawn times, or "
        "without a model those of their networks",
        metavar="RANK:FACTOR",
    )
    cost_ratio: float | None = _setting(
        None,
        "service time of the scheme's other network (collage, backup) divided by that of "
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
        if self.straggler == "trace" and not self.trace_file:
            raise UsageError("straggler model trace needs a file: --trace-file TIMES.npy")

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
        return by_rank("slow", self.slow_ranks, needs, _factor)

    def check_slow_ranks(self, world_size: int) -> None:
        """Raise UsageError if a slow rank is not a worker rank of the world."""
        check_ranks("slow", self.slowed(), world_size)

    def describe_delays(self) -> str:
        """The injected delays in one line, for tables and titles."""
        name = self.straggler
        shown = _SHOWN[name].format(self, file=Path(self.trace_file or "").name)
        parts = [
            shown,
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
    s, seed = settings, settings.straggler_seed
    median_s, sigma = s.straggler_median_ms / 1e3, s.straggler_sigma

    def spells(rank: int) -> Spells:
        return Spells(seed, rank, SLOW_SHARE, SPELL_S)

    def trace() -> Body:
        from collage_mpi.workload.arrivals import load_trace

        return service_times.trace_rows(seed, load_trace(s.trace_file or ""))

    bodies: dict[str, Callable[[], Body | None]] = {
        "none": lambda: None,
        "pinned": lambda: service_times.pinned(median_s),
        "lognormal": lambda: service_times.lognormal(seed, median_s, sigma),
        "bimodal": lambda: service_times.bimodal(seed, median_s, sigma, SLOW_SHARE, SLOW_FACTOR),
        "markov": lambda: service_times.markov(seed, median_s, sigma, SLOW_FACTOR, spells),
        "trace": trace,
    }
    body = bodies[s.straggler]()
    return DelayModel(body, s.slowed(), by_image=by_image)


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


def _factor(text: str) -> float:
    return within(float(text), 1e-300, 1e6)


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

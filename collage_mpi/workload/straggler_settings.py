"""Which delays are injected: the settings of the delay models, checked.

Owns: names, meaning and checks of the settings, the model that they make.
Does not know: the models' formulas (service_times), MPI, networks, how a rank spends the time.

A draw is the service time of one single image. A collage rank multiplies it by
the cost ratio of its network, and each rank *holds* its answer until the drawn
time has passed since it began, its own compute included. docs/stragglers.md has each
model's formula and key.

`slow` and `dead` concern named ranks, whatever the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collage_mpi.errors import UsageError
from collage_mpi.workload import service_times
from collage_mpi.workload.background_load import MOST as MOST_BURNING
from collage_mpi.workload.service_times import Body, Death, DelayModel, Delays, Spells
from collage_mpi.workload.trace import load_trace

MODELS = ("none", "trace", "lognormal", "pareto", "bimodal", "markov", "pinned")
TRACE_DRAWS = ("rows", "independent")
# name -> lowest and highest value, the lowest excluded
_ABOVE = {
    "median_ms": (0.0, 1e9),
    "time_scale": (0.0, 1e9),
    "tail": (0.0, 1e3),
    "spell_s": (0.0, 1e9),
    "slow_factor": (0.0, 1e6),
}
# both included
_WITHIN = {"sigma": (0.0, 100.0), "slow_share": (0.0, 1.0)}


@dataclass(frozen=True)
class StragglerSettings:
    """Which delays are injected.

    Attributes:
        model: one of MODELS.
        seed: of every draw.
        median_ms: median (lognormal, pareto), of usual tasks (bimodal, markov), or constant
            (pinned) service time.
        sigma: standard deviation of the logarithm (lognormal, bimodal, markov).
        trace: a .npy of measured service times, (machines, requests) float, seconds.
        trace_draws: "rows" or "independent".
        time_scale: multiplies every draw, and the length of slow spells.
        slow: rank -> factor on its draws.
        tail: index of the power law (pareto): the smaller, the heavier; no variance up to 2.
        slow_share: part of the tasks (bimodal) or of the time (markov) that is slow.
        slow_factor: how much slower that is (bimodal, markov).
        spell_s: mean length of a slow spell (markov).
        dead: rank -> from when it answers nothing.
        by_image: draws have an image's number in their key, not its group's.
    """

    model: str = "none"
    seed: int = 0
    median_ms: float = 100.0
    sigma: float = 0.2
    trace: str | None = None
    trace_draws: str = "rows"
    time_scale: float = 1.0
    slow: Mapping[int, float] | None = None
    tail: float = 3.0
    slow_share: float = 0.05
    slow_factor: float = 5.0
    spell_s: float = 2.0
    dead: Mapping[int, Death] | None = None
    by_image: bool = False

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UsageError(f"straggler model is {self.model!r}; known: {', '.join(MODELS)}")
        if self.trace_draws not in TRACE_DRAWS:
            raise UsageError(
                f"trace draws is {self.trace_draws!r}; known: {', '.join(TRACE_DRAWS)}"
            )
        for name, (least, most) in (_ABOVE | _WITHIN).items():
            value = getattr(self, name)
            low = value > least if name in _ABOVE else value >= least
            if not (low and value <= most):  # a NaN too
                above = "above" if name in _ABOVE else "from"
                raise UsageError(
                    f"straggler {name} is {value}; it needs a number {above} {least:g} to {most:g}"
                )
        self._check_ranks()
        if self.model == "trace" and not self.trace:
            raise UsageError("straggler model trace needs a file: --trace-file TIMES.npy")

    def _check_ranks(self) -> None:
        for rank, factor in (self.slow or {}).items():
            if rank < 1 or not (math.isfinite(factor) and 0 < factor <= 1e6):
                raise UsageError(
                    f"slow rank {rank}:{factor:g}; it needs a worker rank (1 or more) "
                    "and a positive factor, as in 3:5"
                )
        if self.model == "none" and self.slow:
            raise UsageError("slow ranks need a straggler model to slow: --straggler pinned")
        for rank in self.dead or {}:
            if rank < 1:
                raise UsageError(f"dead rank {rank}; it needs a worker rank, 1 or more")

    @property
    def injects(self) -> bool:
        """Whether service times are drawn."""
        return self.model != "none"

    def describe(self) -> str:
        """One line for tables and titles."""
        scale = "" if self.time_scale == 1 else f" x {self.time_scale:g}"
        slow = "".join(f", rank {r} {f:g}x slower" for r, f in (self.slow or {}).items())
        usual = f"median {self.median_ms:g} ms, sigma {self.sigma:g}"
        bodies = {
            "none": "no injected delay",
            "lognormal": f"lognormal, {usual}",
            "pareto": f"pareto, median {self.median_ms:g} ms, tail {self.tail:g}",
            "bimodal": f"bimodal, {usual}, {self.slow_share:.3g} of tasks {self.slow_factor:g}x",
            "markov": f"markov, {usual}, {self.slow_share:.3g} of the time {self.slow_factor:g}x "
            f"in spells of {self.spell_s:g} s",
            "pinned": f"constant {self.median_ms:g} ms",
            "trace": f"trace {Path(self.trace or '').name}, {self.trace_draws}",
        }
        seed = "" if self.model in ("none", "pinned") else f", seed {self.seed}"
        dead = "".join(
            f", rank {rank} dead after {_after(death)}" for rank, death in (self.dead or {}).items()
        )
        return bodies[self.model] + scale + slow + dead + seed


def _after(death: Death) -> str:
    return f"{death.at_s:g} s" if death.at_s is not None else f"{death.tasks} tasks"


def make_delays(settings: StragglerSettings) -> DelayModel:
    """The delay model of the settings.

    Raises:
        EnvironmentFault, DataFault: the trace cannot be read or is no trace.
    """
    s = settings
    median_s = s.median_ms / 1e3

    def spells(rank: int) -> Spells:
        return Spells(s.seed, rank, s.slow_share, s.spell_s * s.time_scale)

    def trace() -> Body:
        draws = (
            service_times.trace_rows if s.trace_draws == "rows" else service_times.trace_independent
        )
        return draws(s.seed, load_trace(s.trace or ""))

    bodies: dict[str, Callable[[], Body | None]] = {
        "none": lambda: None,
        "pinned": lambda: service_times.pinned(median_s),
        "lognormal": lambda: service_times.lognormal(s.seed, median_s, s.sigma),
        "pareto": lambda: service_times.pareto(s.seed, median_s, s.tail),
        "bimodal": lambda: service_times.bimodal(
            s.seed, median_s, s.sigma, s.slow_share, s.slow_factor
        ),
        "markov": lambda: service_times.markov(s.seed, median_s, s.sigma, s.slow_factor, spells),
        "trace": trace,
    }
    body, slow, dead = bodies[s.model](), s.slow or {}, s.dead or {}
    return Delays(body, s.time_scale, slow, dead, by_image=s.by_image)


def parse_slow(text: str) -> tuple[int, float]:
    """Read RANK:FACTOR. Raises UsageError when it is not that."""
    rank, _, factor = text.partition(":")
    try:
        return int(rank), float(factor)
    except ValueError:
        raise UsageError(f"slow rank {text!r}; it needs RANK:FACTOR, as in 3:5") from None


def parse_dead(text: str) -> tuple[int, Death]:
    """Read RANK:SECONDSs or RANK:TASKS. Raises UsageError when it is neither."""
    rank, _, when = text.partition(":")
    try:
        if when.endswith("s"):
            at_s = float(when[:-1])
            if not 0 <= at_s <= 1e9:
                raise ValueError
            return int(rank), Death(at_s=at_s)
        if not when.isdecimal():
            raise ValueError
        return int(rank), Death(tasks=int(when))
    except ValueError:
        raise UsageError(
            f"dead rank {text!r}; it needs RANK:SECONDSs or RANK:TASKS, as in 3:2.5s (answers "
            "nothing from then) or 3:20 (nothing after 20 tasks)"
        ) from None


def parse_burn(text: str) -> tuple[int, int]:
    """Read RANK:CORES. Raises UsageError when it is not that."""
    rank, _, cores = text.partition(":")
    known = rank.isdecimal() and cores.isdecimal()
    if not known or int(rank) < 1 or not 1 <= int(cores) <= MOST_BURNING:
        raise UsageError(
            f"burn rank {text!r}; it needs RANK:CORES, a worker rank and 1 to {MOST_BURNING} "
            "cores, as in 3:2"
        )
    return int(rank), int(cores)


def read_back(values: Mapping[str, Any]) -> StragglerSettings:
    """The settings from `dataclasses.asdict` after a way through JSON, which has made the
    ranks' numbers text."""
    slow = {int(rank): factor for rank, factor in (values.get("slow") or {}).items()}
    dead = {int(rank): Death(*when) for rank, when in (values.get("dead") or {}).items()}
    return StragglerSettings(**{**values, "slow": slow, "dead": dead})

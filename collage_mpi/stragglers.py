"""Delay models: the service time that a rank is made to show, seeded.

Owns: the models, their settings' meaning, and what their draws are keyed by.
Does not know: MPI, networks, how a rank spends the time.

A draw is the service time of one single image. A collage rank multiplies it by
the cost ratio of its network, and each rank *holds* its answer until the drawn
time has passed since it began, its own compute included. Keys, so that schemes
are compared on the same draws:

* lognormal: (seed, rank, group, attempt), independent.
* trace, rows: a row of the file a rank, in order; the seed chooses which row on
  which rank and the entry to start from; keyed by (rank, group).
* trace, independent: any entry of the file; (seed, rank, group, attempt).
* pinned: constant.

`slow` multiplies the draws of named ranks whatever the model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Protocol

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError

MODELS = ("none", "trace", "lognormal", "pinned")
TRACE_DRAWS = ("rows", "independent")
_NORMAL = NormalDist()


@dataclass(frozen=True)
class StragglerSettings:
    """Which delays are injected.

    Attributes:
        model: one of MODELS.
        seed: of every draw.
        median_ms: median (lognormal) or constant (pinned) service time.
        sigma: standard deviation of the logarithm (lognormal).
        trace: a .npy of measured service times, (machines, requests) float, seconds.
        trace_draws: "rows" or "independent".
        time_scale: multiplies every draw.
        slow: rank -> factor on its draws.
    """

    model: str = "none"
    seed: int = 0
    median_ms: float = 100.0
    sigma: float = 0.2
    trace: str | None = None
    trace_draws: str = "rows"
    time_scale: float = 1.0
    slow: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise UsageError(f"straggler model is {self.model!r}; known: {', '.join(MODELS)}")
        if self.trace_draws not in TRACE_DRAWS:
            raise UsageError(
                f"trace draws is {self.trace_draws!r}; known: {', '.join(TRACE_DRAWS)}"
            )
        for name in ("median_ms", "sigma", "time_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0) or (name != "sigma" and value == 0):
                raise UsageError(f"straggler {name} is {value}; it needs a positive number")
        for rank, factor in (self.slow or {}).items():
            if rank < 1 or not (math.isfinite(factor) and factor > 0):
                raise UsageError(
                    f"slow rank {rank}:{factor:g}; it needs a worker rank (1 or more) "
                    "and a positive factor, as in 3:5"
                )
        if self.model == "trace" and not self.trace:
            raise UsageError("straggler model trace needs a file: --trace-file TIMES.npy")
        if self.model == "none" and self.slow:
            raise UsageError("slow ranks need a straggler model to slow: --straggler pinned")

    def describe(self) -> str:
        """One line for tables and titles."""
        scale = "" if self.time_scale == 1 else f" x {self.time_scale:g}"
        slow = "".join(f", rank {r} {f:g}x slower" for r, f in (self.slow or {}).items())
        bodies = {
            "none": "no injected delay",
            "lognormal": f"lognormal, median {self.median_ms:g} ms, sigma {self.sigma:g}",
            "pinned": f"constant {self.median_ms:g} ms",
            "trace": f"trace {Path(self.trace or '').name}, {self.trace_draws}",
        }
        seed = "" if self.model in ("none", "pinned") else f", seed {self.seed}"
        return bodies[self.model] + scale + slow + seed


class DelayModel(Protocol):
    """Draws service times."""

    def draw_ns(self, rank: int, group: int, attempt: int) -> int:
        """Service time of a single image on the rank, in ns; 0 injects nothing."""
        ...


class _NoDelay:
    def draw_ns(self, rank: int, group: int, attempt: int) -> int:
        return 0


class _Scaled:
    """A body in seconds, times the scale and the rank's own factor."""

    def __init__(self, settings: StragglerSettings) -> None:
        self.settings = settings
        self._slow = dict(settings.slow or {})

    def body_s(self, rank: int, group: int, attempt: int) -> float:
        raise NotImplementedError

    def draw_ns(self, rank: int, group: int, attempt: int) -> int:
        factor = self.settings.time_scale * self._slow.get(rank, 1.0)
        return round(self.body_s(rank, group, attempt) * factor * 1e9)

    def uniform(self, *key: object) -> float:
        """A number in (0, 1) that depends on the seed and the key only."""
        text = ":".join(map(str, (self.settings.seed, *key)))
        return max(random.Random(text).random(), 1e-12)


class _Pinned(_Scaled):
    def body_s(self, rank: int, group: int, attempt: int) -> float:
        return self.settings.median_ms / 1e3


class _Lognormal(_Scaled):
    def body_s(self, rank: int, group: int, attempt: int) -> float:
        z = _NORMAL.inv_cdf(self.uniform(rank, group, attempt))
        return self.settings.median_ms / 1e3 * math.exp(self.settings.sigma * z)


class _Trace(_Scaled):
    def __init__(self, settings: StragglerSettings) -> None:
        super().__init__(settings)
        self._times_s = load_trace(settings.trace or "")  # (machines, requests) float64
        machines, requests = self._times_s.shape
        shuffler = random.Random(f"placement:{settings.seed}")
        self._row_of = list(range(machines))
        shuffler.shuffle(self._row_of)
        self._start = shuffler.randrange(requests)

    def body_s(self, rank: int, group: int, attempt: int) -> float:
        machines, requests = self._times_s.shape
        if self.settings.trace_draws == "independent":
            entry = int(self.uniform(rank, group, attempt) * machines * requests)
            return float(self._times_s.flat[min(entry, machines * requests - 1)])
        lap, place = divmod(rank - 1, machines)
        # Ranks beyond the machines reuse a row from another place in it.
        entry = self._start + group + lap * (requests // 3)
        return float(self._times_s[self._row_of[place], entry % requests])


def make_delays(settings: StragglerSettings) -> DelayModel:
    """The delay model of the settings.

    Raises:
        EnvironmentFault, DataFault: the trace cannot be read or is no trace.
    """
    kinds = {"pinned": _Pinned, "lognormal": _Lognormal, "trace": _Trace}
    return _NoDelay() if settings.model == "none" else kinds[settings.model](settings)


def load_trace(path: str) -> np.ndarray:
    """Measured service times, checked.

    Returns:
        (machines, requests) float64, seconds, all positive.

    Raises:
        EnvironmentFault: the file is missing or unreadable.
        DataFault: no .npy of numbers, empty, of the wrong shape, or not all positive.
    """
    try:
        times = np.load(path, allow_pickle=False)
    except OSError as error:
        raise EnvironmentFault(f"trace {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataFault(f"trace {path} is no .npy file of numbers: {error}") from error
    if not isinstance(times, np.ndarray) or times.dtype.kind not in "fiu":
        raise DataFault(f"trace {path} does not hold one array of numbers")
    if times.ndim == 1:
        times = times[None, :]
    if times.ndim != 2 or times.size == 0:
        raise DataFault(
            f"trace {path} has shape {times.shape}; needed is (machines, requests), not empty"
        )
    times = times.astype(np.float64)
    if not (np.isfinite(times).all() and (times > 0).all()):
        raise DataFault(f"trace {path} holds times that are not positive seconds")
    return times

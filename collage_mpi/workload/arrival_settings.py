"""The settings of arrivals: closed loop, Poisson process, or times from a file. `arrivals` is a
module of its own because it needs numpy, and --help does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from collage_mpi.errors import UsageError
from collage_mpi.system.fields import Settings, setting

if TYPE_CHECKING:
    import numpy as np

ARRIVALS = ("closed", "poisson", "file")
# model -> the setting that it alone needs, and an example
_NEEDS = {"poisson": ("rate", "--rate 200"), "file": ("arrival_file", "--arrival-file F")}

_setting = partial(setting, group="pace")


@dataclass(frozen=True, repr=False)
class ArrivalSettings(Settings):
    """When images come. See each field's help line."""

    arrivals: str = _setting(
        "closed",
        "when images come in. closed: when earlier groups end. poisson, file: at given times, "
        "whether earlier groups have ended or not (open loop)",
        choices=ARRIVALS,
    )
    rate: float | None = _setting(None, "arrivals poisson: images a second", at_least=1e-6)
    arrival_seed: int = _setting(
        0, "arrivals poisson: seed of the arrival times", at_least=0, at_most=math.inf
    )
    arrival_file: str | None = _setting(
        None,
        "arrivals file: arrival times in seconds since the start, as .npy or as text with one "
        "number a line",
        metavar="FILE",
    )

    def _check(self) -> None:
        for model, (name, example) in _NEEDS.items():
            given = getattr(self, name) is not None
            if given != (self.arrivals == model):
                problem = f"{name} needs arrivals {model}" if given else f"{name} is missing"
                raise UsageError(
                    f"arrivals {self.arrivals}: {problem}: --arrivals {model} {example}"
                )

    @property
    def open_loop(self) -> bool:
        """Whether images come at given times."""
        return self.arrivals != "closed"

    def arrival_times_ns(self, images: int) -> np.ndarray | None:
        """(images,) int64 ns since the start, non-decreasing; None in a closed loop.

        Raises:
            EnvironmentFault, DataFault: as `arrivals.load_times_ns`.
        """
        if not self.open_loop:
            return None
        from collage_mpi.workload.arrivals import load_times_ns, poisson_times_ns

        if self.arrivals == "poisson":
            return poisson_times_ns(self.rate or 0.0, self.arrival_seed, images)
        return load_times_ns(self.arrival_file or "", images)

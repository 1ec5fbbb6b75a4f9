"""Measures the energy that this host uses, in joules: processors by RAPL, NVIDIA GPUs by NVML.

Both count all that runs on the host, not only this job. If a counter cannot be read, the reason is
given instead; nothing is estimated.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collage_mpi.system.nvml import Nvml

POWERCAP = Path("/sys/class/powercap")
SAMPLE_S = 60.0  # RAPL's counters wrap after at least 262 kJ: 15 minutes at 290 W
Counters = dict[str, tuple[float, float]]  # name -> joules now, joules at which it wraps


def rapl(folder: Path = POWERCAP) -> Counters:
    """A counter for each processor package.

    Raises:
        OSError: there is none, or only root may read it.
    """
    zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if zone.name.count(":") == 1]
    # On some machines there is also a zone "psys", which counts the packages a second time.
    zones = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
    if not zones:
        raise OSError(f"no processor package in {folder}")
    return {
        zone.name: (_joules(zone / "energy_uj"), _joules(zone / "max_energy_range_uj"))
        for zone in zones
    }


def _joules(path: Path) -> float:
    return int(path.read_text()) / 1e6


def nvml() -> Counters:
    """A counter for each GPU, from Volta on.

    Raises:
        OSError: no NVIDIA driver, or a GPU without a counter.
    """
    library = Nvml()
    counter = "nvmlDeviceGetTotalEnergyConsumption"  # in millijoules
    return {
        f"gpu {number}": (library.number(counter, library.gpu(str(number))) / 1e3, 0.0)
        for number in range(library.count())
    }


READERS: dict[str, Callable[[], Counters]] = {"cpu_j": rapl, "gpu_j": nvml}


class EnergyMeter:
    """Adds up what the counters have counted since this object was made."""

    def __init__(self, readers: dict[str, Callable[[], Counters]] | None = None) -> None:
        self._began_s = time.monotonic()
        self._used: dict[str, float] = {}
        self._missing: dict[str, str] = {}
        self._last: dict[str, Counters] = {}
        self._readers = dict(READERS if readers is None else readers)
        self._lock, self._over = threading.Lock(), threading.Event()
        self.sample()
        if self._used:
            threading.Thread(target=self._keep_sampling, name="energy", daemon=True).start()

    def __enter__(self) -> EnergyMeter:
        return self

    def __exit__(self, *raised: object) -> None:
        self._over.set()

    def sample(self) -> None:
        """Add what was used since the last time; a counter that fails is missing from then on."""
        with self._lock:
            for kind, read in list(self._readers.items()):
                try:
                    now = read()
                    before = self._last.get(kind, now)
                    used = sum(_since(before.get(name, v), v) for name, v in now.items())
                except (OSError, ValueError) as error:
                    self._missing[kind] = str(error)
                    self._used.pop(kind, None)
                    del self._readers[kind]
                    continue
                self._used[kind] = self._used.get(kind, 0.0) + used
                self._last[kind] = now

    def facts(self) -> dict[str, Any]:
        """Seconds and joules since this object was made; None for a kind that cannot be read."""
        self.sample()
        return {
            "seconds": time.monotonic() - self._began_s,
            **{kind: self._used.get(kind) for kind in READERS},
            "missing": dict(self._missing),
        }

    def _keep_sampling(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.sample()


def _since(before: tuple[float, float], now: tuple[float, float]) -> float:
    """Joules between two readings of a counter, which may have wrapped once.

    Raises:
        ValueError: the counter was reset, for example because its driver was loaded again.
    """
    used = now[0] - before[0]
    used += now[1] if used < 0 else 0.0
    if used < 0:
        raise ValueError("a counter was set back")
    return used

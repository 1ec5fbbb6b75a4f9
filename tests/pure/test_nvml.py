"""What NVIDIA's driver says is wrong with a GPU, from a library that is made up here."""

from __future__ import annotations

from typing import Any

import pytest

from collage_mpi.system.environment import gpu_entry
from collage_mpi.system.nvml import LOST, gpu_trouble

NOT_SUPPORTED = 3


class Driver:
    """NVML of a host with two GPUs; `errors` and `reasons` are those of the second one.

    Attributes:
        newer: whether it has the names since driver 535 alone.
        code: what every question about a GPU returns.
    """

    def __init__(
        self, errors: int | None = 0, reasons: int = 0, newer: bool = True, code: int = 0
    ) -> None:
        self.errors, self.reasons, self.code = errors, reasons, code
        self.nvmlInit_v2 = lambda: 0
        which = "Event" if newer else "Throttle"
        setattr(self, f"nvmlDeviceGetCurrentClocks{which}Reasons", self._reasons)

    def nvmlDeviceGetHandleByIndex_v2(self, number: int, gpu: Any) -> int:
        gpu._obj.value = 1 + number
        return 0

    def nvmlDeviceGetHandleByUUID(self, name: Any, gpu: Any) -> int:
        gpu._obj.value = {b"GPU-8932f937": 2}[name.value]
        return 0

    def nvmlDeviceGetTotalEccErrors(self, gpu: Any, kind: int, since: int, found: Any) -> int:
        assert (kind, since) == (1, 0)  # uncorrected, volatile
        if self.errors is None:  # a GPU without ECC
            return NOT_SUPPORTED
        found._obj.value = self.errors if gpu.value == 2 else 0
        return self.code

    def _reasons(self, gpu: Any, found: Any) -> int:
        found._obj.value = self.reasons if gpu.value == 2 else 0
        return self.code


@pytest.mark.parametrize(
    ("driver", "entry", "said"),
    [
        (Driver(errors=2), "1", "GPU 1: 2 uncorrectable ECC errors since its reset"),
        (Driver(errors=1), "GPU-8932f937", "GPU GPU-8932f937: 1 uncorrectable ECC error since"),
        (Driver(reasons=0x48), "1", "GPU 1: slowed down by its hardware because it is hot"),
        (Driver(None, 0x20, newer=False), "1", "GPU 1: slowed down by its driver because it is"),
        (Driver(1, 0x80), "1", "since its reset, slowed down because its power supply"),
        (Driver(code=LOST), "1", "GPU 1: the host has lost it"),
        (Driver(errors=2, reasons=0x40), "0", ""),  # the other GPU is well
        (Driver(reasons=0x1 | 0x2 | 0x4), "1", ""),  # idle, set by the user, at its power limit
        (Driver(code=NOT_SUPPORTED), "1", ""),
    ],
)
def test_a_gpu_with_a_fault_is_told(
    driver: Driver, entry: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: driver)
    found = gpu_trouble(entry)
    assert said in found
    assert bool(said) == bool(found)


def test_without_a_driver_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", none)
    assert gpu_trouble("0") == ""


@pytest.mark.parametrize(
    ("device", "visible", "entry"),
    [
        ("cpu", "0,1", None),
        ("cuda:1", None, "1"),
        ("cuda", None, "0"),
        ("cuda:1", "3, 2", "2"),
        ("cuda:0", "GPU-8932f937,GPU-1b2c", "GPU-8932f937"),
        ("cuda:2", "0,1", None),
    ],
)
def test_a_rank_s_gpu_is_found_among_those_of_its_host(
    device: str, visible: str | None, entry: str | None
) -> None:
    assert gpu_entry(device, visible) == entry

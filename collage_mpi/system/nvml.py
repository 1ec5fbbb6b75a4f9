"""NVIDIA's management library (NVML), which nvidia-smi uses too: the GPUs of this host, and what is
wrong with a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
UNCORRECTED, SINCE_RESET = 1, 0  # nvmlMemoryErrorType_t, nvmlEccCounterType_t
LOST = 15  # NVML_ERROR_GPU_IS_LOST
HOT = {  # bits of the clocks' event reasons
    0x40: "slowed down by its hardware because it is hot",
    0x20: "slowed down by its driver because it is hot",
    0x80: "slowed down because its power supply asks for it",
}
# The name since driver 535, and the one before, which later drivers still know.
REASONS = ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")


class NvmlFault(OSError):
    """A call that failed; errno is NVML's code, None if the driver has no such call."""


class Nvml:
    """The library.

    Raises:
        OSError: there is no NVIDIA driver.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(LIBRARY)
        self.call("nvmlInit_v2")

    def call(self, name: str, *words: Any) -> None:
        """Call a function.

        Raises:
            NvmlFault: it fails, or this driver does not have it.
        """
        function = getattr(self._library, name, None)
        if function is None:
            raise NvmlFault(f"the driver has no {name}")
        code = function(*words)
        if code:
            raise NvmlFault(code, f"{name} returned {code}")

    def count(self) -> int:
        """How many GPUs the host has."""
        found = ctypes.c_uint()
        self.call("nvmlDeviceGetCount_v2", ctypes.byref(found))
        return found.value

    def gpu(self, entry: str) -> ctypes.c_void_p:
        """The handle of a GPU, by its number or as CUDA_VISIBLE_DEVICES names it."""
        found = ctypes.c_void_p()
        by, name = "UUID", entry.encode()
        given: Any = ctypes.c_char_p(name)
        if entry.isdecimal():
            by, given = "Index_v2", int(entry)
        self.call(f"nvmlDeviceGetHandleBy{by}", given, ctypes.byref(found))
        return found

    def number(self, name: str, gpu: ctypes.c_void_p, *words: int) -> int:
        """The 64-bit number that a function writes into its last argument."""
        found = ctypes.c_ulonglong()
        self.call(name, gpu, *words, ctypes.byref(found))
        return found.value


def gpu_trouble(entry: str) -> str:
    """What NVML says is wrong with a GPU; "" if nothing, or if it cannot be asked.

    Args:
        entry: number or UUID of the GPU. A MIG instance has no such counters.
    """
    try:
        nvml = Nvml()
        found = list(_troubles(nvml, nvml.gpu(entry)))
    except OSError as fault:
        lost = isinstance(fault, NvmlFault) and fault.errno == LOST
        found = ["the host has lost it"] if lost else []
    return f"GPU {entry}: {', '.join(found)}" if found else ""


def _troubles(nvml: Nvml, gpu: ctypes.c_void_p) -> Iterator[str]:
    errors = _asked(nvml, "nvmlDeviceGetTotalEccErrors", gpu, UNCORRECTED, SINCE_RESET)
    if errors:
        yield f"{errors} uncorrectable ECC error{'s' * (errors > 1)} since its reset"
    reasons = next((r for name in REASONS if (r := _asked(nvml, name, gpu)) is not None), 0)
    yield from (words for bit, words in HOT.items() if reasons & bit)


def _asked(nvml: Nvml, name: str, gpu: ctypes.c_void_p, *words: int) -> int | None:
    """A number from NVML; None if this GPU or driver does not have it.

    Raises:
        NvmlFault: the GPU is lost.
    """
    try:
        return nvml.number(name, gpu, *words)
    except NvmlFault as fault:
        if fault.errno == LOST:
            raise
        return None

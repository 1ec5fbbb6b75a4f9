"""How a network runs: precision, memory layout and launching of kernels, and what "auto" means on
each device (docs/speed.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from collage_mpi.errors import UsageError

PRECISIONS = ("auto", "float32", "float16", "bfloat16")
LAYOUTS = ("on", "off")
NO_TUNING = "null"  # of a null network, which computes nothing
COMPILES = ("auto", "none", "cuda-graph", "torch-compile")


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Precision, memory layout and launching.

    Attributes:
        precision: dtype of weights and activations; scores are always float32.
        channels_last: "on" for the memory format NHWC, "off" for NCHW.
        compile: "none" launches each kernel; "cuda-graph" launches all kernels at once, with a
            graph for each batch size; "torch-compile" compiles new kernels, which can take minutes.

    Raises:
        UsageError: a choice is unknown.
    """

    precision: str
    channels_last: str
    compile: str

    def __post_init__(self) -> None:
        known = {"precision": PRECISIONS, "channels_last": LAYOUTS, "compile": COMPILES}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}; known are: {', '.join(choices)}"
                )

    def on(self, device: str, half_pays: bool | None = None) -> Tuning:
        """The same tuning with every "auto" resolved for a device.

        On a GPU it means float16, for tensor cores, and CUDA graphs, because launching kernels is
        slow. On a CPU it means bfloat16 if this is faster (`bfloat16_pays`), and no graphs.

        Args:
            device: "cpu" or "cuda", without a number.
            half_pays: whether bfloat16 is faster than float32 on this CPU; None for
                `bfloat16_pays`.

        Raises:
            UsageError: CUDA graphs were chosen on a CPU.
        """
        precision, how = self.precision, self.compile
        gpu = device == "cuda"
        if precision == "auto":
            half = "float16" if gpu else "bfloat16"
            fast = gpu or (bfloat16_pays() if half_pays is None else half_pays)
            precision = half if fast else "float32"
        if how == "auto":
            how = "cuda-graph" if gpu else "none"
        if how == "cuda-graph" and not gpu:
            raise UsageError(
                "--compile cuda-graph needs a GPU, and this rank runs on its CPU: use none or auto"
            )
        return replace(self, precision=precision, compile=how)

    def __str__(self) -> str:
        """The tuning in words: `float16, channels-last, cuda-graph`."""
        layout = "channels-last" if self.channels_last == "on" else "contiguous"
        return f"{self.precision}, {layout}" + (
            "" if self.compile == "none" else f", {self.compile}"
        )


# The default of a network for which nothing was chosen, and the baseline for comparisons.
PLAIN = Tuning(precision="float32", channels_last="on", compile="none")


def tunings_text(each: Iterable[Mapping[str, str]]) -> str:
    """The tunings of all ranks in words: "single network bfloat16, channels-last; collage ...".

    Args:
        each: for every rank, kind -> tuning in words. Null networks are left out.
    """
    found: dict[str, dict[str, None]] = {}
    for tunings in each:
        for kind, how in tunings.items():
            if how != NO_TUNING:
                found.setdefault(kind, {})[how] = None
    return "; ".join(f"{kind} network {' and '.join(ways)}" for kind, ways in found.items())


def bfloat16_pays(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor runs networks faster in bfloat16 than in float32; False if unknown.

    Measured (analysis/reports/speed.md): 2.1 to 3.6 times as fast with AMX (Intel), and 1.6 to 2
    times with AVX512-BF16 on AMD's Zen 5; slower on an Intel processor with only AVX512-BF16.
    """
    found = processor_facts(cpuinfo)
    flags = found.get("flags", "").split()
    amd = found.get("vendor_id") == "AuthenticAMD"
    return "amx_bf16" in flags or ("avx512_bf16" in flags and amd)


def processor_facts(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The fields of /proc/cpuinfo for the first core, such as `flags` and `model name`; {} on
    systems other than Linux."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":")[::2] for line in reversed(lines))
    return {name.strip(): value.strip() for name, value in pairs}


def memory_fault(
    what: str, device: str, weights_bytes: int, free_bytes: int | None, total_bytes: int | None
) -> str:
    """The message for a network that does not fit into the memory of its GPU.

    Args:
        what: the network, in words.
        device: such as "cuda:0".
        weights_bytes: size of its weights in the requested precision.
        free_bytes, total_bytes: memory of the GPU at that moment; None if unknown.
    """
    mib = 1 << 20
    room = "its free memory is not known"
    if free_bytes is not None and total_bytes is not None:
        room = f"{free_bytes // mib:,} of {total_bytes // mib:,} MiB were free"
    return (
        f"{device} is out of memory for {what}: its weights take "
        f"{-(-weights_bytes // mib):,} MiB, its activations and CUDA itself (about 500 MiB a rank) "
        f"come on top, and {room}. What would fit: fewer ranks on this GPU (nvidia-smi shows who "
        "holds memory), --precision float16, --compile none, or a smaller "
        "network"
    )

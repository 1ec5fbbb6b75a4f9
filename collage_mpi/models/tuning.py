"""How fast a network is asked to be: its precision, its layout, how its kernels are launched.

Owns: the three choices, what `auto` means on which device, and why (docs/speed.md).
Does not know: torch, networks, weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from collage_mpi.errors import UsageError

PRECISIONS = ("auto", "float32", "float16", "bfloat16")
LAYOUTS = ("on", "off")
COMPILES = ("auto", "none", "cuda-graph", "torch-compile")


@dataclass(frozen=True)
class Tuning:
    """The choices; the default is plain float32, which every other is held against.

    Attributes:
        precision: number format of weights and activations; scores are float32 always.
        channels_last: whether the memory format is NHWC: "on" or "off".
        compile: "none" launches each kernel; "cuda-graph" all of them at once, for each size
            of batch; "torch-compile" makes others first, which takes up to minutes.

    Raises:
        UsageError: a choice that is none of the known ones.
    """

    precision: str = "float32"
    channels_last: str = "on"
    compile: str = "none"

    def __post_init__(self) -> None:
        known = {"precision": PRECISIONS, "channels_last": LAYOUTS, "compile": COMPILES}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}; known are: {', '.join(choices)}"
                )

    def on(self, device: str, amx: bool | None = None) -> Tuning:
        """The same with every `auto` decided.

        On CPUs bfloat16 pays only with AMX: 2.4 and 4 times as fast as float32 there, and
        slower on the same processor with AVX512 alone. On GPUs float16 and graphs are what
        tensor cores and launch costs ask for.

        Args:
            device: "cpu" or "cuda", without a number.
            amx: whether the processor multiplies bfloat16 matrices; None asks it.

        Raises:
            UsageError: CUDA graphs on a CPU.
        """
        precision, how = self.precision, self.compile
        gpu = device == "cuda"
        if precision == "auto":
            half = "float16" if gpu else "bfloat16"
            fast = gpu or (has_amx() if amx is None else amx)
            precision = half if fast else "float32"
        if how == "auto":
            how = "cuda-graph" if gpu else "none"
        if how == "cuda-graph" and not gpu:
            raise UsageError(
                "--compile cuda-graph needs a GPU, and this rank runs on its CPU: use none or auto"
            )
        return replace(self, precision=precision, compile=how)

    def __str__(self) -> str:
        """For the record: `float16, channels-last, cuda-graph`."""
        layout = "channels-last" if self.channels_last == "on" else "contiguous"
        return f"{self.precision}, {layout}" + (
            "" if self.compile == "none" else f", {self.compile}"
        )


def has_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor has AMX for bfloat16; False where nothing tells (not Linux)."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return "amx_bf16" in flags.split()


def memory_fault(
    what: str, device: str, weights_bytes: int, free_bytes: int | None, total_bytes: int | None
) -> str:
    """The message for a network that does not fit its GPU.

    Args:
        what: the network, in words.
        weights_bytes: its weights in the precision asked for.
        free_bytes, total_bytes: of the GPU when it happened; None if it would not say.
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

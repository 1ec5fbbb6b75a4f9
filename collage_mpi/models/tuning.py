"""How a network runs: precision, memory layout and runtime, and what "auto" means on each device
(docs/speed.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from collage_mpi.errors import UsageError

PRECISIONS = ("auto", "float32", "float16", "bfloat16")
NO_TUNING = "null"  # of a null network, which computes nothing
OWN_TUNING = "its own"  # of an object of the user's code
TORCH, COMPILE, OPENVINO, ONNX = "torch", "compile", "openvino", "onnx"
RUNTIMES = ("auto", TORCH, COMPILE, OPENVINO, ONNX)
OWN = "own"  # an object of the user's code, which computes by itself


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Precision, memory layout and runtime.

    Attributes:
        precision: dtype of weights and activations; scores are always float32. "auto" is float32.
        runtime: what computes. "torch" calls each operation on a CPU, and launches CUDA graphs on
            a GPU; "compile" is torch.compile; "openvino" and "onnx" (onnxruntime) run on CPUs.
            "auto" is the quickest with answers equal to those of torch in float32.

    Raises:
        UsageError: a choice is unknown.
    """

    precision: str
    runtime: str

    def __post_init__(self) -> None:
        known = {"precision": PRECISIONS, "runtime": RUNTIMES}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}; known are: {', '.join(choices)}"
                )

    @property
    def dtype(self) -> str:
        """The precision by its name in torch."""
        return "float32" if self.precision == "auto" else self.precision

    def on(self, device: str) -> Tuning:
        """How a rank on this device begins. Only on a CPU other runtimes than torch follow later.

        Args:
            device: "cpu" or "cuda", without a number.

        Raises:
            UsageError: the runtime does not run on this device.
        """
        if device == "cuda" and self.runtime in (OPENVINO, ONNX):
            raise UsageError(
                f"--runtime {self.runtime} runs on CPUs, and this rank runs on a GPU: choose "
                "--runtime auto, or --device cpu"
            )
        compiles = device == "cuda" and self.runtime == COMPILE
        return replace(self, precision=self.dtype, runtime=COMPILE if compiles else TORCH)

    @property
    def answerer(self) -> str:
        """Runtime and format, as rows name who answered: one of ANSWERERS."""
        return f"{self.runtime} {self.precision}"

    def __str__(self) -> str:
        """The tuning in words: `float16, channels-last`."""
        return f"{self.precision}, channels-last" + (
            "" if self.runtime == TORCH else f", {COMPILE}"
        )


# The default of a network for which nothing was chosen, and the baseline for comparisons.
PLAIN = Tuning(precision="float32", runtime=TORCH)


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
        "holds memory), --precision float16, or a smaller network"
    )

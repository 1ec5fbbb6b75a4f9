"""Checks of the GPUs: installed, visible to this process, usable by torch."""

from __future__ import annotations

from collections.abc import Iterator

from collage_mpi.doctor.facts import BAD, OK, WARN, Facts, Finding, Gpus
from collage_mpi.system.environment import visible_entries


def check_gpus(facts: Facts) -> Iterator[Finding]:
    """What the driver has, what is visible, what torch can use."""
    gpus = facts.gpus
    required = facts.wanted.device == "cuda"
    there = max(len(gpus.installed), gpus.driver_count or 0, gpus.torch_count or 0)
    if facts.wanted.device == "cpu" or there == 0:
        yield _no_gpu(gpus, required)
        return
    severe = BAD if required else WARN
    name = f"{gpus.installed[0]}" if gpus.installed else "GPU"
    shown = _visible_count(gpus, there)
    if gpus.visible and shown < there:
        variable, value = gpus.visible
        yield Finding(
            "GPUs",
            severe if shown == 0 else WARN,
            f"{there} x {name}, but {variable}={value!r} leaves {shown} visible",
            f"unset {variable}; under Slurm ask with --gpus-per-node",
        )
    elif shown < there:
        yield Finding(
            "GPUs",
            severe,
            f"nvidia-smi lists {there}, this process sees {shown}: its job did not ask for more",
            "ask for them: --gpus-per-node=N (Slurm), --gpus all (Docker)",
        )
    if shown > 0:
        yield _torch_and(gpus, shown, name, severe)


def _visible_count(gpus: Gpus, there: int) -> int:
    """GPUs that this process may use: as the driver says, else as the environment variable says."""
    if gpus.driver_count is not None:
        return gpus.driver_count
    entries = visible_entries(gpus.visible[1] if gpus.visible else None)
    return there if entries is None else min(there, len(entries))


def _no_gpu(gpus: Gpus, required: bool) -> Finding:
    if required:
        return Finding(
            "GPUs",
            BAD,
            "--device cuda, but neither the driver nor torch shows a GPU",
            "ask for GPUs (--gpus-per-node=N, --gpus all), or use --device cpu",
        )
    hidden = f" ({gpus.visible[0]}={gpus.visible[1]!r})" if gpus.visible else ""
    return Finding("GPUs", OK, f"none used{hidden}: networks run on the CPU")


def _torch_and(gpus: Gpus, shown: int, name: str, severe: str) -> Finding:
    build = gpus.torch_build
    if build is None:
        return Finding(
            "GPUs", OK, f"{shown} x {name}; torch, which would use them, is not installed"
        )
    if build == "cpu":
        return Finding(
            "GPUs",
            severe,
            f"{shown} x {name}, but this torch is a CPU build: networks would run on the CPU",
            "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu126",
        )
    if (gpus.torch_count or 0) < shown:
        return Finding(
            "GPUs",
            severe,
            f"the driver shows {shown} x {name}, torch ({build}) sees {gpus.torch_count or 0}",
            "the driver may be older than torch's CUDA: compare nvidia-smi, and install a torch "
            "built for it (https://pytorch.org/get-started/previous-versions)",
        )
    return Finding("GPUs", OK, f"{shown} x {name}, torch {build} sees them")

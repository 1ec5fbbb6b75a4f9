"""Service time of each preset's networks on this CPU: the table of presets in docs/speed.md.

Owns: networks of each preset with fresh weights (speed does not depend on them), the clock.
Does not know: accuracy (docs/weights.md), jobs, ranks. One thread, batch 1. The clock is the
process's CPU time, the figure the least of many calls: on a shared machine the wall clock also
counts what others had the core for.

    python analysis/preset_speed.py                     # needs collage-mpi[vision]; a few minutes
    python analysis/preset_speed.py --sides 3 --calls 20
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from collage_mpi.models import Architecture, Predictor, Tuning, describe, load_predictor
from collage_mpi.models.backbone import Backbone, read_architecture
from collage_mpi.models.collage_net import build_network
from collage_mpi.models.heads import HeadSpec
from collage_mpi.models.presets import (
    BY_SIDE,
    REFERENCE_BACKBONES,
    REFERENCE_COLLAGE_PX,
    REFERENCE_HEAD,
    preset,
)
from collage_mpi.models.weights import save_weights

WAYS = {
    "float32, contiguous": Tuning("float32", "off"),
    "float32": Tuning("float32"),
    "bfloat16": Tuning("bfloat16"),
}
REFERENCE_PX, SMALL_PX = 224, 28


def predictor_of(
    folder: Path,
    architecture: Architecture | Backbone,
    shape: tuple[int, int, int],
    side: int | None,
    tuning: Tuning,
) -> Predictor:
    """A network of fresh weights as a rank would load it; `shape` is (H, W, C) of its input."""
    height, width, channels = shape
    papers = architecture == Backbone(REFERENCE_BACKBONES["collage"])
    head, classes = (REFERENCE_HEAD, 100) if papers else (HeadSpec(), 10)
    network = build_network(architecture, channels, classes, side, head)
    record = {
        "kind": "single" if side is None else "collage",
        "architecture": architecture.to_dict(),
        "side": side,
        "cell_px": None if side is None else height // side,
        "height": height,
        "width": width,
        "channels": channels,
        "head": head.to_dict(),
        "class_names": [str(number) for number in range(classes)],
        "normalisation": {"mean": [0.5] * channels, "std": [0.25] * channels},
        "temperature": 1.0,
    }
    tensors = {name: t.numpy() for name, t in network.state_dict().items() if t.is_floating_point()}
    path = folder / "network.safetensors"
    info = save_weights(path, tensors, record)
    return load_predictor(str(path), info.kind, tuning=tuning)


def least_cpu_ms(predictor: Predictor, shape: tuple[int, int, int], calls: int) -> float:
    """The least CPU time of a call at batch 1, after three more."""
    batch = np.random.default_rng(0).integers(0, 256, (1, *shape), np.uint8)
    times = []
    for _ in range(3 + calls):
        start_ns = time.process_time_ns()
        predictor.predict(batch)
        times.append(time.process_time_ns() - start_ns)
    return min(times[3:]) / 1e6


def networks(
    sides: list[int],
) -> Iterator[tuple[str, Architecture | Backbone, int, int, int | None]]:
    """(name, architecture, edge in px, channels, side), each family's single first."""
    shipped = describe(str(files("collage_mpi") / "data" / "fashion_single.safetensors"), "single")
    assert shipped is not None
    yield "default single", read_architecture(shipped.architecture), SMALL_PX, 1, None
    for side in sides:
        yield f"{BY_SIDE[side]}, side {side}", preset(BY_SIDE[side]), SMALL_PX * side, 1, side
    single, collage = (Backbone(REFERENCE_BACKBONES[kind]) for kind in ("single", "collage"))
    yield "reference single, ResNet-34", single, REFERENCE_PX, 3, None
    for side in sides:
        edge = REFERENCE_COLLAGE_PX // side * side
        yield f"reference, side {side}", collage, edge, 3, side


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--calls", type=int, default=40)
    args = parser.parse_args()
    torch.manual_seed(0)
    print(f"{'network':<30} {'px':>4}" + "".join(f"{way:>28}" for way in WAYS), flush=True)
    single_ms: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, architecture, edge, channels, side in networks(args.sides):
            cells = []
            for way, tuning in WAYS.items():
                shape = (edge, edge, channels)
                predictor = predictor_of(Path(folder), architecture, shape, side, tuning)
                ms = least_cpu_ms(predictor, shape, args.calls)
                if side is None:
                    single_ms[way] = ms
                ratio = "" if side is None else f" ({ms / single_ms[way]:.2f} x)"
                cells.append(f"{ms:.2f} ms{ratio}")
            print(f"{name:<30} {edge:>4}" + "".join(f"{cell:>28}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()

"""Service time of each preset's networks, batches of singles beside collages.

The figures are in analysis/reports/speed.md.

Owns: networks of each preset with fresh weights (speed does not depend on them), the clock.
One thread. The networks' accuracy is in docs/networks.md. On a CPU the clock is the
process's CPU time: on a shared machine the wall clock also counts what others had the core for. The
figure is the least of many calls.

    python analysis/preset_speed.py                     # needs collage-mpi[vision]; a few minutes
    python analysis/preset_speed.py --sides 3 --calls 20
    python analysis/preset_speed.py --family reference --batches 1 9 --device cuda --compile
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch

from collage_mpi.errors import CollageError
from collage_mpi.models import describe, load_predictor
from collage_mpi.models.architecture import (
    BY_SIDE,
    REFERENCE_BACKBONES,
    REFERENCE_COLLAGE_PX,
    REFERENCE_HEAD,
    Architecture,
    Backbone,
    HeadSpec,
    preset,
    read_architecture,
)
from collage_mpi.models.collage_net import build_network
from collage_mpi.models.info import PLAIN, Loading, Predictor, Tuning
from collage_mpi.models.weights import save_weights

WAYS = {
    "cpu": {
        "float32": PLAIN,
        "bfloat16": replace(PLAIN, precision="bfloat16"),
    },
    "cuda": {
        "float32": PLAIN,
        "float16": replace(PLAIN, precision="float16"),
    },
}
COMPILED = {
    "cpu": {},
    "cuda": {"float16, compiled": replace(PLAIN, precision="float16", runtime="compile")},
}
FAMILIES = ("default", "reference")
REFERENCE_PX, SMALL_PX = 224, 28


def predictor_of(
    folder: Path,
    architecture: Architecture | Backbone,
    shape: tuple[int, int, int],
    side: int | None,
    tuning: Tuning,
    device: str,
) -> Predictor:
    """A network of fresh weights as a rank would load it; `shape` is (H, W, C) of its input."""
    height, width, channels = shape
    papers = architecture == Backbone(REFERENCE_BACKBONES["collage"])
    head, classes = (REFERENCE_HEAD, 100) if papers else (HeadSpec(), 10)
    network = build_network(architecture, channels, classes, side, head)
    record = {
        "kind": "single" if side is None else "collage",
        "architecture": asdict(architecture),
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
    return load_predictor(str(path), info.kind, Loading(tuning=tuning, device=device))


def least_ms(predictor: Predictor, batch: np.ndarray, calls: int, device: str) -> float:
    """The least time of a call, after three more."""
    clock_ns = time.process_time_ns if device == "cpu" else time.perf_counter_ns
    times = []
    for _ in range(3 + calls):
        start_ns = clock_ns()
        predictor.predict(batch)
        times.append(clock_ns() - start_ns)
    return min(times[3:]) / 1e6


def networks(
    families: list[str], sides: list[int]
) -> Iterator[tuple[str, Architecture | Backbone, int, int, int | None]]:
    """(name, architecture, edge in px, channels, side), each family's single first."""
    if "default" in families:
        weights = files("collage_mpi") / "data" / "fashion_single.safetensors"
        shipped = describe(str(weights), "single")
        assert shipped is not None
        yield "default single", read_architecture(shipped.architecture), SMALL_PX, 1, None
        for side in sides:
            yield f"{BY_SIDE[side]}, side {side}", preset(BY_SIDE[side]), SMALL_PX * side, 1, side
    if "reference" in families:
        single, collage = (Backbone(REFERENCE_BACKBONES[kind]) for kind in ("single", "collage"))
        yield "reference single, ResNet-34", single, REFERENCE_PX, 3, None
        for side in sides:
            edge = REFERENCE_COLLAGE_PX // side * side
            yield f"reference, side {side}", collage, edge, 3, side


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--sides", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="of single images")
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--device", choices=list(WAYS), default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile, on a GPU: minutes")
    args = parser.parse_args()
    torch.manual_seed(0)
    ways = {**WAYS[args.device], **(COMPILED[args.device] if args.compile else {})}
    print(f"{'network':<30} {'px':>4} {'batch':>5}" + "".join(f"{way:>22}" for way in ways))
    single_ms: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, architecture, edge, channels, side in networks(args.family, args.sides):
            shape = (edge, edge, channels)
            lines: dict[int, str] = dict.fromkeys(args.batches if side is None else [1], "")
            for way, tuning in ways.items():
                try:
                    predictor = predictor_of(
                        Path(folder), architecture, shape, side, tuning, args.device
                    )
                except CollageError as error:
                    print(f"{name}, {way}: {error}", file=sys.stderr)
                    lines = {size: line + f"{'-':>22}" for size, line in lines.items()}
                    continue
                for size in lines:
                    noise = np.random.default_rng(0).integers(0, 256, (size, *shape), np.uint8)
                    ms = least_ms(predictor, noise, args.calls, args.device)
                    if side is None and size == 1:
                        single_ms[way] = ms
                    over = ms / single_ms[way] if way in single_ms else float("nan")
                    lines[size] += f"{ms:.2f} ms ({over:.2f} x)".rjust(22)
            for size, line in lines.items():
                print(f"{name:<30} {edge:>4} {size:>5}{line}", flush=True)


if __name__ == "__main__":
    main()

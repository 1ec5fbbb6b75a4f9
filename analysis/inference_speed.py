"""How fast each way to run a network is, and whether it answers the same. The table is in
analysis/reports/speed.md.

Owns: the inputs made of a shard, the clock around `predict`, the comparison with the CPU's float32.
One process, one thread on a CPU; the shortest of many calls, since
other work on the machine can only lengthen one. On a CPU the clock is the process's CPU time, to
which the others' turns on its core do not count.

    python analysis/inference_speed.py                      # the shipped networks, this CPU
    python analysis/inference_speed.py --device cuda --batches 1 4 16
    python analysis/inference_speed.py --single W --collage W --shards DIR --side 3
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files

import numpy as np

from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import CollageError
from collage_mpi.models import describe, load_predictor
from collage_mpi.models.info import PLAIN, Loading, NetworkInfo, Predictor
from collage_mpi.models.predictor import usable_device
from collage_mpi.shards import ShardSet

WARM = 5  # calls before those that count
WAYS = {
    "cpu": (
        PLAIN,
        replace(PLAIN, precision="bfloat16"),
        replace(PLAIN, precision="float16"),
    ),
    "cuda": (
        PLAIN,
        replace(PLAIN, precision="float16"),
        replace(PLAIN, precision="bfloat16"),
    ),
}


def inputs_of(info: NetworkInfo, shards: ShardSet, images: int) -> tuple[np.ndarray, np.ndarray]:
    """What a network is given, (n, H, W, C) uint8, and its labels, (n, cells)."""
    cells = info.cells
    pixels, labels = shards.read(np.arange(min(images, len(shards)) // cells * cells))
    assert labels is not None, "shards without labels: no accuracy"
    if info.side is None or info.cell_px is None:
        return pixels, labels[:, None]
    encoder = Encoder(Grid(info.side, info.cell_px), shards.shape)
    shrunk = encoder.shrink(pixels.reshape(-1, cells, *shards.shape))
    return np.stack([encoder.paste(list(group)) for group in shrunk]), labels.reshape(-1, cells)


def scores_of(predictor: Predictor, batch: np.ndarray, size: int = 20) -> np.ndarray:
    """(n, cells, classes) float32."""
    parts = [predictor.predict(batch[at : at + size]).copy() for at in range(0, len(batch), size)]
    return np.concatenate(parts)


def shortest_ms(predictor: Predictor, batch: np.ndarray, device: str, calls: int) -> float:
    """The shortest of the calls, after WARM more."""
    clock_ns = time.process_time_ns if device == "cpu" else time.perf_counter_ns
    times = []
    for _ in range(WARM + calls):
        start_ns = clock_ns()
        predictor.predict(batch)
        times.append(clock_ns() - start_ns)
    return min(times[WARM:]) / 1e6


def rows(args: argparse.Namespace, kind: str, spec: str, shards: ShardSet) -> Iterator[str]:
    """A line for each way."""
    info = describe(spec, kind)
    assert info is not None, "a null network has no speed"
    batch, labels = inputs_of(info, shards, args.images)
    plain = scores_of(load_predictor(spec, kind), batch)  # on the CPU, whatever is measured
    ways = [
        *WAYS[args.device],
        *([replace(PLAIN, precision="bfloat16", runtime="compile")] * args.compile),
    ]
    for tuning in ways:
        try:
            tuned = load_predictor(spec, kind, Loading(device=args.device, tuning=tuning))
        except CollageError as error:
            yield f"{kind:<8} {tuning!s:<40} {error}"
            continue
        scores = scores_of(tuned, batch)
        times = "".join(
            f"{shortest_ms(tuned, batch[:size].copy(), args.device, args.calls):9.2f}"
            for size in args.batches
        )
        same = (scores.argmax(2) == plain.argmax(2)).mean()
        right = (scores.argmax(2) == labels).mean()
        apart = np.abs(scores - plain)
        yield (
            f"{kind:<8} {tuning!s:<40}{times}   {same:8.2%} {right:8.2%} "
            f"{apart.max():8.4f} {apart.mean():9.1e}"
        )


def main() -> None:
    """Print the table."""
    data = files("collage_mpi") / "data"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--single", default=str(data / "fashion_single.safetensors"))
    parser.add_argument("--collage", default=str(data / "fashion_collage_side3.safetensors"))
    parser.add_argument("--shards", nargs="+", default=[str(data / "fashion_demo.h5")])
    parser.add_argument("--device", choices=list(WAYS), default="cpu")
    parser.add_argument("--images", type=int, default=1800)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--calls", type=int, default=60)
    parser.add_argument("--compile", action="store_true", help="torch.compile, on a GPU: minutes")
    args = parser.parse_args()
    try:
        usable_device(args.device)
    except CollageError as error:
        raise SystemExit(f"inference_speed: {error}") from error
    head = "".join(f"{f'ms at {size}':>9}" for size in args.batches)
    print(f"{'network':<8} {'way':<40}{head}   same     right    most off mean off")
    with ShardSet.open(args.shards) as shards:
        for kind, spec in (("single", args.single), ("collage", args.collage)):
            for row in rows(args, kind, spec, shards):
                print(row, flush=True)


if __name__ == "__main__":
    main()

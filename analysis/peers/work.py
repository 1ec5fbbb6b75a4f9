"""The work that every program beside ours does, and what it reports.

Owns: the images (in memory, or read and checked from the shard a chunk at a time), the network,
slow workers, the report. Does not know: who hands the chunks out.

Every program takes the same words (`arguments`) and prints one line of JSON (`report`).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from collage_mpi.models import load_predictor
from collage_mpi.settings.shipped import with_shipped
from collage_mpi.shards import ShardSet


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shard", required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=1, help="images a task")
    parser.add_argument("--source", choices=("memory", "shard"), default="memory")
    parser.add_argument("--network", default="null")
    parser.add_argument("--service-ms", type=float, default=0.0, help="added to every image")
    parser.add_argument("--slow", type=float, default=1.0, help="worker 1 is so many times slower")
    parser.add_argument("--pids", default="", help="folder: a file a worker, named as its number")
    return parser.parse_args()


class Images:
    """Images by range; (n, H, W, C) uint8 and (n,) labels."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._shards = ShardSet.open([args.shard])
        rows = np.arange(args.images)
        self._all = self._shards.read_checked(rows) if args.source == "memory" else None

    def chunk(self, first: int, stop: int) -> np.ndarray:
        if self._all is not None:
            return self._all[0][first:stop]
        pixels, _, good = self._shards.read_checked(np.arange(first, stop))
        assert good.all()
        return pixels


class Worker:
    """Classifies a chunk; `number` from 1, of whom the first may be slow."""

    def __init__(self, args: argparse.Namespace, number: int) -> None:
        self._predictor = load_predictor(with_shipped(args.network), "single")
        self._each_s = args.service_ms / 1e3 * (args.slow if number == 1 else 1.0)
        if args.pids:
            Path(args.pids, str(number)).write_text(str(os.getpid()))

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(n, H, W, C) uint8 -> (n,) int64."""
        if self._each_s:
            time.sleep(self._each_s * len(pixels))
        return self._predictor.predict(pixels)[:, 0].argmax(axis=-1)


def chunks(args: argparse.Namespace) -> list[tuple[int, int]]:
    """(first, stop) of every task, in order."""
    return [(i, min(i + args.chunk, args.images)) for i in range(0, args.images, args.chunk)]


def report(args: argparse.Namespace, rows: int, start_s: float) -> None:
    """Print what was done since `start_s`, a time of time.monotonic()."""
    seconds = time.monotonic() - start_s
    print(
        json.dumps({"rows": rows, "seconds": seconds, "images_per_s": rows / seconds}), flush=True
    )

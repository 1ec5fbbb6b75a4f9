"""The work that every program beside ours does, and what it reports.

Owns: the images (in memory, or read and checked from the shard a chunk at a time), who reads them,
the network, slow workers, the report.

Every program takes the same words (`arguments`) and prints one line of JSON (`report`).
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path

import numpy as np

from collage_mpi.models import load_predictor
from collage_mpi.models.info import PLAIN, Geometry, Loading
from collage_mpi.models.named import is_foreign
from collage_mpi.shards import ShardSet
from collage_mpi.system.fields import with_shipped

LOADING = threading.Lock()  # Daft makes its workers in threads
SOURCES = ("memory", "sender", "workers")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shard", required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=1, help="images a task")
    parser.add_argument(
        "--source",
        choices=SOURCES,
        default="memory",
        help="in memory from the start, or read as they are sent, or by the workers",
    )
    parser.add_argument("--network", default="null")
    parser.add_argument("--service-ms", type=float, default=0.0, help="added to every image")
    parser.add_argument("--slow", type=float, default=1.0, help="worker 1 is so many times slower")
    parser.add_argument("--notes", default="", help="folder: a file a worker, and one at the start")
    parser.add_argument("--compiled", action="store_true", help="of timm_loop.py")
    return parser.parse_args()


class Images:
    """Those of a range, (n, H, W, C) uint8; read at once, or when they are asked for."""

    def __init__(self, args: argparse.Namespace, first: int = 0, stop: int | None = None) -> None:
        self._shards, self._first, self._all = ShardSet.open([args.shard]), first, None
        if args.source == "memory":
            self._all = self._shards.read(np.arange(first, stop or args.images))[0]
        self._named = args.source == "workers"

    def chunk(self, first: int, stop: int) -> np.ndarray:
        if self._all is not None:
            return self._all[first - self._first : stop - self._first]
        return self._shards.read(np.arange(first, stop))[0]

    def task(self, first: int, stop: int) -> np.ndarray:
        """What a worker is sent: pixels, or (2,) int64, first and stop, where it reads them."""
        return np.array([first, stop]) if self._named else self.chunk(first, stop)


class Worker:
    """Classifies a task; `number` from 1, of whom the first may be slow."""

    def __init__(self, args: argparse.Namespace, number: int) -> None:
        network, geometry = with_shipped(args.network), None
        if is_foreign(network):
            with ShardSet.open([args.shard]) as shards:
                geometry = Geometry(shards.shape, 1, shards.shape[0], None)
        how = Loading(tuning=PLAIN, geometry=geometry)
        with LOADING:
            self._predictor = load_predictor(network, "single", how)  # as a rank
        self._images = Images(args) if args.source == "workers" else None
        self._each_s = args.service_ms / 1e3 * (args.slow if number == 1 else 1.0)
        if args.notes:
            Path(args.notes, str(number)).write_text(str(os.getpid()))

    def __call__(self, task: np.ndarray) -> np.ndarray:
        """A task of `Images` -> (n,) int64."""
        pixels = self._images.chunk(*task) if self._images else task
        if self._each_s:
            time.sleep(self._each_s * len(pixels))
        return self._predictor.predict(pixels)[:, 0].argmax(axis=-1)


def next_number(args: argparse.Namespace) -> int:
    """The number of a worker whose pool does not tell it: the first one that no other has taken."""
    for number in count(1):
        try:
            Path(args.notes, str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        return number
    raise AssertionError


def chunks(args: argparse.Namespace) -> list[tuple[int, int]]:
    """(first, stop) of every task, in order."""
    return [(i, min(i + args.chunk, args.images)) for i in range(0, args.images, args.chunk)]


def start(args: argparse.Namespace) -> float:
    """The time of time.monotonic(), now that all workers are ready; noted for who watches."""
    if args.notes:
        Path(args.notes, "started").touch()
    return time.monotonic()


def report(start_s: float, classes: Iterable[Sequence[int] | np.ndarray]) -> None:
    """Print what was done since `start_s`; `classes`: all answers, waited for here."""
    rows = total = 0
    for found in classes:
        rows, total = rows + len(found), total + int(np.sum(found))
    seconds = time.monotonic() - start_s
    said = {"rows": rows, "class_sum": total, "seconds": seconds, "images_per_s": rows / seconds}
    print(json.dumps(said), flush=True)

"""What rank 0 can feed: images/s and MB/s by size and storage, and the N where it saturates.

Owns: the cost of the reading thread, by CPU time, and the sums. The table is in
analysis/reports/benchmarks.md.
The cost of rank 0's loop, with MPI, comes from reports of `bench/round.py`:

    python analysis/bench/round.py --ranks 11 --px 28 --out b28.json
    python analysis/bench/round.py --ranks 11 --px 224 --out b224.json
    python analysis/rank0_ceiling.py b28.json b224.json

CPU time, not wall: other work on the machine hardly changes it. The least of several runs.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from bench.round_settings import BenchSettings
from PIL import Image

from collage_mpi.encoding.collage import Encoder
from collage_mpi.shards import ReadAhead, ShardSet, write_shard
from collage_mpi.shards.pictures import PictureFit
from collage_mpi.shards.source import ReadAs

IMAGES = {28: 9_000, 224: 450}
REPEATS = 5
PHOTO = (500, 375)  # width and height of a usual photograph on the web
SERVICE_MS = (5.0, 10.0, 20.0)


class Storage(NamedTuple):
    """One way to keep images, and its cost to the reading thread."""

    name: str
    bytes_an_image: float
    reader_us: float


def reader_us(path: Path, encoder: Encoder) -> float:
    """CPU of reading and shrinking, us an image: the whole process, which does nothing else."""
    best = float("inf")
    with ShardSet.open([path], read_as=ReadAs(PictureFit(encoder.shape[0]))) as shards:
        for _ in range(REPEATS):
            start_ns = time.process_time_ns()
            with ReadAhead(shards, np.arange(len(shards)), shrink=encoder.shrink) as reader:
                while reader.take(9):
                    pass
            best = min(best, (time.process_time_ns() - start_ns) / len(shards) / 1e3)
    return best


def photographs(count: int, size: tuple[int, int]) -> list[bytes]:
    """JPEG files: smooth shapes with some grain, as photographs have."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (24, 32, 3), np.uint8)
        smooth = np.asarray(
            Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), np.int16
        )
        grain = rng.normal(0, 6, smooth.shape).astype(np.int16)
        stream = io.BytesIO()
        Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8)).save(stream, "JPEG")
        files.append(stream.getvalue())
    return files


def storages(px: int, folder: Path) -> Iterator[Storage]:
    """Raw images, and at 224 px a folder of JPEG files."""
    settings = BenchSettings(px=px)
    encoder = Encoder(settings.grid, settings.image_shape, threads=1)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES[px], *settings.image_shape), np.uint8)
    raw = folder / f"raw-{px}.h5"
    write_shard(raw, pixels)
    yield Storage("raw", pixels[0].nbytes, reader_us(raw, encoder))
    if px < 224:
        return
    for name, size in (("JPEG 224 x 224", (224, 224)), ("JPEG 500 x 375", PHOTO)):
        files = photographs(IMAGES[px], size)
        path = folder / f"{size[0]}"
        path.mkdir()
        for number, data in enumerate(files):
            (path / f"{number}.jpg").write_bytes(data)
        size_bytes = float(np.mean([len(data) for data in files]))
        yield Storage(name, size_bytes, reader_us(path, encoder))


def rows(report: dict, folder: Path) -> Iterator[str]:
    """A line for each storage of a report's size."""
    px = report["settings"]["px"]
    loop_us = report["worlds"][0]["variants"]["job-memory"]["loop_cpu_us_per_image"]
    wire = report["worlds"][0]["down_bytes_per_round"] / report["settings"]["side"] ** 2
    for name, nbytes, read_us in storages(px, folder):
        two, one = 1e6 / max(loop_us, read_us), 1e6 / (loop_us + read_us)  # images/s
        full = "".join(f"{two * ms / 1e3:8.0f}" for ms in SERVICE_MS)
        yield (
            f"{px:>4}  {name:<18}{loop_us:9.0f}{read_us:9.0f}{one:10,.0f}{two:10,.0f}"
            f"{two * nbytes / 1e6:11,.0f}{two * wire / 1e6:10,.0f}{full}"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reports", nargs="+", type=Path, help="JSON of bench/round.py")
    args = parser.parse_args()
    torch.set_num_threads(1)
    full = "".join(f"{f'N at {ms:g}':>8}" for ms in SERVICE_MS)
    print(
        f"{'px':>4}  {'storage':<18}{'loop us':>9}{'read us':>9}{'1 core/s':>10}{'2 cores/s':>10}"
        f"{'disk MB/s':>11}{'wire MB/s':>10}{full}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for path in args.reports:
            for row in rows(json.loads(path.read_text()), Path(folder)):
                print(row, flush=True)


if __name__ == "__main__":
    main()

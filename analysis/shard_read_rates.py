"""How fast shards are read: images/s by image size, chunk and order.

The table is in analysis/reports/shards.md.

Owns: made-up shards in a temporary folder and the clock around reads of them.
Does not know: disks. The files were just written, so this is the page cache: the cost
of HDF5, of the checksums and of this package.

    python analysis/shard_read_rates.py
    python analysis/shard_read_rates.py --pictures DIR    raw against encoded, of your JPEGs
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from collage_mpi.shards import ReadAhead, ShardSet, ShardWriter

CASES = {
    (28, 28, 1): (20_000, (1, 16, 334, 2048)),
    (224, 224, 3): (1_000, (1, 2, 8)),
}  # shape: (images, images a chunk)
REPEATS = 5


def best_rate(work: Callable[[], int]) -> float:
    """Images per second of the fastest of `REPEATS` runs of `work`, which returns images."""
    rates = []
    for _ in range(REPEATS):
        start_ns = time.monotonic_ns()
        images = work()
        rates.append(images / (time.monotonic_ns() - start_ns) * 1e9)
    return max(rates)


def read_in_batches(shards: ShardSet, order: np.ndarray, batch: int) -> int:
    """Read `order` with `ShardSet.read`, `batch` images a call."""
    for start in range(0, len(order), batch):
        shards.read(order[start : start + batch])
    return len(order)


def read_ahead(shards: ShardSet, order: np.ndarray) -> int:
    """Read `order` through the background thread, nine at a time as a group takes them."""
    with ReadAhead(shards, order) as reader:
        taken = 0
        while records := reader.take(9):
            taken += len(records)
    return taken


def rows(folder: Path) -> Iterator[tuple[object, ...]]:
    """A line of the table for each case."""
    rng = np.random.default_rng(0)
    for shape, (count, chunks) in CASES.items():
        images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
        for chunk in chunks:
            path = folder / f"{shape[0]}-{chunk}.h5"
            with ShardWriter(path, shape, rows_per_chunk=chunk) as writer:
                writer.append(images, np.zeros(count, dtype=np.int64))
            in_order, shuffled = np.arange(count), rng.permutation(count)
            with ShardSet.open([path]) as shards:
                rates = [
                    best_rate(lambda s=shards, o=order, b=batch: read_in_batches(s, o, b))
                    for order, batch in ((in_order, 64), (shuffled, 64), (shuffled, 1))
                ]
                rates += [
                    best_rate(lambda s=shards, o=order: read_ahead(s, o))
                    for order in (in_order, shuffled)
                ]
            yield (shape[0], chunk, *rates)
            path.unlink()


def raw_against_encoded(folder: Path, root: Path, px: int, limit: int) -> None:
    """Bytes and read rates of the same pictures stored both ways."""
    from collage_mpi.prep.plan import Recipe, plan_shards
    from collage_mpi.prep.work import make_shard
    from collage_mpi.shards.listing import list_folder
    from collage_mpi.shards.pictures import PictureFit

    listing = list_folder(root)
    print("stored   images  MB on disk  64 in order  ahead in order  ahead shuffled  (images/s)")
    for store in ("raw", "encoded"):
        recipe = Recipe(PictureFit(px), store, images_per_shard=limit, limit=limit)
        (job,) = plan_shards(listing, recipe, folder, store)
        report = make_shard(job)
        in_order = np.arange(report.images)
        shuffled = np.random.default_rng(0).permutation(report.images)
        with ShardSet.open([job.path]) as shards:
            rates = [best_rate(lambda s=shards, o=in_order: read_in_batches(s, o, 64))]
            rates += [
                best_rate(lambda s=shards, o=order: read_ahead(s, o))
                for order in (in_order, shuffled)
            ]
        mb = report.bytes_out / 1e6
        print(f"{store:<8} {report.images:>6} {mb:>11.1f}", *(f"{rate:>13,.0f}" for rate in rates))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="How fast shards are read.")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="raw against encoded of these")
    parser.add_argument("--size", type=int, default=224, help="px (224)")
    parser.add_argument("--limit", type=int, default=500, help="pictures (500)")
    args = parser.parse_args()
    if args.pictures is not None:
        with tempfile.TemporaryDirectory() as folder:
            raw_against_encoded(Path(folder), args.pictures, args.size, args.limit)
        return
    print("px    chunk  read 64 in order  64 shuffled  1 shuffled  ahead in order  ahead shuffled")
    with tempfile.TemporaryDirectory() as folder:
        for pixels, chunk, *rates in rows(Path(folder)):
            print(f"{pixels:<5} {chunk:>5}", *(f"{rate:>13,.0f}" for rate in rates))


if __name__ == "__main__":
    main()

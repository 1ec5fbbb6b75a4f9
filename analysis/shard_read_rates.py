"""How fast shards are read: images/s by image size, chunk and order.

The table is in analysis/reports/shards.md.

Owns: made-up shards in a temporary folder and the clock around reads of them.
The files were just written and lie in the page cache, so disks do not count: these are the costs of
HDF5, of the checksums and of this package.

    python analysis/shard_read_rates.py
    python analysis/shard_read_rates.py --pictures DIR    each kind of source, of your pictures
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from collage_mpi.prep.arguments import ImagesArguments
from collage_mpi.prep.work import from_folder
from collage_mpi.shards import ReadAhead, ShardSet, ShardWriter
from collage_mpi.shards.listing import list_folder
from collage_mpi.shards.pictures import PictureFit
from collage_mpi.shards.source import ReadAs

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


def of_each_kind(root: Path, limit: int, px: int, folder: Path) -> dict[str, Path]:
    """The same pictures as a source of each kind, written to `folder`; their names."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zarr

    listing = list_folder(root)
    paths = [Path(listing.file(row)) for row in range(min(limit, len(listing.index)))]
    kinds = {"files": folder / "files.txt", "tar": folder / "a.tar"}
    kinds["files"].write_text("".join(f"{path.absolute()}\n" for path in paths))
    with tarfile.open(kinds["tar"], "w") as tar:
        for number, path in enumerate(paths):
            tar.add(path, f"{number:08d}{path.suffix}")
    kinds["Parquet"] = folder / "a.parquet"
    column = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    pq.write_table(pa.table({"image": column}), kinds["Parquet"], row_group_size=500)
    from_folder(
        ImagesArguments(
            root=root,
            size=px,
            in_order=True,
            limit=len(paths),
            enlarge=True,
            images_per_shard=len(paths),
            out=folder,
        )
    )
    kinds["shard"] = folder / "shard.h5"
    with ShardSet.open([kinds["shard"]]) as shards:
        pixels = shards.read(np.arange(len(shards)))[0]
    kinds["Zarr"] = folder / "a.zarr"
    array = zarr.open_group(kinds["Zarr"], mode="w").create_array(
        "images", shape=pixels.shape, chunks=(64, *pixels.shape[1:]), dtype=pixels.dtype
    )
    array[:] = pixels
    return kinds


def print_each_kind(root: Path, limit: int, px: int) -> None:
    """Bytes and read rates of the same pictures as a source of each kind, on one core.

    Raises AssertionError: not all kinds give the same pixels.
    """
    fit, digests = PictureFit(px), set()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        print("source         images  MB on disk  64 in order  64 shuffled  (images/s)")
        for kind, path in of_each_kind(root, limit, px, Path(folder)).items():
            with ShardSet.open([path], read_as=ReadAs(fit)) as shards:
                in_order = np.arange(len(shards))
                shuffled = np.random.default_rng(0).permutation(len(shards))
                rates = [
                    best_rate(lambda s=shards, o=order: read_in_batches(s, o, 64))
                    for order in (in_order, shuffled)
                ]
                digests.add(hashlib.sha256(shards.read(in_order)[0]).hexdigest())
            mb = bytes_of(root if kind == "files" else path, limit) / 1e6
            print(f"{kind:<14} {len(in_order):>6} {mb:>11.1f}", *(f"{r:>12,.0f}" for r in rates))
    assert len(digests) == 1, "not all kinds give the same pixels"
    print(f"SHA-256 of the pixels of each: {digests.pop()}")


def bytes_of(path: Path, limit: int) -> int:
    """What a file, or the files of a folder, take; of pictures the first `limit`."""
    if path.suffix == ".zarr":
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if path.is_dir():
        return int(list_folder(path).index.sizes[:limit].sum())
    return path.stat().st_size


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="How fast shards are read.")
    parser.add_argument(
        "--pictures", type=Path, metavar="DIR", help="each kind of source, of these"
    )
    parser.add_argument("--size", type=int, default=224, help="px (224)")
    parser.add_argument("--limit", type=int, default=500, help="pictures (500)")
    args = parser.parse_args()
    if args.pictures is not None:
        print_each_kind(args.pictures, args.limit, args.size)
        return
    print("px    chunk  read 64 in order  64 shuffled  1 shuffled  ahead in order  ahead shuffled")
    with tempfile.TemporaryDirectory() as folder:
        for pixels, chunk, *rates in rows(Path(folder)):
            print(f"{pixels:<5} {chunk:>5}", *(f"{rate:>13,.0f}" for rate in rates))


if __name__ == "__main__":
    main()

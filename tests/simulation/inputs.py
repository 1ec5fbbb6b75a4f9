"""Shards for simulated jobs, made once by the package as it is: `python -m ...inputs FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

PX = 6
ROWS = {"a.h5": 41, "b.h5": 30, "c.h5": 7}
NETWORK = f"null:height={PX},width={PX},cell_px={PX}"


def answer(shard: int, row: int) -> int:
    """The class of an image, by which rows are checked."""
    return (7 * shard + 3 * row) % 10


def make(folder: Path) -> None:
    """Write the shards."""
    from collage_mpi.shards.writer import write_shard

    for shard, (name, rows) in enumerate(ROWS.items()):
        classes = np.array([answer(shard, row) for row in range(rows)])
        images = np.random.default_rng(shard).integers(0, 255, (rows, PX, PX, 1), dtype=np.uint8)
        images[:, 0, 0, 0] = 10 * np.arange(rows) % 240 + classes
        images[:, 0, 0, 0] -= (images[:, 0, 0, 0] - classes.astype(np.uint8)) % 10
        write_shard(folder / name, images, classes)


if __name__ == "__main__":
    make(Path(sys.argv[1]))

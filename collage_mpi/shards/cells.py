"""Adds a dataset of cells to a shard: each image shrunk for the collage, once for all jobs.

The dataset's attribute `filter` names the filter that shrank the images. If the encoder uses
another filter, the stored cells are ignored, so that stored and newly made cells never differ.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.encoding.collage import FILTER
from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.shards.hdf5 import H5_LOCK, FileToWrite, import_h5py
from collage_mpi.shards.reader import ShardSet
from collage_mpi.shards.schema import cells_name, chunk_rows, publish, remake_command, rows_crc32
from collage_mpi.system.files import temporary_name, writing

BATCH_BYTES = 16 << 20  # of images read at a time


def add_cells(
    path: Path, out: Path, px: int, shrink: Callable[[np.ndarray], np.ndarray]
) -> tuple[Path, int]:
    """Write a copy of a shard with cells of `px` pixels. The copy appears complete or not at all.

    Args:
        path: the shard.
        out: folder for the copy, which has the same name.
        px: height and width of a cell.
        shrink: (n, H, W, C) uint8 -> (n, px, px, C) uint8.

    Returns:
        The path of the copy and the number of its images.

    Raises:
        DataFault: the shard is bad, or already has such cells.
        EnvironmentFault: the folder cannot be written, or has a file of this name.
    """
    target = out / path.name
    temporary = temporary_name(target)
    if target.exists():
        raise EnvironmentFault(f"{target}: exists. Give another --out, or remove it.")
    with ShardSet.open([path]) as shards:
        if shards.infos[0].storage not in ("images", "encoded"):
            raise DataFault(
                f"{path}: is another program's file; `{remake_command([path])}` makes shards of "
                "it, which can have cells"
            )
        if px in shards.cell_sizes:
            raise DataFault(f"{path}: has cells of {px} px already; it can be used as it is.")
        try:
            with writing(target):
                out.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, temporary)
                _append(temporary, shards, px, shrink)
                publish(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
        return target, len(shards)


def _append(
    file_path: Path, shards: ShardSet, px: int, shrink: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Add the two datasets to a file. Raises OSError when the disk is full."""
    with FileToWrite(file_path, "r+") as stream:
        with H5_LOCK, import_h5py().File(stream, "r+", libver=("v110", "v110")) as file:
            _write(file, shards, px, shrink)
        if stream.failure is not None:
            raise stream.failure
        os.fsync(stream.fileno())


def _write(
    file: Any, shards: ShardSet, px: int, shrink: Callable[[np.ndarray], np.ndarray]
) -> None:
    count, name = len(shards), cells_name(px)
    for old in (name, f"{name}_crc32"):
        if old in file:  # made with another filter
            del file[old]
    row = (px, px, shards.shape[2])
    chunk = (chunk_rows(math.prod(row), count), *row)
    cells = file.create_dataset(name, (count, *row), np.uint8, chunks=chunk)
    text = import_h5py().string_dtype("utf-8", len(FILTER))
    cells.attrs["filter"] = np.array(FILTER.encode(), dtype=text)
    checksums = np.empty(count, np.uint32)
    step = max(1, BATCH_BYTES // int(np.prod(shards.shape)))
    for start in range(0, count, step):
        pixels, _ = shards.read(np.arange(start, min(start + step, count)))
        made = shrink(pixels)  # (n, px, px, C) uint8
        cells[start : start + len(made)] = made
        checksums[start : start + len(made)] = rows_crc32(made, None)
    file.create_dataset(f"{name}_crc32", data=checksums)

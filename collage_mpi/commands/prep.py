"""`collage-mpi prep`: makes shards from pictures, from other formats, and from shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.commands.parser import Command, Commands
from collage_mpi.commands.prep_pictures import IMAGES, TAR
from collage_mpi.commands.prep_tables import (
    Hdf5Arguments,
    RowsArguments,
    RowsToWrite,
    ShardsArguments,
    rows_of_hdf5,
    rows_of_shards,
)
from collage_mpi.errors import DataFault
from collage_mpi.settings.flags import switch
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.progress import advancing

if TYPE_CHECKING:
    import numpy as np

BATCH = 1_000


@dataclass(frozen=True, kw_only=True)
class IdxArguments(RowsArguments):
    """What `prep idx` takes."""

    images: Path = setting(REQUIRED, "IDX file of the images", metavar="FILE")
    labels: Path | None = setting(None, "IDX file of the labels", metavar="FILE")
    transpose: bool = switch("swap rows and columns of each image (EMNIST)")


def from_idx(args: IdxArguments) -> int:
    """Write the shards of IDX files."""
    return write_all(args, read_table(args))


def from_hdf5(args: Hdf5Arguments) -> int:
    """Write the shards of another program's HDF5 file."""
    with rows_of_hdf5(args) as table:
        return write_all(args, table)


def from_shards(args: ShardsArguments) -> int:
    """Write shards from shards."""
    with rows_of_shards(args) as table:
        return write_all(args, table)


def write_all(args: RowsArguments, table: RowsToWrite) -> int:
    """Write the shards of a table and print a summary; returns 0."""
    from collage_mpi.prep.plan import clear_strangers, shard_paths, told_in

    parts = split_rows(table.rows, args.rows_per_shard)
    paths = shard_paths(args.out, args.prefix, len(table.rows), args.rows_per_shard)
    clear_strangers([args.out], (), args.prefix, args.overwrite, sweep=True)
    with advancing(len(table.rows), "prep") as advance:
        for path, rows in zip(paths, parts, strict=True):
            write_rows(path, table, rows, advance)
    height, width, channels = table.images.shape[1:]
    print(f"{len(table.rows):,} images of {height} x {width} x {channels} {told_in(paths)}")
    return 0


def read_table(args: IdxArguments) -> RowsToWrite:
    """Read and check the IDX files.

    Raises:
        UsageError: a number or name that cannot work.
        DataFault: files that are damaged or do not fit together.
    """
    from collage_mpi.prep.arrays import labels_for, read_idx

    names, labels = args.names(), None
    images = read_idx(args.images)
    if images.ndim == 3:
        images = images[..., None]  # (n, H, W, 1)
    if images.ndim != 4 or images.dtype != "uint8" or len(images) == 0:
        raise DataFault(
            f"{args.images}: {images.dtype} of shape {images.shape}; images are uint8 of shape "
            "(n, height, width) or (n, height, width, channels), n >= 1"
        )
    if args.transpose:
        images = images.swapaxes(1, 2)
    if args.labels is not None:
        labels, names = labels_for(len(images), read_idx(args.labels), names, str(args.labels))
    stem = args.images.name.removesuffix(".gz")
    rows = args.pick_rows(len(images))
    return RowsToWrite(images, labels, rows, stem, names, args.source or stem)


def split_rows(rows: np.ndarray, rows_per_shard: int) -> list[np.ndarray]:
    """Consecutive parts of at most `rows_per_shard` rows."""
    return [rows[start : start + rows_per_shard] for start in range(0, len(rows), rows_per_shard)]


def write_rows(
    path: Path, table: RowsToWrite, rows: np.ndarray, advance: Callable[[int], None]
) -> None:
    """Write one shard of the table's `rows`; `advance` is called after each batch."""
    from collage_mpi.prep.arrays import ShardRows
    from collage_mpi.prep.work import shard_writer
    from collage_mpi.shards import EncodedWriter

    facts = {"class_names": table.class_names, "source": table.source}
    with shard_writer(path, table.images.shape[1:], len(rows), table.fit, **facts) as writer:
        for batch in split_rows(rows, BATCH):
            labels = None if table.labels is None else table.labels[batch]
            ids = table.ids_at(batch)
            if isinstance(writer, EncodedWriter):
                assert isinstance(table.images, ShardRows)
                writer.append_files(table.images.files(batch), labels, ids)
            else:
                writer.append(table.images[batch], labels, ids)
            advance(len(batch))


COMMAND = Commands(
    "KIND",
    {
        "images": IMAGES,
        "tar": TAR,
        "hdf5": Command(from_hdf5, Hdf5Arguments, "make shards from other programs' HDF5 files"),
        "shards": Command(
            from_shards,
            ShardsArguments,
            "make new shards from shards: another size, storage or order, or other labels",
        ),
        "idx": Command(
            from_idx,
            IdxArguments,
            "make shards from IDX files, gzip or plain (such as MNIST)",
        ),
    },
)

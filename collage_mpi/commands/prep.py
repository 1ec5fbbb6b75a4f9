"""`collage-mpi prep`: makes shards from pictures, from other formats, and from shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    @contextmanager
    def table(self) -> Iterator[RowsToWrite]:
        from collage_mpi.prep.arrays import labels_for, read_idx

        names, labels = self.names(), None
        images = read_idx(self.images)
        if images.ndim == 3:
            images = images[..., None]  # (n, H, W, 1)
        if images.ndim != 4 or images.dtype != "uint8" or len(images) == 0:
            raise DataFault(
                f"{self.images}: {images.dtype} of shape {images.shape}; images are uint8 of shape "
                "(n, height, width) or (n, height, width, channels), n >= 1"
            )
        if self.transpose:
            images = images.swapaxes(1, 2)
        if self.labels is not None:
            labels, names = labels_for(len(images), read_idx(self.labels), names, str(self.labels))
        stem = self.images.name.removesuffix(".gz")
        rows = self.pick_rows(len(images))
        yield RowsToWrite(images, labels, rows, stem, names, self.source or stem)


def execute(args: RowsArguments) -> int:
    """Write the shards and print a summary; returns 0."""
    from collage_mpi.prep.plan import clear_strangers, shard_paths, told_in

    with args.table() as table:
        paths = shard_paths(args.out, args.prefix, len(table.rows), args.rows_per_shard)
        clear_strangers([args.out], (), args.prefix, args.overwrite, sweep=True)
        with advancing(len(table.rows), "prep") as advance:
            for path, rows in zip(paths, split_rows(table.rows, args.rows_per_shard), strict=True):
                write_rows(path, table, rows, advance)
        height, width, channels = table.images.shape[1:]
    print(f"{len(table.rows):,} images of {height} x {width} x {channels} {told_in(paths)}")
    return 0


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
        "hdf5": Command(execute, Hdf5Arguments, "make shards from other programs' HDF5 files"),
        "shards": Command(
            execute,
            ShardsArguments,
            "make new shards from shards: another size, storage or order, or other labels",
        ),
        "idx": Command(
            execute,
            IdxArguments,
            "make shards from IDX files, gzip or plain (such as MNIST)",
        ),
    },
)

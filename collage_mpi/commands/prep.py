"""`collage-mpi prep`: makes shards from pictures, from other formats, and from shards."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.commands import prep_hdf5, prep_pictures, prep_shards
from collage_mpi.commands.prep_rows import RowsToWrite, check_prefix, class_names, pick_rows
from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.system.progress import advancing

if TYPE_CHECKING:
    import numpy as np

    from collage_mpi.shards import ShardWriter

ROWS_PER_SHARD = 10_000
BATCH = 1_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a subcommand for each kind of input."""
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    images = kinds.add_parser(
        "images", help="from folders of JPEG, PNG and other pictures, one folder a class"
    )
    prep_pictures.add_images(images)
    tar = kinds.add_parser("tar", help="from tar files of pictures (WebDataset's layout)")
    prep_pictures.add_tar(tar)
    hdf5 = kinds.add_parser("hdf5", help="from other programs' HDF5 files")
    prep_hdf5.add_arguments(hdf5)
    _shared(hdf5)
    shards = kinds.add_parser(
        "shards", help="from shards, with another size, storage, order or other labels"
    )
    prep_shards.add_arguments(shards)
    _shared(shards)
    idx = kinds.add_parser("idx", help="from IDX files, gzip or plain (MNIST, Fashion-MNIST)")
    idx.add_argument(
        "--images", type=Path, required=True, metavar="FILE", help="IDX file of the images"
    )
    idx.add_argument("--labels", type=Path, metavar="FILE", help="IDX file of the labels")
    idx.add_argument(
        "--transpose", action="store_true", help="swap rows and columns of each image (EMNIST)"
    )
    _shared(idx)


def _shared(parser: argparse.ArgumentParser) -> None:
    """The flags of `prep idx`, `prep hdf5` and `prep shards`."""
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder for the shards"
    )
    parser.add_argument(
        "--prefix", default="shard", help="start of the file names (default: %(default)s)"
    )
    parser.add_argument(
        "--rows-per-shard",
        type=int,
        default=ROWS_PER_SHARD,
        metavar="N",
        help="images in each file (default: %(default)s). If all images fit into one file, its "
        "name is PREFIX.h5",
    )
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--class-names", metavar="A,B,C", help="names of classes 0, 1, ...")
    names.add_argument(
        "--class-names-file",
        type=Path,
        metavar="FILE",
        help="text file with the class names in order, one a line",
    )
    parser.add_argument("--source", help="where the images come from (default: the file's name)")
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="shuffle the rows with this seed (default: the order of the file)",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="write only the first N images, after shuffling"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace existing shards with this prefix"
    )


def execute(args: argparse.Namespace) -> int:
    """Write the shards; returns 0, or 5 if pictures were left out."""
    if args.kind in ("images", "tar"):
        return prep_pictures.execute(args)
    check_numbers(args)
    tables = {"hdf5": prep_hdf5.table_of, "shards": prep_shards.table_of}
    with tables[args.kind](args) if args.kind in tables else nullcontext(read_table(args)) as table:
        return write_all(args, table)


def write_all(args: argparse.Namespace, table: RowsToWrite) -> int:
    """Write the shards of a table and print a summary; returns 0."""
    from collage_mpi.prep.plan import shard_paths

    paths = shard_paths(args.out, args.prefix, len(table.rows), args.rows_per_shard)
    clear_old_shards(args.out, args.prefix, args.overwrite)
    with advancing(len(table.rows), "prep") as advance:
        for path, rows in zip(paths, split_rows(table.rows, args.rows_per_shard), strict=True):
            write_rows(path, table, rows, advance)
    height, width, channels = table.images.shape[1:]
    print(
        f"{len(table.rows):,} images of {height} x {width} x {channels} in {len(paths)} "
        f"shard{'s' if len(paths) > 1 else ''}: {paths[0]}"
        + (f" to {paths[-1].name}" if len(paths) > 1 else "")
    )
    return 0


def read_table(args: argparse.Namespace) -> RowsToWrite:
    """Read and check the IDX files.

    Raises:
        UsageError: a number or name that cannot work.
        DataFault: files that are damaged or do not fit together.
    """
    from collage_mpi.prep.arrays import squeezed
    from collage_mpi.prep.idx import read_idx
    from collage_mpi.shards.schema import label_problem

    names = class_names(args)
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
    labels = None if args.labels is None else squeezed(read_idx(args.labels))
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
        raise DataFault(
            f"{args.labels}: {labels.dtype} of shape {labels.shape}; {len(images)} images "
            f"need integers of shape ({len(images)},)"
        )
    wrong = None if labels is None else label_problem(labels, names)
    if wrong:
        raise DataFault(f"{args.labels}: {wrong}")
    stem = args.images.name.removesuffix(".gz")
    return RowsToWrite(
        images, labels, pick_rows(len(images), args), stem, names, args.source or stem
    )


def check_numbers(args: argparse.Namespace) -> None:
    """Raise UsageError for a number or a prefix that cannot work."""
    for flag in ("rows_per_shard", "limit"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UsageError(f"--{flag.replace('_', '-')} {value}: needed: at least 1")
    check_prefix(args.prefix)


def split_rows(rows: np.ndarray, rows_per_shard: int) -> list[np.ndarray]:
    """Consecutive parts of at most `rows_per_shard` rows."""
    return [rows[start : start + rows_per_shard] for start in range(0, len(rows), rows_per_shard)]


def clear_old_shards(out: Path, prefix: str, overwrite: bool) -> None:
    """Remove existing shards that a job would take for part of the new ones, if allowed.

    Raises:
        EnvironmentFault: there are some and `overwrite` is not given, or the path is not a
            folder.
    """
    from collage_mpi.prep.plan import old_shards, remove_shard
    from collage_mpi.system.files import writing

    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        old = old_shards(out, prefix)
        if old and not overwrite:
            raise EnvironmentFault(
                f"{old[0]}: exists. Give another --out or --prefix, or --overwrite to replace."
            )
        for path in old:
            remove_shard(path)


def write_rows(
    path: Path, table: RowsToWrite, rows: np.ndarray, advance: Callable[[int], None]
) -> None:
    """Write one shard of the table's `rows`; `advance` is called after each batch."""
    from collage_mpi.prep.reshard import ShardRows
    from collage_mpi.shards import EncodedWriter

    with _writer(path, table, len(rows)) as writer:
        for batch in split_rows(rows, BATCH):
            labels = None if table.labels is None else table.labels[batch]
            ids = table.ids_at(batch)
            if isinstance(writer, EncodedWriter):
                assert isinstance(table.images, ShardRows)
                writer.append_files(table.images.files(batch), labels, ids)
            else:
                writer.append(table.images[batch], labels, ids)
            advance(len(batch))


def _writer(path: Path, table: RowsToWrite, count: int) -> ShardWriter:
    from collage_mpi.shards import EncodedWriter, ShardWriter

    height, width, channels = table.images.shape[1:]
    common: dict[str, Any] = {"class_names": table.class_names, "source": table.source}
    if table.fit is not None:
        return EncodedWriter(path, table.fit, **common)
    return ShardWriter(path, (height, width, channels), count=count, **common)

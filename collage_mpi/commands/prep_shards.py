"""`collage-mpi prep shards`: makes shards from shards, with another size, storage, order or
labels.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.errors import DataFault, UsageError

if TYPE_CHECKING:
    from collage_mpi.commands.prep_rows import RowsToWrite
    from collage_mpi.shards import ShardSet
    from collage_mpi.shards.pictures import Fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of its own; the flags about the new shards are shared with `prep idx`."""
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="shard files, or folders that hold shard files",
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="PX",
        help="resize the images to PX x PX (default: keep their size)",
    )
    parser.add_argument(
        "--fit",
        choices=("crop", "letterbox"),
        default="crop",
        help="with --size: crop keeps the middle of the image, letterbox keeps all of it between "
        "bars (default: %(default)s)",
    )
    parser.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        help="with --size: 3 for colour, 1 for grey (default: as in the shards)",
    )
    parser.add_argument(
        "--store",
        choices=("raw", "encoded"),
        default="raw",
        help="raw stores pixels. encoded keeps stored files unchanged and stores pixels as PNG "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        help="file of other labels in the order of the images: .npy, or HDF5 as FILE or "
        "FILE::DATASET",
    )


@contextmanager
def table_of(args: argparse.Namespace) -> Iterator[RowsToWrite]:
    """The rows of the shards, while they are open.

    Raises:
        UsageError, DataFault, EnvironmentFault: the shards cannot be made, understood or read.
    """
    from collage_mpi.prep.reshard import opened_as
    from collage_mpi.shards.reader import expand_paths
    from collage_mpi.shards.schema import split_part

    paths = expand_paths(args.paths)
    folders = {os.path.dirname(os.path.realpath(split_part(path)[0])) for path in paths}
    if os.path.realpath(args.out) in folders:  # the new ones would lie among the old
        raise UsageError(
            f"--out {args.out} is the folder of the shards to read; choose another folder"
        )
    fit = _fit(args, paths)
    with opened_as(paths, fit) as shards:
        yield _table(args, shards, fit)


def _fit(args: argparse.Namespace, paths: list[Path]) -> Fit | None:
    from collage_mpi.shards import inspect_shard
    from collage_mpi.shards.pictures import Fit

    if args.size is None:
        if args.channels is not None:
            raise UsageError("--channels needs --size")
        return None
    return Fit(args.size, args.fit, None, args.channels or inspect_shard(paths[0]).channels)


def _table(args: argparse.Namespace, shards: ShardSet, fit: Fit | None) -> RowsToWrite:
    from collage_mpi.commands.prep_rows import RowsToWrite, class_names, pick_rows
    from collage_mpi.prep.arrays import labels_for, read_labels
    from collage_mpi.prep.reshard import ShardRows, ids_of, stored_fit
    from collage_mpi.shards.schema import label_problem

    names, labels = class_names(args) or shards.class_names, shards.labels()
    if args.labels is not None:
        labels, names = labels_for(len(shards), read_labels(args.labels), names, args.labels)
    wrong = None if labels is None else label_problem(labels, names)
    if wrong:
        raise DataFault(f"{args.paths[0]}: {wrong}")
    return RowsToWrite(
        ShardRows(shards, fit),
        labels,
        pick_rows(len(shards), args),
        ids_of(shards),
        names,
        args.source or shards.infos[0].source,
        stored_fit(shards, fit) if args.store == "encoded" else None,
    )

"""`collage-mpi prep hdf5`: makes shards from other programs' HDF5 files."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError

if TYPE_CHECKING:
    from collage_mpi.commands.prep_rows import RowsToWrite
    from collage_mpi.shards.foreign import Layout, Told
    from collage_mpi.shards.pictures import Fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of its own; the flags about the shards are shared with `prep idx`."""
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="HDF5 file; FILE::GROUP for one group of it"
    )
    parser.add_argument(
        "--images", metavar="NAME", help="dataset of images (default: found by its name)"
    )
    parser.add_argument(
        "--labels",
        metavar="NAME",
        help="dataset of labels (default: found by its name), or FILE or FILE::DATASET of another "
        "file (HDF5 or .npy), or none",
    )
    parser.add_argument(
        "--shape",
        metavar="H,W[,C]",
        help="shape of an image, such as 28,28, if the images are stored as flat rows",
    )
    parser.add_argument(
        "--transpose", action="store_true", help="swap rows and columns of each image (EMNIST)"
    )
    parser.add_argument(
        "--axes",
        choices=("NHWC", "NCHW"),
        default="",
        help="order of the axes (default: found from the shape)",
    )
    parser.add_argument(
        "--range",
        metavar="LOW:HIGH",
        help="values that are scaled to 0 and 255 (default: 0:1 for floats)",
    )
    parser.add_argument("--size", type=int, metavar="PX", help="resize the images to PX x PX")
    parser.add_argument(
        "--fit",
        choices=("crop", "letterbox"),
        default="crop",
        help="with --size: crop keeps the middle of the image, letterbox keeps all of it between "
        "bars (default: %(default)s)",
    )


@contextmanager
def table_of(args: argparse.Namespace) -> Iterator[RowsToWrite]:
    """The rows of the file, while it is open.

    Raises:
        UsageError, DataFault, EnvironmentFault: the file cannot be understood or read.
    """
    from collage_mpi.shards.check import opened
    from collage_mpi.shards.contents import ForeignFault
    from collage_mpi.shards.foreign import find_layout, is_foreign
    from collage_mpi.shards.hdf5 import H5_LOCK

    try:
        with H5_LOCK, opened(args.file, cache_bytes=64 << 20) as file:
            if not is_foreign(file):
                raise UsageError(_is_shard(args))
            try:
                elsewhere = _labels_elsewhere(args.labels, file)
                layout = find_layout(file, args.file, _told(args, elsewhere))
                table = _table(args, file, layout, elsewhere)
            except ForeignFault as fault:
                raise DataFault(f"{args.file}: {fault}") from fault
            yield table
    except OSError as error:
        reason = error.strerror or str(error)
        raise EnvironmentFault(f"{args.file}: cannot be read: {reason}") from error


def _is_shard(args: argparse.Namespace) -> str:
    words = ["collage-mpi", "prep", "shards", str(args.file), "--out", str(args.out)]
    words += [] if args.size is None else ["--size", str(args.size)]
    return (
        f"{args.file} is already a shard and can be used unchanged. To make shards of another "
        f"size or storage, or with other labels, from it: `{shlex.join(words)}`"
    )


def _told(args: argparse.Namespace, elsewhere: bool) -> Told:
    from collage_mpi.prep.arrays import parse_shape
    from collage_mpi.shards.foreign import NO_LABELS, Told

    labels = NO_LABELS if elsewhere else args.labels
    shape = None if args.shape is None else parse_shape(args.shape)
    return Told(args.images, labels, args.axes, shape, args.transpose)


def _labels_elsewhere(labels: str | None, file: Any) -> bool:
    """Whether --labels names another file instead of a dataset of this one."""
    from collage_mpi.shards.schema import PART_MARK

    if labels is None or labels in file:
        return False
    return PART_MARK in labels or os.path.isfile(labels)


def _table(args: argparse.Namespace, file: Any, layout: Layout, elsewhere: bool) -> RowsToWrite:
    from collage_mpi.commands.prep_rows import RowsToWrite, class_names, pick_rows
    from collage_mpi.prep.arrays import PixelRows, labels_for, parse_range, read_labels
    from collage_mpi.shards.foreign import class_names_of

    dataset = file[layout.images]
    if layout.columns:
        dataset = dataset[...].T  # at once: a column lies all over the file
    bounds = None if args.range is None else parse_range(args.range)
    channels = layout.image_shape(dataset.shape)[2]
    images = PixelRows(dataset, layout, bounds, _fit(args, channels))
    names, labels = class_names(args) or class_names_of(file), None
    if elsewhere:
        labels, names = labels_for(len(images), read_labels(args.labels), names, args.labels)
    elif layout.labels is not None:
        where = f"{args.file}: dataset {layout.labels!r}"
        labels, names = labels_for(len(images), file[layout.labels][...], names, where)
    source = args.source or f"{args.file.name}, dataset {layout.images}"
    return RowsToWrite(images, labels, pick_rows(len(images), args), layout.images, names, source)


def _fit(args: argparse.Namespace, channels: int) -> Fit | None:
    from collage_mpi.shards.pictures import Fit

    return None if args.size is None else Fit(args.size, args.fit, None, channels)

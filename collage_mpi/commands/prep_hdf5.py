"""`collage-mpi prep hdf5`: shards from other programs' HDF5 files.

Owns: its flags, and the open file as a table of rows.
Does not know: values and labels (prep/arrays.py), which dataset is which (shards/foreign.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError

if TYPE_CHECKING:
    from collage_mpi.commands.prep import Table
    from collage_mpi.pictures import Fit


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of its own; those of the shards are shared with `prep idx`."""
    parser.add_argument("file", type=Path, metavar="FILE", help="or FILE::GROUP for a part of it")
    parser.add_argument("--images", metavar="NAME", help="dataset of images (found by its name)")
    parser.add_argument("--labels", metavar="NAME", help="dataset of labels (found by its name)")
    parser.add_argument(
        "--axes", choices=("NHWC", "NCHW"), default="", help="where the channels are (by shape)"
    )
    parser.add_argument(
        "--range", metavar="LOW:HIGH", help="values that become 0 and 255 (0:1 for float)"
    )
    parser.add_argument("--size", type=int, metavar="PX", help="resize them to PX x PX")
    parser.add_argument(
        "--fit", choices=("crop", "letterbox"), default="crop", help="how, with --size (crop)"
    )


@contextmanager
def table_of(args: argparse.Namespace) -> Iterator[Table]:
    """The rows of the file, while it is open.

    Raises:
        UsageError, DataFault, EnvironmentFault: what cannot be understood or read.
    """
    from collage_mpi.shards.check import opened
    from collage_mpi.shards.foreign import ForeignFault, find_layout, is_foreign
    from collage_mpi.shards.hdf5 import H5_LOCK

    try:
        with H5_LOCK, opened(args.file, cache_bytes=64 << 20) as file:
            if not is_foreign(file):
                raise UsageError(f"{args.file}: is a shard already: it can be used as it is")
            try:
                layout = find_layout(file, args.file, args.images, args.labels, args.axes)
                table = _table(args, file, layout)
            except ForeignFault as fault:
                raise DataFault(f"{args.file}: {fault}") from fault
            yield table
    except OSError as error:
        reason = error.strerror or str(error)
        raise EnvironmentFault(f"{args.file}: cannot be read: {reason}") from error


def _table(args: argparse.Namespace, file: object, layout: object) -> Table:
    from collage_mpi.commands.prep import Table, class_names, pick_rows
    from collage_mpi.prep.arrays import PixelRows, parse_range, to_labels
    from collage_mpi.shards.foreign import Layout, class_names_of
    from collage_mpi.shards.schema import label_problem

    assert isinstance(layout, Layout)
    dataset = file[layout.images]  # type: ignore[index]
    bounds = None if args.range is None else parse_range(args.range)
    channels = layout.image_shape(dataset.shape)[2]
    images = PixelRows(dataset, layout, bounds, _fit(args, channels))
    names, labels = class_names(args) or class_names_of(file), None
    if layout.labels is not None:
        labels, names = to_labels(file[layout.labels][...], names)  # type: ignore[index]
        if len(labels) != len(images):
            raise DataFault(f"{args.file}: {len(labels)} labels for {len(images)} images")
        wrong = label_problem(labels, names)
        if wrong:
            raise DataFault(f"{args.file}: dataset {layout.labels!r}: {wrong}")
    source = args.source or f"{args.file.name}, dataset {layout.images}"
    return Table(images, labels, pick_rows(len(images), args), layout.images, names, source)


def _fit(args: argparse.Namespace, channels: int) -> Fit | None:
    from collage_mpi.pictures import Fit

    return None if args.size is None else Fit(args.size, args.fit, None, channels)

"""`collage-mpi prep`: makes shards from pictures (`prep_pictures`), from HDF5 and IDX files of
other programs, and from any input, with another size, order or other labels.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.commands.parser import ClassNamesArguments, Command, Commands
from collage_mpi.commands.prep_checks import INSPECT, VERIFY
from collage_mpi.commands.prep_pictures import IMAGES, TAR, PicturesArguments
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.settings.flags import switch
from collage_mpi.settings.inputs import InputSettings
from collage_mpi.system.fields import REQUIRED, same, setting
from collage_mpi.system.files import reading
from collage_mpi.system.progress import advancing

if TYPE_CHECKING:
    import numpy as np

    from collage_mpi.prep.arrays import PixelRows, ShardRows
    from collage_mpi.shards import ShardSet
    from collage_mpi.shards.foreign import ArrayLayout
    from collage_mpi.shards.pictures import PictureFit

BATCH = 1_000  # images read and written at a time


@dataclass(frozen=True)
class RowsToWrite:
    """The images that become shards.

    Attributes:
        images: (n, ...) items, such as (n, H, W, C) uint8, or an object that returns such rows
            when indexed.
        labels: (n,) integers, or None.
        rows: (m,) indices of the images to write, in this order.
        ids: n ids, or a prefix: the id of an image is then the prefix, a colon and its index.
        class_names, source: as in a shard.
    """

    images: np.ndarray | PixelRows | ShardRows
    labels: np.ndarray | None
    rows: np.ndarray
    ids: str | Sequence[str]
    class_names: tuple[str, ...] | None
    source: str

    def ids_at(self, rows: np.ndarray) -> list[str]:
        """The ids of the images with these indices."""
        if isinstance(self.ids, str):
            return [f"{self.ids}:{row}" for row in rows.tolist()]
        return [self.ids[row] for row in rows.tolist()]


@dataclass(frozen=True, kw_only=True)
class RowsArguments(ClassNamesArguments):
    """The arguments of `prep idx`, `prep hdf5` and `prep shards` about the new shards."""

    out: Path = setting(REQUIRED, "folder for the shards", metavar="DIR")
    prefix: str = setting("shard", "start of the file names")
    rows_per_shard: int = setting(
        10_000,
        "images in each file. If all images fit into one file, its name is PREFIX.h5",
        at_least=1,
        at_most=math.inf,
    )
    source: str | None = setting(None, "where the images come from", unset="the file's name")
    seed: int | None = setting(
        None,
        "shuffle the rows with this seed",
        unset="the order of the file",
        at_least=0,
        at_most=math.inf,
    )
    limit: int | None = setting(
        None, "write only the first N images, after shuffling", at_least=1, at_most=math.inf
    )
    overwrite: bool = switch("replace existing shards with this prefix")

    def table(self) -> AbstractContextManager[RowsToWrite]:
        """A context manager that opens the input and returns the rows to write.

        Raises:
            UsageError: the arguments do not fit the input.
            DataFault: the input is damaged, or has no form that shards can be made from.
            EnvironmentFault: the input cannot be read.
        """
        raise NotImplementedError

    def pick_rows(self, count: int) -> np.ndarray:
        """(m,) indices of the rows to write: shuffled with --seed, at most --limit of them."""
        import numpy as np

        rows = np.arange(count)
        if self.seed is not None:
            rows = np.random.default_rng(self.seed).permutation(count)
        return rows[: self.limit]


@dataclass(frozen=True, kw_only=True)
class ResizeArguments(RowsArguments):
    """The arguments about the size of the new images."""

    size: int | None = setting(
        None, "resize the images to PX x PX", unset="keep their size", metavar="PX"
    )
    fit: str = setting(
        "crop",
        "with --size: crop keeps the middle of the image, letterbox keeps the whole image and "
        "adds bars",
        choices=("crop", "letterbox"),
    )
    filter: str = same(PicturesArguments, "filter", group="")

    def resized(self, channels: Callable[[], int]) -> PictureFit | None:
        """How images are resized; None if they keep their size.

        Args:
            channels: returns the number of channels; called only if images are resized.

        Raises:
            UsageError: --filter is given without --size.
        """
        from collage_mpi.shards.pictures import PictureFit
        from collage_mpi.shards.source import DEFAULT_FIT

        if self.size is None:
            if self.filter != DEFAULT_FIT.filter:
                raise UsageError(
                    f"--filter {self.filter} needs --size PX: give both, or leave --filter out"
                )
            return None
        return PictureFit(self.size, self.fit, None, channels(), self.filter)


@dataclass(frozen=True, kw_only=True)
class Hdf5Arguments(ResizeArguments):
    """The arguments of `prep hdf5`."""

    file: Path = setting(
        REQUIRED, "HDF5 file; FILE::GROUP for one group of it", metavar="FILE", positional=True
    )
    images: str | None = setting(
        None, "dataset of images", unset="the only one with 3 axes or more", metavar="NAME"
    )
    labels: str | None = setting(
        None,
        "dataset of labels (default: the only one with a whole number for each image), or FILE or "
        "FILE::DATASET of another file (HDF5 or .npy), or none",
        metavar="NAME",
    )
    shape: str | None = setting(
        None,
        "shape of an image, such as 28,28, if the images are stored as flat rows",
        metavar="H,W[,C]",
    )
    transpose: bool = switch("swap rows and columns of each image (EMNIST)")
    axes: str | None = setting(
        None, "order of the axes", unset="by the axis of 1 or 3 colours", choices=("NHWC", "NCHW")
    )
    range: str | None = setting(
        None, "values that are scaled to 0 and 255", unset="0:1 for floats", metavar="LOW:HIGH"
    )

    @contextmanager
    def table(self) -> Iterator[RowsToWrite]:
        from collage_mpi.shards.check import opened
        from collage_mpi.shards.foreign import is_foreign, named_faults
        from collage_mpi.shards.hdf5 import H5_LOCK

        with reading(self.file), H5_LOCK, opened(self.file, cache_bytes=64 << 20) as file:
            if not is_foreign(file):
                raise UsageError(_is_shard(self))
            with named_faults(self.file):
                elsewhere = _labels_elsewhere(self.labels, file)
                layout = _layout(self, file, elsewhere)
                table = _hdf5_table(self, file, layout, elsewhere)
            yield table


def _is_shard(args: Hdf5Arguments) -> str:
    words = ["collage-mpi", "prep", "shards", str(args.file), "--out", str(args.out)]
    words += [] if args.size is None else ["--size", str(args.size)]
    return (
        f"{args.file} is already a shard and can be used unchanged. To change its size or "
        f"labels, make new shards from it: `{shlex.join(words)}`"
    )


def _layout(args: Hdf5Arguments, file: Any, elsewhere: bool) -> ArrayLayout:
    """Where images and labels are. Raises UsageError, ForeignFault."""
    from collage_mpi.prep.arrays import parse_shape
    from collage_mpi.shards.foreign import (
        NO_LABELS,
        ArrayLayout,
        ForeignFault,
        find_datasets,
        only_axes,
        what,
    )

    told = NO_LABELS if elsewhere else args.labels
    images, labels = find_datasets(file, args.file, args.images, told)
    item, flat = file[images], None if args.shape is None else parse_shape(args.shape)
    if flat is not None:
        fits = item.ndim > 1 and len(item) > 0 and math.prod(item.shape[1:]) == math.prod(flat)
        need, axes = f"--shape {args.shape} needs rows of {math.prod(flat)} values", "NHWC"
    else:
        axes = args.axes or only_axes(images, item, args.file, labels)
        fits = min(item.shape, default=0) > 0 and item.ndim == len(axes)
        need = (
            f"needed for {args.axes}: 4 axes"
            if args.axes
            else (
                "needed: (n, H, W), (n, H, W, 1 or 3) or (n, 1 or 3, H, W), none of them empty; "
                "for rows of values say --shape H,W or H,W,C"
            )
        )
    if not fits:
        raise ForeignFault(f"dataset {images!r} is {what(item)}; {need}")
    return ArrayLayout(images, labels, args.axes or axes, flat, args.transpose)


def _labels_elsewhere(labels: str | None, file: Any) -> bool:
    """Whether --labels names another file instead of a dataset of this one."""
    from collage_mpi.shards.schema import PART_MARK

    if labels is None or labels in file:
        return False
    return PART_MARK in labels or os.path.isfile(labels)


def _hdf5_table(
    args: Hdf5Arguments, file: Any, layout: ArrayLayout, elsewhere: bool
) -> RowsToWrite:
    from collage_mpi.prep.arrays import PixelRows, labels_for, parse_range, read_labels
    from collage_mpi.shards.foreign import class_names_of
    from collage_mpi.shards.schema import split_part

    dataset = file[layout.images]
    bounds = None if args.range is None else parse_range(args.range)
    channels = layout.image_shape(dataset.shape)[2]
    images = PixelRows(dataset, layout, bounds, args.resized(lambda: channels))
    names, labels = args.names() or class_names_of(file), None
    if elsewhere and args.labels is not None:
        labels, names = labels_for(len(images), read_labels(args.labels), names, args.labels)
    elif layout.labels is not None:
        where = f"{args.file}: dataset {layout.labels!r}"
        labels, names = labels_for(len(images), file[layout.labels][...], names, where)
    source = args.source or f"{split_part(args.file)[0].name}, dataset {layout.images}"
    return RowsToWrite(images, labels, args.pick_rows(len(images)), layout.images, names, source)


@dataclass(frozen=True, kw_only=True)
class ShardsArguments(ResizeArguments):
    """The arguments of `prep shards`."""

    paths: tuple[Path, ...] = setting(
        REQUIRED,
        "shards, folders of pictures or any other input of `run` (docs/inputs.md)",
        positional=True,
    )
    size: int | None = setting(
        None,
        "resize the images to PX x PX",
        unset="shards and arrays keep their size, picture files become 224 x 224",
        metavar="PX",
    )
    channels: int | None = setting(
        None, "with --size: 3 for colour, 1 for grey", unset="as in the shards", choices=(1, 3)
    )
    input_labels: str = same(InputSettings, "input_labels", group="")
    labels: str | None = setting(
        None,
        "file of other labels in the order of the images: .npy, or HDF5 as FILE or FILE::DATASET",
        metavar="FILE",
    )

    @contextmanager
    def table(self) -> Iterator[RowsToWrite]:
        from collage_mpi.prep.arrays import channels_of
        from collage_mpi.shards.inputs import expand_paths
        from collage_mpi.shards.reader import ShardSet
        from collage_mpi.shards.schema import split_part
        from collage_mpi.shards.source import DEFAULT_FIT, ReadAs

        paths = expand_paths(self.paths)
        folders = {os.path.dirname(os.path.realpath(split_part(path)[0])) for path in paths}
        if os.path.realpath(self.out) in folders:  # would mix the new shards with the old
            raise UsageError(
                f"--out {self.out} is the folder of the shards to read; choose another folder"
            )
        if self.size is None and self.channels is not None:
            raise UsageError("--channels needs --size")
        fit = self.resized(lambda: self.channels or channels_of(paths[0]))
        # without --size, items need not be pictures
        read_as = ReadAs(fit or DEFAULT_FIT, None, self.input_labels == "auto", fit is not None)
        with ShardSet.open(paths, read_as=read_as) as shards:
            yield _shards_table(self, shards, fit)


def _shards_table(args: ShardsArguments, shards: ShardSet, fit: PictureFit | None) -> RowsToWrite:
    from collage_mpi.prep.arrays import ShardRows, all_ids, labels_for, read_labels
    from collage_mpi.shards.schema import label_problem

    names, labels = args.names() or shards.class_names, shards.labels()
    if args.labels is not None:
        labels, names = labels_for(len(shards), read_labels(args.labels), names, args.labels)
    wrong = None if labels is None else label_problem(labels, names)
    if wrong:
        raise DataFault(f"{args.paths[0]}: {wrong}")
    return RowsToWrite(
        ShardRows(shards, fit),
        labels,
        args.pick_rows(len(shards)),
        all_ids(shards),
        names,
        args.source or shards.infos[0].source,
    )


@dataclass(frozen=True, kw_only=True)
class IdxArguments(RowsArguments):
    """The arguments of `prep idx`."""

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
                f"{self.images} holds {images.dtype} of shape {images.shape}; images need uint8 of "
                "shape (n, height, width) or (n, height, width, channels), n >= 1"
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
        shape = " x ".join(map(str, table.images.shape[1:]))
    print(f"{len(table.rows):,} images of {shape} {told_in(paths)}")
    return 0


def split_rows(rows: np.ndarray, rows_per_shard: int) -> list[np.ndarray]:
    """Split into consecutive parts of at most `rows_per_shard` rows."""
    return [rows[start : start + rows_per_shard] for start in range(0, len(rows), rows_per_shard)]


def write_rows(
    path: Path, table: RowsToWrite, rows: np.ndarray, advance: Callable[[int], None]
) -> None:
    """Write one shard with these rows of the table. `advance` is called after each batch, with the
    number of images in it.
    """
    import numpy as np

    from collage_mpi.shards.schema import chunk_rows
    from collage_mpi.shards.writer import ShardWriter

    item = np.dtype((table.images.dtype, table.images.shape[1:]))
    with ShardWriter(
        path,
        item,
        class_names=table.class_names,
        source=table.source,
        rows_per_chunk=chunk_rows(item.itemsize, len(rows)),
    ) as writer:
        for batch in split_rows(rows, BATCH):
            labels = None if table.labels is None else table.labels[batch]
            writer.append(table.images[batch], labels, table.ids_at(batch))
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
            "make shards from any input of `run`, with another size or order, or other labels",
        ),
        "idx": Command(
            execute,
            IdxArguments,
            "make shards from IDX files, gzip or plain (such as MNIST)",
        ),
        "inspect": INSPECT,
        "verify": VERIFY,
    },
)

"""`collage-mpi prep`: makes shards from pictures, from HDF5 and IDX files of other programs, and
from any input, with another size, order or other labels; describes and verifies inputs.

Under mpiexec or srun each rank makes a part of the shards of pictures. The ranks exchange no
messages, so MPI is not initialised.
"""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.commands.parser import ClassNamesArguments, Command, Commands
from collage_mpi.errors import DataFault, ExitCode, UsageError
from collage_mpi.settings.flags import Arguments, switch
from collage_mpi.settings.run_settings import InputSettings
from collage_mpi.system.environment import launcher_rank, launcher_size, processes_here
from collage_mpi.system.fields import REQUIRED, same, setting
from collage_mpi.system.files import reading
from collage_mpi.system.printable import say, some_of
from collage_mpi.system.process_tree import caught
from collage_mpi.system.progress import advancing
from collage_mpi.system.tell import tell

if TYPE_CHECKING:
    import numpy as np

    from collage_mpi.prep.work import PixelRows, Recipe, ShardJob, ShardReport, ShardRows
    from collage_mpi.shards import ShardSet
    from collage_mpi.shards.members import Listing
    from collage_mpi.shards.pictures import PictureFit
    from collage_mpi.shards.schema import ArrayLayout


IN_OUT = ("in", "out")
LINE_EVERY_S = 15.0  # between progress lines if stderr is not a terminal

_pictures = partial(setting, group="pictures")
_order = partial(setting, group="order and classes")
_shards = partial(setting, group="shards")


@dataclass(frozen=True, kw_only=True)
class PicturesArguments(ClassNamesArguments):
    """The arguments of `prep images` and `prep tar`."""

    size: int = _pictures(224, "height and width of the images", metavar="PX")
    fit: str = _pictures(
        "crop",
        "crop keeps the middle of the picture, letterbox keeps the whole picture and adds bars",
        choices=("crop", "letterbox"),
    )
    resize: int | None = _pictures(
        None, "with crop: length of the shorter edge before the crop", unset="--size", metavar="PX"
    )
    filter: str = _pictures(
        "bilinear",
        "filter for resizing: bilinear, bicubic, lanczos, nearest, box or hamming. `classify` "
        "uses the filter that the network states",
    )
    enlarge: bool = switch(
        "also take pictures that are smaller than --size (default: list them and leave them out)",
        group="pictures",
    )
    channels: int = _pictures(3, "3 for colour, 1 for grey", choices=(1, 3))
    unreadable: str = _pictures(
        "skip",
        "what to do with damaged pictures and labels. skip: list them, leave them out and end with "
        "exit code 5. stop: end at the first one",
        choices=("skip", "stop"),
    )
    limit: int | None = _pictures(
        None, "take only the first N pictures, after shuffling", at_least=1
    )
    seed: int = _order(0, "seed of the shuffle", at_least=0)
    in_order: bool = switch(
        "keep the pictures sorted by name instead of shuffled", group="order and classes"
    )
    val_share: float = _order(
        0.0,
        "share of the pictures that are written to OUT/val; 0 writes none",
        at_least=0,
        below=1,
    )
    out: Path = setting(REQUIRED, "folder for the shards", metavar="DIR", group="shards")
    prefix: str = _shards("shard", "start of the file names")
    images_per_shard: int = _shards(2000, "images in each file", at_least=1)
    source: str | None = _shards(None, "where the pictures come from", unset="the folder's name")
    overwrite: bool = switch(
        "replace existing shards that were made with other settings", group="shards"
    )
    workers: int | None = _shards(
        None, "number of processes", unset="one for each available core", at_least=1
    )

    @property
    def from_path(self) -> Path:
        """The folder, or the first tar file, after which the source is called."""
        raise NotImplementedError

    def listing(self) -> Listing:
        """The pictures and labels of the input. Raises UsageError, DataFault, EnvironmentFault."""
        raise NotImplementedError

    def recipe(self) -> Recipe:
        """The settings that decide what is in the shards."""
        from collage_mpi.prep.work import Recipe
        from collage_mpi.shards.pictures import PictureFit

        return Recipe(
            fit=PictureFit(self.size, self.fit, self.resize, self.channels, self.filter),
            images_per_shard=self.images_per_shard,
            seed=None if self.in_order else self.seed,
            val_share=self.val_share,
            limit=self.limit,
            unreadable=self.unreadable,
            enlarge=self.enlarge,
            source=self.source or os.path.basename(os.path.realpath(self.from_path)),
        )


@dataclass(frozen=True, kw_only=True)
class ImagesArguments(PicturesArguments):
    """The arguments of `prep images`."""

    root: Path = setting(
        REQUIRED,
        "folder that holds one folder of pictures for each class, or pictures without classes",
        metavar="DIR",
        positional=True,
    )

    @property
    def from_path(self) -> Path:
        return self.root

    def listing(self) -> Listing:
        from collage_mpi.shards.listing import list_folder

        return list_folder(self.root, self.names())


@dataclass(frozen=True, kw_only=True)
class TarArguments(PicturesArguments):
    """The arguments of `prep tar`."""

    tars: tuple[Path, ...] = setting(
        REQUIRED,
        "tar files that hold key.jpg with key.cls or key.json",
        metavar="TAR",
        positional=True,
    )
    label_key: str | None = setting(
        None, "key of the label in the .json files", unset="cls, label or class", metavar="KEY"
    )
    picture: str | None = setting(
        None, "ending of the picture file, if a key has several pictures", metavar="EXT"
    )

    @property
    def from_path(self) -> Path:
        return self.tars[0]

    def listing(self) -> Listing:
        from collage_mpi.shards.listing import list_tars

        names, files = self.names(), list(self.tars)
        return list_tars(files, names, label_key=self.label_key, picture=self.picture)


def execute_pictures(args: PicturesArguments) -> int:
    """Make the shards of this rank, or all if there is only one. Returns 0, or 5 if unreadable
    pictures were left out.
    """
    from collage_mpi.prep.work import clear_strangers, make_shards, plan_shards

    rank, size = launcher_rank() or 0, launcher_size() or 1
    recipe, listing = args.recipe(), args.listing()
    for warning in listing.warnings:
        tell(f"warning: {warning}")
    jobs = plan_shards(listing, recipe, args.out, args.prefix)
    paths = [job.path for job in jobs]
    folders = {path.parent for path in paths}
    clear_strangers(folders, paths, args.prefix, args.overwrite, sweep=rank == 0)
    own = jobs[rank::size]
    started_s = time.monotonic()
    total = sum(len(job.members) for job in own) if rank == 0 else 0
    workers = args.workers or processes_here()
    with (
        advancing(total, "prep", LINE_EVERY_S) as advance,
        caught((signal.SIGTERM,), _interrupt),
    ):
        reports = make_shards(own, workers, args.overwrite, advance)
    _tell(reports, jobs, listing, time.monotonic() - started_s, rank if size > 1 else None)
    left_out = sum(report.unreadable for report in reports)
    return int(ExitCode.COMPLETE_WITH_ERRORS if left_out else ExitCode.COMPLETE)


def _tell(
    reports: Sequence[ShardReport],
    jobs: Sequence[ShardJob],
    listing: Listing,
    took_s: float,
    rank: int | None,
) -> None:
    from collage_mpi.prep.work import told_in

    who = "" if rank is None else f"rank {rank}: "
    if not reports:
        print(f"{who}no shard to make: there are only {len(jobs)} for all ranks", flush=True)
        return
    images = sum(report.images for report in reports)
    made = [report for report in reports if report.made]
    height, width, channels = jobs[0].recipe.fit.shape
    classes = "no labels"
    if listing.index.labels is not None:
        classes = "classes by number" if listing.class_names is None else ""
        classes = classes or f"{len(listing.class_names or ())} classes"
    lines = [
        f"{images:,} images of {height} x {width} x {channels}, {classes}, "
        + told_in([report.path for report in reports])
    ]
    if len(made) < len(reports):
        lines.append(f"{len(reports) - len(made)} of them were already complete")
    if made:
        read_mb, wrote_mb = (sum(getattr(r, f"bytes_{k}") for r in made) / 1e6 for k in IN_OUT)
        count = sum(report.images + report.unreadable for report in made)
        lines.append(
            f"read {read_mb:,.1f} MB, wrote {wrote_mb:,.1f} MB in {took_s:.1f} s: "
            f"{count / took_s:,.0f} images/s"
        )
    enlarged = sum(report.small for report in made) if jobs[0].recipe.enlarge else 0
    if enlarged:
        lines.append(f"{pictures(enlarged)} smaller than {height} x {width}: enlarged")
    for report in (report for report in reports if report.unreadable):
        small = 0 if jobs[0].recipe.enlarge else report.small
        why = {
            f"smaller than {height} x {width}, which --enlarge takes": small,
            "unreadable": report.unreadable - small if report.made else 0,
        }
        told = "; ".join(f"{n:,} {what}" for what, n in why.items() if n)
        lines.append(
            f"{pictures(report.unreadable)} left out{f' ({told})' if told else ''}, listed in "
            f"{report.path}.unreadable.tsv"
        )
    print("\n".join(who + line for line in lines), flush=True)


def pictures(number: int) -> str:
    """`1 picture is`, `2 pictures are`."""
    return "1 picture is" if number == 1 else f"{number:,} pictures are"


def _interrupt(_: int) -> None:
    """SIGTERM from a batch system acts like Ctrl-C: child processes end, and half-written files are
    removed.
    """
    raise KeyboardInterrupt


IMAGES = Command(
    execute_pictures,
    ImagesArguments,
    "make shards from folders of JPEG, PNG and other pictures, one folder a class",
)
TAR = Command(
    execute_pictures, TarArguments, "make shards from tar files of pictures (WebDataset's layout)"
)


@dataclass(frozen=True, kw_only=True)
class ReadArguments(Arguments):
    """The arguments of `prep inspect` and `prep verify`."""

    paths: tuple[Path, ...] = setting(
        REQUIRED,
        "shards, folders of pictures or any other input of `run` (docs/inputs.md)",
        positional=True,
        shipped=True,
    )
    json: bool = switch("print JSON, one object a line")


def _each(one: Callable[[Path, bool], bool], args: ReadArguments) -> int:
    """Call `one` on each shard. Returns 0, or the exit code DATA if it returned False for any."""
    from collage_mpi.shards.inputs import expand_paths

    results = [one(path, args.json) for path in expand_paths(args.paths)]
    return int(ExitCode.COMPLETE if all(results) else ExitCode.DATA)


def inspect_one(path: Path, as_json: bool) -> bool:
    """Print what a shard holds; False if it is damaged. Raises EnvironmentFault."""
    from collage_mpi.shards.reader import inspect_sources
    from collage_mpi.shards.schema import remake_command
    from collage_mpi.shards.source import ANY_ITEMS

    try:
        [info] = inspect_sources([path], ANY_ITEMS)
    except DataFault as fault:
        say(json.dumps({"path": str(path), "problems": [str(fault)]}) if as_json else str(fault))
        return False
    if as_json:
        print(json.dumps(info.to_json()))
        return True
    names = info.class_names
    say(str(info.path))
    dtype = "" if info.dtype == "uint8" else f", {info.dtype}"
    say(f"  images       {info.count:,} of {' x '.join(map(str, info.shape))}{dtype}")
    if info.fit is not None:
        say(f"  stored       as encoded files, decoded when read: {info.fit}")
    if info.layout is not None and info.storage == "foreign":
        say("  format       another program's HDF5, understood as:")
        say(f"    images     dataset {info.layout.images}, axes {info.layout.axes}")
        found = info.layout.labels
        say(f"    labels     {f'dataset {found}' if found else 'none found'}")
        say("  integrity    not checked: the file has no checksums. To make shards that have them:")
        say(f"               {remake_command([path])}")
    say(f"  labels       {'yes' if info.has_labels else 'no'}")
    say(f"  classes      {f'{len(names)}: ' + some_of(names, 12) if names else 'not named'}")
    say(f"  source       {info.source or 'not given'}")
    say(f"  fingerprint  {info.fingerprint}")
    return True


def verify_one(path: Path, as_json: bool) -> bool:
    """Print a shard's problems; False if there are any. Raises EnvironmentFault."""
    from collage_mpi.shards.reader import verify_source

    problems = verify_source(path)
    if as_json:
        print(json.dumps({"path": str(path), "problems": problems}))
    else:
        say(f"{path}: {'good' if not problems else 'BAD'}")
        for problem in problems:
            say(f"  {problem}")
    return not problems


INSPECT = Command(
    partial(_each, inspect_one),
    ReadArguments,
    "print what an input holds: images, shape, classes, source, fingerprint",
)
VERIFY = Command(
    partial(_each, verify_one),
    ReadArguments,
    "read an input whole and check it: checksums of files and rows, structure, labels",
)


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
        from collage_mpi.shards.foreign import H5_LOCK, is_foreign, named_faults
        from collage_mpi.shards.guard import opened

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
    from collage_mpi.prep.work import parse_shape
    from collage_mpi.shards.foreign import NO_LABELS, ForeignFault, find_datasets, only_axes, what
    from collage_mpi.shards.schema import ArrayLayout

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
    from collage_mpi.prep.work import PixelRows, labels_for, parse_range, read_labels
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

    paths: tuple[Path, ...] = same(ReadArguments, "paths", shipped=False)
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
        from collage_mpi.prep.work import channels_of
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
    from collage_mpi.prep.work import ShardRows, all_ids, labels_for, read_labels
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
        from collage_mpi.prep.work import labels_for, read_idx

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
    from collage_mpi.prep.work import clear_strangers, shard_paths, told_in

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

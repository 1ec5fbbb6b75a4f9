"""The arguments of the kinds of `collage-mpi prep` that make shards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.errors import UsageError
from collage_mpi.settings.flags import Arguments, switch
from collage_mpi.settings.run_settings import InputSettings
from collage_mpi.system.fields import REQUIRED, same, setting

if TYPE_CHECKING:
    from collage_mpi.shards.pictures import PictureFit

_pictures = partial(setting, group="pictures")
_order = partial(setting, group="order and classes")
_shards = partial(setting, group="shards")


@dataclass(frozen=True, kw_only=True)
class PrepArguments(Arguments):
    """What all kinds take: names of classes, and where the shards go."""

    class_names: str | None = setting(
        None, "names of classes 0, 1, ...", metavar="A,B,C", either="class names"
    )
    class_names_file: Path | None = setting(
        None,
        "text file with the class names in order, one a line",
        metavar="FILE",
        either="class names",
    )
    out: Path = setting(REQUIRED, "folder for the shards", metavar="DIR", group="shards")
    prefix: str = _shards("shard", "start of the file names")
    source: str | None = _shards(
        None, "where the images come from", unset="the name of the folder or file"
    )
    limit: int | None = _shards(
        None, "take only the first N images, after shuffling", at_least=1, at_most=math.inf
    )

    def names(self) -> tuple[str, ...] | None:
        """The names of either flag; None if neither is given.

        Raises:
            UsageError: there is no name, or a name is empty.
            EnvironmentFault: the file cannot be read.
        """
        from collage_mpi.shards.schema import read_class_names, told_apart

        if self.class_names is not None:
            return told_apart([name.strip() for name in self.class_names.split(",")])
        return None if self.class_names_file is None else read_class_names(self.class_names_file)


@dataclass(frozen=True, kw_only=True)
class PicturesArguments(PrepArguments):
    """The arguments of `prep images` and `prep tar`.

    Raises:
        UsageError: the size cannot be made, or a split is to have no shuffle.
    """

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
    images_per_shard: int = _shards(2000, "images in each file", at_least=1)
    overwrite: bool = switch(
        "replace existing shards that were made with other settings", group="shards"
    )
    workers: int | None = _shards(
        None, "number of processes", unset="one for each available core", at_least=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.picture_fit()  # checks the size, before pictures are listed
        if self.in_order and self.val_share:
            raise UsageError("--val-share needs a shuffle: leave --in-order out")

    def picture_fit(self) -> PictureFit:
        """How the pictures are resized. Raises UsageError."""
        from collage_mpi.shards.pictures import PictureFit

        return PictureFit(self.size, self.fit, self.resize, self.channels, self.filter)


@dataclass(frozen=True, kw_only=True)
class ImagesArguments(PicturesArguments):
    """The arguments of `prep images`."""

    root: Path = setting(
        REQUIRED,
        "folder that holds one folder of pictures for each class, or pictures without classes",
        metavar="DIR",
        positional=True,
    )


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


@dataclass(frozen=True, kw_only=True)
class RowsArguments(PrepArguments):
    """The arguments that `prep idx`, `prep hdf5` and `prep shards` share."""

    rows_per_shard: int = _shards(
        10_000,
        "images in each file. If all images fit into one file, its name is PREFIX.h5",
        at_least=1,
        at_most=math.inf,
    )
    seed: int | None = _shards(
        None,
        "shuffle the rows with this seed",
        unset="the order of the file",
        at_least=0,
        at_most=math.inf,
    )
    overwrite: bool = switch("replace existing shards with this prefix", group="shards")


@dataclass(frozen=True, kw_only=True)
class ResizeArguments(RowsArguments):
    """The arguments about the size of the new images."""

    size: int | None = setting(
        None, "resize the images to PX x PX", unset="keep their size", metavar="PX"
    )
    fit: str = same(PicturesArguments, "fit", group="")
    filter: str = same(PicturesArguments, "filter", group="")


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


@dataclass(frozen=True, kw_only=True)
class ShardsArguments(ResizeArguments):
    """The arguments of `prep shards`."""

    paths: tuple[Path, ...] = same(ReadArguments, "paths", shipped=False)
    size: int | None = same(
        ResizeArguments,
        "size",
        unset="shards and arrays keep their size, picture files become 224 x 224",
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


@dataclass(frozen=True, kw_only=True)
class IdxArguments(RowsArguments):
    """The arguments of `prep idx`."""

    images: Path = setting(REQUIRED, "IDX file of the images", metavar="FILE")
    labels: Path | None = setting(None, "IDX file of the labels", metavar="FILE")
    transpose: bool = switch("swap rows and columns of each image (EMNIST)")

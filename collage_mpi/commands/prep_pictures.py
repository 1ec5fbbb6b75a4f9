"""`collage-mpi prep images|tar`: makes shards from folders and tar files of pictures. Under mpiexec
or srun each rank makes a part of the shards. The ranks exchange no messages, so MPI is not
initialised.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.commands.parser import ClassNamesArguments, Command
from collage_mpi.errors import ExitCode
from collage_mpi.settings.flags import switch
from collage_mpi.system.environment import launcher_rank, launcher_size, processes_here
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.process_tree import caught
from collage_mpi.system.progress import advancing
from collage_mpi.system.tell import tell

IN_OUT = ("in", "out")
LINE_EVERY_S = 15.0  # between progress lines if stderr is not a terminal

if TYPE_CHECKING:
    from collage_mpi.prep.plan import Recipe, ShardJob
    from collage_mpi.prep.work import ShardReport
    from collage_mpi.shards.members import Listing


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
        from collage_mpi.prep.plan import Recipe
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
        from collage_mpi.shards.tars import list_tars

        names, files = self.names(), list(self.tars)
        return list_tars(files, names, label_key=self.label_key, picture=self.picture)


def execute(args: PicturesArguments) -> int:
    """Make the shards of this rank, or all if there is only one. Returns 0, or 5 if unreadable
    pictures were left out.
    """
    from collage_mpi.prep.plan import clear_strangers, plan_shards
    from collage_mpi.prep.work import make_shards

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
    from collage_mpi.prep.plan import told_in

    who = "" if rank is None else f"rank {rank}: "
    if not reports:
        print(f"{who}no shard to make: there are only {len(jobs)} for all ranks", flush=True)
        return
    images = sum(report.images for report in reports)
    made = [report for report in reports if report.made]
    height, width, channels = jobs[0].recipe.fit.shape
    classes = "no labels"
    if any(member.label is not None for member in listing.members):
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
    execute,
    ImagesArguments,
    "make shards from folders of JPEG, PNG and other pictures, one folder a class",
)
TAR = Command(execute, TarArguments, "make shards from tar files of pictures (WebDataset's layout)")

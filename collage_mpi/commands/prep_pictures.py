"""`collage-mpi prep images|tar`: makes shards from folders and tar files of pictures. Under mpiexec
or srun each rank makes its own shards without any messages, so MPI itself is not started.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.errors import ExitCode
from collage_mpi.system.progress import advancing
from collage_mpi.system.tell import tell

IN_OUT = ("in", "out")
LINE_EVERY_S = 15.0  # between progress lines where there is no terminal

if TYPE_CHECKING:
    from types import FrameType

    from collage_mpi.prep.listing import Listing
    from collage_mpi.prep.plan import Recipe, ShardJob
    from collage_mpi.prep.work import ShardReport


def add_images(parser: argparse.ArgumentParser) -> None:
    """The flags of `prep images`."""
    parser.add_argument(
        "root",
        type=Path,
        metavar="DIR",
        help="folder that holds one folder of pictures for each class, or pictures without classes",
    )
    _common(parser)


def add_tar(parser: argparse.ArgumentParser) -> None:
    """The flags of `prep tar`."""
    parser.add_argument(
        "tars",
        type=Path,
        nargs="+",
        metavar="TAR",
        help="tar files that hold key.jpg with key.cls or key.json",
    )
    parser.add_argument(
        "--label-key",
        metavar="KEY",
        help="key of the label in the .json files (default: cls, label or class)",
    )
    parser.add_argument(
        "--picture", metavar="EXT", help="ending of the picture file, if a key has several pictures"
    )
    _common(parser)


def _common(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("pictures")
    what.add_argument(
        "--size",
        type=int,
        default=224,
        metavar="PX",
        help="height and width of the images (default: %(default)s)",
    )
    what.add_argument(
        "--fit",
        choices=("crop", "letterbox"),
        default="crop",
        help="crop keeps the middle of the picture, letterbox keeps all of it between bars "
        "(default: %(default)s)",
    )
    what.add_argument(
        "--resize",
        type=int,
        metavar="PX",
        help="with crop: length of the shorter edge before the crop (default: --size)",
    )
    what.add_argument(
        "--enlarge",
        action="store_true",
        help="also take pictures that are smaller than --size (default: list them and leave them "
        "out)",
    )
    what.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        default=3,
        help="3 for colour, 1 for grey (default: %(default)s)",
    )
    what.add_argument(
        "--unreadable",
        choices=("skip", "stop"),
        default="skip",
        help="what to do with damaged pictures and labels. skip: list them, leave them out and "
        "end with exit code 5. stop: end at the first one (default: %(default)s)",
    )
    what.add_argument(
        "--limit", type=int, metavar="N", help="take only the first N pictures, after shuffling"
    )
    order = parser.add_argument_group("order and classes")
    order.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of the shuffle (default: %(default)s)",
    )
    order.add_argument(
        "--in-order",
        action="store_true",
        help="keep the pictures sorted by name instead of shuffled",
    )
    order.add_argument(
        "--val-share",
        type=float,
        default=0.0,
        metavar="X",
        help="share of the pictures that are written to OUT/val (default: none)",
    )
    names = order.add_mutually_exclusive_group()
    names.add_argument("--class-names", metavar="A,B,C", help="names of the classes in order")
    names.add_argument(
        "--class-names-file",
        type=Path,
        metavar="FILE",
        help="text file with the class names in order, one a line",
    )
    out = parser.add_argument_group("shards")
    out.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the shards")
    out.add_argument(
        "--prefix", default="shard", help="start of the file names (default: %(default)s)"
    )
    out.add_argument(
        "--images-per-shard",
        type=int,
        default=2000,
        metavar="N",
        help="images in each file (default: %(default)s)",
    )
    out.add_argument(
        "--store",
        choices=("raw", "encoded"),
        default="raw",
        help="raw stores pixels. encoded stores the picture files unchanged, which is smaller but "
        "slower to read (default: %(default)s)",
    )
    out.add_argument("--source", help="where the pictures come from (default: the folder's name)")
    out.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing shards that were made with other settings",
    )
    out.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="number of processes (default: one for each available core)",
    )


def execute(args: argparse.Namespace) -> int:
    """Make this process's shards; returns 0, or 5 if pictures were left out."""
    from collage_mpi.prep.plan import clear_strangers, plan_shards
    from collage_mpi.prep.pool import make_shards
    from collage_mpi.system.environment import launcher_rank, launcher_size, processes_wanted

    rank, size = launcher_rank() or 0, launcher_size() or 1
    recipe, listing = _recipe(args), _listing(args)
    for warning in listing.warnings:
        tell(f"warning: {warning}")
    jobs = plan_shards(listing, recipe, args.out, args.prefix)
    clear_strangers(jobs, args.prefix, args.overwrite, sweep=rank == 0)
    own = jobs[rank::size]
    started_s = time.monotonic()
    total = sum(len(job.members) for job in own) if rank == 0 else 0
    workers = processes_wanted("--workers", args.workers)
    with advancing(total, "prep", LINE_EVERY_S) as advance, _sigterm_interrupts():
        reports = make_shards(own, workers, args.overwrite, advance)
    _tell(reports, jobs, listing, time.monotonic() - started_s, rank if size > 1 else None)
    left_out = sum(report.unreadable for report in reports)
    return int(ExitCode.COMPLETE_WITH_ERRORS if left_out else ExitCode.COMPLETE)


def _recipe(args: argparse.Namespace) -> Recipe:
    from collage_mpi.commands.prep_rows import check_prefix
    from collage_mpi.prep.plan import Recipe
    from collage_mpi.shards.pictures import Fit

    check_prefix(args.prefix)
    given = args.root if args.kind == "images" else args.tars[0]
    return Recipe(
        fit=Fit(args.size, args.fit, args.resize, args.channels),
        store=args.store,
        images_per_shard=args.images_per_shard,
        seed=None if args.in_order else args.seed,
        val_share=args.val_share,
        limit=args.limit,
        unreadable=args.unreadable,
        enlarge=args.enlarge,
        source=args.source or os.path.basename(os.path.realpath(given)),
    )


def _listing(args: argparse.Namespace) -> Listing:
    from collage_mpi.commands.prep_rows import class_names
    from collage_mpi.prep.listing import list_folder
    from collage_mpi.prep.tars import list_tars

    names = class_names(args)
    if args.kind == "images":
        return list_folder(args.root, names)
    return list_tars(args.tars, names, label_key=args.label_key, picture=args.picture)


def _tell(
    reports: Sequence[ShardReport],
    jobs: Sequence[ShardJob],
    listing: Listing,
    took_s: float,
    rank: int | None,
) -> None:
    who = "" if rank is None else f"rank {rank}: "
    if not reports:
        print(f"{who}there is no shard to make; {len(jobs)} in all", flush=True)
        return
    images = sum(report.images for report in reports)
    made = [report for report in reports if report.made]
    height, width, channels = jobs[0].recipe.fit.shape
    classes = "no labels"
    if any(member.label is not None for member in listing.members):
        classes = "classes by number" if listing.class_names is None else ""
        classes = classes or f"{len(listing.class_names or ())} classes"
    paths = [str(report.path) for report in reports]
    lines = [
        f"{images:,} images of {height} x {width} x {channels}, {classes}, in {len(paths)} "
        f"shard{'s' if len(paths) > 1 else ''}: {paths[0]}"
        + (f" to {paths[-1]}" if len(paths) > 1 else "")
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
    small = sum(report.small for report in made)
    if small and jobs[0].recipe.enlarge:
        lines.append(f"{pictures(small)} smaller than {height} x {width}: enlarged")
    elif small:
        lines.append(f"{pictures(small)} smaller than {height} x {width}: --enlarge takes them too")
    for report in (report for report in reports if report.unreadable):
        lines.append(f"{report.unreadable} unreadable, left out: {report.path}.unreadable.tsv")
    print("\n".join(who + line for line in lines), flush=True)


def pictures(number: int) -> str:
    """`1 picture is`, `2 pictures are`."""
    return "1 picture is" if number == 1 else f"{number:,} pictures are"


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Within this context a batch system's SIGTERM acts like Ctrl-C: children end, drafts are
    removed.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

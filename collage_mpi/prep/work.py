"""Makes shards: of picture files in several processes, and of the images of HDF5 files, IDX files
(the format of MNIST) and all other inputs in this one.

Under mpiexec or srun each rank makes a part of the shards of pictures. The ranks exchange no
messages, so MPI is not initialised. Processes are spawned and not forked, because a fork after
MPI_Init hangs. Files are opened in this process, so a damaged file may end a preparation, but never
a job. Pictures are decoded at the wanted size, so that nothing is resized twice.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import math
import multiprocessing
import os
import re
import shlex
import signal
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault, ExitCode, UsageError
from collage_mpi.prep.arguments import (
    Hdf5Arguments,
    IdxArguments,
    ImagesArguments,
    PicturesArguments,
    ResizeArguments,
    RowsArguments,
    ShardsArguments,
    TarArguments,
)
from collage_mpi.shards.guard import (
    H5_LOCK,
    NO_LABELS,
    ForeignFault,
    class_names_of,
    find_datasets,
    find_labels,
    is_foreign,
    named_faults,
    only_axes,
    open_file,
    opened,
    what,
)
from collage_mpi.shards.inputs import expand_paths, ids_of
from collage_mpi.shards.listing import list_folder, list_tars
from collage_mpi.shards.members import Listing, Member, Texts, read_member
from collage_mpi.shards.pictures import (
    PictureFit,
    TooSmall,
    UnreadablePicture,
    fit_pixels,
    is_enlarged,
    picture_pixels,
)
from collage_mpi.shards.reader import ShardSet
from collage_mpi.shards.schema import (
    CHANNELS,
    PART_MARK,
    ArrayLayout,
    ShardInfo,
    chunk_rows,
    class_numbers,
    label_problem,
    read_sidecar,
    sha256_of,
    sidecar_path,
    split_part,
)
from collage_mpi.shards.source import DEFAULT_FIT, ReadAs
from collage_mpi.shards.writer import ShardWriter
from collage_mpi.system.environment import launcher_rank, launcher_size, processes_here
from collage_mpi.system.files import reading, remove_leftovers, write_atomic, writing
from collage_mpi.system.printable import counted
from collage_mpi.system.process_tree import caught, sheltered
from collage_mpi.system.progress import advancing
from collage_mpi.system.tell import tell

RECIPE_VERSION = 1
BATCH_PICTURES, BATCH_ROWS = 64, 1_000  # in memory at a time
LINE_EVERY_S = 15.0  # between progress lines if stderr is not a terminal
LOOK_S = 0.2  # seconds between two looks for an interrupt


def from_folder(args: ImagesArguments) -> int:
    """`prep images`: make the shards of a folder of pictures. Returns the exit code.

    Raises:
        UsageError, DataFault, EnvironmentFault: the arguments or the pictures cannot be used.
    """
    return from_pictures(args, list_folder(args.root, args.names()), args.root)


def from_tars(args: TarArguments) -> int:
    """`prep tar`: make the shards of tar files; see `from_folder`."""
    found = list_tars(args.tars, args.names(), label_key=args.label_key, picture=args.picture)
    return from_pictures(args, found, args.tars[0])


def from_pictures(args: PicturesArguments, listing: Listing, place: Path) -> int:
    """Make the shards of this rank, or all if there is only one.

    Args:
        place: the folder, or the first tar file, after which the source is called.

    Returns:
        0, or 5 if unreadable pictures were left out.
    """
    rank, size = launcher_rank() or 0, launcher_size() or 1
    args = replace(args, source=args.source or os.path.basename(os.path.realpath(place)))
    for warning in listing.warnings:
        tell(f"warning: {warning}")
    jobs = plan_shards(listing, args)
    paths = [job.path for job in jobs]
    folders = {path.parent for path in paths}
    clear_strangers(folders, paths, args.prefix, args.overwrite, sweep=rank == 0)
    own = jobs[rank::size]
    started_s = time.monotonic()
    total = sum(len(job.members) for job in own) if rank == 0 else 0
    with (
        advancing(total, "prep", LINE_EVERY_S) as advance,
        caught((signal.SIGTERM,), _interrupt),
    ):
        reports = make_shards(own, args.workers or processes_here(), advance)
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
    who = "" if rank is None else f"rank {rank}: "
    if not reports:
        print(f"{who}no shard to make: there are only {len(jobs)} for all ranks", flush=True)
        return
    images = sum(report.images for report in reports)
    made = [report for report in reports if report.made]
    height, width, channels = jobs[0].args.picture_fit().shape
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
        read_mb = sum(report.bytes_in for report in made) / 1e6
        wrote_mb = sum(report.path.stat().st_size for report in made) / 1e6
        count = sum(report.images + report.unreadable for report in made)
        lines.append(
            f"read {read_mb:,.1f} MB, wrote {wrote_mb:,.1f} MB in {took_s:.1f} s: "
            f"{count / took_s:,.0f} images/s"
        )
    enlarged = sum(report.small for report in made) if jobs[0].args.enlarge else 0
    if enlarged:
        lines.append(f"{pictures(enlarged)} smaller than {height} x {width}: enlarged")
    for report in (report for report in reports if report.unreadable):
        small = 0 if jobs[0].args.enlarge else report.small
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


@dataclass(frozen=True)
class ShardJob:
    """One shard to make. It is picklable, so that another process can make it.

    Attributes:
        path: the shard.
        members: its pictures.
        args: the arguments of the command.
        digest: hash of everything that decides its content, except the bytes of the pictures.
    """

    path: Path
    members: tuple[Member, ...]
    class_names: tuple[str, ...] | None
    args: PicturesArguments
    digest: str


def plan_shards(listing: Listing, args: PicturesArguments) -> list[ShardJob]:
    """The shards to make, in order. With a split they are in OUT/train and OUT/val.

    Raises:
        DataFault: there are too few pictures for the split.
    """
    order = np.arange(len(listing.index))
    if not args.in_order:
        np.random.default_rng([args.seed, 4]).shuffle(order)
    order = order[: args.limit]
    held = round(len(order) * args.val_share)
    if not args.val_share:
        parts = {args.out: order}
    elif 0 < held < len(order):
        parts = {args.out / "train": order[held:], args.out / "val": order[:held]}
    else:
        raise DataFault(
            f"{len(order)} pictures cannot be split into training and "
            f"{args.val_share:.1%} validation"
        )
    jobs = []
    for folder, rows in parts.items():
        paths = shard_paths(folder, args.prefix, len(rows), args.images_per_shard)
        for path, own in zip(paths, np.array_split(rows, len(paths)), strict=True):
            members = listing.members(own.tolist())
            digest = recipe_digest(members, listing.class_names, args)
            jobs.append(ShardJob(path, members, listing.class_names, args, digest))
    return jobs


def recipe_digest(
    members: Sequence[Member], class_names: tuple[str, ...] | None, args: PicturesArguments
) -> str:
    """SHA-256 of what decides a shard's content: fit, and names, sizes and labels of pictures."""
    record = {
        "version": RECIPE_VERSION,
        "fit": args.picture_fit().text(),
        "store": "raw",  # so that shards of version 1.0 count as finished
        "source": args.source,
        "class_names": class_names,
        "enlarge": args.enlarge,
        "members": [(m.id, m.nbytes, m.label) for m in members],
    }
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def shard_paths(out: Path, prefix: str, count: int, rows_per_shard: int) -> list[Path]:
    """The paths of shards: `PREFIX.h5` for one, `PREFIX-00000-of-00006.h5` and so on for several.

    Raises:
        UsageError: a file name cannot start with this prefix.
    """
    if not prefix or "/" in prefix or prefix.startswith("."):
        raise UsageError(f"--prefix is {prefix!r}; it needs the start of a file name")
    shards = -(-count // rows_per_shard)
    if shards == 1:
        return [out / f"{prefix}.h5"]
    return [out / f"{prefix}-{number:05d}-of-{shards:05d}.h5" for number in range(shards)]


def old_shards(out: Path, prefix: str) -> list[Path]:
    """Existing shards with this prefix."""
    numbered = sorted(out.glob(f"{glob.escape(prefix)}-?????-of-?????.h5"))
    return [path for path in (out / f"{prefix}.h5", *numbered) if path.exists()]


def remove_shard(path: Path) -> None:
    """Remove a shard and the files that belong to it. Raises OSError."""
    for file in names_of(path):
        file.unlink(missing_ok=True)


def names_of(shard: Path) -> tuple[Path, ...]:
    """The paths of a shard and of the files that may belong to it."""
    return shard, sidecar_path(shard), unreadable_path(shard)


def unreadable_path(shard: Path) -> Path:
    """The path of the list of pictures that were left out of a shard."""
    return shard.with_name(f"{shard.name}.unreadable.tsv")


def clear_strangers(
    folders: Iterable[Path], wanted: Collection[Path], prefix: str, overwrite: bool, sweep: bool
) -> None:
    """Create the folders. Refuse or remove existing shards with this prefix that are not in
    `wanted`, because they would be read together with the new ones.

    Args:
        wanted: shards of this preparation, which may exist already.
        overwrite: other shards may be removed.
        sweep: this process removes them.

    Raises:
        EnvironmentFault: there are other shards, or a folder cannot be written.
    """
    for folder in sorted({*folders}):
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            strangers = [path for path in old_shards(folder, prefix) if path not in wanted]
            if strangers and not overwrite:
                among = f" and is not one of the {len(wanted)} shards of this preparation"
                raise EnvironmentFault(
                    f"{strangers[0]}: exists{among if wanted else ''}. Give another --out or "
                    "--prefix, or --overwrite to remove it."
                )
            for path in strangers if sweep else ():
                remove_shard(path)


def told_in(paths: Sequence[Path]) -> str:
    """Such as "in 3 shards: a.h5 to c.h5"."""
    last = f" to {paths[-1]}" if len(paths) > 1 else ""
    return f"in {counted(len(paths), 'shard')}: {paths[0]}{last}"


@dataclass(frozen=True)
class ShardReport:
    """The result for one shard.

    Attributes:
        made: whether the shard was made now; False if it was finished already.
        images, unreadable: number of pictures in the shard, and of those left out.
        bytes_in: size of the files that were read.
        small: number of pictures that were too small, so enlarged or left out; 0 if not made now.
    """

    path: Path
    made: bool
    images: int
    unreadable: int
    bytes_in: int
    small: int = 0


def make_shard(job: ShardJob, advance: Callable[[int], None] = lambda n: None) -> ShardReport:
    """Make one shard atomically, unless it is finished already.

    Args:
        advance: called with the number of further pictures that are done.

    Raises:
        DataFault: a picture is unreadable and the recipe says "stop", or no picture is readable.
        EnvironmentFault: a shard of another recipe exists, or the shard cannot be written.
    """
    sweep_drafts(job.path)
    images = finished_images(job)
    if images is not None:
        advance(len(job.members))
        return ShardReport(job.path, False, images, len(job.members) - images, 0)
    unreadable: list[tuple[str, str]] = []
    bytes_in = small = 0
    args, fit = job.args, job.args.picture_fit()
    made = ShardWriter(
        job.path,
        fit.shape,
        rows_per_chunk=chunk_rows(math.prod(fit.shape), len(job.members)),
        class_names=job.class_names,
        source=args.source or "",
        recipe=job.digest,
    )
    with writing(job.path), made as writer:
        for start in range(0, len(job.members), BATCH_PICTURES):
            members = job.members[start : start + BATCH_PICTURES]
            good: list[Member] = []
            pixels: list[np.ndarray] = []
            for member in members:
                try:
                    data = read_member(member)
                    bytes_in += len(data)
                    pixels.append(picture_pixels(data, fit, enlarge=args.enlarge))
                except UnreadablePicture as fault:
                    if args.unreadable == "stop":
                        raise DataFault(
                            f"{member.id}: {fault}. Repair or remove it, or leave unreadable "
                            "pictures out with --unreadable skip"
                        ) from fault
                    small += isinstance(fault, TooSmall)
                    unreadable.append((member.id, str(fault)))
                else:
                    small += args.enlarge and is_enlarged(data, fit)
                    good.append(member)
            if good:
                labels = [member.label for member in good if member.label is not None] or None
                writer.append(np.stack(pixels), labels, [member.id for member in good])
            advance(len(members))
        _list_unreadable(job, unreadable)
        if writer.count == 0:
            name, why = unreadable[0]
            raise DataFault(
                f"{job.path}: none of its {len(job.members)} pictures can be used (listed in "
                f"{unreadable_path(job.path)}), the first is {name}: {why}. A shard needs at least "
                "one: repair or remove them, or give a larger --images-per-shard"
            )
    images = len(job.members) - len(unreadable)
    return ShardReport(job.path, True, images, len(unreadable), bytes_in, small)


def finished_images(job: ShardJob) -> int | None:
    """The number of images of a shard that exists, is undamaged, and was made by this recipe; None
    if it must be made. A shard that is damaged or has no SHA-256 file is removed.

    Raises:
        EnvironmentFault: the shard is undamaged but was made by another recipe, and
            --overwrite is not given.
    """
    if not job.path.exists():
        return None
    try:
        whole = read_sidecar(job.path) == sha256_of(job.path)
    except DataFault:
        whole = False
    if whole:
        with H5_LOCK, open_file(job.path) as file:
            found = file.attrs.get("recipe", b"")
            if found in (job.digest, job.digest.encode()):
                return int(file.attrs["count"])
    if whole and not job.args.overwrite:
        raise EnvironmentFault(
            f"{job.path}: exists and was made with other settings or from other files. Give "
            "another --out or --prefix, or --overwrite to replace it."
        )
    remove_shard(job.path)
    return None


def sweep_drafts(path: Path) -> None:
    """Remove temporary files of this shard that a killed process left."""
    if path.parent.is_dir():
        beside = "|".join(re.escape(name.name) for name in names_of(path))
        remove_leftovers(path.parent, beside)


def _list_unreadable(job: ShardJob, unreadable: Sequence[tuple[str, str]]) -> None:
    """Write the list of unreadable pictures, before the shard is complete; none if all are
    readable."""
    path = unreadable_path(job.path)
    if not unreadable:
        path.unlink(missing_ok=True)
        return
    lines = ["id\treason", *(f"{_cell(name)}\t{_cell(why)}" for name, why in unreadable)]
    write_atomic(path, ("\n".join(lines).encode(), b"\n"))


def _cell(text: str) -> str:
    return text.encode("unicode_escape").decode() if not text.isprintable() else text


def make_shards(
    jobs: Sequence[ShardJob],
    workers: int,
    advance: Callable[[int], None],
) -> list[ShardReport]:
    """Make shards in parallel. The first failure ends all work; finished shards stay.

    Args:
        jobs: the shards to make. No other process may make them at the same time.
        workers: number of processes; with 1, this process does the work.
        advance: called with the number of further pictures that are done; where several processes
            work, when one has ended a shard.

    Raises:
        DataFault, EnvironmentFault: as `make_shard`; also if a process was killed.
    """
    try:
        if min(workers, len(jobs)) <= 1:
            return [make_shard(job, advance) for job in jobs]
        return _in_processes(jobs, min(workers, len(jobs)), advance)
    except BaseException:
        for job in jobs:
            sweep_drafts(job.path)
        raise


def _in_processes(
    jobs: Sequence[ShardJob], workers: int, advance: Callable[[int], None]
) -> list[ShardReport]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start)
    # Interrupts are only noted. If one raised while `wait` holds the locks of the futures, they
    # would stay locked, and this process would wait for the pool's thread for ever.
    interrupts: list[int] = []
    with caught((signal.SIGINT, signal.SIGTERM), interrupts.append):
        try:
            with sheltered(signal.SIGINT):  # children get Ctrl-C too, even while they import
                futures = [pool.submit(make_shard, job) for job in jobs]
            left: set[Future[ShardReport]] = set(futures)
            while left:
                ended, left = wait(left, LOOK_S, FIRST_COMPLETED)
                if interrupts:
                    raise KeyboardInterrupt
                for future in ended:
                    made = future.result()  # raises a failure of the child
                    advance(made.images + made.unreadable)
            pool.shutdown()
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise EnvironmentFault(
                "a process of this preparation was killed (out of memory?). The same command goes "
                "on from the finished shards; --workers with fewer processes takes less memory"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
                child.join()


def _start() -> None:
    """Initialises a child process, which ends when this process ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def from_hdf5(args: Hdf5Arguments) -> int:
    """`prep hdf5`: make shards of an HDF5 file of another program. Returns 0.

    Raises:
        UsageError: the arguments do not fit the file.
        DataFault: the file is damaged, or has no form that shards can be made from.
        EnvironmentFault: the file cannot be read.
    """
    with reading(args.file), H5_LOCK, opened(args.file) as file, named_faults(args.file):
        if not is_foreign(file):
            raise UsageError(_is_shard(args))
        elsewhere = _labels_elsewhere(args.labels, file)
        layout = _layout(args, file, elsewhere)
        dataset = file[layout.images]
        count, *_ = stored = tuple(int(size) for size in dataset.shape)
        names, labels = args.names() or class_names_of(file), None
        if elsewhere and args.labels is not None:
            labels, names = labels_for(count, read_labels(args.labels), names, args.labels)
        elif layout.labels is not None:
            where = f"{args.file}: dataset {layout.labels!r}"
            labels, names = labels_for(count, file[layout.labels][...], names, where)
        bounds = _bounds(dataset.dtype, layout.images, args.range)
        info = ShardInfo(
            path=args.file,
            count=count,
            shape=layout.image_shape(stored),
            dtype=dataset.dtype.name,
            class_names=None,
            has_labels=False,
            source=f"{split_part(args.file)[0].name}, dataset {layout.images}",
            fingerprint="",
            storage="foreign",
            layout=layout,
        )
    fit = _resized(args, lambda: info.shape[2])
    ids = Texts(count, lambda row: f"{layout.images}:{row}")
    with ShardSet([info]) as shards:
        return write_rows(args, ShardRows(shards, fit, bounds), labels, ids, names, info.source)


def _is_shard(args: Hdf5Arguments) -> str:
    words = ["collage-mpi", "prep", "shards", str(args.file), "--out", str(args.out)]
    words += [] if args.size is None else ["--size", str(args.size)]
    return (
        f"{args.file} is already a shard and can be used unchanged. To change its size or "
        f"labels, make new shards from it: `{shlex.join(words)}`"
    )


def _layout(args: Hdf5Arguments, file: Any, elsewhere: bool) -> ArrayLayout:
    """Where images and labels are. Raises UsageError, ForeignFault."""
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
    if labels is None or labels in file:
        return False
    return PART_MARK in labels or os.path.isfile(labels)


def _bounds(dtype: np.dtype, name: str, typed: str | None) -> tuple[float, float]:
    """The values that become 0 and 255: those of --range, or 0 and the largest value of an unsigned
    type, or 0 and 1 for float.

    Raises:
        UsageError: --range has another form.
        DataFault: the values are no numbers, or have a sign and there is no --range.
    """
    if dtype.kind not in "buif":
        raise DataFault(f"dataset {name!r} is {dtype}; needed: numbers")
    if typed is not None:
        return parse_range(typed)
    if dtype.kind == "i":
        raise DataFault(
            f"dataset {name!r} is {dtype}, which has a sign: say which values become "
            "black and white: --range LOW:HIGH"
        )
    return (0.0, float(np.iinfo(dtype).max) if dtype.kind == "u" else 1.0)


def from_shards(args: ShardsArguments) -> int:
    """`prep shards`: make shards of any input. Returns 0. For errors see `from_hdf5`."""
    paths = expand_paths(args.paths)
    folders = {os.path.dirname(os.path.realpath(split_part(path)[0])) for path in paths}
    if os.path.realpath(args.out) in folders:  # would mix the new shards with the old
        raise UsageError(
            f"--out {args.out} is the folder of the shards to read; choose another folder"
        )
    if args.size is None and args.channels is not None:
        raise UsageError("--channels needs --size")
    fit = _resized(args, lambda: args.channels or channels_of(paths[0]))
    # without --size, items need not be pictures
    read_as = ReadAs(fit or DEFAULT_FIT, None, args.input_labels == "auto", fit is not None)
    with ShardSet.open(paths, read_as=read_as) as shards:
        names, labels = args.names() or shards.class_names, shards.labels()
        if args.labels is not None:
            labels, names = labels_for(len(shards), read_labels(args.labels), names, args.labels)
        wrong = None if labels is None else label_problem(labels, names)
        if wrong:
            raise DataFault(f"{args.paths[0]}: {wrong}")
        source = shards.infos[0].source
        return write_rows(args, ShardRows(shards, fit), labels, all_ids(shards), names, source)


def _resized(args: ResizeArguments, channels: Callable[[], int]) -> PictureFit | None:
    """How images are resized; None if they keep their size.

    Args:
        channels: returns the number of channels; called only if images are resized.

    Raises:
        UsageError: --filter is given without --size.
    """
    if args.size is not None:
        return PictureFit(args.size, args.fit, None, channels(), args.filter)
    if args.filter != DEFAULT_FIT.filter:
        raise UsageError(
            f"--filter {args.filter} needs --size PX: give both, or leave --filter out"
        )
    return None


def from_idx(args: IdxArguments) -> int:
    """`prep idx`: make shards of IDX files. Returns 0. For errors see `from_hdf5`."""
    names, labels = args.names(), None
    images = read_idx(args.images)
    if images.ndim == 3:
        images = images[..., None]  # (n, H, W, 1)
    if images.ndim != 4 or images.dtype != "uint8" or len(images) == 0:
        raise DataFault(
            f"{args.images} holds {images.dtype} of shape {images.shape}; images need uint8 of "
            "shape (n, height, width) or (n, height, width, channels), n >= 1"
        )
    if args.transpose:
        images = images.swapaxes(1, 2)
    if args.labels is not None:
        labels, names = labels_for(len(images), read_idx(args.labels), names, str(args.labels))
    stem = args.images.name.removesuffix(".gz")
    ids = Texts(len(images), lambda row: f"{stem}:{row}")
    return write_rows(args, images, labels, ids, names, stem)


def write_rows(
    args: RowsArguments,
    images: np.ndarray | ShardRows,
    labels: np.ndarray | None,
    ids: Sequence[str],
    class_names: tuple[str, ...] | None,
    source: str,
) -> int:
    """Write the shards of n images and print a summary. Returns 0.

    Args:
        images: (n, ...) items, such as (n, H, W, C) uint8, or an object that returns such rows
            when indexed.
        labels: (n,) integers, or None.
        ids: n ids.
        class_names, source: as in a shard; --source comes first.

    Raises:
        DataFault: a row cannot be read, or does not fit a shard.
        EnvironmentFault: there are other shards, or a shard cannot be written.
    """
    rows = np.arange(len(images))
    if args.seed is not None:
        rows = np.random.default_rng(args.seed).permutation(len(rows))
    rows = rows[: args.limit]
    paths = shard_paths(args.out, args.prefix, len(rows), args.rows_per_shard)
    clear_strangers([args.out], (), args.prefix, args.overwrite, sweep=True)
    item = np.dtype((images.dtype, images.shape[1:]))
    with advancing(len(rows), "prep") as advance:
        for path, own in zip(paths, in_parts(rows, args.rows_per_shard), strict=True):
            with ShardWriter(
                path,
                item,
                class_names=class_names,
                source=args.source or source,
                rows_per_chunk=chunk_rows(item.itemsize, len(own)),
            ) as writer:
                for some in in_parts(own, BATCH_ROWS):
                    tags = None if labels is None else labels[some]
                    writer.append(images[some], tags, [ids[row] for row in some.tolist()])
                    advance(len(some))
    shape = " x ".join(map(str, images.shape[1:]))
    print(f"{len(rows):,} images of {shape} {told_in(paths)}")
    return 0


def in_parts(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Split into consecutive parts of at most `size` rows."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class ShardRows:
    """The images of open shards, by global index.

    Args:
        shards: must stay open while this object is in use.
        fit: how to resize the images; None keeps their size.
        bounds: the values that become 0 and 255; None keeps the values.
    """

    def __init__(
        self,
        shards: ShardSet,
        fit: PictureFit | None,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        self._shards, self._bounds = shards, bounds
        self._fit = fit if shards.fit is None else None  # pictures are decoded with `fit`
        self.shape = (len(shards), *(shards.shape if fit is None else fit.shape))
        self.dtype = np.dtype(shards.dtype if bounds is None else np.uint8)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(m, ...) items, the images of the rows. Raises DataFault if a row cannot be read, or a
        value is out of bounds.
        """
        pixels, _ = self._shards.read(rows)
        if self._bounds is not None:
            pixels = to_pixels(pixels, self._bounds, rows)
        return pixels if self._fit is None else np.stack([fit_pixels(p, self._fit) for p in pixels])


def to_pixels(block: np.ndarray, bounds: tuple[float, float], rows: np.ndarray) -> np.ndarray:
    """Scale values from `bounds` to uint8, 0 to 255, rounded.

    Args:
        block: (n, ...) numbers.
        bounds: (low, high).
        rows: (n,) numbers of the images, for messages.

    Raises:
        DataFault: a value is NaN or out of bounds.
    """
    low, high = bounds
    if block.dtype == np.uint8 and bounds == (0, 255):
        return np.ascontiguousarray(block)
    inside = (block >= low) & (block <= high)  # False for NaN
    if not inside.all():
        at = int(np.flatnonzero(~inside.reshape(len(block), -1).all(axis=1))[0])
        wrong = block[at][~inside[at]].flat[0]
        raise DataFault(
            f"image {rows[at]} holds {wrong:g}, outside {low:g} to {high:g}: give its true "
            "--range LOW:HIGH"
        )
    return np.rint((block.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def labels_for(
    count: int, values: np.ndarray, names: tuple[str, ...] | None, where: str
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Like `class_numbers`, with a check that there are `count` labels.

    Args:
        where: names the source of the labels in messages.
    """
    try:
        labels, names = class_numbers(values.reshape(-1) if values.size == count else values, names)
    except DataFault as fault:
        raise DataFault(f"{where}: {fault}") from fault
    if len(labels) != count:
        raise DataFault(f"{where}: {len(labels)} labels for {count} images")
    return labels, names


def read_labels(text: str) -> np.ndarray:
    """Read a file of labels: HDF5, as FILE or FILE::DATASET, or .npy.

    Raises:
        DataFault: it is unclear which dataset has the labels.
        EnvironmentFault: the file cannot be read.
    """
    path = Path(text)
    with reading(path, "no labels can be read of it"):
        if path.suffix == ".npy":
            return np.asarray(np.load(path, allow_pickle=False))
        with named_faults(path), H5_LOCK, opened(path) as file:
            return np.asarray(find_labels(file, path)[...])


def parse_shape(text: str) -> tuple[int, int, int]:
    """Parse "H,W" or "H,W,C" to (H, W, C). Raises UsageError."""
    words = text.split(",")
    sizes = [int(word) for word in words if word.strip().isdecimal()]
    if len(words) not in (2, 3) or len(sizes) != len(words) or min(sizes) < 1:
        raise UsageError(f"--shape {text!r}; needed: H,W or H,W,C, such as 28,28")
    height, width, channels = (*sizes, 1)[:3]
    if channels not in CHANNELS:
        raise UsageError(f"--shape {text!r}: {channels} channels; needed: 1 or 3, the last number")
    return (height, width, channels)


def parse_range(text: str) -> tuple[float, float]:
    """Parse "LOW:HIGH" to (low, high). Raises UsageError."""
    low, _, high = text.partition(":")
    try:
        bounds = (float(low), float(high))
    except ValueError:
        bounds = (0.0, 0.0)
    if not np.isfinite(bounds).all() or bounds[0] >= bounds[1]:
        raise UsageError(f"--range {text!r}; needed: LOW:HIGH, such as 0:1")
    return bounds


def channels_of(path: Path) -> int:
    """The number of channels of a shard's images. Raises EnvironmentFault, DataFault."""
    with ShardSet.open([path], read_as=ReadAs(labels=False)) as shards:
        return shards.shape[2]


def all_ids(shards: ShardSet) -> list[str]:
    """The ids of all images, in order. In a shard without ids, they are NAME:ROW."""
    found: list[str] = []
    for info in shards.infos:
        name = split_part(info.path)[0].name
        found += ids_of(info) or [f"{name}:{row}" for row in range(info.count)]
    return found


GZIP_MAGIC = b"\x1f\x8b"
BLOCK_BYTES = 1 << 20
MAX_DIMS = 8
DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path | str) -> np.ndarray:
    """Read an IDX file, which may be gzipped.

    Its header has two zero bytes, a type code, the number of axes, and the length of each axis as
    big-endian uint32. The values follow. Memory grows with the bytes that are read, so a wrong
    header cannot exhaust it.

    Returns:
        The array, in native byte order.

    Raises:
        EnvironmentFault: the file is missing or unreadable.
        DataFault: the file is not IDX, is truncated, or is too long.
    """
    path = Path(path)
    with reading(path), path.open("rb") as raw:
        zipped = raw.read(2) == GZIP_MAGIC
        raw.seek(0)
        if not zipped:
            return _parse(raw, path)
        try:
            with gzip.open(raw, "rb") as stream:
                return _parse(stream, path)  # type: ignore[arg-type]
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise DataFault(f"{path}: damaged gzip file: {error}. Fetch it again.") from error


def _parse(stream: BinaryIO, path: Path) -> np.ndarray:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES:
        raise DataFault(
            f"{path}: not an IDX file: starts with {magic.hex(' ') or 'nothing'}; needed: two "
            f"zero bytes, a type code of {', '.join(f'{code:02x}' for code in DTYPES)}, "
            "the number of axes"
        )
    if not 1 <= magic[3] <= MAX_DIMS:
        raise DataFault(f"{path}: {magic[3]} axes; needed: 1 to {MAX_DIMS}")
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataFault(f"{path}: ends inside its header")
    shape = tuple(np.frombuffer(sizes, dtype=">u4").tolist())
    dtype = np.dtype(DTYPES[magic[2]])
    needed, body = math.prod(shape) * dtype.itemsize, bytearray()
    while len(body) <= needed:
        block = stream.read(min(BLOCK_BYTES, needed + 1 - len(body)))
        if not block:
            break
        body += block
    if len(body) != needed:
        found = "more" if len(body) > needed else f"{len(body):,}"
        raise DataFault(
            f"{path}: the header says {shape}, which is {needed:,} bytes of values; the file "
            f"has {found}. Fetch it again."
        )
    return np.frombuffer(body, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))

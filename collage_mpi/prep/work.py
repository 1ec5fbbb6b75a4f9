"""Decides which picture goes to which shard, makes the shards in several processes, and skips
shards that are finished already. The processes are spawned and not forked, because a fork after
MPI_Init hangs.

Reads images for new shards too, from HDF5 datasets, IDX files (the format of MNIST) and shards.
Files are opened in this process, so a damaged file may end a preparation, but never a job. Pictures
are decoded at the wanted size, so that nothing is resized twice.
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
import signal
import threading
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.shards.foreign import H5_LOCK, find_labels, named_faults, open_file
from collage_mpi.shards.guard import opened
from collage_mpi.shards.inputs import ids_of
from collage_mpi.shards.members import Listing, Member, read_member
from collage_mpi.shards.pictures import (
    PictureFit,
    TooSmall,
    UnreadablePicture,
    fit_pixels,
    picture_pixels,
)
from collage_mpi.shards.reader import ShardSet
from collage_mpi.shards.schema import (
    CHANNELS,
    ArrayLayout,
    chunk_rows,
    label_problem,
    read_sidecar,
    sha256_of,
    sidecar_path,
    split_part,
)
from collage_mpi.shards.source import ReadAs, slices_of
from collage_mpi.shards.writer import ShardWriter
from collage_mpi.system.files import reading, remove_leftovers, write_atomic, writing
from collage_mpi.system.printable import counted
from collage_mpi.system.process_tree import caught, sheltered


class PixelRows:
    """The images of a dataset, by row, as uint8 of one size.

    Args:
        dataset: an open dataset, or an array.
        layout: its axes.
        bounds: the values that become 0 and 255; None for 0 and the largest value of an unsigned
            type, or 0 and 1 for float.
        fit: how to resize the images; None keeps their size.

    Raises:
        DataFault: the values are no numbers, or signed and `bounds` is None.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        dataset: Any,
        layout: ArrayLayout,
        bounds: tuple[float, float] | None,
        fit: PictureFit | None,
    ) -> None:
        self.dataset, self.layout, self.fit = dataset, layout, fit
        self.bounds = _bounds(dataset, layout) if bounds is None else bounds
        stored = layout.image_shape(tuple(int(size) for size in dataset.shape))
        self.shape = (int(dataset.shape[0]), *(stored if fit is None else fit.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(m, H, W, C) uint8, the images of the rows, in any order. Raises DataFault if a value is
        out of bounds.
        """
        order = np.argsort(rows, kind="stable")
        blocks = []
        ascending = rows[order]
        for start, stop, first in slices_of(ascending):
            with H5_LOCK:
                block = self.dataset[first : first + stop - start]
            blocks.append(to_pixels(self.layout.arrange(block), self.bounds, first))
        pixels = np.concatenate(blocks)[np.argsort(order)]  # (m, H, W, C)
        return pixels if self.fit is None else np.stack([fit_pixels(p, self.fit) for p in pixels])


def to_pixels(block: np.ndarray, bounds: tuple[float, float], first: int) -> np.ndarray:
    """Scale values from `bounds` to uint8, 0 to 255, rounded.

    Args:
        block: (n, ...) numbers.
        bounds: (low, high).
        first: number of the first row, for messages.

    Raises:
        DataFault: a value is NaN or out of bounds.
    """
    low, high = bounds
    if block.dtype == np.uint8 and bounds == (0, 255):
        return np.ascontiguousarray(block)
    inside = (block >= low) & (block <= high)  # False for NaN
    if not inside.all():
        row = int(np.flatnonzero(~inside.reshape(len(block), -1).all(axis=1))[0])
        wrong = block[row][~inside[row]].flat[0]
        raise DataFault(
            f"image {first + row} holds {wrong:g}, outside {low:g} to {high:g}: give its true "
            "--range LOW:HIGH"
        )
    return np.rint((block.astype(np.float64) - low) * (255 / (high - low))).astype(np.uint8)


def to_labels(
    values: np.ndarray, names: tuple[str, ...] | None
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Convert labels to class numbers. They may be whole numbers, one-hot rows or names.

    Args:
        values: (n,), (n, 1), (n, 1, 1, 1) or (n, classes).
        names: the classes in order, if known.

    Returns:
        (n,) int64, and the class names. If the labels are names whose order is unknown, they are
        sorted.

    Raises:
        DataFault: the values have another form.
    """
    values = squeezed(values)
    if values.ndim == 2 and values.dtype.kind in "biuf":
        ones = (values == 1).sum(axis=1) == 1
        if not (ones & ((values != 0).sum(axis=1) == 1)).all():
            raise DataFault(f"labels of shape {values.shape} are not one-hot")
        return values.argmax(axis=1).astype(np.int64), names
    if values.ndim == 1 and values.dtype.kind in "OSU":
        texts = [v.decode("utf-8") if isinstance(v, bytes) else str(v) for v in values.tolist()]
        known = tuple(sorted(set(texts))) if names is None else names
        unknown = set(texts) - set(known)
        if unknown:
            raise DataFault(f"label {min(unknown)!r} is none of the {len(known)} classes named")
        numbers = {name: number for number, name in enumerate(known)}
        return np.array([numbers[text] for text in texts], dtype=np.int64), known
    if values.ndim == 1 and values.dtype.kind in "biuf":
        whole = values.astype(np.int64)
        if (whole == values).all():
            return whole, names
    raise DataFault(
        f"labels are {values.dtype} {values.shape}; needed: whole numbers, names, or one-hot rows"
    )


def labels_for(
    count: int, values: np.ndarray, names: tuple[str, ...] | None, where: str
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Like `to_labels`, with a check that there are `count` labels and that they are in range.

    Args:
        where: names the source of the labels in messages.
    """
    try:
        labels, names = to_labels(values.reshape(-1) if values.size == count else values, names)
    except DataFault as fault:
        raise DataFault(f"{where}: {fault}") from fault
    if len(labels) != count:
        raise DataFault(f"{where}: {len(labels)} labels for {count} images")
    wrong = label_problem(labels, names)
    if wrong:
        raise DataFault(f"{where}: {wrong}")
    return labels, names


def squeezed(values: np.ndarray) -> np.ndarray:
    """(n, 1, ..., 1) -> (n,). Other shapes are unchanged."""
    return values.reshape(-1) if values.ndim > 1 and values.size == len(values) else values


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


def _bounds(dataset: Any, layout: ArrayLayout) -> tuple[float, float]:
    if dataset.dtype.kind == "u":
        return (0.0, float(np.iinfo(dataset.dtype).max))
    if dataset.dtype.kind == "f":
        return (0.0, 1.0)
    raise DataFault(
        f"dataset {layout.images!r} is {dataset.dtype}, which has a sign: say which values become "
        "black and white: --range LOW:HIGH"
        if dataset.dtype.kind == "i"
        else f"dataset {layout.images!r} is {dataset.dtype}; needed: numbers"
    )


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
    body = _read_exactly(stream, math.prod(shape) * dtype.itemsize, path, shape)
    return np.frombuffer(body, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _read_exactly(stream: BinaryIO, needed: int, path: Path, shape: tuple[int, ...]) -> bytearray:
    body = bytearray()
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
    return body


class ShardRows:
    """The images of open shards, by global index.

    Args:
        shards: must stay open while this object is in use.
        fit: how to resize the images; None keeps their size.
    """

    def __init__(self, shards: ShardSet, fit: PictureFit | None) -> None:
        self._shards = shards
        self._fit = fit if shards.fit is None else None  # pictures are decoded with `fit`
        self.shape = (len(shards), *(shards.shape if fit is None else fit.shape))
        self.dtype = np.dtype(shards.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(m, ...) items, the images of the rows. Raises DataFault if a row cannot be read."""
        pixels, _ = self._shards.read(rows)
        return pixels if self._fit is None else np.stack([fit_pixels(p, self._fit) for p in pixels])


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


RECIPE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How pictures become shards.

    Attributes:
        fit: size and crop of the images.
        images_per_shard: largest number of images in a shard.
        seed: of shuffle and split; None keeps the order of the listing.
        val_share: share of the pictures for validation shards; 0 for none.
        limit: use only this many pictures, after shuffling; None for all.
        unreadable: "skip" lists unreadable pictures and leaves them out, "stop" ends at the first.
        enlarge: enlarge pictures that are smaller than `fit`. Otherwise they count as unreadable.
        source: where the pictures come from, in words.
    """

    fit: PictureFit
    images_per_shard: int
    seed: int | None
    val_share: float
    limit: int | None
    unreadable: str
    enlarge: bool
    source: str

    def __post_init__(self) -> None:
        if self.seed is None and self.val_share:
            raise UsageError("--val-share needs a shuffle: leave --in-order out")


@dataclass(frozen=True)
class ShardJob:
    """One shard to make. It is picklable, so that another process can make it.

    Attributes:
        path: the shard.
        members: its pictures.
        digest: hash of everything that decides its content, except the bytes of the pictures.
    """

    path: Path
    members: tuple[Member, ...]
    class_names: tuple[str, ...] | None
    recipe: Recipe
    digest: str


def plan_shards(listing: Listing, recipe: Recipe, out: Path, prefix: str) -> list[ShardJob]:
    """The shards to make, in order. With a split they are in OUT/train and OUT/val.

    Raises:
        DataFault: there are too few pictures for the split.
    """
    order = np.arange(len(listing.index))
    if recipe.seed is not None:
        np.random.default_rng([recipe.seed, 4]).shuffle(order)
    order = order[: recipe.limit]
    held = round(len(order) * recipe.val_share)
    if not recipe.val_share:
        parts = {out: order}
    elif 0 < held < len(order):
        parts = {out / "train": order[held:], out / "val": order[:held]}
    else:
        raise DataFault(
            f"{len(order)} pictures cannot be split into training and "
            f"{recipe.val_share:.1%} validation"
        )
    jobs = []
    for folder, rows in parts.items():
        paths = shard_paths(folder, prefix, len(rows), recipe.images_per_shard)
        for path, own in zip(paths, np.array_split(rows, len(paths)), strict=True):
            members = listing.members(own.tolist())
            digest = recipe_digest(members, listing.class_names, recipe)
            jobs.append(ShardJob(path, members, listing.class_names, recipe, digest))
    return jobs


def recipe_digest(
    members: Sequence[Member], class_names: tuple[str, ...] | None, recipe: Recipe
) -> str:
    """SHA-256 of what decides a shard's content: fit, and names, sizes and labels of pictures."""
    record = {
        "version": RECIPE_VERSION,
        "fit": recipe.fit.text(),
        "store": "raw",  # so that shards of version 1.0 count as finished
        "source": recipe.source,
        "class_names": class_names,
        "enlarge": recipe.enlarge,
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


BATCH = 64  # pictures in memory at a time


@dataclass(frozen=True)
class ShardReport:
    """The result for one shard.

    Attributes:
        made: whether the shard was made now; False if it was finished already.
        images, unreadable: number of pictures in the shard, and of those left out.
        bytes_in, bytes_out: size of the files that were read, and of the shard.
        small: number of pictures that were too small, so enlarged or left out; 0 if not made now.
    """

    path: Path
    made: bool
    images: int
    unreadable: int
    bytes_in: int
    bytes_out: int
    small: int = 0


def make_shard(
    job: ShardJob, overwrite: bool = False, advance: Callable[[int], None] = lambda n: None
) -> ShardReport:
    """Make one shard atomically, unless it is finished already.

    Args:
        overwrite: replace a shard with this name that was made by another recipe.
        advance: called with the number of further pictures that are done.

    Raises:
        DataFault: a picture is unreadable and the recipe says "stop", or no picture is readable.
        EnvironmentFault: a shard of another recipe exists, or the shard cannot be written.
    """
    sweep_drafts(job.path)
    if is_finished(job, overwrite):
        advance(len(job.members))
        images = int(_attribute(job.path, "count"))
        bad = len(job.members) - images
        return ShardReport(job.path, False, images, bad, 0, job.path.stat().st_size)
    unreadable: list[tuple[str, str]] = []
    bytes_in = small = 0
    recipe = job.recipe
    made = ShardWriter(
        job.path,
        recipe.fit.shape,
        rows_per_chunk=chunk_rows(math.prod(recipe.fit.shape), len(job.members)),
        class_names=job.class_names,
        source=recipe.source,
        recipe=job.digest,
    )
    with writing(job.path), made as writer:
        for start in range(0, len(job.members), BATCH):
            members = job.members[start : start + BATCH]
            nbytes, found = _append(writer, members, job, unreadable)
            bytes_in, small = bytes_in + nbytes, small + found
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
    size = job.path.stat().st_size
    return ShardReport(job.path, True, images, len(unreadable), bytes_in, size, small)


def is_finished(job: ShardJob, overwrite: bool) -> bool:
    """Whether the shard exists, is undamaged, and was made by this recipe. A shard that is damaged
    or has no SHA-256 file is removed.

    Raises:
        EnvironmentFault: the shard is undamaged but was made by another recipe, and `overwrite` is
            False.
    """
    if not job.path.exists():
        return False
    try:
        whole = read_sidecar(job.path) == sha256_of(job.path)
    except DataFault:
        whole = False
    found = _attribute(job.path, "recipe") if whole else ""
    if found == job.digest:
        return True
    if whole and not overwrite:
        raise EnvironmentFault(
            f"{job.path}: exists and was made with other settings or from other files. Give "
            "another --out or --prefix, or --overwrite to replace it."
        )
    remove_shard(job.path)
    return False


def sweep_drafts(path: Path) -> None:
    """Remove temporary files of this shard that a killed process left."""
    if path.parent.is_dir():
        beside = "|".join(re.escape(name.name) for name in names_of(path))
        remove_leftovers(path.parent, beside)


def _append(
    writer: ShardWriter,
    members: Sequence[Member],
    job: ShardJob,
    unreadable: list[tuple[str, str]],
) -> tuple[int, int]:
    """Read, decode and append pictures. Returns the bytes read and the number of small pictures.

    Raises:
        DataFault: a picture is unreadable, and the recipe says "stop".
    """
    good: list[Member] = []
    pixels: list[np.ndarray] = []
    nbytes = small = 0
    for member in members:
        try:
            data = read_member(member)
            nbytes += len(data)
            try:
                pixels.append(picture_pixels(data, job.recipe.fit, enlarge=False))
            except TooSmall:
                small += 1
                if not job.recipe.enlarge:
                    raise
                pixels.append(picture_pixels(data, job.recipe.fit))
        except UnreadablePicture as fault:
            if job.recipe.unreadable == "stop":
                raise DataFault(
                    f"{member.id}: {fault}. Repair or remove it, or leave unreadable pictures out "
                    "with --unreadable skip"
                ) from fault
            unreadable.append((member.id, str(fault)))
            continue
        good.append(member)
    if not good:
        return nbytes, small
    labels = [member.label for member in good if member.label is not None] or None
    ids = [member.id for member in good]
    writer.append(np.stack(pixels), labels, ids)
    return nbytes, small


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


def _attribute(path: Path, name: str) -> str:
    """An attribute of a shard whose SHA-256 was verified; "" if it has none."""
    with H5_LOCK, open_file(path) as file:
        value = file.attrs.get(name, "")
    return value.decode() if isinstance(value, bytes) else str(value)


LOOK_S = 0.2  # seconds between two looks for an interrupt


def make_shards(
    jobs: Sequence[ShardJob],
    workers: int,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda n: None,
) -> list[ShardReport]:
    """Make shards in parallel. The first failure ends all work; finished shards stay.

    Args:
        jobs: the shards to make. No other process may make them at the same time.
        workers: number of processes; with 1, this process does the work.
        overwrite: see `make_shard`.
        advance: called with the number of further pictures that are done; where several processes
            work, when one has ended a shard.

    Raises:
        DataFault, EnvironmentFault: as `make_shard`; also if a process was killed.
    """
    try:
        if min(workers, len(jobs)) <= 1:
            return [make_shard(job, overwrite, advance) for job in jobs]
        return _in_processes(jobs, min(workers, len(jobs)), overwrite, advance)
    except BaseException:
        for job in jobs:
            sweep_drafts(job.path)
        raise


def _in_processes(
    jobs: Sequence[ShardJob], workers: int, overwrite: bool, advance: Callable[[int], None]
) -> list[ShardReport]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start)
    # Interrupts are only noted. If one raised while `wait` holds the locks of the futures, they
    # would stay locked, and this process would wait for the pool's thread for ever.
    interrupts: list[int] = []
    with caught((signal.SIGINT, signal.SIGTERM), interrupts.append):
        try:
            with sheltered(signal.SIGINT):  # children get Ctrl-C too, even while they import
                futures = [pool.submit(make_shard, job, overwrite) for job in jobs]
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

"""Makes one shard: reads its pictures, decodes and writes them, or finds that the shard is done
already.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.prep.listing import Member
from collage_mpi.prep.plan import ShardJob, names_of, remove_shard, unreadable_path
from collage_mpi.shards.hdf5 import H5_LOCK, open_file
from collage_mpi.shards.pictures import TooSmall, UnreadablePicture, picture_pixels
from collage_mpi.shards.schema import chunk_rows, read_sidecar, sha256_of
from collage_mpi.shards.writer import EncodedWriter, ShardWriter
from collage_mpi.system.files import remove_leftovers, write_atomic, writing

BATCH = 64  # pictures in memory at once
LARGEST_PICTURE_BYTES = 1 << 29


@dataclass(frozen=True)
class ShardReport:
    """The result for one shard.

    Attributes:
        made: False if the shard was there and complete.
        images, unreadable: pictures in it, and pictures left out.
        small: pictures smaller than its images, enlarged or left out; 0 if it was there already.
        bytes_in, bytes_out: of the files read, and of the shard.
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
    """Make one shard, complete or not at all, unless it is there already.

    Args:
        overwrite: replace a shard of this name that has another recipe.
        advance: called with how many more pictures are done.

    Raises:
        DataFault: an unreadable picture if the recipe says stop, or nothing readable.
        EnvironmentFault: another shard is in the way, or the disk is full.
    """
    sweep_drafts(job.path)
    if is_finished(job, overwrite):
        advance(len(job.members))
        images = int(_attribute(job.path, "count"))
        bad = len(job.members) - images
        return ShardReport(job.path, False, images, bad, 0, job.path.stat().st_size)
    unreadable: list[tuple[str, str]] = []
    bytes_in = small = 0
    with writing(job.path), _writer(job) as writer:
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
                f"{unreadable_path(job.path)}), the first is {name}: {why}. A shard needs one at "
                "least: mend them, take them away, or give a larger --images-per-shard"
            )
    images = len(job.members) - len(unreadable)
    size = job.path.stat().st_size
    return ShardReport(job.path, True, images, len(unreadable), bytes_in, size, small)


def is_finished(job: ShardJob, overwrite: bool) -> bool:
    """Whether the shard is there, unchanged since it was written, and made by this recipe.

    A damaged shard, or one without its SHA-256, is made again.

    Raises:
        EnvironmentFault: a complete shard of another recipe, and `overwrite` is not given.
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
    """Remove what a killed process left of this shard. No other file has such a name."""
    if path.parent.is_dir():
        beside = "|".join(re.escape(name.name) for name in names_of(path))
        remove_leftovers(path.parent, beside)


def read_member(member: Member) -> bytes:
    """The picture's bytes. Raises UnreadablePicture."""
    if member.fault is not None:
        raise UnreadablePicture(member.fault)
    if not 0 < member.nbytes <= LARGEST_PICTURE_BYTES:
        raise UnreadablePicture(f"{member.nbytes:,} bytes")
    try:
        with open(member.path, "rb") as stream:
            stream.seek(member.offset)
            data = stream.read(member.nbytes)
    except OSError as error:
        raise UnreadablePicture(f"cannot be read: {error.strerror}") from error
    if len(data) < member.nbytes:
        raise UnreadablePicture(f"{len(data):,} of its {member.nbytes:,} bytes are there")
    return data


def _writer(job: ShardJob) -> ShardWriter:
    recipe = job.recipe
    common: dict[str, Any] = {
        "class_names": job.class_names,
        "source": recipe.source,
        "recipe": job.digest,
    }
    if recipe.store == "encoded":
        return EncodedWriter(job.path, recipe.fit, **common)
    rows = chunk_rows(math.prod(recipe.fit.shape), len(job.members))
    return ShardWriter(job.path, recipe.fit.shape, rows_per_chunk=rows, **common)


def _append(
    writer: ShardWriter,
    members: Sequence[Member],
    job: ShardJob,
    unreadable: list[tuple[str, str]],
) -> tuple[int, int]:
    """Read, decode and append; returns the bytes read and how many pictures are too small.

    Raises:
        DataFault: a picture cannot be used, and the recipe says stop.
    """
    good: list[Member] = []
    files: list[bytes] = []
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
                    f"{member.id}: {fault}. Mend it or take it away, or leave such ones out "
                    "with --unreadable skip"
                ) from fault
            unreadable.append((member.id, str(fault)))
            continue
        good.append(member)
        files.append(data)
    if not good:
        return nbytes, small
    labels = [member.label for member in good if member.label is not None] or None
    ids = [member.id for member in good]
    if isinstance(writer, EncodedWriter):
        writer.append_files(files, labels, ids)
    else:
        writer.append(np.stack(pixels), labels, ids)
    return nbytes, small


def _list_unreadable(job: ShardJob, unreadable: Sequence[tuple[str, str]]) -> None:
    """Write the list beside the shard, before the shard is there; no list if all could be read."""
    path = unreadable_path(job.path)
    if not unreadable:
        path.unlink(missing_ok=True)
        return
    lines = ["id\treason", *(f"{_cell(name)}\t{_cell(why)}" for name, why in unreadable)]
    write_atomic(path, ("\n".join(lines).encode(), b"\n"))


def _cell(text: str) -> str:
    return text.encode("unicode_escape").decode() if not text.isprintable() else text


def _attribute(path: Path, name: str) -> str:
    """An attribute of a shard whose bytes are verified; "" if it has none."""
    with H5_LOCK, open_file(path) as file:
        value = file.attrs.get(name, "")
    return value.decode() if isinstance(value, bytes) else str(value)

"""Decides which picture goes to which shard: split, shuffle and names; and computes the digest by
which a finished shard is recognised.
"""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.shards.members import Listing, Member
from collage_mpi.shards.pictures import PictureFit
from collage_mpi.shards.schema import sidecar_path
from collage_mpi.system.files import writing
from collage_mpi.system.printable import counted

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
    order = np.arange(len(listing.members))
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
            members = tuple(listing.members[row] for row in own.tolist())
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

"""Decides which picture goes to which shard, before any is read: split, shuffle, names, and the
recipe by which a finished shard is recognised.
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
    """How every picture is treated, and how the shards are cut.

    Attributes:
        fit: size and crop.
        store: "raw" pixels, or the "encoded" files unchanged.
        images_per_shard: at most.
        seed: of shuffle and split; None keeps the listing's order.
        val_share: share for validation shards; 0 for none.
        limit: only this many pictures, after shuffling.
        unreadable: "skip" lists and leaves them out, "stop" ends at the first.
        enlarge: take pictures that are smaller than `fit`; otherwise they count as unreadable.
        source: where the pictures come from, in words.
    """

    fit: PictureFit
    store: str
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
    """One shard to be made; picklable, for another process.

    Attributes:
        digest: of everything that decides its content, except the pictures' bytes.
    """

    path: Path
    members: tuple[Member, ...]
    class_names: tuple[str, ...] | None
    recipe: Recipe
    digest: str


def plan_shards(listing: Listing, recipe: Recipe, out: Path, prefix: str) -> list[ShardJob]:
    """The shards in order. With a split they lie in OUT/train and OUT/val.

    Raises:
        DataFault: too few pictures for the split.
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
    """SHA-256 over what decides a shard: its pictures' names, sizes and labels, fit, store."""
    record = {
        "version": RECIPE_VERSION,
        "fit": recipe.fit.text(),
        "store": recipe.store,
        "source": recipe.source,
        "class_names": class_names,
        "enlarge": recipe.enlarge,
        "members": [(m.id, m.nbytes, m.label) for m in members],
    }
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def shard_paths(out: Path, prefix: str, count: int, rows_per_shard: int) -> list[Path]:
    """`PREFIX.h5` for one shard, `PREFIX-00000-of-00006.h5` and so on for several.

    Raises:
        UsageError: no file name can start with this prefix.
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
    """A shard and the files that may belong to it."""
    return shard, sidecar_path(shard), unreadable_path(shard)


def unreadable_path(shard: Path) -> Path:
    """The list of pictures that are not in the shard, beside the shard."""
    return shard.with_name(f"{shard.name}.unreadable.tsv")


def clear_strangers(
    folders: Iterable[Path], wanted: Collection[Path], prefix: str, overwrite: bool, sweep: bool
) -> None:
    """Make the folders, and refuse or remove existing shards with this prefix that are not wanted.
    They would be taken for part of the new ones.

    Args:
        wanted: shards of this preparation, which may be there already.
        overwrite: the others may be removed.
        sweep: this process is the one that removes them.

    Raises:
        EnvironmentFault: there are some, or a folder cannot be written.
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
    """`in 3 shards: a.h5 to c.h5`."""
    last = f" to {paths[-1]}" if len(paths) > 1 else ""
    return f"in {counted(len(paths), 'shard')}: {paths[0]}{last}"

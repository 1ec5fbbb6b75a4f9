"""What the subcommands of `collage-mpi prep` share: a table of rows to write, and common flags."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.errors import UsageError
from collage_mpi.settings.flags import Arguments, switch
from collage_mpi.system.fields import REQUIRED, setting

if TYPE_CHECKING:
    import numpy as np

    from collage_mpi.prep.arrays import PixelRows
    from collage_mpi.prep.reshard import ShardRows
    from collage_mpi.shards.pictures import PictureFit


@dataclass(frozen=True)
class RowsToWrite:
    """All rows to be written, in order.

    Attributes:
        images: (n, H, W, C) uint8, or an object that returns such rows when indexed.
        labels: (n,) integers, or None.
        rows: (m,) numbers of the rows to write, in this order.
        ids: of all images, or a text: an id is then this text, a colon, and the image's row.
        class_names, source: as in a shard.
        fit: of images that are to be stored encoded; None for pixels.
    """

    images: np.ndarray | PixelRows | ShardRows
    labels: np.ndarray | None
    rows: np.ndarray
    ids: str | Sequence[str]
    class_names: tuple[str, ...] | None
    source: str
    fit: PictureFit | None = None

    def ids_at(self, rows: np.ndarray) -> list[str]:
        """The ids of some rows."""
        if isinstance(self.ids, str):
            return [f"{self.ids}:{row}" for row in rows.tolist()]
        return [self.ids[row] for row in rows.tolist()]


@dataclass(frozen=True, kw_only=True)
class ClassNamesArguments(Arguments):
    """The class names, in one of two ways."""

    class_names: str | None = setting(
        None, "names of classes 0, 1, ...", metavar="A,B,C", either="class names"
    )
    class_names_file: Path | None = setting(
        None,
        "text file with the class names in order, one a line",
        metavar="FILE",
        either="class names",
    )

    def names(self) -> tuple[str, ...] | None:
        """The names from either flag, or None. Raises UsageError, EnvironmentFault."""
        from collage_mpi.shards.class_names import read_class_names, told_apart

        if self.class_names is not None:
            return told_apart([name.strip() for name in self.class_names.split(",")])
        return None if self.class_names_file is None else read_class_names(self.class_names_file)


@dataclass(frozen=True, kw_only=True)
class RowsArguments(ClassNamesArguments):
    """What `prep idx`, `prep hdf5` and `prep shards` take of the shards that they make."""

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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prefix(self.prefix)

    def pick_rows(self, count: int) -> np.ndarray:
        """(m,) rows to write in order: shuffled with --seed, cut with --limit."""
        import numpy as np

        rows = np.arange(count)
        if self.seed is not None:
            rows = np.random.default_rng(self.seed).permutation(count)
        return rows[: self.limit]


def check_prefix(prefix: str) -> None:
    """Raise UsageError unless shards' names can start with this prefix."""
    if not prefix or "/" in prefix or prefix.startswith("."):
        raise UsageError(f"--prefix is {prefix!r}; it needs the start of a file name")

"""What the subcommands of `collage-mpi prep` share: a table of rows to write, and common flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from collage_mpi.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from collage_mpi.prep.arrays import PixelRows
    from collage_mpi.prep.reshard import ShardRows
    from collage_mpi.shards.pictures import Fit


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
    fit: Fit | None = None

    def ids_at(self, rows: np.ndarray) -> list[str]:
        """The ids of some rows."""
        if isinstance(self.ids, str):
            return [f"{self.ids}:{row}" for row in rows.tolist()]
        return [self.ids[row] for row in rows.tolist()]


def class_names(args: argparse.Namespace) -> tuple[str, ...] | None:
    """The names from either flag, or None. Raises UsageError, EnvironmentFault."""
    from collage_mpi.shards.class_names import read_class_names, told_apart

    if args.class_names is not None:
        return told_apart([name.strip() for name in args.class_names.split(",")])
    return None if args.class_names_file is None else read_class_names(args.class_names_file)


def pick_rows(count: int, args: argparse.Namespace) -> np.ndarray:
    """(m,) rows to write in order: shuffled with --seed, cut with --limit."""
    import numpy as np

    rows = np.arange(count)
    if args.seed is not None:
        if args.seed < 0:
            raise UsageError(f"--seed is {args.seed}; it needs 0 or more")
        rows = np.random.default_rng(args.seed).permutation(count)
    return rows[: args.limit]


def check_prefix(prefix: str) -> None:
    """Raise UsageError unless shards' names can start with this prefix."""
    if not prefix or "/" in prefix or prefix.startswith("."):
        raise UsageError(f"--prefix is {prefix!r}; it needs the start of a file name")

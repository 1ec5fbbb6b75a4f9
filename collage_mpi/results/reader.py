"""Reading a run back: all parts, checked, as three arrays and a manifest.

Owns: `Results`, what is measured and what is warm-up, the label of a run in legends, the
digest of an input's keys.
Does not know: statistics, whether the rows add up (verify).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.results import parts
from collage_mpi.results.manifest import MARKER, Json, read_manifest
from collage_mpi.results.rows import (
    GROUPS,
    IMAGES,
    KEY_ROW,
    KINDS,
    OUTCOMES,
    SOURCES,
    TASKS,
    Table,
)

_NAMES = {"source": SOURCES, "kind": KINDS, "outcome": OUTCOMES}


@dataclass(frozen=True)
class Results:
    """A run as it lies on disk, complete or not.

    Attributes:
        path: the run directory.
        manifest: checked contents of manifest.json.
        images, groups, tasks: (n,) of IMAGE_ROW, GROUP_ROW, TASK_ROW, in written order.
        complete: the COMPLETE marker is there (C7).
    """

    path: Path
    manifest: Json
    images: np.ndarray
    groups: np.ndarray
    tasks: np.ndarray
    complete: bool

    def __repr__(self) -> str:
        rows = f"{len(self.images):,} of {self.manifest['rows']:,} rows"
        status = self.manifest.get("status") or "incomplete"
        return f"<Results {str(self.path)!r}: {rows}, {status}>"

    @property
    def scheme(self) -> str:
        """The scheme with its accept policy, as "collage, first"."""
        scheme = self.manifest.get("scheme") or "unknown scheme"
        accept = self.manifest.get("accept")
        return f"{scheme}, {accept}" if accept and scheme != "none" else scheme

    @property
    def mode(self) -> str:
        """How groups follow each other (C6), as "carry, depth 1"."""
        mode = self.manifest.get("mode") or "mode unknown"
        return mode.replace(" depth", ", depth") if ", depth" not in mode else mode

    @property
    def label(self) -> str:
        """For legends and tables: scheme, policy and mode."""
        return f"{self.scheme} ({self.mode})"

    @property
    def invalid(self) -> bool:
        """The straggler injection broke its rule in some session (docs/stragglers.md)."""
        finals = [entry.get("final") or {} for entry in self.manifest.get("sessions") or []]
        found = [self.manifest.get("validity"), *(final.get("validity") for final in finals)]
        return any(isinstance(item, dict) and item.get("valid") is False for item in found)

    def independent(self, rows: np.ndarray) -> int:
        """How many independent samples stand behind rows of groups or of images: their groups,
        or batches where groups were let in together, which end nearly together too."""
        together = 1 if self.manifest.get("open_loop") else self.manifest.get("batch") or 1
        batches = rows["group"] // together
        pairs = rows["session"].astype(np.int64) << 47 | (batches & ((1 << 47) - 1))
        return len(np.unique(pairs))

    @cached_property
    def measured_images(self) -> np.ndarray:
        """Images without those of warm-up groups."""
        return self.images[~self.images["warmup"]]

    @cached_property
    def measured_groups(self) -> np.ndarray:
        """Groups without warm-up groups."""
        return self.groups[~self.groups["warmup"]]

    @cached_property
    def measured_tasks(self) -> np.ndarray:
        """Tasks without those of warm-up groups."""
        return self.tasks[~self.tasks["warmup"]]

    @property
    def fingerprints(self) -> list[str]:
        """Per shard number its SHA-256: with the row, the key of an image (C4)."""
        return [shard["fingerprint"] for shard in self.manifest["shards"]]


def distinct(names: Sequence[str], runs: Sequence[Results]) -> list[str]:
    """Names of runs, those that occur twice with the run's directory behind them."""
    return [
        name if names.count(name) == 1 else f"{name} [{run.path.name}]"
        for name, run in zip(names, runs, strict=True)
    ]


def read_results(path: Path | str) -> Results:
    """Read the run in a directory; every part's checksum is verified.

    Raises:
        EnvironmentFault: there is no run, or it cannot be read.
        DataFault: the manifest or a part is damaged, or holds unknown codes.
    """
    path = Path(path)
    manifest = read_manifest(path)
    images, groups, tasks = (read_table(path, table) for table in (IMAGES, GROUPS, TASKS))
    return Results(path, manifest, images, groups, tasks, (path / MARKER).exists())


def read_table(path: Path, table: Table) -> np.ndarray:
    """All rows of one table of the run in `path`, (n,) of its dtype. Raises as read_results."""
    directory = path / parts.PARTS_DIRECTORY
    try:
        names = parts.list_parts(directory, table)
    except FileNotFoundError as error:
        raise DataFault(f"{directory}: missing, so the run has no rows. Restore it.") from error
    except OSError as error:
        raise EnvironmentFault(f"{directory}: cannot be read: {error.strerror or error}") from error
    found = [_checked_codes(name, parts.read_part(name, table), table) for name in names]
    return np.concatenate(found) if found else np.empty(0, table.dtype)


def _checked_codes(path: Path, rows: np.ndarray, table: Table) -> np.ndarray:
    for column in table.coded:
        if len(rows) and int(rows[column].max()) >= len(_NAMES[column]):
            raise DataFault(
                f"{path}: {column} {int(rows[column].max())} is unknown; this version knows "
                f"{', '.join(_NAMES[column])}."
            )
    return rows


def sorted_keys(images: np.ndarray) -> np.ndarray:
    """The (shard, row) keys of image rows in ascending order, (n,) of KEY_ROW."""
    order = np.lexsort((images["row"], images["shard"]))
    keys = np.empty(len(images), KEY_ROW)
    keys["shard"], keys["row"] = images["shard"][order], images["row"][order]
    return keys


def input_digest(shard: np.ndarray, row: np.ndarray) -> str:
    """SHA-256 over the sorted keys of an input: what the rows of a run must add up to.

    Args:
        shard: (n,) shard numbers, 0 to 2**32 - 1.
        row: (n,) rows within their shards.
    """
    keys = np.empty(len(shard), KEY_ROW)
    keys["shard"], keys["row"] = shard, row
    return hashlib.sha256(sorted_keys(keys).tobytes()).hexdigest()

"""What a run's folder holds, for who writes to it: parts, their rows, what is missing.

Owns: sweeping leftovers, which rows are there, which sessions vouch for theirs.
Does not know: who writes when, statistics.
"""

from __future__ import annotations

import os
import pwd
import re
import shlex
import stat
from pathlib import Path

import numpy as np

from collage_mpi.errors import EnvironmentFault
from collage_mpi.results import parts, vectors
from collage_mpi.results.file_names import (
    MANIFEST,
    MARKER,
    METRICS,
    PARTS_FOLDER,
    PENDING_FOLDER,
    STATUS,
    SUMMARY,
    VECTORS_FOLDER,
)
from collage_mpi.results.manifest import Json
from collage_mpi.results.reader import StoredRun, keys_of
from collage_mpi.results.rows import IMAGES, KEY_ROW, TABLES
from collage_mpi.results.tally import Inventory
from collage_mpi.results.vectors import of_parts
from collage_mpi.system.files import remove_leftovers


def refuse_foreign(out: Path, shared: bool) -> None:
    """Refuse a folder for results in which another user decides what is written where.

    Args:
        out: the folder. It, and its folders of rows, need not exist. What lies above it is not
            looked at: a link there is the user's own choice.
        shared: take the folder of another user. A link is refused all the same.

    Raises:
        EnvironmentFault: one of them is a link, or belongs to neither this user nor root.
    """
    for path in (out, *(out / name for name in (PARTS_FOLDER, VECTORS_FOLDER, PENDING_FOLDER))):
        try:
            found = path.lstat()
        except OSError:  # what cannot be looked at cannot be opened either
            continue
        if stat.S_ISLNK(found.st_mode):
            named = f"name the folder itself: --out {shlex.quote(os.path.realpath(path))}"
            what = named if path == out else f"remove the link (rm {shlex.quote(str(path))})"
            raise EnvironmentFault(
                f"{path}: a symbolic link, to {os.readlink(path)}. Rows are not written through "
                f"links. Choose another --out, or {what}"
            )
        if not shared and found.st_uid not in (0, os.geteuid()):
            raise EnvironmentFault(
                f"{path}: belongs to {_user(found.st_uid)}, who can read, change and remove what "
                "is written there. A folder of your own is needed: choose another --out. If you "
                "share the folder with its owner on purpose, add --shared-out on"
            )


def _user(uid: int) -> str:
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"a user without a name (uid {uid})"


def swept(out: Path) -> Path:
    """The folder of parts, made where it is missing; no half-written file is left in either."""
    directory = out / PARTS_FOLDER
    directory.mkdir(exist_ok=True)
    remove_leftovers(directory, parts.OURS)
    for name in (VECTORS_FOLDER, PENDING_FOLDER):
        if (out / name).is_dir():
            remove_leftovers(out / name, f"{parts.OURS}|{vectors.OURS}")
    remove_leftovers(out, "|".join(map(re.escape, (MANIFEST, MARKER, SUMMARY, STATUS, METRICS))))
    return directory


def parts_of(out: Path, manifest: Json) -> list[parts.PartName]:
    """The parts that count; [] where somebody has removed them with their folder.

    Raises:
        EnvironmentFault: the folder cannot be read.
    """
    directory = out / PARTS_FOLDER
    try:
        found = list(filter(parts.counting(manifest), parts.list_parts(directory)))
        return of_parts(out, found, manifest)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise EnvironmentFault(f"{directory}: cannot be read: {error.strerror or error}") from error


def stored(out: Path, manifest: Json) -> StoredRun:
    """The run in `out` by what its writer knows of it, not yet complete. Raises as `parts_of`."""
    return StoredRun(out, manifest, False, tuple(parts_of(out, manifest)))


def done_keys(run: StoredRun, *, answered: bool) -> np.ndarray:
    """Keys of the images that have a row, or an answer, (k,) of KEY_ROW.

    Raises:
        DataFault: a part is damaged.
    """
    keys = [np.empty(0, KEY_ROW)]
    for rows in run.chunks(IMAGES):
        keys.append(keys_of(rows[rows["answered"]] if answered else rows))
    return np.concatenate(keys)


def is_whole(out: Path, manifest: Json) -> bool:
    """Whether every image has a row on the disk, and every session all that it vouches for.

    Where the status says that there are no error rows, none stands either: those of a retry
    that was killed are vouched for by nobody.

    Raises:
        DataFault: a part is damaged.
    """
    found = Inventory(stored(out, manifest))
    if found.input.missing or (manifest.get("status") == "complete" and found.errors):
        return False
    return not any(_lost_rows(entry, found) for entry in manifest.get("sessions") or [])


def _lost_rows(entry: Json, found: Inventory) -> bool:
    """Whether a session lacks rows that it once recorded: a part was moved away."""
    counts = entry.get("rows")
    return counts is not None and any(
        found.rows[table.name, entry["session"]] != counts[table.name] for table in TABLES
    )


def mark_lost_rows(sessions: list[Json], found: Inventory) -> None:
    """A session that has lost rows stops vouching for them."""
    for entry in sessions:
        if _lost_rows(entry, found):
            entry["rows"] = None

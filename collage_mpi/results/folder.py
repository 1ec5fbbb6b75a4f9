"""Checks whether a run may use a folder, and removes the half-written files that a kill left."""

from __future__ import annotations

import errno
import os
import pwd
import re
import shlex
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from collage_mpi.errors import EnvironmentFault
from collage_mpi.results import (
    INDEX_FOLDER,
    MANIFEST,
    MARKER,
    PARTS_FOLDER,
    PENDING_FOLDER,
    STATUS,
    SUMMARY,
    VECTORS_FOLDER,
    parts,
    vectors,
)
from collage_mpi.results.claim import LOOK_S, Patience, find_writer, held_by
from collage_mpi.system.files import remove_leftovers, sync_directory


def refuse_foreign(out: Path, shared: bool) -> None:
    """Refuse a folder for results if another user could redirect or change what is written.

    Args:
        out: the folder. The folder and its subfolders need not exist. Its parents are not checked,
            because a link there is the user's own choice.
        shared: allow a folder of another user. A link is still refused.

    Raises:
        EnvironmentFault: the folder or a subfolder is a link, or belongs to neither this user nor
            root.
    """
    folders = PARTS_FOLDER, VECTORS_FOLDER, PENDING_FOLDER, INDEX_FOLDER
    for path in (out, *(out / name for name in folders)):
        try:
            found = path.lstat()
        except OSError:  # it does not exist, or cannot be opened either
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


def remove_half_written(out: Path) -> Path:
    """Remove half-written files from the run's folders. Returns the folder of parts, which is
    created if it is missing.
    """
    directory = out / PARTS_FOLDER
    directory.mkdir(exist_ok=True)
    remove_leftovers(directory, parts.OURS)
    for name in (VECTORS_FOLDER, PENDING_FOLDER):
        if (out / name).is_dir():
            remove_leftovers(out / name, f"{parts.OURS}|{vectors.OURS}")
    if (out / INDEX_FOLDER).is_dir():
        remove_leftovers(out / INDEX_FOLDER, r"[0-9a-f]{64}\.npz")
    remove_leftovers(out, "|".join(map(re.escape, (MANIFEST, MARKER, SUMMARY, STATUS))))
    return directory


def make_lasting(out: Path) -> None:
    """Sync a run's folders. Without this, a power failure could undo a rename if the session was
    killed before it synced the folder.
    """
    for folder in (out / PARTS_FOLDER, out / VECTORS_FOLDER, out):
        if folder.is_dir():
            sync_directory(folder)


def refuse_a_run(out: Path) -> None:
    """Raise EnvironmentFault if `out` holds a run or rows of a run."""
    if (out / MANIFEST).exists():
        raise EnvironmentFault(
            f"{out}: holds a run already. Choose another --out, or go on with it: run --resume."
        )
    if (out / PARTS_FOLDER).exists() and parts.list_parts(out / PARTS_FOLDER):
        raise EnvironmentFault(
            f"{out}: holds rows of a run whose {MANIFEST} is gone. Restore it from a copy, or "
            "choose another --out."
        )


def check_place(out: Path, *, shared: bool) -> None:
    """Raise EnvironmentFault if `out` cannot become a new run. Nothing is written for this
    check."""
    with os_errors_as(no_place, out):
        refuse_foreign(out, shared)
        refuse_a_run(out)
        there = out.absolute()
        while not _is_there(there):
            there = there.parent
        check_free(out, there)


def _is_there(path: Path) -> bool:
    """Raises OSError if the path cannot be created: its name is too long, or a parent is a file."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def check_free(out: Path, there: Path) -> None:
    """Check that this user may write to `there`, the part of the path `out` that exists, and that
    no job writes to `out`.

    Raises:
        OSError: this user may not write to `there`.
        EnvironmentFault: another job writes to `out`.
    """
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder", there)
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"no right to write to {there}")
    refuse_writer(out)


def refuse_writer(out: Path) -> None:
    """Raise EnvironmentFault if another job writes to `out`. This takes LOOK_S at most."""
    writer, _ = find_writer(out, Patience(still_s=LOOK_S))
    if writer is not None:
        raise held_by(out, writer)


@contextmanager
def os_errors_as(fault: Callable[[Path, OSError], EnvironmentFault], out: Path) -> Iterator[None]:
    """Raises `fault(out, error)` in place of an OSError of the block."""
    try:
        yield
    except OSError as error:
        raise fault(out, error) from error


def no_place(out: Path, error: OSError) -> EnvironmentFault:
    what = "is a file" if os.path.isfile(out) else f"cannot be written: {error.strerror or error}"
    return EnvironmentFault(f"{out}: {what}; --out needs a folder that you may write to")

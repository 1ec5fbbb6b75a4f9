"""The temporary folder of a launch, for the launcher's files while the job runs.

A launch and its guard process hold a lock in the folder as long as one of them lives, on any host
and in any container. A folder whose lock is free is left over and may be removed. Launch also
writes the signal that stops a job into it, because the launcher may pass another signal to the
ranks.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "collage-mpi-launch-"
LOCK, SIGNAL = "lock", "signal"
VARIABLE = "COLLAGE_MPI_SCRATCH"  # where the ranks find the folder


@contextmanager
def held(folder: str | None) -> Iterator[tuple[int, ...]]:
    """Make the folder, which is removed at the end, and remove the folders of killed launches.

    Yields the descriptors that a guard process must inherit; none if there is no such folder.
    """
    if folder is None:
        yield ()
        return
    sweep(Path(folder).parent)
    try:
        os.mkdir(folder, 0o700)
        lock = os.open(Path(folder) / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    except OSError:  # such as a full disk; the launcher reports it if it needs the folder
        yield ()
        return
    try:
        _take(lock)
        yield (lock,)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(temporary: Path) -> None:
    """Remove the folders of this user's launches that have ended without removing them."""
    for folder in temporary.glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue  # the folder has just gone, or is being made
        try:
            if _take(lock):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def note_signal(folder: str | None, name: str) -> None:
    """Tell the ranks of this host which signal launch received."""
    if folder is not None:
        with suppress(OSError):
            (Path(folder) / SIGNAL).write_text(name)


def noted_signal(environ: Mapping[str, str] = os.environ) -> str | None:
    """The signal that launch received; None if no launch of this host has noted one."""
    folder = environ.get(VARIABLE)
    try:
        name = (Path(folder) / SIGNAL).read_text(errors="replace") if folder else ""
    except OSError:
        return None
    return name if name in signal.Signals.__members__ else None


def _take(lock: int) -> bool:
    """Take the lock; False if it is held, or if the file system has no locks."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

"""Files that are there whole or not at all.

Owns: temporary name, write, fsync, rename, fsync of the directory; what a leftover of a
kill is called.
Does not know: what is in the files.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from collage_mpi.errors import CollageError

TEMP_MARK = ".tmp-"


def write_atomic(
    path: Path,
    chunks: Iterable[bytes | memoryview],
    *,
    replace: bool = True,
    check: Callable[[], object] | None = None,
) -> None:
    """Write a file so that a kill at any moment leaves the old state or the new one.

    Args:
        path: the final name; its directory exists.
        chunks: the content, in order.
        replace: False refuses a name that exists (two jobs writing into one place).
        check: raises if the file must not be written any more. It is asked when all is on the
            disk under the temporary name, and about a write that fails.

    Raises:
        OSError: as the system says; the temporary file is removed where that is possible.
    """
    # Pids of two hosts may be the same, so the name is drawn as well.
    temp = path.with_name(f".{path.name}{TEMP_MARK}{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with open(temp, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if not replace and path.exists():
            raise FileExistsError(errno.EEXIST, "written by another job meanwhile", str(path))
        if check is not None:
            check()
        os.replace(temp, path)
    except (OSError, CollageError):
        _remove(temp)
        if check is not None:
            check()
        raise
    sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make a rename durable. File systems that cannot sync a directory are let be."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def remove_leftovers(directory: Path, ours: str) -> int:
    """Delete temporary files that a killed writer left; returns how many.

    Args:
        directory: where to look.
        ours: a pattern of the names that such a writer writes; all other files stay.
    """
    name = re.compile(rf"\.(?:{ours}){re.escape(TEMP_MARK)}\d+(?:-[0-9a-f]{{8}})?")
    leftovers = [path for path in directory.iterdir() if name.fullmatch(path.name)]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


def _remove(temp: Path) -> None:
    """As far as that is possible: its folder may be gone, or read-only."""
    try:
        temp.unlink()
    except OSError:
        pass

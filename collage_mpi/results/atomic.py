"""Files that are there whole or not at all.

Owns: temporary name, write, fsync, rename, fsync of the directory; what a leftover of a
kill is called.
Does not know: what is in the files.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

TEMP_MARK = ".tmp-"


def write_atomic(path: Path, chunks: Iterable[bytes | memoryview], *, replace: bool = True) -> None:
    """Write a file so that a kill at any moment leaves the old state or the new one.

    Args:
        path: the final name; its directory exists.
        chunks: the content, in order.
        replace: False refuses a name that exists (two jobs writing into one place).

    Raises:
        OSError: as the system says; the temporary file is removed where that is possible.
    """
    temp = path.with_name(f".{path.name}{TEMP_MARK}{os.getpid()}")
    try:
        with open(temp, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if not replace and path.exists():
            raise FileExistsError(errno.EEXIST, "written by another job meanwhile", str(path))
        os.replace(temp, path)
    except OSError:
        temp.unlink(missing_ok=True)
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


def remove_leftovers(directory: Path) -> int:
    """Delete temporary files that a killed writer left; returns how many."""
    leftovers = [path for path in directory.iterdir() if TEMP_MARK in path.name]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)

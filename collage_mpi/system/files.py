"""Files that are there whole or not at all.

Owns: temporary name, write, fsync, rename, fsync of the directory; what a leftover of a
kill is called; the message of a file that cannot be written; CSV.
Does not know: what is in the files.
"""

from __future__ import annotations

import csv
import errno
import io
import itertools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from collage_mpi.errors import CollageError, EnvironmentFault
from collage_mpi.system.printable import cell

SYSTEM_LINKS = Path("/dev")  # stdout and others, which may lead to a file
TEMP_MARK = ".tmp-"
_CSV_ROWS = 4096  # in memory as text at a time


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
    temp = temporary_name(path)
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
    except (Exception, KeyboardInterrupt) as error:
        _remove(temp)
        if check is not None and isinstance(error, OSError | CollageError):
            check()
        raise
    sync_directory(path.parent)


def temporary_name(path: Path) -> Path:
    """Where a file is written before it is renamed; `remove_leftovers` knows such names.

    Raises:
        IsADirectoryError: the path is "." or "/", as that of `--out ''` is.
        FileExistsError: it is a device, a pipe or a socket, or a link to one: to rename over it
            would remove it, and root may do so with /dev/null and /dev/stdout.
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    with suppress(FileNotFoundError, NotADirectoryError):  # to write it says so
        mode = path.stat().st_mode
        of_system = path.is_symlink() and path.parent.resolve() == SYSTEM_LINKS
        if of_system or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise FileExistsError(errno.EEXIST, "it is there and no regular file", str(path))
    # Pids of two hosts may be the same, so the name is drawn as well.
    return path.with_name(f".{path.name}{TEMP_MARK}{os.getpid()}-{os.urandom(4).hex()}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises EnvironmentFault, with the file's or folder's name, for an OSError inside."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"{path}: cannot be written: {error.strerror or error}. Choose a folder with room for "
            "it that you can write to"
        ) from error


def save_file(path: Path, *chunks: bytes) -> None:
    """`write_atomic` of a file that the user named.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    with writing(path):
        write_atomic(path, chunks)


def save_csv(
    path: Path,
    columns: Sequence[str],
    rows: Iterable[Iterable[Any]],
    line_end: str = "\n",
    *,
    raw: bool = False,
) -> None:
    """A line a row below the columns' names, whole or not at all; None is an empty field.

    Args:
        raw: write texts as they are, for programs; else so that no spreadsheet takes one for a
            formula and no terminal obeys one (`printable.cell`).

    Raises:
        EnvironmentFault: it cannot be written.
    """
    if not raw:
        rows = ([cell(one) if type(one) is str else one for one in row] for row in rows)
    with writing(path):
        write_atomic(path, _csv(itertools.chain((columns,), rows), line_end))


def save_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """`save_csv` of mappings: their keys are the columns, those that one lacks are empty."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    save_csv(path, columns, ([record.get(key) for key in columns] for record in records))


def _csv(lines: Iterator[Iterable[Any]], line_end: str) -> Iterator[bytes]:
    while some := list(itertools.islice(lines, _CSV_ROWS)):
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator=line_end).writerows(some)
        yield text.getvalue().encode()


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

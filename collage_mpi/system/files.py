"""Writes files completely or not at all: temporary name, write, fsync, rename, fsync of the folder.

Also writes CSV files, and turns the errors of unreadable and damaged files into messages.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault
from collage_mpi.system.printable import cell, one_line

SYSTEM_LINKS = Path("/dev")  # where links such as stdout are, which may lead to a file
TEMP_MARK = ".tmp-"
_CSV_ROWS = 4096  # rows that are in memory as text at a time

# What numpy raises, besides OSError, for damaged .npy and .npz files: found by damaging files
# (tests/faults/fuzz.py). Readers of text, JSON and CSV raise some of them too.
UNREADABLE: tuple[type[Exception], ...] = (
    *(ValueError, TypeError, SyntaxError, tokenize.TokenError),  # the header is a Python literal
    *(OverflowError, MemoryError),  # the shape in the header
    *(EOFError, KeyError, RuntimeError, NotImplementedError),  # a .npz: members, methods, keys
    *(zipfile.BadZipFile, zlib.error, struct.error, csv.Error),
)

UNREADABLE_OR_GONE: tuple[type[Exception], ...] = (OSError, *UNREADABLE)


def write_atomic(
    path: Path,
    chunks: Iterable[bytes | memoryview],
) -> None:
    """Write a file so that a kill at any moment leaves the old state or the new one.

    Args:
        path: the final name; its directory exists.
        chunks: the content, in order.

    Raises:
        OSError: as the system says; the temporary file is removed if possible.
    """
    temp = temporary_name(path)
    try:
        with open(temp, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            written = os.fstat(file.fileno())
        try:
            os.replace(temp, path)
        except OSError:
            if not _has_name(written, path):  # a file server may do it and lose its reply
                raise
    except (Exception, KeyboardInterrupt):
        with suppress(OSError):  # its folder may be gone, or read-only
            temp.unlink()
        raise
    sync_directory(path.parent)


def _has_name(file: os.stat_result, path: Path) -> bool:
    """Whether a file has this name now: a name that is opened is asked of the server."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return os.path.samestat(os.fstat(descriptor), file)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """The name under which a file is written before it is renamed.

    `remove_leftovers` recognises these names.

    Raises:
        IsADirectoryError: the path is "." or "/", for example from `--out ''`.
        FileExistsError: the path is a device, a pipe or a socket, or a link to one. A rename would
            remove it, and root may do so with /dev/null and /dev/stdout.
    """
    if not path.name:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    with suppress(FileNotFoundError, NotADirectoryError):  # the write will report these
        mode = path.stat().st_mode
        of_system = path.is_symlink() and path.parent.resolve() == SYSTEM_LINKS
        if of_system or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise FileExistsError(errno.EEXIST, "it exists and is not a regular file", str(path))
    # Processes of two hosts may have the same pid, so the name has a random part too.
    return path.with_name(f".{path.name}{TEMP_MARK}{os.getpid()}-{os.urandom(4).hex()}")


def require_regular(path: str | Path) -> None:
    """Raise OSError unless `path` is a regular file: opening a FIFO would wait for a writer."""
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder; a file is needed", str(path))
    what = "FIFO" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
    raise OSError(errno.EINVAL, f"it is a {what}; a regular file is needed", str(path))


@contextmanager
def reading(
    what: Path | str, damaged: str = "", also: type[Exception] | tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turns an OSError inside into an EnvironmentFault with the name of the file or folder.

    Args:
        what: the path, perhaps with a word before it.
        also: further errors that mean that it cannot be read. Those of this package pass through.
        damaged: if given, errors of numpy, json and others for a damaged file become a DataFault
            with this text and the reason.
    """
    try:
        yield
    except CollageError:
        raise
    except OSError as error:
        raise EnvironmentFault(f"{what}: cannot be read: {error.strerror or error}") from error
    except also as error:
        why = f"{type(error).__name__}: {one_line(error, 200)}"
        raise EnvironmentFault(f"{what}: cannot be read: {why}") from error
    except UNREADABLE as error:
        if not damaged:
            raise
        raise DataFault(f"{what}: {damaged}: {error}") from error


def sha256_of_stream(stream: BinaryIO) -> str:
    """SHA-256 of the rest of an open file, 64 hex digits. Raises OSError."""
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return sha256_of_stream(file)


def plain(value: object) -> object:
    """Converts numpy scalars, arrays and paths for JSON: the `default` of `json.dumps`."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        found: object = value.tolist()
        return found
    raise TypeError(f"a {type(value).__name__} cannot be written to JSON: {value!r}")


def load_json(path: Path) -> Any:
    """The content of a JSON file. The caller has checked its size.

    Raises:
        ValueError: it is damaged.
        OSError: as the system says; also if this process has no memory for it, which does not mean
            that the file is damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), str(path)) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError inside into an EnvironmentFault with the name of the file or folder."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(
            f"{path}: cannot be written: {error.strerror or error}. Choose a folder that you can "
            "write to and that has enough free space"
        ) from error


def save_file(path: Path, *chunks: bytes) -> None:
    """`write_atomic` for a file that the user named.

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
    """Write a CSV file, complete or not at all: column names, then a line for each row.

    Args:
        path: of the file.
        columns: their names.
        rows: their values; None is an empty field.
        line_end: after each line.
        raw: write texts unchanged, for programs. Otherwise texts are changed so that no
            spreadsheet takes them for formulas and no terminal for control codes
            (`printable.cell`).

    Raises:
        EnvironmentFault: it cannot be written.
    """
    if not raw:
        columns = [*map(cell, columns)]
        rows = ([cell(one) if type(one) is str else one for one in row] for row in rows)
    with writing(path):
        write_atomic(path, _csv(itertools.chain((columns,), rows), line_end))


def save_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """`save_csv` for mappings: their keys are the columns, and missing keys are empty fields."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    save_csv(path, columns, ([record.get(key) for key in columns] for record in records))


def _csv(lines: Iterator[Iterable[Any]], line_end: str) -> Iterator[bytes]:
    while some := list(itertools.islice(lines, _CSV_ROWS)):
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator=line_end).writerows(some)
        yield text.getvalue().encode()


def free_bytes(path: Path) -> int | None:
    """Free space for this user on the file system of `path`; None if `path` does not exist."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def sync_directory(directory: Path) -> None:
    """Make a rename durable. File systems that cannot sync a directory are ignored."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(fd)


def make_directory(directory: Path) -> None:
    """Make a directory and its missing parents, and sync all of them against a loss of power.

    An existing directory is synced too: the process that made it may have ended before its sync.

    Raises:
        OSError: as the system says.
    """
    missing = [path for path in directory.parents if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in (*missing, directory):
        with suppress(PermissionError):  # a parent that this user may not read
            sync_directory(path.parent)


def remove_leftovers(directory: Path, ours: str) -> int:
    """Delete temporary files that a killed writer left.

    Args:
        directory: where to search.
        ours: a pattern of the writer's file names; all other files stay.

    Returns:
        The number of files.
    """
    name = re.compile(rf"\.(?:{ours}){re.escape(TEMP_MARK)}\d+(?:-[0-9a-f]{{8}})?")
    found = [path for path in directory.iterdir() if name.fullmatch(path.name)]
    for path in found:
        path.unlink(missing_ok=True)
    return len(found)

"""The only module that imports h5py. It opens files, and has the lock for all calls of h5py."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault

H5_LOCK = threading.RLock()
"""Held around every h5py call of this package: libhdf5 is not safe for two threads."""


@contextmanager
def still_reading(path: Path | str) -> Iterator[None]:
    """Holds the lock. An error of h5py inside is raised as an EnvironmentFault, because the file
    was sound when it was checked.
    """
    try:
        with H5_LOCK:
            yield
    except (OSError, RuntimeError, KeyError) as error:
        raise EnvironmentFault(f"{path}: can no longer be read: {error}") from error


def import_h5py() -> Any:
    """Import h5py, with HDF5's file locks switched off unless the user has set them.

    File locks fail on many network file systems, and this package never writes to a file that
    another process has open. HDF5 before 1.10.7 can be told only by the environment variable.
    """
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    import h5py

    return h5py


def cause_of(error: BaseException) -> str:
    """The text of the system's error within HDF5's long message; the whole message if it has
    none."""
    told = re.search(r"error message = '([^']+)'", str(error))
    return told[1] if told else str(error)


class FileToWrite(io.FileIO):
    """The file that HDF5 writes to. The first error is kept in `failure` instead of being raised.

    If a write fails, for example on a full disk, libhdf5 cannot close its objects and crashes the
    process at exit (seen with HDF5 2.0). So every write seems to succeed, and the caller checks
    `failure` after each step.
    """

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of `data`. An error is kept in `failure`."""
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while len(view) and self.failure is None:
                view = view[super().write(view) :]
        except OSError as error:
            self.failure = error
        return size

    def readinto(self, buffer: Any, /) -> int:
        """Fill `buffer`, with zeros after the end of the file, as HDF5's own driver does."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while count := super().readinto(view[filled:]):
            filled += count
        view[filled:] = bytes(len(view) - filled)
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        """Set the length. An error is kept in `failure`."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0


def create_file(stream: FileToWrite) -> Any:
    """Create an `h5py.File` in `stream`, in the HDF5 1.10 layout, whose metadata has checksums.

    Raises:
        OSError: the file cannot be written.
    """
    return import_h5py().File(stream, "w", libver=("v110", "v110"))


def text_array(texts: Sequence[str]) -> np.ndarray:
    """Strings as an array of fixed-length UTF-8, because HDF5's heap for variable-length strings
    has no checksum."""
    if any("\0" in text for text in texts):
        raise DataFault("names, ids and the source cannot hold a NUL character")
    raw = [text.encode("utf-8") for text in texts]
    longest = max(1, max(map(len, raw)))
    kind = import_h5py().string_dtype("utf-8", longest)
    return np.array(raw, dtype=kind)


def open_file(path: Path, *, cache_bytes: int = 0) -> Any:
    """Open an `h5py.File` to read, without file locks. Raises OSError.

    By default there is no chunk cache. Then HDF5 reads only the wanted rows of a chunk without
    filter, which is 5 x faster in shuffled order. The operating system caches the file anyway.
    """
    h5py = import_h5py()
    try:
        return h5py.File(path, "r", rdcc_nbytes=cache_bytes, locking=False)
    except ValueError as error:
        if "locking" not in str(error):
            raise
        # an old libhdf5 without this argument reads the variable that import_h5py sets
        return h5py.File(path, "r", rdcc_nbytes=cache_bytes)

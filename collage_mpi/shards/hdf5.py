"""The only access to h5py: its import, opening of files, and one lock for the whole process."""

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
    """Holds the lock; what h5py raises inside for a file that was good before becomes an
    EnvironmentFault.
    """
    try:
        with H5_LOCK:
            yield
    except (OSError, RuntimeError, KeyError) as error:
        raise EnvironmentFault(f"{path}: can no longer be read: {error}") from error


def import_h5py() -> Any:
    """h5py, imported on first use, with HDF5's file locks off unless the user set them.

    The locks fail on many network file systems, and nothing here writes a file that another process
    has open. Libraries before HDF5 1.10.7 read only the environment variable.
    """
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    import h5py

    return h5py


def cause_of(error: BaseException) -> str:
    """The system's own error text from HDF5's long message, if there is one; else the whole
    message.
    """
    told = re.search(r"error message = '([^']+)'", str(error))
    return told[1] if told else str(error)


class FileToWrite(io.FileIO):
    """The file below HDF5 while a shard is written. It keeps its first failure instead of raising
    it.

    If libhdf5 meets a full disk, it cannot close its objects any more and crashes the process at
    exit (seen with HDF5 2.0). So HDF5 is told that every write works, and the writer asks `failure`
    after each step.
    """

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write all of `data`; a failure is kept in `failure`."""
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while len(view) and self.failure is None:
                view = view[super().write(view) :]
        except OSError as error:
            self.failure = error
        return size

    def readinto(self, buffer: Any, /) -> int:
        """Fill all of `buffer`, with zeros beyond the end of the file, like HDF5's own driver."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while count := super().readinto(view[filled:]):
            filled += count
        view[filled:] = bytes(len(view) - filled)
        return len(view)

    def truncate(self, size: int | None = None, /) -> int:
        """Set the length; a failure is kept in `failure`."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0


def create_file(stream: FileToWrite) -> Any:
    """A new `h5py.File` in `stream`, in the HDF5 1.10 layout.

    The metadata of this layout has checksums, so damage raises an error instead of misleading the
    reader. Raises OSError.
    """
    return import_h5py().File(stream, "w", libver=("v110", "v110"))


def text_array(texts: Sequence[str]) -> np.ndarray:
    """Strings as fixed-length UTF-8: HDF5's variable-length heap has no checksum."""
    if any("\0" in text for text in texts):
        raise DataFault("names, ids and the source cannot hold a NUL character")
    raw = [text.encode("utf-8") for text in texts]
    longest = max(1, max(map(len, raw)))
    kind = import_h5py().string_dtype("utf-8", longest)
    return np.array(raw, dtype=kind)


def open_file(path: Path, *, cache_bytes: int = 0) -> Any:
    """An `h5py.File` to read, without file locks. Raises OSError.

    By default there is no chunk cache: for chunks without a filter HDF5 then reads only the wanted
    rows, which is 5 x faster in shuffled order. The operating system caches the file anyway.
    """
    h5py = import_h5py()
    try:
        return h5py.File(path, "r", rdcc_nbytes=cache_bytes, locking=False)
    except ValueError as error:
        if "locking" not in str(error):
            raise
        # an old libhdf5: the variable that import_h5py sets has done it
        return h5py.File(path, "r", rdcc_nbytes=cache_bytes)

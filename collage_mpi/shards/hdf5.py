"""The one door to h5py: opening files, and the one lock a process.

Owns: the import of h5py, file locking, cache settings, the process-wide lock.
Does not know: what a shard holds.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

H5_LOCK = threading.RLock()
"""Held around every h5py call of this package: libhdf5 is not safe for two threads."""


def import_h5py() -> Any:
    """h5py, imported on first use, with HDF5's file locks off unless the user set them.

    The locks fail on many network file systems, and nothing here writes a file that
    another process has open. Libraries before HDF5 1.10.7 read only the variable.
    """
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    import h5py

    return h5py


def open_file(path: Path, mode: str, *, cache_bytes: int = 0) -> Any:
    """An `h5py.File` without file locks. Raises OSError.

    Written files use the HDF5 1.10 layout: its metadata carries checksums, so damage
    there is met with an error and not followed. Read files get no chunk cache unless
    asked: for chunks without a filter HDF5 then reads just the rows wanted, which is 5 x
    faster in shuffled order; the operating system caches the file anyway.
    """
    h5py = import_h5py()
    options: dict[str, Any] = {"locking": False}
    if mode == "r":
        options["rdcc_nbytes"] = cache_bytes
    else:
        options["libver"] = ("v110", "v110")
    try:
        return h5py.File(path, mode, **options)
    except ValueError as error:
        if "locking" not in str(error):
            raise
        del options["locking"]  # an old libhdf5: the variable above has done it
        return h5py.File(path, mode, **options)

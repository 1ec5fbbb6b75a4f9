"""The few operations on the shared folder that the ledger needs, and what they promise.

No reply is trusted: an operation that failed may have been done, also later. The ledger reads back
what it made.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from collage_mpi.errors import EnvironmentFault
from collage_mpi.ledger.records import LARGEST_BYTES
from collage_mpi.system.files import TEMP_MARK

# What a file system without hard links says, and one that does not know links at all.
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
STALE_TRIES = 2
READ_BYTES = 1 << 20  # the system is asked for so much at a time
TRIES = 5  # of an operation that fails while a job begins
UNSEEN_S = 180.0  # hosts believe for a minute that a name is missing


class FolderStore:
    """The files of a run, by names such as `leases/0.1`. All methods raise OSError."""

    def __init__(self, folder: str | Path, disk: Any = os) -> None:
        """`disk` has the functions of `os` for files."""
        self._folder, self._disk = str(folder), disk

    def make(self) -> None:
        """Make the folders of the ledger."""
        for folder in ("leases", "beats", "jobs", "rows"):
            with suppress(FileExistsError):
                self._disk.mkdir(self._at(folder))

    def settled(self, name: str, data: bytes, sleep: Callable[[float], None] = time.sleep) -> bytes:
        """Make a file unless there is one. Returns what is there, whoever made it.

        Raises OSError if nobody can tell.
        """
        for tries in range(int(UNSEEN_S)):
            failed: OSError | None = None
            try:
                self.link(name, data)
                raw = self.read(name)
            except OSError as error:
                raw, failed = None, error
            if raw is not None:
                return raw
            if failed and tries >= TRIES:
                raise failed
            sleep(1.0)
        raise FileNotFoundError(errno.ENOENT, "it is there and cannot be seen", name)

    def link(
        self,
        name: str,
        data: bytes | Iterable[bytes | memoryview],
        still: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Make a file whole, of its content or of pieces of it, if `still` says so once it is
        written. False: it does not, or there is one.

        No reply is certain: who made a file, what is there tells.

        Raises:
            EnvironmentFault: there are no hard links.
            OSError: it may have been made nevertheless.
        """
        with suppress(FileExistsError):
            return self._put(name, data, still, self._give_name)
        return False

    def _put(
        self,
        name: str,
        data: bytes | Iterable[bytes | memoryview],
        still: Callable[[], bool],
        give: Callable[[str, str], object],
    ) -> bool:
        """Write a file under a temporary name, then `give` it its name, if `still` says so."""
        temp = self._temporary(name)
        try:
            self._write(self._new(temp), data)
            if not still():
                return False
            give(temp, name)
            self.sync_folder(name)
        finally:
            with suppress(OSError):
                self._disk.unlink(temp)
        return True

    def _new(self, temp: str) -> int:
        """Open a file that nobody else names. Where it is there, a reply to this job was lost."""
        try:
            return int(self._disk.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        except FileExistsError as error:
            raise OSError(errno.EIO, "made, but told that it was there before", temp) from error

    def _rename(self, temp: str, name: str) -> None:
        self._disk.rename(temp, self._at(name))

    def _give_name(self, temp: str, name: str) -> None:
        """Name a file that is written. Raises FileExistsError: the name is taken."""
        try:
            self._disk.link(temp, self._at(name))
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            raise EnvironmentFault(
                f"{self._folder}: this file system has no hard links ({error.strerror}), so "
                "several jobs cannot share a run here. Choose another --out, or type --alone on"
            ) from error

    def read(self, name: str) -> bytes | None:
        """Open a file anew and read it; None if there is none. What exists is seen as it is now;
        what was made a while ago may be missing."""
        for tries_left in range(STALE_TRIES, -1, -1):
            try:
                return self._read(self._at(name))
            except FileNotFoundError:
                return None
            except OSError as error:  # replaced or removed between open and read
                if error.errno != errno.ESTALE or not tries_left:
                    raise
        return None

    def _read(self, path: str) -> bytes:
        file = self._disk.open(path, os.O_RDONLY)
        try:
            found = b""
            while more := self._disk.read(file, min(READ_BYTES, LARGEST_BYTES + 1 - len(found))):
                found += more
            return found
        finally:
            self._disk.close(file)

    def overwrite(self, name: str, data: bytes) -> None:
        """Write a file in place, and sync it."""
        file = self._disk.open(self._at(name), os.O_WRONLY | os.O_CREAT, 0o666)
        self._write(file, data)

    def replace(
        self,
        name: str,
        data: bytes | Iterable[bytes | memoryview],
        still: Callable[[], bool] = lambda: True,
    ) -> None:
        """Put a whole file in the place of another one, or of none, if `still` says so once it is
        written."""
        self._put(name, data, still, self._rename)

    def move(self, name: str, to: str) -> None:
        """Rename a file into a folder, which is made if need be."""
        with suppress(FileExistsError):
            self._disk.mkdir(self._at(to).rpartition("/")[0])
        self._rename(self._at(name), to)
        for each in (to, name):
            self.sync_folder(each)

    def remove(self, name: str) -> None:
        """Remove a file. It is no error if there is none."""
        with suppress(FileNotFoundError):
            self._disk.unlink(self._at(name))

    def names(self, folder: str) -> list[str]:
        """What was in a folder a while ago; "": in that of the run."""
        return list(self._disk.listdir(self._at(folder)))

    def _at(self, name: str) -> str:
        return f"{self._folder}/{name}"

    def _temporary(self, name: str) -> str:
        folder, slash, last = name.rpartition("/")
        mark = f"{TEMP_MARK}{os.getpid()}-{os.urandom(4).hex()}"
        return self._at(f"{folder}{slash}.{last}{mark}")

    def _write(self, file: int, data: bytes | Iterable[bytes | memoryview]) -> None:
        try:
            at = 0
            for piece in (data,) if isinstance(data, bytes) else data:
                left = memoryview(piece)
                while left:
                    done = self._disk.pwrite(file, left, at)
                    at, left = at + done, left[done:]
            self._disk.fsync(file)
        finally:
            self._disk.close(file)

    def sync_folder(self, name: str) -> None:
        """Put the names in the folder of this file on the disk, whoever made them."""
        file = self._disk.open(self._at(name).rpartition("/")[0], os.O_RDONLY)
        try:
            self._disk.fsync(file)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise
        finally:
            self._disk.close(file)

"""The files of a simulated job: real ones in one folder. Their changes take time, fail, get lost.

A change is durable when it was synced: the content of a file by fsync, a name by fsync of its
folder. When a host loses its power, what it had not synced is lost or kept, piece by piece.
"""

from __future__ import annotations

import errno
import os
import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.simulation.kernel import MS, Host
from tests.simulation.standins import here, kernel

WRITES = os.O_WRONLY | os.O_RDWR


@dataclass
class Change:
    """A change of a name that may still be undone.

    Attributes:
        folder: in which the name is.
        undo: makes it undone.
    """

    host: Host
    folder: str
    undo: Callable[[], object]


@dataclass
class Content:
    """The content of a file that was not synced since: that which is on the disk for certain."""

    host: Host
    certain: bytes


class Disk:
    """Below `root` everything is simulated; other files are read only.

    Attributes:
        full: writes fail for want of room.
        fails: the next changes fail by this error, as many as stand there.
        slow_ns: the longest time that a change takes.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        self.full = False
        self.fails: list[int] = []
        self.slow_ns = 3 * MS
        self._changes: list[Change] = []
        self._contents: dict[str, Content] = {}

    # ---- what the world does to it ----------------------------------------------

    def power_loss(self, host: Host) -> None:
        """Of what the host had not synced each piece is lost, or not."""
        rng = kernel().random
        for change in reversed([c for c in self._changes if c.host is host]):
            if rng.random() < 0.5:
                change.undo()
        self._changes = [c for c in self._changes if c.host is not host]
        for path, content in list(self._contents.items()):
            if content.host is not host:
                continue
            del self._contents[path]
            if not os.path.isfile(path):
                continue
            with open(path, "rb") as file:
                now = file.read()
            ends = (content.certain, now, now[: rng.randint(0, len(now))], bytes(len(now)))
            with open(path, "wb") as file:
                file.write(rng.choice(ends))

    # ---- what processes do --------------------------------------------------------

    def _step(self, path: Any, *, write: bool = True) -> str:
        """A change begins: it takes time, and may fail. Returns the path as text."""
        kernel().wait(kernel().random.randint(1000, self.slow_ns))
        found = os.fspath(path)
        if write and self.fails:
            number = self.fails.pop()
            raise OSError(number, os.strerror(number), found)
        return found

    def _room(self, path: Any) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))

    def _note(self, path: str, undo: Callable[[], object]) -> None:
        self._changes.append(Change(here().host, os.path.dirname(os.path.abspath(path)), undo))

    def _written(self, path: str) -> None:
        """The content of a file is about to change."""
        path = os.path.abspath(path)
        if path not in self._contents:
            certain = b""
            if os.path.isfile(path):
                with open(path, "rb") as file:
                    certain = file.read()
            self._contents[path] = Content(here().host, certain)

    def replace(self, source: Any, target: Any) -> None:
        source, target = self._step(source), os.fspath(target)
        before = None
        if os.path.isfile(target):
            with open(target, "rb") as file:
                before = file.read()
        os.replace(source, target)
        moved = self._contents.pop(os.path.abspath(source), None)
        if moved is not None:
            self._contents[os.path.abspath(target)] = moved
        else:
            self._contents.pop(os.path.abspath(target), None)

        def undo() -> None:
            if not os.path.isfile(target):
                return
            os.replace(target, source)
            if before is not None:
                with open(target, "wb") as file:
                    file.write(before)

        self._note(target, undo)

    def unlink(self, path: Any, *, dir_fd: None = None) -> None:
        path = self._step(path)
        before = b""
        if os.path.isfile(path):
            with open(path, "rb") as file:
                before = file.read()
        os.unlink(path)
        self._contents.pop(os.path.abspath(path), None)

        def undo() -> None:
            if not os.path.exists(path) and os.path.isdir(os.path.dirname(path)):
                with open(path, "wb") as file:
                    file.write(before)

        self._note(path, undo)

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: None = None) -> None:
        path = self._step(path)
        self._room(path)
        os.mkdir(path, mode)

    def rmdir(self, path: Any, *, dir_fd: None = None) -> None:
        os.rmdir(self._step(path))

    def rmtree(self, path: Any, ignore_errors: bool = False) -> None:
        """Of `shutil`, one name at a time."""
        try:
            for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
                if entry.is_dir(follow_symlinks=False):
                    self.rmtree(entry.path, ignore_errors)
                else:
                    self.unlink(entry.path)
            self.rmdir(path)
        except OSError:
            if not ignore_errors:
                raise

    # descriptors

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: None = None) -> int:
        writes = flags & (WRITES | os.O_CREAT)
        path = self._step(path, write=bool(writes))
        new = bool(flags & os.O_CREAT) and not os.path.lexists(path)
        if new:
            self._room(path)
        descriptor = os.open(path, flags, mode)
        here().descriptors[descriptor] = Open(descriptor, path)
        if new:
            self._note(path, lambda: os.path.exists(path) and os.unlink(path))
        return descriptor

    def write(self, descriptor: int, data: Any) -> int:
        return self._put(descriptor, lambda: os.write(descriptor, data))

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        return self._put(descriptor, lambda: os.pwrite(descriptor, data, offset))

    def _put(self, descriptor: int, put: Callable[[], int]) -> int:
        path = self._step(here().descriptors[descriptor].path)
        self._room(path)
        if os.fstat(descriptor).st_nlink:
            self._written(path)
        return put()

    def fsync(self, descriptor: int) -> None:
        path = os.path.abspath(here().descriptors[descriptor].path)
        self._step(path)
        self._room(path)
        if os.path.isdir(path):
            self._changes = [c for c in self._changes if c.folder != path]
        else:
            self._contents.pop(path, None)

    def dup(self, descriptor: int) -> int:
        again = os.dup(descriptor)
        here().descriptors[again] = Open(again, here().descriptors[descriptor].path)
        return again

    def close(self, descriptor: int) -> None:
        here().descriptors.pop(descriptor).drop()

    def names(self) -> dict[str, Any]:
        """What the stand-in of `os` has from here; the disk is that of the world being played."""
        from tests.simulation.standins import WORLD

        def ask(name: str) -> Callable[..., Any]:
            return lambda *args, **kwargs: getattr(WORLD.disk, name)(*args, **kwargs)

        names = ("replace", "unlink", "mkdir", "rmdir", "open", "write", "pwrite", "fsync", "dup")
        found = {name: ask(name) for name in (*names, "close")}
        return {**found, "rename": found["replace"], "remove": found["unlink"]}


@dataclass
class Open:
    """An open descriptor of a process."""

    number: int
    path: str

    def drop(self) -> None:
        """The process has closed it, or has ended."""
        os.close(self.number)


class WrittenFile:
    """A file that a process has opened to write."""

    def __init__(self, path: Any, mode: str, encoding: str | None) -> None:
        from tests.simulation.standins import WORLD

        self._disk, self._text = WORLD.disk, "b" not in mode
        flags = os.O_WRONLY | os.O_CREAT
        flags |= os.O_APPEND if "a" in mode else os.O_EXCL if "x" in mode else os.O_TRUNC
        if "w" in mode and os.path.isfile(path):
            self._disk._written(os.fspath(path))
        self._descriptor = self._disk.open(path, flags, 0o666)
        self._encoding = encoding or "utf-8"

    def write(self, data: Any) -> int:
        given = data.encode(self._encoding) if self._text else data
        self._disk.write(self._descriptor, given)
        return len(data)

    def flush(self) -> None:
        pass

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        if self._descriptor in here().descriptors:
            self._disk.close(self._descriptor)

    def __enter__(self) -> WrittenFile:
        return self

    def __exit__(self, *why: object) -> None:
        self.close()


def open_file(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    """The builtin `open`."""
    if isinstance(path, int) or not set(mode) & set("wax+"):
        return open(path, mode, *args, **kwargs)
    return WrittenFile(path, mode, kwargs.get("encoding"))


def _asks(name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        from tests.simulation.standins import WORLD

        return getattr(WORLD.disk, name)(self, *args, **kwargs)

    return call


class SimulatedPath(pathlib.PosixPath):
    """Of `pathlib`: its changes go through the simulated disk."""

    rmdir = _asks("rmdir")

    def unlink(self, missing_ok: bool = False) -> None:
        from tests.simulation.standins import WORLD

        try:
            WORLD.disk.unlink(self)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def replace(self, target: Any) -> Any:
        _asks("replace")(self, target)
        return self.__class__(target)

    rename = replace

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        from tests.simulation.standins import WORLD

        try:
            WORLD.disk.mkdir(self, mode)
        except FileNotFoundError:
            if not parents or self.parent == self:
                raise
            self.parent.mkdir(parents=True, exist_ok=True)
            self.mkdir(mode, exist_ok=exist_ok)
        except OSError:
            if not exist_ok or not self.is_dir():
                raise

    def open(self, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        return open_file(self, mode, *args, **kwargs)

    def write_bytes(self, data: Any) -> int:
        with self.open("wb") as file:
            return int(file.write(data))

    def write_text(self, data: str, encoding: str | None = None, *args: Any, **kw: Any) -> int:
        with self.open("w", encoding=encoding) as file:
            return int(file.write(data))

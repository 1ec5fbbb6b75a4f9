"""The files of a simulated job: real ones in one folder. What is done to them takes time, fails,
gets lost, and is seen late by other hosts.

A change is durable when it was synced: the content of a file by fsync, a name by fsync of its
folder. When a host loses its power, what it had not synced is lost or kept, piece by piece; a
rename is there or not, never in half.

Hosts see each other's changes as clients of an NFS server do. What a host writes into a file is
sent off when the file is closed or synced. A host that has looked for a name, or listed a folder,
keeps the answer for at most `late_ns`; but what makes, renames or removes a name is done by the
server, who knows. A file that was replaced is found at once where it is opened.
"""

from __future__ import annotations

import errno
import io
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.simulation.kernel import MS, SECOND, Host, Process
from tests.simulation.standins import WORLD, StandIn, here, kernel

WRITES = os.O_WRONLY | os.O_RDWR
CHANGES = ("make", "write", "sync", "link", "rename", "remove", "mkdir", "rmdir")
LOOKS = ("read", "list", "stat")
LIMITS = ("no descriptor until", "no memory until")  # of a process, in its `own`
ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT)
BLOCK_BYTES = 512  # what is written in place is lost block by block
LARGE_BYTES = 512  # a process without memory has none for so much
UNSENT_NS = 30 * SECOND  # what is written is sent off by then though the file stays open


@dataclass
class Change:
    """A change of a name that may still be undone.

    Attributes:
        path: the name.
        undo: makes it undone.
    """

    host: Host
    path: str
    undo: Callable[[], object]


@dataclass
class Content:
    """The content of a file that was not synced since: that which is on the disk for certain."""

    host: Host
    certain: bytes


@dataclass
class Failure:
    """What is done next fails.

    Attributes:
        kinds: of CHANGES and LOOKS, which it meets.
        number: the error's.
        count: how many times.
    """

    kinds: tuple[str, ...]
    number: int
    count: int = 1


@dataclass
class Late:
    """What other hosts than this one have not seen yet.

    Attributes:
        until_ns: when they see it.
        unsent: the content that they see until then; None where the name is new to them, or gone.
        gone: the name is there no more.
        asked, listed: those who keep that it was not there, and those who keep its folder's list.
    """

    host: Host
    until_ns: int
    unsent: bytes | None = None
    gone: bool = False
    asked: frozenset[Host] = frozenset()
    listed: frozenset[Host] = frozenset()


class Disk:
    """Below `root` everything is simulated; other files are read only.

    Attributes:
        full: writes fail for want of room.
        fails: what fails next.
        slow_ns: the longest time that a change takes.
        late_ns: the longest time after which another host sees that a name has come or gone.
        watch: is told of each file that a process makes or renames.
    """

    def __init__(self, root: str) -> None:
        self.root = os.path.realpath(root)
        self.late_ns = 0
        self.watch: Callable[[Process, str], object] = lambda process, path: None
        self._changes: list[Change] = []
        self._contents: dict[str, Content] = {}
        self._late: dict[str, Late] = {}
        self._kept: dict[str, set[Host]] = {}  # who has asked for a name, or listed a folder
        self.mend()

    def mend(self) -> None:
        """Nothing fails from now on."""
        self.full, self.slow_ns = False, 3 * MS
        self.fails: list[Failure] = []

    # ---- what the world does to it ----------------------------------------------

    def power_loss(self, host: Host, *, shared: bool) -> None:
        """Of what the host had not synced each piece is lost, or not.

        `shared`: the files are a server's, and with them the names; contents alone are lost.
        """
        rng = kernel().random
        for change in reversed([c for c in self._changes if c.host is host and not shared]):
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
            ends = [content.certain, now, now[: rng.randint(0, len(now))], bytes(len(now))]
            if len(content.certain) == len(now):  # written in place
                both = zip(_blocks(content.certain), _blocks(now), strict=True)
                ends = [b"".join(rng.choice(pair) for pair in both)]
            with open(path, "wb") as file:
                file.write(rng.choice(ends))

    def lasts(self, path: Any) -> bool:
        """Whether a file is there and would outlive a loss of power."""
        found = os.path.abspath(path)
        named = any(found == change.path for change in self._changes)
        return os.path.exists(found) and found not in self._contents and not named

    # ---- what processes do --------------------------------------------------------

    def _step(self, kind: str, path: Any) -> str:
        """Something of CHANGES or LOOKS begins, and may fail. Returns the path as text."""
        found = os.fspath(path)
        if kind in CHANGES:  # a look's time would double what a seed takes
            kernel().wait(kernel().random.randint(1000, self.slow_ns))
            if self.late(found) is not None:  # the server knows, and so does this host from now on
                del self._late[os.path.abspath(found)]
        if found.startswith(self.root):
            for failure in self.fails:
                if kind in failure.kinds:
                    failure.count -= 1
                    self.fails = [each for each in self.fails if each.count > 0]
                    raise OSError(failure.number, os.strerror(failure.number), found)
        return found

    def _descriptor(self, path: str) -> None:
        """One more is needed."""
        process = here()
        process.most_open = max(process.most_open, len(process.descriptors) + len(process.reads))
        if kernel().now_ns < process.own.get("no descriptor until", 0):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    # what other hosts see of it

    def settle(self) -> None:
        """All hosts see all."""
        self.late_ns = 0
        self._late.clear()
        self._kept.clear()

    @property
    def hides(self) -> bool:
        """Whether a host may not see now what another one has done."""
        now_ns = kernel().now_ns
        return bool(self.late_ns) or any(each.until_ns > now_ns for each in self._late.values())

    def late(self, path: Any) -> Late | None:
        """What this host may not know yet of a name."""
        found = self._late.get(os.path.abspath(path)) if self._late else None
        if found is None or found.host is here().host or found.until_ns <= kernel().now_ns:
            return None
        return found

    def _tell_late(self, path: str, *, gone: bool = False) -> None:
        """A name has come, or gone."""
        path = os.path.abspath(path)
        self._late.pop(path, None)
        asked = frozenset(self._kept.pop(path, ()))
        listed = frozenset(self._kept.get(os.path.dirname(path), ()))
        if self.late_ns and (asked or listed):
            until_ns = kernel().now_ns + kernel().random.randint(0, self.late_ns)
            self._late[path] = Late(here().host, until_ns, None, gone, asked, listed)

    def _sent(self, path: str) -> None:
        """What was written into a file is on its server."""
        late = self._late.get(os.path.abspath(path))
        if late is not None and late.unsent is not None:
            del self._late[os.path.abspath(path)]

    def look(self, kind: str, path: Any) -> bytes | None:
        """Before a file is looked at: the content that this host sees in place of its own.

        Raises:
            FileNotFoundError: its name is not seen here yet.
        """
        found = self._seen(self._step(kind, path))
        return found if kind == "read" else None

    def _seen(self, found: str) -> bytes | None:
        """As `look`."""
        if not self.late_ns:
            return None
        late = self.late(found)
        if late is not None and late.unsent is not None:
            return late.unsent
        if late is not None and not late.gone and here().host in late.asked:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), found)
        if not os.path.lexists(found):
            self._kept.setdefault(os.path.abspath(found), set()).add(here().host)
        return None

    def list(self, path: Any) -> list[str]:
        """The names in a folder, as this host sees them."""
        found = os.path.abspath(self._step("list", path))
        self._descriptor(found)
        names = set(os.listdir(found))
        if not self.late_ns:
            return sorted(names)
        for each in self._late:
            late = self.late(each)
            if os.path.dirname(each) == found and late and here().host in late.listed:
                (names.add if late.gone else names.discard)(os.path.basename(each))
        self._kept.setdefault(found, set()).add(here().host)
        return sorted(names)

    def _room(self, path: Any) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))

    def _note(self, path: str, undo: Callable[[], object]) -> None:
        self._changes.append(Change(here().host, os.path.abspath(path), undo))

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
        self._reply("rename", source, lambda: self._replace(os.fspath(source), os.fspath(target)))

    def _reply(self, kind: str, path: Any, act: Callable[[], object]) -> None:
        """Do something that a file server may do although its reply is an error."""
        try:
            self._step(kind, path)
        except OSError:
            if kernel().random.random() < 0.5:
                act()
            raise
        act()

    def link(self, source: Any, target: Any) -> None:
        self._reply("link", source, lambda: self._link(os.fspath(source), os.fspath(target)))

    def _link(self, source: str, target: str) -> None:
        os.link(source, target)
        self._tell_late(target)
        self._note(target, lambda: os.path.exists(target) and os.unlink(target))
        self.watch(here(), target)

    def _replace(self, source: str, target: str) -> None:
        before = None
        if os.path.isfile(target):
            with open(target, "rb") as file:
                before = file.read()
        new = not os.path.lexists(target)
        os.replace(source, target)
        self.watch(here(), target)
        self._sent(source)
        self._tell_late(source, gone=True)
        if new:
            self._tell_late(target)
        moved = self._contents.pop(os.path.abspath(source), None)
        if moved is not None:
            self._contents[os.path.abspath(target)] = moved
        else:
            self._contents.pop(os.path.abspath(target), None)

        def undo() -> None:
            if not os.path.isfile(target) or not os.path.isdir(os.path.dirname(source)):
                return  # the folder that it came from has gone for good
            os.replace(target, source)
            if before is not None:
                with open(target, "wb") as file:
                    file.write(before)

        self._note(target, undo)

    def unlink(self, path: Any, *, dir_fd: None = None) -> None:
        path = self._step("remove", path)
        before = b""
        if os.path.isfile(path):
            with open(path, "rb") as file:
                before = file.read()
        os.unlink(path)
        self._tell_late(path, gone=True)
        self._contents.pop(os.path.abspath(path), None)

        def undo() -> None:
            if not os.path.exists(path) and os.path.isdir(os.path.dirname(path)):
                with open(path, "wb") as file:
                    file.write(before)

        self._note(path, undo)

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: None = None) -> None:
        path = self._step("mkdir", path)
        self._room(path)
        os.mkdir(path, mode)
        self._tell_late(path)
        self._note(path, lambda: shutil.rmtree(path, ignore_errors=True))

    def rmdir(self, path: Any, *, dir_fd: None = None) -> None:
        os.rmdir(self._step("rmdir", path))
        self._late.pop(os.path.abspath(path), None)

    def rmtree(self, path: Any, ignore_errors: bool = False) -> None:
        """Of `shutil`, one name at a time."""
        try:
            self._rmtree(path, ignore_errors)
        except OSError:
            if not ignore_errors:
                raise

    def _rmtree(self, path: Any, ignore_errors: bool) -> None:
        found = os.fspath(path)
        for name in self.list(found):
            entry = os.path.join(found, name)
            try:
                if os.path.isdir(entry) and not os.path.islink(entry):
                    self.rmtree(entry, ignore_errors)
                else:
                    self.unlink(entry)
            except OSError:
                if not ignore_errors:
                    raise
        self.rmdir(found)

    # descriptors

    def open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: None = None) -> int:
        writes = flags & (WRITES | os.O_CREAT)
        path = self._step("make" if writes else "read", path)
        self._descriptor(path)
        new = bool(flags & os.O_CREAT) and not os.path.lexists(path)
        if new:
            self._room(path)
        seen = None if writes else self._seen(path)
        descriptor = os.open(path, flags, mode)
        here().descriptors[descriptor] = Open(descriptor, path, seen)
        if new:
            self.watch(here(), path)
            self._tell_late(path)
            self._note(path, lambda: os.path.exists(path) and os.unlink(path))
        return descriptor

    def read(self, descriptor: int, most: int) -> bytes:
        opened = here().descriptors[descriptor]
        if opened.seen is None:
            return os.read(descriptor, most)
        found, opened.seen = opened.seen[:most], opened.seen[most:]
        return found

    def write(self, descriptor: int, data: Any) -> int:
        return self._put(descriptor, lambda: os.write(descriptor, data))

    def pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        return self._put(descriptor, lambda: os.pwrite(descriptor, data, offset))

    def _put(self, descriptor: int, put: Callable[[], int]) -> int:
        path = self._step("write", here().descriptors[descriptor].path)
        self._room(path)
        if os.path.exists(path):  # neither it nor its folder has another name
            self._written(path)
            self._unsent(path)
        return put()

    def _unsent(self, path: str) -> None:
        """The content of a file is about to change, and the others see what it was."""
        path = os.path.abspath(path)
        if self.late_ns and path not in self._late:
            with open(path, "rb") as file:
                self._late[path] = Late(here().host, kernel().now_ns + UNSENT_NS, file.read())

    def fsync(self, descriptor: int) -> None:
        path = os.path.abspath(here().descriptors[descriptor].path)
        self._step("sync", path)
        self._room(path)
        self._sent(path)
        if os.path.isdir(path):
            self._changes = [c for c in self._changes if os.path.dirname(c.path) != path]
        else:
            self._contents.pop(path, None)

    def close(self, descriptor: int) -> None:
        closed = here().descriptors.pop(descriptor)
        self._sent(closed.path)
        closed.drop()

    def names(self) -> dict[str, Any]:
        """What the stand-in of `os` has from here; the disk is that of the world being played."""

        def ask(name: str) -> Callable[..., Any]:
            return lambda *args, **kwargs: getattr(WORLD.disk, name)(*args, **kwargs)

        names = ("replace", "unlink", "mkdir", "rmdir", "open", "read", "write", "pwrite", "fsync")
        found = {name: ask(name) for name in (*names, "close", "link")}
        found["listdir"] = ask("list")

        def look(name: str) -> Callable[[Any], bool]:
            def answered(path: Any) -> bool:
                try:
                    return bool(getattr(SimulatedPath(path), name)())
                except OSError:  # as those of `os.path`
                    return False

            return answered

        looks = {name: look(name) for name in ("exists", "is_file", "is_dir", "lexists")}
        path = StandIn(
            "posixpath",
            os.path,
            exists=looks["exists"],
            lexists=looks["lexists"],
            isfile=looks["is_file"],
            isdir=looks["is_dir"],
        )
        return {**found, "rename": found["replace"], "remove": found["unlink"], "path": path}


def _blocks(raw: bytes) -> list[bytes]:
    return [raw[at : at + BLOCK_BYTES] for at in range(0, len(raw), BLOCK_BYTES)]


def need_memory(nbytes: int) -> None:
    """Raises MemoryError where the process has no room for what is large."""
    if nbytes >= LARGE_BYTES and kernel().now_ns < here().own.get("no memory until", 0):
        raise MemoryError


@dataclass
class Open:
    """An open descriptor of a process. `seen`: what is left of another content that it reads."""

    number: int
    path: str
    seen: bytes | None = None

    def drop(self) -> None:
        """The process has closed it, or has ended."""
        os.close(self.number)


class WrittenFile:
    """A file that a process has opened to write."""

    def __init__(self, path: Any, mode: str, encoding: str | None) -> None:
        self._disk, self._text = WORLD.disk, "b" not in mode
        flags = os.O_WRONLY | os.O_CREAT
        flags |= os.O_APPEND if "a" in mode else os.O_EXCL if "x" in mode else os.O_TRUNC
        if "w" in mode and os.path.isfile(path):
            self._disk._written(os.fspath(path))
        self._descriptor = self._disk.open(path, flags, 0o666)
        self._encoding = encoding or "utf-8"

    def write(self, data: Any) -> int:
        given = data.encode(self._encoding) if self._text else data
        need_memory(len(given))
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


class ReadFile(io.BytesIO):
    """A file that a process has opened to read."""

    def __init__(self, path: Any) -> None:
        disk = WORLD.disk
        seen = disk.look("read", path)
        disk._descriptor(os.fspath(path))
        with open(path, "rb") as file:
            seen = file.read() if seen is None else seen
        need_memory(len(seen))
        super().__init__(seen)
        self._process = here()
        self._process.reads[id(self)] = os.fspath(path)

    def close(self) -> None:
        self._process.reads.pop(id(self), None)
        super().close()


def open_file(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
    """The builtin `open`."""
    if isinstance(path, int) or not kernel().current:
        return open(path, mode, *args, **kwargs)
    if set(mode) & set("wax+"):
        return WrittenFile(path, mode, kwargs.get("encoding"))
    if not os.path.abspath(path).startswith(WORLD.disk.root):
        WORLD.disk._descriptor(os.fspath(path))
        return open(path, mode, *args, **kwargs)
    file = ReadFile(path)
    return file if "b" in mode else io.TextIOWrapper(file, kwargs.get("encoding"))


def _asks(name: str) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(WORLD.disk, name)(self, *args, **kwargs)

    return call


class SimulatedPath(pathlib.PosixPath):
    """Of `pathlib`: what it asks and changes goes through the simulated disk."""

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        if kernel().current is not None:
            WORLD.disk.look("stat", self)
        return super().stat(follow_symlinks=follow_symlinks)

    def lexists(self) -> bool:
        """Of `os.path`."""
        try:
            self.lstat()
        except OSError:
            return False
        return True

    def iterdir(self) -> Iterator[Any]:
        return (self / name for name in WORLD.disk.list(self))

    rmdir = _asks("rmdir")

    def unlink(self, missing_ok: bool = False) -> None:
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

"""Hosts of one shared folder in one process, on virtual time.

`Store.host("a")` has the functions of `os` that work on files, so a module's `os` can be replaced
by it. Paths begin with a slash.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from tests.folder.host import Call, Host, Steps
from tests.folder.misbehaviour import Misbehaviour
from tests.folder.server import ROOT, ROOT_USER, Attributes, Server, User, fail

WANT = {os.O_RDONLY: os.R_OK, os.O_WRONLY: os.W_OK, os.O_RDWR: os.R_OK | os.W_OK}


class Hung(BaseException):
    """The server answers no more: this process never goes on."""


class Clock:
    """Virtual time. A scheduler of several hosts has its own `wait`, which plays the others."""

    now_s = 0.0

    def wait(self, seconds: float) -> None:
        """Raises Hung if the wait has no end."""
        if seconds == float("inf"):
            raise Hung
        self.now_s += seconds


class Store:
    """A server and its hosts."""

    def __init__(self, plan: Misbehaviour, clock: Any = None) -> None:
        """`clock`: has `now_s` and `wait(seconds)`, which is called before and after each call to
        the server."""
        self.plan, self.clock = plan, clock or Clock()
        self.server = Server(plan, lambda: self.clock.now_s)
        self.hosts: dict[str, Host] = {}

    def host(
        self, name: str, user: User = ROOT_USER, umask: int = 0o022, *, mended: bool = False
    ) -> StoreOs:
        """A process of a user on a host. Those of one host share what it keeps.

        `mended`: this host meets no faults and keeps nothing.
        """
        if name not in self.hosts:
            plan = Misbehaviour() if mended else self.plan
            self.hosts[name] = Host(name, plan, lambda: self.clock.now_s)
        return StoreOs(self, name, user, umask)

    def mend(self) -> None:
        """The disk has room again."""
        self.server.mend()

    def lose(self, name: str) -> None:
        """A host loses its power: what it has not sent is gone, and it keeps nothing."""
        del self.hosts[name]

    def run(self, steps: Steps) -> Any:
        """Run an operation to its end."""
        send: Callable[[Any], Any] = steps.send
        result: Any = None
        while True:
            try:
                asked = send(result)
            except StopIteration as end:
                return end.value
            send = steps.send
            if not isinstance(asked, Call):
                self.clock.wait(asked)
                result = None
                continue
            try:
                result = self.server.call(asked.op, *asked.given)
            except OSError as error:
                result, send = error, steps.throw


class StoreOs:
    """`os` for one process. Descriptors are its own; so is its umask."""

    def __init__(self, store: Store, name: str, user: User, umask: int) -> None:
        self._store, self._name, self._user, self._umask = store, name, user, umask
        self._open: dict[int, list[int]] = {}  # descriptor -> ino, place, flags
        self._last = 2

    @property
    def _host(self) -> Host:
        return self._store.hosts[self._name]

    def _do(self, op: str, *given: Any) -> Any:
        now_s = self._store.clock.now_s
        for host in [*self._store.hosts.values()]:  # another process may start a host meanwhile
            if host.unsent and not self._store.plan.silence_s(host.name, now_s):
                self._store.run(host.send_late())
        return self._store.run(getattr(self._host, op)(*given))

    # As the kernel walks a path: again, where a handle was stale.
    def _walk(self, path: str, act: Callable[[int, str], Any]) -> Any:
        for last in (False, True):
            try:
                *folders, name = os.fspath(path).strip("/").split("/")
                ino = ROOT
                for each in folders:
                    ino = self._do("lookup", self._user, ino, each).ino
                return act(ino, name)
            except OSError as error:
                error.filename = path
                if error.errno != errno.ESTALE or last:
                    raise
        return None

    def _find(self, path: str) -> Attributes:
        def act(parent: int, name: str) -> Attributes:
            return self._do("lookup", self._user, parent, name)

        return self._walk(path, act) if path.strip("/") else self._do("getattr", ROOT)

    def _lookup(self, parent: int, name: str) -> Attributes | None:
        try:
            return self._do("lookup", self._user, parent, name)
        except FileNotFoundError:
            return None

    def _must_be_free(self, parent: int, name: str) -> None:
        if self._lookup(parent, name) is not None:
            fail(errno.EEXIST)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        def act(parent: int, name: str) -> int:
            found = self._lookup(parent, name)
            if found is None and not flags & os.O_CREAT:
                fail(errno.ENOENT)
            if found is None:
                given = parent, name, mode & ~self._umask, bool(flags & os.O_EXCL)
                return self._do("create", self._user, *given).ino
            if flags & os.O_CREAT and flags & os.O_EXCL:
                fail(errno.EEXIST)
            self._do("open", self._user, found.ino, WANT[flags & os.O_ACCMODE])
            if flags & os.O_TRUNC:
                self._do("setattr", self._user, found.ino, {"size": 0})
            return found.ino

        self._last += 1
        self._open[self._last] = [self._walk(path, act), 0, flags]
        return self._last

    def read(self, descriptor: int, size: int) -> bytes:
        opened = self._open[descriptor]
        data = self.pread(descriptor, size, opened[1])
        opened[1] += len(data)
        return data

    def pread(self, descriptor: int, size: int, offset: int) -> bytes:
        return self._do("read", self._open[descriptor][0], offset, size)

    def write(self, descriptor: int, data: bytes) -> int:
        opened = self._open[descriptor]
        if opened[2] & os.O_APPEND:
            opened[1] = self._do("getattr", opened[0]).size
        written = self.pwrite(descriptor, data, opened[1])
        opened[1] += written
        return written

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        return self._do("write", self._open[descriptor][0], offset, data)

    def fsync(self, descriptor: int) -> None:
        self._do("flush", self._open[descriptor][0])

    def close(self, descriptor: int) -> None:
        ino, _, flags = self._open.pop(descriptor)
        try:
            if flags & os.O_ACCMODE:
                self._do("flush", ino)
        finally:
            self._do("release", ino)

    def fstat(self, descriptor: int) -> os.stat_result:
        return _stat(self._do("getattr", self._open[descriptor][0]))

    def stat(self, path: str) -> os.stat_result:
        return _stat(self._find(path))

    def listdir(self, path: str) -> list[str]:
        return [name for name, _ in self._do("readdir", self._user, self._find(path).ino)]

    def link(self, source: str, target: str) -> None:
        def act(parent: int, name: str) -> None:
            ino = self._find(source).ino
            self._must_be_free(parent, name)
            self._do("link", self._user, ino, parent, name)

        self._walk(target, act)

    def rename(self, source: str, target: str) -> None:
        def act(parent: int, name: str) -> None:
            self._do("lookup", self._user, parent, name)

            def to(folder: int, new: str) -> None:
                self._lookup(folder, new)
                self._do("rename", self._user, parent, name, folder, new)

            self._walk(target, to)

        self._walk(source, act)

    replace = rename

    def unlink(self, path: str) -> None:
        def act(parent: int, name: str) -> None:
            self._do("lookup", self._user, parent, name)
            self._do("unlink", self._user, parent, name)

        self._walk(path, act)

    def mkdir(self, path: str, mode: int = 0o777) -> None:
        def act(parent: int, name: str) -> None:
            self._must_be_free(parent, name)
            self._do("mkdir", self._user, parent, name, mode & ~self._umask)

        self._walk(path, act)

    def rmdir(self, path: str) -> None:
        self._walk(path, lambda parent, name: self._do("rmdir", self._user, parent, name))

    def chmod(self, path: str, mode: int) -> None:
        self._do("setattr", self._user, self._find(path).ino, {"mode": mode})


def _stat(found: Attributes) -> os.stat_result:
    second = found.mtime_ns // 10**9
    kept = (found.mode, found.ino, 1, found.nlink, found.uid, found.gid, found.size)
    return os.stat_result((*kept, second, second, second))

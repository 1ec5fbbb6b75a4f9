"""The truth of a shared folder: what its server has. It knows neither hosts' caches nor faults."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from tests.folder.misbehaviour import Misbehaviour

ROOT = 1
NODE_BYTES = 256  # of the disk, of a file or a folder without content


class User(NamedTuple):
    """Who asks. Root may do everything."""

    uid: int = 0
    gid: int = 0


ROOT_USER = User()


class Attributes(NamedTuple):
    """Of a file or a folder. `change` grows with each change of its content or attributes."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    change: int
    mtime_ns: int

    def allows(self, user: User, want: int) -> bool:
        """`want`: of os.R_OK, os.W_OK, os.X_OK."""
        shift = 6 if user.uid == self.uid else 3 if user.gid == self.gid else 0
        return user.uid == 0 or self.mode >> shift & want == want


@dataclass
class Node:
    """A file, or a folder with its names."""

    ino: int
    mode: int
    uid: int
    gid: int
    nlink: int = 1
    change: int = 0
    mtime_ns: int = 0
    data: bytearray = field(default_factory=bytearray)
    names: dict[str, int] = field(default_factory=dict)

    @property
    def attributes(self) -> Attributes:
        size = len(self.data)
        kept = (self.ino, self.mode, self.nlink, self.uid, self.gid, size, self.change)
        return Attributes(*kept, self.mtime_ns)


def fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))


class Server:
    """Does one call after another, whole. Calls raise OSError, and ESTALE for a node that is gone.

    Attributes:
        room: bytes left on the disk; None: without end.
        quota: bytes left to each user; None: without end.
        calls: how many were done.
    """

    def __init__(self, plan: Misbehaviour, now: Callable[[], float]) -> None:
        """`now`: the server's clock, in s."""
        self.plan, self._now = plan, now
        self.room, self.quota = plan.room_bytes, plan.quota_bytes
        self.calls = 0
        self._lock = threading.Lock()
        self._used: dict[int, int] = {}
        self._last = ROOT
        self._nodes = {ROOT: Node(ROOT, stat.S_IFDIR | 0o777, 0, 0, 2)}

    def call(self, op: str, *given: Any) -> Any:
        """Do an operation: the name of a method below, and what it takes."""
        with self._lock:
            self.calls += 1
            return getattr(self, f"_do_{op}")(*given)

    def mend(self) -> None:
        """There is room again."""
        self.room = self.quota = None

    # ---- parts -----------------------------------------------------------------------

    def _node(self, ino: int) -> Node:
        return self._nodes.get(ino) or fail(errno.ESTALE)

    def _folder(self, user: User, ino: int, want: int = os.X_OK) -> Node:
        node = self._node(ino)
        if not stat.S_ISDIR(node.mode):
            fail(errno.ENOTDIR)
        if not node.attributes.allows(user, want):
            fail(errno.EACCES)
        return node

    def _named(self, user: User, parent: int, name: str, want: int = os.X_OK) -> tuple[Node, Node]:
        folder = self._folder(user, parent, want)
        if name not in folder.names:
            fail(errno.ENOENT)
        return folder, self._nodes[folder.names[name]]

    def _changed(self, *nodes: Node) -> None:
        for node in nodes:
            node.change += 1
            node.mtime_ns = int(self._now() * 1e9)

    def _fits(self, uid: int, size: int) -> tuple[int, int]:
        """How many of `size` bytes there is room for, and the error if it is not all."""
        used = self._used.get(uid, 0)
        if self.quota is not None and used + size > self.quota:
            return max(0, self.quota - used), errno.EDQUOT
        if self.room is not None and sum(self._used.values()) + size > self.room:
            return max(0, self.room - sum(self._used.values())), errno.ENOSPC
        return size, 0

    def _take(self, uid: int, size: int) -> None:
        self._used[uid] = self._used.get(uid, 0) + size

    def _new(self, user: User, parent: int, name: str, mode: int) -> Node:
        folder = self._folder(user, parent, os.W_OK | os.X_OK)
        if error := self._fits(user.uid, NODE_BYTES)[1]:
            fail(error)
        self._take(user.uid, NODE_BYTES)
        self._last += 1
        node = self._nodes[self._last] = Node(self._last, mode, *user)
        folder.names[name] = node.ino
        self._changed(folder, node)
        return node

    def _drop(self, node: Node) -> None:
        node.nlink -= 1
        self._changed(node)
        if node.nlink <= (1 if stat.S_ISDIR(node.mode) else 0):
            self._take(node.uid, -NODE_BYTES - len(node.data))
            del self._nodes[node.ino]

    # ---- operations --------------------------------------------------------------------

    def _do_lookup(self, user: User, parent: int, name: str) -> Attributes:
        return self._named(user, parent, name)[1].attributes

    def _do_getattr(self, ino: int) -> Attributes:
        return self._node(ino).attributes

    def _do_setattr(self, user: User, ino: int, changes: dict[str, int]) -> Attributes:
        """`changes`: of mode, uid, gid, size."""
        node = self._node(ino)
        if "size" in changes and not node.attributes.allows(user, os.W_OK):
            fail(errno.EACCES)
        if {"mode", "uid", "gid"} & {*changes} and user.uid not in (0, node.uid):
            fail(errno.EPERM)
        if "size" in changes:
            more = changes["size"] - len(node.data)
            if more > 0 and (error := self._fits(node.uid, more)[1]):
                fail(error)
            self._take(node.uid, more)
            node.data = node.data[: changes["size"]].ljust(changes["size"], b"\0")
        if "mode" in changes:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(changes["mode"])
        node.uid, node.gid = changes.get("uid", node.uid), changes.get("gid", node.gid)
        self._changed(node)
        return node.attributes

    def _do_create(self, user: User, parent: int, name: str, mode: int) -> Attributes:
        if name in self._folder(user, parent).names:
            fail(errno.EEXIST)
        return self._new(user, parent, name, stat.S_IFREG | stat.S_IMODE(mode)).attributes

    def _do_ensure(self, user: User, parent: int, name: str, mode: int) -> Attributes:
        """Create, or find what is there."""
        found = self._folder(user, parent).names.get(name)
        if found is not None:
            return self._nodes[found].attributes
        return self._do_create(user, parent, name, mode)

    def _do_mkdir(self, user: User, parent: int, name: str, mode: int) -> Attributes:
        if name in self._folder(user, parent).names:
            fail(errno.EEXIST)
        node = self._new(user, parent, name, stat.S_IFDIR | stat.S_IMODE(mode))
        node.nlink = 2
        return node.attributes

    def _do_link(self, user: User, ino: int, parent: int, name: str) -> Attributes:
        node, folder = self._node(ino), self._folder(user, parent, os.W_OK | os.X_OK)
        if name in folder.names:
            fail(errno.EEXIST)
        if self.plan.apart and ino not in folder.names.values():
            fail(errno.EXDEV)
        folder.names[name] = ino
        node.nlink += 1
        self._changed(folder, node)
        return node.attributes

    def _do_unlink(self, user: User, parent: int, name: str) -> None:
        folder, node = self._named(user, parent, name, os.W_OK | os.X_OK)
        if stat.S_ISDIR(node.mode):
            fail(errno.EISDIR)
        del folder.names[name]
        self._changed(folder)
        self._drop(node)

    def _do_rmdir(self, user: User, parent: int, name: str) -> None:
        folder, node = self._named(user, parent, name, os.W_OK | os.X_OK)
        if not stat.S_ISDIR(node.mode):
            fail(errno.ENOTDIR)
        if node.names:
            fail(errno.ENOTEMPTY)
        del folder.names[name]
        self._changed(folder)
        self._drop(node)

    def _do_rename(self, user: User, parent: int, name: str, to: int, new: str) -> None:
        folder, node = self._named(user, parent, name, os.W_OK | os.X_OK)
        target = self._folder(user, to, os.W_OK | os.X_OK)
        if self.plan.apart and to != parent:
            fail(errno.EXDEV)
        old = target.names.get(new)
        if old == node.ino:
            return
        if old is not None and stat.S_ISDIR(self._nodes[old].mode):
            (self._do_rmdir if stat.S_ISDIR(node.mode) else lambda *_: fail(errno.EISDIR))(
                user, to, new
            )
        elif old is not None:
            self._do_unlink(user, to, new)
        del folder.names[name]
        target.names[new] = node.ino
        self._changed(folder, target, node)

    def _do_readdir(self, user: User, ino: int) -> list[tuple[str, Attributes]]:
        names = self._folder(user, ino, os.R_OK).names
        return [(name, self._nodes[each].attributes) for name, each in names.items()]

    def _do_read(self, ino: int) -> tuple[bytes, Attributes]:
        node = self._node(ino)
        return bytes(node.data), node.attributes

    def _do_write(self, ino: int, offset: int, data: bytes) -> tuple[int, int, Attributes]:
        """Returns how many bytes were written, and the error if it was not all of them."""
        node = self._node(ino)
        more = max(0, offset + len(data) - len(node.data))
        taken, error = self._fits(node.uid, more)
        written = len(data) - (more - taken)
        if written > 0:
            self._take(node.uid, max(0, offset + written - len(node.data)))
            node.data.extend(bytes(max(0, offset - len(node.data))))
            node.data[offset : offset + written] = data[:written]
            self._changed(node)
        return max(0, written), error, node.attributes

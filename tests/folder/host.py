"""One host of a shared folder: what it keeps, what it has not sent yet, and what it sees.

Each operation is a generator. It yields a number, the seconds to wait, or a `Call` to the server,
whose result is sent in or whose OSError is thrown in. So the same steps run on virtual time
(`store`) and behind FUSE (`mount`). As in the kernel, an operation on a name is a `lookup` first.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.folder.misbehaviour import Misbehaviour
from tests.folder.server import ROOT_USER, Attributes, User, fail

UNSENT_S = 30.0  # what is written is sent by then though its file stays open
PIECE_BYTES = 1 << 16  # what is sent at once: another host may see a file between two pieces
SILLY = ".nfs"


class Call(NamedTuple):
    op: str
    given: tuple[Any, ...]


Steps = Generator[Any, Any, Any]


class Kept(NamedTuple):
    """What a host believes, until when."""

    what: Any
    until_s: float


@dataclass
class Opened:
    """A file of this host that is open, or has something unsent.

    Attributes:
        count: how often it is open.
        pages: its content as last read, and its change then.
        unsent: (offset, bytes) in order.
        since_s: when the first of them was written.
        error: of what could not be sent; the next close or sync tells it.
        at_once: after such an error each write is sent at once, so that its caller is told.
        silly: (folder, name) under which it lies since its name was removed here.
    """

    count: int = 0
    pages: tuple[bytes, int] | None = None
    unsent: list[tuple[int, bytes]] = field(default_factory=list)
    since_s: float = 0.0
    error: int = 0
    at_once: bool = False
    silly: tuple[int, str] | None = None


class Host:
    """The client of a folder on one host.

    Args:
        name: of the host.
        plan: what goes wrong.
        now: this host's clock, in s.
        protected: links to files of others, which one may not write, are refused, as Linux does.
    """

    def __init__(
        self, name: str, plan: Misbehaviour, now: Callable[[], float], protected: bool = True
    ) -> None:
        self.name, self._plan, self._now, self._protected = name, plan, now, protected
        self._random = random.Random(f"{plan.seed} {name}")
        self._attributes: dict[int, Kept] = {}
        self._names: dict[tuple[int, str], Kept] = {}  # of an ino; None: there is no such name
        self._lists: dict[int, Kept] = {}
        self._where: dict[int, tuple[int, str]] = {}  # under which name an ino was looked up last
        self._files: dict[int, Opened] = {}
        self._silly = 0

    # ---- the wire and what is kept -------------------------------------------------------

    def _ask(self, op: str, *given: Any) -> Steps:
        fate = self._plan.fate(self.name, op, self._now(), self._random)
        yield fate.before_s
        if fate.instead:
            fail(fate.instead)
        try:
            result = yield Call(op, given)
        except OSError:
            yield fate.after_s
            raise
        yield fate.after_s
        if fate.told:
            fail(fate.told)
        return result

    def _keep(self, what: Any) -> Kept:
        return Kept(what, self._now() + self._random.uniform(0, self._plan.keep_s))

    def _learn(self, found: Attributes) -> Attributes:
        self._attributes[found.ino] = self._keep(found)
        return found

    def _forget(self, parent: int, name: str) -> None:
        """This host changes a name: what it does is the server's to decide, and told to it."""
        self._names.pop((parent, name), None)
        self._lists.pop(parent, None)
        self._attributes.pop(parent, None)

    def _gone(self, ino: int) -> None:
        """The server does not know the handle, or its name leads elsewhere: look again."""
        self._attributes.pop(ino, None)
        where = self._where.pop(ino, None)
        if where is not None:
            self._names.pop(where, None)

    def _of(self, ino: int, op: str, *given: Any) -> Steps:
        """Ask by the handle of a file."""
        try:
            return (yield from self._ask(op, *given))
        except OSError as error:
            if error.errno == errno.ESTALE:
                self._gone(ino)
            raise

    def _fresh(self, kept: Kept | None) -> bool:
        return kept is not None and self._now() < kept.until_s

    # ---- names --------------------------------------------------------------------------

    def lookup(self, user: User, parent: int, name: str) -> Steps:
        """The attributes of what has this name, as far as this host knows."""
        kept = self._names.get((parent, name))
        if not self._fresh(kept):
            try:
                found = yield from self._of(parent, "lookup", user, parent, name)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    self._names[parent, name] = self._keep(None)
                raise
            self._names[parent, name] = self._keep(found.ino)
            self._learn(found)
        elif kept.what is None:
            fail(errno.ENOENT)
        else:
            found = yield from self.getattr(kept.what)
        self._where[found.ino] = parent, name
        return self._here(found)

    def readdir(self, user: User, ino: int) -> Steps:
        """The (name, attributes) in a folder, as last listed. Names of removed files that are
        open here are among them, as on NFS."""
        kept = self._lists.get(ino)
        if not self._fresh(kept):
            found = yield from self._of(ino, "readdir", user, ino)
            kept = self._lists[ino] = self._keep(found)
        return kept.what

    def _change(self, parent: int, name: str, op: str, *given: Any) -> Steps:
        """A change of a name, which the server decides."""
        self._forget(parent, name)
        try:
            return (yield from self._of(parent, op, *given))
        finally:
            self._forget(parent, name)  # it may have been looked up meanwhile

    def create(self, user: User, parent: int, name: str, mode: int, exclusive: bool) -> Steps:
        """Make a file, or find it unless `exclusive`, and open it. Returns its attributes."""
        op = "create" if exclusive else "ensure"
        found = yield from self._change(parent, name, op, user, parent, name, mode)
        self._opened(found.ino).count += 1
        self._where[found.ino] = parent, name
        return self._here(self._learn(found))

    def mkdir(self, user: User, parent: int, name: str, mode: int) -> Steps:
        found = yield from self._change(parent, name, "mkdir", user, parent, name, mode)
        return self._learn(found)

    def link(self, user: User, ino: int, parent: int, name: str) -> Steps:
        """A further name of a file."""
        found = yield from self.getattr(ino)
        safe = stat.S_ISREG(found.mode) and found.allows(user, os.R_OK | os.W_OK)
        if self._protected and user.uid not in (0, found.uid) and not safe:
            fail(errno.EPERM)
        self._attributes.pop(ino, None)
        found = yield from self._change(parent, name, "link", user, ino, parent, name)
        return self._learn(found)

    def unlink(self, user: User, parent: int, name: str) -> Steps:
        """Remove a name. A file that is open here gets a silly name until it is closed."""
        kept = self._names.get((parent, name))
        if kept is not None and kept.what is not None:
            self._attributes.pop(kept.what, None)
            file = self._files.get(kept.what)
            if file is not None and file.count and file.silly is None:
                yield from self._hide(user, parent, name, file)
                return
        yield from self._change(parent, name, "unlink", user, parent, name)

    def _hide(self, user: User, parent: int, name: str, file: Opened) -> Steps:
        self._silly += 1
        silly = f"{SILLY}{self.name}{self._silly:08x}"
        yield from self._change(parent, name, "rename", user, parent, name, parent, silly)
        file.silly = parent, silly

    def rmdir(self, user: User, parent: int, name: str) -> Steps:
        yield from self._change(parent, name, "rmdir", user, parent, name)

    def rename(self, user: User, parent: int, name: str, to: int, new: str) -> Steps:
        """Rename, over what has the new name."""
        over = self._names.get((to, new))
        file = self._files.get(over.what) if over is not None else None
        if file is not None and file.count and file.silly is None:
            yield from self._hide(user, to, new, file)
        self._forget(to, new)
        try:
            yield from self._change(parent, name, "rename", user, parent, name, to, new)
        finally:
            self._forget(to, new)

    # ---- attributes ---------------------------------------------------------------------

    def getattr(self, ino: int) -> Steps:
        """As kept, or the server's."""
        kept = self._attributes.get(ino)
        if not self._fresh(kept):
            found = self._learn((yield from self._of(ino, "getattr", ino)))
        else:
            found = kept.what
        return self._here(found)

    def _here(self, found: Attributes) -> Attributes:
        """With what this host has written and not sent."""
        file = self._files.get(found.ino)
        if file is None or not file.unsent:
            return found
        return found._replace(size=max(found.size, *(at + len(d) for at, d in file.unsent)))

    def setattr(self, user: User, ino: int, changes: dict[str, int]) -> Steps:
        """`changes`: of mode, uid, gid, size."""
        yield from self._send(ino)
        self._attributes.pop(ino, None)
        return self._learn((yield from self._of(ino, "setattr", user, ino, changes)))

    # ---- content ------------------------------------------------------------------------

    def _opened(self, ino: int) -> Opened:
        return self._files.setdefault(ino, Opened())

    def open(self, user: User, ino: int, want: int) -> Steps:
        """Open what was looked up. The server is asked: content and name are fresh here.

        Raises ESTALE where the name leads elsewhere by now; its caller looks the name up anew.
        """
        parent, name = self._where.get(ino, (ino, ""))
        if name and not self._silly_file(ino):
            self._names.pop((parent, name), None)
            try:
                found = yield from self._of(ino, "lookup", user, parent, name)
            except OSError as error:
                fail(errno.ESTALE if error.errno == errno.ENOENT else error.errno)
            if found.ino != ino:
                self._gone(ino)
                fail(errno.ESTALE)
            self._names[parent, name] = self._keep(ino)
        else:
            found = yield from self._of(ino, "getattr", ino)
        if not found.allows(user, want):
            fail(errno.EACCES)
        self._learn(found)
        self._opened(ino).count += 1

    def _silly_file(self, ino: int) -> bool:
        return ino in self._files and self._files[ino].silly is not None

    def read(self, ino: int, offset: int, size: int) -> Steps:
        """Of an open file: as last read, while its attributes are kept."""
        file = self._opened(ino)
        kept = self._attributes.get(ino)
        if not self._fresh(kept):
            kept = Kept(self._learn((yield from self._of(ino, "getattr", ino))), 0)
        if file.pages is None or file.pages[1] != kept.what.change:
            data, found = yield from self._of(ino, "read", ino)
            self._learn(found)
            file.pages = data, found.change
        content = file.pages[0]
        if file.unsent:
            whole = bytearray(content)
            for at, data in file.unsent:
                whole.extend(bytes(max(0, at - len(whole))))
                whole[at : at + len(data)] = data
            content = bytes(whole)
        return content[offset : offset + size]

    def write(self, ino: int, offset: int, data: bytes) -> Steps:
        """Keep what is written until it is sent. Returns how many bytes were taken."""
        file = self._opened(ino)
        if not file.at_once:
            file.since_s = file.since_s if file.unsent else self._now()
            file.unsent.append((offset, bytes(data)))
            return len(data)
        taken, error = yield from self._put(ino, file, offset, data)
        return taken or fail(error)

    def _put(self, ino: int, file: Opened, offset: int, data: bytes) -> Steps:
        taken, error, found = yield from self._of(ino, "write", ino, offset, data)
        self._learn(found)
        file.pages = None
        return taken, error

    def _send(self, ino: int) -> Steps:
        """Send what is unsent. What fails is dropped, and told at the next close or sync."""
        file = self._opened(ino)
        while file.unsent:
            first = file.unsent[0]
            at, data = first[0], first[1][:PIECE_BYTES]
            try:
                error = (yield from self._put(ino, file, at, data))[1]
            except OSError as failed:
                error = failed.errno
            if error:
                file.error, file.at_once = error, True
                file.unsent.clear()
            elif file.unsent and file.unsent[0] is first:  # not sent by another meanwhile
                rest = at + len(data), first[1][PIECE_BYTES:]
                file.unsent[:1] = [rest] if rest[1] else []

    def flush(self, ino: int) -> Steps:
        """At a sync, and when a writer closes: send all, and tell what failed since the last."""
        yield from self._send(ino)
        file = self._opened(ino)
        error, file.error = file.error, 0
        if error:
            fail(error)

    def release(self, ino: int) -> Steps:
        """The last descriptor of an open is closed."""
        file = self._opened(ino)
        file.count -= 1
        if file.count <= 0:
            del self._files[ino]
            if file.silly is not None:
                yield from self._change(*file.silly, "unlink", ROOT_USER, *file.silly)

    @property
    def unsent(self) -> bool:
        return bool(self._files) and any(file.unsent for file in self._files.values())

    def send_late(self) -> Steps:
        """Send what was written long ago. To be called now and then."""
        for ino, file in [*self._files.items()]:
            if file.unsent and self._now() - file.since_s >= UNSENT_S:
                yield from self._send(ino)

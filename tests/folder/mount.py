"""The shared folder behind FUSE: one process for the server, and one for each host that mounts it.

    python -m tests.folder.mount serve SOCKET --seed 7 --kinds "lost reply,hang"
    python -m tests.folder.mount host NAME SOCKET POINT

The second runs where the host is: in its mount namespace, if the host has one. The kernel keeps
nothing of this folder: names and attributes have no time, and files are read past its cache.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import math
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Client, Connection, Listener
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.folder.host import Call, Host, Steps
from tests.folder.misbehaviour import KINDS, Misbehaviour
from tests.folder.server import ROOT_USER, Attributes, Server, User
from tests.folder.store import WANT

START_LIMIT_S = 120.0  # a hang; on two cores that sixty processes wanted it took over 30 s


def why_not() -> str | None:
    """Why this machine cannot mount; None if it can."""
    try:
        import pyfuse3  # noqa: F401
    except ImportError:
        return "needs pyfuse3 (pip install '.[fuse]', with Debian's libfuse3-dev)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK) or os.geteuid() != 0:
        return "needs the right to mount by /dev/fuse"
    return None


# ---- the server --------------------------------------------------------------------------


def serve(path: str, plan: Misbehaviour, pace: float) -> None:
    """Serve hosts at a Unix socket, for ever. `pace`: seconds of the folder in one second."""
    began = time.monotonic()
    server = Server(plan, lambda: (time.monotonic() - began) * pace)

    def answer(host: Connection) -> None:
        with contextlib.suppress(EOFError, OSError):
            host.send((plan, began, pace))
            while True:
                op, given = host.recv()
                try:
                    done = server.mend() if op == "mend" else server.call(op, *given)
                except OSError as error:
                    done = error
                host.send(done)

    with Listener(path, "AF_UNIX") as listener:
        while True:
            threading.Thread(target=answer, args=(listener.accept(),), daemon=True).start()


# ---- a host ------------------------------------------------------------------------------


def run_host(name: str, path: str, point: str, mended: bool) -> None:
    """Mount, and serve the kernel until unmounted. `mended`: this host meets no faults."""
    import pyfuse3
    import trio

    class Folder(pyfuse3.Operations):
        """What the kernel asks, as steps of a `Host`."""

        enable_writeback_cache = False

        def __init__(self) -> None:
            super().__init__()
            self._server = Client(path, "AF_UNIX")
            plan, began, self._pace = self._server.recv()
            plan = Misbehaviour() if mended else plan
            now = lambda: (time.monotonic() - began) * self._pace  # noqa: E731
            self.host = Host(name, plan, now)
            self._handles: dict[int, Any] = {}
            self._last = 0

        async def run(self, steps: Steps) -> Any:
            """Run an operation to its end. Others of this host go on while it waits."""
            result, send = None, steps.send
            try:
                while True:
                    asked = send(result)
                    send = steps.send
                    if not isinstance(asked, Call):
                        result = None
                        await trio.sleep(asked / self._pace if asked < math.inf else math.inf)
                        continue
                    self._server.send(asked)
                    result = self._server.recv()
                    if isinstance(result, OSError):
                        send = steps.throw
            except StopIteration as end:
                return end.value
            except OSError as error:
                raise pyfuse3.FUSEError(error.errno) from None

        async def send_late(self) -> None:
            while True:
                await trio.sleep(1 / self._pace)
                with contextlib.suppress(pyfuse3.FUSEError):
                    await self.run(self.host.send_late())

        def _handle(self, what: Any) -> int:
            self._last += 1
            self._handles[self._last] = what
            return self._last

        async def lookup(self, parent: int, name: bytes, ctx: Any) -> Any:
            found = await self.run(self.host.lookup(_user(ctx), parent, os.fsdecode(name)))
            return _entry(found)

        async def getattr(self, inode: int, ctx: Any) -> Any:
            return _entry(await self.run(self.host.getattr(inode)))

        async def setattr(self, inode: int, attr: Any, fields: Any, fh: Any, ctx: Any) -> Any:
            changes = {
                key: getattr(attr, f"st_{key}")
                for key in ("mode", "uid", "gid", "size")
                if getattr(fields, f"update_{key}")
            }
            return _entry(await self.run(self.host.setattr(_user(ctx), inode, changes)))

        async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> Any:
            steps = self.host.mkdir(_user(ctx), parent, os.fsdecode(name), mode & ~ctx.umask)
            return _entry(await self.run(steps))

        async def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:
            await self.run(self.host.rmdir(_user(ctx), parent, os.fsdecode(name)))

        async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
            await self.run(self.host.unlink(_user(ctx), parent, os.fsdecode(name)))

        async def rename(
            self, parent: int, name: bytes, to: int, new: bytes, flags: int, ctx: Any
        ) -> None:
            if flags:
                raise pyfuse3.FUSEError(errno.EINVAL)  # as on NFS
            given = parent, os.fsdecode(name), to, os.fsdecode(new)
            await self.run(self.host.rename(_user(ctx), *given))

        async def link(self, inode: int, parent: int, name: bytes, ctx: Any) -> Any:
            steps = self.host.link(_user(ctx), inode, parent, os.fsdecode(name))
            return _entry(await self.run(steps))

        async def access(self, inode: int, mode: int, ctx: Any) -> bool:
            return (await self.run(self.host.getattr(inode))).allows(_user(ctx), mode)

        def _info(self, inode: int, flags: int) -> Any:
            handle = self._handle((inode, bool(flags & os.O_ACCMODE)))
            return pyfuse3.FileInfo(fh=handle, direct_io=True, keep_cache=False)

        async def open(self, inode: int, flags: int, ctx: Any) -> Any:
            await self.run(self.host.open(_user(ctx), inode, WANT[flags & os.O_ACCMODE]))
            if flags & os.O_TRUNC:
                await self.run(self.host.setattr(_user(ctx), inode, {"size": 0}))
            return self._info(inode, flags)

        async def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
            given = os.fsdecode(name), mode & ~ctx.umask, bool(flags & os.O_EXCL)
            found = await self.run(self.host.create(_user(ctx), parent, *given))
            return self._info(found.ino, flags), _entry(found)

        async def read(self, fh: int, offset: int, size: int) -> bytes:
            return await self.run(self.host.read(self._handles[fh][0], offset, size))

        async def write(self, fh: int, offset: int, data: bytes) -> int:
            return await self.run(self.host.write(self._handles[fh][0], offset, data))

        async def flush(self, fh: int) -> None:
            inode, writes = self._handles[fh]
            if writes:
                await self.run(self.host.flush(inode))

        async def fsync(self, fh: int, datasync: bool) -> None:
            await self.flush(fh)

        async def release(self, fh: int) -> None:
            await self.run(self.host.release(self._handles.pop(fh)[0]))

        async def opendir(self, inode: int, ctx: Any) -> int:
            return self._handle(await self.run(self.host.readdir(_user(ctx), inode)))

        async def readdir(self, fh: int, start: int, token: Any) -> None:
            for number, (name, found) in enumerate(self._handles[fh][start:], start + 1):
                if not pyfuse3.readdir_reply(token, os.fsencode(name), _entry(found), number):
                    break

        async def releasedir(self, fh: int) -> None:
            del self._handles[fh]

        async def fsyncdir(self, fh: int, datasync: bool) -> None:
            pass

    def _user(ctx: Any) -> User:
        return User(ctx.uid, ctx.gid)

    def _entry(found: Attributes) -> Any:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_nlink = found.ino, found.mode, found.nlink
        entry.st_uid, entry.st_gid, entry.st_size = found.uid, found.gid, found.size
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = found.mtime_ns
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(folder.send_late)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()

    folder = Folder()
    options = {*pyfuse3.default_options, f"fsname=folder-{name}", "allow_other"}
    pyfuse3.init(folder, point, options - {"default_permissions"})
    trio.run(main)


# ---- for tests ----------------------------------------------------------------------------


class Mounted:
    """A folder with a server and hosts, each a process; a context manager that ends them all.

    Args:
        at: a folder of this machine, for the socket and the mount points.
        plan: what goes wrong.
        pace: seconds of the folder in one second of this machine.
    """

    def __init__(self, at: Path, plan: Misbehaviour, pace: float = 1.0) -> None:
        self.at, self.socket, self.pace = at, str(at / "server"), pace
        at.mkdir(exist_ok=True)
        self.hosts: dict[str, tuple[Path, BaseProcess]] = {}
        self._server = self._start(serve, self.socket, plan, pace)
        _wait_until(self._listens, self._server)

    def __enter__(self) -> Mounted:
        return self

    def __exit__(self, *_: object) -> None:
        for name in [*self.hosts]:
            self.lose(name)
        self._server.kill()
        self._server.join()

    def _listens(self) -> bool:
        """Whether the server takes hosts: a moment later than its socket has a name."""
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            Client(self.socket, "AF_UNIX").close()
            return True
        return False

    def _start(self, target: Any, *given: Any) -> BaseProcess:
        process = get_context("fork").Process(target=target, args=given, daemon=True)
        process.start()
        return process

    def mount(self, name: str, *, mended: bool = False) -> Path:
        """The mount point of a new host. `mended`: this host meets no faults and keeps nothing."""
        point = self.at / name
        point.mkdir(exist_ok=True)
        process = self._start(run_host, name, self.socket, str(point), mended)
        self.hosts[name] = point, process
        mounts = Path("/proc/self/mounts")  # a look at the folder itself may fail, or hang
        _wait_until(lambda: f" {point} fuse" in mounts.read_text(), process)
        return point

    def lose(self, name: str) -> None:
        """A host loses its power: what it has not sent is gone."""
        point, process = self.hosts.pop(name)
        process.kill()  # which ends what hangs, with ENOTCONN
        process.join()
        subprocess.run(["umount", "--lazy", str(point)], check=True, timeout=START_LIMIT_S)

    def host(
        self, name: str, user: User = ROOT_USER, umask: int = 0o022, *, mended: bool = False
    ) -> MountOs:
        """As `Store.host`."""
        if name not in self.hosts:
            self.mount(name, mended=mended)
        return MountOs(self.hosts[name][0], user, umask)

    def mend(self) -> None:
        """The disk has room again."""
        with Client(self.socket, "AF_UNIX") as server:
            server.recv()
            server.send(("mend", ()))
            server.recv()


class MountOs:
    """`os` for a user of one mount point, with the paths of `store.StoreOs`."""

    def __init__(self, point: Path, user: User, umask: int) -> None:
        self._point, self._user, self._umask = point, user, umask

    def __getattr__(self, op: str) -> Callable[..., Any]:
        def act(*given: Any, **named: Any) -> Any:
            paths = [f"{self._point}{g}" if isinstance(g, str) else g for g in given]
            before = os.umask(self._umask)
            try:
                with contextlib.nullcontext() if self._user == ROOT_USER else _as(self._user):
                    return getattr(os, op)(*paths, **named)
            finally:
                os.umask(before)

        return act


@contextlib.contextmanager
def _as(user: User) -> Iterator[None]:
    """All threads must be able to follow: none may hang in the folder."""
    os.setegid(user.gid)
    os.seteuid(user.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def _wait_until(there: Callable[[], bool], process: BaseProcess) -> None:
    end_s = time.monotonic() + START_LIMIT_S
    while not there():
        if not process.is_alive() or time.monotonic() > end_s:
            process.kill()
            raise RuntimeError(f"the shared folder did not start: exit code {process.exitcode}")
        time.sleep(0.005)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    server = commands.add_parser("serve", help="the server's process")
    server.add_argument("socket")
    server.add_argument("--seed", type=int, default=0)
    server.add_argument("--kinds", help=f"with commas, of: {', '.join(KINDS)}; otherwise drawn")
    server.add_argument("--pace", type=float, default=1.0, help="seconds of the folder in a second")
    host = commands.add_parser("host", help="a host's process")
    for word in ("name", "socket", "point"):
        host.add_argument(word)
    host.add_argument("--mended", action="store_true", help="no faults for this host")
    args = parser.parse_args(argv)
    if args.command == "serve":
        kinds = None if args.kinds is None else [k for k in args.kinds.split(",") if k]
        serve(args.socket, Misbehaviour.drawn(args.seed, kinds), args.pace)
    else:
        run_host(args.name, args.socket, args.point, args.mended)


if __name__ == "__main__":
    main()

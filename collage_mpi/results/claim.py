"""Lets one process at a time write to a run's folder: the process that holds the claim.

A claim is a file `claim-N`, created with O_EXCL, which works on file servers too. The file begins
with a counter, which a thread of the holder increases every second, and then names the holder.
Another process that watches the counter compares neither clocks of two machines nor file times. A
claim is dead when its counter has not changed for STILL_S on the watcher's clock. It is dead at
once if its process was on this machine and has ended.

A process that takes over creates `claim-N+1` and removes the older claims. If the former holder was
only suspended, it then finds its claim gone, because it looks before each rename. Before the new
holder reads the folder, it removes the former holder's temporary files
(`system.files.remove_leftovers`). So a rename by the former holder either came before and is seen,
or fails.
"""

from __future__ import annotations

import errno
import json
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from platform import node

from collage_mpi.errors import CollageError, EnvironmentFault, ExitCode
from collage_mpi.system.process_tree import ProcessId, has_ended, this_process
from collage_mpi.system.records import read_json

BEAT_S = 1.0
# Thirty beats. File servers pause for seconds, not for 30 s, and Linux asks the server again at
# every open. A wrong verdict would end the other session early, but would lose no row.
STILL_S = 30.0
LOOK_S = 5.0  # for processes that only read: their wrong verdict costs nothing
_POLL_S = 0.2
_TELL_AFTER_S = 2.0  # the counter of a live claim changes sooner

_NAME = re.compile(r"claim-(\d{1,9})")
_COUNTER = b"%020d\n"  # of constant length, because it is overwritten in place
_COUNTER_BYTES = 21
_LARGEST_BYTES = 4096


class ClaimLost(EnvironmentFault):
    """Another session has taken over the run that this session was writing."""


class RunGone(CollageError):
    """The folder was moved, replaced or cleaned while this session was writing to it."""

    exit_code = ExitCode.INCOMPLETE


class _Stopped(CollageError):
    """A signal came while another job's claim was watched."""

    exit_code = ExitCode.INCOMPLETE


@dataclass(frozen=True)
class Holder:
    """The process that made a claim, as far as the claim's file says. The token is a random one."""

    host: str | None = None
    pid: int | None = None
    process: ProcessId | None = None
    token: str | None = None

    def __str__(self) -> str:
        return "unknown" if self.host is None else f"host {self.host}, pid {self.pid}"

    @classmethod
    def read(cls, content: bytes) -> Holder:
        """Parse a claim's content. All fields are None if the claim is damaged."""
        try:
            return read_json(cls, content[_COUNTER_BYTES:])
        except ValueError:
            return cls()

    @property
    def ended(self) -> bool:
        """Whether the holder has certainly ended. A claim of this process is left from an earlier
        writer, so it counts as ended."""
        if self.process is None:
            return False
        return self.process == this_process() or has_ended(self.process) is True


@dataclass(frozen=True)
class Patience:
    """How a claim is watched. Tests set the clock and the pause."""

    still_s: float = STILL_S
    stop_reason: Callable[[], str | None] = lambda: None
    tell: Callable[[str], None] = lambda message: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


PATIENT = Patience()


def find_writer(out: Path, patience: Patience) -> tuple[Holder | None, dict[Path, bytes]]:
    """Watch the claims in `out` until it is known whether a holder is alive.

    Returns:
        The living holder, or None; and the claims that were found, path -> content.
    """
    found = read_claims(out)
    waiting = {path: raw for path, raw in found.items() if not Holder.read(raw).ended}
    watched_s, looked_s, told = 0.0, patience.clock(), False
    while waiting and watched_s < patience.still_s:
        stop = patience.stop_reason()
        if stop is not None:
            raise _Stopped(f"{out}: {stop} before it was known whether another job writes there")
        if watched_s > _TELL_AFTER_S and not told:
            told = True
            holders = "; ".join(str(Holder.read(raw)) for raw in waiting.values())
            patience.tell(
                f"{out}: claimed by another job ({holders}), which gives no sign of life. It "
                f"counts as dead when it has given none for {patience.still_s:g} s."
            )
        patience.sleep(_POLL_S)
        # This process may itself have been suspended, and then it did not watch. So the time
        # between two looks counts for at most one beat.
        now_s = patience.clock()
        watched_s, looked_s = watched_s + min(now_s - looked_s, BEAT_S), now_s
        now = read_claims(out)
        for path, raw in list(waiting.items()):
            if path in now and now[path] != raw:
                return Holder.read(now[path]), found
            if path not in now or Holder.read(raw).ended:
                del waiting[path]  # released, or its process has ended meanwhile
    return None, found


def read_claims(out: Path) -> dict[Path, bytes]:
    """The claims in `out`, path -> content; {} if there is no such folder."""
    claims = {}
    try:
        for path in out.iterdir():
            if _NAME.fullmatch(path.name) and (raw := _read(path)) is not None:
                claims[path] = raw
    except (FileNotFoundError, NotADirectoryError):
        pass
    return claims


class Claim:
    """This process's claim on a run's folder, with a thread that keeps it alive.

    Args:
        path: the claim's file, which is created.

    Raises:
        FileExistsError: another process has created it first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = _identity()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(self._fd, _COUNTER % 0 + self._identity)
        except OSError:
            os.close(self._fd)
            path.unlink()  # otherwise the next job would watch an empty claim
            raise
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="collage-mpi claim", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, out: Path, patience: Patience) -> Claim:
        """Claim the existing folder `out` for this process.

        Raises:
            EnvironmentFault: another job writes to `out`.
            OSError: the folder cannot be written.
        """
        writer, found = find_writer(out, patience)
        if writer is not None:
            raise held_by(out, writer)
        taken = [*found, *_no_claims(out)]
        last = max((int(path.name.partition("-")[2]) for path in taken), default=0)
        try:
            claim = cls(out / f"claim-{last + 1}")
        except FileExistsError:
            raise held_by(out, Holder()) from None
        others = {path: raw for path, raw in read_claims(out).items() if path != claim.path}
        for path, raw in others.items():
            if raw[_COUNTER_BYTES:] != found.get(path, b"")[_COUNTER_BYTES:]:
                claim.release()
                raise held_by(out, Holder.read(raw))  # it came after the watch, so it may be alive
        for path in others:
            path.unlink(missing_ok=True)
        return claim

    def check(self) -> None:
        """Check that this session may still write to the folder; some 50 us on a local disk.

        Raises:
            ClaimLost: another session has taken over.
            RunGone: the claim is gone, and no other session has one.
            OSError: the claims cannot be read.
        """
        if self._mine():
            return
        out = self.path.parent
        others = [Holder.read(raw) for raw in read_claims(out).values()]
        if others:
            raise ClaimLost(
                f"{out}: another session has taken over ({others[-1]}), because this session gave "
                f"no sign of life for {STILL_S:g} s. This session writes nothing more. Its rows "
                "are kept, and the other session does the rest."
            )
        raise RunGone(
            f"{out}: the claim of this session is gone: the folder was moved, replaced or "
            "cleaned, or another session has taken over and ended. Nothing more is written. "
            f"collage-mpi verify {out} shows the state of the run; --resume does what is left."
        )

    def release(self) -> bool:
        """Remove the claim. Returns whether this session still held it."""
        self._released.set()
        self._thread.join()
        try:
            mine = self._mine()
            if mine:
                self.path.unlink()
        except OSError:
            return False  # the claim counts as dead as soon as this process has ended
        return mine

    def _mine(self) -> bool:
        raw = _read(self.path)
        return raw is not None and raw[_COUNTER_BYTES:] == self._identity

    def _beat(self) -> None:
        """Increase the counter through the open file, so that no other session's claim changes."""
        count = 0
        while not self._released.wait(BEAT_S):
            count += 1
            try:
                os.pwrite(self._fd, _COUNTER % count, 0)
                os.close(os.dup(self._fd))  # NFS sends what was written when a file is closed
                if os.fstat(self._fd).st_nlink == 0:
                    break  # taken over
            except OSError:
                continue  # if the disk has failed, the write of the next part reports it
        os.close(self._fd)


def _no_claims(out: Path) -> list[Path]:
    """Folders and pipes named like a claim. They are kept, and their numbers count as used."""
    return [path for path in out.iterdir() if _NAME.fullmatch(path.name) and not _may_be_file(path)]


def _may_be_file(path: Path) -> bool:
    return path.is_file() or not os.path.lexists(path)


def _read(path: Path) -> bytes | None:
    """A claim's content; None if it is gone or not a file. Opening a pipe would wait."""
    if not _may_be_file(path):
        return None
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(_LARGEST_BYTES) or b""
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE):
            return None
        raise


def _identity() -> bytes:
    process = this_process()
    who = Holder(node(), os.getpid(), process, os.urandom(8).hex())
    return json.dumps(asdict(who)).encode() + b"\n"


def held_by(out: Path, holder: Holder) -> EnvironmentFault:
    """The error to raise if another job writes to `out`."""
    return EnvironmentFault(
        f"{out}: another job is writing here ({holder}). Wait until it has ended, or end it, then "
        f"repeat this command. If the job is killed, its claim ends within {STILL_S:g} s. Or "
        "choose another --out."
    )

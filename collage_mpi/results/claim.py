"""Who may write to a run's folder: one process at a time, which holds a claim.

A claim is a file `claim-N`, created with O_EXCL, which works on file servers too. It begins with a
counter that a thread of the holder increases every second; then it names the holder. The clocks of
two machines are never compared, nor are file times. A claim is dead when its counter has not
changed for STILL_S on the watcher's clock, or at once if its process was on this machine and has
ended.

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
from dataclasses import dataclass
from pathlib import Path
from platform import node

from collage_mpi.errors import CollageError, EnvironmentFault, ExitCode
from collage_mpi.system.process_tree import ProcessId, has_ended, this_process

BEAT_S = 1.0
# Thirty beats. File servers pause for seconds, not for so long, and Linux asks them anew at
# every open. A wrong verdict would end the other session early; it would cost no row.
STILL_S = 30.0
LOOK_S = 5.0  # for processes that only read: a wrong verdict of theirs costs nothing
_POLL_S = 0.2
_TELL_AFTER_S = 2.0  # a live claim moves before that

_NAME = re.compile(r"claim-(\d{1,9})")
_COUNTER = b"%020d\n"  # always as long: it is written over in place
_COUNTER_BYTES = 21
_LARGEST_BYTES = 4096


class ClaimLost(EnvironmentFault):
    """Another session has taken over the run that this one was writing."""


class RunGone(CollageError):
    """The folder is no longer the one that this session began to write to."""

    exit_code = ExitCode.INCOMPLETE


class _Stopped(CollageError):
    """A signal came while another's claim was watched."""

    exit_code = ExitCode.INCOMPLETE


@dataclass(frozen=True)
class Holder:
    """Who has made a claim, as far as its file tells."""

    host: str | None = None
    pid: int | None = None
    process: ProcessId | None = None

    def __str__(self) -> str:
        return "unknown" if self.host is None else f"host {self.host}, pid {self.pid}"

    @classmethod
    def read(cls, content: bytes) -> Holder:
        """From a claim's content. Nothing is known of a holder whose claim is damaged."""
        try:
            found = json.loads(content[_COUNTER_BYTES:])
            process = found["process"]
            process = None if process is None else ProcessId.from_dict(process)
            return cls(str(found["host"]), int(found["pid"]), process)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return cls()

    @property
    def ended(self) -> bool:
        """Whether the holder has surely ended. This process's own claim is an earlier writer's."""
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
        # If this process itself was suspended, it did not watch. So a look counts for one beat at
        # most, and each stretch of time that counts is followed by a look.
        now_s = patience.clock()
        watched_s, looked_s = watched_s + min(now_s - looked_s, BEAT_S), now_s
        now = read_claims(out)
        for path, raw in list(waiting.items()):
            if path in now and now[path] != raw:
                return Holder.read(now[path]), found
            if path not in now or Holder.read(raw).ended:
                del waiting[path]  # it was given back, or its process has ended meanwhile
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
        path: the claim's file.

    Raises:
        FileExistsError: somebody has made it first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = _identity()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.write(self._fd, _COUNTER % 0 + self._identity)
        except OSError:
            os.close(self._fd)
            path.unlink()  # an empty one would be watched by who comes next
            raise
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="collage-mpi claim", daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, out: Path, patience: Patience) -> Claim:
        """Claim `out`, which exists, for this process.

        Raises:
            EnvironmentFault: another job writes there.
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
                raise held_by(out, Holder.read(raw))  # it came between: not one of those watched
        for path in others:
            path.unlink(missing_ok=True)
        return claim

    def check(self) -> None:
        """Prove that this session may still write to the folder; some 50 us on a local disk.

        Raises:
            ClaimLost: another session has taken over.
            RunGone: the claim is gone, and no other session is there.
            OSError: that cannot be found out.
        """
        if self._mine():
            return
        out = self.path.parent
        others = [Holder.read(raw) for raw in read_claims(out).values()]
        if others:
            raise ClaimLost(
                f"{out}: another session has taken over ({others[-1]}), since this one gave no "
                f"sign of life for {STILL_S:g} s. This one writes nothing more; what it had "
                "written is kept, and the other one does the rest."
            )
        raise RunGone(
            f"{out}: the claim of this session is gone: the folder was moved, replaced or "
            "cleaned, or another session has taken over and ended. Nothing more is written. "
            f"collage-mpi verify {out} says how it stands; --resume does what is left."
        )

    def release(self) -> bool:
        """Give the claim back. Returns whether this session still held it."""
        self._released.set()
        self._thread.join()
        try:
            mine = self._mine()
            if mine:
                self.path.unlink()
        except OSError:
            return False  # it counts as dead as soon as this process has ended
        return mine

    def _mine(self) -> bool:
        raw = _read(self.path)
        return raw is not None and raw[_COUNTER_BYTES:] == self._identity

    def _beat(self) -> None:
        """Increase the counter through the open file, so that no other claim changes."""
        count = 0
        while not self._released.wait(BEAT_S):
            count += 1
            try:
                os.pwrite(self._fd, _COUNTER % count, 0)
                os.close(os.dup(self._fd))  # a file of a server is sent off when it is closed
                if os.fstat(self._fd).st_nlink == 0:
                    break  # taken over
            except OSError:
                continue  # the disk has its reasons; a write will tell
        os.close(self._fd)


def _no_claims(out: Path) -> list[Path]:
    """Folders and pipes with the name of a claim. They stay, and their numbers count as used."""
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
    who = {
        "host": node(),
        "pid": os.getpid(),
        "process": process and process.to_dict(),
        "token": os.urandom(8).hex(),
    }
    return json.dumps(who).encode() + b"\n"


def held_by(out: Path, holder: Holder) -> EnvironmentFault:
    """What to raise where another job writes."""
    return EnvironmentFault(
        f"{out}: another job is writing here ({holder}). Wait until it has ended, or end it, then "
        f"repeat this command (if it dies, {STILL_S:g} s later at most). Or choose another --out."
    )

"""Starts child processes of this package, and ends a process with everything it started, even if
this process is killed.

Killing a launcher's process group is not enough: MPICH's proxy gives every rank a session of its
own, and Open MPI's gives every rank a process group of its own.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from collage_mpi.system.pidfd import stat_of

# MPICH's proxy tells a rank's process group of another rank's death by it; the library handles
# it in the rank itself.
PROXY_SIGNAL = signal.SIGUSR1
GUARD = Path(__file__).parents[1] / "data" / "guard.sh"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
POLL_S = 0.02
LOOKS = 50  # at most 1 s of looking for what is left after SIGKILL


def own_command(module: str = "collage_mpi") -> tuple[str, ...]:
    """The command that starts a module of this package, whatever is in the current folder; append
    the arguments.
    """
    return sys.executable, str(Path(__file__).with_name("start.py")), module


def ask(command: Sequence[str], limit_s: float) -> subprocess.CompletedProcess[str]:
    """Run a short command without input, and keep what it prints.

    Raises:
        OSError, subprocess.TimeoutExpired: it cannot be started, or takes longer than `limit_s`.
    """
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=limit_s,
        stdin=subprocess.DEVNULL,
    )


def process_table(proc: Path = Path("/proc")) -> dict[int, tuple[int, int]]:
    """Live processes as {pid: (parent, session)} without zombies; {} without /proc."""
    table: dict[int, tuple[int, int]] = {}
    for entry in proc.glob("[0-9]*"):
        with suppress(OSError):  # it ended while we looked
            state, parent, _, session = stat_of(entry.name, proc)[1][:4]
            if state not in "ZX":
                table[int(entry.name)] = (int(parent), int(session))
    return table


def family_of(root: int, table: dict[int, tuple[int, int]]) -> set[int]:
    """Processes below `root`, or in a session that one of them (or `root`) leads.

    By the session, processes are found whose parent has ended already.
    """
    found = {root}
    while True:
        more = {
            pid
            for pid, (parent, session) in table.items()
            if pid not in found and (parent in found or session in found)
        }
        if not more:
            return found & set(table)
        found |= more


def holders_of(word: str, proc: Path = Path("/proc")) -> set[int]:
    """Live processes that were started with `word` (NAME=value) in their environment.

    Processes without parents are found in every session, but not those of other users.
    """
    found = set()
    for pid in process_table(proc):
        with suppress(OSError):  # it has ended, or is another user's
            if word.encode() in (proc / str(pid) / "environ").read_bytes().split(b"\0"):
                found.add(pid)
    return found


@contextmanager
def sheltered(*numbers: signal.Signals) -> Iterator[None]:
    """Children started within this context never see signals that this process handles.

    They inherit the signals blocked. Unlike a handler this survives exec. Signals that MPICH's
    proxy sends to a rank are always among them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {PROXY_SIGNAL, *numbers})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class Guard:
    """What the guard process does at the end: whether it looks for shared memory of the job."""

    sweep: bool = False


@contextmanager
def guarded(
    word: str, grace_s: int, scratch: str | None = None, locks: Sequence[int] = ()
) -> Iterator[Guard]:
    """If this process is killed within this context, a guard process kills all holders of `word`
    after `grace_s`.

    First the guard asks their launcher to end, but a launcher waits for a rank that is stopped. The
    guard keeps the descriptors `locks`, and removes the folder `scratch` in that case.
    """
    told = Guard()
    guard = subprocess.Popen(
        ["sh", str(GUARD), word, str(grace_s), scratch or ""],
        pass_fds=locks,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield told
    finally:
        try:
            guard.communicate(b"sweep\n" if told.sweep else b"over\n")
        except BrokenPipeError:
            guard.wait()


def end_family(
    process: subprocess.Popen[str] | subprocess.Popen[bytes],
    grace_s: float,
    word: str | None = None,
) -> None:
    """End a child that was started with start_new_session=True, and everything it started.

    The child gets SIGTERM and `grace_s` seconds; then the rest gets SIGKILL. It returns at once
    when nothing is left. `word`: see `holders_of`; those processes end too.
    """
    # Looked up first: once the launcher has gone, its ranks' parent is no longer known.
    known = family_of(process.pid, process_table())
    if word is not None:
        known |= holders_of(word)
    if process.poll() is None and grace_s > 0:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=grace_s)
    for _ in range(LOOKS):
        table = process_table()
        known = {pid for root in {*known, process.pid} for pid in family_of(root, table)}
        for pid in known:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.poll()  # reaps it, so that its own entry goes
        if not known:
            break
        time.sleep(POLL_S)
    if process.poll() is None:
        process.kill()
        process.wait()

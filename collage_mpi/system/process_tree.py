"""Processes of this host: starts them, ends them with all their children, and notices their end.

Killing a launcher's process group is not enough: MPICH's proxy gives every rank a session of its
own, and Open MPI's gives every rank a process group of its own. A pid alone is not enough either:
containers have pids of their own, and a pid is used again. A process is identified by its machine's
boot, its pid namespace, its pid and its start time. The start time is compared after the pidfd is
open; from then on the kernel keeps the pid unique.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LARGEST_PID = (1 << 31) - 1


@dataclass(frozen=True)
class ProcessId:
    """Identifies a process: `machine` is the boot and the pid namespace, `started` is in clock
    ticks.

    Raises:
        ValueError: an impossible pid.
    """

    machine: str
    pid: int
    started: int

    def __post_init__(self) -> None:
        if not 0 < self.pid <= LARGEST_PID:
            raise ValueError(f"no process has the pid {self.pid}")


def this_process() -> ProcessId | None:
    """This process, or None if the system does not tell (no Linux)."""
    try:
        machine = f"{BOOT_ID.read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
        return ProcessId(machine, os.getpid(), _started("self"))
    except OSError:
        return None


class ProcessWatch:
    """An open pidfd. It becomes readable once the process has ended, and never means another
    process.
    """

    def __init__(self, pidfd: int) -> None:
        self.pidfd = pidfd

    def kill(self) -> None:
        """Send SIGKILL; does nothing if the process has ended already."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.pidfd)


def watch_process(process: ProcessId) -> ProcessWatch | None:
    """Watch a process; None if it cannot be seen from here.

    Raises:
        ProcessLookupError: the process would be visible from here, and has ended.
    """
    here = this_process()
    if here is None or here.machine != process.machine or not hasattr(os, "pidfd_open"):
        return None
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        raise
    except OSError:  # a kernel before 5.3, or no descriptor left
        return None
    try:
        if _started(str(process.pid)) != process.started:
            raise ProcessLookupError
    except (FileNotFoundError, ProcessLookupError) as error:
        os.close(pidfd)
        raise ProcessLookupError(f"process {process.pid} has ended") from error
    except OSError:  # no descriptor left to read it by
        os.close(pidfd)
        return None
    return ProcessWatch(pidfd)


def has_ended(process: ProcessId) -> bool | None:
    """Whether a process has ended, as a zombie or completely; None if it cannot be seen from
    here.
    """
    here = this_process()
    if here is None or here.machine != process.machine:
        return None
    try:
        _, fields = stat_of(process.pid)
    except OSError:
        try:
            os.kill(process.pid, 0)
        except ProcessLookupError:
            return True
        except (OSError, OverflowError):
            pass
        return None  # it is there, but /proc shows only one's own processes
    return fields[0] in "ZX" or int(fields[19]) != process.started


def _started(pid: str) -> int:
    """Start time in clock ticks since boot. Raises OSError if the process has gone."""
    return int(stat_of(pid)[1][19])


def stat_of(pid: int | str, proc: Path = Path("/proc")) -> tuple[str, list[str]]:
    """The name of a process, and the fields of its stat after the name.

    The fields are state, parent, group, session, ...; the start time is the twentieth. Raises
    OSError if the process has gone.
    """
    # "pid (name) state ppid ...": the name may hold anything.
    text = (proc / f"{pid}/stat").read_text(errors="replace")
    if not text:  # opened before its end, read after it
        raise ProcessLookupError(errno.ESRCH, "the process has gone", str(pid))
    head, _, fields = text.rpartition(")")
    return head.partition("(")[2], fields.split()


# MPICH's proxy tells a rank's process group of another rank's death by it; the library handles
# it in the rank itself.
PROXY_SIGNAL = signal.SIGUSR1
GUARD = Path(__file__).parents[1] / "data" / "guard.sh"
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
POLL_S = 0.02
LOOKS = 50  # looks for processes that are left after SIGKILL, in at most 1 s


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


@dataclass(frozen=True)
class Said:
    """The output of a child process that has ended.

    Attributes:
        lines: whole lines of its stdout.
        last_word: the last line of its stderr.
        code: its exit code; None if the time limit ended it.
    """

    lines: list[bytes]
    last_word: str
    code: int | None


def ask_apart(
    command: Sequence[str],
    request: Mapping[str, Any],
    limit_s: float,
    environment: dict[str, str],
    born: Callable[[subprocess.Popen[bytes]], object] = lambda child: None,
) -> Said:
    """Start a child, send it a request as JSON on its stdin, and collect its output.

    `born` gets the child as soon as it runs, so that another thread can kill it.
    """
    with sheltered(*STOP_SIGNALS):  # launchers pass them on to a rank's children too
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
        )
    code = None
    try:
        born(child)
        out, complaint = child.communicate(json.dumps(request).encode(), timeout=limit_s)
        code = child.returncode
    except subprocess.TimeoutExpired:
        child.kill()
        out, complaint = child.communicate()
    finally:
        child.kill()  # an interrupt here must not leave it behind; no effect once it ended
    last = complaint.decode("utf-8", errors="replace").strip().splitlines()[-1:]
    return Said(out.split(b"\n")[:-1], "".join(last), code)  # without an incomplete last line


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


@contextmanager
def caught(numbers: Sequence[signal.Signals], note: Callable[[int], object]) -> Iterator[None]:
    """Within this context `note` is called with each of these signals that comes, and the signal
    has no other effect. Only the main thread may set handlers; in another thread nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda which, _: note(which)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def guarded(
    word: str, grace_s: int, scratch: str | None, sweeps: Callable[[], bool]
) -> Iterator[None]:
    """If this process is killed within this context, a guard process kills all holders of `word`
    after `grace_s`. At the end it looks for shared memory of the job, if `sweeps` says so.

    First the guard asks their launcher to end, but a launcher waits for a rank that is stopped. The
    guard removes the folder `scratch` in that case.
    """
    guard = subprocess.Popen(
        ["sh", str(GUARD), word, str(grace_s), scratch or ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        try:
            guard.communicate(b"sweep\n" if sweeps() else b"over\n")
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

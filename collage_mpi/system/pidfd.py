"""Notices within milliseconds, without polling, that a process of this machine has ended, and can
kill it.

A pid alone is not enough: containers have pids of their own, and a pid is used again. A process is
identified by its machine's boot, its pid namespace, its pid and its start time. The start time is
compared after the pidfd is open; from then on the kernel keeps the pid unique.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
LARGEST_PID = (1 << 31) - 1


@dataclass(frozen=True)
class ProcessId:
    """Identifies a process: `machine` is the boot and the pid namespace, `started` is in clock
    ticks.

    Raises:
        ValueError: impossible values.
    """

    machine: str
    pid: int
    started: int

    def __post_init__(self) -> None:
        pid, started = self.pid, self.started
        if type(pid) is not int or not 0 < pid <= LARGEST_PID or type(started) is not int:
            raise ValueError(f"no process is named by pid {pid!r}, start time {started!r}")

    def to_dict(self) -> dict[str, Any]:
        """For a message."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ProcessId:
        """Read it back. Raises KeyError, TypeError or ValueError for another form."""
        return cls(str(values["machine"]), values["pid"], values["started"])


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
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        except ProcessLookupError:
            pass

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
    """The name of a process, and the fields of its stat from the state on: state, parent, group,
    session, ...; the start time is the twentieth. Raises OSError if the process has gone.
    """
    # "pid (name) state ppid ...": the name may hold anything.
    text = (proc / f"{pid}/stat").read_text(errors="replace")
    if not text:  # opened before its end, read after it
        raise ProcessLookupError(errno.ESRCH, "the process has gone", str(pid))
    head, _, fields = text.rpartition(")")
    return head.partition("(")[2], fields.split()

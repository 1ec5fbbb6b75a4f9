"""A child with a session of its own, and the end of every process in it.

Owns: finding and killing the processes of a session.
Does not know: MPI, what the processes do.

MPI launchers put ranks into process groups of their own (Open MPI does), so killing
the launcher's group is not enough; all of them stay in the launcher's session.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

POLL_S = 0.02


def session_members(session: int, proc: Path = Path("/proc")) -> list[int]:
    """Ids of the live processes of a session, zombies left out; [] without /proc."""
    members: list[int] = []
    for entry in proc.glob("[0-9]*/stat"):
        try:
            # "pid (name) state ppid pgrp session ...": the name may hold anything.
            state, _ppid, _group, found = entry.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            continue  # it ended while we looked
        if int(found) == session and state not in "ZX":
            members.append(int(entry.parent.name))
    return members


def signal_session(session: int, number: signal.Signals) -> None:
    """Send a signal to every live process of a session."""
    for pid in session_members(session):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
    if not Path("/proc").is_dir():  # macOS: the process group is what can be reached
        try:
            os.killpg(session, number)
        except (ProcessLookupError, PermissionError):
            pass


def end_session(process: subprocess.Popen[str] | subprocess.Popen[bytes], grace_s: float) -> None:
    """End a child started with start_new_session=True, and all it started.

    The child gets SIGTERM and `grace_s` seconds; then what is left gets SIGKILL. Returns
    at once when nothing is left.
    """
    if process.poll() is None and grace_s > 0:
        process.terminate()
        try:
            process.wait(timeout=grace_s)
        except subprocess.TimeoutExpired:
            pass
    # Twice: a process may have been started between the look and the kill.
    for _ in range(2):
        signal_session(process.pid, signal.SIGKILL)
        if not session_members(process.pid):
            break
        time.sleep(POLL_S)
    if process.poll() is None:
        process.wait()

"""Leaving a world: at once, with the right code, and tidily.

Owns: the process's end without Python's own, which takes torch apart for 0.4 s of a core in each
rank; in a fault-tolerant world without MPI_Finalize; the MPI library's files in shared memory.
Does not know: who leaves, or why.

There Finalize waits for every rank, so it hangs with a lost one, and now and then with one that
is lost while it runs. What it is good for is done by hand: sends have been flushed, and
the shared-memory files that the library has mapped are removed.

They are removed long before, once all ranks have spoken: what is mapped needs no name, and
nobody else would remove it after ranks that are killed (5 MiB a rank, for ever).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

FOLDER = "/dev/shm/"
SHARED = ("/dev/shm/mpich_shm_", "/dev/shm/sm_segment.")  # MPICH's, Open MPI's
UCX = "/dev/shm/ucx_shm_posix_"  # where /proc is no way to it peers open it by name, late too

_armed = False
_finalize: Callable[[], object] | None = None
_at_once = False


def arm() -> None:
    """From now on this process leaves by `leave`, without MPI_Finalize."""
    global _armed
    _armed = True


def armed() -> bool:
    """Whether this process is, or was, a rank of a fault-tolerant world."""
    return _armed


def leave_if_armed(code: int) -> None:
    """Leave now if the world is fault-tolerant, else return."""
    if _armed:
        leave(code)


def finalize_by(finalize: Callable[[], object]) -> None:
    """A plain world is up: what ends MPI before `leave_world` leaves."""
    global _finalize
    _finalize = finalize


def leave_at_once() -> None:
    """What is left of this process is its teardown, in which torch's threads may abort it."""
    global _at_once
    _at_once = True


def leave_world(code: int) -> None:
    """Leave now if this process is a rank of a plain world, or one of torchrun's; else return.

    By C's exit: what libraries do then, MPICH with its launcher above all, is not left out (of
    ranks that left by _exit the launcher said code 9, one time in eight).
    """
    if _at_once:
        leave(code)
    if _finalize is not None:
        import ctypes

        _flush()
        _finalize()
        ctypes.PyDLL(None).exit(int(code))


def leave(code: int) -> NoReturn:
    """End this process with `code`; no exit handler runs, MPI's included."""
    _flush()
    remove_shared_memory()
    os._exit(int(code))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            pass  # the reader has gone


def remove_shared_memory(maps: Path = Path("/proc/self/maps")) -> list[Path]:
    """Remove the files of the MPI library that this process has mapped: this job's own.

    Other ranks keep what they have mapped; only the name goes.
    """
    ours = shared_memory(maps)
    unlink(ours)
    return ours


def shared_memory(maps: Path, *more: str) -> list[Path]:
    """The files of the MPI library that a process has mapped, from its /proc/PID/maps; `more`: of
    which other beginnings too."""
    try:
        lines = maps.read_text(errors="surrogateescape").split("\n")  # names are any bytes
    except OSError:  # it has ended, or is another user's
        return []
    names = {line.split(maxsplit=5)[5] for line in lines if f" {FOLDER}" in line}
    return sorted(Path(name) for name in names if name.startswith((*SHARED, *more)))


def unlink(files: Iterable[Path]) -> None:
    """Remove those that are still there."""
    for file in files:
        try:
            file.unlink()
        except OSError:
            pass  # another rank was first ("... (deleted)")

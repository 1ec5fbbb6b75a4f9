"""Ends the process of a rank at once, with the right exit code, and cleans up after MPI.

Python's own exit is skipped, because the teardown of torch takes 0.4 s of a core in each rank.

In a fault-tolerant world MPI_Finalize is skipped as well: it waits for every rank, so it hangs if a
rank is lost. Its useful work is done here: sends have been flushed, and the shared-memory files
that the library has mapped are removed. In any other world its time is limited, because a rank may
be stopped.

These files are also removed earlier, as soon as all ranks have reported: a mapped file needs no
name, and nobody would remove the files of killed ranks (5 MiB a rank).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

FINALIZE_LIMIT_S = 20.0  # MPI_Finalize takes 0.1 s, after all ranks have come (10 s at most)
FOLDER = "/dev/shm/"
SHARED = ("/dev/shm/mpich_shm_", "/dev/shm/sm_segment.")  # MPICH's, Open MPI's
UCX = "/dev/shm/ucx_shm_posix_"  # other ranks may open these files by name at any time

LOOKS = 100
_armed = False
_finalize: Callable[[int], object] | None = None


def arm() -> None:
    """From now on this process ends by `leave`, without MPI_Finalize."""
    global _armed
    _armed = True


def armed() -> bool:
    """Whether this process is, or was, a rank of a fault-tolerant world."""
    return _armed


def leave_if_armed(code: int) -> None:
    """Leave now if the world is fault-tolerant, else return."""
    if _armed:
        leave(code)


def finalize_by(finalize: Callable[[int], object]) -> None:
    """MPI is up in a world that is not fault-tolerant: `leave_world` will call `finalize`, which is
    given the exit code, before anything else. Other threads must go on meanwhile.
    """
    global _finalize
    _finalize = finalize


def leave_world(code: int) -> None:
    """Leave now if this is a rank of a world that is not fault-tolerant.

    Otherwise return. It leaves by C's exit, so exit handlers of libraries still run. MPICH's
    handler reports to its launcher: when ranks left by _exit, the launcher gave exit code 9 one
    time in eight.
    """
    if _finalize is not None:
        import ctypes

        _flush()
        threading.Thread(target=_leave_late, args=(code,), daemon=True).start()
        _finalize(code)
        ctypes.PyDLL(None).exit(int(code))


def _leave_late(code: int) -> None:
    """Leave if this process is still here when the time is over.

    A stopped process cannot end itself, so the others do; then their launcher kills it.
    """
    for _ in range(LOOKS):  # time in which the whole job is suspended does not count
        time.sleep(FINALIZE_LIMIT_S / LOOKS)
    leave(code)


def leave(code: int) -> NoReturn:
    """End this process with `code`; no exit handler runs, MPI's included."""
    _flush()
    remove_shared_memory()
    os._exit(int(code))


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the reader has gone
            stream.flush()


def remove_shared_memory(maps: Path = Path("/proc/self/maps")) -> None:
    """Remove the MPI library's files that this process has mapped, which belong to this job.

    Other ranks keep their mappings; only the names are removed.
    """
    unlink(shared_memory(maps))


def shared_memory(maps: Path, *more: str) -> list[Path]:
    """The files of the MPI library that a process has mapped.

    Args:
        maps: /proc/PID/maps of the process.
        more: further prefixes of file names.
    """
    try:
        lines = maps.read_text(errors="surrogateescape").split("\n")  # names may be any bytes
    except OSError:  # the process has ended, or belongs to another user
        return []
    names = {line.split(maxsplit=5)[5] for line in lines if f" {FOLDER}" in line}
    return sorted(Path(name) for name in names if name.startswith((*SHARED, *more)))


def unlink(files: Iterable[Path]) -> None:
    """Remove those files that still exist."""
    for file in files:
        with suppress(OSError):  # another rank has removed it ("... (deleted)")
            file.unlink()

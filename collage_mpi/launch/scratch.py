"""The temporary folder of a launch, for the launcher's files while the job runs.

Launch removes it at the end, and its guard process if launch was killed. Launch also writes the
signal that stops a job into it, because the launcher may pass another signal to the ranks.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "collage-mpi-launch-"
SIGNAL = "signal"
VARIABLE = "COLLAGE_MPI_SCRATCH"  # where the ranks find the folder


@contextmanager
def held(folder: str | None) -> Iterator[None]:
    """Within this context the folder exists, if there is to be one."""
    if folder is None:
        yield
        return
    with suppress(OSError):  # such as a full disk: a launcher that needs the folder says so
        os.mkdir(folder, 0o700)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def note_signal(folder: str | None, name: str) -> None:
    """Tell the ranks of this host which signal launch received."""
    if folder is not None:
        with suppress(OSError):
            (Path(folder) / SIGNAL).write_text(name)


def noted_signal(environ: Mapping[str, str] = os.environ) -> str | None:
    """The signal that launch received; None if no launch of this host has noted one."""
    folder = environ.get(VARIABLE)
    try:
        name = (Path(folder) / SIGNAL).read_text(errors="replace") if folder else ""
    except OSError:
        return None
    return name if name in signal.Signals.__members__ else None

"""Messages to the user, as records of the logger `collage_mpi`, and streams that may fail safely.

If all ranks have the same message, only rank 0 prints it. A user's program may silence the logger
or redirect it. An output stream that fails does not end the job.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from collage_mpi.system.environment import launcher_rank, status_word
from collage_mpi.system.printable import printable

# It has no handler of its own, not even a NullHandler: if `collage_mpi.run` fails, it returns a
# code, and only this logger says why. If a program has set up no logging, Python itself prints
# warnings and errors to stderr.
LOGGER = logging.getLogger("collage_mpi")

# Before MPI is up Open MPI ends all ranks when one has left with an error. Rank 0, which prints the
# message, may be this much later than the others.
SPEAK_FIRST_S = 2.0


class SafeStream:
    """Writes to a stream until a write fails; from then on output is dropped.

    Args:
        stream: None if the process was started with the stream closed.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write and flush; it never raises because of the stream."""
        if self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                abandon(self._stream)
                self._stream = None
        return len(text)

    def flush(self) -> None:
        """Does nothing, because `write` flushes."""

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:  # such as `encoding`, for code that draws on it
        return getattr(self._stream, name)


def abandon(stream: TextIO) -> None:
    """Discard what Python still buffers for the stream: a failure at exit would change the code."""
    try:
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
    except (OSError, ValueError):
        return  # the stream has no file, or is closed
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def tell(message: str, level: int = logging.WARNING, *, any_rank: bool = False) -> None:
    """Log a message, with control characters shown as codes (see `printable`).

    Args:
        message: one or more lines, without the last newline.
        level: of `logging`: ERROR if a command ends by it, INFO for progress.
        any_rank: the message concerns this rank only; otherwise only rank 0 logs it.
    """
    if any_rank or launcher_rank() in (None, 0):
        LOGGER.log(level, printable(message), stacklevel=2)


class _Stderr(logging.Handler):
    """Prints messages unchanged; a reader that has gone does not end the job."""

    def emit(self, record: logging.LogRecord) -> None:
        SafeStream(sys.stderr).write(f"{record.getMessage()}\n")


@contextmanager
def told_on_stderr() -> Iterator[None]:
    """Within this context all messages go to stderr, whatever logging a program has set up."""
    handler, before = _Stderr(), (LOGGER.level, LOGGER.propagate)
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(before[0])
        LOGGER.propagate = before[1]


def let_rank_0_speak() -> None:
    """Let a rank other than 0 wait before it leaves with an error, so that rank 0 speaks first."""
    if launcher_rank() not in (None, 0) and "mpi4py.MPI" not in sys.modules:
        time.sleep(SPEAK_FIRST_S)


def mark_of(word: str) -> str:
    """The start of a launch's status lines."""
    return f"@status:{word} "


def status_line(status: dict[str, Any], word: str) -> str:
    """The machine-readable form, without a newline."""
    return mark_of(word) + json.dumps(status, separators=(",", ":"), default=float)


def report(stream: TextIO | None = None, **status: Any) -> None:
    """Tell launch something of this rank, in one piece. It does nothing without a launch.

    Args:
        stream: where to; None: stderr.
        status: `there=RANK`: this rank begins to start MPI; the only report of ranks other than 0.
            `up=True`: MPI has started, so every rank is there. `fault=MESSAGE, rank=RANK`: this
            rank's error message, which launch prints if only this rank has ended; normally rank 0
            prints for all. `exit=CODE`: what rank 0 is about to leave with. Launchers mix the codes
            of several ranks, and some give 0 for a job whose rank 0 was killed.
    """
    word = status_word()
    if word is not None:  # `print` writes the newline separately if Python does not buffer
        stream = stream or sys.stderr
        stream.write(f"{status_line(status, word)}\n")
        stream.flush()

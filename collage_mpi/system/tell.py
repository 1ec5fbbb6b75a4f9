"""What this process says to the user: log records, from one rank only, fit for a terminal.

Owns: the logger of the package, which the command line prints and a program of the user's may
silence or send elsewhere; who speaks where all ranks have the same to say, and that rank 0 is
heard first.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from collage_mpi.system.environment import telling_rank
from collage_mpi.system.printable import printable
from collage_mpi.system.safe_stream import SafeStream

# It has no handler of its own, not even a NullHandler: `collage_mpi.run` returns a code where it
# fails, and by this logger alone it says why. Where a program has set up no logging, Python
# itself prints warnings and errors to stderr.
LOGGER = logging.getLogger("collage_mpi")

# Until MPI is up nothing holds ranks together, and Open MPI ends all of them once one has left
# with an error: rank 0, which has the message, may be that much behind the others.
SPEAK_FIRST_S = 2.0


def tell(message: str, level: int = logging.WARNING, *, any_rank: bool = False) -> None:
    """Log a message, what a terminal would obey shown by its code (see `printable`).

    Args:
        message: one or more lines, without the last newline.
        level: of `logging`: ERROR for what ends a command, INFO for how far it is.
        any_rank: this rank alone has it to say; else only rank 0 does.
    """
    if any_rank or telling_rank() in (None, 0):
        LOGGER.log(level, printable(message), stacklevel=2)


class _Stderr(logging.Handler):
    """Prints messages as they are; a reader that has gone ends no job."""

    def emit(self, record: logging.LogRecord) -> None:
        SafeStream(sys.stderr).write(f"{record.getMessage()}\n")


@contextmanager
def told_on_stderr() -> Iterator[None]:
    """Within a command of ours all messages go to stderr, whatever logging there is besides."""
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
    """A silent rank that is about to leave with an error waits, if MPI does not do so."""
    if telling_rank() not in (None, 0) and "mpi4py.MPI" not in sys.modules:
        time.sleep(SPEAK_FIRST_S)

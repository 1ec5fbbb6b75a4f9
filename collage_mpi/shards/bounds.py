"""Bounds on the memory that a byte of input may become, checked against the sizes that the input
declares, before anything of it is read.
"""

from __future__ import annotations

from pathlib import Path

from collage_mpi.errors import DataFault

LARGEST_UNIT_BYTES = 1 << 29  # of what is decoded at once: a picture, a row group, a chunk
MOST_TIMES = 16  # larger units are taken if their bytes become at most this many times as many
MOST_ROWS = 1 << 31  # rank 0 holds some bytes an image
LARGEST_LIST_BYTES = 1 << 30
UNDECLARED_BYTES = 64 << 20  # of a list at a URL whose server does not say its size


def check_unit(path: Path, what: str, nbytes: int, stored: int) -> None:
    """Check what is decoded at once.

    Args:
        path: the source, for the message.
        what: names the unit, such as "row group 3".
        nbytes: its declared size in memory.
        stored: its size in the file; 0 if it is not known.

    Raises:
        DataFault: the unit is too large.
    """
    if nbytes > LARGEST_UNIT_BYTES and nbytes > MOST_TIMES * stored:
        raise DataFault(
            f"{path}: {what} takes {nbytes:,} bytes of memory, from {stored:,} in the file. At "
            f"most {LARGEST_UNIT_BYTES:,} or {MOST_TIMES} times its bytes are read at once. Write "
            "it again in smaller pieces."
        )


def check_rows(path: Path, rows: int) -> None:
    """Raises DataFault if a source declares more images than a job can hold."""
    if rows > MOST_ROWS:
        raise DataFault(
            f"{path}: declares {rows:,} images; a source has at most {MOST_ROWS:,}. Split it."
        )


def list_bytes(declared: int) -> int:
    """The most bytes that are read of a list. `declared`: its size; 0 if its server does not say
    it."""
    return min(declared, LARGEST_LIST_BYTES) or UNDECLARED_BYTES

"""A stream that may fail without ending the job that writes to it.

Owns: what becomes of output when its disk is full, its reader gone, or it was never open.
Does not know: what is written.
"""

from __future__ import annotations

import os
from typing import Any, TextIO


class SafeStream:
    """Writes through to a stream until that fails; from then on to nowhere.

    Args:
        stream: None where the process was started with the stream closed.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write and flush; never raises for the stream's sake."""
        if self._stream is not None:
            try:
                self._stream.write(text)
                self._stream.flush()
            except (OSError, ValueError):
                abandon(self._stream)
                self._stream = None
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:  # encoding and the like, for who draws on it
        return getattr(self._stream, name)


def abandon(stream: TextIO) -> None:
    """What Python still holds for the stream goes to nowhere: a failure at exit would be a code."""
    try:
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
    except (OSError, ValueError):
        return  # no file, or closed
    os.dup2(nowhere, descriptor)
    os.close(nowhere)

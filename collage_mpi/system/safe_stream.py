"""An output stream that may fail without ending the job: its disk is full, its reader has gone, or
it was never open.
"""

from __future__ import annotations

import os
from typing import Any, TextIO


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

    def __getattr__(self, name: str) -> Any:  # encoding and the like, for who draws on it
        return getattr(self._stream, name)


def abandon(stream: TextIO) -> None:
    """Discard what Python still buffers for the stream; a failure at exit would change the exit
    code.
    """
    try:
        descriptor = stream.fileno()
        nowhere = os.open(os.devnull, os.O_WRONLY)
    except (OSError, ValueError):
        return  # no file, or closed
    os.dup2(nowhere, descriptor)
    os.close(nowhere)

"""Refuses files that are not regular, so that nobody waits for ever on a FIFO or reads a device
without end.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def require_regular(path: str | Path) -> None:
    """Raise OSError unless `path` leads to a regular file, because opening a FIFO waits for a
    writer.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder; a file is needed", str(path))
    what = "FIFO" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
    raise OSError(errno.EINVAL, f"it is a {what}; a regular file is needed", str(path))

"""By what a session was made: the command as typed, where, and the versions of what ran.

Owns: what a manifest says of that.
Does not know: settings, ranks but rank 0. Versions are read from packages' metadata: nothing
heavy is imported for them.
"""

from __future__ import annotations

import os
import platform
import socket
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from collage_mpi import __version__

PACKAGES = ("numpy", "torch", "mpi4py", "h5py")


def job_facts(mpi_library: str) -> dict[str, Any]:
    """What a session's manifest says of rank 0's process.

    Args:
        mpi_library: the MPI library's name and version.
    """
    packages = {name: _version(name) for name in PACKAGES}
    return {
        "command": command_line(sys.argv),
        "folder": os.getcwd(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "versions": {
            "collage_mpi": __version__,
            "python": platform.python_version(),
            **packages,
            "mpi_library": mpi_library,
        },
    }


def command_line(argv: list[str]) -> list[str]:
    """The words as typed: our own program by its name, a user's by its path."""
    program = Path(argv[0])
    ours = program.name == "collage-mpi" or program.parts[-2:] == ("collage_mpi", "__main__.py")
    return ["collage-mpi", *argv[1:]] if ours else list(argv)


def _version(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None

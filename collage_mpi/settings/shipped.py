"""Files that come with the package, by name: `shipped:fashion_single.safetensors`."""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

from collage_mpi.errors import UsageError

SHIPPED = "shipped:"
_SUFFIXES = (".h5", ".safetensors", ".npy", ".npz")


def with_shipped(value: str) -> str:
    """`shipped:NAME` as the path of that file; any other value unchanged.

    A name with {side} in it stands for several files and is not checked.

    Raises:
        UsageError: the package ships no such file; lists the files that it ships.
    """
    if not value.startswith(SHIPPED):
        return value
    data = Path(str(files("collage_mpi") / "data"))
    names = sorted(p.name for p in data.iterdir() if p.suffix in _SUFFIXES)
    name = value.removeprefix(SHIPPED)
    if "{side}" not in name and name not in names:
        raise UsageError(f"{value}: the package ships {', '.join(names)}")
    return str(data / name)


def file_argument(text: str) -> str:
    """For argparse: a path as typed, or a shipped file's."""
    try:
        return with_shipped(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def path_argument(text: str) -> Path:
    """For argparse: a Path as typed, or a shipped file's."""
    return Path(file_argument(text))

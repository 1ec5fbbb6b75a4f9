"""Reads and writes the images of a job: HDF5 shards, and other sources of images.

The public names are imported on first use, so that h5py is not imported before a file is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collage_mpi.shards.guard import inspect_shard as inspect_shard
    from collage_mpi.shards.guard import verify_shard as verify_shard
    from collage_mpi.shards.readahead import ReadAhead as ReadAhead
    from collage_mpi.shards.reader import ShardSet as ShardSet
    from collage_mpi.shards.writer import ShardWriter as ShardWriter
    from collage_mpi.shards.writer import write_shard as write_shard

_HOMES = {
    "ReadAhead": "readahead",
    "ShardSet": "reader",
    "ShardWriter": "writer",
    "inspect_shard": "guard",
    "verify_shard": "guard",
    "write_shard": "writer",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'collage_mpi.shards' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"collage_mpi.shards.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

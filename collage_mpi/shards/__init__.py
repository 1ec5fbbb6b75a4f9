"""Shards: HDF5 files of labelled images, written, checked and read ahead. The public names are
resolved on first use, so that h5py is imported by the first file access and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from collage_mpi.shards.schema import FORMAT, VERSION, ShardInfo

if TYPE_CHECKING:
    from collage_mpi.shards.encoded import EncodedWriter
    from collage_mpi.shards.guard import inspect_shard, inspect_shards, verify_shard
    from collage_mpi.shards.readahead import CellMaker, ImageRecord, ReadAhead
    from collage_mpi.shards.reader import ShardSet
    from collage_mpi.shards.resumed import as_before
    from collage_mpi.shards.writer import ShardWriter, write_shard

_HOMES = {
    "CellMaker": "readahead",
    "EncodedWriter": "encoded",
    "ImageRecord": "readahead",
    "ReadAhead": "readahead",
    "ShardSet": "reader",
    "ShardWriter": "writer",
    "as_before": "resumed",
    "inspect_shard": "guard",
    "inspect_shards": "guard",
    "verify_shard": "guard",
    "write_shard": "writer",
}

__all__ = [
    "FORMAT",
    "VERSION",
    "CellMaker",
    "EncodedWriter",
    "ImageRecord",
    "ReadAhead",
    "ShardInfo",
    "ShardSet",
    "ShardWriter",
    "as_before",
    "inspect_shard",
    "inspect_shards",
    "verify_shard",
    "write_shard",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'collage_mpi.shards' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"collage_mpi.shards.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

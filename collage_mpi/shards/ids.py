"""Reads the image ids of a shard that was checked."""

from __future__ import annotations

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.shards.check import opened
from collage_mpi.shards.hdf5 import H5_LOCK
from collage_mpi.shards.schema import ShardInfo


def read_ids(info: ShardInfo) -> list[str] | None:
    """The n ids of a shard in the order of its rows, or None if it has none.

    Raises:
        DataFault: the dataset does not hold n texts.
        EnvironmentFault: the shard can no longer be read.
    """
    if info.storage == "foreign":
        return None
    try:
        with H5_LOCK, opened(info.path) as file:
            values = file["ids"][...] if "ids" in file else None
    except (OSError, RuntimeError, KeyError) as error:
        raise EnvironmentFault(f"{info.path}: can no longer be read: {error}") from error
    if values is None:
        return None
    if values.shape != (info.count,) or values.dtype.kind not in "SOU":
        raise DataFault(
            f"{info.path}: dataset ids is {values.dtype} {values.shape}; needed: {info.count} texts"
        )
    texts = values.tolist()
    return [t.decode("utf-8", "replace") if isinstance(t, bytes) else str(t) for t in texts]

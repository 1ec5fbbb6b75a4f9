"""Shards whose chunks hold few images, so that small shards have several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from collage_mpi.shards import ShardWriter
from collage_mpi.shards.schema import ShardInfo


def write_chunked(
    path: Path,
    rows: int | None,
    images: np.ndarray,
    labels: np.ndarray | Sequence[int] | None = None,
    ids: Sequence[str] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    source: str = "",
) -> ShardInfo:
    """A shard of images (n, H, W) or (n, H, W, C) with `rows` images a chunk."""
    shape = (*images.shape[1:3], 1 if images.ndim == 3 else images.shape[3])
    with ShardWriter(
        path, shape, class_names=class_names, source=source, rows_per_chunk=rows
    ) as writer:
        writer.append(images, labels, ids)
        return writer.close()

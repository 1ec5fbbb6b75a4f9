"""The encoder that makes a job's cells and collages, on any rank that pastes them."""

from __future__ import annotations

from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.system.environment import local_size, threads_per_rank


def make_encoder(grid: Grid, shape: tuple[int, ...], ranks: int) -> Encoder:
    """The encoder of collages. It uses as many cores as each rank of this host may use.

    Args:
        grid: of a collage.
        shape: (H, W, C) of the images; items of any other shape are never pasted.
        ranks: number of ranks of the world. All are assumed to run on this host unless the launcher
            says how many do.
    """
    threads = threads_per_rank(local_size() or ranks)
    height, width, channels = shape if len(shape) == 3 else (1, 1, 1)
    shape = height, width, channels
    return Encoder(grid, shape, threads)

"""The encoder that makes a job's cells and collages, on any rank that pastes them."""

from __future__ import annotations

from collections.abc import Collection

from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.shards.readahead import CellMaker
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


def make_cell_maker(encoder: Encoder, stored_px: Collection[int]) -> CellMaker:
    """How cells are made: read if all shards store cells of the network's size, else shrunk.

    Args:
        encoder: pastes the cells.
        stored_px: sizes of the cells that all shards store, in pixels.
    """
    height, width, _ = encoder.cell_shape
    px = height if height == width else None
    stored = encoder.resizes and px in stored_px
    return CellMaker(encoder.shrink, px if stored else None)

"""The encoder that makes a job's cells, collages and stripes, on any rank that pastes them."""

from __future__ import annotations

from collections.abc import Collection

from collage_mpi.encoding import BERRUT
from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.encoding.stripe import AnyEncoder, BerrutEncoder, make_stripe_encoder
from collage_mpi.models.specs import ParitySpec
from collage_mpi.shards.readahead import CellMaker
from collage_mpi.system.environment import local_size, threads_per_rank


def make_encoder(
    grid: Grid, shape: tuple[int, ...], parity: ParitySpec | None, ranks: int
) -> AnyEncoder:
    """The encoder of stripes for the schemes parity and approx, otherwise that of collages.

    It uses as many cores as each rank of this host may use.

    Args:
        grid: of a collage.
        shape: (H, W, C) of the images; items of any other shape are never pasted.
        parity: how missing answers are decoded; None if the scheme does not decode.
        ranks: number of ranks of the world. All are assumed to run on this host unless the launcher
            says how many do.
    """
    threads = threads_per_rank(local_size() or ranks)
    height, width, channels = shape if len(shape) == 3 else (1, 1, 1)
    shape = height, width, channels
    if parity is not None and parity.encoder == BERRUT:
        return BerrutEncoder(parity.k, shape)
    if parity is not None:
        return make_stripe_encoder(parity.encoder, parity.k, shape, threads)
    return Encoder(grid, shape, threads)


def make_cell_maker(encoder: AnyEncoder, stored_px: Collection[int]) -> CellMaker:
    """How cells are made: read if all shards store cells of the network's size, else shrunk.

    Args:
        encoder: pastes the cells.
        stored_px: sizes of the cells that all shards store, in pixels.
    """
    height, width, _ = encoder.cell_shape
    px = height if height == width else None
    stored = encoder.resizes and px in stored_px
    return CellMaker(encoder.shrink, px if stored else None)

"""How a job's images become cells, collages and stripes, on any rank that pastes them."""

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
    """The encoder of stripes for the schemes parity and approx, otherwise of collages.

    It uses as many cores as each rank of this host may use.

    Args:
        grid: of a collage.
        shape: (H, W, C) of the images; others are never pasted.
        parity: how answers are decoded from those of others; None without such a scheme.
        ranks: of the world, which are taken for those of this host if no launcher says more.
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
    """How the images' cells are made. They are read if the shards store cells that fit the network.

    Args:
        encoder: pastes the cells.
        stored_px: sizes of the cells that all shards store.
    """
    height, width, _ = encoder.cell_shape
    px = height if height == width else None
    stored = encoder.resizes and px in stored_px
    return CellMaker(encoder.shrink, px if stored else None)

"""The grid: cells and pixels, each exactly once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import UsageError

grids = st.builds(Grid, side=st.integers(2, 6), cell_px=st.integers(1, 9))


@given(grids)
def test_boxes_cover_every_pixel_once(grid: Grid) -> None:
    seen = np.zeros((grid.px, grid.px), dtype=int)
    for index in range(grid.cells):
        seen[grid.box(index)] += 1
    assert (seen == 1).all()


def test_cells_run_row_by_row() -> None:
    grid = Grid(3, 28)
    assert grid.box(5) == (slice(28, 56), slice(56, 84))


@pytest.mark.parametrize(("side", "cell_px"), [(1, 28), (17, 28), (3, 0), (0, 28), (-1, 28)])
def test_impossible_grids_are_refused(side: int, cell_px: int) -> None:
    with pytest.raises(UsageError, match="needs"):
        Grid(side, cell_px)


@pytest.mark.parametrize("side", [2, 16])
def test_the_smallest_and_the_largest_grid(side: int) -> None:
    assert Grid(side, 1).cells == side * side


def test_cells_outside_are_refused() -> None:
    grid = Grid(2, 4)
    for index in (-1, 4):
        with pytest.raises(IndexError):
            grid.box(index)

"""The geometry of a collage in one frozen object: side, cell size, and where each cell lies."""

from __future__ import annotations

from dataclasses import dataclass

from collage_mpi.errors import UsageError

MIN_SIDE, MAX_SIDE = 2, 16


@dataclass(frozen=True)
class Grid:
    """A square collage of side x side cells, each cell_px x cell_px pixels.

    Cells are numbered row by row from the top left, 0 .. side*side - 1.

    Raises:
        UsageError: side outside 2..16 or cell_px below 1.
    """

    side: int
    cell_px: int

    def __post_init__(self) -> None:
        if not MIN_SIDE <= self.side <= MAX_SIDE:
            raise UsageError(f"side is {self.side}; a collage needs {MIN_SIDE} to {MAX_SIDE}")
        if self.cell_px < 1:
            raise UsageError(f"cell_px is {self.cell_px}; a cell needs at least 1 pixel")

    @property
    def cells(self) -> int:
        """Number of images in a full group."""
        return self.side * self.side

    @property
    def px(self) -> int:
        """Height and width of the whole collage in pixels."""
        return self.side * self.cell_px

    def box(self, index: int) -> tuple[slice, slice]:
        """The cell's pixels as (rows, columns) slices into a (px, px, C) collage.

        Raises:
            IndexError: `index` is outside 0 .. cells - 1.
        """
        if not 0 <= index < self.cells:
            raise IndexError(f"cell {index} of a grid with {self.cells} cells")
        row, column = divmod(index, self.side)
        top, left = row * self.cell_px, column * self.cell_px
        return slice(top, top + self.cell_px), slice(left, left + self.cell_px)

"""The geometry of a collage: its side, the size of its cells, and the place of each cell."""

from __future__ import annotations

from dataclasses import dataclass

from collage_mpi.errors import UsageError

MIN_SIDE, MAX_SIDE = 2, 16


@dataclass(frozen=True)
class Grid:
    """A collage of side x side cells, each of cell_px x cell_px pixels.

    Cells are numbered row by row from the top left, 0 to side*side - 1.

    Raises:
        UsageError: side is not 2 to 16, or cell_px is below 1.
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
        """The number of cells, which is that of images in a full group."""
        return self.side * self.side

    @property
    def px(self) -> int:
        """The height and width of the collage in pixels."""
        return self.side * self.cell_px

    def box(self, index: int) -> tuple[slice, slice]:
        """The slices (rows, columns) of a cell in a collage (px, px, C).

        Raises:
            IndexError: `index` is not 0 to cells - 1.
        """
        if not 0 <= index < self.cells:
            raise IndexError(f"cell {index} of a grid with {self.cells} cells")
        row, column = divmod(index, self.side)
        top, left = row * self.cell_px, column * self.cell_px
        return slice(top, top + self.cell_px), slice(left, left + self.cell_px)

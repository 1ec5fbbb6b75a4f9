"""Images into one collage.

Owns: where each image's pixels go, shrinking them, blank cells for absent images.
Does not know: MPI, torch, who asked, what the images show.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.grid import Grid

BLANK = 0  # pixel value of a cell without an image


class Encoder:
    """Pastes up to side*side images of one shape into a collage.

    Args:
        grid: side and cell size.
        shape: (H, W, C) of the images, C = 1 or 3.

    Raises:
        DataFault: a shape that cannot be encoded.
    """

    def __init__(self, grid: Grid, shape: tuple[int, int, int]) -> None:
        if len(shape) != 3 or min(shape) < 1 or shape[2] not in (1, 3):
            raise DataFault(f"images are {shape}; a collage needs (H, W, C) with C = 1 or 3")
        self.grid = grid
        self.shape = tuple(shape)
        self._resize = shape[:2] != (grid.cell_px, grid.cell_px)
        self._boxes = [grid.box(cell) for cell in range(grid.cells)]

    @property
    def collage_shape(self) -> tuple[int, int, int]:
        """(side*cell_px, side*cell_px, C)."""
        return self.grid.px, self.grid.px, self.shape[2]

    def encode(
        self, images: Sequence[np.ndarray | None], out: np.ndarray | None = None
    ) -> np.ndarray:
        """Put images into cells 0, 1, ... row by row; None and missing ones stay blank.

        Args:
            images: at most side*side arrays (H, W, C) uint8, or None for an absent image.
            out: (side*cell_px, side*cell_px, C) uint8 to write to; a new array if None.

        Returns:
            The collage; `out` if it was given.

        Raises:
            DataFault: too many images, or one of another shape or dtype.
        """
        if len(images) > self.grid.cells:
            raise DataFault(f"{len(images)} images for the {self.grid.cells} cells of a collage")
        if out is None:
            out = np.empty(self.collage_shape, dtype=np.uint8)
        elif out.shape != self.collage_shape or out.dtype != np.uint8:
            raise DataFault(f"out is {out.shape} {out.dtype}; needed {self.collage_shape} uint8")
        for cell, (rows, columns) in enumerate(self._boxes):
            image = images[cell] if cell < len(images) else None
            out[rows, columns] = BLANK if image is None else self.shrink(image)
        return out

    def shrink(self, image: np.ndarray) -> np.ndarray:
        """(H, W, C) uint8 -> (cell_px, cell_px, C) uint8, with an antialiasing filter.

        Raises:
            DataFault: another shape or dtype than the encoder was made for.
        """
        if image.shape != self.shape or image.dtype != np.uint8:
            raise DataFault(f"an image is {image.shape} {image.dtype}; needed {self.shape} uint8")
        return _resized(image, self.grid.cell_px) if self._resize else image


def _resized(image: np.ndarray, px: int) -> np.ndarray:
    from PIL import Image  # only jobs that shrink need it

    plain = image[:, :, 0] if image.shape[2] == 1 else image
    # Pillow's bilinear widens with the scale when shrinking: it averages, as area does
    small = Image.fromarray(plain).resize((px, px), Image.Resampling.BILINEAR)
    return np.asarray(small).reshape(px, px, image.shape[2])

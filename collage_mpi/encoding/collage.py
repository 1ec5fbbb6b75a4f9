"""Puts images into one collage. An image is shrunk once, early and in batches (`shrink`, which the
job calls while it reads ahead); a collage is then only pasted together (`paste`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import DataFault

BLANK = 0  # pixel value of a cell without an image

FILTER = "bilinear, antialiased: torch"
"""How an image is shrunk: stored cells that were made otherwise are not used.

The filter widens with the scale, so that it averages, as area does. torch's on uint8
takes 58 us for 224 -> 139 px in batches and one core, where Pillow's, which differs by one
grey level in 0.3 % of the values, takes 317 and OpenCV's area filter 245
(analysis/encode_rates.py, analysis/reports/benchmarks.md).
"""


class Encoder:
    """Shrinks images of one shape and pastes up to side*side of them into a collage.

    Args:
        grid: side and cell size.
        shape: (H, W, C) of the images.
        threads: cores that shrinking may use, set for the whole process; None keeps torch's
            own setting.

    Attributes:
        places: how many images a picture holds.
        cell_shape, input_shape: of a shrunk image and of a picture, (h, w, C).
        resizes: whether shrinking changes an image.

    Raises:
        DataFault: a shape that cannot be encoded.
    """

    def __init__(self, grid: Grid, shape: tuple[int, ...], threads: int | None = None) -> None:
        if len(shape) != 3 or min(shape) < 1:
            raise DataFault(f"images are {shape}; a collage needs (H, W, C)")
        self.grid = grid
        self.places = grid.cells
        self.shape = tuple(shape)
        self.cell_shape = (grid.cell_px, grid.cell_px, shape[2])
        self.input_shape = (grid.px, grid.px, shape[2])
        self.resizes = self.shape != self.cell_shape
        self._threads = threads
        self._boxes = [grid.box(cell) for cell in range(grid.cells)]

    def paste(
        self, cells: Sequence[np.ndarray | None], out: np.ndarray | None = None
    ) -> np.ndarray:
        """Put shrunk images into cells 0, 1, ... row by row; None and missing ones stay blank.

        Args:
            cells: at most side*side arrays (cell_px, cell_px, C) uint8, or None.
            out: (side*cell_px, side*cell_px, C) uint8 to write to; a new array if None.

        Returns:
            The collage; `out` if it was given.

        Raises:
            DataFault: too many cells, or one of another shape or dtype.
        """
        if len(cells) > self.places:
            raise DataFault(f"{len(cells)} images for the {self.places} cells of a collage")
        if out is None:
            out = np.empty(self.input_shape, dtype=np.uint8)
        elif out.shape != self.input_shape or out.dtype != np.uint8:
            raise DataFault(f"out is {out.shape} {out.dtype}; needed {self.input_shape} uint8")
        for number, (rows, columns) in enumerate(self._boxes):
            cell = cells[number] if number < len(cells) else None
            if cell is None:
                out[rows, columns] = BLANK
            elif cell.shape == self.cell_shape and cell.dtype == np.uint8:
                out[rows, columns] = cell
            else:
                raise DataFault(f"a cell is {cell.shape} {cell.dtype}; needed {self.cell_shape}")
        return out

    def paste_many(self, cells: np.ndarray) -> np.ndarray:
        """(n, places, cell_px, cell_px, C) uint8, absent ones blank -> (n, P, P, C) uint8."""
        n, side, (px, _, channels) = len(cells), self.grid.side, self.cell_shape
        filled = np.full((n, side * side, px, px, channels), BLANK, np.uint8)
        filled[:, : self.places] = cells
        rows = filled.reshape(n, side, side, px, px, channels).transpose(0, 1, 3, 2, 4, 5)
        return np.ascontiguousarray(rows).reshape(n, *self.input_shape)

    def shrink(self, images: np.ndarray) -> np.ndarray:
        """Images to cells: (..., H, W, C) uint8 -> (..., cell_px, cell_px, C) uint8.

        A whole batch in one call is cheaper, and other threads can run meanwhile.

        Raises:
            DataFault: another shape or dtype than the encoder was made for.
        """
        if images.shape[-3:] != self.shape or images.dtype != np.uint8:
            raise DataFault(f"an image is {images.shape} {images.dtype}; needed {self.shape} uint8")
        if not self.resizes or images.size == 0:
            return images.reshape(*images.shape[:-3], *self.cell_shape)
        batch = images.reshape(-1, *self.shape)  # (n, H, W, C)
        cells = _resized(batch, self.grid.cell_px, self._threads)  # (n, cell_px, cell_px, C)
        return cells.reshape(*images.shape[:-3], *self.cell_shape)


def _resized(images: np.ndarray, px: int, threads: int | None) -> np.ndarray:
    import torch  # only jobs that shrink need it

    if threads is not None:
        torch.set_num_threads(threads)
    if not images.flags.writeable:  # torch warns about read-only arrays, though it only reads
        images = images.copy()
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)  # (n, C, H, W) uint8
        small = torch.nn.functional.interpolate(pixels, (px, px), mode="bilinear", antialias=True)
        return small.permute(0, 2, 3, 1).contiguous().numpy()  # (n, px, px, C) uint8

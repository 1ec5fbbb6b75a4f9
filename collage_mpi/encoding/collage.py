"""Makes collages in two steps: images are shrunk in batches while they are read ahead (`shrink`),
and later pasted together (`paste`). Turns a network's scores of the cells into answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite

import numpy as np

from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import DataFault

BLANK = 0  # pixel value of a cell without an image


class Encoder:
    """Shrinks images of one shape and pastes up to side*side of them into a collage.

    Args:
        grid: side and cell size.
        shape: (H, W, C) of the images.
        threads: number of threads of torch for shrinking, set for the whole process; None keeps
            torch's setting.

    Attributes:
        places: largest number of images in a collage.
        cell_shape, input_shape: (h, w, C) of a shrunk image, and of a collage.
        resizes: whether shrinking changes an image.

    Raises:
        DataFault: the shape cannot be encoded.
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
        """Paste shrunk images into cells 0, 1, ..., row by row. Cells without an image are blank.

        Args:
            cells: at most side*side arrays, (cell_px, cell_px, C) uint8, or None for a blank cell.
            out: array to write to, (side*cell_px, side*cell_px, C) uint8; None for a new one.

        Returns:
            The collage, which is `out` if it was given.

        Raises:
            DataFault: there are too many cells, or a cell has another shape or dtype.
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
        """Make n collages: (n, places, cell_px, cell_px, C) uint8 -> (n, P, P, C) uint8."""
        side = self.grid.side
        rows = cells.reshape(-1, side, side, *self.cell_shape).transpose(0, 1, 3, 2, 4, 5)
        return np.ascontiguousarray(rows).reshape(-1, *self.input_shape)

    def shrink(self, images: np.ndarray) -> np.ndarray:
        """Shrink images to cells: (..., H, W, C) uint8 -> (..., cell_px, cell_px, C) uint8.

        One call for a whole batch is faster. It releases the GIL.

        Raises:
            DataFault: the images have another shape or dtype.
        """
        if images.shape[-3:] != self.shape or images.dtype != np.uint8:
            raise DataFault(f"an image is {images.shape} {images.dtype}; needed {self.shape} uint8")
        if not self.resizes or images.size == 0:
            return images.reshape(*images.shape[:-3], *self.cell_shape)
        batch = images.reshape(-1, *self.shape)  # (n, H, W, C)
        cells = resized(batch, self.grid.cell_px, self._threads)  # (n, cell_px, cell_px, C)
        return cells.reshape(*images.shape[:-3], *self.cell_shape)


def resized(images: np.ndarray, px: int, threads: int | None = None) -> np.ndarray:
    """Shrink (n, H, W, C) uint8 to `px`, bilinear and antialiased. `threads`: as in `Encoder`.

    The filter widens with the scale, so it averages like an area filter. torch on uint8 takes 58 us
    for 224 -> 139 px, in batches on one core. Pillow takes 317 us and differs by one grey level in
    0.3 % of the values; OpenCV's area filter takes 245 us (analysis/encode_rates.py,
    analysis/reports/benchmarks.md).
    """
    import torch  # here, because only jobs that shrink images need torch

    if threads is not None:
        torch.set_num_threads(threads)
    if not images.flags.writeable:  # torch warns about read-only arrays, though it only reads
        images = images.copy()
    with torch.inference_mode():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)  # (n, C, H, W) uint8
        small = torch.nn.functional.interpolate(pixels, (px, px), mode="bilinear", antialias=True)
        return small.permute(0, 2, 3, 1).contiguous().numpy()  # (n, px, px, C) uint8


def paste_group(
    encoder: Encoder, cells: Iterable[tuple[int, np.ndarray | None]], out: np.ndarray
) -> None:
    """Paste cells of a group into one picture.

    Args:
        cells: (number in the group, cell) each; None for a blank cell.
        out: the picture to write to, of `encoder.input_shape`.
    """
    placed: list[np.ndarray | None] = [None] * encoder.places
    for number, cell in cells:
        placed[number] = cell
    encoder.paste(placed, out)


def best_five(scores: np.ndarray) -> np.ndarray:
    """A digest of the five best classes of each row, whatever their order.

    Two sets with the same digest are equal, but for one pair of 65,536.

    Args:
        scores: (n, classes) float32. Of equal scores the lowest class is better, as in `decode`.

    Returns:
        (n,) uint16.
    """
    best = np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :5], axis=1).astype(np.uint64)
    found = np.zeros(len(scores), np.uint64)
    for column in best.T:
        found = (found ^ column + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # Fibonacci hashing
        found ^= found >> np.uint64(29)
    return (found >> np.uint64(48)).astype(np.uint16)


def decode(scores: np.ndarray, *, margin: bool = False) -> list[tuple[int, float] | None]:
    """The answers of a collage's cells, or of single images.

    Args:
        scores: (cells, classes) float32 probabilities. A row in which a value is not finite, or no
            value is positive, has no answer.
        margin: the score of an answer is how far the largest probability is above the second one,
            not the largest one itself.

    Returns:
        (class, score) for each cell, or None for a cell without an answer. Of equal scores the
        lowest class wins.

    Raises:
        DataFault: the array has another number of dimensions, or no classes.
    """
    if scores.ndim != 2 or scores.shape[1] < 1:
        raise DataFault(f"scores are {scores.shape}; needed (cells, classes)")
    # With lists this takes 4 us for a few cells, with numpy's element-wise functions 13 us.
    best = scores.argmax(axis=1).tolist()  # (cells,)
    top = np.maximum.reduce(scores, axis=1).tolist()  # (cells,); a NaN is both the maximum
    low = np.minimum.reduce(scores, axis=1).tolist()  # and the minimum
    given = top
    if margin and scores.shape[1] > 1:
        given = np.diff(np.partition(scores, -2, axis=1)[:, -2:], axis=1)[:, 0].tolist()
    return [
        (label, score) if high > 0 and isfinite(high) and isfinite(least) else None
        for label, score, high, least in zip(best, given, top, low, strict=True)
    ]

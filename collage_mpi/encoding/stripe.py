"""Puts the k images of a stripe into the one picture that a parity network sees. The encoders have
the methods of `encoding.collage.Encoder`: an image is shrunk once, early, and a picture is then
pasted together.

`sum` is the mean of the k images, pixel by pixel. `concat` lays the k shrunk images side by side in
a picture of about one image's size; a collage encoder does this. Both are from ParM (Kosaian,
Rashmi and Venkataraman, "Parity Models", SOSP 2019), and an absent image is blank in both. The
third encoder is that of ApproxIFER (`berrut`), which codes only the images that are there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from collage_mpi.encoding import BERRUT, ENCODERS, MAX_K, MIN_K
from collage_mpi.encoding.berrut import coding_weights
from collage_mpi.encoding.collage import BLANK, Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import DataFault, UsageError


class _WholeImages:
    """Base of the encoders that combine k images at full size.

    Args:
        k: images of a full stripe.
        shape: (H, W, C) of the images.
    """

    resizes = False

    def __init__(self, k: int, shape: tuple[int, int, int]) -> None:
        self.places, self.shape = k, shape
        self.cell_shape = self.input_shape = shape

    def shrink(self, images: np.ndarray) -> np.ndarray:
        """Returns the images unchanged."""
        return images


class SumEncoder(_WholeImages):
    """The rounded mean of k images. An absent image counts as black, so that the divisor is always
    k.
    """

    name = "sum"

    def __init__(self, k: int, shape: tuple[int, int, int]) -> None:
        super().__init__(k, shape)
        self._total = np.empty(shape, np.uint16)

    def paste(
        self, cells: Sequence[np.ndarray | None], out: np.ndarray | None = None
    ) -> np.ndarray:
        """Put at most k images (H, W, C) uint8, or None, into `out`, a new array if None."""
        _check(cells, self.places, self.cell_shape)
        out = np.empty(self.input_shape, np.uint8) if out is None else out
        total = self._total
        total.fill(self.places // 2)  # so that the division rounds
        for cell in cells:
            if cell is not None:
                np.add(total, cell, out=total)
        np.floor_divide(total, self.places, out=total)
        np.copyto(out, total, casting="unsafe")
        return out

    def paste_many(self, cells: np.ndarray) -> np.ndarray:
        """(n, k, H, W, C) uint8, absent ones blank -> (n, H, W, C) uint8."""
        total = cells.sum(axis=1, dtype=np.uint16) + np.uint16(self.places // 2)
        found: np.ndarray = (total // np.uint16(self.places)).astype(np.uint8)
        return found


class ConcatEncoder:
    """k images shrunk to the cells of the smallest square grid that holds them.

    The picture is as large as an image, except for pixels that the grid does not divide. Cells
    beyond k stay blank.

    Args:
        k: images of a full stripe.
        shape: (H, W, C) of the images.
        threads: cores that shrinking may use; see `Encoder`.
    """

    name = "concat"

    def __init__(self, k: int, shape: tuple[int, int, int], threads: int | None = None) -> None:
        side = math.isqrt(k - 1) + 1
        cell_px = min(shape[:2]) // side
        if cell_px < 1:
            raise DataFault(f"images of {shape} are too small for {side} x {side} in one picture")
        self.places, self.shape = k, shape
        self._encoder = Encoder(Grid(side, cell_px), shape, threads)
        self.cell_shape = self._encoder.cell_shape
        self.input_shape = self._encoder.input_shape
        self.resizes = self._encoder.resizes

    def shrink(self, images: np.ndarray) -> np.ndarray:
        """(..., H, W, C) uint8 -> (..., cell_px, cell_px, C) uint8; see `Encoder.shrink`."""
        return self._encoder.shrink(images)

    def paste(
        self, cells: Sequence[np.ndarray | None], out: np.ndarray | None = None
    ) -> np.ndarray:
        """Put at most k shrunk images, or None, into `out`, a new array if None."""
        _check(cells, self.places, self.cell_shape)
        return self._encoder.paste(cells, out)

    def paste_many(self, cells: np.ndarray) -> np.ndarray:
        """(n, k, cell_px, cell_px, C) uint8, absent ones blank -> (n, P, P, C) uint8."""
        n, side, (px, _, channels) = len(cells), self._encoder.grid.side, self.cell_shape
        filled = np.full((n, side * side, px, px, channels), BLANK, np.uint8)
        filled[:, : self.places] = cells
        rows = filled.reshape(n, side, side, px, px, channels).transpose(0, 1, 3, 2, 4, 5)
        return np.ascontiguousarray(rows).reshape(n, *self.input_shape)


class BerrutEncoder(_WholeImages):
    """The coded image on Berrut's curve through those of at most k images that are there, rounded
    and clipped to black and white.
    """

    name = BERRUT

    def paste(
        self, cells: Sequence[np.ndarray | None], out: np.ndarray | None = None
    ) -> np.ndarray:
        """Put images (H, W, C) uint8, None for absent ones, into `out`, a new array if None."""
        _check(cells, self.places, self.cell_shape)
        out = np.empty(self.input_shape, np.uint8) if out is None else out
        there = [cell for cell in cells if cell is not None]
        total = np.full(self.shape, 0.5, np.float32)  # so that the conversion rounds
        weights = coding_weights(len(there)) if there else ()
        for cell, weight in zip(there, weights, strict=True):
            total += np.float32(weight) * cell
        np.copyto(out, total.clip(0, 255, out=total), casting="unsafe")
        return out


StripeEncoder = SumEncoder | ConcatEncoder
AnyEncoder = Encoder | StripeEncoder | BerrutEncoder


def paste_group(
    encoder: AnyEncoder, cells: Iterable[tuple[int, np.ndarray | None]], out: np.ndarray
) -> None:
    """Paste cells, by their number in the group and None for a blank one, into one picture.

    The images of a stripe are consecutive ones of its group.
    """
    placed: list[np.ndarray | None] = [None] * encoder.places
    for number, cell in cells:
        placed[number % encoder.places] = cell
    encoder.paste(placed, out)


def make_stripe_encoder(
    name: str, k: int, shape: tuple[int, int, int], threads: int | None = None
) -> StripeEncoder:
    """The encoder of that name.

    Raises:
        UsageError: an unknown name, or a k that cannot work.
        DataFault: images that are too small to be laid side by side.
    """
    if name not in ENCODERS:
        raise UsageError(f"parity encoder is {name!r}; known are: {', '.join(ENCODERS)}")
    if not MIN_K <= k <= MAX_K:
        raise UsageError(f"parity k is {k}; a stripe needs {MIN_K} to {MAX_K} images")
    return SumEncoder(k, shape) if name == "sum" else ConcatEncoder(k, shape, threads)


def _check(cells: Sequence[np.ndarray | None], k: int, shape: tuple[int, ...]) -> None:
    if len(cells) > k:
        raise DataFault(f"{len(cells)} images for a stripe of {k}")
    for cell in cells:
        if cell is not None and (cell.shape != shape or cell.dtype != np.uint8):
            raise DataFault(f"an image is {cell.shape} {cell.dtype}; needed {shape} uint8")

"""A stripe of k images into the one picture that a parity network looks at.

Owns: the two encoders of ParM (Kosaian, Rashmi and Venkataraman, "Parity Models",
SOSP 2019), in both of which an absent image is blank; the one of ApproxIFER (`berrut`), which
codes those that are there.
Does not know: networks, which images make a stripe, what becomes of the answer.

An image is shrunk once, early, and a picture is then pasted together, as a collage is: see
`encoding.collage.Encoder`, which has the same methods.

`sum`: the mean of the k images, pixel by pixel. `concat`: the k images shrunk and laid
side by side in a picture of about one image's size, for which a collage's encoder serves.
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
    """Of k images of the size of one, all of each.

    Args:
        k: images of a full stripe.
        shape: (H, W, C) of the images.
    """

    resizes = False

    def __init__(self, k: int, shape: tuple[int, int, int]) -> None:
        self.places, self.shape = k, shape
        self.cell_shape = self.input_shape = shape

    def shrink(self, images: np.ndarray) -> np.ndarray:
        """What of an image is kept for a stripe: all of it."""
        return images


class SumEncoder(_WholeImages):
    """The rounded mean of k images; an absent one counts as black, so that k is k always."""

    name = "sum"

    def __init__(self, k: int, shape: tuple[int, int, int]) -> None:
        super().__init__(k, shape)
        self._total = np.empty(shape, np.uint16)

    def paste(
        self, cells: Sequence[np.ndarray | None], out: np.ndarray | None = None
    ) -> np.ndarray:
        """At most k images (H, W, C) uint8, or None, into `out`, a new array if None."""
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

    The picture is as large as an image, less what the grid does not divide; cells beyond
    k stay blank.

    Args:
        k: images of a full stripe.
        shape: (H, W, C) of the images.
        threads: cores that shrinking may take; see `Encoder`.
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
        """At most k shrunk images, or None, into `out`, a new array if None."""
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
    """The point of Berrut's curve through the images that are there, of at most k; rounded, and
    cut off at black and white."""

    name = BERRUT

    def paste(
        self, cells: Sequence[np.ndarray | None], out: np.ndarray | None = None
    ) -> np.ndarray:
        """Images (H, W, C) uint8, absent ones None, into `out`, a new array if None."""
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
    """Cells by their number in their group, None for a blank one, into one picture.

    A stripe's are consecutive ones of its group.
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

"""Encodes the k images of a stripe into one picture. The encoders have the same methods as
`encoding.collage.Encoder`: images are shrunk in batches, and later pasted together.

`sum` is the mean of the k images, pixel by pixel. `concat` is a collage of the k images of about
the size of one image. Both are from ParM (Kosaian, Rashmi and Venkataraman, "Parity Models", SOSP
2019). In both a missing image is blank.

`berrut` is the encoder of ApproxIFER (Soleymani et al., AAAI 2022, arXiv 2109.09868). It uses only
the images that exist. A curve u(z) passes through image i at z = a_i, and the network's answers
along the curve, f(u(z)), are interpolated in the same way. The interpolant of Berrut (1988) through
values y at nodes t, with signs that alternate in the order of the nodes, has no pole on the real
line:

    r(z) = sum_i (-1)^i y_i / (z - t_i)  /  sum_i (-1)^i / (z - t_i)

The paper encodes every query. Here the code is systematic: all queries except one are the images
themselves, so the answer for an image is exact if it arrives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np

from collage_mpi.encoding import ENCODERS, MAX_K, MIN_K
from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import DataFault, UsageError


class _WholeImages:
    """Base class of encoders that combine k images at full size.

    Args:
        k: images of a full stripe.
        shape: (H, W, C) of the images.
    """

    resizes = False

    def __init__(self, k: int, shape: tuple[int, ...]) -> None:
        self.places, self.shape = k, shape
        self.cell_shape = self.input_shape = shape

    def shrink(self, images: np.ndarray) -> np.ndarray:
        """Returns the images unchanged."""
        return images

    def paste(
        self, cells: Sequence[np.ndarray | None], out: np.ndarray | None = None
    ) -> np.ndarray:
        """Combine at most k images, (H, W, C) uint8, or None for a missing one. `out` is the array
        to write to; None for a new one."""
        if len(cells) > self.places:
            raise DataFault(f"{len(cells)} images for a stripe of {self.places}")
        there = [cell for cell in cells if cell is not None]
        for cell in there:
            if cell.shape != self.shape or cell.dtype != np.uint8:
                raise DataFault(f"an image is {cell.shape} {cell.dtype}; needed {self.shape} uint8")
        out = np.empty(self.shape, np.uint8) if out is None else out
        np.copyto(out, self._combined(there), casting="unsafe")
        return out

    def _combined(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """The combined image, (H, W, C), with values from 0 to 255."""
        raise NotImplementedError


class SumEncoder(_WholeImages):
    """The rounded mean of k images. A missing image counts as black, so the divisor is always k."""

    def __init__(self, k: int, shape: tuple[int, ...]) -> None:
        super().__init__(k, shape)
        self._total = np.empty(shape, np.uint16)

    def _combined(self, images: Sequence[np.ndarray]) -> np.ndarray:
        total = self._total
        total.fill(self.places // 2)  # so that the division rounds
        for image in images:
            np.add(total, image, out=total)
        return np.floor_divide(total, self.places, out=total)

    def paste_many(self, cells: np.ndarray) -> np.ndarray:
        """Encode n stripes: (n, k, H, W, C) uint8, with blank images -> (n, H, W, C) uint8."""
        total = cells.sum(axis=1, dtype=np.uint16) + np.uint16(self.places // 2)
        found: np.ndarray = (total // np.uint16(self.places)).astype(np.uint8)
        return found


class ConcatEncoder(Encoder):
    """k images in a collage with the smallest square grid that has k cells. Further cells are
    blank.

    Each edge of the collage is as long as the shorter edge of an image, rounded down to whole
    cells.

    Args:
        k: images of a full stripe.
        shape: (H, W, C) of the images.
        threads: see `Encoder`.

    Raises:
        DataFault: the images are too small.
    """

    def __init__(self, k: int, shape: tuple[int, ...], threads: int | None) -> None:
        side = math.isqrt(k - 1) + 1
        cell_px = min(shape[:2]) // side
        if cell_px < 1:
            raise DataFault(f"images of {shape} are too small for {side} x {side} in one picture")
        super().__init__(Grid(side, cell_px), shape, threads)
        self.places = k


def interpolation_weights(nodes: np.ndarray, at: float) -> np.ndarray:
    """(n,) float64 with sum 1: the weights of the nodes' values in Berrut's interpolant at a point.

    Args:
        nodes: (n,) float64, distinct, in any order.
        at: the point. At a node, the weight of this node is 1.
    """
    weights = np.zeros(len(nodes))
    distances = at - nodes
    if not distances.all():
        weights[distances == 0] = 1.0
        return weights
    order = np.argsort(-nodes)
    weights[order] = np.where(np.arange(len(nodes)) % 2, -1.0, 1.0) / distances[order]
    weights /= weights.sum()
    return weights


def positions(n: int) -> tuple[np.ndarray, float]:
    """The positions of n images on the curve, (n,) float64, descending: Chebyshev points of the
    first kind; and the position of the encoded image, in angle midway between two images near the
    middle.
    """
    angles = (2 * np.arange(n) + 1) * np.pi / (2 * n)
    return np.cos(angles), float(np.cos(np.pi * (n // 2) / n))


@lru_cache
def coding_weights(n: int) -> np.ndarray:
    """(n,) float64: the weights of n images in the encoded image. The array is cached, so do not
    change it.
    """
    return interpolation_weights(*positions(n))


@lru_cache
def missing_weights(n: int, place: int) -> np.ndarray:
    """(n,) float64: the weights from which the answer for image `place` of n is reconstructed: of
    the answers for the n - 1 other images, in order, then of the answer for the encoded image. The
    array is cached, so do not change it.
    """
    images, coded = positions(n)
    return interpolation_weights(np.append(np.delete(images, place), coded), images[place])


class BerrutEncoder(_WholeImages):
    """The point on Berrut's curve through the images of a stripe, rounded, and clipped to 0 to
    255."""

    def _combined(self, images: Sequence[np.ndarray]) -> np.ndarray:
        total = np.full(self.shape, 0.5, np.float32)  # so that the conversion rounds
        weights = coding_weights(len(images)) if images else ()
        for image, weight in zip(images, weights, strict=True):
            total += np.float32(weight) * image
        return total.clip(0, 255, out=total)


StripeEncoder = SumEncoder | ConcatEncoder
AnyEncoder = Encoder | StripeEncoder | BerrutEncoder


def paste_group(
    encoder: AnyEncoder, cells: Iterable[tuple[int, np.ndarray | None]], out: np.ndarray
) -> None:
    """Paste cells of a group into one picture.

    Args:
        cells: (number in the group, cell) each; None for a blank cell. The images of a stripe are
            consecutive in their group.
        out: the picture to write to, of `encoder.input_shape`.
    """
    placed: list[np.ndarray | None] = [None] * encoder.places
    for number, cell in cells:
        placed[number % encoder.places] = cell
    encoder.paste(placed, out)


def make_stripe_encoder(
    name: str, k: int, shape: tuple[int, ...], threads: int | None = None
) -> StripeEncoder:
    """The encoder with this name, one of ENCODERS.

    Raises:
        UsageError: the name is unknown, or k is not MIN_K to MAX_K.
        DataFault: the images are too small for `concat`.
    """
    if name not in ENCODERS:
        raise UsageError(f"parity encoder is {name!r}; known are: {', '.join(ENCODERS)}")
    if not MIN_K <= k <= MAX_K:
        raise UsageError(f"parity k is {k}; a stripe needs {MIN_K} to {MAX_K} images")
    return SumEncoder(k, shape) if name == "sum" else ConcatEncoder(k, shape, threads)

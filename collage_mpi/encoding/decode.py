"""Turns a network's scores into answers, also for the image of a stripe whose own answer is
missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np

from collage_mpi.encoding.stripe import missing_weights
from collage_mpi.errors import DataFault

FLOOR = 1e-3  # probabilities below count as this: how small they are is noise in a sum of logs


def decode(scores: np.ndarray) -> list[tuple[int, float] | None]:
    """One (class, score) a cell; None if the network gave no answer.

    Args:
        scores: (cells, classes) float32 probabilities. A row is absent if a value is not
            finite or no value is above zero.

    Returns:
        A list of `cells` entries. Of equal scores the lowest class wins.

    Raises:
        DataFault: an array with another number of dimensions, or without classes.
    """
    if scores.ndim != 2 or scores.shape[1] < 1:
        raise DataFault(f"scores are {scores.shape}; needed (cells, classes)")
    # Lists, and no masks: a few cells cost 4 us so, 13 us by numpy's element-wise functions.
    best = scores.argmax(axis=1).tolist()  # (cells,)
    top = np.maximum.reduce(scores, axis=1).tolist()  # (cells,); a NaN is both largest
    low = np.minimum.reduce(scores, axis=1).tolist()  # and smallest
    return [
        (label, high) if high > 0 and isfinite(high) and isfinite(least) else None
        for label, high, least in zip(best, top, low, strict=True)
    ]


def summands(scores: np.ndarray, summed: str) -> np.ndarray:
    """The values of a single network's answers whose sum a parity network learns.

    "logits" are logarithms of the probabilities minus their mean over the classes: the calibrated
    logits of the last layer, unless a probability is below FLOOR.

    Args:
        scores: (..., classes) probabilities.
        summed: one of SUMMED.

    Returns:
        The same shape, float32.
    """
    if summed == "probabilities":
        return np.asarray(scores, np.float32)
    logs = np.log(np.maximum(scores, np.float32(FLOOR)), dtype=np.float32)
    found: np.ndarray = logs - logs.mean(axis=-1, keepdims=True)
    return found


def parity_scores(
    total: np.ndarray,
    others: Sequence[np.ndarray],
    temperature: float,
    place: int | None = None,
) -> np.ndarray | None:
    """The scores of the missing image; arguments as for `decode_parity`.

    Returns:
        (classes,) float64 with sum 1; None if a value is not finite.
    """
    left = np.array(total, np.float64)
    if place is None:
        for other in others:
            left -= other
    else:
        left = missing_weights(len(others) + 1, place) @ np.array([*others, total], np.float64)
    if not np.isfinite(left).all():
        return None
    powers = np.exp((left - left.max()) / temperature)
    found: np.ndarray = powers / powers.sum()
    return found


def decode_parity(
    total: np.ndarray,
    others: Sequence[np.ndarray],
    temperature: float,
    place: int | None = None,
) -> tuple[int, float] | None:
    """The answer for the missing image of a stripe: the parity network's answer minus the others.

    ParM (SOSP 2019), section 3: the decoder is a subtraction. The score is the softmax of the
    difference at the temperature that was fitted to it. If the stripe is Berrut's, the answer is
    the interpolant at the place of the missing image (`stripe`).

    Args:
        total: (classes,) float32, the network's answer for the stripe.
        others: (classes,) float32 each, the `summands` of all other images in it, in order.
        place: of the missing image among all images, if the answer is to be interpolated.

    Returns:
        (class, score); None if a value is not finite.
    """
    scores = parity_scores(total, others, temperature, place)
    if scores is None:
        return None
    best = int(scores.astype(np.float32).argmax())  # as it is kept: a tie there is the lower one
    return best, float(scores[best])

"""Turns a network's scores into answers, and reconstructs the missing answer of a stripe."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np

from collage_mpi.encoding.stripe import missing_weights
from collage_mpi.errors import DataFault

FLOOR = 1e-3  # smaller probabilities are raised to this, because their logarithms are mostly noise


def decode(scores: np.ndarray) -> list[tuple[int, float] | None]:
    """The answers of a collage's cells.

    Args:
        scores: (cells, classes) float32 probabilities. A row in which a value is not finite, or no
            value is positive, has no answer.

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
    return [
        (label, high) if high > 0 and isfinite(high) and isfinite(least) else None
        for label, high, least in zip(best, top, low, strict=True)
    ]


def summands(scores: np.ndarray, summed: str) -> np.ndarray:
    """The values of a single network whose sum a parity network learns.

    "logits" are the logarithms of the probabilities minus their mean over the classes. These are
    the calibrated logits of the last layer, unless a probability is below FLOOR.

    Args:
        scores: (..., classes) probabilities.
        summed: one of SUMMED.

    Returns:
        (..., classes) float32.
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
    """The scores of the missing image. For the arguments see `decode_parity`.

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
    """Reconstruct the answer for the missing image of a stripe.

    It is the parity network's answer minus the answers for the other images (ParM, SOSP 2019,
    section 3). The score is the softmax of the difference, at the temperature that was fitted to
    it. For a Berrut stripe the answer is interpolated at the position of the missing image
    (`stripe`).

    Args:
        total: (classes,) float32, the network's answer for the stripe.
        others: (classes,) float32 each, the `summands` of all other images of the stripe, in order.
        temperature: of the softmax.
        place: index of the missing image in a Berrut stripe; None for a difference.

    Returns:
        (class, score); None if a value is not finite.
    """
    scores = parity_scores(total, others, temperature, place)
    if scores is None:
        return None
    best = int(scores.astype(np.float32).argmax())  # ties as in the stored float32 scores
    return best, float(scores[best])

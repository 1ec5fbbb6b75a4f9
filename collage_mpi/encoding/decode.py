"""Turns a network's scores into answers."""

from __future__ import annotations

from math import isfinite

import numpy as np

from collage_mpi.errors import DataFault


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

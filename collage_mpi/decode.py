"""Scores of a network into answers.

Owns: which class a row of scores means, and when it means none.
Does not know: MPI, who asked, which network it was, which cells are blank.
"""

from __future__ import annotations

from math import isfinite

import numpy as np

from collage_mpi.errors import DataFault


def decode(scores: np.ndarray) -> list[tuple[int, float] | None]:
    """One (class, score) a cell; None where the network gave no answer.

    Args:
        scores: (cells, classes) float32 probabilities. A row with a value that is not
            finite, or with no value above zero, is absent.

    Returns:
        A list of `cells` entries. Of equal scores the lowest class wins.

    Raises:
        DataFault: an array of another rank, or no classes.
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

"""Scores of a network into answers.

Owns: which class a row of scores means, and when it means none.
Does not know: MPI, who asked, which network it was, which cells are blank.
"""

from __future__ import annotations

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
    best = scores.argmax(axis=1)  # (cells,); a NaN is taken as the largest
    top = scores[np.arange(len(scores)), best]  # (cells,)
    present = np.isfinite(scores).all(axis=1) & (top > 0)
    return [
        (int(label), float(score)) if here else None
        for label, score, here in zip(best, top, present, strict=True)
    ]

"""What answers are worth: accuracy, overall, by place in the collage and by class, and
calibration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from collage_mpi.training.calibration import bins, calibration_error

PLACES = ("corner", "edge", "centre")
AT = {"corner": "at a corner", "edge": "at an edge", "centre": "in the centre"}


def judge(
    answers: Sequence[tuple[int, float] | None],
    labels: np.ndarray,
    classes: int,
    side: int | None,
) -> dict[str, Any]:
    """Accuracy and calibration of answers, as plain values for JSON.

    Args:
        answers: (class, score) for each image. None, no answer, counts as wrong.
        labels: (n,) int64.
        side: of the collage, image i is in cell i % side**2; None for a single network.

    Returns:
        images, accuracy, absent (share), ece and mean_score (of answers), reliability (the
        bins of the ece), confusion (counts, label by answer; images without an answer are
        left out), and for a collage `places`: images and accuracy at corners, edges and centre.
    """
    here = np.array([answer is not None for answer in answers], dtype=bool)  # (n,)
    chosen = np.array([a[0] if a else 0 for a in answers], dtype=np.int64)
    scores = np.array([a[1] if a else 0.0 for a in answers], dtype=np.float64)
    right = here & (chosen == labels)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels[here], chosen[here]), 1)
    report: dict[str, Any] = {
        "images": len(labels),
        "accuracy": float(right.mean()),
        "absent": float((~here).mean()),
        "ece": calibration_error(scores[here], right[here]),
        "mean_score": float(scores[here].mean()) if here.any() else None,
        "reliability": [
            {"answers": b.count, "score": b.score, "accuracy": b.accuracy}
            for b in bins(scores[here], right[here])
        ],
        "confusion": confusion.tolist(),
    }
    if side is not None:
        report["places"] = by_place(right, side)
    return report


def by_place(right: np.ndarray, side: int) -> dict[str, dict[str, float]]:
    """place -> images and accuracy. A small grid lacks some places; they are left out.

    Args:
        right: (n,) bool, image i in cell i % side**2.
    """
    row, column = np.divmod(np.arange(len(right)) % (side * side), side)
    at_edge = ((row == 0) | (row == side - 1)).astype(int) + ((column == 0) | (column == side - 1))
    found = {}
    for place, edges in zip(PLACES, (2, 1, 0), strict=True):
        mine = right[at_edge == edges]
        if len(mine):
            found[place] = {"images": len(mine), "accuracy": float(mine.mean())}
    return found

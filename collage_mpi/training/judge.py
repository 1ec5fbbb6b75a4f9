"""Measures answers of networks: accuracy (overall, by place in the collage and by class) and the
calibration of scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Answers = Sequence[tuple[int, float] | None]


def right(answers: Answers, labels: np.ndarray) -> np.ndarray:
    """(n,) bool: whether each answer is the label. A missing answer is wrong."""
    return np.array(
        [
            answer is not None and answer[0] == label
            for answer, label in zip(answers, labels, strict=True)
        ],
        dtype=bool,
    )


BINS = 15


def fit_temperature(scores_at: Callable[[float], np.ndarray], labels: np.ndarray) -> float:
    """The temperature from 0.2 to 5 that minimises the log loss, found in steps of 8 %, then of 1 %
    (temperature scaling: Guo et al. 2017, arXiv 1706.04599).

    Args:
        scores_at: temperature -> (n, classes) float probabilities; rows of zeros have no answer.
        labels: (n,) int64.
    """

    def best(candidates: np.ndarray) -> float:
        losses = [log_loss(scores_at(float(t)), labels) for t in candidates]
        return float(candidates[int(np.argmin(losses))])

    rough = best(np.exp(np.arange(np.log(0.2), np.log(5.0) + 1e-9, 0.08)))
    return round(best(rough * np.exp(np.arange(-0.08, 0.081, 0.01))), 4)


def log_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean of -log(score of the label). A missing answer counts as a guess among all
    classes."""
    own = scores[np.arange(len(labels)), labels]
    own = np.where(answered(scores), np.maximum(own, 1e-9), 1 / scores.shape[1])
    return float(-np.log(own).mean())


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows of scores, (n, classes), whose highest score is that of the label. A
    missing answer is wrong."""
    return float(((scores.argmax(1) == labels) & answered(scores)).mean())


def answered(scores: np.ndarray) -> np.ndarray:
    """(n,) bool: which rows of scores, (n, classes), are answers, as in `decode`."""
    found: np.ndarray = np.isfinite(scores).all(axis=1) & (scores.max(axis=1) > 0)
    return found


def bins(top: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """Answers in BINS equal intervals of score from 0 to 1: the number of `answers`, their mean
    `score` and their `accuracy`. Empty intervals are left out.

    Args:
        top: (n,) float, the score of each answer.
        right: (n,) bool.
    """
    place = np.clip((top * BINS).astype(np.int64), 0, BINS - 1)
    found = []
    for number in np.unique(place):
        mine = place == number
        means = {"score": float(top[mine].mean()), "accuracy": float(right[mine].mean())}
        found.append({"answers": int(mine.sum()), **means})
    return found


def calibration_error(top: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error: the mean distance between score and accuracy over `bins`,
    weighted by their answers; 0.0 if there are no answers.
    """
    off = (b["answers"] * abs(b["score"] - b["accuracy"]) for b in bins(top, right))
    return float(sum(off) / max(1, len(top)))


PLACES = ("corner", "edge", "centre")
AT = {"corner": "at a corner", "edge": "at an edge", "centre": "in the centre"}


def judge(
    answers: Sequence[tuple[int, float] | None],
    labels: np.ndarray,
    classes: int,
    side: int | None,
) -> dict[str, Any]:
    """The accuracy and calibration of answers, as plain values for JSON.

    Args:
        answers: (class, score) for each image; None for no answer, which counts as wrong.
        labels: (n,) int64.
        classes: number of classes.
        side: of the collage, in which image i is in cell i % side**2; None for a single network.

    Returns:
        images, accuracy, absent (share without an answer), ece (expected calibration error) and
        mean_score of the answers, reliability (see `bins`), confusion (counts, labels by answers);
        and for a collage `places`, see `by_place`.
    """
    here = np.array([answer is not None for answer in answers], dtype=bool)  # (n,)
    chosen = np.array([a[0] if a else 0 for a in answers], dtype=np.int64)
    scores = np.array([a[1] if a else 0.0 for a in answers], dtype=np.float64)
    correct = right(answers, labels)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels[here], chosen[here]), 1)
    report: dict[str, Any] = {
        "images": len(labels),
        "accuracy": float(correct.mean()),
        "absent": float((~here).mean()),
        "ece": calibration_error(scores[here], correct[here]),
        "mean_score": float(scores[here].mean()) if here.any() else None,
        "reliability": bins(scores[here], correct[here]),
        "confusion": confusion.tolist(),
    }
    if side is not None:
        report["places"] = by_place(correct, side)
    return report


def by_place(right: np.ndarray, side: int) -> dict[str, dict[str, float]]:
    """Images and accuracy at corners, edges and in the centre. A place that a small grid does not
    have is left out.

    Args:
        right: (n,) bool; image i is in cell i % side**2.
    """
    row, column = np.divmod(np.arange(len(right)) % (side * side), side)
    at_edge = ((row == 0) | (row == side - 1)).astype(int) + ((column == 0) | (column == side - 1))
    found = {}
    for place, edges in zip(PLACES, (2, 1, 0), strict=True):
        mine = right[at_edge == edges]
        if len(mine):
            found[place] = {"images": len(mine), "accuracy": float(mine.mean())}
    return found

"""Whether scores mean what they say: temperature scaling and the expected calibration error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

BINS = 15


@dataclass(frozen=True)
class Bin:
    """Answers with about the same score: how many, their mean score, and the share that is
    right.
    """

    count: int
    score: float
    accuracy: float


def fit_temperature(scores_at: Callable[[float], np.ndarray], labels: np.ndarray) -> float:
    """The temperature from 0.2 to 5 that minimises the log loss, searched in steps of 8 %, then 1
    %.

    Temperature scaling: Guo et al. 2017, arXiv 1706.04599.

    Args:
        scores_at: (n, classes) float probabilities at a temperature; zeros where absent.
        labels: (n,) int64.
    """

    def best(candidates: np.ndarray) -> float:
        losses = [log_loss(scores_at(float(t)), labels) for t in candidates]
        return float(candidates[int(np.argmin(losses))])

    rough = best(np.exp(np.arange(np.log(0.2), np.log(5.0) + 1e-9, 0.08)))
    return round(best(rough * np.exp(np.arange(-0.08, 0.081, 0.01))), 4)


def log_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log of the label's score. A missing answer counts as a guess among all classes."""
    own = scores[np.arange(len(labels)), labels]
    own = np.where(answered(scores), np.maximum(own, 1e-9), 1 / scores.shape[1])
    return float(-np.log(own).mean())


def accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    """Share of (n, classes) scores whose highest is the label's. A missing answer is wrong."""
    return float(((scores.argmax(1) == labels) & answered(scores)).mean())


def answered(scores: np.ndarray) -> np.ndarray:
    """(n,) bool: whether a row of (n, classes) scores is an answer, as `decode` sees it."""
    found: np.ndarray = np.isfinite(scores).all(axis=1) & (scores.max(axis=1) > 0)
    return found


def bins(top: np.ndarray, right: np.ndarray, count: int = BINS) -> list[Bin]:
    """Answers by score, in `count` equal intervals from 0 to 1. Empty intervals are left out.

    Args:
        top: (n,) float, the score of each answer.
        right: (n,) bool.
    """
    place = np.clip((top * count).astype(np.int64), 0, count - 1)
    found = []
    for number in np.unique(place):
        mine = place == number
        found.append(Bin(int(mine.sum()), float(top[mine].mean()), float(right[mine].mean())))
    return found


def calibration_error(top: np.ndarray, right: np.ndarray, count: int = BINS) -> float:
    """Expected calibration error: mean distance of score and accuracy over the bins' answers.

    0.0 when there are no answers.
    """
    total = max(1, len(top))
    return sum(b.count * abs(b.score - b.accuracy) for b in bins(top, right, count)) / total

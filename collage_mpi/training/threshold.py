"""From which score on a collage's answers may count, so that hardly any accuracy is given away.

Owns: the choice on one half of the images, the measurement on the other.
Does not know: networks, files.
"""

from __future__ import annotations

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.models.accept_spec import AcceptSpec
from collage_mpi.training.answers import Answers
from collage_mpi.training.measure import right

MOST_POINTS = 0.1  # percentage points of accuracy
LEAST_IMAGES = 1000  # a half of fewer tells nothing of a tenth of a point


def choose_threshold(
    single: Answers, collage: Answers, labels: np.ndarray, cells: int, fingerprint: str
) -> AcceptSpec:
    """The least score from which on, on every other group, at most MOST_POINTS are lost.

    What is lost is counted as if every cell of at least that score came before its single
    answer, and a standard error is added, so that it holds on the other groups too.

    Args:
        single, collage: n answers each, groups of `cells` in order.
        labels: (n,) int64.
        cells: images of a group.
        fingerprint: of the single network.

    Raises:
        DataFault: too few images; no score costs so little, or the chosen one costs more on the
            other groups.
    """
    if len(labels) < 2 * LEAST_IMAGES:
        raise DataFault(
            f"{len(labels):,} labelled images: a threshold needs {2 * LEAST_IMAGES:,}, half of "
            "them to choose it and half to measure what it costs"
        )
    scores = np.array([-1.0 if answer is None else answer[1] for answer in collage])  # (n,)
    lost = right(single, labels).astype(int) - right(collage, labels)  # (n,) -1, 0, 1
    chosen = np.arange(len(labels)) // cells % 2 == 0  # (n,) bool, whole groups
    confidence = _least(scores[chosen], lost[chosen])
    if confidence is None:
        raise DataFault(
            f"no score of the collage network costs less than {MOST_POINTS:g} points here: use "
            "--accept backup, or train it further"
        )
    counts = scores >= confidence

    def points(part: np.ndarray) -> float:
        return round(100 * float(lost[part & counts].sum()) / int(part.sum()), 3)

    measured = points(~chosen)
    if measured > MOST_POINTS:
        raise DataFault(
            f"the score {confidence:g} gives {measured:.2f} points away on the images that did not "
            f"choose it, more than {MOST_POINTS:g}: there is no threshold; use --accept backup"
        )
    return AcceptSpec(
        confidence,
        fingerprint,
        int(chosen.sum()),
        points(chosen),
        int((~chosen).sum()),
        measured,
        round(float(counts[~chosen].mean()), 3),
    )


def _least(scores: np.ndarray, lost: np.ndarray) -> float | None:
    """The least score such that it and every higher one cost little enough; None if none does."""
    order = np.argsort(-scores, kind="stable")
    at, so_far = scores[order], np.cumsum(lost[order])  # (n,) from the surest on
    error = np.sqrt(np.cumsum(lost[order] ** 2))
    within = 100 * (so_far + error) / len(scores) <= MOST_POINTS
    last = np.append(at[1:] != at[:-1], True)  # of several with the same score
    fails = np.flatnonzero(last & ~within)
    good = np.flatnonzero(last)
    good = good[good < fails[0]] if len(fails) else good
    good = good[at[good] >= 0]
    if not len(good):
        return None
    confidence = float(np.ceil(at[good[-1]] * 1e4) / 1e4)
    return min(confidence, 1.0)

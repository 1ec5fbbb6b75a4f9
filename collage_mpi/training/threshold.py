"""Chooses the score from which the answers of a network that is asked first may count, on one half
of the images, and measures on the other half what it costs in accuracy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.models.accept_spec import AcceptSpec
from collage_mpi.training.answers import Answers, right

MOST_POINTS = 0.1  # percentage points of accuracy
LEAST_IMAGES = 2000  # in all: a smaller half tells nothing of a tenth of a point


@dataclass(frozen=True)
class Aim:
    """What a threshold is chosen for.

    Attributes:
        share: most answers count, for a loss of at most most_points. If not, accuracy is highest.
        most_points: percentage points of accuracy, of all images.
        errors: standard errors that are added to the loss. The score is the lowest of many that
            pass, so that one of them may have passed by luck: more errors make that rarer.
    """

    share: bool = True
    most_points: float = MOST_POINTS
    errors: float = 1.0


SHARE, ACCURACY = Aim(), Aim(share=False)


def choose_threshold(
    single: Answers,
    first: Answers,
    labels: np.ndarray,
    cells: int,
    fingerprint: str,
    aim: Aim = SHARE,
) -> AcceptSpec:
    """The score chosen on every other group, and what it costs on the groups between.

    With the aim "share" it is the lowest score that loses at most MOST_POINTS, so that most cells
    count. With "accuracy" it is the score that gains most. The loss or gain is counted as if every
    cell with at least that score came before its single answer, and standard errors are added on
    the safe side, so that it holds on the other groups too. Scores are taken in steps of 0.0001.

    Args:
        single, first: n answers each, groups of `cells` in order.
        labels: (n,) int64.
        cells: images of a group: those of a collage, or of a batch for a quick network.
        fingerprint: of the single network.

    Raises:
        DataFault: there are too few images; no score costs so little, or gains; or the chosen
            score costs more than MOST_POINTS, or anything at all, on the other groups.
    """
    require_images(len(labels))
    scores, lost = scores_and_losses(single, first, labels)
    chosen = choosing_half(len(labels), cells)
    confidence = chosen_score(scores[chosen], lost[chosen], aim)
    if confidence is None:
        why = f"costs less than {aim.most_points:g} points" if aim.share else "gains accuracy"
        raise DataFault(f"no score of the network {why} here: {_remedy(aim)}")
    counts = scores >= confidence

    def points(part: np.ndarray) -> float:
        return round(100 * float(lost[part & counts].sum()) / int(part.sum()), 3)

    measured = points(~chosen)
    allowed = aim.most_points if aim.share else 0
    if measured > allowed:
        raise DataFault(
            f"the score {confidence:g} gives {measured:.2f} points away on the images that did not "
            f"choose it, more than {allowed:g}: there is no threshold; {_remedy(aim)}"
        )
    return AcceptSpec(
        confidence,
        fingerprint,
        int(chosen.sum()),
        points(chosen),
        int((~chosen).sum()),
        measured,
        round(float(counts[~chosen].mean()), 3),
        _agreeing(single, first, counts & ~chosen),
    )


def _agreeing(single: Answers, first: Answers, counts: np.ndarray) -> float | None:
    """The share of the cells that count, (n,) bool, which the single network's answers equal."""
    alike = [
        mine is not None and cell is not None and mine[0] == cell[0]
        for mine, cell, among in zip(single, first, counts, strict=True)
        if among
    ]
    return round(float(np.mean(alike)), 4) if alike else None


def require_images(n: int) -> None:
    """Raise DataFault if `n` labelled images are too few for a threshold."""
    if n < LEAST_IMAGES:
        raise DataFault(
            f"{n:,} labelled images: a threshold needs {LEAST_IMAGES:,}, half of them to choose it "
            "and half to measure what it costs"
        )


def _remedy(aim: Aim) -> str:
    other = "--aim accuracy, " if aim.share else ""
    return f"try {other}--errors {aim.errors + 1:g}, use --accept backup, or train it further"


def scores_and_losses(
    single: Answers, collage: Answers, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The score of each image's cell, and what is lost if the cell counts.

    Returns:
        (n,) float64 in steps of 0.0001, -1 if the cell has no answer; and (n,) int: 1 if only
        the single network is right, -1 if only the cell is right, else 0.
    """
    scores = np.array([-1.0 if answer is None else float(answer[1]) for answer in collage])
    lost = right(single, labels).astype(int) - right(collage, labels)
    return np.floor(scores * 1e4) / 1e4, lost


def choosing_half(n: int, cells: int) -> np.ndarray:
    """(n,) bool: the images of every other group, which are used to choose; the others measure."""
    half: np.ndarray = np.arange(n) // cells % 2 == 0
    return half


def chosen_score(scores: np.ndarray, lost: np.ndarray, aim: Aim = SHARE) -> float | None:
    """The score for the aim, or None if there is none.

    Args:
        scores, lost: (n,) of the cells that choose.
    """
    order = np.argsort(-scores, kind="stable")
    at, so_far = scores[order], np.cumsum(lost[order])  # (n,) from the surest on
    worst = so_far + aim.errors * np.sqrt(np.cumsum(lost[order] ** 2))
    ends = np.flatnonzero(np.append(at[1:] != at[:-1], True))  # of several with the same score
    ends = ends[at[ends] >= 0]
    if not aim.share:
        least = ends[worst[ends] == worst[ends].min(initial=0)]  # the last: most cells
        found = least[-1] if len(least) and worst[least[-1]] < 0 else None
    else:
        fails = np.flatnonzero(100 * worst[ends] / len(scores) > aim.most_points)
        good = ends[: fails[0]] if len(fails) else ends
        found = good[-1] if len(good) else None
    return None if found is None else float(at[found])

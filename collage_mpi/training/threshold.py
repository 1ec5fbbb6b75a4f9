"""Judges answers of networks: accuracy (overall, by place in the collage and by class) and the
calibration of scores. Chooses the threshold for the scores of a network that is asked before the
single network, on one half of the images, measures it on the other half, and computes the saving.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.models.architecture import AcceptSpec
from collage_mpi.rows import CELL, PRESENT
from collage_mpi.system.table import Table, to_text


def right(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(n,) bool: whether each answer, (n,) of CELL, is the label. A missing answer is wrong."""
    return (answers["state"] == PRESENT) & (answers["label"] == labels)


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
    return np.isfinite(scores).all(axis=1) & (scores.max(axis=1) > 0)


def answers_in(scores: np.ndarray) -> np.ndarray:
    """The answers that rows of scores, (n, classes), give, as in `decode`: (n,) of CELL."""
    found, here = np.zeros(len(scores), CELL), answered(scores)
    found["label"][here], found["score"][here] = scores[here].argmax(1), scores[here].max(1)
    found["state"][here] = PRESENT
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
    answers: np.ndarray, labels: np.ndarray, classes: int, side: int | None
) -> dict[str, Any]:
    """The accuracy and calibration of answers, as plain values for JSON.

    Args:
        answers: (n,) of CELL. A missing answer counts as wrong.
        labels: (n,) int64.
        classes: number of classes.
        side: of the collage, in which image i is in cell i % side**2; None for a single network.

    Returns:
        images, accuracy, absent (share without an answer), ece (expected calibration error) and
        mean_score of the answers, reliability (see `bins`), confusion (counts, labels by answers);
        and for a collage `places`, see `by_place`.
    """
    here, scores = answers["state"] == PRESENT, answers["score"].astype(np.float64)
    correct = right(answers, labels)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels[here], answers["label"][here]), 1)
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


MOST_POINTS = 0.1  # percentage points of accuracy
LEAST_IMAGES = 2000  # in both halves; with fewer, 0.1 percentage points cannot be measured
SHARES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)  # of cells that count, on the curve


@dataclass(frozen=True)
class Aim:
    """The aim of a threshold.

    Attributes:
        share: if True, as many answers as possible count with a loss of at most most_points. If
            False, the threshold gives the highest accuracy.
        most_points: percentage points of accuracy over all images.
        errors: number of standard errors that are added to the loss. The threshold is the lowest of
            many that pass, and one may pass by chance. More standard errors make this rarer.
    """

    share: bool = True
    most_points: float = MOST_POINTS
    errors: float = 2.0


SHARE, ACCURACY = Aim(), Aim(share=False)


@dataclass(frozen=True)
class TwoStages:
    """The answers of a first network and of the single network to the same images.

    Attributes:
        single, first: (n,) of CELL each, in the same order.
        labels: (n,) int64.
        cells: images in a group: of a collage, or of a batch of a quick network. Thresholds are
            chosen on every second group and measured on the others.
    """

    single: np.ndarray
    first: np.ndarray
    labels: np.ndarray
    cells: int

    @cached_property
    def scores(self) -> np.ndarray:
        """(n,) float64: the first network's scores, in steps of 0.0001; -1 without an answer."""
        scores = np.floor(self.first["score"].astype(np.float64) * 1e4) / 1e4
        return np.where(self.first["state"] == PRESENT, scores, -1.0)

    @cached_property
    def lost(self) -> np.ndarray:
        """(n,) int: 1 if only the single network is right, -1 if only the first network is, else
        0."""
        both = [right(answers, self.labels).astype(int) for answers in (self.single, self.first)]
        return both[0] - both[1]

    @cached_property
    def chooses(self) -> np.ndarray:
        """(n,) bool: the images on which thresholds are chosen."""
        return np.arange(len(self.labels)) // self.cells % 2 == 0

    def best_score(self, aim: Aim) -> float | None:
        """The threshold for an aim; None if no threshold reaches it."""
        scores, lost = self.scores[self.chooses], self.lost[self.chooses]
        order = np.argsort(-scores, kind="stable")
        at, so_far = scores[order], np.cumsum(lost[order])  # (m,) by descending score
        worst = so_far + aim.errors * np.sqrt(np.cumsum(lost[order] ** 2))
        ends = np.flatnonzero(np.append(at[1:] != at[:-1], True))  # the last of each score
        ends = ends[at[ends] >= 0]
        if not aim.share:
            least = ends[worst[ends] == worst[ends].min(initial=0)]  # the last has most cells
            found = least[-1] if len(least) and worst[least[-1]] < 0 else None
        else:
            fails = np.flatnonzero(100 * worst[ends] / len(scores) > aim.most_points)
            good = ends[: fails[0]] if len(fails) else ends
            found = good[-1] if len(good) else None
        return None if found is None else float(at[found])

    def points(self, confidence: float, part: np.ndarray) -> float:
        """The loss of accuracy in percentage points with a threshold, over a part, (n,) bool."""
        counts = part & (self.scores >= confidence)
        return round(100 * float(self.lost[counts].sum()) / int(part.sum()), 3)

    def agreeing(self, confidence: float) -> float | None:
        """The share of measured answers that count and agree with the single network; None if none
        counts."""
        counts = ~self.chooses & (self.scores >= confidence)
        alike = right(self.single, self.first["label"])[counts]
        return round(float(alike.mean()), 4) if len(alike) else None


def choose_threshold(stages: TwoStages, fingerprint: str, aim: Aim = SHARE) -> AcceptSpec:
    """Choose a threshold on every second group, and measure its loss on the other groups.

    With the aim SHARE it is the lowest score that loses at most MOST_POINTS, so that most cells
    count. With ACCURACY it is the score that gains most. The loss is computed as if every cell with
    at least this score were accepted. Standard errors are added to it, so that it holds on other
    images too.

    Args:
        fingerprint: of the single network.

    Raises:
        DataFault: there are too few images, no threshold reaches the aim, or the chosen one loses
            too much on the other groups.
    """
    require_images(len(stages.labels))
    confidence = stages.best_score(aim)
    if confidence is None:
        why = f"costs less than {aim.most_points:g} points" if aim.share else "gains accuracy"
        raise DataFault(f"no score of the network {why} here: {_remedy(aim)}")
    chooses = stages.chooses
    measured = stages.points(confidence, ~chooses)
    allowed = aim.most_points if aim.share else 0
    if measured > allowed:
        raise DataFault(
            f"the score {confidence:g} loses {measured:.2f} points on the images that did not "
            f"choose it, and at most {allowed:g} may be lost: there is no threshold; {_remedy(aim)}"
        )
    return AcceptSpec(
        confidence=confidence,
        single=fingerprint,
        chosen_on=int(chooses.sum()),
        chosen_points=stages.points(confidence, chooses),
        measured_on=int((~chooses).sum()),
        measured_points=measured,
        share=round(float((stages.scores[~chooses] >= confidence).mean()), 3),
        agreeing=stages.agreeing(confidence),
        errors=aim.errors,
    )


def require_images(n: int) -> None:
    """Raise DataFault if `n` labelled images are too few for a threshold."""
    if n < LEAST_IMAGES:
        raise DataFault(
            f"{n:,} labelled images: a threshold needs {LEAST_IMAGES:,}, half of them to choose it "
            "and half to measure what it costs"
        )


def _remedy(aim: Aim) -> str:
    other = "--aim accuracy, " if aim.share else ""
    return f"try {other}--errors {aim.errors + 1:g}, use --confidence 1, or train it further"


def saving_of(ratio: float, cells: int, share: float) -> float:
    """Images per rank-second, divided by those of the scheme `none`.

    Args:
        ratio: service time of a collage, or of a batch of a quick network, divided by that of one
            image on the single network.
        cells: images in the collage or batch.
        share: share of answers that count. The other images go to the single network too.
    """
    return 1 / (ratio / cells + 1 - share)


def find_savings(
    stages: TwoStages, ratio: float, accept: AcceptSpec | None = None
) -> dict[str, Any] | None:
    """The savings, as plain values for JSON; None if there are too few images.

    "No loss" is the lowest threshold for which the loss of accuracy plus two standard errors is at
    most zero, as for every higher threshold.

    Args:
        stages: the answers.
        ratio: see `saving_of`.
        accept: a threshold whose saving is computed too.

    Returns:
        ratio, cells; chosen_on and measured_on, numbers of images; `no_loss` (None if every
        threshold loses), `at_threshold` (None if `accept` is None) with the `errors` of `accept`,
        and `curve`, a list by growing share. For their values see `_point`.
    """
    if len(stages.labels) < LEAST_IMAGES:
        return None
    levels = np.sort(stages.scores[stages.chooses])[::-1]  # (m,) descending
    along = {max(0.0, float(levels[round(share * len(levels)) - 1])) for share in SHARES}
    no_loss = stages.best_score(Aim(most_points=0.0))
    return {
        "ratio": ratio,
        "cells": stages.cells,
        "chosen_on": int(stages.chooses.sum()),
        "measured_on": int((~stages.chooses).sum()),
        "no_loss": None if no_loss is None else _point(stages, ratio, no_loss),
        "at_threshold": None
        if accept is None
        else {**_point(stages, ratio, accept.confidence), "errors": accept.errors},
        "curve": [_point(stages, ratio, confidence) for confidence in sorted(along, reverse=True)],
    }


def _point(stages: TwoStages, ratio: float, confidence: float) -> dict[str, float]:
    """The saving with a threshold.

    Returns:
        confidence, the threshold; share of cells that count, 0 to 1; points of accuracy gained over
        the single network, negative for a loss; two_errors, two standard errors of the points;
        saving.
    """
    measures = ~stages.chooses
    sure = stages.scores[measures] >= confidence
    changed = -100 * stages.lost[measures] * sure  # (m,) percentage points
    share = float(sure.mean())
    return {
        "confidence": confidence,
        "share": share,
        "points": float(changed.mean()),
        "two_errors": 2 * float(changed.std() / np.sqrt(len(sure))),
        "saving": saving_of(ratio, stages.cells, share),
    }


def told_savings(found: Mapping[str, Any] | None, timed: str) -> str:
    """The savings as text: a table and sentences.

    Args:
        found: from `find_savings`.
        timed: how the ratio was measured, in words.
    """
    if found is None:
        need = f"{LEAST_IMAGES:,} labelled images, half of them to choose a score"
        return f"Saving at no loss: n/a (it needs {need} and half to measure what that costs)."
    columns = ("sure from a score of", "sure answers", "points beside the single", "saving")
    rows = [
        (
            f"{at['confidence']:.4f}",
            f"{at['share']:.1%}",
            f"{at['points']:+.2f} ({at['two_errors']:.2f})",
            f"{at['saving']:.2f} x",
        )
        for at in found["curve"]
    ]
    ratio = f"{found['ratio']:.2f}"
    lines = [
        to_text(Table(columns, rows)),
        f"Saving: images a rank-second over scheme none, 1 / ({ratio} / {found['cells']} + share "
        f"of answers that are not sure). {found['cells']} images at once take {ratio} times as "
        "long as one by the single network "
        f"({timed}). Scores were chosen on {found['chosen_on']:,} images and measured on "
        f"{found['measured_on']:,} others; in brackets two standard errors.",
    ]
    if (kept := found["at_threshold"]) is not None:
        asked = "" if kept["errors"] is None else f" (chosen with {told_errors(kept['errors'])})"
        lines.append(f"Saving at the threshold in the file{asked}: {_told(kept)}")
    lost = "n/a: from every score on, some accuracy is lost."
    lines.append(
        f"Saving at no loss: {lost if found['no_loss'] is None else _told(found['no_loss'])}"
    )
    return "\n".join(lines)


def told_errors(errors: float) -> str:
    """The number of standard errors, with the noun."""
    return f"{errors:g} standard error{'' if errors == 1 else 's'}"


def _told(at: Mapping[str, float]) -> str:
    return (
        f"{at['saving']:.2f} x, from a score of {at['confidence']:g} on: {at['share']:.1%} of the "
        f"answers are sure, {at['points']:+.2f} points beside the single network (two standard "
        f"errors {at['two_errors']:.2f})."
    )

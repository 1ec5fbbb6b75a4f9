"""Judges answers of networks: accuracy (overall, by place in the collage and by class) and the
calibration of scores. Chooses the threshold for the scores of a network that is asked before the
single network, by the bets of `collage_mpi.bounds`, and computes the saving.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from collage_mpi.bounds.draw import Draw
from collage_mpi.bounds.sample import CHOOSING, Asked, Pairs, tested, thresholds_of
from collage_mpi.errors import DataFault
from collage_mpi.models.architecture import AcceptSpec
from collage_mpi.rows import CELL, PRESENT
from collage_mpi.system.printable import counted
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


AGREES = (0.999, 0.995, 0.99, 0.98, 0.95)  # promises whose thresholds `evaluate` and `train` show
SEED = 0  # of the draw. One for all: who could try seeds could try until one passes
STEPS = 1e4  # thresholds are multiples of 1 / STEPS


@dataclass(frozen=True)
class TwoStages:
    """The answers of a first network and of the single network to the same images.

    Attributes:
        single, first: (n,) of CELL each, in the same order.
        labels: (n,) int64; None if there are none.
        cells: images in a group: of a collage, or of a batch of a quick network.
    """

    single: np.ndarray
    first: np.ndarray
    labels: np.ndarray | None
    cells: int

    @cached_property
    def order(self) -> np.ndarray:
        """(n,) int64, the images in the order of a random draw, because neighbours may be alike."""
        return np.array(Draw(len(self.single), SEED).first(len(self.single)), np.int64)

    @cached_property
    def pairs(self) -> Pairs:
        """The answers in the order of the draw."""
        single, first = self.single[self.order], self.first[self.order]
        scores = np.where(first["state"] == PRESENT, first["score"].astype(np.float64), np.nan)
        return Pairs(scores, ~right(single, first["label"]))

    def lowest_score(self, agree: float) -> float | None:
        """The lowest score from which on the first network's answers may count; None if these
        images prove none.

        The first images of the draw give the scores to be tested, the others test them as a run
        with `--agree` does (`collage_mpi.bounds.sample.tested`). With a probability of 95 % at most
        a share 1 - agree of all images that are like these get another class than the single
        network's. It is another one than `--agree`'s for one run: the population has no end.
        """
        if len(self.single) < images_needed(agree):
            return None
        asked, rest = Asked(math.inf, agree, image_s=1.0), self.pairs.part(CHOOSING)
        # Rounded before the test. From a score of 1 no answer would count (`--confidence 1`).
        found = np.floor(thresholds_of(asked, self.pairs.part(0, CHOOSING)) * STEPS)
        levels = np.unique(np.minimum(found, STEPS - 1))[::-1] / STEPS  # (g,) descending
        differs = (rest.scores[:, None] >= levels) & rest.differs[:, None]  # (n, g)
        deepest = int(tested(asked, differs, np.array([len(differs)])).deepest[-1])
        pays = deepest >= 0 and (rest.scores >= levels[deepest]).mean() >= 1 / STEPS
        return float(levels[deepest]) if pays else None

    def at(self, confidence: float) -> dict[str, Any]:
        """What a threshold does to the images that were drawn after those that chose, as plain
        values for JSON.

        Returns:
            confidence; shares of these images: `share` whose answer of the first network counts,
            `changed` that get another class than the single network's. With labels `points`, of
            accuracy gained over the single network, and `two_errors`, two standard errors of them.
        """
        rest = self.pairs.part(CHOOSING)
        counts = rest.scores >= confidence
        found = {
            "confidence": confidence,
            "share": float(counts.mean()),
            "changed": float((counts & rest.differs).mean()),
        }
        if self.labels is not None:
            alone, early = (right(each, self.labels) for each in (self.single, self.first))
            gained = 100 * (early.astype(int) - alone)[self.order][CHOOSING:] * counts
            found["points"] = float(gained.mean())
            found["two_errors"] = 2 * float(gained.std() / np.sqrt(len(gained)))
        return found

    def told_accuracy(self, confidence: float) -> str:
        """The accuracy on all images, of the single network and with a threshold; needs labels."""
        assert self.labels is not None
        alone, early = (right(each, self.labels) for each in (self.single, self.first))
        counts = (self.first["state"] == PRESENT) & (self.first["score"] >= confidence)
        both = np.where(counts, early, alone).mean()
        return (
            f"Accuracy, which is not promised: {alone.mean():.2%} by the single network, "
            f"{both:.2%} with the threshold."
        )


def images_needed(agree: float) -> int:
    """The number of images that a threshold with this promise needs."""
    return CHOOSING + math.ceil(round(5 / (1 - agree), 6))


def require_images(n: int, agree: float) -> None:
    """Raise DataFault if `n` images are too few for a threshold with this promise."""
    if n < images_needed(agree):
        raise DataFault(
            f"{counted(n, 'different image')}: a threshold with --agree {agree:g} needs "
            f"{images_needed(agree):,}. Give more shards, or a lower --agree"
        )


def choose_threshold(stages: TwoStages, fingerprint: str, agree: float) -> AcceptSpec:
    """The threshold for a weights file; see `TwoStages.lowest_score`.

    Args:
        fingerprint: of the single network.

    Raises:
        DataFault: there are too few images, or no score is proved by them.
    """
    drawn = len(stages.single)
    require_images(drawn, agree)
    confidence = stages.lowest_score(agree)
    if confidence is None:
        differing = int(stages.pairs.differs.sum())
        raise DataFault(
            f"no score of the network keeps {agree:g} of the answers: {drawn:,} images were drawn, "
            f"and to {differing:,} of them the network gives another class than the single "
            "network, or none. Give a lower --agree or more shards, or train the network further"
        )
    at = stages.at(confidence)
    shares = {name: round(at[name], 4) for name in ("share", "changed")}
    return AcceptSpec(confidence, fingerprint, agree, drawn, **shares)


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
) -> dict[str, Any]:
    """What a cascade saves with the thresholds that the images prove, as plain values for JSON.

    Args:
        stages: the answers.
        ratio: see `saving_of`.
        accept: a threshold of the weights file, whose saving is computed too.

    Returns:
        ratio, cells; drawn, the number of images; `thresholds`, a list of those that are proved,
        with `agree` each, `saving` and what `TwoStages.at` gives; `in_file`, the same for `accept`,
        None without it or if there are too few images.
    """

    def point(agree: float, confidence: float) -> dict[str, Any]:
        at = stages.at(confidence)
        return {"agree": agree, **at, "saving": saving_of(ratio, stages.cells, at["share"])}

    drawn = len(stages.single)
    scores = ((agree, stages.lowest_score(agree)) for agree in AGREES)
    known = accept is not None and drawn > CHOOSING
    return {
        "ratio": ratio,
        "cells": stages.cells,
        "drawn": drawn,
        "thresholds": [point(agree, score) for agree, score in scores if score is not None],
        "in_file": point(accept.agree, accept.confidence) if accept and known else None,
    }


def told_savings(found: Mapping[str, Any], timed: str) -> str:
    """The savings as text: a table and sentences.

    Args:
        found: from `find_savings`.
        timed: how the ratio was measured, in words.
    """
    in_file, drawn = found["in_file"], found["drawn"]
    rows = [(f"{at['agree']:g}", *_cells(at)) for at in found["thresholds"]]
    rows += [] if in_file is None else [(f"{in_file['agree']:g}, in the file", *_cells(in_file))]
    if not rows:
        return (
            f"Saving: n/a. {counted(drawn, 'image')} prove no score from which on {AGREES[-1]:g} "
            f"of the answers stay; at least {images_needed(AGREES[-1]):,} images are needed."
        )
    columns = ("agree", "sure from", "sure answers", "other class", "points", "saving")
    return "\n".join(
        (
            to_text(Table(columns, rows)),
            f"Agree: at least this share of all images get the single network's class, with a "
            f"probability of 95 %. {drawn:,} images were drawn; the shares are those of all but "
            f"the first {CHOOSING}. Points of accuracy beside the single network; in brackets two "
            "standard errors.",
            "Saving: images a rank-second over scheme none, 1 / "
            f"({found['ratio']:.2f} / {found['cells']} + share of answers that are not sure). "
            f"{found['cells']} images at once take {found['ratio']:.2f} times as long as one by "
            f"the single network ({timed}).",
        )
    )


def _cells(at: Mapping[str, Any]) -> tuple[str, ...]:
    points = "n/a" if "points" not in at else f"{at['points']:+.2f} ({at['two_errors']:.2f})"
    shares = f"{at['share']:.1%}", f"{at['changed']:.2%}"
    return f"{at['confidence']:.4f}", *shares, points, f"{at['saving']:.2f} x"

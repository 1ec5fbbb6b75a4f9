"""What a network saves if it is asked first and the single network answers only the images with a
low score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from collage_mpi.system.terminal import make_table, to_text
from collage_mpi.training.answers import Answers
from collage_mpi.training.threshold import (
    LEAST_IMAGES,
    Aim,
    choosing_half,
    chosen_score,
    scores_and_losses,
)

SHARES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)  # of sure cells, along the curve


def saving_of(ratio: float, cells: int, share: float) -> float:
    """Images a rank-second divided by those of scheme none. Each image costs its part of a call.

    Args:
        ratio: service time of a collage, or of a quick network's batch, divided by that of an image
            on the single network.
        cells: images in that collage or batch.
        share: of answers whose score is high enough. The other images are sent to the single
            network as well.
    """
    return 1 / (ratio / cells + 1 - share)


def find_savings(
    single: Answers,
    first: Answers,
    labels: np.ndarray,
    cells: int,
    ratio: float,
    threshold: float | None = None,
) -> dict[str, Any] | None:
    """The savings as plain values for JSON; None if there are too few images.

    Every other group of images is used to choose the scores; share and accuracy are measured on the
    groups between. "No loss" is chosen like a threshold in `training.threshold`, with 0 points: for
    this score and every higher one, the loss of accuracy plus one standard error is at most zero.

    Args:
        single, first: n answers each, groups of `cells` in order.
        labels: (n,) int64.
        cells, ratio: as in `saving_of`.
        threshold: a score whose saving is wanted as well.

    Returns:
        ratio, cells, chosen_on and measured_on (images), `no_loss` (None if every score loses),
        `at_threshold` (None if no threshold is given), `curve` (by growing share). Each of
        these is a point: confidence (the least score that counts), share (of cells that count,
        0..1), points (of accuracy beside the single network, negative for a loss), two_errors
        (two standard errors of the points, on the same images), saving.
    """
    if len(labels) < LEAST_IMAGES:
        return None
    scores, lost = scores_and_losses(single, first, labels)
    chosen = choosing_half(len(labels), cells)

    def point(confidence: float | None) -> dict[str, float] | None:
        if confidence is None:
            return None
        sure = scores[~chosen] >= confidence
        changed = -100 * lost[~chosen] * sure  # (m,) percentage points
        share = float(sure.mean())
        return {
            "confidence": confidence,
            "share": share,
            "points": float(changed.mean()),
            "two_errors": 2 * float(changed.std() / np.sqrt(len(sure))),
            "saving": saving_of(ratio, cells, share),
        }

    levels = np.sort(scores[chosen])[::-1]  # (k,) from the surest on
    along = {max(0.0, float(levels[round(share * len(levels)) - 1])) for share in SHARES}
    return {
        "ratio": ratio,
        "cells": cells,
        "chosen_on": int(chosen.sum()),
        "measured_on": int((~chosen).sum()),
        "no_loss": point(chosen_score(scores[chosen], lost[chosen], Aim(most_points=0.0))),
        "at_threshold": point(threshold),
        "curve": [point(confidence) for confidence in sorted(along, reverse=True)],
    }


def told_savings(found: Mapping[str, Any] | None, timed: str) -> str:
    """The savings as the table and the sentences that a command prints.

    Args:
        found: from `find_savings`.
        timed: how the ratio was measured: calls, device, precision.
    """
    if found is None:
        need = f"{LEAST_IMAGES:,} labelled images, half of them to choose a score"
        return f"Saving at no loss: n/a (it needs {need} and half to measure what that costs)."
    table = make_table("sure from a score of", "sure answers", "points beside the single", "saving")
    for at in found["curve"]:
        changed = f"{at['points']:+.2f} ({at['two_errors']:.2f})"
        row = (f"{at['confidence']:.4f}", f"{at['share']:.1%}", changed, f"{at['saving']:.2f} x")
        table.add_row(*row)
    ratio = f"{found['ratio']:.2f}"
    lines = [
        to_text(table),
        f"Saving: images a rank-second over scheme none, 1 / ({ratio} / {found['cells']} + share "
        f"of answers that are not sure). {found['cells']} images at once take {ratio} times as "
        "long as one by the single network "
        f"({timed}). Scores were chosen on {found['chosen_on']:,} images and measured on "
        f"{found['measured_on']:,} others; in brackets two standard errors.",
    ]
    if found["at_threshold"] is not None:
        lines.append(f"Saving at the threshold in the file: {_told(found['at_threshold'])}")
    lost = "n/a: from every score on, some accuracy is lost."
    lines.append(
        f"Saving at no loss: {lost if found['no_loss'] is None else _told(found['no_loss'])}"
    )
    return "\n".join(lines)


def _told(at: Mapping[str, float]) -> str:
    return (
        f"{at['saving']:.2f} x, from a score of {at['confidence']:g} on: {at['share']:.1%} of the "
        f"answers are sure, {at['points']:+.2f} points beside the single network (two standard "
        f"errors {at['two_errors']:.2f})."
    )

"""What a collage network saves if it is asked first and the single network only where it is unsure.

Owns: the saving at a threshold, at no loss, and as a curve; how the three commands tell it.
Does not know: networks, files, how a service time is measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from collage_mpi.system.terminal import make_table, to_text
from collage_mpi.training.answers import Answers
from collage_mpi.training.threshold import (
    LEAST_IMAGES,
    choosing_half,
    chosen_score,
    scores_and_losses,
)

SHARES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0)  # of sure cells, along the curve


def saving_of(ratio: float, cells: int, share: float) -> float:
    """Images a rank-second, over those of scheme none: each image costs its part of a collage.

    Args:
        ratio: service time of a collage over that of an image by the single network.
        cells: images in a collage.
        share: of the cells that are sure; the images of the others go to the single network too.
    """
    return 1 / (ratio / cells + 1 - share)


def find_savings(
    single: Answers,
    collage: Answers,
    labels: np.ndarray,
    cells: int,
    ratio: float,
    threshold: float | None = None,
) -> dict[str, Any] | None:
    """Plain values for JSON; None where there are too few images to tell.

    Every other group of images chooses the scores, and the groups between measure share and
    accuracy. "No loss" is chosen as `training.threshold` chooses, at 0 points: for it and every
    higher score, what is lost and a standard error on top come to nothing.

    Args:
        single, collage: n answers each, groups of `cells` in order.
        labels: (n,) int64.
        cells, ratio: as of `saving_of`.
        threshold: a score whose saving is wanted too.

    Returns:
        ratio, cells, chosen_on and measured_on (images), `no_loss` (None if every score loses),
        `at_threshold` (None if none was named), `curve` (from few sure cells to all). Each of
        these is a point: confidence (the least score of a sure cell), share (of sure cells, 0..1),
        points (of accuracy beside the single network, below 0 where some are lost), two_errors
        (two standard errors of that, on the same images), saving.
    """
    if len(labels) < LEAST_IMAGES:
        return None
    scores, lost = scores_and_losses(single, collage, labels)
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
        "no_loss": point(chosen_score(scores[chosen], lost[chosen], most_points=0.0)),
        "at_threshold": point(threshold),
        "curve": [point(confidence) for confidence in sorted(along, reverse=True)],
    }


def told_savings(found: Mapping[str, Any] | None, timed: str) -> str:
    """The table and the sentences of a command.

    Args:
        found: of `find_savings`.
        timed: how the ratio was measured: calls, device, precision.
    """
    if found is None:
        need = f"{LEAST_IMAGES:,} labelled images, half of them to choose a score"
        return f"Saving at no loss: n/a (it needs {need} and half to measure what that costs)."
    table = make_table("sure from a score of", "sure cells", "points beside the single", "saving")
    for at in found["curve"]:
        changed = f"{at['points']:+.2f} ({at['two_errors']:.2f})"
        row = (f"{at['confidence']:.4f}", f"{at['share']:.1%}", changed, f"{at['saving']:.2f} x")
        table.add_row(*row)
    ratio = f"{found['ratio']:.2f}"
    lines = [
        to_text(table),
        f"Saving: images a rank-second over scheme none, 1 / ({ratio} / {found['cells']} + share "
        f"of cells that are not sure). A collage takes {ratio} times as long as an image alone "
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
        f"cells are sure, {at['points']:+.2f} points beside the single network (two standard "
        f"errors {at['two_errors']:.2f})."
    )

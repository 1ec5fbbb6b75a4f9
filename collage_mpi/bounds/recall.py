"""Yes-or-no jobs: finds at least a promised share of the images that the reference calls positive,
without asking it for all images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from collage_mpi.bounds.draw import Draw

STRATA = 10  # of the images that are not asked first; each has half as many as the one below it
BELOW = 0.25  # share of the images that may be missed, of what is forecast below the first strata


def exact_answers(share: float, recall: float, sure: float = 0.95) -> int:
    """Forecast number of the reference's answers that a recall costs: some 3 / (p (1 - r)), so that
    0.95 of a class of 0.1 % costs 60,000. What costs more than the exact run is not worth starting.

    Args:
        share: forecast share of positive images, above 0.
        recall: 0 to 1, exclusive.
        sure: 0 to 1, exclusive.
    """
    return math.ceil(-math.log(1 - sure) / (share * (1 - recall)))


class Recall:
    """Decides which images the reference is asked for, stratum by stratum of the cheap scores.

    The reference answers all images of the top stratum, and the same random share of each stratum
    below it. If none of the drawn images of the lowest strata is positive, few enough images there
    are: m positive images escape with a probability of at most (1 - share) ** m. The strata are
    tested from the lowest one upwards, and the first drawn positive image ends the test; as more
    and more images are tested, this needs no correction. The reference answers all strata from
    there on. Images that it never sees are called negative.

    Attributes:
        top: (k,) int64, the images to ask for first.
        below: (images - k,) int64, the others, by ascending score.
        forecast: of the number of positive images in the top.
    """

    def __init__(self, scores: np.ndarray, recall: float, seed: int, sure: float = 0.95) -> None:
        """Divide the images.

        Args:
            scores: (images,) float64, the candidate's probability that the image is positive; NaN
                if it has no answer.
            recall: share of the positive images that must be found, 0 to 1, exclusive.
            seed: of the sample.
            sure: probability over the sample that the promise holds.
        """
        self._odds, self._seed, self._sure = (1 - recall) / recall, seed, sure
        order = np.argsort(scores, kind="stable")  # NaN last
        known = np.nan_to_num(scores[order], nan=1.0)
        few = int((np.cumsum(known) <= BELOW * (1 - recall) * known.sum()).sum())
        self.below, self.top = order[:few], order[few:]
        self.forecast = float(known[few:].sum())
        halves = len(self.below) * (1 - 0.5 ** np.arange(STRATA))
        self._ends = [*halves.astype(int).tolist(), len(self.below)]

    def share(self, found: float) -> float:
        """The share of the images below the top that is drawn, 0 to 1: enough to keep the promise
        if none of them is positive.

        Args:
            found: number of positive images in the top; `forecast` before they are known.
        """
        may_miss = int(self._odds * found + 1e-9)
        return 1.0 if may_miss < 1 else 1 - (1 - self._sure) ** (1 / (may_miss + 1))

    def answers(self, found: float) -> int:
        """Number of the reference's answers if no drawn image is positive. See `share`."""
        return len(self.top) + math.ceil(self.share(found) * len(self.below))

    def sample(self, found: int) -> list[np.ndarray]:
        """For each stratum from the lowest one, (m,) int64: the images that the reference is to
        answer next. `found`: number of positive images in the top."""
        drawn = []
        for number, (start, end) in enumerate(pairwise(self._ends)):
            draw = Draw(end - start, self._seed + (number << 64))  # independent of the others
            places = draw.first(math.ceil(self.share(found) * (end - start)))
            drawn.append(self.below[start:end][places])
        return drawn

    def rest(self, found: int, positive: Sequence[int]) -> np.ndarray:
        """(j,) int64, the images that the reference must answer after the sample.

        Args:
            found: number of positive images in the top.
            positive: for each stratum of `sample`, how many of its drawn images are positive.
        """
        unseen = 0
        for end, here in zip(self._ends[1:], positive, strict=True):
            if here:
                break
            unseen = end
        return np.setdiff1d(self.below[unseen:], np.concatenate(self.sample(found)))

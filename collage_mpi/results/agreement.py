"""Statistics of audits, in which the single network checks accepted answers of a collage.

From the pairs of answers this module estimates how often accepted answers differ, and the lowest
score at which few enough of them differ. It also tells whether a collage network is much weaker
than the single network.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from collage_mpi.results.statistics import wilson_interval

LEVEL = 0.95
SCORE_STEPS = 10_000  # scores are taken in steps of 0.0001, as `weights threshold` takes them
# The Beta prior of the mixture. Shares of a few per cent are expected, and (1/2, 10) is narrower
# there than (1/2, 1/2): 5 of 500 give 0.17 to 3.0 % instead of 0.12 to 3.5 %.
PRIOR = (0.5, 10.0)
LARGE_GAP = 0.05  # the shipped networks are within 0.01 of the single
ADVICE = (
    "--confidence 0.95 lets fewer of the collage's answers count; more training, a "
    "--teacher or another --preset makes them better (docs/schemes.md, docs/weights.md)"
)


def differing_interval(differing: int, audited: int, level: float = LEVEL) -> tuple[float, float]:
    """A confidence sequence: an interval of the share of differing answers, valid at any time.

    It may be read after every answer: the true share is ever outside in at most 1 - level of all
    runs. So it is wider than an interval for a sample of fixed size. The method is the
    Beta-binomial mixture: Robbins (1970), Annals of Mathematical Statistics 41(5); Howard et al.
    (2021), Annals of Statistics 49(2).

    Args:
        differing: number of audited answers that differ.
        audited: number of audited answers.
        level: between 0 and 1.

    Returns:
        low and high, 0 to 1; (0, 1) if nothing was audited.
    """
    seen = differing / audited if audited else 0.5
    return _edge(differing, audited, 0.0, seen, level), _edge(differing, audited, 1.0, seen, level)


def rules_out(share: float, differing: int, audited: int, level: float = LEVEL) -> bool:
    """Whether a share, 0 to 1, lies outside the interval of `differing_interval`."""
    a, b = PRIOR
    same = audited - differing
    if (share <= 0 and differing) or (share >= 1 and same):
        return True
    log_odds = _log_beta(a + differing, b + same) - _log_beta(a, b)
    log_odds -= differing * math.log(share) if differing else 0
    log_odds -= same * math.log1p(-share) if same else 0
    return log_odds >= -math.log(1 - level)


def least_threshold(
    scores: np.ndarray, differs: np.ndarray, agree: float, level: float = LEVEL
) -> float | None:
    """The lowest threshold for a cell's score that changes few enough answers.

    A cell counts if its score is at least the threshold. The lower the threshold, the more images
    have a cell that counts and differs. So the thresholds are tested from the highest downwards,
    and the first failure ends the search. This needs no correction for the number of tests
    (fixed-sequence testing; Angelopoulos et al. 2021, "Learn then Test", arXiv 2110.01052). Each
    test is the exact one-sided binomial bound of 1 - agree, which assumes independently drawn
    images.

    Args:
        scores: (n,) float, of the cells, 0 to 1; -1 if a cell has no answer.
        differs: (n,) bool, whether the cell and the single network name different classes.
        agree: the share of all images whose answer must stay, between 0 and 1.
        level: confidence of the test, between 0 and 1.

    Returns:
        A multiple of 0.0001; None if no threshold passes.
    """
    most = most_differing(len(scores), agree, level)
    if most is None:
        return None
    counts, good = no_scores(), scores >= 0
    np.add.at(counts, (step_of(scores[good]), differs[good].astype(int)), 1)
    return least_counted(counts, most)


def no_scores() -> np.ndarray:
    """(SCORE_STEPS + 1, 2) int64 zeros, to count by score how many cells agree, how many differ."""
    return np.zeros((SCORE_STEPS + 1, 2), np.int64)


def step_of(scores: Any) -> Any:
    """The row of `no_scores` for a score from 0 to 1, or for an array of scores."""
    return np.minimum(np.floor(np.asarray(scores, np.float64) * SCORE_STEPS), SCORE_STEPS).astype(
        int
    )


def least_counted(counts: np.ndarray, most: int) -> float | None:
    """The lowest score at or above which at most `most` cells differ; see `least_threshold`."""
    differing = counts[::-1, 1].cumsum()[::-1]  # (steps,): cells of this score or more that differ
    good = np.flatnonzero((counts.sum(axis=1) > 0) & (differing <= most))
    return float(good[0]) / SCORE_STEPS if len(good) else None


def most_differing(images: int, agree: float, level: float = LEVEL) -> int | None:
    """How many of `images` answers may differ if 1 - agree is to hold with confidence `level`; None
    if there are too few images even when no answer differs.

    Raises:
        ValueError: agree is not between 0 and 1.
    """
    found, below = None, 0.0
    for differing in range(images + 1):
        below += math.exp(_log_binomial(differing, images, 1 - agree))
        if below > 1 - level:
            break
        found = differing
    return found


def least_images(agree: float, level: float = LEVEL) -> int:
    """The fewest images that can show an agreement, if no answer differs: 0.995 needs 598."""
    return math.ceil(math.log(1 - level) / math.log(agree))


def weaker_by(single: tuple[int, int], collage: tuple[int, int]) -> float | None:
    """How much less often the collage network is right, 0 to 1.

    Args:
        single, collage: number of right answers, and number of answers.

    Returns:
        None if the gap is below LARGE_GAP, or may be chance because the 95 % intervals overlap.
    """
    known, other = wilson_interval(*single), wilson_interval(*collage)
    if known is None or other is None or other[1] >= known[0]:
        return None
    gap = single[0] / single[1] - collage[0] / collage[1]
    return gap if gap >= LARGE_GAP else None


def _edge(differing: int, audited: int, outer: float, inner: float, level: float) -> float:
    """One end of the interval, by bisection between `outer` and `inner`, a share inside the
    interval. If `outer` is inside too, it is the end.
    """
    if not rules_out(outer, differing, audited, level):
        return outer
    for _ in range(40):  # to 1e-12
        middle = (outer + inner) / 2
        if rules_out(middle, differing, audited, level):
            outer = middle
        else:
            inner = middle
    return outer


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def _log_binomial(k: int, n: int, share: float) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return ways + k * math.log(share) + (n - k) * math.log1p(-share)

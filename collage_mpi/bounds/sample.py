"""Chooses a candidate and thresholds on the first answers that are drawn, and finds the lowest
threshold that the answers after them prove.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from collage_mpi.bounds.bets import PROVE, REFUTE, money_of

CHOOSING = 200  # answers that choose the candidate and the thresholds
THRESHOLDS = 32
MOST = 10_000  # answers that prove a threshold
LOOK = 32  # answers between two looks at whether to stop
HOPE = 0.9  # share of answers of an unknown candidate that may count
TRIED, TRIED_OF_JOB = 0.1, 0.15  # of the forecast saving, and of the exact run's price


@dataclass(frozen=True)
class Candidate:
    """A stage that may answer before the reference.

    Attributes:
        name: as the user knows it.
        making_s: core-seconds to make it, for example to quantise a network; 0 if it exists.
        image_s: core-seconds for each image.
    """

    name: str
    making_s: float
    image_s: float


@dataclass(frozen=True)
class Asked:
    """A job and what is promised: with a probability of `sure` over the draw, at least a share
    `agree` of the images get the class that the reference gives.

    Attributes:
        images: number of images. One that cannot be read counts as unchanged. math.inf for a
            threshold that is for other images, too.
        agree: 0 to 1, exclusive.
        image_s: core-seconds of the reference for each image.
        sure: 0 to 1, exclusive.
    """

    images: float
    agree: float
    image_s: float
    sure: float = 0.95

    @property
    def may_differ(self) -> int:
        """How many of the images may get another class."""
        return math.floor((1 - self.agree) * self.images + 1e-9)

    @property
    def too_many(self) -> float:
        """How many changed images break the promise; of endless images, which share."""
        return 1 - self.agree if math.isinf(self.images) else self.may_differ + 1

    @property
    def planned(self) -> int:
        """How many answers are planned to prove a threshold, after those that choose."""
        return math.ceil(min(MOST, max(5 / (1 - self.agree), 0.02 * self.images) - 1e-9))

    @property
    def audits(self) -> int:
        """How many answers are audited after that: 1 % of the images, above 30,000 images only 300,
        above 300,000 images 0.1 %."""
        return math.ceil(max(0.001 * self.images, min(0.01 * self.images, 300)))

    @property
    def needed(self) -> float:
        """The natural logarithm of the money that proves or refutes."""
        return -math.log(1 - self.sure)


def front(asked: Asked) -> int:
    """How many drawn images come first in the order of the job, as both stages may have to answer
    them; 0 if it is too small for any candidate."""
    if asked.images < CHOOSING + asked.planned:
        return 0
    return min(CHOOSING + MOST + asked.audits, int(asked.images))


def least_images(asked: Asked, candidate: Candidate) -> int | None:
    """The smallest job for which the candidate is tried: what is spent before it is known to pay
    is at most a tenth of what it is forecast to save. None if it never pays.
    """
    drawn = CHOOSING + replace(asked, images=0).planned
    spent = candidate.making_s + drawn * candidate.image_s
    saved = HOPE * asked.image_s - candidate.image_s  # for each image that is not drawn
    if saved <= 0:
        return None
    return math.ceil((spent / TRIED + candidate.making_s + drawn * HOPE * asked.image_s) / saved)


def worth_trying(asked: Asked, candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates to try, the cheapest first. Together they cost at most 15 % of the exact run
    if none of them pays.
    """
    tried: list[Candidate] = []
    left = TRIED_OF_JOB * asked.images * asked.image_s
    for each in sorted(candidates, key=lambda one: one.making_s + asked.images * one.image_s):
        least = least_images(asked, each)
        left -= each.making_s + CHOOSING * each.image_s
        if least is not None and least <= asked.images and left >= asked.planned * each.image_s:
            tried.append(each)
        else:
            left += each.making_s + CHOOSING * each.image_s
    return tried


class Pairs(NamedTuple):
    """Answers of a candidate and of the reference to the same images, by the order of the draw.

    Attributes:
        scores: (n,) float64, the candidate's; NaN if it has no answer.
        differs: (n,) bool, whether the reference names another class.
    """

    scores: np.ndarray
    differs: np.ndarray

    def part(self, start: int, stop: int | None = None) -> Pairs:
        """The answers from number `start` up to `stop`."""
        return Pairs(self.scores[start:stop], self.differs[start:stop])

    def share(self, most: float) -> float:
        """The share of the answers with the highest scores among which fewer than `most` differ."""
        scores = np.where(np.isnan(self.scores), -np.inf, self.scores)
        differs = np.cumsum(self.differs[np.argsort(-scores, kind="stable")])
        return float(np.searchsorted(differs, most)) / len(scores)


def price_s(asked: Asked, candidate: Candidate, chose: Pairs) -> float:
    """Core-seconds of the whole job with a candidate, as `chose`, the answers that choose, say."""
    few = math.floor((1 - asked.agree) * len(chose.scores) / 2 + 1e-9) + 1
    return price_at_s(asked, candidate, chose.share(few))


def price_at_s(asked: Asked, candidate: Candidate, share: float = HOPE) -> float:
    """Core-seconds of the whole job with a candidate of whose answers this share counts."""
    count = share * asked.image_s
    drawn = CHOOSING + asked.planned
    each = candidate.image_s + asked.image_s
    return candidate.making_s + asked.images * (each - count) + drawn * count


def choose(asked: Asked, tried: Sequence[Candidate], chose: Sequence[Pairs]) -> int | None:
    """The candidate with the lowest price; None if the exact run costs no more.

    Args:
        asked: the job.
        tried: the candidates.
        chose: for each of them, its answers among the first `CHOOSING` that are drawn.
    """
    prices = [price_s(asked, *each) for each in zip(tried, chose, strict=True)]
    best = min(range(len(prices)), key=prices.__getitem__, default=None)
    return best if best is not None and prices[best] < asked.images * asked.image_s else None


def thresholds_of(asked: Asked, chose: Pairs) -> np.ndarray:
    """(g,) float64 descending, at most `THRESHOLDS` scores that are tested one after the other.

    They are quantiles of the scores in `chose`. Most lie between the point where the first answer
    differs and the point where more differ than may.
    """
    scores = chose.scores[~np.isnan(chose.scores)]
    if not len(scores):
        return np.empty(0)
    low = 0.9 * chose.share(1)
    high = min(1.0, chose.share(math.floor((1 - asked.agree) * len(chose.scores)) + 3) + 0.01)
    strict = low * np.array([0.3, 0.6, 0.8, 0.9])
    counts = np.concatenate([strict, np.linspace(low, high, THRESHOLDS - len(strict))])
    counts = np.minimum(1.0, counts * len(chose.scores) / len(scores))  # some have no score
    # Answers hold scores as float32: between two of them there is nothing to choose.
    found = np.quantile(scores, 1 - counts).astype(np.float32)
    return np.unique(found)[::-1].astype(np.float64)


class Proved(NamedTuple):
    """Where the sample ends.

    Attributes:
        drawn: number of answers that were used.
        deepest: index of the lowest threshold that is proved; -1 if none is, or if the candidate
            costs more than the answers that count save.
    """

    drawn: int
    deepest: int


class Tested(NamedTuple):
    """What answers that were drawn after those that chose prove, at k looks.

    Attributes:
        deepest: (k,) int64, index of the lowest threshold that is proved; -1 if none is.
        held: (k, g, b) float64, logarithms of the money that each bettor holds; see `Money`.
    """

    deepest: np.ndarray
    held: np.ndarray


def tested(asked: Asked, differs: np.ndarray, looks: np.ndarray) -> Tested:
    """Test thresholds on answers that were drawn after those that chose.

    Each threshold is tested at the full level. An answer that counts at a threshold counts at each
    lower one, so that the bettors against a lower one never hold more: it is proved after all
    higher ones. So only the first threshold with too many differing answers must not be proved by
    chance (fixed-sequence testing; Angelopoulos et al. 2021, "Learn then Test", arXiv 2110.01052).
    Any rule may end the sample.

    Args:
        asked: the job.
        differs: (n, g) bool, whether the answer counts at the threshold and differs.
        looks: (k,) int64 ascending, numbers of answers.
    """
    money = money_of(differs, looks, asked.images - CHOOSING, asked.too_many, PROVE)
    return Tested((money.highest >= asked.needed).sum(axis=1) - 1, money.held)


def prove(
    asked: Asked, candidate: Candidate, thresholds: np.ndarray, pairs: Pairs
) -> Proved | None:
    """The threshold that a job proves (see `tested`). Its sample ends when no lower threshold is
    forecast to save more than its proof costs.

    Args:
        asked: the job.
        candidate: the one that was chosen.
        thresholds: (g,) of `thresholds_of`.
        pairs: the answers that are known without a gap, in the order of the draw.

    Returns:
        None if more answers are needed.
    """
    population = asked.images - CHOOSING
    most = int(min(MOST, population))
    looks = looks_at(min(len(pairs.scores), most), most)
    if not len(looks):
        return None
    n = looks[-1]
    counts = pairs.scores[:n, None] >= thresholds  # (n, g)
    differs = counts & pairs.differs[:n, None]
    deepest, held = tested(asked, differs, looks)
    shares, differing = (share_at(looks, each) for each in (counts, differs))  # (k, g)
    # What each further image of the job saves now, beside the exact run. As much is what one of the
    # sample costs. A threshold that saves less than the candidate costs is worth nothing.
    padded = np.append(shares, np.zeros((len(looks), 1)), axis=1) * asked.image_s
    saves = np.take_along_axis(padded, deepest[:, None], axis=1)  # (k, 1)
    now = np.maximum(saves, candidate.image_s)
    more = _more_answers(asked, looks, differing, held)
    rest = population - looks[:, None] - more
    with np.errstate(invalid="ignore"):
        gain = rest * (shares * asked.image_s - now) - more * now
    ends = ~(gain > 0).any(axis=1) | (looks == most)
    ends |= (now <= candidate.image_s)[:, 0] & (looks >= asked.planned)
    for at in np.flatnonzero(ends)[:1]:
        return Proved(int(looks[at]), int(deepest[at]) if saves[at] > candidate.image_s else -1)
    return None


def _more_answers(
    asked: Asked, looks: np.ndarray, differing: np.ndarray, held: np.ndarray
) -> np.ndarray:
    """(k, g) float64, answers that a threshold's proof still needs if the sample goes on as it
    began; infinite if it will not be proved.

    Three quarters of a standard error are taken from the share that differs. With the share itself,
    many samples end before a threshold that would pay is proved.
    """
    f, most = PROVE.f, 1 - asked.agree
    seen = differing * looks[:, None]
    share = (np.maximum(0.0, seen - 0.75 * np.sqrt(seen)) / looks[:, None])[..., None]  # (k, g, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = np.where(share > 0, share * np.log(f), 0.0)
        growth = lost + (1 - share) * np.log((1 - f * most) / (1 - most))
        more = np.where(growth > 0, np.maximum(0.0, asked.needed - held) / growth, np.inf)
    return np.maximum(more.min(axis=2), 1.0)


def looks_at(n: int, most: int) -> np.ndarray:
    """(k,) int64, the numbers of answers after which n answers are looked at: every `LOOK`, and
    after the last one if they are `most`."""
    looks = np.arange(LOOK, n + 1, LOOK)
    return np.append(looks, n) if n == most and n % LOOK else looks


def share_at(looks: np.ndarray, which: np.ndarray) -> np.ndarray:
    """(k, g) float64: the share of true values in `which`, (n, g) bool, up to each look."""
    blocks = np.add.reduceat(which, np.append(0, looks[:-1]), axis=0, dtype=np.int64)
    return np.cumsum(blocks, axis=0) / looks[:, None]


def raised(asked: Asked, sample: Pairs, audits: Pairs, thresholds: np.ndarray, deepest: int) -> int:
    """The threshold after audits.

    If the audits refute that few enough answers differ, the threshold rises to the lowest one that
    they do not refute and at which no more of them differ than may. All higher thresholds have
    passed the same test as the lowest one, so the promise holds after a raise as well.

    Args:
        asked: the job.
        sample: the answers that proved the threshold.
        audits: the answers that were drawn after them.
        thresholds: (g,) of `thresholds_of`.
        deepest: index of the threshold that applies.

    Returns:
        An index; -1 if no threshold is left.
    """
    seen, differs = (
        (each.scores[:, None] >= thresholds) & each.differs[:, None] for each in (sample, audits)
    )
    population = asked.images - CHOOSING - len(seen)
    left = asked.may_differ - seen.sum(axis=0)
    looks = looks_at(len(differs), len(differs))
    refuted = money_of(differs, looks, population, left, REFUTE).highest[-1] >= asked.needed
    if not refuted[deepest]:
        return deepest
    good = ~refuted & (differs.mean(axis=0) <= 1 - asked.agree)
    return int(np.flatnonzero(good[:deepest]).max(initial=-1))

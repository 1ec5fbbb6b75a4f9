"""How many images a reference would call each class, bounded by a cheap network's answers to all
images, and the reference's to some that are drawn at random.

The share of a class is the cheap network's plus the mean of the difference d: 1 for an image that
only the reference calls so, -1 for one that only the cheap network does, else 0 (the difference
estimator of survey sampling; prediction-powered inference, Angelopoulos et al. 2023). Bettors bound
the mean (Waudby-Smith and Ramdas 2024): a value of the mean is ruled out once betting on the other
side has made them 2 / (1 - sure) times as rich, which by Ville's inequality a true value survives
with a probability of `sure`, whenever one looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

# Shares of the most that may be bet. Half of the money is on all of them alike, the other half on
# the one that was the best in the rounds before.
BETS = np.concatenate([0.5 ** np.arange(8, 0, -1), 1 - 0.5 ** np.arange(2, 7)])
HALVINGS = 40
LEVELS = 8  # of the cheap network's scores, with as many images each
FLOOR = 0.5  # no image is drawn less often than this, beside drawing all alike
PRIOR = 10.0  # the scores count like so many answers of the reference
FIRST = 500  # draws
OVER = 1.05  # what is forecast to be enough, and a little more
MOST_TIMES = 2.0  # as many draws as before are added at most, so many times


class _Round(NamedTuple):
    """Draws with the same probabilities.

    Attributes:
        values: (2, v) float64, what a draw can be, for the upper end and (negated) for the lower.
        counts: (2, v, classes) int64, how often it was that.
        most: the largest value that is possible.
        bets: (2, classes) float64, of BETS; None in the first round.
    """

    values: np.ndarray
    counts: np.ndarray
    most: float
    bets: np.ndarray | None

    def wealth(self, bets: np.ndarray, mean: np.ndarray, side: int) -> np.ndarray:
        """(..., classes) float64, the log of what bets, (..., classes), against this mean,
        (classes,), have come to."""
        values = self.values[side].reshape(-1, *(1,) * bets.ndim)
        factors = 1 - bets * (values - mean) / (self.most - mean)
        counts = np.expand_dims(self.counts[side], tuple(range(1, bets.ndim)))
        found: np.ndarray = (np.log(factors) * counts).sum(axis=0)
        return found


class Differences:
    """Bounds the mean difference of each class.

    Attributes:
        low, high: (classes,) float64, -1 to 1. Each holds, with both ends, with a probability of
            `sure`, whenever one looks.
    """

    def __init__(self, classes: int, sure: float) -> None:
        self.low, self.high = np.full(classes, -1.0), np.ones(classes)
        self._rich, self._rounds = math.log(2 / (1 - sure)), list[_Round]()

    def add(self, draws: int, weights: np.ndarray, counts: np.ndarray) -> None:
        """Add draws.

        Args:
            draws: how many.
            weights: (levels,) float64, what a difference counts; 1 where all images are drawn with
                the same probability.
            counts: (2, 2, levels, classes) int64, what `differing` says of each level.
        """
        values = np.concatenate([weights, -weights, [0.0]])
        same = draws - counts.sum(axis=(1, 2), keepdims=True)
        counts = np.concatenate([counts.reshape(2, -1, counts.shape[-1]), same[:, 0]], axis=1)
        ends, bets = np.stack([self.high, -self.low]), None
        if self._rounds:
            ends = np.minimum(ends, 1 - 1e-9)  # nobody can win against a mean of 1
            best = [self._alike(end, side).argmax(axis=0) for side, end in enumerate(ends)]
            bets = BETS[np.array(best)]
        self._rounds.append(_Round(np.stack([values, -values]), counts, weights.max(), bets))
        self.high = np.minimum(self.high, self._end(0, self.high))
        self.low = np.maximum(self.low, -self._end(1, -self.low))

    def _alike(self, mean: np.ndarray, side: int) -> np.ndarray:
        """(bets, classes) float64, what each of BETS has come to in all rounds."""
        every = np.broadcast_to(BETS[:, None], (len(BETS), len(mean)))
        return np.asarray(sum(each.wealth(every, mean, side) for each in self._rounds))

    def _wealth(self, mean: np.ndarray, side: int) -> np.ndarray:
        """(classes,) float64, the log of what all bets have come to."""
        first, *later = self._rounds
        every = np.broadcast_to(BETS[:, None], (len(BETS), len(mean)))
        alike = np.logaddexp.reduce(self._alike(mean, side))
        best = np.logaddexp.reduce(first.wealth(every, mean, side))
        for each in later:
            assert each.bets is not None
            best = best + each.wealth(each.bets[side], mean, side)
        found: np.ndarray = np.logaddexp(alike, best) - math.log(2 * len(BETS))
        return found

    def _end(self, side: int, most: np.ndarray) -> np.ndarray:
        """(classes,) float64, the smallest mean that is ruled out; `most` if none below it is.
        What bettors own grows with the mean."""
        low, high = np.full(len(most), -1.0), most.copy()
        for _ in range(HALVINGS):
            mean = (low + high) / 2
            out = self._wealth(mean, side) >= self._rich
            low, high = np.where(out, low, mean), np.where(out, mean, high)
        return high


def differing(
    cheap: np.ndarray, reference: np.ndarray, asked: np.ndarray, often: np.ndarray | None = None
) -> np.ndarray:
    """How often two networks differ. Where the reference has no answer, it may have called the
    image anything.

    Args:
        cheap, reference: (n,) int64 classes; -1 where the reference has no answer.
        asked: (classes,) int64, their numbers.
        often: (n,) int64, how many images each pair stands for; None: one each.

    Returns:
        (2, 2, classes) int64, for the upper and for the lower end: how many images only the
        reference calls so, and only the cheap network.
    """
    often = np.ones(len(cheap), np.int64) if often is None else often
    known, differ = reference >= 0, cheap != reference

    def count(labels: np.ndarray, some: np.ndarray) -> np.ndarray:
        place = np.full(max(labels.max(initial=0), asked.max(initial=0)) + 1, len(asked))
        place[asked] = np.arange(len(asked))
        sums = np.bincount(place[labels[some]], often[some], len(asked) + 1)[:-1]
        return np.asarray(sums.astype(np.int64))

    both = count(reference, differ & known)
    unknown = often[~known].sum() - count(cheap, ~known)
    upper = [both + unknown, count(cheap, differ & known)]
    return np.array([upper, [both, count(cheap, differ)]])


class Shares:
    """Draws images for the reference, those more often where the cheap network is unsure.

    Attributes:
        drawn: how many were drawn, with repetitions.
    """

    def __init__(
        self,
        cheap: np.ndarray,
        scores: np.ndarray,
        asked: Sequence[int],
        sure: float = 0.95,
        seed: int = 0,
    ) -> None:
        """Divide the images into levels of scores.

        Args:
            cheap: (images,) int64, the cheap network's class of each image; at least one.
            scores: (images,) float64, its score, 0 to 1.
            asked: numbers of the classes whose shares are asked for.
            sure: probability that the intervals of all these hold, whenever one looks.
            seed: of the draws.
        """
        self.drawn = 0
        self._cheap, self._asked = cheap, np.array(asked)
        counts = np.bincount(cheap, minlength=self._asked.max() + 1)
        self._own = counts[self._asked] / len(cheap)
        order = np.argsort(scores, kind="stable")
        self._levels = [each for each in np.array_split(order, LEVELS) if len(each)]
        unsure = [1 - float(scores[each].mean()) for each in self._levels]
        self._differing = PRIOR * np.clip(unsure, 1e-6, 1)
        self._answers = np.full(len(self._levels), PRIOR)
        self._differences = Differences(len(asked), 1 - (1 - sure) / len(asked))
        self._raw = np.random.Philox(key=seed)  # as in `Draw`
        self._last = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0)

    def draw(self, count: int) -> np.ndarray:
        """(count,) int64, images to ask the reference for, some perhaps again."""
        sizes = np.array([len(each) for each in self._levels])
        errs = np.sqrt(self._differing / self._answers)
        often = FLOOR + (1 - FLOOR) * errs / (errs @ sizes / sizes.sum())
        ends = np.cumsum(often * sizes)
        raw = self._raw.random_raw((2, count))
        at = np.searchsorted(ends, raw[0] / 2**64 * ends[-1], side="right")
        at = np.minimum(at, len(sizes) - 1)  # a product may be rounded up
        places = (raw[1] % sizes[at].astype(np.uint64)).astype(np.int64)
        starts = np.cumsum(sizes) - sizes
        images = np.concatenate(self._levels)[starts[at] + places]
        self._last = images, at, 1 / often
        return images

    def tell(self, reference: np.ndarray) -> None:
        """`reference`: (count,) int64, its classes of the images drawn last; -1 if it has none."""
        images, at, weights = self._last
        counts = np.zeros((2, 2, len(self._levels), len(self._asked)), np.int64)
        for level in range(len(self._levels)):
            cheap, own = self._cheap[images[at == level]], reference[at == level]
            counts[:, :, level] = differing(cheap, own, self._asked)
            of_asked = np.isin(cheap, self._asked) | np.isin(own, self._asked)
            self._differing[level] += int((of_asked & (cheap != own)).sum())
            self._answers[level] += len(own)
        self._differences.add(len(images), weights, counts)
        self.drawn += len(images)

    @property
    def intervals(self) -> np.ndarray:
        """(2, classes) float64, the lowest and the highest share of each class asked for."""
        ends = [self._differences.low, self._differences.high]
        return np.clip(self._own + ends, 0, 1)

    def more(self, within: float) -> int:
        """How many to draw next, so that no interval reaches further than `within` from its middle;
        0 if that is so."""
        low, high = self.intervals
        wide = float((high - low).max()) / 2 / within if self.drawn else math.inf
        if wide <= 1:
            return 0
        if not self.drawn:
            return FIRST
        times = min(max(OVER * wide**1.5 - 1, 0.25), MOST_TIMES)
        return math.ceil(times * self.drawn)

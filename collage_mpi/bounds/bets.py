"""Tests by betting: whether few enough answers at or above a threshold differ, and whether audits
refute that. Answers are drawn without replacement, from a population that may be endless.

A bettor who bets against a true hypothesis multiplies his money by 20 with a probability of at most
1/20, however long he plays (Ville 1939; Waudby-Smith and Ramdas 2020, arXiv 2006.04347). So the
sample may be looked at after each answer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

_SURE = 1e9  # log of the money of a bettor whose hypothesis cannot be true any more


class Bets(NamedTuple):
    """Bettors who play the same game with a share of the first money each.

    A bettor's money is multiplied by f after an answer that differs, and by (1 - f m) / (1 - m)
    after another one. m is the share of the answers still to come that differ by the hypothesis.

    Attributes:
        f: (b,) float64; below 1 against "too many differ", above 1 against "few enough differ".
        weights: (b,) float64, shares of the first money; their sum is 1.
    """

    f: np.ndarray
    weights: np.ndarray


PROVE = Bets(np.array([0.0, 0.25, 0.5, 0.75]), np.array([0.4, 0.2, 0.2, 0.2]))
REFUTE = Bets(np.array([1.5, 2.0, 4.0]), np.array([0.4, 0.3, 0.3]))


class Money(NamedTuple):
    """Natural logarithms of money at k looks, for g thresholds. The first money is 1.

    Attributes:
        highest: (k, g) float64, the most that all bettors together held at the looks so far and
            just before the answers that differ.
        held: (k, g, b) float64, what each bettor holds at the look.
    """

    highest: np.ndarray
    held: np.ndarray


def money_of(
    differs: np.ndarray,
    looks: np.ndarray,
    population: float,
    differing: float | np.ndarray,
    bets: Bets,
) -> Money:
    """The money that bettors hold after answers that were drawn one by one.

    Args:
        differs: (n, g) bool, by the order of the draw: whether the answer counts at the threshold
            and differs.
        looks: (k,) int64 ascending, numbers of drawn answers, 0 to n.
        population: number of answers that the n are drawn from; math.inf if it has no end.
        differing: how many of the population differ by the hypothesis, of an endless one which
            share; one number, or (g,). At least as many with `PROVE`, at most as many with
            `REFUTE`.
        bets: the bettors.
    """
    # Between two answers that differ only the number of answers still to come changes, so that the
    # product of the factors is a ratio of gamma functions. Points are the looks and the moments
    # before an answer that differs. In between the bettors of `PROVE` hold less.
    rows = np.flatnonzero(differs.any(axis=1))
    counts = np.concatenate([looks, rows])  # answers drawn before the point
    event = np.arange(len(counts)) >= len(looks)  # whether the next answer differs
    order = np.argsort(counts, kind="stable")  # a look comes before the answer after it
    counts, event = counts[order], event[order]  # (p,)
    hit = np.zeros((len(counts), differs.shape[1]), bool)  # (p, g)
    hit[event] = differs[counts[event]]
    begun = np.concatenate([[0], (counts + event)[:-1]])
    # No draw changes an endless population: it counts as one answer to come, a share of which
    # differs.
    endless = math.isinf(population)
    drawn, seen = (each * (not endless) for each in (counts, np.cumsum(hit, axis=0) - hit))
    left = (differing - seen)[..., None]  # (p, g, 1), before the answer
    last = ((1.0 if endless else float(population)) - drawn)[:, None, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        if endless:
            held = (counts - begun)[:, None, None] * _factor(left, last, bets.f)
        else:
            held = _unchanged(last + (counts - begun)[:, None, None], last, left, bets.f)
        # held: (p, g, b), since the point before
        one = left[event], last[event]
        answer = np.where(hit[event, :, None], np.log(bets.f), _factor(*one, bets.f))
        after = np.flatnonzero(event[:-1])
        held[after + 1] += answer[: len(after)]
        held = np.cumsum(held, axis=0) + np.log(bets.weights)
        together = np.logaddexp.reduce(held, axis=2)
    if bets.f[0] > 1:
        together[left[..., 0] < 0] = _SURE  # more were seen than the hypothesis says
    return Money(np.maximum.accumulate(together, axis=0)[~event], held[~event])


def _unchanged(first: np.ndarray, last: np.ndarray, left: np.ndarray, f: np.ndarray) -> np.ndarray:
    """The log of the product of (n - f left) / (n - left) for n from `first` down to `last` + 1."""
    top = _log_gamma(first + 1 - f * left) - _log_gamma(last + 1 - f * left)
    low = _log_gamma(first + 1 - left) - _log_gamma(last + 1 - left)
    return np.where(first > last, _possible(top - low, last + 1, left, f), 0.0)


def _factor(left: np.ndarray, n: np.ndarray, f: np.ndarray) -> np.ndarray:
    """The log of (n - f left) / (n - left)."""
    return _possible(np.log((n - f * left) / (n - left)), n, left, f)


def _possible(logs: np.ndarray, n: np.ndarray, left: np.ndarray, f: np.ndarray) -> np.ndarray:
    """The logs of factors down to n: nothing is left where one is 0, and more than any money is won
    where the hypothesis cannot be true."""
    return np.where(n - f * left <= 0, -np.inf, np.where(n - left <= 0, _SURE, logs))


def _log_gamma(x: np.ndarray) -> np.ndarray:
    """log(gamma(x)) for x > 0, by Stirling's series above 8. The error is below 1e-9, or
    1e-15 of the value."""
    if x.min() > 50:
        return _stirling(x)
    shift = x * (x + 1) * (x + 2) * (x + 3) * (x + 4) * (x + 5) * (x + 6) * (x + 7)
    return _stirling(x + 8) - np.log(shift)


def _stirling(x: np.ndarray) -> np.ndarray:
    series = (1 / 12 - (1 / 360 - 1 / (1260 * x * x)) / (x * x)) / x
    return (x - 0.5) * np.log(x) - x + 0.9189385332046727 + series

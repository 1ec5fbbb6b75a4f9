"""The exact interval of a share, from binomial probabilities."""

from __future__ import annotations

import math

import numpy as np


def share_interval(found: int, drawn: int, sure: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper and Pearson 1934). For a sample of a finite number of
    images it is too wide rather than too narrow.

    Args:
        found: how many of the drawn have the property.
        drawn: how many were drawn; the number must not depend on what was found.
        sure: 0 to 1, of both ends together.

    Returns:
        low and high, 0 to 1; (0, 1) if nothing was drawn.
    """
    miss = (1 - sure) / 2
    low = 1 - _most_share(drawn - found, drawn, miss) if found else 0.0
    return low, _most_share(found, drawn, miss) if found < drawn else 1.0


def _most_share(found: int, drawn: int, miss: float) -> float:
    """The share at which `found` or fewer of the drawn have a probability of `miss`."""
    low, high = found / drawn, 1.0
    for _ in range(50):  # to 1e-15
        share = (low + high) / 2
        low, high = (share, high) if _at_most(found, drawn, share) > miss else (low, share)
    return low


def _at_most(found: int, drawn: int, share: float) -> float:
    """The probability of at most `found` among `drawn`, each with a probability of `share`."""
    k = np.arange(found + 1)
    logs = _log_choose(drawn, k) + k * math.log(share) + (drawn - k) * math.log1p(-share)
    return float(np.exp(logs).sum())


def _log_choose(n: int, k: np.ndarray) -> np.ndarray:
    """(m,) float64, the log of the number of ways to choose k, (m,) int64 of 0 to n, out of n."""
    ways = (math.lgamma(each + 1) + math.lgamma(n - each + 1) for each in k.tolist())
    return math.lgamma(n + 1) - np.fromiter(ways, np.float64, len(k))

"""Berrut's rational interpolation as a code: k images into one, an answer from those of others.

Owns: where the images and the coded one stand on the line, their weights.
Does not know: pixels, networks, what an answer is.

ApproxIFER (Soleymani et al., AAAI 2022, arXiv 2109.09868): a curve u(z) passes through image i at
z = a_i, and the network's answers along it, f(u(z)), are interpolated likewise. The interpolant of
Berrut (1988) through values y at nodes t, its signs alternating in the order of the nodes, has no
pole on the line:

    r(z) = sum_i (-1)^i y_i / (z - t_i)  /  sum_i (-1)^i / (z - t_i)

The paper codes every query; here the images themselves are all queries but one (a systematic
code), so that an answer that is there loses nothing. A value at a node is that node's own: nowhere
is anything divided by the distance of a point to itself.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def interpolation_weights(nodes: np.ndarray, at: float) -> np.ndarray:
    """(n,) float64, 1 in all: what each node's value counts in the interpolant at a point.

    Args:
        nodes: (n,) float64, all different, in any order.
        at: the point; at a node that one alone counts.
    """
    weights = np.zeros(len(nodes))
    distances = at - nodes
    if not distances.all():
        weights[distances == 0] = 1.0
        return weights
    order = np.argsort(-nodes)
    weights[order] = np.where(np.arange(len(nodes)) % 2, -1.0, 1.0) / distances[order]
    weights /= weights.sum()
    return weights


def positions(n: int) -> tuple[np.ndarray, float]:
    """(n,) float64, the images' places, descending: Chebyshev's points of the first kind; and the
    coded one's, midway (in angle) between the two images in the middle, so that it is at none."""
    angles = (2 * np.arange(n) + 1) * np.pi / (2 * n)
    return np.cos(angles), float(np.cos(np.pi * (n // 2) / n))


@lru_cache
def coding_weights(n: int) -> np.ndarray:
    """(n,) float64: the coded image is this sum of n images. It is theirs, not a copy: read it."""
    return interpolation_weights(*positions(n))


@lru_cache
def missing_weights(n: int, place: int) -> np.ndarray:
    """(n,) float64: image `place` of n has the answer that is this sum of the n - 1 others', in
    order, and of the coded one's, the last. Likewise."""
    images, coded = positions(n)
    return interpolation_weights(np.append(np.delete(images, place), coded), images[place])

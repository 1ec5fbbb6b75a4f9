"""Berrut's rational interpolation as a code: k images become one, and a missing answer follows from
the others.

ApproxIFER (Soleymani et al., AAAI 2022, arXiv 2109.09868): a curve u(z) passes through image i at z
= a_i, and the network's answers along it, f(u(z)), are interpolated in the same way. The
interpolant of Berrut (1988) through values y at nodes t, with signs that alternate in the order of
the nodes, has no pole on the line:

    r(z) = sum_i (-1)^i y_i / (z - t_i)  /  sum_i (-1)^i / (z - t_i)

The paper codes every query. Here the code is systematic: the images themselves are all queries but
one, so an answer that is there loses nothing. At a node the interpolant is the node's own value, so
nothing is divided by the distance of a point to itself.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def interpolation_weights(nodes: np.ndarray, at: float) -> np.ndarray:
    """(n,) float64 with sum 1: the weight of each node's value in the interpolant at a point.

    Args:
        nodes: (n,) float64, all different, in any order.
        at: the point; at a node only that node counts.
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
    """(n,) float64, the images' positions, descending: Chebyshev points of the first kind. And the
    position of the coded image, midway (in angle) between the two images in the middle, so that it
    never falls on an image.
    """
    angles = (2 * np.arange(n) + 1) * np.pi / (2 * n)
    return np.cos(angles), float(np.cos(np.pi * (n // 2) / n))


@lru_cache
def coding_weights(n: int) -> np.ndarray:
    """(n,) float64: the weights of n images in the coded image. The array is shared; do not change
    it.
    """
    return interpolation_weights(*positions(n))


@lru_cache
def missing_weights(n: int, place: int) -> np.ndarray:
    """(n,) float64: the weights of the answers from which the answer of image `place` of n follows:
    those of the n - 1 others, in order, then that of the coded image. The array is shared; do not
    change it.
    """
    images, coded = positions(n)
    return interpolation_weights(np.append(np.delete(images, place), coded), images[place])

"""Finds places for the numbers beside the markers of a figure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_OFFSETS = (8.5, 10.0, 12.0, 15.0, 19.0, 24.0, 30.0, 37.0, 45.0, 54.0)  # points, to the number
_MARKER_HALF = 3.6  # points
_ANGLES = np.deg2rad([30, 150, 330, 210, 90, 270, 0, 180, 60, 120, 300, 240, 15, 165, 345, 195])
_CANDIDATES = np.array(  # from a marker to its number, the nearest first
    [(r * np.cos(angle), r * np.sin(angle)) for r in _OFFSETS for angle in _ANGLES]
)
NEAR = _OFFSETS[2]  # a number further off wants a line to its marker


def free_offsets(
    places: np.ndarray, digits: Sequence[int], frame: np.ndarray
) -> list[tuple[float, float]]:
    """Where each marker's number goes: near it, clear of all markers and numbers, inside the frame.

    Markers with most neighbours are placed first. If no place is free, the least covered one is
    used.

    Args:
        places: (n, 2) of the markers, in points.
        digits: of each number.
        frame: (2, 2) lower left and upper right.

    Returns:
        The offset from each marker to the middle of its number, in points.
    """
    halves = np.array([[2.3 * count + 1.0, 4.2] for count in digits])  # (n, 2) of the numbers
    distances = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))  # (n, n)
    order = np.argsort(-(distances < 3 * _OFFSETS[0]).sum(axis=1), kind="stable")
    taken: dict[int, np.ndarray] = {}
    found: dict[int, tuple[float, float]] = {}
    for i in order.tolist():
        spots = places[i] + _CANDIDATES  # (candidates, 2)
        on_markers = np.abs(spots[:, None] - places) < halves[i] + _MARKER_HALF
        covered = on_markers.all(axis=2).sum(axis=1)
        for j, spot in taken.items():
            covered += (np.abs(spots - spot) < halves[i] + halves[j]).all(axis=1)
        inside = (spots - halves[i] > frame[0]) & (spots + halves[i] < frame[1])
        best = int(np.argmin(covered + 10 * ~inside.all(axis=1)))  # the first of the best
        taken[i] = spots[best]
        found[i] = (float(_CANDIDATES[best][0]), float(_CANDIDATES[best][1]))
    return [found[i] for i in range(len(places))]

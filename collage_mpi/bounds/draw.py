"""The order in which positions of a job are drawn: a permutation by seed, one position at a time,
of which only the drawn part takes memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_BLOCK = 512  # positions that are drawn at a time


class Draw(Sequence[int]):
    """A random permutation of the positions 0 .. images - 1; entry i is the position drawn as
    number i. Single positions are drawn, because neighbours may be near-duplicates.

    The method is Fisher and Yates's (Durstenfeld 1964), on the raw numbers of Philox, which no
    version of numpy may change (NEP 19). So a seed means the same order everywhere.
    """

    def __init__(self, images: int, seed: int) -> None:
        self._images, self._raw = images, np.random.Philox(key=seed)
        self._drawn: list[int] = []
        self._moved: dict[int, int] = {}  # place -> position, where they differ

    def __len__(self) -> int:
        return self._images

    def first(self, count: int) -> list[int]:
        """The first `count` positions, or all of them."""
        while len(self._drawn) < min(count, self._images):
            self._draw_block()
        return self._drawn[:count]

    def __getitem__(self, number: int) -> int:  # type: ignore[override]
        if not 0 <= number < self._images:
            raise IndexError(number)
        return self.first(number + 1)[number]

    def _draw_block(self) -> None:
        begin = len(self._drawn)
        left = self._images - np.arange(begin, min(begin + _BLOCK, self._images), dtype=np.uint64)
        raw = self._raw.random_raw(_BLOCK)[: len(left)]
        places = begin + np.arange(len(left)) + (raw % left).astype(np.int64)
        for number, place in enumerate(places.tolist(), begin):
            self._drawn.append(self._moved.get(place, place))
            self._moved[place] = self._moved.pop(number, number)

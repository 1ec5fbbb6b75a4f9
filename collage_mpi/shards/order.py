"""The order of a run: which image of the input is at which position. Both directions are computed,
so that an order takes no memory that grows with the input.
"""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.system.files import reading, require_regular
from collage_mpi.system.printable import shown

Range = tuple[int, int]  # [start, stop)

BLOCK = 1024
"""Positions to ask for at a time. A shuffled one takes 0.06 us, and 0.6 us in blocks of 64."""
ROUNDS = 6  # of `Shuffle`; with 4 the distances between images are uneven
_ASCENDING_BLOCK = 1 << 16


class Permutation:
    """A bijection of the numbers 0 .. images - 1. This one is the order of the files.

    Attributes:
        images: how many numbers there are.
        version: of the permutation, for the manifest; None if the manifest does not name it.
    """

    version: int | None = None

    def __init__(self, images: int) -> None:
        self.images = images

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """(k,) int64 images at positions, (k,) int64."""
        return positions

    def positions(self, indices: np.ndarray) -> np.ndarray:
        """(k,) int64 positions of images, (k,) int64."""
        return indices


class Listed(Permutation):
    """A permutation that is held in memory: that of a run whose manifest names none."""

    def __init__(self, order: np.ndarray) -> None:
        """`order`: (n,) int64, the image at each position."""
        super().__init__(len(order))
        self._order = order
        self._positions: np.ndarray | None = None

    @classmethod
    def by_numpy(cls, images: int, seed: int) -> Listed:
        """What `shuffle:SEED` meant before the manifest named a permutation."""
        order = np.arange(images)
        np.random.default_rng(seed).shuffle(order)
        return cls(order)

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """See `Permutation`."""
        return self._order[positions]

    def positions(self, indices: np.ndarray) -> np.ndarray:
        """See `Permutation`."""
        if self._positions is None:
            self._positions = np.empty_like(self._order)
            self._positions[self._order] = np.arange(self.images)
        return self._positions[indices]


class Shuffle(Permutation):
    """A permutation with a seed, computed by position.

    It is a generalised Feistel network (Black and Rogaway, "Ciphers with arbitrary finite domains",
    CT-RSA 2002): a number is a row and a column of a table, and each round adds to one of them a
    hash of the other and of the round's key. The table may have some more places than there are
    numbers; a number that falls on one of them goes through the network again. The hash has
    the two multiplications of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom
    number generators", OOPSLA 2014). It is no encryption: the seed can be found.
    """

    version = 1  # a permutation that gives other numbers has another version

    def __init__(self, images: int, seed: int) -> None:
        super().__init__(images)
        root = math.isqrt(max(images, 1) - 1) + 1
        # Of the nearly square tables the one with the fewest places to spare
        rows = min(range(root, root + min(root // 8, 256) + 1), key=lambda rows: -images % rows)
        self._sizes = np.uint64(rows), np.uint64(-(-images // rows))
        digest = hashlib.blake2b(str(seed).encode()).digest()
        self._keys = tuple(np.frombuffer(digest, "<u8")[:ROUNDS].astype(np.uint64))

    def indices(self, positions: np.ndarray) -> np.ndarray:
        """See `Permutation`."""
        found = self._encrypted(positions)
        while len(outside := np.flatnonzero(found >= self.images)):
            found[outside] = self._encrypted(found[outside])
        return found

    def positions(self, indices: np.ndarray) -> np.ndarray:
        """See `Permutation`."""
        found = self._decrypted(indices)
        while len(outside := np.flatnonzero(found >= self.images)):
            found[outside] = self._decrypted(found[outside])
        return found

    def _encrypted(self, numbers: np.ndarray) -> np.ndarray:
        halves = self._halves(numbers)
        for number, key in enumerate(self._keys):
            changed, size = halves[number % 2], self._sizes[number % 2]
            changed += _hashed(halves[1 - number % 2], key, size)
            np.minimum(changed, changed - size, out=changed)  # modulo: below 0 it wraps
        return self._joined(halves)

    def _decrypted(self, numbers: np.ndarray) -> np.ndarray:
        halves = self._halves(numbers)
        for number, key in reversed(list(enumerate(self._keys))):
            changed, size = halves[number % 2], self._sizes[number % 2]
            changed -= _hashed(halves[1 - number % 2], key, size)
            np.minimum(changed, changed + size, out=changed)
        return self._joined(halves)

    def _halves(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of each number, (k,) uint64."""
        columns = self._sizes[1]
        unsigned = numbers.astype(np.uint64)
        row = unsigned // columns
        unsigned -= row * columns
        return row, unsigned

    def _joined(self, halves: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        row, column = halves
        row *= self._sizes[1]
        row += column
        return row.view(np.int64)


def _hashed(numbers: np.ndarray, key: np.uint64, size: np.uint64) -> np.ndarray:
    """(k,) uint64 below `size`, which is at most 2**32, from numbers, (k,) uint64."""
    found: np.ndarray = numbers ^ key
    found *= np.uint64(0xBF58476D1CE4E5B9)
    found ^= found >> np.uint64(32)
    found *= np.uint64(0x94D049BB133111EB)
    found >>= np.uint64(32)
    found *= size
    found >>= np.uint64(32)
    return found


class Order:
    """The images of a run, or some of them, by position: ranges of a permutation of the input.

    `len` is the number of images.
    """

    def __init__(self, permutation: Permutation, ranges: Iterable[Range] | None = None) -> None:
        """Take all of a permutation, or ranges of it.

        Args:
            permutation: of all images of the input.
            ranges: places in the permutation that follow each other here, none of them twice.
        """
        self._permutation = permutation
        ranges = [(0, permutation.images)] if ranges is None else ranges
        self._ranges = [(start, stop) for start, stop in ranges if start < stop]
        first, end = np.array(self._ranges, np.int64).reshape(-1, 2).T
        self._starts = np.concatenate([[0], np.cumsum(end - first)])  # positions; the last: the end
        by_place = np.argsort(first, kind="stable")
        self._shifts = first - self._starts[:-1]  # from a position to its place, for each range
        self._first, self._end, self._by_place = first[by_place], end[by_place], by_place

    @classmethod
    def of_list(cls, indices: np.ndarray | Sequence[int]) -> Order:
        """The images with these global indices, (n,); positions are known only if these are all."""
        return cls(Listed(np.array(indices, np.int64)))

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def permutation(self) -> int | None:
        """The version of the permutation for the manifest; None for the order of the files, and for
        a run whose manifest names none."""
        return self._permutation.version

    def grown(self, images: int) -> Order | None:
        """This order, and after it the images that the input has more, which then has so many; None
        if it is not that of the files."""
        if type(self._permutation) is not Permutation:
            return None
        more = (self._permutation.images, images)
        return Order(Permutation(images), [*self._ranges, more])

    def part(self, ranges: Iterable[Range]) -> Order:
        """The images at ranges of positions, one range after the other."""
        starts, own = self._starts.tolist(), []
        for start, stop in ranges:
            at = bisect_right(starts, start) - 1
            while start < stop:
                end, shift = min(stop, starts[at + 1]), int(self._shifts[at])
                own.append((start + shift, end + shift))
                start, at = end, at + 1
        return Order(self._permutation, own)

    def indices(self, positions: np.ndarray | range) -> np.ndarray:
        """(k,) int64, the global indices of the images at positions, (k,) int64."""
        if isinstance(positions, range):
            positions = np.arange(positions.start, positions.stop, positions.step)
        if len(self._ranges) == 1:
            return self._permutation.indices(positions + self._shifts[0])
        at = np.searchsorted(self._starts, positions, side="right") - 1
        return self._permutation.indices(positions + self._shifts[at])

    def find(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Positions of images that may not be in this order.

        Args:
            indices: (k,) int64, global indices of images of the input.

        Returns:
            (k,) bool, which of the images are in this order, and the (m,) int64 positions of these.
        """
        if not self._ranges:
            return np.zeros(len(indices), bool), np.empty(0, np.int64)
        places = self._permutation.positions(indices)
        at = np.maximum(np.searchsorted(self._first, places, side="right") - 1, 0)
        inside = (self._first[at] <= places) & (places < self._end[at])
        return inside, (places - self._shifts[self._by_place[at]])[inside]

    def positions(self, indices: np.ndarray) -> np.ndarray:
        """(k,) int64, the positions of images with global indices (k,) int64, which are all in this
        order."""
        inside, positions = self.find(indices)
        if not inside.all():
            raise ValueError(f"image {indices[np.argmin(inside)]} is not in this order")
        return positions

    def ascending(self) -> Iterator[np.ndarray]:
        """Yields the global indices of all images in ascending order, (k,) int64 at a time."""
        if len(self) <= _ASCENDING_BLOCK:
            yield np.sort(self.indices(range(len(self))))
            return
        images = self._permutation.images
        for first in range(0, images, _ASCENDING_BLOCK):
            some = np.arange(first, min(first + _ASCENDING_BLOCK, images))
            yield some if len(self) == images else some[self.find(some)[0]]


def read_numbers(path: Path, images: int) -> np.ndarray:
    """(k,) int64 ascending, the numbers of images in a text file, separated by white space.

    Raises:
        EnvironmentFault: the file cannot be read.
        DataFault: it has no number, something else than numbers, one twice, or one that is not
            below `images`.
    """
    with reading(path):
        require_regular(path)
        words = path.read_text("utf-8", "replace").split()
    odd = next((word for word in words if not (word.isascii() and word.isdecimal())), None)
    if odd is not None or not words:
        what = "no number" if odd is None else f"{shown(odd, 40)}"
        raise DataFault(f"{path}: has {what}; needed: numbers of images, one on each line")
    numbers = np.sort(np.array([min(int(word[:20]), images) for word in words], np.int64))
    if numbers[-1] >= images:
        raise DataFault(f"{path}: names an image beyond the last one, which is {images - 1}")
    if (twice := numbers[1:][np.diff(numbers) == 0]).size:
        raise DataFault(f"{path}: names image {twice[0]} twice")
    return numbers


def ranges_of(numbers: np.ndarray) -> list[Range]:
    """Ascending numbers, (k,) int64, as [start, stop) ranges."""
    if not len(numbers):
        return []
    cuts = np.flatnonzero(np.diff(numbers) > 1)
    starts = numbers[np.concatenate([[0], cuts + 1])]
    stops = numbers[np.concatenate([cuts, [len(numbers) - 1]])] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def gaps(ranges: Iterable[Range], end: int) -> list[Range]:
    """The positions below `end` in none of these ranges, which are in ascending order."""
    edges = [0, *chain.from_iterable(ranges), end]
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [(start, stop) for start, stop in pairs if start < stop]

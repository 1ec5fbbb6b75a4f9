"""Sets of numbers, and of the images of an input, as one bit a number.

A set takes at most 64 bits for each row that there is. Only a damaged or foreign folder has numbers
beyond; these are kept as Python integers.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate

import numpy as np

from collage_mpi.results.manifest import Json
from collage_mpi.results.rows import KEY_ROW

Key = tuple[int, int]  # shard, row

_BITS_A_ROW = 64
_RUN = 1 << 16  # images of a digest at a time
_FAR = 1 << 62


class Marks:
    """A set of whole numbers from 0 on."""

    def __init__(self, limit: int) -> None:
        """`limit`: below it a number takes one bit."""
        self.limit = limit
        self.bits = np.zeros(-(-limit // 8), np.uint8)  # packed, the lowest number first
        self._beyond: set[int] = set()
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def add(self, numbers: np.ndarray) -> np.ndarray:
        """Mark numbers, (n,) int64; (n,) bool, which were marked before.

        Of a number that comes twice in one call all but one were marked before.
        """
        dense = (numbers >= 0) & (numbers < self.limit)
        again = np.ones(len(numbers), bool)
        places, first = np.unique(numbers[dense], return_index=True)
        byte, bit = places >> 3, (1 << (places & 7)).astype(np.uint8)
        again[np.flatnonzero(dense)[first]] = self.bits[byte] & bit > 0
        np.bitwise_or.at(self.bits, byte, bit)
        for i in np.flatnonzero(~dense).tolist():
            again[i] = int(numbers[i]) in self._beyond
            self._beyond.add(int(numbers[i]))
        self._n += int((~again).sum())
        return again

    def ascending(self) -> Iterator[np.ndarray]:
        """All numbers in ascending order, (k,) int64 at a time."""
        for start in range(0, len(self.bits), _RUN // 8):
            some = np.unpackbits(self.bits[start : start + _RUN // 8], bitorder="little")
            yield np.flatnonzero(some) + 8 * start
        yield np.array(sorted(self._beyond), np.int64)


class SessionMarks:
    """A set of numbers for each session."""

    def __init__(self, rows: int) -> None:
        """`rows`: how many there are at most."""
        self._of: dict[int, Marks] = defaultdict(lambda: Marks(8 * rows + _RUN))

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def add(self, sessions: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Mark each session's numbers, (n,); (n,) bool, which were marked before."""
        again = np.zeros(len(numbers), bool)
        for session in np.unique(sessions).tolist():
            mine = sessions == session
            again[mine] = self._of[session].add(numbers[mine].astype(np.int64))
        return again


class InputMarks:
    """Which images of an input have a row.

    Attributes:
        rows: that were added.
        doubles, foreign: rows whose image has another row too; rows outside the input.
        first_double, first_foreign: the lowest key of each; None without any.
    """

    def __init__(self, manifest: Json, rows: int) -> None:
        """`rows`: how many there are at most."""
        counts = [shard["count"] for shard in manifest["shards"]]
        starts = [min(start, _FAR) for start in accumulate(counts, initial=0)]
        self._counts = np.array(counts, np.uint64)
        self._starts = np.array(starts, np.int64)  # of each shard, then the end
        limit = manifest.get("limit")
        in_order = limit is not None and manifest.get("order") == "file"
        self._end = min(starts[-1], limit) if in_order else starts[-1]
        self._expected: int = manifest["rows"]
        self.seen = Marks(min(self._end, _BITS_A_ROW * rows))
        self._outside: set[Key] = set()
        self.rows = self.doubles = self.foreign = 0
        self.first_double: Key | None = None
        self.first_foreign: Key | None = None

    @property
    def missing(self) -> int:
        """How many images of the input have no row."""
        return max(0, self._expected - len(self.seen))

    def places(self, images: np.ndarray) -> np.ndarray:
        """(n,) int64, which image of the input each row is about; -1 outside of it."""
        known = images["shard"] < len(self._counts)
        known[known] = images["row"][known] < self._counts[images["shard"][known]]
        found = np.full(len(images), -1, np.int64)
        rows = np.minimum(images["row"][known], _FAR).astype(np.int64)
        found[known] = self._starts[images["shard"][known]] + rows
        found[found >= self._end] = -1
        return found

    def add(self, images: np.ndarray) -> None:
        """Take the keys of rows, (n,) with the columns shard and row."""
        places = self.places(images)
        self.rows += len(images)
        outside = places < 0
        again = np.zeros(len(images), bool)
        again[~outside] = self.seen.add(places[~outside])
        for i in np.flatnonzero(outside).tolist():
            key = int(images["shard"][i]), int(images["row"][i])
            again[i] = key in self._outside
            self._outside.add(key)
        self.doubles += int(again.sum())
        self.foreign += int(outside.sum())
        self.first_double = _lowest(self.first_double, images[again])
        self.first_foreign = _lowest(self.first_foreign, images[outside])

    def digest(self) -> str:
        """SHA-256 over the sorted keys of the input's images that have a row."""
        return _digest(self.seen.ascending(), self._starts)


def _lowest(known: Key | None, images: np.ndarray) -> Key | None:
    keys = zip(images["shard"].tolist(), images["row"].tolist(), strict=True)
    return min((*keys, *([known] if known else [])), default=None)


def keys_digest(order: np.ndarray, starts: np.ndarray) -> str:
    """SHA-256 over the sorted keys of the images that a run is to do: see `input_digest`.

    Args:
        order: (n,) int64, which images of the input, each once.
        starts: (shards + 1,) int64, the first image of each shard, and the end.
    """
    whole = len(order) == starts[-1]
    order = order if whole else np.sort(order)
    runs = (
        np.arange(first, min(first + _RUN, len(order))) if whole else order[first : first + _RUN]
        for first in range(0, len(order), _RUN)
    )
    return _digest(runs, starts)


def _digest(runs: Iterable[np.ndarray], starts: np.ndarray) -> str:
    """SHA-256 over the keys of images, which come in ascending order."""
    found = hashlib.sha256()
    for places in runs:
        shard = np.searchsorted(starts, places, side="right") - 1
        keys = np.empty(len(places), KEY_ROW)
        keys["shard"], keys["row"] = shard, places - starts[shard]
        found.update(keys.tobytes())
    return found.hexdigest()

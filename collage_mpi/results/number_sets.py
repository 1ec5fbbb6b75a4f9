"""Sets of numbers and of images: bit sets, the images of an input that have a row, and the images
that are drawn for an audit.

The bits of a set take at most 64 bits for each row of the run. Only a damaged or foreign folder has
numbers outside this range; they are kept in a Python set.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import accumulate

import numpy as np

from collage_mpi.results.manifest import Json
from collage_mpi.rows import KEY_ROW

Key = tuple[int, int]  # shard, row

_BITS_A_ROW = 64
_RUN = 1 << 16  # numbers that are unpacked at a time
_FAR = 1 << 62


class NumberSet:
    """A set of non-negative integers, as a bit array."""

    def __init__(self, limit: int) -> None:
        """`limit`: numbers below it are kept as bits."""
        self.limit = limit
        self.bits = np.zeros(-(-limit // 8), np.uint8)  # little-endian: the lowest number first
        self._beyond: set[int] = set()
        self._n = 0

    def __len__(self) -> int:
        return self._n

    def add(self, numbers: np.ndarray) -> np.ndarray:
        """Add numbers, (n,) int64. Returns (n,) bool, which of them the set had already.

        If a number occurs several times in one call, only one of its places can be False.
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
        """Yields all numbers in ascending order, as (k,) int64 arrays."""
        for start in range(0, len(self.bits), _RUN // 8):
            some = np.unpackbits(self.bits[start : start + _RUN // 8], bitorder="little")
            yield np.flatnonzero(some) + 8 * start
        yield np.array(sorted(self._beyond), np.int64)


class SessionNumberSets:
    """A set of numbers for each session."""

    def __init__(self, rows: int) -> None:
        """`rows`: the largest possible number of rows."""
        self._of: dict[int, NumberSet] = defaultdict(lambda: NumberSet(8 * rows + _RUN))

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def add(self, sessions: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Add numbers, (n,), to the sets of their sessions, (n,). Returns as `NumberSet.add`."""
        again = np.zeros(len(numbers), bool)
        for session in np.unique(sessions).tolist():
            mine = sessions == session
            again[mine] = self._of[session].add(numbers[mine].astype(np.int64))
        return again


class InputCoverage:
    """Which images of an input have a row.

    Attributes:
        rows: number of rows added.
        doubles: number of rows whose image had an earlier row.
        foreign: number of rows outside the input.
        first_double, first_foreign: the lowest key of such a row; None if there is none.
    """

    def __init__(self, manifest: Json, rows: int) -> None:
        """`rows`: the largest possible number of rows."""
        counts = [shard["count"] for shard in manifest["shards"]]
        starts = [min(start, _FAR) for start in accumulate(counts, initial=0)]
        self._counts = np.array(counts, np.uint64)
        self._starts = np.array(starts, np.int64)  # of each shard, then the end
        limit = manifest.get("limit")
        in_order = limit is not None and manifest.get("order") == "file"
        self._end = min(starts[-1], limit) if in_order else starts[-1]
        self._expected: int = manifest["rows"]
        self.seen = NumberSet(min(self._end, _BITS_A_ROW * rows))
        self._outside: set[Key] = set()
        self.rows = self.doubles = self.foreign = 0
        self.first_double: Key | None = None
        self.first_foreign: Key | None = None

    @property
    def missing(self) -> int:
        """The number of images of the input without a row."""
        return max(0, self._expected - len(self.seen))

    def places(self, images: np.ndarray) -> np.ndarray:
        """(n,) int64, the position of each row's image in the input; -1 if it is not in the
        input."""
        known = images["shard"] < len(self._counts)
        known[known] = images["row"][known] < self._counts[images["shard"][known]]
        found = np.full(len(images), -1, np.int64)
        rows = np.minimum(images["row"][known], _FAR).astype(np.int64)
        found[known] = self._starts[images["shard"][known]] + rows
        found[found >= self._end] = -1
        return found

    def add(self, images: np.ndarray) -> None:
        """Add rows, (n,) with the columns shard and row."""
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
        """SHA-256 of the sorted keys of the images that have a row."""
        return keys_digest(self.seen.ascending(), self._starts)


def _lowest(known: Key | None, images: np.ndarray) -> Key | None:
    keys = zip(images["shard"].tolist(), images["row"].tolist(), strict=True)
    return min((*keys, *([known] if known else [])), default=None)


def keys_digest(ascending: Iterable[np.ndarray], starts: np.ndarray) -> str:
    """SHA-256 of the sorted keys of a run's images: `input_digest` of the manifest.

    Args:
        ascending: positions in the input in ascending order, (k,) int64 at a time.
        starts: (shards + 1,) int64, the position of each shard's first image, and the total.
    """
    found = hashlib.sha256()
    for places in ascending:
        shard = np.searchsorted(starts, places, side="right") - 1
        keys = np.empty(len(places), KEY_ROW)
        keys["shard"], keys["row"] = shard, places - starts[shard]
        found.update(keys.tobytes())
    return found.hexdigest()


class Draw:
    """Draws a share of the images of some shards.

    A draw depends only on the seed and the image's key. So every session, and every reader of the
    rows, draws the same images.
    """

    def __init__(self, share: float, seed: int, fingerprints: Sequence[str]) -> None:
        """`share`: of the images to draw, 0 to 1. `fingerprints`: one a shard, by shard number."""
        self.share = share
        texts = [f"{seed}:{fingerprint}".encode() for fingerprint in fingerprints]
        digests = [blake2b(text, digest_size=8).digest() for text in texts]
        self._words = [int.from_bytes(digest, "little") for digest in digests]

    def some(self, images: np.ndarray) -> np.ndarray:
        """(n,) bool, which images are drawn.

        Args:
            images: (n,) structured, with the fields `shard` and `row`.
        """
        if not self.share:
            return np.zeros(len(images), bool)
        words = np.array(self._words, np.uint64)[images["shard"]]  # (n,)
        found: np.ndarray = _mixed(words ^ _mixed(images["row"].astype(np.uint64))) / 2**64
        return found < self.share


def draw_of(manifest: Json) -> Draw:
    """The draw that a run's manifest records; of no image if the run has no audits."""
    audit = manifest.get("audit") or {"share": 0.0, "seed": 0}
    fingerprints = [shard["fingerprint"] for shard in manifest["shards"]]
    return Draw(audit["share"], audit["seed"], fingerprints)


def _mixed(word: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), (n,) uint64."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ (word >> np.uint64(shift))) * np.uint64(factor)
    return word ^ (word >> np.uint64(31))

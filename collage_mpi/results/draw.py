"""Draws the images whose accepted answer another network checks.

A draw depends on the seed and the image's key alone. So every session draws the same images, and
so does whoever reads the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

Json = dict[str, Any]

_WORD = (1 << 64) - 1


class Draw:
    """Draws a share of the images of some shards."""

    def __init__(self, share: float, seed: int, fingerprints: Sequence[str]) -> None:
        """`share` from 0 to 1; `fingerprints`: of the shards, by number."""
        self.share = share
        texts = [f"{seed}:{fingerprint}".encode() for fingerprint in fingerprints]
        digests = [blake2b(text, digest_size=8).digest() for text in texts]
        self._words = [int.from_bytes(digest, "little") for digest in digests]

    def one(self, shard: int, row: int) -> bool:
        """Whether the image is drawn."""
        return self.share > 0 and _mixed(self._words[shard] ^ _mixed(row)) / 2**64 < self.share

    def some(self, images: np.ndarray) -> np.ndarray:
        """Which images are drawn, (n,) bool.

        Args:
            images: (n,) of a dtype with `shard` and `row`.
        """
        if not self.share:
            return np.zeros(len(images), bool)
        words = np.array(self._words, np.uint64)[images["shard"]]  # (n,)
        found: np.ndarray = _mixed(words ^ _mixed(images["row"].astype(np.uint64))) / 2**64
        return found < self.share


def draw_of(manifest: Json) -> Draw:
    """What a run drew, by its manifest."""
    audit = manifest.get("audit") or {"share": 0.0, "seed": 0}
    fingerprints = [shard["fingerprint"] for shard in manifest["shards"]]
    return Draw(audit["share"], audit["seed"], fingerprints)


NO_DRAW = Draw(0.0, 0, ())


def _mixed(word: Any) -> Any:
    """The end of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), of an int or a uint64 array."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ (word >> shift)) * factor & _WORD
    return word ^ (word >> 31)

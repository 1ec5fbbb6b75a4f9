"""How many images of a run the exact network calls each class: counts where it answered all images,
intervals where it audited some of those that another network answered (`bounds/shares`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from collage_mpi.kinds import KIND
from collage_mpi.results.manifest import Json, class_name
from collage_mpi.rows import ASKED_FIRST, AUDIT_CODE, ENCODED, KEPT, OTHERS, SOURCE_CODE

SURE = 0.95
_UNSURE = SOURCE_CODE[KEPT]  # the source of answers that nobody audits
_CHEAP = [*{*ASKED_FIRST, *ENCODED} - {_UNSURE}]  # not the exact network's


class ClassCounts:
    """Counts answered images by class, whoever answered them.

    Attributes:
        others: how many images another network answered.
        audited: how many of these the exact network was asked for, at random.
    """

    def __init__(self, manifest: Json) -> None:
        self._held = next(iter(manifest.get("thresholds") or []), None)
        self._names = manifest.get("class_names") or []
        self._exact, self._cheap = Counter[int](), Counter[int]()  # -1: it may be any class
        self._pairs = Counter[tuple[int, int]]()  # of an audited image; -1: it has no exact answer
        self.others = self.audited = 0

    def add(self, rows: np.ndarray) -> None:
        """Add rows that count, (n,) of IMAGE_ROW."""
        rows = rows[rows["answered"]]
        cheap, exact = rows["predicted"].copy(), rows["predicted"].copy()
        other = np.isin(rows["source"], _CHEAP)
        exact[other] = np.where(rows["audited"] == AUDIT_CODE["done"], rows["other"], -1)[other]
        exact[rows["source"] == _UNSURE] = -1
        audited = other & (rows["audited"] > 0)
        if self._held is not None and self._held["confidence"] is not None:
            kind, at = KIND[self._held["candidate"]], rows["position"]
            column, score = OTHERS[kind.place]
            later = at >= self._held["proved"]  # what was drawn before has its exact answer
            drawn = later & ~other & (rows["stages"] >> kind.place & 1 == 1)
            drawn &= rows[score] >= self._held["confidence"]
            cheap[drawn] = rows[column][drawn]
            other, audited = (other & later) | drawn, (audited & later) | drawn
        self._exact.update(exact[~other].tolist())
        self._cheap.update(cheap[other].tolist())
        self._pairs.update(zip(cheap[audited].tolist(), exact[audited].tolist(), strict=True))
        self.others, self.audited = self._cheap.total(), self._pairs.total()

    @property
    def classes(self) -> int:
        """How many the network has, as far as it is known."""
        pairs = (number for pair in self._pairs for number in pair)
        return max(len(self._names), 1 + max((*self._exact, *self._cheap, *pairs), default=-1))

    def told(self, numbers: Sequence[int] | None = None) -> list[Json] | None:
        """For each of these classes, or of all, {class, name, low, high, images}: how many of so
        many images the exact network calls so, with a probability of SURE that all intervals hold.
        None if nothing was audited of what another network answered."""
        if (self.others and not self.audited) or not (self.others or self._exact):
            return None
        classes = np.arange(self.classes) if numbers is None else np.array(numbers)
        known = np.array([self._exact[number] for number in classes.tolist()], float)
        if self.audited == self.others and not any(exact < 0 for _, exact in self._pairs):
            for (_, exact), count in self._pairs.items():
                known += count * (classes == exact)
            low = high = known
        else:
            own = np.array([self._cheap[number] for number in classes.tolist()], float)
            found = self._differences(classes)
            low = known + np.clip(own + self.others * found.low, 0, self.others)
            high = known + np.clip(own + self.others * found.high, 0, self.others)
        ends = zip(np.ceil(low - 1e-6), np.floor(high + self._exact[-1] + 1e-6), strict=True)
        return [
            {
                "class": number,
                "name": class_name(self._names, number),
                "low": int(first),
                "high": int(last),
                "images": self._exact.total() + self.others,
            }
            for number, (first, last) in zip(classes.tolist(), ends, strict=True)
        ]

    def _differences(self, classes: np.ndarray) -> Any:
        from collage_mpi.bounds.shares import Differences, differing

        pairs = np.array([*self._pairs], np.int64).reshape(-1, 2)
        often = np.array([*self._pairs.values()], np.int64)
        found = Differences(len(classes), 1 - (1 - SURE) / len(classes))
        counts = differing(pairs[:, 0], pairs[:, 1], classes, often)
        found.add(self.audited, np.ones(1), counts[:, :, None])
        return found

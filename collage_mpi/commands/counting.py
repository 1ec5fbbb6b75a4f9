"""The job of `collage-mpi count`: pictures by class, with few answers of the network itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from collage_mpi.bounds.shares import Shares
from collage_mpi.commands.asking import SEED, Answers, Series, class_numbers, places_of
from collage_mpi.errors import UsageError
from collage_mpi.results.manifest import Json, class_name
from collage_mpi.rows import IMAGES
from collage_mpi.system.printable import counted, say


@dataclass(frozen=True)
class Counting(Series):
    """A job that counts.

    Attributes:
        classes: those that are counted, by their names or numbers; none: all.
        within: how far an interval of a share may reach from its middle, 0 to 1.
    """

    classes: tuple[str, ...]
    within: float

    def next(self, runs: int) -> np.ndarray:
        """See `Series`."""
        found = Known(self, runs)
        if len(found.lacking):
            say(f"the network classifies {counted(len(found.lacking), 'more picture')}")
        return found.lacking

    def told(self) -> tuple[list[Json], str]:
        """A row for each class: {class, name, low, high, images}, how many of so many images the
        network calls so, with a probability of 95 % that all rows hold; and the cost, in words."""
        return Known(self, self.runs()).told()


class Known(Answers):
    """What the runs of a job say of its classes.

    Attributes:
        lacking: (n,) int64, the images that the exact network is to answer next.
    """

    def __init__(self, job: Counting, runs: int) -> None:
        """Read the runs. Raises as `Answers`, and UsageError if the two networks have different
        classes, or not those that are counted."""
        super().__init__(job, runs)
        cheap, scores = np.full(job.images, -1), np.zeros(job.images)
        for rows in self.first.chunks(IMAGES):
            at = places_of(self.first, rows)
            cheap[at] = np.where(rows["answered"], rows["predicted"], -1)
            scores[at] = rows["score"]
        self._images = np.flatnonzero(cheap >= 0)  # others cannot be read
        most = max(cheap.max(initial=-1), self.labels.max(initial=-1))
        self._names = self.first.manifest.get("class_names") or []
        for run in self.exact:
            if (run.manifest.get("class_names") or []) != self._names:
                raise UsageError(
                    f"{run.path} and {self.first.path}: their networks have different classes. "
                    "Name another network with --first"
                )
        names = self._names or [str(number) for number in range(most + 1)]
        whose = f"the network of {self.first.path}"
        self._numbers = class_numbers(job.classes or names, names, whose, "--class")
        self._shares = Shares(cheap[self._images], scores[self._images], self._numbers, seed=SEED)
        self.lacking = self._next(job.within)

    def _next(self, within: float) -> np.ndarray:
        """Draw again as all runs have drawn, up to what was not asked. If more than half of the
        images would be drawn, all are asked."""
        of, shares = self._images, self._shares
        while len(of) and (more := shares.more(within)):
            if 2 * (shares.drawn + more) > len(of):
                return of[~self.asked[of]]
            drawn = of[shares.draw(more)]
            if not self.asked[drawn].all():
                return np.unique(drawn[~self.asked[drawn]])
            shares.tell(self.labels[drawn])
        return of[:0]

    def told(self) -> tuple[list[Json], str]:
        """See `Counting.told`."""
        of, numbers = self._images, self._numbers
        low, high = self._shares.intervals * len(of)
        if self.asked[of].all():
            low = np.array([(self.labels[of] == number).sum() for number in numbers], float)
            high = low + (self.labels[of] < 0).sum()
        rows = [
            {
                "class": number,
                "name": class_name(self._names, number),
                "low": math.ceil(first - 1e-6),
                "high": math.floor(last + 1e-6),
                "images": len(of),
            }
            for number, first, last in zip(numbers, low, high, strict=True)
        ]
        missing = len(self.labels) - len(of)
        unread = f"; {counted(missing, 'picture')} cannot be read" if missing else ""
        return rows, (
            f"the network classified {int(self.asked.sum()):,} of {counted(len(of), 'picture')}, "
            f"and the job took {self.price:.2f} of the time of the exact run{unread}"
        )

"""The job of `collage-mpi count`: pictures by class, with few answers of the network itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from collage_mpi.bounds.shares import FIRST, Shares
from collage_mpi.commands.asking import DONE, SEED, Answers, Series, class_numbers, places_of
from collage_mpi.errors import DataFault, ExitCode, UsageError
from collage_mpi.results.manifest import Json, class_name
from collage_mpi.rows import IMAGES
from collage_mpi.system.printable import counted, say

LEAST = 2 * FIRST  # pictures; of fewer all would be asked


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

    def known(self) -> Known:
        """What is known at the end."""
        return Known(self, self.runs())


class Known(Answers):
    """What the runs of a job say of its classes.

    Attributes:
        images: (n,) int64, those that the cheap network could answer.
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
        self.images = np.flatnonzero(cheap >= 0)  # others cannot be read
        if not len(self.images):
            raise DataFault(f"{self.first.path}: no picture has an answer of the first network")
        self._names = self.first.manifest.get("class_names") or []
        for run in self.exact:
            if (run.manifest.get("class_names") or []) != self._names:
                raise UsageError(
                    f"{run.path} and {self.first.path}: their networks have different classes. "
                    "Name another network with --first"
                )
        names = self._names or [str(number) for number in range(cheap.max() + 1)]
        whose = f"the network of {self.first.path}"
        self._numbers = class_numbers(job.classes or names, names, whose, "--class")
        self._shares = Shares(cheap[self.images], scores[self.images], self._numbers, seed=SEED)
        self.lacking = self._next(job.within)

    def _next(self, within: float) -> np.ndarray:
        """Draw again as all runs have drawn, up to what was not asked. If more than half of the
        images would be drawn, all are asked."""
        of, shares = self.images, self._shares
        while more := shares.more(within):
            if 2 * (shares.drawn + more) > len(of):
                return of[~self.asked[of]]
            drawn = of[shares.draw(more)]
            if not self.asked[drawn].all():
                return np.unique(drawn[~self.asked[drawn]])
            shares.tell(self.labels[drawn])
        return of[:0]

    def told(self) -> tuple[list[Json], str]:
        """A row for each class: {class, name, low, high, images}, how many of so many images the
        network calls so, with a probability of 95 % that all rows hold; and the cost, in words."""
        of, numbers = self.images, self._numbers
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
        return rows, (
            f"the network was asked for {int(self.asked.sum()):,} of "
            f"{counted(len(of), 'picture')}, and the job took {self.price:.2f} of the time of the "
            "exact run"
            + _without("picture", len(self.labels) - len(of), "cannot be read")
            + _without("picture", self.failed, "could not be answered")
        )

    @property
    def failed(self) -> int:
        """How many images the exact network was asked for without an answer."""
        return int((self.asked & (self.labels < 0)).sum())

    @property
    def code(self) -> ExitCode:
        """Of the job."""
        return DONE[self.failed > 0 or len(self.images) < len(self.labels)]


def _without(what: str, number: int, why: str) -> str:
    return f"; {counted(number, what)} {why}" if number else ""

"""Jobs that ask the exact network for some of the images: a series of ordinary runs in one folder.

A cheap network classifies all images, the exact network those that the job names. The same command
continues the job, because it continues each run that is not complete and decides anew what is asked
next.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault, ExitCode, UsageError
from collage_mpi.results import has_run
from collage_mpi.results.reader import StoredRun, open_run
from collage_mpi.rows import IMAGES
from collage_mpi.settings.flags import Values
from collage_mpi.system.files import make_directory, save_file, writing
from collage_mpi.system.printable import did_you_mean, some_of

SEED = 0
DONE = (ExitCode.COMPLETE, ExitCode.COMPLETE_WITH_ERRORS)


class Ended(Exception):
    """A run is not complete. Its exit code is the only argument."""


@dataclass(frozen=True)
class Series:
    """The runs of a job.

    Attributes:
        images: number of images of the input.
        folder: of the runs.
        first, exact: settings of the runs of the cheap and of the exact network, without `out` and
            `only`.
        launch: starts a run with these settings, or goes on with it; returns its exit code.
    """

    images: int
    folder: Path
    first: Values
    exact: Values
    launch: Callable[[Values], int]

    def begin(self) -> int:
        """Do what comes before the cheap network's run. Returns the number of the exact network's
        runs that this has made. Raises as `execute`."""
        return 0

    def next(self, runs: int) -> np.ndarray:
        """(n,) int64, the images to ask after so many runs of the exact network; none at the end.
        Raises as `execute`."""
        raise NotImplementedError

    def execute(self) -> int:
        """Go on with the job until it is done. Returns the exit code of the first run that is not
        complete, otherwise 0.

        Raises:
            UsageError: the networks lack a class, or the job is not worth while.
            CollageError: as the runs, and as their readers.
        """
        try:
            number = self.begin() + 1
            with writing(self.folder):
                make_directory(self.folder)
            self.run(self.first, self.folder / "first")
            while self.list_of(number).exists() or self._ask_more(number):
                self.run(self.exact, self.exact_run(number), self.list_of(number))
                number += 1
        except Ended as ended:
            return int(ended.args[0])
        return 0

    def _ask_more(self, number: int) -> bool:
        """Decide what the exact network is asked in this run. False: nothing is left to ask."""
        asked = self.next(number - 1)
        if len(asked):
            save_numbers(self.list_of(number), asked)
        return len(asked) > 0

    def exact_run(self, number: int) -> Path:
        """The folder of a run of the exact network, from 1."""
        return self.folder / f"exact-{number}"

    def list_of(self, number: int) -> Path:
        """The images of this run."""
        return self.folder / f"exact-{number}.txt"

    def opened(self, name: str) -> StoredRun:
        """A run by the name of its folder. Raises as `open_run`, and DataFault if its input has
        not as many images."""
        run = open_run(self.folder / name)
        if sum(each for _, each in inputs_of(run)) != self.images:
            raise DataFault(
                f"{run.path}: its input has not the {self.images:,} images that are there now"
            )
        return run

    def runs(self) -> int:
        """How many runs of the exact network there are."""
        return next(number for number in count(1) if not has_run(self.exact_run(number))) - 1

    def run(self, settings: Values, out: Path, only: Path | None = None) -> None:
        """Start a run, or go on with it. Raises Ended: it is not complete."""
        names = {"out": str(out), **({} if only is None else {"only": str(only)})}
        code = self.launch({**settings, **names})
        if code not in DONE:
            raise Ended(code)


class Answers:
    """What the runs of a job have answered so far.

    Attributes:
        first, exact: the runs.
        labels: (images,) int64, the exact network's class; -1 if it has none.
        asked: (images,) bool, whether the exact network was asked.
        reasons: (images,) texts, why the exact network has no answer.
    """

    def __init__(self, job: Series, runs: int) -> None:
        """Read the runs. `runs`: how many of the exact network there are. Raises as `open_run`, and
        DataFault if they have different inputs."""
        self.first, images = job.opened("first"), job.images
        self.exact = [open_run(job.exact_run(number)) for number in range(1, runs + 1)]
        self.labels, self.asked = np.full(images, -1), np.zeros(images, bool)
        self.reasons = np.full(images, "", object)
        for run in self.exact:
            if inputs_of(run) != inputs_of(self.first):
                raise DataFault(
                    f"{run.path}: has other inputs than {self.first.path}. Repair the input, "
                    f"remove {run.path} and repeat the command"
                )
            for rows in run.chunks(IMAGES):
                at = places_of(run, rows)
                self.asked[at] = True
                self.labels[at] = np.where(rows["answered"], rows["predicted"], -1)
                self.reasons[at] = np.char.decode(rows["reason"], "utf-8", "replace")

    @property
    def price(self) -> float:
        """The time of all runs, divided by what the exact network would take for all images."""
        exact_s = seconds_of(self.exact)
        all_s = exact_s + seconds_of(self.others)
        return all_s / max(exact_s / max(int(self.asked.sum()), 1) * len(self.asked), 1e-9)

    @property
    def others(self) -> list[StoredRun]:
        """The runs of the cheap network."""
        return [self.first]


def class_numbers(wanted: Sequence[str], names: Sequence[str], whose: str, flag: str) -> list[int]:
    """The numbers of classes among a network's.

    Args:
        wanted: their names, or their numbers as text if the network names no classes.
        names: of the network's classes.
        whose: says which network it is.
        flag: that asks for the classes.

    Raises:
        UsageError: the network has no such class.
    """
    for name in wanted:
        if name not in names:
            more = did_you_mean(name, names) or f"; it has {some_of(names, 5)}"
            raise UsageError(f"{flag}: {whose} has no class {name!r}{more}")
    return [names.index(name) for name in wanted]


def inputs_of(run: StoredRun) -> list[tuple[str, int]]:
    """The paths of a run's inputs, and how many images each has."""
    return [(each["path"], each["count"]) for each in run.manifest["shards"]]


def places_of(run: StoredRun, rows: Any) -> np.ndarray:
    """(n,) int64, the numbers of images in the input. `rows`: with their shard and row."""
    starts = np.cumsum([0, *(each["count"] for each in run.manifest["shards"])])
    return starts[rows["shard"]] + rows["row"].astype(np.int64)


def seconds_of(runs: Sequence[StoredRun]) -> float:
    """The time in which ranks worked on the images of runs, start-up left out."""
    total_ns = 0
    for run in runs:
        times: dict[int, list[int]] = defaultdict(list)
        for rows in run.chunks(IMAGES):
            for session in np.unique(rows["session"]).tolist():
                own = rows[rows["session"] == session]
                ends_ns = own["t0_ns"] + own["latency_ns"]
                times[session] += int(own["t0_ns"].min()), int(ends_ns.max())
        total_ns += sum(max(own) - min(own) for own in times.values())
    return total_ns / 1e9


def save_numbers(path: Path, numbers: np.ndarray) -> None:
    """Write the numbers of images, ascending, one on each line."""
    save_file(path, "".join(f"{number}\n" for number in np.sort(numbers).tolist()).encode())

"""`collage-mpi classify ... --recall blank=0.95`: finds at least this share of the pictures that
the network calls blank, without asking it for all of them.

The job is a series of ordinary runs in one folder: a cheap network classifies all pictures, the
exact network those that `bounds/recall` names. The same command continues the job, because it
continues each run that is not complete and decides anew what is asked next.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.bounds.draw import Draw
from collage_mpi.bounds.recall import Recall, exact_answers
from collage_mpi.errors import DataFault, ExitCode, UsageError
from collage_mpi.results import has_run
from collage_mpi.results.export import (
    FORMATS,
    NameBook,
    in_order,
    prediction_columns,
    with_input,
)
from collage_mpi.results.manifest import about_answers
from collage_mpi.results.reader import StoredRun, open_run
from collage_mpi.rows import IMAGES
from collage_mpi.settings.flags import Values
from collage_mpi.shards.order import read_numbers
from collage_mpi.system.files import make_directory, save_file, writing
from collage_mpi.system.printable import counted, did_you_mean, say, shown, some_of

TRIED, MOST_TRIED = 400, 2_000  # images that both networks classify first, to find the price
SEED = 0
DONE = (ExitCode.COMPLETE, ExitCode.COMPLETE_WITH_ERRORS)


@dataclass(frozen=True)
class Question:
    """What is to be found.

    Attributes:
        classes: their names, or their numbers as text if the networks name no classes.
        recall: share of the images of these classes that must be found, 0 to 1, exclusive.
    """

    classes: tuple[str, ...]
    recall: float

    @classmethod
    def read(cls, words: Sequence[str]) -> Question:
        """Parse the words of `--recall`: names of classes; =SHARE follows the last one.

        Raises:
            UsageError: there is no share between 0 and 1, or a class is missing or given twice.
        """
        last, _, share = words[-1].rpartition("=")
        classes = (*words[:-1], last)
        try:
            recall = float(share)
        except ValueError:
            recall = 0.0
        if not 0 < recall < 1 or not all(classes) or len({*classes}) < len(classes):
            raise UsageError(
                f"--recall {shown(' '.join(words))}: needed are a class, or several different "
                "ones, and the share of their pictures to find, such as --recall blank=0.95"
            )
        return cls(classes, recall)

    @property
    def text(self) -> str:
        """The classes in words."""
        return " or ".join(self.classes)

    def numbers_in(self, run: StoredRun, classes: int) -> list[int]:
        """The numbers that the run's network gives to the classes. Raises as `numbers`.

        Args:
            run: of the network.
            classes: how many there are.
        """
        names = run.manifest.get("class_names") or [*map(str, range(classes))]
        return self.numbers(names, f"the network of {run.path}")

    def numbers(self, names: Sequence[str], whose: str) -> list[int]:
        """The numbers of the classes among a network's. `whose`: says which network it is.

        Raises:
            UsageError: the network has no such class, or has no others.
        """
        for name in self.classes:
            if name not in names:
                more = did_you_mean(name, names) or f"; it has {some_of(names, 5)}"
                raise UsageError(f"--recall: {whose} has no class {name!r}{more}")
        if len(self.classes) >= len(names):
            raise UsageError("--recall names all classes, and every picture is of one of them")
        return [names.index(name) for name in self.classes]


class _Ended(Exception):
    """A run is not complete. Its exit code is the only argument."""


@dataclass(frozen=True)
class YesOrNo:
    """A yes-or-no job.

    Attributes:
        question: what is to be found.
        images: number of images of the input.
        folder: of the runs.
        first, exact: settings of the runs of the cheap and of the exact network, without `out` and
            `only`. The cheap one keeps its scores.
        launch: starts a run with these settings, or goes on with it; returns its exit code.
    """

    question: Question
    images: int
    folder: Path
    first: Values
    exact: Values
    launch: Callable[[Values], int]

    @cached_property
    def scores(self) -> np.ndarray:
        """(images,) float64, the probability of a yes by the cheap network; see `scores_of`."""
        return scores_of(open_run(self.folder / "first"), self.question, self.images)

    def execute(self) -> int:
        """Go on with the job until it is done. Returns the exit code of the first run that is not
        complete, otherwise 0.

        Raises:
            UsageError: the job would cost more than the exact run, or the networks lack a class.
            CollageError: as the runs, and as their readers.
        """
        self._say_the_price_of_shares()
        try:
            self._try()
            self._run(self.first, self.folder / "first")
            number = 2
            while self._list(number).exists() or self._ask_more(number):
                self._run(self.exact, self.exact_run(number), self._list(number))
                number += 1
        except _Ended as ended:
            return int(ended.args[0])
        return 0

    def _ask_more(self, number: int) -> bool:
        """Decide what the exact network is asked in this run. False: nothing is left to ask."""
        asked = Answers(self, number - 1).next()
        if len(asked):
            save_numbers(self._list(number), asked)
        return len(asked) > 0

    def exact_run(self, number: int) -> Path:
        """The folder of a run of the exact network, from 1."""
        return self.folder / f"exact-{number}"

    def _list(self, number: int) -> Path:
        """The images of this run."""
        return self.folder / f"exact-{number}.txt"

    def _run(self, settings: Values, out: Path, only: Path | None = None) -> None:
        names = {"out": str(out), **({} if only is None else {"only": str(only)})}
        code = self.launch({**settings, **names})
        if code not in DONE:
            raise _Ended(code)

    def _say_the_price_of_shares(self) -> None:
        recall = self.question.recall
        some = [exact_answers(share, recall) for share in (1.0, 0.1, 0.01, 0.001)]
        if some[0] >= self.images:
            raise UsageError(
                f"--recall {recall:g} takes at least {some[0]:,} answers of the network, even if "
                f"the input ({counted(self.images, 'picture')}) has nothing else: leave it out"
            )
        say(
            f"--recall {recall:g} takes some {some[1]:,}, {some[2]:,} or {some[3]:,} answers of "
            f"the network if 10, 1 or 0.1 % of the pictures are {self.question.text}, and some more"
        )

    def _try(self) -> None:
        """Let both networks classify a few images, and say what the job will cost.

        Raises:
            UsageError: it would cost more than the exact run.
        """
        drawn = self._list(1)
        with writing(self.folder):
            make_directory(self.folder)
        few = min(MOST_TRIED, max(TRIED, self.images // 25))
        save_numbers(drawn, np.array(Draw(self.images, SEED).first(few)))
        self._run(self.first, self.folder / "tried", drawn)
        self._run(self.exact, self.exact_run(1), drawn)
        tried, exact = open_run(self.folder / "tried"), open_run(self.exact_run(1))
        scores = scores_of(tried, self.question, self.images)[read_numbers(drawn, self.images)]
        self.question.numbers_in(exact, classes_of(tried))
        job = Recall(np.resize(scores, self.images), self.question.recall, SEED)
        answers = job.answers(job.forecast)
        cost = seconds_of([tried]) / max(seconds_of([exact]), 1e-9)
        price = cost + (answers + (1 + cost) * len(scores)) / self.images
        said = (
            f"some {answers:,} answers of the network for {self.images:,} pictures, and one of the "
            f"first network for each, which takes {cost:.2f} of the time: {price:.2f} of the exact "
            f"run, with {len(scores):,} that both have tried"
        )
        if price >= 1:
            gained = max((1 - cost) * self.images, 1.0)
            pays = exact_answers(1.0, self.question.recall) / gained
            raise UsageError(
                f"--recall {self.question.recall:g} of {self.question.text} is forecast to take "
                f"{said}. "
                + f"It pays for classes of more than {pays:.2g} of the pictures. " * (pays < 1)
                + "Leave out --recall, ask for a lower share, or name a cheaper network by --first"
            )
        say(f"forecast: {said}")


class Answers:
    """What the runs of a job have answered so far.

    Attributes:
        scores: (images,) float64, the cheap network's probability that the answer is yes; NaN if
            it has no answer.
        labels: (images,) int64, the exact network's class; -1 if it has none.
        asked: (images,) bool, whether the exact network was asked.
        reasons: (images,) texts, why the exact network has no answer.
        names: (classes,) texts, of the exact network's classes.
    """

    def __init__(self, job: YesOrNo, runs: int) -> None:
        """Read the runs. `runs`: how many of the exact network there are."""
        self.tried, self.first = open_run(job.folder / "tried"), open_run(job.folder / "first")
        self.question, self.scores, images = job.question, job.scores, job.images
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
        classes = classes_of(self.first)
        self.yes = np.isin(self.labels, self.question.numbers_in(self.exact[0], classes))
        names = self.exact[0].manifest.get("class_names") or map(str, range(classes))
        self.names = np.array([*names], object)

    def next(self) -> np.ndarray:
        """(k,) int64, the images to ask next; none if the promise is kept.

        A drawn image that the cheap network could answer and the exact one could not is taken as a
        yes, because it may be one. So the promise holds for the images that are answered.

        Raises:
            UsageError: too few of the likeliest images are yes, so that all would have to be asked.
        """
        recall = self.question.recall
        job = Recall(self.scores, recall, SEED)
        if len(asked := self._unasked(job.top)):
            say(f"the network classifies the {len(job.top):,} likeliest pictures")
            return asked
        found = int(self.yes[job.top].sum())
        sample = job.sample(found)
        if len(asked := self._unasked(np.concatenate(sample))):
            if job.share(found) == 1:
                raise UsageError(
                    f"{found:,} of the {len(job.top):,} likeliest pictures are "
                    f"{self.question.text}. Below {round(recall / (1 - recall)):,} --recall "
                    f"{recall:g} asks for all: leave it out, or ask for a lower share"
                )
            say(
                f"{found:,} of them are {self.question.text}. The network classifies "
                f"{job.share(found):.1%} of the others, drawn at random"
            )
            return asked
        maybe = self.yes | (self.labels < 0)
        asked = self._unasked(job.rest(found, [int(maybe[each].sum()) for each in sample]))
        if len(asked):
            say(f"some of these are {self.question.text}, so it classifies {len(asked):,} more")
        return asked

    def _unasked(self, images: np.ndarray) -> np.ndarray:
        return images[~self.asked[images]]

    def columns(self, names: NameBook) -> Iterator[Mapping[str, Any]]:
        """Yields the columns of the table, some images at a time, in the order of the input.

        id, answer: yes, no, or nothing if the exact network failed; by: exact or first, who gave
        the answer; class: of the exact network; score: of `scores`; error: why there is no answer.
        """
        for some in in_order(self.first):
            at = places_of(self.first, some.images)
            known, asked = self.labels[at] >= 0, self.asked[at]
            failed = asked & ~known
            answer = np.where(self.yes[at], "yes", "no").astype(object)
            found = {
                "id": prediction_columns(some, names.of(some.images))["id"],
                "answer": np.ma.array(answer, mask=failed),
                "by": np.ma.array(np.where(asked, "exact", "first").astype(object)),
                "class": np.ma.array(self.names[np.where(known, self.labels[at], 0)], mask=~known),
                "score": np.ma.masked_invalid(self.scores[at].astype(np.float32)),
                "error": np.ma.array(self.reasons[at], mask=~failed),
            }
            yield with_input(found, names, some)

    def told(self) -> str:
        """What was found, and what it cost, in words."""
        asked, images = int(self.asked.sum()), len(self.asked)
        exact_s = seconds_of(self.exact)
        all_s = exact_s + seconds_of([self.tried, self.first])
        price = all_s / max(exact_s / asked * images, 1e-9)
        return (
            f"{int(self.yes.sum()):,} pictures are {self.question.text}: at least "
            f"{self.question.recall:.4g} of those that the network would call so, with a "
            f"probability of 95 %. It classified {asked:,} of {counted(images, 'picture')}; "
            f"the job took {price:.2f} of the time of the exact run"
        )


def finish(job: YesOrNo, out: Path, id_column: str | None, columns: Sequence[str] = ()) -> int:
    """Write the table of a job that is done, and say what was found. Returns the exit code."""
    runs = next(number for number in count(1) if not has_run(job.exact_run(number))) - 1
    answers = Answers(job, runs)
    path, manifest = answers.first.path, answers.first.manifest
    names = NameBook(path, manifest, id_column=id_column, columns=columns)
    write = FORMATS[out.suffix[1:]]
    assert write is not None
    with writing(out):
        about = {**about_answers(answers.exact[-1].manifest), "first": about_answers(manifest)}
        os.replace(write(job.folder / "answers", answers.columns(names), False, about), out)
    say(f"{answers.told()}. Answers in {out}")
    return DONE[bool((answers.asked & (answers.labels < 0)).any())]


def scores_of(run: StoredRun, question: Question, images: int) -> np.ndarray:
    """(images,) float64, the probability of the classes by a run that keeps its scores; NaN for
    images without an answer. Raises DataFault if the run's input has not as many images."""
    if sum(each for _, each in inputs_of(run)) != images:
        raise DataFault(f"{run.path}: its input has not the {images:,} images that are there now")
    found = np.full(images, np.nan)
    numbers = question.numbers_in(run, classes_of(run))
    for kept in run.kept_values:
        found[places_of(run, kept)] = np.clip(kept["scores"][:, numbers].sum(axis=1), 0, 1)
    return found


def classes_of(run: StoredRun) -> int:
    """How many classes the network of a run has that keeps its scores; 0 without an answer."""
    widths = (kept["scores"].shape[1] for kept in run.kept_values if len(kept["scores"]))
    return next(widths, 0)


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

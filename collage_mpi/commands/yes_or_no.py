"""`collage-mpi classify ... --recall blank=0.95`: finds at least this share of the pictures that
the network calls blank, without asking it for all of them.

A cheap network classifies all pictures, the exact network those that `bounds/recall` names, in a
series of runs (`commands/asking`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.bounds.draw import Draw
from collage_mpi.bounds.recall import Recall, exact_answers
from collage_mpi.commands.asking import (
    DONE,
    SEED,
    Answers,
    Series,
    class_numbers,
    places_of,
    save_numbers,
    seconds_of,
)
from collage_mpi.errors import UsageError
from collage_mpi.results.export import (
    FORMATS,
    NameBook,
    in_order,
    prediction_columns,
    with_input,
)
from collage_mpi.results.manifest import about_answers
from collage_mpi.results.reader import StoredRun, open_run
from collage_mpi.shards.order import read_numbers
from collage_mpi.system.files import make_directory, writing
from collage_mpi.system.printable import counted, say, shown

TRIED, MOST_TRIED = 400, 2_000  # images that both networks classify first, to find the price


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
        found = class_numbers(self.classes, names, whose, "--recall")
        if len(self.classes) >= len(names):
            raise UsageError("--recall names all classes, and every picture is of one of them")
        return found


@dataclass(frozen=True)
class YesOrNo(Series):
    """A yes-or-no job. The runs of the cheap network keep their scores.

    Attributes:
        question: what is to be found.
    """

    question: Question

    @cached_property
    def scores(self) -> np.ndarray:
        """(images,) float64, the probability of a yes by the cheap network; see `scores_of`."""
        return scores_of(self.opened("first"), self.question, self.images)

    def begin(self) -> int:
        """See `Series`."""
        self._say_the_price_of_shares()
        self._try()
        return 1

    def next(self, runs: int) -> np.ndarray:
        """See `Series`."""
        return Found(self, runs).next()

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
        drawn = self.list_of(1)
        with writing(self.folder):
            make_directory(self.folder)
        few = min(MOST_TRIED, max(TRIED, self.images // 25))
        save_numbers(drawn, np.array(Draw(self.images, SEED).first(few)))
        self.run(self.first, self.folder / "tried", drawn)
        self.run(self.exact, self.exact_run(1), drawn)
        tried, exact = self.opened("tried"), open_run(self.exact_run(1))
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


class Found(Answers):
    """What the runs of a job have found so far.

    Attributes:
        scores: (images,) float64, the cheap network's probability that the answer is yes; NaN if
            it has no answer.
        yes: (images,) bool, whether the exact network says yes.
        names: (classes,) texts, of the exact network's classes.
    """

    def __init__(self, job: YesOrNo, runs: int) -> None:
        """Read the runs. Raises as `Answers`, and UsageError if the networks lack a class."""
        super().__init__(job, runs)
        self.tried, self.question = open_run(job.folder / "tried"), job.question
        self.scores = job.scores
        classes = classes_of(self.first)
        self.yes = np.isin(self.labels, self.question.numbers_in(self.exact[0], classes))
        names = self.exact[0].manifest.get("class_names") or map(str, range(classes))
        self.names = np.array([*names], object)

    @property
    def others(self) -> list[StoredRun]:
        """See `Answers`."""
        return [self.tried, self.first]

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
        return (
            f"{int(self.yes.sum()):,} pictures are {self.question.text}: at least "
            f"{self.question.recall:.4g} of those that the network would call so, with a "
            f"probability of 95 %. It classified {asked:,} of {counted(images, 'picture')}; "
            f"the job took {self.price:.2f} of the time of the exact run"
        )


def finish(job: YesOrNo, out: Path, id_column: str | None, columns: Sequence[str] = ()) -> int:
    """Write the table of a job that is done, and say what was found. Returns the exit code."""
    answers = Found(job, job.runs())
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
    images without an answer."""
    found = np.full(images, np.nan)
    numbers = question.numbers_in(run, classes_of(run))
    for kept in run.kept_values:
        found[places_of(run, kept)] = np.clip(kept["scores"][:, numbers].sum(axis=1), 0, 1)
    return found


def classes_of(run: StoredRun) -> int:
    """How many classes the network of a run has that keeps its scores; 0 without an answer."""
    widths = (kept["scores"].shape[1] for kept in run.kept_values if len(kept["scores"]))
    return next(widths, 0)

"""The promise of a job: which threshold follows from the answers to the drawn images, which come
first in the job's order. Until it is known the reference answers every image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from collage_mpi.bounds.exact import share_interval
from collage_mpi.bounds.sample import (
    CHOOSING,
    LOOK,
    MOST,
    Asked,
    Candidate,
    Pairs,
    choose,
    front,
    prove,
    raised,
    thresholds_of,
    worth_trying,
)


class Answer(NamedTuple):
    """A candidate's answer to an image that the reference has answered, too.

    Attributes:
        score: the higher, the surer.
        differs: whether the reference names another class.
    """

    score: float
    differs: bool


@dataclass(frozen=True)
class Threshold:
    """What a job uses once it is known.

    Attributes:
        confidence: an answer of the candidate counts from this score on. None: no answer counts,
            and the reference answers every image.
        candidate: name of the candidate; None if no answer counts.
        proved: the drawn images below this number have chosen and proved it.
        drawn: those from there up to this number have audited it. The answers of the reference are
            the rows of all of them, but for some that a killed job had not written.
    """

    confidence: float | None
    candidate: str | None
    proved: int
    drawn: int


class Promise:
    """Decides on the threshold, from answers that may arrive in any order.

    Whatever the order and the number of ranks, equal answers lead to equal thresholds, because
    answers are used in the order of the draw and only up to the first gap. A drawn image that lacks
    an answer, for example because it cannot be read, is left out.

    Attributes:
        asked, candidates: the job and what is promised, and what may answer first.
        tried: those that answer the first images. Empty if the job is too small for each
            of them.
        chosen: the candidate that answers from then on; None before the choice, and if none pays.
        threshold: None until it is known.
    """

    def __init__(self, asked: Asked, candidates: Sequence[Candidate]) -> None:
        self.asked, self.candidates = asked, candidates
        self.tried = worth_trying(asked, candidates)
        self.chosen: Candidate | None = None
        self.threshold: Threshold | None = None
        self._front = front(asked)
        self._waiting: dict[int, Mapping[str, Answer]] = {}  # by number, beyond the first gap
        self._ready = 0  # numbers up to the first gap
        # The answers to these, by the order of the draw.
        self._known: list[Mapping[str, Answer]] = []
        self._proved = 0, 0  # where the audits begin: number of the draw, and place in `_known`
        self._deepest, self._least = -1, np.inf  # `_least`: what was proved
        if not self.tried:
            self._end(None)

    @property
    def asks(self) -> tuple[str, ...]:
        """The names of the candidates that answer drawn images now."""
        asked = self.tried if self.chosen is None else [self.chosen]
        return tuple(each.name for each in asked)

    def take(self, number: int, answers: Mapping[str, Answer]) -> None:
        """Take the answers to an image. Second ones are ignored, and those of images that are not
        needed.

        Args:
            number: of the image in the draw, from 0.
            answers: by the name of the candidate. An image that lacks an answer of a candidate in
                `asks` is left out.
        """
        if number < self._ready or self.threshold is not None:
            return
        self._waiting.setdefault(number, answers)
        while self._ready in self._waiting and self.threshold is None:
            found = self._waiting.pop(self._ready)
            self._ready += 1
            whole = found.keys() >= {*self.asks}
            if whole:
                self._known.append(found)
            if whole or self._ready == self._front:
                self._advance(last=self._ready == self._front)

    def audited(self) -> tuple[int, int, tuple[float, float]]:
        """Of the audited answers: how many count and get another class than the reference's, how
        many there are, and the exact 95 % interval of the share (Clopper and Pearson 1934). They
        count from the threshold, or from the one that was refuted."""
        audits, held = self._pairs(self._proved[1] or len(self._known)), self.threshold
        least = self._least if held is None or held.confidence is None else held.confidence
        changed = int(((audits.scores >= least) & audits.differs).sum())
        return changed, len(audits.scores), share_interval(changed, len(audits.scores))

    def counting(self) -> float:
        """The share of the answers of `chosen`, 0 to 1, that would count."""
        scores = self._pairs(0).scores
        held = None if self.threshold is None else self.threshold.confidence
        return 0.0 if held is None or not len(scores) else float((scores >= held).mean())

    def _advance(self, *, last: bool) -> None:
        """Decide what follows from one more answer. `last`: no more come."""
        known, start = len(self._known), self._proved[1]
        if self.chosen is None:
            if known == CHOOSING:
                self._choose()
        elif not start:
            if (known - CHOOSING) % LOOK == 0 or known == CHOOSING + MOST or last:
                self._prove()
        elif (known - start) % LOOK == 0 or known - start == self.asked.audits or last:
            self._audit(last=last)
        if last and self.threshold is None:
            self._end(None)

    def _choose(self) -> None:
        chose = [self._pairs(0, CHOOSING, name) for name in self.asks]
        best = choose(self.asked, self.tried, chose)
        if best is None:
            self._end(None)
            return
        self.chosen = self.tried[best]
        self._thresholds = thresholds_of(self.asked, chose[best])

    def _prove(self) -> None:
        assert self.chosen is not None
        proved = prove(self.asked, self.chosen, self._thresholds, self._pairs(CHOOSING))
        if proved is None:
            return
        self._proved = self._ready, len(self._known)
        self._deepest = proved.deepest
        if proved.deepest < 0:
            self._end(None)
        else:
            self._least = float(self._thresholds[proved.deepest])

    def _audit(self, *, last: bool) -> None:
        start = self._proved[1]
        sample, audits = self._pairs(CHOOSING, start), self._pairs(start)
        self._deepest = raised(self.asked, sample, audits, self._thresholds, self._deepest)
        if self._deepest < 0:
            self._end(None)
        elif last or len(audits.scores) >= self.asked.audits:
            self._end(float(self._thresholds[self._deepest]))

    def _end(self, confidence: float | None) -> None:
        name = None if confidence is None or self.chosen is None else self.chosen.name
        self.threshold = Threshold(confidence, name, self._proved[0] or self._ready, self._ready)

    def _pairs(self, start: int, stop: int | None = None, name: str = "") -> Pairs:
        """The answers from place `start` up to `stop` of the candidate of this name, by default
        of the chosen one."""
        found = [each[name or self.asks[0]] for each in self._known[start:stop]]
        scores, differs = zip(*found, strict=True) if found else ((), ())
        return Pairs(np.array(scores, np.float64), np.array(differs, bool))

"""Replays jobs that promise a share of unchanged answers, and counts broken promises and savings.

    nice python analysis/bounds.py --page analysis/reports/bounds.md

A job has 10,000, 100,000 or 1,000,000 images, whose pairs of answers repeat measured ones
(analysis/answers). A replay draws by its own seed; the package's own parts draw, choose, prove and
audit (`collage_mpi.bounds`). No network is called. The exit code is 1 if a share of broken promises
is above 5 %, a saving below its aim, or a job in which nothing pays too dear. Some three hours of
CPU time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import cached_property, lru_cache, partial
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
from peers.page import write_into
from savings import ANSWERS, first_kind, read

from collage_mpi.bounds.draw import Draw
from collage_mpi.bounds.recall import Recall
from collage_mpi.bounds.sample import (
    CHOOSING,
    LOOK,
    MOST,
    Asked,
    Candidate,
    Pairs,
    choose,
    prove,
    raised,
    thresholds_of,
    worth_trying,
)
from collage_mpi.kinds import SINGLE
from collage_mpi.rows import PRESENT

SIZES = (10_000, 100_000, 1_000_000)
NETWORK = "fashion_collage_side3_balanced"
AIMS = dict(zip(SIZES, (0.45, 0.65, 0.80), strict=True))  # of the best threshold's saving
DEAREST = dict(zip(SIZES, (0.15, 0.03, 0.03), strict=True))  # more than the exact run
BROKEN = 0.05
PART = 250  # replays of one call
SAVINGS = ("images", "best threshold", "without audits", "of the best", "aim", "with audits")


@dataclass(frozen=True)
class Job:
    """All answers of a job.

    Attributes:
        name: what is special about it.
        scores: (candidates, images) float64, by position.
        differs: (candidates, images) bool.
        image_s: of a candidate; the reference's is 1.
        agree: share that is promised.
    """

    name: str
    scores: np.ndarray
    differs: np.ndarray
    image_s: float
    agree: float = 0.99

    @property
    def images(self) -> int:
        return self.scores.shape[1]

    @cached_property
    def _sorted(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        return {}

    def sorted_by_score(self, candidate: int) -> tuple[np.ndarray, np.ndarray]:
        """(images,) float64 descending scores, and (images,) int64 how many up to each differ."""
        if candidate not in self._sorted:
            order = np.argsort(-self.scores[candidate], kind="stable")
            differs = np.cumsum(self.differs[candidate, order])
            self._sorted[candidate] = self.scores[candidate, order], differs
        return self._sorted[candidate]


class Outcome(NamedTuple):
    """Of one replay.

    Attributes:
        broken: whether more answers changed than may.
        price: of the job, divided by the exact run's.
        unaudited: the same without audits.
        drawn: positions that chose and proved; 0 if nothing was tried.
        raised: whether audits raised the threshold.
    """

    broken: bool
    price: float
    unaudited: float
    drawn: int
    raised: bool


def replay(job: Job, seed: int) -> Outcome:
    """One job from the draw to the last audit."""
    asked = Asked(job.images, job.agree, 1.0)
    candidates = [Candidate(str(each), 0.0, job.image_s) for each in range(len(job.scores))]
    tried = worth_trying(asked, candidates)
    if not tried:
        return Outcome(False, 1.0, 1.0, 0, False)
    draw = draw_of(job.images, seed)
    chose = [pairs_of(job, int(each.name), draw, 0, CHOOSING) for each in tried]
    spent = CHOOSING * len(tried) * job.image_s
    best = choose(asked, tried, chose)
    if best is None:
        price = 1 + spent / job.images
        return Outcome(False, price, price, CHOOSING, False)
    thresholds, known = thresholds_of(asked, chose[best]), int(tried[best].name)
    for most in (asked.planned, MOST):
        sample = pairs_of(job, known, draw, CHOOSING, most)
        proved = prove(asked, tried[best], thresholds, sample)
        if proved is not None:
            break
    assert proved is not None
    drawn = CHOOSING + proved.drawn
    spent += proved.drawn * job.image_s
    if proved.deepest < 0:
        price = 1 + spent / job.images
        return Outcome(False, price, price, drawn, False)
    audits = pairs_of(job, known, draw, drawn, asked.audits)
    used = sample.part(0, proved.drawn)
    deepest = proved.deepest
    if raised(asked, used, audits, thresholds, deepest) != deepest:  # at some look
        for look in [*range(LOOK, asked.audits, LOOK), asked.audits]:
            if deepest >= 0:
                deepest = raised(asked, used, audits.part(0, look), thresholds, deepest)
    threshold = thresholds[deepest] if deepest >= 0 else np.inf
    scores, differs = job.sorted_by_score(known)
    above = int(np.searchsorted(-scores, -threshold, side="right"))
    seen = [chose[best], used, audits]
    kept = sum(int((each.differs & (each.scores >= threshold)).sum()) for each in seen)
    changed = int(differs[above - 1]) - kept if above else 0
    unaudited = spent + drawn + (job.images - drawn) * (job.image_s + 1 - above / job.images)
    return Outcome(
        changed > asked.may_differ,
        (unaudited + int((audits.scores >= threshold).sum())) / job.images,
        unaudited / job.images,
        drawn,
        deepest != proved.deepest,
    )


def pairs_in(file: Path) -> Pairs:
    """The answers in a file of `evaluate --save-answers`; the score of an absent one is -1."""
    known = read(file)
    cells = known.known[first_kind(known)]
    present = cells["state"] == PRESENT
    differs = present & (cells["label"] != known.known[SINGLE]["label"])
    return Pairs(np.where(present, cells["score"].astype(float), -1.0), differs)


def pairs_of(job: Job, candidate: int, draw: Draw, start: int, count: int) -> Pairs:
    """What is known after drawing `count` more positions."""
    at = np.array(draw.first(start + count)[start:])
    return Pairs(job.scores[candidate, at], job.differs[candidate, at])


def best_saving(job: Job) -> float:
    """The saving with the lowest threshold that keeps the promise, knowing all answers."""
    scores, differs = job.sorted_by_score(0)
    last = np.append(scores[1:] != scores[:-1], True)  # of a score
    good = np.flatnonzero(last & (differs <= Asked(job.images, job.agree, 1.0).may_differ))
    return float(1 / (job.image_s + 1 - (good[-1] + 1) / job.images))


@lru_cache(300)
def draw_of(images: int, seed: int) -> Draw:
    """All jobs of a size draw by the same seeds."""
    return Draw(images, seed)


def at_random(scores: np.ndarray, differs: np.ndarray, seed: int, images: int) -> Job:
    """A job without any order."""
    at = np.random.default_rng(seed).permutation(np.arange(images) % len(scores))
    return Job("shuffled", scores[None, at], differs[None, at], 0.51 / 9)


@lru_cache(32)
def job_of(kind: str, images: int) -> Job:
    """The job with this name in `KINDS` or `NOTHING_PAYS`."""
    known = pairs_in(ANSWERS / f"{NETWORK}.npz")
    rng = np.random.default_rng(1)
    job = at_random(*known, 0, images)
    (scores,), (differs,), cost = job.scores, job.differs, job.image_s
    if kind == "sorted by score":
        order = np.argsort(scores)
        scores, differs = scores[order], differs[order]
    elif kind == "hardest last":
        order = np.argsort(differs, kind="stable")
        scores, differs = scores[order], differs[order]
    elif kind.startswith("near-duplicates"):
        each = np.repeat(np.arange(images), int(kind.split()[1]))[:images]
        scores, differs = scores[each], differs[each]
    elif kind == "drift at two thirds":
        differs = differs | ((np.arange(images) > images * 2 / 3) & (rng.random(images) < 0.02))
    elif kind == "ties":
        scores = np.floor(scores * 10) / 10
    elif kind == "no score helps":
        differs = rng.random(images) < 0.011
    elif kind == "a tenth differs":
        differs, cost = rng.random(images) < 0.1, 0.35
    elif kind.startswith("photographs"):
        job = at_random(
            *pairs_in(ANSWERS / "photographs" / "tiny_imagenet_side3_60px.npz"), 0, images
        )
        (scores,), (differs,), cost = job.scores, job.differs, 0.35
    if kind.endswith("12 candidates"):
        at = rng.integers(0, images, (12, images), np.int32)
        return Job(kind, scores[at], differs[at], cost)
    return Job(kind, scores[None], differs[None], cost)


KINDS = ["shuffled", "sorted by score", "near-duplicates 3", "near-duplicates 9"]
KINDS += ["near-duplicates 30", "hardest last", "drift at two thirds", "ties", "12 candidates"]
KINDS += ["no score helps"]
YES_OR_NO = ["class 1", "class 6", "class 6, near-duplicates 30", "class 6, ties"]
YES_OR_NO += ["class 6, drift at two thirds", "one too many below"]
NOTHING_PAYS = ["a tenth differs", "photographs", "photographs, 12 candidates"]


def run(images: int, seeds: range) -> list[list[Outcome]]:
    """Replays of each job of a size."""
    return [
        [replay(job_of(kind, images), each) for each in seeds] for kind in [*KINDS, *NOTHING_PAYS]
    ]


@lru_cache(8)
def yes_or_no(kind: str, images: int) -> tuple[np.ndarray, np.ndarray]:
    """(images,) float64 scores of the job with this name in `YES_OR_NO`, and (images,) bool."""
    known, rng = read(ANSWERS / f"{NETWORK}.npz"), np.random.default_rng(0)
    label = 1 if kind.startswith("class 1") else 6
    at = rng.permutation(np.arange(images) % len(known.labels))
    if kind.endswith("near-duplicates 30"):
        at = np.repeat(at, 30)[:images]
    cells = known.known[first_kind(known)][at]
    positive = (known.known[SINGLE]["label"] == label)[at]
    scores = np.where(cells["label"] == label, cells["score"], (1 - cells["score"]) / 9)
    if kind.endswith("ties"):
        scores = np.floor(scores * 10) / 10
    elif kind.endswith("drift at two thirds"):
        positive = positive | ((np.arange(images) > images * 2 / 3) & (rng.random(images) < 0.01))
    elif kind == "one too many below":
        job, positive = Recall(scores.astype(float), 0.95, 0), np.zeros(images, bool)
        positive[job.top] = True
        few = int(len(job.top) * 0.05 / 0.95 + 1e-9) + 1
        positive[rng.choice(job.below, few, replace=False)] = True
    return scores.astype(float), positive


def recalled(images: int, kind: str, recall: float, seeds: range) -> list[tuple[bool, float]]:
    """Yes-or-no jobs: whether too few of a class were found, and the share that was asked for."""
    scores, positive = yes_or_no(kind, images)
    found = []
    for seed in seeds:
        job = Recall(scores, recall, seed)
        top = int(positive[job.top].sum())
        sample = job.sample(top)
        seen = [int(positive[each].sum()) for each in sample]
        rest = job.rest(top, seen)
        all_found = top + sum(seen) + int(positive[rest].sum())
        asked = len(job.top) + sum(map(len, sample)) + len(rest)
        found.append((all_found < recall * positive.sum(), asked / images))
    return found


def table(titles: list[str], rows: list[list[str]]) -> str:
    """Markdown; short rows are filled up."""
    lines = [titles, ["---"] * len(titles), *rows]
    filled = ([*line, *[""] * (len(titles) - len(line))] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in filled)


def main(words: Sequence[str] | None = None) -> int:
    """All replays, then the tables."""
    parser = argparse.ArgumentParser(prog="bounds", description=__doc__.split("\n")[0])
    parser.add_argument("--replays", type=int, default=5000)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, choices=SIZES)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--page", type=Path, help="write the tables into this page")
    args = parser.parse_args(words)
    began, wrong = time.monotonic(), 0
    parts = [range(at, min(at + PART, args.replays)) for at in range(0, args.replays, PART)]
    promises, savings, prices, recalls = [], [], [], []
    with ProcessPoolExecutor(args.jobs) as pool:
        for images in args.sizes:
            done = zip_longest(*pool.map(partial(run, images), parts), fillvalue=())
            for kind, found in zip([*KINDS, *NOTHING_PAYS], done, strict=True):
                each = np.array(list(chain.from_iterable(found)), float)  # (replays, 5)
                broken, price, without, _, raised = each.mean(axis=0)
                wrong += broken > BROKEN
                row = [kind, f"{images:,}", f"{broken:.2%}"]
                if kind in KINDS:
                    promises.append([*row, f"{np.median(each[:, 3]):,.0f}", f"{raised:.2%}"])
                else:
                    wrong += price > 1 + DEAREST[images]
                    more = (f"{one - 1:+.1%}" for one in (price, each[:, 1].max()))
                    prices.append([*row, *more])
                if kind == KINDS[0]:
                    best = best_saving(job_of(kind, images))
                    wrong += 1 / without < AIMS[images] * best
                    told = [f"{one:.2f} x" for one in (best, 1 / without, 1 / price)]
                    aim = [f"{1 / without / best:.1%}", f"{AIMS[images]:.0%}"]
                    savings.append([f"{images:,}", *told[:2], *aim, told[2]])
                print(*row, f"{price:.3f}", f"{time.monotonic() - began:.0f} s", file=sys.stderr)
        for images, kind in product(sorted({*args.sizes} & {*SIZES[:2]}), YES_OR_NO):
            yes = chain.from_iterable(pool.map(partial(recalled, images, kind, 0.95), parts))
            broken, asked = np.mean(list(yes), axis=0)
            wrong += broken > BROKEN
            recalls.append([kind, f"{images:,}", f"{broken:.2%}", f"{asked:.1%}"])
    head = ["job", "images"]
    text = "\n\n".join(
        [
            f"{date.today()}: {args.replays:,} replays a row.",
            table([*head, "broken", "drawn (median)", "raised by audits"], promises),
            table([*SAVINGS], savings),
            table([*head, "broken", "more than exact, mean", "worst"], prices),
            table([*head, "broken", "images asked"], recalls),
        ]
    )
    print(text)
    print(f"{time.monotonic() - began:.0f} s; beyond their levels: {wrong}", file=sys.stderr)
    if args.page:
        write_into(args.page, "bounds", text)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())

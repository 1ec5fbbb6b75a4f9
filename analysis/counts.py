"""Replays jobs that count images by class, and says how often an interval was wrong and how many
answers of the network they took.

    nice python analysis/counts.py --page analysis/reports/counts.md

A job has 100,000 images, whose pairs of answers repeat measured ones (analysis/answers). A replay
draws by its own seed, by `collage_mpi.bounds.shares`. No network is called. Beside it stands a
sample of the network's answers alone, by the same bettors and by the normal approximation, which
holds for one look. The exit code is 1 if more than 6 % of a row's replays were wrong at any look.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import lru_cache, partial
from pathlib import Path
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from bounds import table
from peers.page import write_into
from savings import ANSWERS, first_kind, read

from collage_mpi.bounds.shares import Shares
from collage_mpi.kinds import SINGLE

SETS = {
    "Fashion-MNIST": "fashion_collage_side3_balanced",
    "CIFAR-10": "cifar10/cifar10_side3_64px",
    "Tiny ImageNet 100": "photographs/tiny_imagenet_side3_60px",
}
IMAGES = 100_000
WITHIN = (0.01, 0.005)
RARE, RARE_SHARE = 1, 0.001
WRONG = 0.06
ALONE = 20  # replays of the sample alone
TITLES = ("data set", "classes", "within", "wrong", "answers (median)", "alone", "alone, normal")


class Job(NamedTuple):
    """A job: the reference's classes and the cheap network's, (images,) int64, and its scores."""

    reference: np.ndarray
    cheap: np.ndarray
    scores: np.ndarray


@lru_cache(4)
def job_of(name: str, rare: bool) -> Job:
    """`rare`: class RARE has RARE_SHARE of the images."""
    known, rng = read(ANSWERS / f"{SETS[name]}.npz"), np.random.default_rng(0)
    single, first = known.known[SINGLE], known.known[first_kind(known)]
    at = np.arange(len(known.labels))
    if rare:
        of, others = (
            np.flatnonzero(single["label"] == RARE),
            np.flatnonzero(single["label"] != RARE),
        )
        few = round(RARE_SHARE * IMAGES)
        at = np.concatenate([np.resize(of, few), np.resize(others, IMAGES - few)])
    at = rng.permutation(np.resize(at, IMAGES))
    label, cells = single["label"][at].astype(np.int64), first[at]
    return Job(label, cells["label"].astype(np.int64), np.nan_to_num(cells["score"]).astype(float))


def replay(name: str, rare: bool, within: float, alone: bool, seed: int) -> tuple[bool, int]:
    """Whether an interval was wrong at any look, and how many answers the job took."""
    job = job_of(name, rare)
    classes = int(max(job.reference.max(), job.cheap.max())) + 1
    truth = np.bincount(job.reference, minlength=classes) / IMAGES
    cheap = np.full(IMAGES, classes) if alone else job.cheap  # a class that is not asked for
    shares = Shares(cheap, job.scores if not alone else np.zeros(IMAGES), range(classes), seed=seed)
    wrong, asked = False, np.zeros(IMAGES, bool)
    while more := shares.more(within):
        if 2 * (shares.drawn + more) > IMAGES:
            return wrong, IMAGES
        drawn = shares.draw(more)
        asked[drawn] = True
        shares.tell(job.reference[drawn])
        low, high = shares.intervals
        wrong |= bool(((truth < low) | (truth > high)).any())
    return wrong, int(asked.sum())


def normal(name: str, rare: bool, within: float) -> float:
    """Answers that a sample alone takes by the normal approximation, for all classes together."""
    shares = np.bincount(job_of(name, rare).reference) / IMAGES
    z = NormalDist().inv_cdf(1 - 0.025 / len(shares))
    return float((shares * (1 - shares)).max()) * (z / within) ** 2


def main(words: Sequence[str] | None = None) -> int:
    """All replays, then the table."""
    parser = argparse.ArgumentParser(prog="counts", description=__doc__.split("\n")[0])
    parser.add_argument("--replays", type=int, default=5000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--page", type=Path, help="write the table into this page")
    args = parser.parse_args(words)
    rows, beyond = [], 0
    with ProcessPoolExecutor(args.jobs) as pool:
        for name in SETS:
            for rare, within in ((False, WITHIN[0]), (False, WITHIN[1]), (True, WITHIN[0])):
                play = partial(replay, name, rare, within)
                each = np.array(
                    list(pool.map(partial(play, False), range(args.replays), chunksize=10))
                )
                alone = np.array(list(pool.map(partial(play, True), range(ALONE))))
                wrong, took = each[:, 0].mean(), np.median(each[:, 1])
                beyond += wrong > WRONG
                other = np.median(alone[:, 1])
                classes = "one of 0.1 %" if rare else "as measured"
                row = [name, classes, f"{within:g}", f"{wrong:.2%}", f"{took:,.0f}"]
                row += [f"{other:,.0f} ({other / took:.1f} x)"]
                row += [f"{(n := normal(name, rare, within)):,.0f} ({n / took:.1f} x)"]
                rows.append(row)
                print(*row, file=sys.stderr, flush=True)
    text = f"{date.today()}: {args.replays:,} replays a row.\n\n{table([*TITLES], rows)}"
    print(text)
    if args.page:
        write_into(args.page, "counts", text)
    return 1 if beyond else 0


if __name__ == "__main__":
    raise SystemExit(main())

"""How soon `--check` names a rank that computes wrongly, and whether it blames others, simulated;
and which flipped bits of weights the known inputs show.

    python analysis/wrong_ranks.py named --plays 200     # a rank that errs once in 1,000
    python analysis/wrong_ranks.py clean --plays 5000    # no rank errs
    python analysis/wrong_ranks.py flips --plays 1000    # of the shipped network for Fashion-MNIST

The ranks are of two kinds of processor. An image's margin is uniform from 0 to 1. Each kind of
processor, and each size of batch, moves it by up to 0.05 and thereby changes classes near a tie.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from importlib.resources import files

import numpy as np

from collage_mpi.bounds.exact import share_interval
from collage_mpi.core import events as ev
from collage_mpi.core.work import Task
from collage_mpi.job.networks import KNOWN, known_inputs
from collage_mpi.kinds import SINGLE
from collage_mpi.models import load_predictor
from collage_mpi.models.runtimes import changed_classes, why_unequal
from collage_mpi.rows import CELL, PRESENT
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.simulator import SimulatedJob, Simulation

RANKS, BATCH, WRONG, MOST_OWN = 6, 64, 1e-3, 500_000
PICTURES = 256  # of the demo, which a flip may harm
LIKES = {rank: "ab"[rank % 2] for rank in range(1, RANKS + 1)}


class Nowhere:
    """A writer of rows that keeps none."""

    session = 1

    def image_rows(self, rows: np.ndarray, vectors: object = ()) -> None: ...
    def task_rows(self, rows: np.ndarray) -> None: ...


class Play(Simulation):
    """A job of two kinds of processors, which ends when a rank is called wrong.

    Attributes:
        blamed: (rank, images that the wrong rank had answered by then).
    """

    def __init__(self, job: SimulatedJob) -> None:
        super().__init__(job, Nowhere())  # type: ignore[arg-type]
        self.blamed: tuple[int, int] | None = None
        self.own = dict.fromkeys(self.ranks, 0)
        self._actions[ev.Differed] = self._differed

    def _differed(self, action: ev.Differed) -> None:
        if action.wrong is not None and self.blamed is None:
            self.blamed = action.wrong, self.own[1]
            self.stop("a rank is wrong")

    def _cells(self, task: Task) -> np.ndarray:
        self.own[task.rank] += len(task)
        batch = task.message.inputs
        margin = uniform(task.positions, self.job.first)
        kind = ord(LIKES[task.rank]) * 1000 + batch
        moved = margin + 0.1 * (uniform(task.positions, kind) - 0.5)
        cells = np.zeros(len(task), CELL)
        cells["label"], cells["score"] = moved <= 0, (1 + np.abs(moved).clip(0, 1)) / 2
        cells["state"] = PRESENT
        return cells


def uniform(positions: np.ndarray, seed: int) -> np.ndarray:
    """(n,) float64 of 0 to 1, which follow from the positions and the seed."""
    mixed = (positions + 1).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= np.uint64(seed * 0x2545F4914F6CDD1D % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    found: np.ndarray = (mixed >> np.uint64(11)) / 2.0**53
    return found


def play(seed: int, images: int, check: float, wrong: float) -> Play:
    """One job. Rank 1 errs if `wrong` is not 0."""
    settings = RunSettings(
        shards=("simulated",),
        out="nowhere",
        scheme="none",
        singles=RANKS,
        batch=BATCH,
        check=check,
        batch_cost=1.0,
    )
    errs = {1: wrong} if wrong else {}
    made = Play(
        SimulatedJob(settings, images, rows=False, first=seed, wrong_ranks=errs, likes=LIKES)
    )
    made.run()
    return made


def flips(plays: int, seconds: float) -> None:
    """Flip a random bit of a random weight; print how many flips change a class of the test
    pictures, and how many of the known inputs show. Each flip is undone."""
    import h5py
    import torch

    data = files("collage_mpi") / "data"
    predictor = load_predictor(str(data / "fashion_single.safetensors"), SINGLE)
    with h5py.File(str(data / "fashion_demo.h5")) as shard:
        pictures = next(each for each in shard.values() if each.ndim >= 3)[:PICTURES]
    pictures = pictures.reshape(len(pictures), *pictures.shape[1:3], 1)
    known = known_inputs(KNOWN, pictures.shape[1:], pictures.dtype)
    held = [each.data for each in predictor.network.parameters()]  # in channels_last: dense
    weights = [each.as_strided((each.numel(),), (1,)).view(torch.int32) for each in held]
    ends = np.cumsum([len(each) for each in weights])
    rng, began_s = np.random.default_rng(1), time.monotonic()
    right, said = predictor.answer(pictures), predictor.answer(known)
    found: Counter[str] = Counter()
    while found["flips"] < plays and time.monotonic() - began_s < seconds:
        at, bit = int(rng.integers(ends[-1])), int(rng.integers(32))
        number = int(np.searchsorted(ends, at, side="right"))
        whole, place = weights[number], at - int(ends[number])
        before, mask = int(whole[place]), int(np.array(1 << bit, np.uint32).view(np.int32))
        whole[place] = before ^ mask
        harms = changed_classes(predictor.answer(pictures), right).any()
        again = predictor.answer(known)
        shown = bool(why_unequal(again, said))
        whole[place] = before
        found.update(
            flips=1,
            shown=shown,
            changed=bool(changed_classes(again, said).any()),
            harms=bool(harms),
            harms_shown=bool(harms) and shown,
        )
    n = found["flips"]
    for what, count, of in (
        ("flips that change a class of a known input", found["changed"], n),
        ("flips that the known inputs show (by a class or a score)", found["shown"], n),
        (f"flips that change a class of {len(pictures)} test pictures", found["harms"], n),
        ("of these, shown by the known inputs", found["harms_shown"], found["harms"]),
    ):
        low, high = (f"{100 * end:.3g} %" for end in share_interval(count, of))
        print(f"{what}: {count:,} of {of:,} ({low} to {high})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("named", "clean", "flips"))
    parser.add_argument("--plays", type=int, default=100)
    parser.add_argument("--images", type=int, default=20_000, help="of a clean play")
    parser.add_argument("--check", type=float, help="default: 0.01, and 0.2 if clean")
    parser.add_argument("--seconds", type=float, default=600, help="begin no play after that")
    given = parser.parse_args()
    if given.what == "flips":
        flips(given.plays, given.seconds)
        return
    began_s, plays, named, blamed, own, compared, cost = time.monotonic(), 0, 0, 0, [], 0, []
    while plays < given.plays and time.monotonic() - began_s < given.seconds:
        plays += 1
        if given.what == "named":
            found = play(plays, RANKS * MOST_OWN, given.check or 0.01, WRONG)
            if found.blamed is not None and found.blamed[0] == 1:
                named += found.blamed[1] <= MOST_OWN
                own.append(found.blamed[1])
        else:
            found = play(plays, given.images, given.check or 0.2, 0.0)
            cost.append(sum(found.own.values()) / given.images - 1)
        blamed += found.blamed is not None and (given.what == "clean" or found.blamed[0] != 1)
        compared += sum(each.compared for each in found.core.checks.of.values()) // 2
    ends = share_interval(named if given.what == "named" else blamed, plays)
    low, high = (f"{100 * end:.3g} %" for end in ends)
    took_s = time.monotonic() - began_s
    print(f"{plays} plays in {took_s:.0f} s, {compared:,} comparisons")
    print(f"ranks blamed wrongly: {blamed}")
    if given.what == "named":
        own.sort()
        print(f"named within {MOST_OWN:,} own images: {named} ({low} to {high})")
        print(f"own images until then: median {own[len(own) // 2]:,}, most {own[-1]:,}")
    else:
        print(f"share of plays that blame a rank: {low} to {high}")
        print(f"more answers than images: mean {100 * np.mean(cost):.2f} %")


if __name__ == "__main__":
    main()

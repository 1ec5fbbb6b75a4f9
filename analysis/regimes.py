"""Service times of every kind of tail, and the schemes that are compared on them.

Owns: synthetic machines that are slow in spells, the measured profiles beside them, the candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

Json = dict[str, Any]
MACHINES = 40
GROUPS = 3000  # in order of time, of which a placement takes some hundred
MEDIAN_S = 0.1  # of a usual request
SIGMA = 0.1  # of its logarithm
SHARE = 0.05  # of the time that a machine is slow: two of 40 where they are slow all along
SEED = 1
ALL_ALONG = math.inf  # a spell that outlasts the job
SURE_FROM = 0.832  # of fashion_collage_side3.safetensors; the map in the reports had 0.922
DEMO_MEDIAN_S, DEMO_SIGMA = 0.144, 0.22  # of `collage-mpi demo`, fitted to cloud machines

# ---- what is compared -----------------------------------------------------------

NONE, HEDGE, BATCHES = "none", "hedge", "batches"  # families of schemes: a colour each
FIXED, FASTEST, SURE = "collage, fixed", "collage, fastest", "collage, confident"
ONLY, CASCADE = "collage-only", "cascade"
REPLICATE = "replicate"  # for comparison: it has more ranks
BASELINES = ("none, pull", "none, turn")  # gains are over the better of them

# A group at a time, so that all schemes meet the same load: one that is done sooner gets no more.
COMMON: Json = {"depth": 1, "endgame": "off"}


@dataclass(frozen=True)
class Entry:
    """One candidate.

    Attributes:
        name: in tables.
        family: its colour.
        flags: settings over COMMON.
    """

    name: str
    family: str
    flags: Json

    @property
    def by_ratio(self) -> bool:
        """Whether the collage network's time over the single's matters to it."""
        return self.family in (FIXED, FASTEST, SURE, ONLY, CASCADE)


def entries(n: int, median_s: float = MEDIAN_S) -> list[Entry]:
    """The candidates at N = `n` and two ranks more, the simpler ones first; `collage-only` on three
    ranks too; and replication on 2N.

    A copy after 1.3 x `median_s`, the median service time, and as many copies as it takes, is about
    the best that hedging can do here; it asks for somebody who knows the median. A further image
    of a batch costs 0.3 of the first for the shipped single network on a CPU
    (analysis/reports/speed.md), 0.1 is what a GPU may come to.
    A cascade takes the threshold in the file of the network whose answers are replayed.
    """
    more: Json = {"scheme": "none", "singles": n + 2}
    hedge: Json = {**more, "scheme": "hedge"}
    soon: Json = {**hedge, "deadline_ms": 1.3e3 * median_s}
    paper: Json = {"scheme": "collage", "collage_ranks": 2, "confidence": 0.0, "assign": "turn"}
    fastest: Json = {"placement": "fastest"}
    spare: Json = {"collage_ranks": 1, "singles": n + 1}
    sure: Json = {"confidence": 0.9, "deadline_ms": 1.3e3 * median_s}
    only: Json = {"scheme": "collage-only", "assign": "pull"}
    pulled: Json = {"assign": "pull", **spare}
    sure_cells: Json = {"confidence": SURE_FROM, "audit": 0.0}
    cascade: Json = {"scheme": "cascade", **pulled, **sure_cells}
    batches: Json = {"scheme": "none", "assign": "pull", "singles": n + 2, "batch": 9}
    few, many = "collage-only, 3 ranks", f"collage-only, {n + 2} ranks"
    named: list[tuple[str, str, Json]] = [
        (BASELINES[0], NONE, {**more, "assign": "pull"}),
        (BASELINES[1], NONE, {**more, "assign": "turn"}),
        ("none, pull, end game", NONE, {**more, "assign": "pull", "endgame": "on"}),
        ("hedge 1.3 x median, pull", HEDGE, {**soon, "assign": "pull"}),
        ("none, batch 9, batch cost 0.3", BATCHES, {**batches, "batch_cost": 0.3}),
        ("none, batch 9, batch cost 0.1", BATCHES, {**batches, "batch_cost": 0.1}),
        (few, ONLY, {**only, "collage_ranks": 3}),
        (many, ONLY, {**only, "collage_ranks": n + 2}),
        ("fixed, M=2, first", FIXED, paper),
        ("fastest, M=2, first", FASTEST, {**paper, **fastest}),
        ("fixed, M=2, confident 1.3 x median", SURE, {**paper, **sure}),
        (
            "fastest, M=2, pull, confident 1.3 x median",
            SURE,
            {**paper, **fastest, **sure, "assign": "pull"},
        ),
        (
            "fastest, M=1, pull, confident 1.3 x median",
            SURE,
            {**paper, **spare, **fastest, **sure, "assign": "pull"},
        ),
        ("cascade", CASCADE, cascade),
        ("replicate, 2N", REPLICATE, {"scheme": "replicate", "assign": "turn"}),
    ]
    return [Entry(name, family, {**COMMON, **flags}) for name, family, flags in named]


# ---- service times --------------------------------------------------------------


def slow_factor(weight: float, share: float = SHARE, sigma: float = SIGMA) -> float:
    """How much slower a slow request is, so that P99 / median of all requests is `weight`.

    Raises:
        ValueError: a weight that the usual requests' own spread exceeds.
    """
    law = NormalDist(0, sigma)

    def quantile(q: float, shift: float) -> float:
        """Of the logarithms, by bisection."""
        low, high = -10 * sigma, shift + 10 * sigma
        for _ in range(60):
            middle = (low + high) / 2
            below = (1 - share) * law.cdf(middle) + share * law.cdf(middle - shift)
            low, high = (middle, high) if below < q else (low, middle)
        return low

    def weight_of(shift: float) -> float:
        return math.exp(quantile(0.99, shift) - quantile(0.5, shift))

    least, most = 0.0, math.log(weight) + 10 * sigma
    if weight_of(least) > weight:
        raise ValueError(f"P99 / median is {weight_of(least):.2f} without a slow request")
    for _ in range(60):
        middle = (least + most) / 2
        least, most = (middle, most) if weight_of(middle) < weight else (least, middle)
    return math.exp(least)


def spells(spell: float, machines: int, groups: int, rng: np.random.Generator) -> np.ndarray:
    """When machines are slow: a two-state Markov chain each, in equilibrium at the start.

    Args:
        spell: mean length of a slow spell in groups, at least 1 / (1 - SHARE), which is each group
            by itself; ALL_ALONG for exactly SHARE of the machines, all the time.

    Returns:
        (machines, groups) bool.
    """
    if spell == ALL_ALONG:
        return np.repeat(rng.permutation(machines) < round(SHARE * machines), groups).reshape(
            machines, groups
        )
    ends, begins = 1 / spell, SHARE / (1 - SHARE) / spell  # chances from one group to the next
    slow = np.empty((machines, groups), bool)
    slow[:, 0] = rng.random(machines) < SHARE
    for group in range(1, groups):
        drawn = rng.random(machines)
        slow[:, group] = np.where(slow[:, group - 1], drawn >= ends, drawn < begins)
    return slow


def service_times(spell: float, weight: float, size: int) -> np.ndarray:
    """Machines that are slow in spells, a column an image.

    A rank serves one image of each group of `size`, so that a column's spell is that of its group:
    what a scheme leaves out passes by, whoever serves it.

    Args:
        spell: as of `spells`: in groups, which are requests of a rank.
        weight: P99 / median.
        size: images of a group.

    Returns:
        (MACHINES, GROUPS * size) float64, seconds.
    """
    rng = np.random.default_rng(SEED)  # the same machines for every weight
    slow = np.repeat(spells(spell, MACHINES, GROUPS, rng), size, axis=1)
    usual = np.exp(rng.normal(math.log(MEDIAN_S), SIGMA, slow.shape))
    return np.where(slow, slow_factor(weight), 1.0) * usual


def demo_times() -> np.ndarray:
    """(MACHINES, GROUPS) seconds: what the demo injects, alike and each by itself."""
    rng = np.random.default_rng(SEED)
    return np.exp(rng.normal(math.log(DEMO_MEDIAN_S), DEMO_SIGMA, (MACHINES, GROUPS)))

"""Estimates how fast a run would have been if its slow ranks had been like their peers.

The run is simulated twice. Both simulations replay the measured service times of each rank in
their order, with the run's settings and rank 0's costs. In one of them the times of slow ranks are
divided by how many times slower than their peers they were. The other one is compared with the run
itself, which shows how far to trust the simulation. Losses of ranks are not replayed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.kinds import SPARE_KINDS
from collage_mpi.results import Results, summarise
from collage_mpi.results.manifest import Json
from collage_mpi.results.slow_ranks import Speed, service_times_ns
from collage_mpi.simulation.costs import Costs
from collage_mpi.simulation.runs import like, simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob
from collage_mpi.workload.service_times import DelayModel, Moment

MOST_IMAGES = 9_000  # simulated, which takes some seconds; rates of more images are alike
_NO_MODEL = {"straggler": "none", "slow_ranks": (), "dead_ranks": ()}


@dataclass(frozen=True)
class RunPace:
    """The pace of a run or a simulation; None if there are too few groups.

    Attributes:
        images_per_s: from the first measured release to the last end.
        p50_ms, p99_ms: latency of a group.
    """

    images_per_s: float | None
    p50_ms: float | None
    p99_ms: float | None


@dataclass(frozen=True)
class Without:
    """The pace of a run, of its simulation, and of the simulation without slow ranks.

    Attributes:
        images: number of simulated images.
    """

    images: int
    measured: RunPace
    simulated: RunPace
    without: RunPace


def without_slow(run: Results, speeds: Sequence[Speed]) -> Without:
    """Simulate the run as it was and with its slow ranks as fast as their peers.

    Args:
        speeds: `rank_speeds` of the run.

    Raises:
        UsageError, DataFault: the run cannot be simulated; the message says why.
    """
    factors = _factors(speeds)
    simulated = run.manifest.get("simulated")
    costs = Costs(**simulated["costs"]) if isinstance(simulated, dict) else None
    job = like(run, _NO_MODEL, min(MOST_IMAGES, run.manifest["rows"]), costs, None)
    times_s = _times_s(run, job)
    paces = [
        _pace(summarise(simulate_in_memory(replace(job, delays=_replayed(times_s, slow, job)))))
        for slow in ({}, factors)
    ]
    return Without(job.images, _pace(summarise(run)), *paces)


def _factors(speeds: Sequence[Speed]) -> dict[int, float]:
    """Rank that is slow, or on a slow GPU or host -> how many times slower than its peers."""
    slow = {rank for speed in speeds if speed.slow for rank in speed.ranks}
    return {
        speed.ranks[0]: max(1.0, speed.ratio)
        for speed in speeds
        if speed.unit == "rank" and speed.ranks[0] in slow and speed.ratio is not None
    }


def _times_s(run: Results, job: SimulatedJob) -> dict[int, np.ndarray]:
    """Rank -> (n,) float64, its service times of a single image, in seconds and in order.

    Raises:
        DataFault: a rank of the run answered nothing.
    """
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    ratios = dict.fromkeys(SPARE_KINDS, job.ratio)
    for (rank, _, _), times_ns in service_times_ns(run, ratios).items():
        found[rank].append(times_ns / 1e9)
    ranks = job.settings.place(job.settings.world_size).workers
    silent = [rank for rank in ranks if rank not in found]
    if silent:
        raise DataFault(
            f"{run.path}: rank {silent[0]} has no answer after the warm-up: what it takes is not "
            "known"
        )
    return {rank: np.concatenate(times_s) for rank, times_s in found.items()}


def _replayed(
    times_s: Mapping[int, np.ndarray], slow: Mapping[int, float], job: SimulatedJob
) -> DelayModel:
    """A delay model that replays each rank's own times, by group (or image) number."""

    def draw(moment: Moment) -> float:
        mine = times_s[moment.rank]
        return float(mine[moment.group % len(mine)]) / slow.get(moment.rank, 1.0)

    return DelayModel(draw, 1.0, {}, {}, by_image=job.settings.draws_by_image)


def _pace(summary: Json) -> RunPace:
    group = summary["latency"]["group"]
    return RunPace(summary["price"]["images_per_s"], group["p50_ms"], group["p99_ms"])

"""Simulates schemes, each with several seeds, and compares them by the figures of all seeds
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from collage_mpi.results.statistics import percentile
from collage_mpi.results.tally import TaskTally
from collage_mpi.simulation.runs import check_job, simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob


@dataclass(frozen=True)
class Candidate:
    """A scheme and the figures of its simulations.

    Attributes:
        label: name, with the settings that tell it from other schemes.
        ranks: size of its world, rank 0 included.
        p50_ms, p99_ms: latency of a group, in open loop of an image; None if there are too few.
        accuracy: over all images; None if no answers are known.
        wasted: share of the work that resolved nothing.
        lossless: every answer is the single network's.
        images_per_s: throughput over all seeds.
    """

    label: str
    ranks: int
    p50_ms: float | None
    p99_ms: float | None
    accuracy: float | None
    wasted: float
    lossless: bool
    images_per_s: float | None = None

    def points_lost(self, plain: Candidate) -> float | None:
        """Percentage points of accuracy below the plain candidate's; None if that is unknown."""
        if self.lossless:
            return 0.0
        if self.accuracy is None or plain.accuracy is None:
            return None
        return 100 * (plain.accuracy - self.accuracy)

    def sooner(self, other: Candidate) -> float:
        """The other's P99 divided by this one's; 0 if one of them is unknown."""
        return other.p99_ms / self.p99_ms if self.p99_ms and other.p99_ms else 0.0


@dataclass(frozen=True)
class _Seed:
    """The figures of one simulation; latencies are (groups,) or (images,) float64."""

    late_ms: np.ndarray
    right: int
    labelled: int
    images: int
    span_s: float
    work_s: float
    wasted_s: float


def of_seed(job: SimulatedJob, seed: int) -> SimulatedJob:
    """The simulation with service times and Poisson arrivals of this seed. Its images begin where
    those of the previous seed end.
    """
    settings = replace(job.settings, straggler_seed=seed)
    return replace(job, settings=settings, first=seed * job.images)


def simulate_schemes(
    schemes: Sequence[Sequence[SimulatedJob]], processes: int = 1
) -> list[Candidate]:
    """Simulate the jobs of each scheme, which differ in their seeds, at most `processes` at a time.

    Raises:
        UsageError, EnvironmentFault, DataFault: as `check_job`; nothing is simulated then.
    """
    jobs = [job for seeds in schemes for job in seeds]
    for job in jobs:
        check_job(job)
    if min(processes, len(jobs)) <= 1:
        found = iter([_figures(job) for job in jobs])
    else:
        with ProcessPoolExecutor(min(processes, len(jobs))) as pool:
            found = iter(list(pool.map(_figures, jobs)))
    return [_pooled(seeds[0], [next(found) for _ in seeds]) for seeds in schemes]


def _figures(job: SimulatedJob) -> _Seed:
    run = simulate_in_memory(job)
    tasks = TaskTally(run)
    tasks.add(run.tasks)
    tasks.finish()
    images = run.measured_images
    known = images[images["has_label"]]
    ends_ns = images["t0_ns"] + images["latency_ns"]
    late = images if job.settings.open_loop else run.measured_groups
    return _Seed(
        late["latency_ns"] / 1e6,
        int((known["answered"] & (known["predicted"] == known["label"])).sum()),
        len(known),
        len(images),
        float(ends_ns.max() - images["t0_ns"].min()) / 1e9,
        tasks.work_s,
        tasks.wasted_s,
    )


def _pooled(job: SimulatedJob, seeds: Sequence[_Seed]) -> Candidate:
    settings = job.settings
    late_ms = np.concatenate([seed.late_ms for seed in seeds])
    labelled, work_s = sum(seed.labelled for seed in seeds), sum(seed.work_s for seed in seeds)
    return Candidate(
        ", ".join(settings.labels().values()).replace(", end game", ""),
        settings.world_size,
        percentile(late_ms, 0.5),
        percentile(late_ms, 0.99),
        sum(seed.right for seed in seeds) / labelled if labelled else None,
        sum(seed.wasted_s for seed in seeds) / work_s if work_s else 0.0,
        not settings.uses_collage,
        sum(seed.images for seed in seeds) / sum(seed.span_s for seed in seeds),
    )

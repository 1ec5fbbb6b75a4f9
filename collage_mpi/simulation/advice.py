"""Simulates candidate schemes on service times that a user measured, to advise which one to choose.

All candidates get the same times on the same ranks. Each repeat draws a new placement, that is
which machine is which rank. Percentiles are taken over the groups of all placements together; in
open loop, over their images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from collage_mpi.kinds import BACKUP, COLLAGE
from collage_mpi.results import Results
from collage_mpi.results.statistics import percentile, support_needed
from collage_mpi.results.tally import TaskTally
from collage_mpi.scheduler.schemes import scheme_class
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.costs import Costs
from collage_mpi.simulation.replayed_answers import Answers
from collage_mpi.simulation.runs import simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob
from collage_mpi.workload.service_times import DelayModel, trace_rows

MOST_GROUPS = 200  # of a placement
GAIN = 1.05  # a smaller gain over a simpler candidate is not worth the ranks
FEW_RANKS, FEW_COPIES, COPIES = 3, 2, 4  # of collage-only (analysis/reports/does-it-work.md)
LATE = 1.3  # medians after the send, when an unlimited hedge sends its copy (the same page)
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is compared. The defaults hold where neither a flag nor a run says another value.

    Attributes:
        times_s: (machines, requests) float64, seconds of a single image.
        side: of the collage; there are N = side * side single ranks.
        spare: ranks beyond these that a candidate may use.
        cost_ratio: time of the collage network divided by that of the single network.
        batch_cost: time of each further image of a batch divided by that of the first.
        costs: of rank 0 and of messages.
        answers: file of the networks' answers, for accuracies; may contain "{side}".
        placements, groups: how many placements are simulated, and groups for each.
        confidence: score from which a cell counts in a cascade; None leaves the cascade out.
        rate: images a second that arrive (Poisson); None for a closed loop.
        by_image: whether a column of the times is for an image (True) or for a group. By default it
            is as in a trace of the same run: for an image if a rank may run several of a group.
    """

    times_s: np.ndarray
    side: int = 3
    spare: int
    cost_ratio: float = 1.0
    batch_cost: float = 1.0
    costs: Costs = field(default_factory=Costs)
    answers: str | None
    placements: int
    groups: int
    confidence: float | None = None
    rate: float | None
    by_image: bool | None = None

    def load_answers(self) -> Answers | None:
        """The answers of the networks, or None if they are not known.

        Raises as `SimulatedJob.load_answers`.
        """
        return _job(self, {"scheme": "none"}, 0).load_answers()


@dataclass(frozen=True)
class Candidate:
    """A scheme with its settings, and the results of its simulations.

    Attributes:
        flags: of `run`, setting -> value.
        ranks: size of its world, rank 0 included.
        p50_ms, p99_ms: latency of a group, in open loop of an image; None if there are too few.
        accuracy: over all images; None if no answers are known.
        wasted: share of the work that resolved nothing.
        lossless: every answer is the single network's.
        images_per_s: throughput over all placements.
    """

    flags: Json
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

    def more(self, other: Candidate) -> float:
        """This one's throughput divided by the other's."""
        return (self.images_per_s or 0.0) / (other.images_per_s or math.inf)


def groups_of(times_s: np.ndarray, placements: int) -> int:
    """Groups to simulate for a placement: as many as a machine has times, but at most MOST_GROUPS,
    and at least enough for a P99 over all placements without their warm-up."""
    enough = -(-support_needed(0.99) // placements) + RunSettings().warm_groups
    return max(enough, min(MOST_GROUPS, len(times_s[0])))


def candidates(question: Question, answers: Answers | None) -> list[Json]:
    """The settings of each candidate, the plain one first.

    Cascade is among them if `confidence` says which answers of the collage count.
    """
    n, spare = question.side**2, question.spare
    more: Json = {"singles": n + spare}
    late_ms = float(f"{LATE * 1e3 * np.median(question.times_s):.3g}")
    collages: Json = {"scheme": "collage", "collage_ranks": spare}
    sure: Json = {"accept": "confident"}
    found: list[Json] = [
        {"scheme": "none"},
        {"scheme": "none", **more},
        {"scheme": "none", **more, "assign": "finish"},
        {"scheme": "hedge", **more, "assign": "finish", "hedge_ms": late_ms},
        {"scheme": "cascade-batch", "backup_ranks": spare},
        *(
            {"scheme": "collage-only", "collage_ranks": ranks, "collage_copies": min(copies, ranks)}
            for ranks, copies in ((FEW_RANKS, FEW_COPIES), (n + spare, COPIES))
        ),
        {**collages, "accept": "first"},
        {**collages, "accept": "first", "placement": "fastest"},
    ]
    if answers is not None:
        found.append({**collages, **sure})
        if question.confidence is not None:
            sure["confidence"] = question.confidence
            found.append({**collages, **sure, "scheme": "cascade"})
        if COLLAGE not in answers.known:  # they are of a quick network
            found = [one for one in found if COLLAGE not in scheme_class(one["scheme"]).needs]
    return [*found, {"scheme": "replicate"}]


def simulated(question: Question, advance: Callable[[int], None]) -> list[Candidate]:
    """Simulate all candidates. `advance(1)` is called after each.

    Raises:
        UsageError, EnvironmentFault, DataFault: as `check_job`.
    """
    found = []
    for flags in candidates(question, question.load_answers()):
        found.append(simulated_one(question, flags))
        advance(1)
    return found


def _job(question: Question, flags: Json, seed: int) -> SimulatedJob:
    if question.rate is not None:
        flags = {**flags, "arrivals": "poisson", "rate": question.rate, "arrival_seed": seed}
    settings = RunSettings.from_mapping(
        {
            "side": question.side,
            "cost_ratio": question.cost_ratio,
            "batch_cost": question.batch_cost,
            **flags,
        }
    )
    if settings.uses(BACKUP):
        settings = replace(settings, cost_ratio=1.0)  # the single network itself
    body = trace_rows(seed, question.times_s)
    by_image = settings.draws_by_image if question.by_image is None else question.by_image
    delays = DelayModel(body, 1.0, {}, {}, by_image=by_image)
    images = question.groups * settings.group_size
    first = seed * images
    return SimulatedJob(
        settings, images, question.costs, question.answers, first=first, delays=delays
    )


def simulated_one(question: Question, flags: Json) -> Candidate:
    """Simulate one candidate on all placements.

    Raises as `simulated`.
    """
    runs = []
    for seed in range(question.placements):
        job = _job(question, flags, seed)
        runs.append(simulate_in_memory(job))
    settings = job.settings
    price = [_tasks(run) for run in runs]
    work_s = sum(tasks.work_s for tasks in price)
    images = np.concatenate([run.measured_images for run in runs])
    known = images[images["has_label"]]
    right = known["answered"] & (known["predicted"] == known["label"])
    late = images if question.rate else np.concatenate([run.measured_groups for run in runs])
    late_ms = late["latency_ns"] / 1e6
    return Candidate(
        flags,
        ", ".join(settings.labels().values()).replace(", end game", ""),
        settings.world_size,
        percentile(late_ms, 0.5),
        percentile(late_ms, 0.99),
        float(right.mean()) if len(known) else None,
        sum(tasks.wasted_s for tasks in price) / work_s if work_s else 0.0,
        not settings.uses_collage,
        len(images) / sum(map(_span_s, runs)),
    )


def _tasks(run: Results) -> TaskTally:
    found = TaskTally(run)
    found.add(run.tasks)
    found.finish()
    return found


def _span_s(run: Results) -> float:
    """Seconds from the first measured image to the last answer."""
    images = run.measured_images
    ends_ns = images["t0_ns"] + images["latency_ns"]
    return float(ends_ns.max() - images["t0_ns"].min()) / 1e9


def best_of(
    found: Sequence[Candidate],
    most_ranks: int,
    points: float,
    gain: Callable[[Candidate, Candidate], float] = Candidate.sooner,
) -> Candidate:
    """The candidate to choose: the largest gain with at most `most_ranks` ranks that loses at most
    `points` of accuracy. Of two within GAIN it takes the first one, which is simpler."""
    plain = chosen = found[0]
    for one in found[1:]:
        lost = one.points_lost(plain)
        fits = one.ranks <= most_ranks and lost is not None and lost <= points
        if fits and gain(one, chosen) > GAIN:
            chosen = one
    return chosen

"""Simulates a run, which leaves its rows, or only a summary, in its folder; and schemes, each with
several seeds, to compare them by the figures of all seeds together.
"""

from __future__ import annotations

import signal
import uuid
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.kinds import COLLAGE, SPARE_KINDS
from collage_mpi.ledger.records import run_name
from collage_mpi.results import MANIFEST, SUMMARY, Results, summarise
from collage_mpi.results.row_sink import MemoryWriter
from collage_mpi.results.statistics import percentile
from collage_mpi.results.summary import TaskTally, save_summary
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.simulator import (
    FINGERPRINT,
    Answers,
    SimulatedJob,
    Simulation,
    answers_file,
)
from collage_mpi.system.files import reading, sha256_of_file, writing
from collage_mpi.workload.straggler_settings import check_ranks, deaths_of, make_delays

Json = dict[str, Any]


def simulated_inputs(settings: RunSettings, answers: str | None) -> dict[str, Path]:
    """Setting -> file for files that change a simulation, and the file of answers."""
    named = {"straggler": settings.trace, "arrival_file": settings.arrival_file}
    files = {name: Path(path) for name, path in named.items() if path}
    if answers is not None:
        files["answers"] = answers_file(answers, settings.side)
    return files


def _sha256_of(path: Path) -> str:
    with reading(path):
        return sha256_of_file(path)


def check_job(job: SimulatedJob) -> None:
    """Check everything that can be known before the simulation starts.

    Raises:
        UsageError, EnvironmentFault, DataFault: settings that cannot be simulated, a bad
            trace, file of arrivals or of answers.
    """
    settings = job.settings
    if settings.teams > 1:
        raise UsageError(
            f"teams is {settings.teams}; a simulation needs 1: simulate a team with its share of "
            "the images. docs/cluster.md has what many cost"
        )
    settings.check_slow_ranks(settings.world_size)
    check_ranks("dead", deaths_of(job.dead_ranks), settings.world_size)
    needed = [policy for policy in job.effective.accept.values() if policy.needs_scores]
    if settings.takes_policy and needed and job.answers is None:
        raise UsageError(
            f"{needed[0].name}: answers count by their scores, and a simulation has "
            "none without --answers FILE: collage-mpi evaluate --save-answers FILE writes them"
        )
    make_delays(settings)
    settings.arrival_times_ns(job.images)
    answers = job.load_answers()
    if answers is not None:
        _check_answers(job, answers)


def _check_answers(job: SimulatedJob, answers: Answers) -> None:
    """Raise DataFault if the file lacks answers that the scheme needs."""
    settings = job.settings
    for kind in SPARE_KINDS:
        if settings.uses(kind) and kind not in answers.known:
            flag = kind if kind == COLLAGE else "first"
            raise DataFault(
                f"answers {job.answers} hold no {kind} answers: collage-mpi evaluate --single W "
                f"--{flag} W --save-answers FILE writes them"
            )


def simulate(job: SimulatedJob) -> Json:
    """Simulate a run and write its rows to the job's `out`, as a real run would.

    Returns:
        The summary.

    Raises:
        UsageError, EnvironmentFault, DataFault: as `check_job`; an output folder that
            cannot be written or holds a run.
        KeyboardInterrupt: on Ctrl-C, after the rows so far were closed as an incomplete run.
    """
    from collage_mpi.results.sole import SoleWriter
    from collage_mpi.system.process_tree import caught

    out = Path(job.settings.out)
    _refuse_a_run(out)
    check_job(job)
    loaded = job.load_answers()
    writer = SoleWriter(out, _manifest(job, loaded))
    status, final = "incomplete", {}

    def stop(_: int) -> None:
        """The first Ctrl-C ends the simulation between two events, so that its tables agree. The
        second one interrupts at once.
        """
        if simulation.stopped is not None:
            raise KeyboardInterrupt
        simulation.stop("interrupted")

    try:
        simulation = Simulation(job, writer, loaded)
        with caught((signal.SIGINT,), stop):
            status = simulation.run().status
        final = _final(simulation)
    finally:
        writer.close(status, summary=True, **final)
    if simulation.stopped is not None:
        raise KeyboardInterrupt(simulation.stopped)
    assert writer.summary is not None
    return writer.summary


def _refuse_a_run(out: Path) -> None:
    if any((out / name).exists() for name in (MANIFEST, SUMMARY, run_name(1))):
        raise EnvironmentFault(
            f"{out} holds a run already: choose another --out, or remove it (a simulation begins "
            "anew)"
        )


def simulate_in_memory(job: SimulatedJob) -> Results:
    """Simulate a run and return its rows. Nothing is written to disk.

    Raises:
        UsageError, EnvironmentFault, DataFault: as `check_job`.
    """
    check_job(job)
    answers, writer = job.load_answers(), MemoryWriter()
    simulation = Simulation(job, writer, answers)
    status = simulation.run().status
    manifest = {**_manifest(job, answers), "status": status, **_final(simulation)}
    return writer.results(Path(job.settings.out or "."), manifest)


def run_job(job: SimulatedJob) -> Json:
    """Simulate, and write the rows or the summary to the job's `out`, if it has one.

    Returns:
        The summary.

    Raises:
        UsageError, EnvironmentFault, DataFault: as `check_job`; `out` cannot be written.
    """
    out = Path(job.settings.out) if job.settings.out else None
    if job.rows and out is not None:
        return simulate(job)
    if out is not None:
        _refuse_a_run(out)
    results = simulate_in_memory(job)
    kept = {key: results.manifest[key] for key in ("settings", "inputs", "simulated")}
    summary = {**summarise(results), **kept}
    if out is not None:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        save_summary(summary, out)
    return summary


def _final(simulation: Simulation) -> Json:
    world = [{"rank": rank, "kinds": sorted(s.kinds)} for rank, s in simulation.ranks.items()]
    return {
        "world": [{"rank": 0, "kinds": []}, *world],
        "cost_ratio": simulation.job.ratio,
        "batch_costs": simulation.job.batch_costs,
        "placement": simulation.placement.describe(),
    }


def _manifest(job: SimulatedJob, answers: Answers | None) -> Json:
    settings = job.settings
    return {
        "run_id": uuid.uuid4().hex,
        "settings": settings.to_dict(),
        "inputs": {
            name: _sha256_of(path) for name, path in simulated_inputs(settings, job.answers).items()
        },
        "shards": [{"path": None, "fingerprint": FINGERPRINT, "count": job.images}],
        "rows": job.images,
        "order": "file",
        **job.effective.labels(),
        **settings.audit_facts(),
        "mode": f"{job.effective.mode}, simulated",
        "open_loop": settings.open_loop,
        "batch": job.effective.batch_size,
        "side": settings.side,
        "straggler": job.describe_delays,
        "warmup_groups": job.effective.warm_groups,
        "class_names": list(answers.class_names) if answers else None,
        "simulated": {
            "costs": asdict(job.costs),
            "cost_ratio": job.ratio,
            "answers": job.answers,
            "dead_ranks": job.dead_ranks,
        },
    }


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


def _figures(job: SimulatedJob) -> tuple[np.ndarray, np.ndarray]:
    """The figures of one simulation: latencies, (groups,) or (images,) float64 ms; and what adds up
    over seeds, (6,) float64: right answers, labelled images, images, and the seconds of the whole
    run, of work and of wasted work.
    """
    run = simulate_in_memory(job)
    tasks = TaskTally(run)
    tasks.add(run.tasks)
    tasks.finish()
    images = run.measured_images
    known = images[images["has_label"]]
    right = known["answered"] & (known["predicted"] == known["label"])
    ends_ns = images["t0_ns"] + images["latency_ns"]
    late = images if job.settings.open_loop else run.measured_groups
    span_s = (ends_ns.max() - images["t0_ns"].min()) / 1e9
    sums = [right.sum(), len(known), len(images), span_s, tasks.work_s, tasks.wasted_s]
    return late["latency_ns"] / 1e6, np.array(sums, np.float64)


def _pooled(job: SimulatedJob, seeds: Sequence[tuple[np.ndarray, np.ndarray]]) -> Candidate:
    settings = job.settings
    late_ms = np.concatenate([late for late, _ in seeds])
    of_all = np.sum([sums for _, sums in seeds], axis=0)
    right, labelled, images, span_s, work_s, wasted_s = of_all.tolist()
    return Candidate(
        ", ".join(settings.labels().values()).replace(", end game", ""),
        settings.world_size,
        percentile(late_ms, 0.5),
        percentile(late_ms, 0.99),
        right / labelled if labelled else None,
        wasted_s / work_s if work_s else 0.0,
        not settings.uses_collage,
        images / span_s,
    )

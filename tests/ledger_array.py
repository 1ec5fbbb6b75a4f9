"""Many jobs on one run for hours of virtual time: an array of tasks, a crowd, a server that stalls.

The folder is `tests.ledger_quick`'s: names are missing for half a minute, each operation takes its
time, and all operations hang while the server stalls.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.cells import Cell
from collage_mpi.ledger.owner import cell_size
from collage_mpi.ledger.records import Part, Run
from tests.ledger_quick import Quick, QuickStore
from tests.ledger_world import Job, Time, Wrong

OPERATION_S = 0.005
UNSEEN_S = 30.0  # for so long hosts believe that a name is missing
TASK_S = 1800.0
HOUR_S = 3600.0
FILES_OF_PACKED = 3  # two records and the rows
LEAVE_S = 30.0  # a task is told so long before its end


@dataclass
class Figures:
    """What a play has measured."""

    jobs: int = 0
    records: int = 0
    failed: int = 0
    seconds: float = 0.0  # of jobs, from the first message to the release
    service: float = 0.0  # of the positions, each once
    again: int = 0  # positions that were written and do not count
    takeovers: list[float] = field(default_factory=list)  # after the death
    false: int = 0
    waits: list[float] = field(default_factory=list)  # of jobs at the end, without work
    inodes: int = 0
    operations: float = 0.0  # a second of a job
    end_s: float = 0.0

    def __str__(self) -> str:
        takeovers, waits = sorted(self.takeovers) or [0.0], sorted(self.waits) or [0.0]
        return (
            f"{self.jobs} jobs, {self.end_s:.0f} s: {self.records} records, "
            f"{self.failed / max(1, self.records):.1%} of the links failed; "
            f"seconds / service {self.seconds / max(1e-9, self.service):.3f}; "
            f"{self.again} positions again; {len(self.takeovers)} takeovers, "
            f"after {takeovers[len(takeovers) // 2]:.0f} s, at most {takeovers[-1]:.0f} s; "
            f"{self.false} false; waits at most {waits[-1]:.0f} s; {self.inodes} inodes; "
            f"{self.operations:.2f} operations/s"
        )


class Fleet:
    """Jobs on a quick folder."""

    def __init__(self, seed: int, total: int, cell: int, unit: int = 9) -> None:
        self.seed, self.total, self.unit = seed, total, unit
        self.rng = random.Random(f"fleet {seed}")
        self.time = Time(self.rng)
        self.truth = Quick(Run(1, 0, total, cell), keep_s=UNSEEN_S, now=lambda: self.time.now_s)
        self.truth.on_record = self._record
        self.jobs: list[Job] = []
        self.by_name: dict[str, Job] = {}
        self.stalls: list[tuple[float, float]] = []
        self.killers: set[int] = set()
        self.errors: set[int] = set()
        self.figures = Figures()
        self.kill_at_record: set[str] = set()  # jobs that die at their next record
        self.written, self.refuted = 0, 0.0

    def cell_of(self, number: int) -> int:
        return self.truth.run.cell

    def add(
        self, rate: float, clock: tuple[float, float] = (0.0, 1.0), start_s: float = 0.0
    ) -> Job:
        job = Job(self, QuickStore(self.truth, self._pause), rate, clock, start_s)
        self.jobs.append(job)
        self.by_name[job.name] = job
        return job

    def _pause(self, operation: str) -> None:
        now_s = self.time.now_s
        ends = [end_s for begin_s, end_s in self.stalls if begin_s <= now_s < end_s]
        self.time.wait(OPERATION_S * self.rng.uniform(0.5, 2) + (max(ends) - now_s if ends else 0))

    def numbered(self, number: int) -> None:
        pass

    def wrote(self, part: Part) -> None:
        self.written += sp.count(part.spans)

    def die(self, job: Job) -> None:
        if not job.ended:
            job.ended, job.ended_s = "dead", self.time.now_s
            self.time.dead.add(job.thread)

    def kill(self, job: Job, at_record: bool) -> None:
        """Kill a job now, or right after its next record."""
        if at_record:
            self.kill_at_record.add(job.name)
        else:
            self.die(job)

    def _record(self, before: Cell, after: Cell) -> None:
        assert after.record is not None
        by = self.by_name[after.record.by]
        old = len(before.record.parts) if before.record else 0
        for part in after.record.parts[old:]:
            self.figures.service += sp.count(part.spans) / by.rate
        for hold in before.holds:
            job = self.by_name[hold.owner]
            if job is by or after.held(job.name):
                continue
            if job.ended == "dead":
                self.figures.takeovers.append(self.time.now_s - job.ended_s)
            elif after.times(hold.spans)[0][0] > before.times(hold.spans)[0][0]:
                self.figures.false += 1
        if by.name in self.kill_at_record:
            self.kill_at_record.discard(by.name)
            self.die(by)

    def play(self, until_s: float = float("inf")) -> Figures:
        """Play until all jobs have ended, or only so long. Raises Wrong."""
        for minute in range(24 * 60):
            self.time.call(60.0 * minute, self._count_inodes)
        while any(not job.ended for job in self.jobs):
            if self.time.now_s >= until_s:
                return self.measured()
            if self.time.step() is None or self.time.now_s > 24 * HOUR_S:
                raise Wrong("no end")
        for each in self.jobs:
            if each.ended not in ("complete", "left", "dead"):
                raise Wrong(each.ended)
            if each.ended == "complete" and not self.truth.complete:
                raise Wrong("found complete, is not")
        return self.measured()

    def _count_inodes(self) -> None:
        """Files that are there."""
        self.figures.inodes = max(self.figures.inodes, len(self.truth.files))

    def measured(self) -> Figures:
        found, done = self.figures, Counter[str]()
        for job in self.jobs:
            if job.owner is not None:
                done += job.owner.counts
            ended_s = job.ended_s if job.ended else self.time.now_s
            found.seconds += max(0.0, ended_s - job.began_s)
            if job.ended == "complete":
                found.waits.append(job.ended_s - job.busy_s)
        found.jobs, found.records, found.failed = len(self.jobs), done["records"], done["failed"]
        found.again = self.written - self.truth.counted
        found.end_s = self.time.now_s
        count = sum(n for kind, n in self.truth.operations.items())
        found.operations = count / max(1e-9, found.seconds)
        return found


def crowd(jobs: int, total_s: float, until_s: float = float("inf"), seed: int = 0) -> Figures:
    """So many jobs that start at once, each with `total_s` of work."""
    rate = 2.0
    total = int(jobs * total_s * rate)
    fleet = Fleet(seed, total, cell_size(total, 1, rate), unit=1)
    for _ in range(jobs):
        fleet.add(rate * fleet.rng.uniform(0.9, 1.1))
    return fleet.play(until_s)


def day(seed: int, jobs: int = 8, teams: int = 64, hours: float = 0.75) -> Figures:
    """Some of the teams of a day, for some hours. `inodes`: of all teams at the end of the day,
    with as many open files as they have on average. Parts of tasks come on top."""
    rate, opened = 2.0, list[int]()
    whole = int(teams * 24 * HOUR_S * rate)
    fleet = Fleet(seed, int(jobs * hours * HOUR_S * rate * 1.5), cell_size(whole, 1, rate), unit=1)

    def count() -> None:
        packed = sum(cell.packed for cell in fleet.truth.cells.values())
        opened.append(len(fleet.truth.files) - FILES_OF_PACKED * packed)

    for _ in range(jobs):
        fleet.add(rate * fleet.rng.uniform(0.9, 1.1))
    for minute in range(int(60 * hours)):
        fleet.time.call(60.0 * minute, count)
    found = fleet.play(hours * HOUR_S)
    cells = -(-whole // fleet.truth.run.cell)
    found.inodes = teams * sum(opened) // len(opened) // jobs + FILES_OF_PACKED * cells
    return found


def array(seed: int, tasks: int = 64, share: float = 0.6) -> Figures:
    """Tasks of half an hour that start at random within an hour; 30 % are killed."""
    rng = random.Random(f"array {seed}")
    rates = [20.0 * rng.lognormvariate(0, 0.3) for _ in range(tasks)]
    total = int(share * sum(rates) * TASK_S)
    fleet = Fleet(seed, total, cell_size(total, 9, rates[0]))
    clocks = [(0.0, 1.0)] * 3 + [(86_400.0, 1.0), (-1e6, 1.05)]
    for number, rate in enumerate(rates):
        start_s = rng.uniform(0, HOUR_S)
        job = fleet.add(rate, clocks[number % 5], start_s)
        job.stop_s = start_s + TASK_S - LEAVE_S
        if rng.random() < 0.3:
            kill_s = start_s + rng.uniform(0, TASK_S)
            at_record = rng.random() < 0.3
            fleet.time.call(kill_s, partial(fleet.kill, job, at_record))
    return fleet.play()


def stalls(seed: int, hosts: int = 64, hours: float = 2.0) -> Figures:
    """Jobs on as many hosts, and a server that does not answer for three minutes each hour."""
    rng = random.Random(f"stalls {seed}")
    fleet = Fleet(seed, int(hosts * hours * HOUR_S * 0.2), 120, unit=1)
    for hour in range(int(hours) + 1):
        begin_s = HOUR_S * hour + rng.uniform(0, HOUR_S - 180)
        fleet.stalls.append((begin_s, begin_s + 180))
    for number in range(hosts):
        fleet.add(0.2, (rng.uniform(-1e6, 1e6), rng.choice((1.0, 0.95, 1.05))), number * 0.1)
    return fleet.play()

"""Plans of faults on virtual time: what rank 0 does under them, row by row, until the run is whole.

Plans are drawn by number and `--chaos-seed`, `--schedules N` tries more; of one that fails the
shortest that fails too is told. A plan is played by the coordinator itself over ranks in virtual
time, and what it leaves by a second session without faults. Then events, rows, `verify` and the
summary must agree.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import CLASSES, MS, ListWriter, record, truthful
from test_coordinator import Job

from collage_mpi.mpi.answers import FAILED, WireResult
from collage_mpi.mpi.tasks import WireTask
from collage_mpi.results import verify_run
from collage_mpi.results.reader import Results, results_of
from collage_mpi.results.rows import OUTCOMES, TABLES
from collage_mpi.results.summary import summarise
from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.events import Score
from collage_mpi.system.backoff import COORDINATOR_BACKOFF, Backoff

SIDE = 2


@dataclass(frozen=True)
class Plan:
    """A job and what goes wrong in it."""

    images: int
    scheme: str
    placement: str  # of scheme cascade
    singles: int
    collages: int
    policy: str
    depth: int
    batch: int
    credit: int
    drain: bool
    pause_us: int  # between two looks of a rank 0 that finds nothing, at most
    kills: dict[int, int]  # rank: after so many ms
    hangs: dict[int, int]  # rank: answers so many tasks, then none
    slow: dict[int, int]  # rank: times the service time of a ms
    bad: dict[int, str]  # the n-th task that is served: how it ends
    unread: frozenset[int]  # rows that cannot be used
    stop_ms: int | None
    audit: float  # of scheme cascade


def drawn(rng: random.Random) -> Plan:
    """Any plan; a rank that it names need not be there."""

    def of_ranks(most: int, lowest: int, highest: int) -> dict[int, int]:
        ranks = rng.sample(range(1, 7), rng.randint(0, most))
        return {rank: rng.randint(lowest, highest) for rank in ranks}

    served = rng.sample(range(31), rng.choice((0, 0, 1, 2, 5, 12)))
    return Plan(
        images=rng.randint(0, 24),
        scheme=rng.choice(("none", "collage", "replicate", "cascade", "cascade")),
        placement=rng.choice(("fixed", "fastest")),
        singles=rng.randint(1, 5),
        collages=rng.randint(1, 2),
        policy=rng.choice(("first", "grace", "confident")),
        depth=rng.randint(1, 2),
        batch=rng.randint(1, 3),
        credit=rng.randint(1, 2),
        drain=rng.random() < 0.5,
        pause_us=rng.choice((200, 1000, 5000)),
        kills=of_ranks(4, 0, 12),
        hangs=of_ranks(2, 0, 3),
        slow=of_ranks(2, 2, 9),
        bad={number: rng.choice(("fail", "absent", "unsure")) for number in served},
        unread=frozenset(rng.sample(range(24), rng.choice((0, 0, 1, 3)))),
        stop_ms=rng.choice((None, rng.randint(0, 10))),
        audit=rng.choice((0.0, 0.3, 1.0)),
    )


SIMPLEST = Plan(
    0, "none", "fixed", 1, 1, "first", 1, 1, 1, False, 200, {}, {}, {}, {}, frozenset(), None, 0.0
)  # fmt: skip


def simpler(plan: Plan) -> Iterator[Plan]:
    """Plans with one thing less, the largest steps first."""
    for name, least in vars(SIMPLEST).items():
        value = getattr(plan, name)
        if value == least:
            continue
        others: list[Any] = [least]
        if type(value) is int and type(least) is int:
            others += [(value + least) // 2, value - 1]
        elif isinstance(value, dict):
            others += [{k: v for k, v in value.items() if k != each} for each in value]
        elif isinstance(value, frozenset):
            others += [value - {each} for each in value]
        for other in others:
            if other != value:
                yield dataclasses.replace(plan, **{name: other})


def shortest(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """A plan that fails as well, and of which no simpler one does."""
    while (other := next(filter(fails, simpler(plan)), None)) is not None:
        plan = other
    return plan


class Ends:
    """How tasks end, and what was said of each."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.served = plan, 0
        self.of_rank: Counter[int] = Counter()
        self.said: dict[int, str] = {}

    def __call__(self, rank: int, task: WireTask, pixels: list[int]) -> WireResult | None:
        number, self.served = self.served, self.served + 1
        self.of_rank[rank] += 1
        if self.of_rank[rank] > self.plan.hangs.get(rank, 1 << 30):
            return None
        how = self.plan.bad.get(number)
        self.said[task.task] = "failed" if how == "fail" else "answered"
        if how == "fail":
            return WireResult(task.task, FAILED, reason="boom")
        result = truthful(rank, task, pixels)
        if how == "absent":
            return dataclasses.replace(result, cells=(None,) * len(result.cells))
        if how == "unsure":
            cells = tuple(Score(cell.label, 0.5) for cell in result.cells if cell is not None)
            return dataclasses.replace(result, cells=cells)
        return dataclasses.replace(result, compute_ns=MS // 2)


def session(plan: Plan, number: int, rows: list[int]) -> tuple[ev.Finish, Job, Ends]:
    """One session over these rows of the shard; all that is not faults is as in the plan."""
    ends = Ends(plan)
    records = [
        dataclasses.replace(record(row, "crc" if row in plan.unread else None), index=index)
        for index, row in enumerate(rows)
    ]
    job = Job(
        records,
        side=SIDE,
        scheme=plan.scheme,
        placement=plan.placement if plan.scheme == "cascade" else "fixed",
        singles=plan.singles,
        collages=plan.collages,
        policy=plan.policy,
        grace_ns=2 * MS,
        depth=plan.depth,
        batch=plan.batch,
        credit=plan.credit,
        drain=plan.drain,
        audit=plan.audit if plan.scheme == "cascade" else 0.0,
        deaths=plan.kills,
        cluster={"service_ns": lambda rank, _: MS * plan.slow.get(rank, 1), "behave": ends},
        stop_at_ns=None if plan.stop_ms is None else 10**9 + plan.stop_ms * MS,
    )
    job.writer.session = number
    job.detector.timeouts.reply_timeout_ns = 50 * MS
    pauses = dataclasses.replace(COORDINATOR_BACKOFF, longest_ns=plan.pause_us * 1000)
    job.coordinator.backoff = Backoff(pauses, job.clock.sleep)
    return job.coordinator.run(job.ready), job, ends


def table(rows: list[Any], number: int) -> np.ndarray:
    """Rows as `read_results` gives them."""
    named = [(*row[:-1], row[-1].encode()) if isinstance(row[-1], str) else row for row in rows]
    return np.array([tuple(row) for row in named], TABLES[number].dtype)


def agree(job: Job, ends: Ends) -> None:
    """Events against rows: each send has one task row, which says how it ended."""
    tasks = {task.task: task for task in job.writer.tasks}
    assert len(tasks) == len(job.writer.tasks)
    assert sorted(tasks) == sorted(task.task for _, task in job.cluster.tasks)
    for task, row in tasks.items():
        outcome = OUTCOMES[row.outcome]
        if outcome in ("answered", "failed"):
            assert ends.said[task] == outcome
        elif outcome == "skipped":
            assert task in job.cluster.cancelled
        elif outcome == "lost":
            assert row.rank in job.cluster.dropped
    for row in job.writer.images:
        assert row.answered or row.reason, "an error row says why"
        assert not row.answered or row.predicted == row.row % CLASSES, "another image's answer"


def whole(folder: Path, plan: Plan, sessions: list[ListWriter]) -> Results:
    """The run that the sessions have written."""
    written = [[each.images, each.groups, each.tasks] for each in sessions]
    entries = [
        {
            "session": number,
            "status": "incomplete",
            "rows": {t.name: len(w) for t, w in zip(TABLES, rows, strict=True)},
        }
        for number, rows in enumerate(written, start=1)
    ]
    errors = any(not row.answered for each in sessions for row in each.images)
    kinds = ["single"] * plan.singles + ["collage"] * plan.collages
    manifest: dict[str, Any] = {
        "run_id": "schedule",
        "session": len(sessions),
        "shards": [{"path": "a.h5", "fingerprint": "aa", "count": plan.images}],
        "rows": plan.images,
        "class_names": [str(number) for number in range(CLASSES)],
        "world": [{"rank": r, "kinds": [kind]} for r, kind in enumerate(kinds, start=1)],
        "sessions": entries,
        "status": "complete_with_errors" if errors else "complete",
        "audit": {"share": plan.audit if plan.scheme == "cascade" else 0.0, "seed": 0},
    }
    rows = {
        each.name: np.concatenate([table(w[number], number) for w in written])
        for number, each in enumerate(TABLES)
    }
    return results_of(folder, manifest, rows, complete=True)


def adds_up(results: Results) -> None:
    """The summary counts what the rows are."""
    summary, images = summarise(results), results.images
    assert summary["rows"]["found"] == summary["rows"]["expected"]
    assert summary["rows"]["answered"] + summary["rows"]["errors"] == len(images)
    right = summary["accuracy"]["overall"]["correct"]
    assert right == int((images["answered"] & images["has_label"]).sum())
    price, tasks = summary["price"], results.measured_tasks
    ends = [price[f"{name}_tasks"] for name in OUTCOMES[1:]]
    answered = int((tasks["outcome"] == 0).sum())
    assert price["tasks"] == answered + sum(ends) == len(tasks)
    assert price["late_answers"] == int(((tasks["outcome"] == 0) & (tasks["resolved"] == 0)).sum())
    assert 0 <= price["wasted_s"] <= price["work_s"]
    assert sum(summary["errors"].values()) >= int(not images["answered"].all())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("schedules")
    (out / "parts").mkdir()
    return out


def play(plan: Plan, folder: Path) -> None:
    """A session under the plan, a second one of what it left; all that was written agrees."""
    finish, job, ends = session(plan, 1, list(range(plan.images)))
    agree(job, ends)
    sessions = [job.writer]
    done = {row.row for row in job.writer.images}
    if finish.status == ev.INCOMPLETE:
        calm = dataclasses.replace(plan, kills={}, hangs={}, bad={}, stop_ms=None)
        left = [row for row in range(plan.images) if row not in done]
        finish, job, ends = session(calm, 2, left)
        agree(job, ends)
        sessions.append(job.writer)
    assert finish.status != ev.INCOMPLETE, finish.reason
    results = whole(folder, plan, sessions)
    report = verify_run(folder, results)
    assert report.ok, report.problems
    assert job.feed.images == {}, "pixels are kept"
    adds_up(results)


@pytest.mark.timeout(7200)
def test_whatever_fails_when_every_image_has_one_row_in_the_end(folder, request):
    def fails(plan: Plan) -> bool:
        try:
            play(plan, folder)
        except Exception:
            return True
        return False

    seed = request.config.getoption("chaos_seed")
    for number in range(request.config.getoption("schedules")):
        plan = drawn(random.Random(f"{seed}:{number}"))
        if fails(plan):
            play(shortest(plan, fails), folder)  # raises, and the plan stands in the traceback
            pytest.fail(f"plan {number} of seed {seed} fails now and then: {plan}")


def test_a_plan_that_fails_is_shrunk_to_the_shortest():
    plan = drawn(random.Random("1:1"))
    plan = dataclasses.replace(plan, images=17, kills={1: 9, 4: 3, 5: 0})
    found = shortest(plan, lambda p: p.images >= 5 and 4 in p.kills)
    assert found == dataclasses.replace(SIMPLEST, images=5, kills={4: 3})

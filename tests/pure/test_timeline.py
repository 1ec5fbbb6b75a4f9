"""Timelines: bars from rows."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise

import numpy as np
import pytest
from results_harness import as_two_teams, make_run

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.results import Results, read_results
from collage_mpi.results.timeline import (
    STATES,
    Timeline,
    make_timeline,
)
from collage_mpi.rows import OUTCOME_CODE, ran_together
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.costs import Costs
from collage_mpi.simulation.runs import simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return read_results(make_run(tmp_path_factory.mktemp("timeline") / "run", 180))


def test_bars_are_the_tasks_of_the_groups_and_what_overlaps_them(run: Results) -> None:
    timeline = make_timeline(run, 3, 5)
    assert [release.group for release in timeline.releases] == [3, 4, 5]
    found = {(bar.rank, bar.task) for bar in timeline.bars}
    tasks = run.tasks
    assert found >= {(int(t["rank"]), int(t["task"])) for t in tasks if 3 <= t["group"] <= 5}
    assert {bar.rank for bar in timeline.bars} <= set(timeline.ranks)
    assert all(bar.sent_ns <= bar.start_ns <= bar.end_ns for bar in timeline.bars)
    assert all(bar.state in STATES for bar in timeline.bars)
    late = {bar.task for bar in timeline.bars if bar.state == "late"}
    by_task = {int(t["task"]): int(t["resolved"]) for t in tasks}
    assert late
    assert all(by_task[task] == 0 for task in late)
    slow = [bar.rank for bar in timeline.bars if bar.straggler]
    assert set(slow) == {4}  # the harness's slow rank


def test_ranks_of_other_teams_are_shown_at_the_same_times(run: Results) -> None:
    alone, teams = make_timeline(run, 4, 4), make_timeline(as_two_teams(run), 4, 4)
    assert {bar.team for bar in teams.bars} == {0, 1}
    assert tuple(dataclasses.replace(bar, team=0) for bar in teams.bars) == alone.bars
    assert all(bar.group % 2 == bar.team for bar in teams.bars)
    other = make_timeline(as_two_teams(run), 5, 5, session=2)
    assert {bar.team for bar in other.bars} == {-1, 0}
    ends = {bar.task: bar.end_ns for bar in make_timeline(run, 5, 5).bars}
    assert {bar.task: bar.end_ns + 1_000_000 for bar in other.bars} == ends


def simulated(receive_ns: int = 60_000, **changes: object) -> Results:
    """A consistent run: a rank does one thing at a time, rank 0 takes answers one by one."""
    settings = RunSettings.from_mapping(
        {"straggler": "lognormal:20", "warmup_groups": 0, **changes}
    )
    return simulate_in_memory(SimulatedJob(settings, 540, Costs(receive_ns=receive_ns)))


@pytest.mark.parametrize("batch", [1, 4])
def test_a_bar_is_as_long_as_the_rank_worked_however_late_rank_0_looked(batch: int) -> None:
    run = simulated(receive_ns=4_000_000, depth=4, batch=batch)  # notices come in bunches
    timeline = make_timeline(run, 0, 59)
    tasks = {int(task["task"]): task for task in run.tasks}
    cut = 0
    for rank in timeline.ranks:
        mine = np.sort(run.tasks[run.tasks["rank"] == rank], order="done_ns")
        cut += int((np.diff(mine["done_ns"]) < mine["compute_ns"][1:]).sum())
    assert cut > 20  # bars that ended at the notice before would have been cut
    spans: dict[int, set[tuple[int, int]]] = {}
    for bar in timeline.bars:
        task = tasks[bar.task]
        assert bar.end_ns - bar.start_ns == task["compute_ns"]
        assert task["sent_ns"] <= bar.start_ns <= bar.end_ns <= task["done_ns"]
        if bar.state != "skipped":
            spans.setdefault(bar.rank, set()).add((bar.start_ns, bar.end_ns))
    for found in map(sorted, spans.values()):  # a batch is one span; spans never overlap
        assert all(b[0] >= a[1] for a, b in pairwise(found))
    shared = [bar for bar in timeline.bars if bar.lanes > 1]
    assert bool(shared) == (batch > 1)
    places = [(bar.rank, bar.start_ns, bar.lane) for bar in shared]
    assert len(set(places)) == len(places)
    assert all(bar.lane < bar.lanes for bar in shared)


def test_what_ran_beside_a_skipped_task_of_its_message_can_be_written_as_json() -> None:
    """The report writes bars so: numpy's numbers it cannot."""
    run = simulated(batch=4)
    in_order = run.tasks[np.lexsort((run.tasks["task"], run.tasks["sent_ns"]))]
    in_order["rank"][1:4], in_order["sent_ns"][1:4] = in_order["rank"][0], in_order["sent_ns"][0]
    for column in ("done_ns", "compute_ns", "outcome"):
        in_order[column][1:4] = in_order[column][0]
    first = in_order[0]
    first["compute_ns"] = 0
    first["outcome"] = OUTCOME_CODE["skipped"]
    run = dataclasses.replace(run, tasks=in_order)
    assert ran_together(in_order)[:4].tolist() == [1, 3, 3, 3]
    bars = make_timeline(run, 0, 59).bars
    json.dumps([dataclasses.astuple(bar) for bar in bars])


def test_refusals(run: Results) -> None:
    with pytest.raises(UsageError, match="no groups 90 to 99; session 1 has 0 to 19"):
        make_timeline(run, 90, 99)
    with pytest.raises(UsageError, match="session 2 has none"):
        make_timeline(run, 0, 3, session=2)
    bare = Results(
        run.path, run.manifest, run.images, run.groups, np.empty(0, run.tasks.dtype), True
    )
    with pytest.raises(DataFault, match="no tasks"):
        make_timeline(bare, 0, 3)


def test_an_empty_span_has_no_release(run: Results) -> None:
    timeline = make_timeline(run, 7, 7)
    assert isinstance(timeline, Timeline)
    assert timeline.begin_ns < timeline.end_ns

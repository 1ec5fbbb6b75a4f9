"""Timelines: bars from rows, the Chrome trace's format, the figure's files."""

from __future__ import annotations

import dataclasses
import json
import runpy
import sys
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from results_harness import as_two_teams, make_run

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.figures.plots import _legend
from collage_mpi.results import Results, read_results
from collage_mpi.results.timeline import (
    STATES,
    Timeline,
    make_timeline,
    trace_events,
    write_trace,
)
from collage_mpi.rows import OUTCOME_CODE, ran_together
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.costs import Costs
from collage_mpi.simulation.runs import simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob

SCRIPT = Path(__file__).parents[2] / "analysis" / "timeline.py"
# Trace Event Format: what an event of each phase must have beside ph, pid, tid and name.
NEEDED = {"M": {"args"}, "X": {"ts", "dur"}, "b": {"ts", "id", "cat"}, "e": {"ts", "id", "cat"}}
NEEDED["i"] = {"ts", "s"}


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


def check_format(document: dict) -> None:
    """What the Trace Event Format asks for; raises AssertionError."""
    names, opened = set(), set()
    for event in document["traceEvents"]:
        phase = event["ph"]
        assert NEEDED[phase] | {"pid", "tid", "name"} <= set(event), event
        assert all(isinstance(event[key], int) for key in ("pid", "tid"))
        if "ts" in NEEDED[phase]:
            assert event["ts"] >= 0
            assert (event["pid"], event["tid"]) in names
        if phase == "M":
            names.add((event["pid"], event["tid"]))
        elif phase == "X":
            assert event["dur"] >= 0
        elif phase == "i":
            assert event["s"] in ("t", "p", "g")
        elif phase in "be":
            key = (event["cat"], event["pid"], event["id"], event["name"])
            (opened.add if phase == "b" else opened.remove)(key)
    assert not opened  # every b has its e


def test_the_trace_is_what_chrome_and_perfetto_read(run: Results, tmp_path: Path) -> None:
    timeline = make_timeline(run, 0, 19)
    write_trace(tmp_path / "sub" / "t.json", timeline)
    document = json.loads((tmp_path / "sub" / "t.json").read_text())
    check_format(document)
    bars = [event for event in document["traceEvents"] if event["ph"] == "X"]
    assert len(bars) == len(timeline.bars)
    first = timeline.bars[0]
    assert bars[0]["ts"] == pytest.approx(first.start_ns / 1e3)
    assert bars[0]["dur"] == pytest.approx((first.end_ns - first.start_ns) / 1e3)


def test_ranks_of_other_teams_are_shown_at_the_same_times(run: Results) -> None:
    alone, teams = make_timeline(run, 4, 4), make_timeline(as_two_teams(run), 4, 4)
    assert {bar.team for bar in teams.bars} == {0, 1}
    assert tuple(dataclasses.replace(bar, team=0) for bar in teams.bars) == alone.bars
    assert all(bar.group % 2 == bar.team for bar in teams.bars)
    other = make_timeline(as_two_teams(run), 5, 5, session=2)
    assert {bar.team for bar in other.bars} == {-1, 0}
    ends = {bar.task: bar.end_ns for bar in make_timeline(run, 5, 5).bars}
    assert {bar.task: bar.end_ns + 1_000_000 for bar in other.bars} == ends
    waits = [dataclasses.replace(bar, start_ns=bar.sent_ns + 1) for bar in other.bars]
    drawn = dataclasses.replace(other, bars=tuple(waits))
    events = [event for event in trace_events(drawn)["traceEvents"] if event["ph"] in "be"]
    events = [event for event in events if event["cat"] == "wait"]
    assert [event.get("scope") for event in events] == [
        "team -1" if bar.team else None for bar in waits for _ in "be"
    ]


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


def test_the_legend_names_whose_answers_resolved_images() -> None:
    legend = Mock()
    _legend(legend, make_timeline(simulated(slow_ranks=["1:9"]), 0, 59))
    labels = [handle.get_label() for handle in legend.legend.call_args.kwargs["handles"]]
    assert labels[:2] == [
        "single answer that resolved its image",
        "collage answer that resolved images",
    ]
    assert "late answer, resolved nothing" in labels


def test_skipped_tasks_and_waits_are_events_of_their_own(run: Results) -> None:
    tasks = run.tasks.copy()
    tasks["outcome"][5] = OUTCOME_CODE["skipped"]
    tasks["compute_ns"][5] = 0
    changed = Results(run.path, run.manifest, run.images, run.groups, tasks, run.complete)
    timeline = make_timeline(changed, 0, 3)
    document = trace_events(timeline)
    check_format(document)
    assert [e["cat"] for e in document["traceEvents"] if e["ph"] == "i"] == ["skipped"]
    assert any(e["ph"] == "b" and e["cat"] == "wait" for e in document["traceEvents"])


def test_a_broken_trace_is_seen_by_the_check(run: Results) -> None:
    document = trace_events(make_timeline(run, 0, 1))
    del next(e for e in document["traceEvents"] if e["ph"] == "X")["dur"]
    with pytest.raises(AssertionError):
        check_format(document)


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


def test_the_script_draws_and_says_what_is_wrong(
    run: Results,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")

    def script(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(run.path), *words])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return int(left.value.code or 0)

    assert script("--groups", "2-4", "--out", str(tmp_path / "f")) == 0
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"
    check_format(json.loads((tmp_path / "f.trace.json").read_text()))
    assert script("--groups", "x", "--out", str(tmp_path / "f")) == 2
    assert "--groups x" in capsys.readouterr().err


def test_an_empty_span_has_no_release(run: Results) -> None:
    timeline = make_timeline(run, 7, 7)
    assert isinstance(timeline, Timeline)
    assert timeline.begin_ns < timeline.end_ns

"""Traces from runs, and runs from traces."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from simulate_to import simulate_to

from collage_mpi.cli import main
from collage_mpi.errors import DataFault
from collage_mpi.results import read_results
from collage_mpi.results.slow_ranks import trace_of
from collage_mpi.rows import KIND_CODE, OUTCOME_CODE
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.costs import Costs
from collage_mpi.workload.arrivals import load_trace
from collage_mpi.workload.straggler_settings import make_delays


@pytest.fixture
def trace(tmp_path):
    times = np.random.default_rng(1).lognormal(-2, 0.3, (5, 40)).astype(np.float32)
    np.save(tmp_path / "t.npy", times)
    return tmp_path / "t.npy"


def test_a_recorded_run_is_the_trace_that_it_followed(trace, tmp_path):
    """Drained and without redundancy every rank serves every group: its row, in order."""
    job = RunSettings(
        scheme="none", side=2, between="drain", warmup_groups=3, straggler=str(trace),
        straggler_seed=2, assign="turn", endgame="off",
    )  # fmt: skip
    simulate_to(job, tmp_path / "run", 4 * 30, Costs())
    assert main(["export", str(tmp_path / "run"), "--to", "trace"]) == 0
    recorded = str(tmp_path / "run" / "export" / "trace.npy")
    found = load_trace(recorded)
    draw = make_delays(job).draw_ns
    expected = [[draw(rank, group, 1) / 1e9 for group in range(3, 30)] for rank in range(1, 5)]
    assert found == pytest.approx(np.array(expected), rel=1e-6)
    # the recorded trace drives a run in its turn
    again = RunSettings(straggler=recorded, side=2)
    assert simulate_to(again, tmp_path / "again", 40)[0] == "complete"


def test_rows_are_cut_to_the_shortest(tmp_path):
    job = RunSettings(straggler="pinned", slow_ranks=("2:30",), side=2, warmup_groups=0)
    simulate_to(job, tmp_path / "run", 400)
    run = read_results(tmp_path / "run")
    tasks = run.measured_tasks
    wanted = (tasks["outcome"] == OUTCOME_CODE["answered"]) & (tasks["kind"] == KIND_CODE["single"])
    slowest = (tasks["rank"][wanted] == 2).sum()
    assert 0 < slowest < wanted.sum() / 4 - 25
    assert trace_of(run).shape == (4, slowest)
    with pytest.raises(DataFault, match="longer run"):
        trace_of(replace(run, tasks=run.tasks[:0]))


def test_later_sessions_follow_and_what_took_no_time_is_left_out(tmp_path):
    """Each session has a clock of its own, which begins anew."""
    job = RunSettings(scheme="none", straggler="lognormal", side=2, warmup_groups=0)
    simulate_to(job, tmp_path / "run", 400)
    run = read_results(tmp_path / "run")
    whole = trace_of(run)
    tasks = run.tasks.copy()
    half = int(np.median(tasks["done_ns"]))
    later = tasks["done_ns"] > half
    tasks["session"][later] = 2
    for clock in ("sent_ns", "done_ns"):
        tasks[clock][later] -= half
    assert np.array_equal(trace_of(replace(run, tasks=tasks)), whole)
    idle = tasks["rank"] == 1
    tasks["compute_ns"][idle] = 0
    found = trace_of(replace(run, tasks=tasks))
    assert len(found) == len(whole) - 1
    assert found.min() > 0


def test_a_batch_gives_the_time_of_one_of_its_images(tmp_path):
    given = {"straggler": "pinned:50", "batch_cost": 0.5}
    job = RunSettings(scheme="none", assign="pull", batch=8, warmup_groups=0, side=2, **given)
    simulate_to(job, tmp_path / "run", 400)
    run = read_results(tmp_path / "run")
    assert run.tasks["items"].max() > 1
    assert trace_of(run) == pytest.approx(np.float32(0.05))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no .npy"),
        (b"\x93NUMPY\x01\x00", "no .npy"),
        (b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f8', 'fortran_order': False, 'shape': (9", "npy"),
        (np.array([{}], object), "no .npy"),
        (np.array(["a"]), "numbers"),
        (np.array([1 + 1j]), "numbers"),
        (np.zeros((3, 0)), "not empty"),
        (np.array(1.0), "shape"),
        (np.array([[1.0, 0.0]]), "row 0, column 1"),
        (np.array([[1.0, np.inf]]), "positive"),
    ],
)
def test_a_bad_trace_stops_a_run_before_anything_starts(content, says, tmp_path, capsys):
    path = tmp_path / "bad.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    out = tmp_path / "out"
    words = ["--images", "90", "--straggler", str(path)]
    assert main(["simulate", *words, "--out", str(out)]) == 4
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told
    assert not out.exists()


def test_an_npz_is_no_trace(tmp_path):
    with (tmp_path / "t.npy").open("wb") as file:
        buffer = io.BytesIO()
        np.savez(buffer, a=np.ones(3))
        file.write(buffer.getvalue())
    with pytest.raises(DataFault, match=r"npz"):
        load_trace(str(tmp_path / "t.npy"))

"""The core in whole runs on virtual time: how it shares the work, what a cascade costs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from test_simulator import FREE, Rows, play

from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.results import summarise
from collage_mpi.rows import KIND_CODE, OUTCOME_CODE, SOURCE_CODE
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.runs import simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob, Simulation

MS = 1_000_000


def simulated(images: int, **settings) -> Rows:
    rows = Rows()
    job = RunSettings.from_mapping({"straggler": "pinned", "warmup_groups": 0, **settings})
    Simulation(SimulatedJob(job, images, FREE), rows).run()
    return rows


def took_ns(rows: Rows) -> int:
    """From the first admission to the last row."""
    return max(r.t0_ns + r.latency_ns for r in rows.images) - min(r.t0_ns for r in rows.images)


@pytest.mark.parametrize("slower", [1, 5, 60])
def test_by_default_all_ranks_work_whichever_is_slow(slower):
    rows = simulated(5400, scheme="none", slow_ranks=[f"4:{slower}"])
    assert took_ns(rows) <= 5400 * 100 * MS / (8 + 1 / slower) / 0.95


@pytest.mark.parametrize("slower", [5, 60])
@pytest.mark.parametrize("scheme", ["none", "hedge", "collage", "collage-only"])
def test_a_slow_rank_of_nine_takes_no_more_than_its_speed(scheme, slower):
    """Against the sum of the ranks' speeds."""
    alone = scheme == "collage-only"
    rows = simulated(
        1080 * (4 if alone else 1),
        scheme=scheme,
        assign="pull",
        endgame="on",
        side=2 if alone else 3,
        depth=16,
        straggler="pinned:500",
        slow_ranks=[f"4:{slower}"],
        collage_ranks=9 if alone else 1,
        **({"deadline_ms": 1000.0} if scheme == "hedge" else {}),
    )
    assert took_ns(rows) / 1e9 <= 1.05 * 1080 * 0.5 / (8 + 1 / slower)
    if scheme == "none":
        assert any(row.source == SOURCE_CODE["endgame"] for row in rows.images)


def test_ranks_get_work_in_proportion_to_their_speed():
    slow = {"straggler": "pinned:100", "slow_ranks": ("4:5",)}
    rows = play(80, scheme="none", assign="pull", depth=8, **slow)
    done = Counter(task.rank for task in rows.tasks)
    assert 5 * (done[4] - 2) <= min(done[rank] for rank in range(1, 10) if rank != 4)
    assert 5 * (done[4] + 1) >= max(done.values())


def test_no_slow_rank_keeps_a_whole_batch_when_the_others_are_done():
    """Without an end game the last rows wait for a rank that is five times slower."""
    slow = {"straggler": "pinned:10", "slow_ranks": ["4:5"]}
    rows = simulated(720, scheme="none", batch=8, endgame="off", **slow)
    assert took_ns(rows) <= 900 * MS, "with a whole batch 1,200"


def test_what_is_out_at_the_end_is_censored_a_second_after_the_last_row():
    slow = {"straggler": "pinned:500", "slow_ranks": ("2:60",)}
    shape = {"side": 2, "depth": 3}
    rows = play(3, scheme="none", assign="pull", endgame="on", **shape, **slow)
    last_ns = max(row.t0_ns + row.latency_ns for row in rows.images)
    out = [task for task in rows.tasks if task.outcome == OUTCOME_CODE["unfinished"]]
    assert {(task.rank, task.done_ns) for task in out} == {(2, last_ns + 1000 * MS)}
    assert min(task.sent_ns for task in out) == 0


@pytest.mark.parametrize("batch", [1, 3])
def test_a_rank_draws_a_time_for_each_message_of_a_group(batch):
    alone = {"scheme": "none", "side": 2, "singles": 1, "straggler": "lognormal", "depth": 2}
    rows = play(6, assign="pull", batch=batch, **alone)
    drawn = {(task.done_ns, task.compute_ns) for task in rows.tasks}
    assert len({ns for _, ns in drawn}) == len(drawn) == 24 // batch
    in_turn = play(6, assign="turn", **alone)
    assert len({task.compute_ns for task in in_turn.tasks}) == 6, "as ever: one a group"


# ---- cascades ---------------------------------------------------------------


@pytest.fixture
def answers(tmp_path):
    """Of every nine cells three are unsure, below a confidence of 0.8."""
    cells = np.arange(9)
    np.savez(
        tmp_path / "answers.npz",
        version=1,
        side=3,
        labels=np.zeros(9, int),
        class_names=np.array(["a"]),
        single_class=np.zeros(9, int),
        single_score=np.ones(9),
        collage_class=np.zeros(9, int),
        collage_score=np.where(cells < 3, 0.5, 0.9),
        collage_absent=cells < 0,
    )
    return str(tmp_path / "answers.npz")


def test_in_a_closed_loop_each_image_is_in_one_collage_and_a_third_is_sent_again(answers):
    """The unsure part is wasted work; a collage and a single answer take equally long."""
    plain = {"confidence": 0.8, "endgame": "off", "warmup_groups": 0, "audit": 0.0}
    job = SimulatedJob(RunSettings(scheme="cascade", **plain), 360, answers=answers)
    found = simulate_in_memory(job)
    sources = Counter(found.images["source"].tolist())
    assert sources == {SOURCE_CODE[COLLAGE]: 240, SOURCE_CODE[SINGLE]: 120}
    collages = found.tasks[found.tasks["kind"] == KIND_CODE[COLLAGE]]
    assert (collages["items"].sum(), collages["resolved"].sum()) == (360, 240)
    price = summarise(found)["price"]
    assert price["wasted_work"] == pytest.approx(40 / 3 / (40 + 120))
    work_s = price["work_s_of"]
    assert work_s[SINGLE] / work_s[COLLAGE] == pytest.approx(120 / 40)
    assert (price["late_answers"], price["collage_share"]) == (0, pytest.approx(2 / 3))

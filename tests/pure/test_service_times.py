"""Delay models: the distributions they promise, their keys, and what is paired by them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from paper import paper

from collage_mpi.errors import UsageError
from collage_mpi.rows import TaskRow
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.costs import Costs
from collage_mpi.simulation.runs import check_job
from collage_mpi.simulation.simulator import SimulatedJob, Simulation
from collage_mpi.workload import straggler_settings
from collage_mpi.workload.straggler_settings import (
    Body,
    DelayModel,
    Spells,
    StragglerSettings,
    deaths_of,
    lognormal,
    make_delays,
    slow_periods,
    some_tasks,
    uniform,
)

DRAWN = ("lognormal", "bimodal", "markov")


def draws_ms(body: Body, ranks=9, groups=700, every_ms=100) -> np.ndarray:
    """(ranks, groups) ms, a task every `every_ms`."""
    draw = DelayModel(body, {}, by_image=False).draw_ns
    return np.array(
        [
            [draw(r, g, 1, g * every_ms * 1_000_000) / 1e6 for g in range(groups)]
            for r in range(1, ranks + 1)
        ]
    )


def test_uniform_is_uniform_and_keyed():
    found = np.array([uniform(7, i) for i in range(4000)])
    assert found.min() > 0
    assert found.max() < 1
    assert found.mean() == pytest.approx(0.5, abs=0.02)
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.05
    assert uniform(7, 1) != uniform(71, "")


@hypothesis_settings(max_examples=8, deadline=None)
@given(st.floats(0.02, 0.5), st.floats(3, 10), st.integers(0, 9))
def test_bimodal_has_its_share_and_factor(share, factor, seed):
    found = draws_ms(lognormal(seed, 0.1, 0.1, some_tasks(seed, share, factor)))
    slow = found > 100 * math.sqrt(factor)
    assert slow.mean() == pytest.approx(share, abs=0.03)
    assert np.median(found[~slow]) == pytest.approx(100, rel=0.02)
    assert np.median(found[slow]) == pytest.approx(100 * factor, rel=0.05)
    # each task on its own: a slow neighbour says nothing
    pairs = slow[:, 1:][slow[:, :-1]]
    assert pairs.mean() == pytest.approx(share, abs=0.13)


def test_markov_is_slow_in_spells_of_the_stated_length_and_share():
    spells_of = lambda rank: Spells(0, rank, 0.2, 3.0)  # noqa: E731
    found = draws_ms(lognormal(0, 0.1, 0.0, slow_periods(4.0, spells_of)), ranks=40, groups=2000)
    assert set(found.ravel()) == {100.0, 400.0}
    slow = found == 400
    assert slow.mean() == pytest.approx(0.2, abs=0.04)
    spells = (slow[:, 1:] & ~slow[:, :-1]).sum() + slow[:, 0].sum()
    assert slow.sum() * 0.1 / spells == pytest.approx(3, rel=0.15)
    at_once = [Spells(5, rank, 0.2, 3.0).slow(0.0) for rank in range(1, 2001)]
    assert np.mean(at_once) == pytest.approx(0.2, abs=0.03)  # in equilibrium at the start


def test_spells_are_a_function_of_time_whatever_was_asked_before():
    asked = [9.0, 0.5, 30.0, 2.0]
    at_once = [Spells(3, 2, 0.3, 1.0).slow(at_s) for at_s in asked]
    spells = Spells(3, 2, 0.3, 1.0)
    assert [spells.slow(at_s) for at_s in asked] == at_once
    times = np.arange(0, 200, 0.1)
    one, other = ([Spells(3, rank, 0.3, 1.0).slow(t) for t in times] for rank in (1, 2))
    assert one != other
    assert all(Spells(0, 1, 1.0, 2.0).slow(t) for t in times)
    assert not any(Spells(0, 1, 0.0, 2.0).slow(t) for t in times)


@pytest.mark.parametrize("model", DRAWN)
def test_draws_depend_on_seed_and_key_only(model):
    settings = StragglerSettings(model, straggler_seed=4)
    first, again = make_delays(settings), make_delays(settings)
    keys = [(r, g, a, 10**8 * g) for r in (1, 5) for g in range(30) for a in (1, 2)]
    found = [first.draw_ns(*key) for key in keys]
    assert [again.draw_ns(*key) for key in reversed(keys)] == found[::-1]
    assert len(set(found)) == len(found)
    other = make_delays(StragglerSettings(model, straggler_seed=5))
    assert [other.draw_ns(*key) for key in keys] != found


@pytest.mark.parametrize(
    ("model", "drawn_ns"),
    [
        ("lognormal", [114150136, 87290826, 93422745]),
        ("bimodal", [114150136, 436454128, 93422745]),
        ("markov", [570750682, 87290826, 93422745]),
        ("trace", [100000000, 50000000, 110000000]),
    ],
)
def test_a_seed_gives_what_it_gave_in_every_version(model, drawn_ns, tmp_path, monkeypatch):
    """Runs of two versions are compared by it."""
    np.save(tmp_path / "t.npy", np.arange(1, 13).reshape(3, 4) / 100)
    trace = str(tmp_path / "t.npy")
    monkeypatch.setattr(straggler_settings, "SLOW_SHARE", 0.5)
    settings = StragglerSettings(trace if model == "trace" else model, straggler_seed=7)
    draw_ns = make_delays(settings).draw_ns
    keys = [(1, 0, 1, 0), (2, 3, 1, 4 * 10**9), (5, 8, 2, 30 * 10**9)]
    assert [draw_ns(*key) for key in keys] == drawn_ns


class Tasks:
    """A writer that keeps the tasks."""

    session = 1

    def __init__(self):
        self.drawn = {}

    def image_rows(self, rows):
        pass

    def task_rows(self, rows):
        for row in map(TaskRow._make, rows.tolist()):
            if row.compute_ns:
                self.drawn[row.rank, row.group, row.attempt] = row.compute_ns


@pytest.mark.parametrize("model", ["lognormal", "bimodal", "trace"])
def test_schemes_meet_the_same_draws(model, tmp_path):
    """Paired: a (rank, group, attempt) that two schemes both serve takes as long in both."""
    np.save(tmp_path / "t.npy", np.random.default_rng(0).lognormal(-2, 0.5, (6, 50)))
    model = str(tmp_path / "t.npy") if model == "trace" else model
    found = []
    for scheme in ("none", "collage", "replicate"):
        job = paper(straggler=model, scheme=scheme, side=2)
        rows = Tasks()
        Simulation(SimulatedJob(job, 160, Costs()), rows).run()
        found.append({key: ns for key, ns in rows.drawn.items() if key[0] <= 4})
    for other in found[1:]:
        shared = found[0].keys() & other.keys()
        assert len(shared) > 80
        assert all(found[0][key] == other[key] for key in shared)


def test_a_dead_rank_by_time_or_by_tasks():
    deaths = deaths_of(("3:2.5s", "4:7"))
    assert not deaths[3].reached(2_499_999_999, 10**6)
    assert deaths[3].reached(2_500_000_000, 0)
    assert not deaths[4].reached(10**12, 6)
    assert deaths[4].reached(0, 7)


def test_dead_ranks_are_told_as_they_were_typed():
    job = SimulatedJob(RunSettings(straggler="markov"), 9, dead_ranks=("3:2.5s", "4:7"))
    assert "rank 3 dead after 2.5 s, rank 4 dead after 7 tasks" in job.describe_delays


@pytest.mark.parametrize("wrong", ["3", "3:-1s", "3:nans", "0:4"])
def test_a_death_has_a_rank_and_a_time(wrong):
    with pytest.raises(UsageError, match="RANK:SECONDSs or RANK:TASKS"):
        deaths_of((wrong,))


@pytest.mark.parametrize("wrong", [{"straggler": "lognormal:9:1e6"}, {"straggler": "cauchy"}])
def test_what_cannot_work_is_one_message(wrong):
    with pytest.raises(UsageError):
        RunSettings(**wrong)


def test_extreme_draws_fit_a_column():
    assert 0 <= draws_ms(lognormal(0, 1e6, 100.0), groups=50).max() <= 1e12


def test_no_rank_of_the_world_is_slow_or_dead():
    job = RunSettings(slow_ranks=("11:5",))
    with pytest.raises(UsageError, match="slow rank 11; the world has worker ranks 1 to 10"):
        job.check_slow_ranks(11)
    with pytest.raises(UsageError, match="dead rank 11; the world has worker ranks 1 to 10"):
        check_job(SimulatedJob(RunSettings(), 9, dead_ranks=("11:5",)))

"""Slow ranks: who is compared with whom, the interval, false alarms, hosts to leave out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collage_mpi.errors import UsageError
from collage_mpi.results import Results
from collage_mpi.results.slow_ranks import (
    Speed,
    hosts_to_exclude,
    injected,
    rank_speeds,
    recurrences,
    service_times_ns,
)
from collage_mpi.results.statistics import MISS, quantile_interval
from collage_mpi.rows import GROUP_ROW, IMAGE_ROW, KIND_CODE, OUTCOME_CODE, TASK_ROW
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.runs import simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob


def a_run(
    factors: dict[int, float],
    hosts: dict[int, str] | None = None,
    *,
    tasks: int = 200,
    kinds: dict[int, str] | None = None,
    devices: dict[int, str] | None = None,
    seed: int = 0,
    **manifest: Any,
) -> Results:
    """Ranks that take so many times 100 ms, each task on its own (lognormal, sigma 0.3)."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(tasks * len(factors), TASK_ROW)
    rows["session"] = 1
    for place, (rank, factor) in enumerate(factors.items()):
        mine = rows[place * tasks : (place + 1) * tasks]
        mine["rank"], mine["kind"] = rank, KIND_CODE[(kinds or {}).get(rank, "single")]
        mine["compute_ns"] = 1e8 * factor * rng.lognormal(0, 0.3, tasks)
        mine["done_ns"] = np.cumsum(mine["compute_ns"])
        mine["sent_ns"] = mine["done_ns"] - mine["compute_ns"]
    rows["task"] = np.arange(len(rows))
    world = [
        {
            "rank": rank,
            "host": (hosts or {}).get(rank, f"node{rank}"),
            "kinds": [(kinds or {}).get(rank, "single")],
            "devices": [(devices or {}).get(rank, "cpu")],
        }
        for rank in factors
    ]
    full = {"rows": 0, "world": world, "settings": {"straggler": "none"}, **manifest}
    nothing = np.empty(0, IMAGE_ROW), np.empty(0, GROUP_ROW)
    return Results(Path("run"), full, *nothing, rows, complete=True)


def of(speeds: list[Speed], unit: str = "rank") -> dict[str, Speed]:
    return {speed.name: speed for speed in speeds if speed.unit == unit}


def test_a_slow_rank_is_told_by_how_much_and_the_others_are_not_blamed() -> None:
    speeds = rank_speeds(a_run({rank: 5.0 if rank == 3 else 1.0 for rank in range(1, 9)}))
    assert (speeds[0].name, speeds[0].ranks, speeds[0].host) == ("rank 3", (3,), "node3")
    low, high = speeds[0].interval or (0, 0)
    assert 4 < low < 5 < high < 6.2
    assert low < (speeds[0].ratio or 0) < high
    assert (speeds[0].messages, speeds[0].peers) == (200, 7)
    assert speeds[0].median_ms == pytest.approx(500, rel=0.1)
    assert [speed.ranks for speed in speeds if speed.slow] == [(3,), (3,)]  # the rank, its host
    assert hosts_to_exclude(speeds) == ["node3"]


def test_nearly_half_may_be_slow() -> None:
    speeds = of(rank_speeds(a_run({rank: 3.0 if rank <= 4 else 1.0 for rank in range(1, 10)})))
    assert {s.ranks[0] for s in speeds.values() if s.slow} == {1, 2, 3, 4}


def test_what_is_a_little_slower_is_surely_so_and_not_called_slow() -> None:
    run = a_run({rank: 1.1 if rank == 2 else 1.0 for rank in range(1, 7)}, tasks=6000)
    found = of(rank_speeds(run))["rank 2"]
    assert (found.interval or (0, 0))[0] > 1
    assert not found.slow
    assert of(rank_speeds(run, over=1.0))["rank 2"].slow
    with pytest.raises(UsageError, match="1 or more"):
        rank_speeds(run, over=0.9)


def test_what_is_likely_slower_is_not_called_slow_without_being_sure() -> None:
    for seed in range(3):
        run = a_run({rank: 1.5 if rank == 2 else 1.0 for rank in range(1, 7)}, tasks=40, seed=seed)
        found = of(rank_speeds(run))["rank 2"]
        assert (found.ratio or 0) > 1.3
        assert (found.interval or (9, 0))[0] < 1.2
        assert not found.slow


def test_kinds_are_not_compared_with_each_other() -> None:
    kinds = {9: "collage", 10: "collage", 11: "backup"}
    factors = dict.fromkeys(range(1, 9), 1.0) | {9: 3.0, 10: 9.0, 11: 20.0}
    found = of(rank_speeds(a_run(factors, kinds=kinds)))
    assert {name for name, speed in found.items() if speed.slow} == {"rank 10"}
    assert (found["rank 10"].ratio, found["rank 10"].peers) == (pytest.approx(3, rel=0.1), 1)
    alone = found["rank 11"]
    assert (alone.peers, alone.ratio, alone.interval, alone.slow) == (0, None, None, False)


def test_a_host_is_compared_with_the_ranks_of_others() -> None:
    hosts = {rank: f"node{(rank - 1) // 4}" for rank in range(1, 13)}
    factors = {rank: 2.0 if hosts[rank] == "node1" else 1.0 for rank in hosts}
    speeds = rank_speeds(a_run(factors, hosts))
    slow = of(speeds, "host")["node1"]
    assert (slow.ranks, slow.peers, slow.slow) == ((5, 6, 7, 8), 8, True)
    assert slow.ratio == pytest.approx(2, rel=0.05)
    assert not of(speeds, "host")["node0"].slow
    assert hosts_to_exclude(speeds) == ["node1"]
    one = rank_speeds(a_run(factors, dict.fromkeys(hosts, "here")))
    assert of(one, "host")["here"].ratio is None  # it has no peers
    assert of(one)["rank 5"].ratio == pytest.approx(2, rel=0.1)


def test_one_bad_gpu_of_a_good_host() -> None:
    hosts = {rank: f"node{(rank - 1) // 4}" for rank in range(1, 9)}
    devices = {rank: f"cuda:{(rank - 1) % 4 // 2}" for rank in hosts}
    factors = {rank: 4.0 if rank in (5, 6) else 1.0 for rank in hosts}
    speeds = rank_speeds(a_run(factors, hosts, devices=devices))
    assert {name for name, s in of(speeds, "gpu").items() if s.slow} == {"node1 cuda:0"}
    assert of(speeds, "gpu")["node1 cuda:0"].ranks == (5, 6)
    assert hosts_to_exclude(speeds) == ["node1"]
    # where every rank sees one GPU alone, all are called cuda:0 and cannot be told apart
    same = rank_speeds(a_run(factors, hosts, devices=dict.fromkeys(hosts, "cuda:0")))
    assert not of(same, "gpu")
    assert not of(rank_speeds(a_run(factors, hosts)), "gpu")


def test_too_few_answers_give_a_ratio_without_an_interval() -> None:
    run = a_run(dict.fromkeys(range(1, 6), 1.0) | {6: 50.0})
    mine = run.tasks["rank"] == 6
    few = replace(run, tasks=run.tasks[~mine | (np.cumsum(mine) <= 3)])
    found = of(rank_speeds(few))["rank 6"]
    assert found.ratio == pytest.approx(50, rel=0.5)
    assert (found.interval, found.slow, found.samples) == (None, False, 3)
    tasks = few.tasks.copy()
    tasks["outcome"][tasks["rank"] == 6] = OUTCOME_CODE["unfinished"]
    none = rank_speeds(replace(few, tasks=tasks))
    hung = of(none)["rank 6"]
    assert (hung.messages, hung.ratio, hung.median_ms, hung.unanswered) == (0, None, None, 3)
    assert [s.name for s in none if s.unit == "rank"][-1] == "rank 6"
    assert of(none)["rank 1"].unanswered == 0


def test_slow_spells_make_a_sample_worth_less() -> None:
    """One slow half and one fast half are two spells, whatever number of tasks they are."""
    run = a_run(dict.fromkeys(range(1, 6), 1.0))
    mine = np.flatnonzero(run.tasks["rank"] == 2)
    run.tasks["compute_ns"][mine[: len(mine) * 6 // 10]] *= 8
    found = of(rank_speeds(run))["rank 2"]
    assert (found.ratio or 0) > 4
    assert found.samples < 20
    assert not found.slow


def test_slow_for_most_of_a_run_is_not_slow_all_along() -> None:
    run = a_run(dict.fromkeys(range(1, 6), 1.0), tasks=900)
    mine = np.flatnonzero(run.tasks["rank"] == 2)
    run.tasks["compute_ns"][mine[np.arange(900) // 3 % 5 > 0]] *= 3  # short spells: many samples
    assert of(rank_speeds(run))["rank 2"].slow
    for third in range(3):  # but not in this one
        tasks = run.tasks.copy()
        tasks["compute_ns"][mine[300 * third : 300 * (third + 1)]] = 1e8
        found = of(rank_speeds(replace(run, tasks=tasks)))["rank 2"]
        assert found.ratio is not None
        assert not found.slow


def test_a_batch_is_one_service_time_over_what_its_size_takes() -> None:
    run = a_run({1: 1.0, 2: 1.0}, tasks=60, batch_costs={"single": 0.5})
    tasks = run.tasks
    for column in ("compute_ns", "sent_ns", "done_ns"):  # of rank 1 three tasks a message
        tasks[column][:60] = np.repeat(tasks[column][:60:3], 3)
    times = service_times_ns(run)
    assert times[1, 1, "single"] == pytest.approx(tasks["compute_ns"][:60:3] / 2.0)
    assert times[2, 1, "single"] == pytest.approx(tasks["compute_ns"][60:])
    warm = tasks.copy()
    warm["warmup"][60:] = True
    assert set(service_times_ns(replace(run, tasks=warm))) == {(1, 1, "single")}


def test_a_group_as_a_batch_is_one_service_time_over_what_its_images_take() -> None:
    given: dict[str, Any] = {"straggler": "pinned", "straggler_median_ms": 50.0, "batch_cost": 0.5}
    settings = RunSettings(
        scheme="cascade-batch", placement="fixed", side=2, slow_ranks=("2:30",), **given
    )
    run = simulate_in_memory(SimulatedJob(settings, 62))
    items = run.tasks["items"][run.tasks["kind"] == KIND_CODE["backup"]]
    assert len(set(items.tolist())) > 1
    found = service_times_ns(run)
    (backup,) = [key for key in found if key[2] == "backup"]
    assert found[backup] == pytest.approx(50e6)


def test_a_session_on_other_hosts_blames_those_that_were_there() -> None:
    run = a_run({rank: 4.0 if rank == 2 else 1.0 for rank in range(1, 6)})
    second = run.tasks.copy()
    second["session"] = 2
    second["compute_ns"][second["rank"] == 2] //= 4  # its new host is fine
    first_world = run.manifest["world"]
    moved = [{**member, "host": "new" + member["host"]} for member in first_world]
    sessions = [
        {"session": 1, "final": {"world": first_world}},
        {"session": 2, "final": {"world": moved}},
    ]
    both = replace(
        run,
        tasks=np.concatenate([run.tasks, second]),
        manifest={**run.manifest, "world": moved, "sessions": sessions},
    )
    assert hosts_to_exclude(rank_speeds(both)) == ["node2"]
    killed = {**both.manifest, "sessions": sessions[1:]}  # session 1 told no world
    speeds = rank_speeds(replace(both, manifest=killed))
    assert [speed.host for speed in speeds if speed.slow] == [None]
    assert hosts_to_exclude(speeds) == []


def test_hosts_that_are_slow_again_and_again() -> None:
    def speeds(slow: int | None, ranks: range = range(1, 8)) -> list[Speed]:
        return rank_speeds(a_run({rank: 3.0 if rank == slow else 1.0 for rank in ranks}))

    found = {r.host: r for r in recurrences([speeds(2), speeds(2), speeds(5), speeds(None)])}
    assert (found["node2"].runs, found["node2"].slow, found["node2"].again) == (4, 2, True)
    assert found["node2"].ratios == pytest.approx((3, 3), rel=0.2)
    assert (found["node5"].slow, found["node5"].again) == (1, False)
    assert found["node1"].slow == 0
    absent = recurrences([speeds(2), *[speeds(None)] * 3, speeds(2), speeds(1, range(1, 5))])
    assert {r.host: (r.runs, r.again) for r in absent}["node2"] == (6, False)
    assert {r.host: r.runs for r in absent}["node7"] == 5
    assert absent[0].host == "node2"
    few = rank_speeds(a_run(dict.fromkeys(range(1, 8), 1.0), tasks=4))
    assert recurrences([few]) == []  # nobody was judged in it


def test_delays_that_were_injected_say_nothing_of_hosts() -> None:
    assert not injected(a_run({1: 1.0}))
    for settings in ({"straggler": "pinned"}, {"slow_ranks": ["3:2"]}):
        assert injected(a_run({1: 1.0}, settings=settings))
    assert injected(a_run({1: 1.0}, simulated={}))


def test_homogeneous_runs_raise_few_alarms() -> None:
    """At most one run in twenty may have an interval above 1; far fewer do, as the report says."""
    runs = [a_run(dict.fromkeys(range(1, 10), 1.0), tasks=60, seed=seed) for seed in range(100)]
    speeds = [rank_speeds(run) for run in runs]
    assert all(speed.interval is not None for run in speeds for speed in run)
    assert sum(any(s.interval[0] > 1 for s in run if s.interval) for run in speeds) <= 5
    assert not any(speed.slow for run in speeds for speed in run)


def test_all_intervals_of_a_run_hold_at_once() -> None:
    run = a_run({1: 1.0, 2: 1.0}, tasks=40)
    one, two = (quantile_interval(t, 0.5, MISS / 2).ends for t in service_times_ns(run).values())
    assert one is not None
    assert two is not None
    assert of(rank_speeds(run))["rank 1"].interval == (one[0] / two[1], one[1] / two[0])


def test_a_rank_that_is_five_times_slower_is_found_in_simulated_runs() -> None:
    for seed in range(2):
        given = {"straggler": "lognormal", "slow_ranks": ["4:5"], "straggler_seed": seed}
        settings = RunSettings.from_mapping(given, "test")
        speeds = rank_speeds(simulate_in_memory(SimulatedJob(settings, 900)))
        assert [speed.ranks for speed in speeds if speed.slow] == [(4,)]
        low, high = speeds[0].interval or (0, 0)
        assert low < 5 < high


def test_an_interval_at_a_smaller_risk_is_wider_and_needs_more() -> None:
    values = np.random.default_rng(1).exponential(1.0, 400)
    usual, sure = quantile_interval(values, 0.5), quantile_interval(values, 0.5, 1e-6)
    assert usual.ends is not None
    assert sure.ends is not None
    assert sure.ends[0] < usual.ends[0] < usual.ends[1] < sure.ends[1]
    assert quantile_interval(values[:6], 0.5).ends == (min(values[:6]), max(values[:6]))
    assert quantile_interval(values[:19], 0.5, 1e-6).ends is None  # 0.5**19 is more than that
    assert quantile_interval(np.arange(20.0) % 7, 0.5, 1e-6).ends is not None

"""Slow ranks: who is compared with whom, the interval, false alarms, what is printed, and whom
Slurm leaves out.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results_harness import make_run

from collage_mpi.cli import main
from collage_mpi.commands import look as command
from collage_mpi.errors import UsageError
from collage_mpi.report import tables
from collage_mpi.results import Results, reader
from collage_mpi.results.render import warnings
from collage_mpi.results.slow_ranks import (
    Speed,
    hosts_to_exclude,
    injected,
    rank_speeds,
    recurrences,
    service_times_ns,
)
from collage_mpi.results.statistics import MISS, quantile_interval
from collage_mpi.results.summary import compared_answers, refuted_rows
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
    kinds = {9: "collage", 10: "collage", 11: "stage1"}
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
    given: dict[str, Any] = {"straggler": "pinned:50", "batch_cost": 0.5}
    settings = RunSettings(
        scheme="cascade", first=("q",), placement="fixed", side=2, slow_ranks=("2:30",), **given
    )
    run = simulate_in_memory(SimulatedJob(settings, 62))
    items = run.tasks["items"][run.tasks["kind"] == KIND_CODE["stage1"]]
    assert len(set(items.tolist())) > 1
    found = service_times_ns(run)
    (quick,) = [key for key in found if key[2] == "stage1"]
    assert found[quick] == pytest.approx(50e6)


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


def simulated(images: int = 1350, **settings: Any) -> Results:
    # Each image has its rank, and a group waits for all: there a slow rank costs the most.
    schedule = {"assign": "turn", "endgame": "off", "depth": 1}
    given = {"straggler": "lognormal", **schedule, **settings}
    return simulate_in_memory(SimulatedJob(RunSettings.from_mapping(given, "test"), images))


def of_files(monkeypatch: pytest.MonkeyPatch, runs: dict[str, Results]) -> list[str]:
    """The runs under names, as if read from folders."""
    named = {name: replace(run, path=Path(name)) for name, run in runs.items()}
    for how in ("open_run", "read_results"):
        monkeypatch.setattr(f"collage_mpi.results.reader.{how}", lambda path: named[str(path)])
    return ["ranks", *named]


def healthy(**manifest: Any) -> Results:
    return a_run(dict.fromkeys(range(1, 7), 1.0), **manifest)


def ill(slow: int = 2, **manifest: Any) -> Results:
    return a_run({rank: 3.0 if rank == slow else 1.0 for rank in range(1, 7)}, **manifest)


def test_one_run_names_the_node_for_slurm(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(of_files(monkeypatch, {"a": ill()})) == 0
    out = capsys.readouterr().out
    slow = [line for line in out.splitlines() if line.endswith("SLOW")]
    assert [line.split()[0] for line in slow] == ["rank", "node2"]
    assert "sbatch --exclude=node2\n" in out
    assert max(map(len, out.splitlines())) <= 160
    assert main(of_files(monkeypatch, {"a": healthy()})) == 0
    out = capsys.readouterr().out
    assert "no rank is significantly slower than its peers" in out
    assert "exclude" not in out


def test_domains_are_left_out_and_odd_names_quoted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hosts = dict.fromkeys(range(1, 7), "good") | {2: "node2.cluster.org"}
    factors = {rank: 3.0 if rank == 2 else 1.0 for rank in range(1, 7)}
    main(of_files(monkeypatch, {"a": a_run(factors, hosts)}))
    assert "sbatch --exclude=node2\n" in capsys.readouterr().out
    main(of_files(monkeypatch, {"a": a_run(factors, {**hosts, 2: "$(x)"})}))
    assert "sbatch --exclude='$(x)'\n" in capsys.readouterr().out


def test_only_hosts_that_are_slow_again_and_again_are_excluded_of_several_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = of_files(monkeypatch, {"a": ill(2), "b": ill(2), "c": ill(5), "d": healthy()})
    main(words)
    out = capsys.readouterr().out
    assert "sbatch --exclude=node2\n" in out
    assert [line.split()[0] for line in out.splitlines() if line.endswith("AGAIN")] == ["node2"]
    main(of_files(monkeypatch, {"a": ill(2), "b": ill(3)}))
    assert "No host is slow in several runs" in capsys.readouterr().out


def test_no_exclude_where_it_would_be_wrong(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(of_files(monkeypatch, {"a": ill(settings={"straggler": "pinned"})}))
    out = capsys.readouterr().out
    assert "they say nothing about the hosts" in out
    assert "--exclude" not in out
    one = a_run({r: 3.0 if r == 2 else 1.0 for r in range(1, 7)}, dict.fromkeys(range(1, 7), "h"))
    main(of_files(monkeypatch, {"a": one}))
    out = capsys.readouterr().out
    assert "Every host has slow or failing ranks" in out
    assert "--exclude" not in out
    for rank in one.manifest["world"][4:]:
        rank.pop("host", None)  # a rank whose host is unknown is no better host
    main(of_files(monkeypatch, {"a": one}))
    assert "Every host has slow or failing ranks" in capsys.readouterr().out
    with_rank_0 = ill()
    with_rank_0.manifest["world"].append({"rank": 0, "host": "node2", "kinds": []})
    main(of_files(monkeypatch, {"a": with_rank_0}))
    assert "node2 also ran rank 0" in capsys.readouterr().out


def failing(**settings: Any) -> Results:
    """Ranks 3 of node3 and 5 of node5: one was lost, one failed until it got no more work."""
    run = healthy(settings={"straggler": "none", **settings})
    final = {
        "world": run.manifest["world"],
        "lost": [{"rank": 3, "why": "its link broke"}],
        "retired": {"5": "CUDA error: uncorrectable ECC error"},
    }
    run.manifest["sessions"] = [{"session": 1, "final": final}]
    return run


def test_a_failing_node_is_named_like_a_slow_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(of_files(monkeypatch, {"a": failing()}))
    out = capsys.readouterr().out
    assert "FAILING node3: rank 3 was lost (its link broke)" in out
    assert "FAILING node5: rank 5 kept failing (CUDA error: uncorrectable ECC error)" in out
    assert "sbatch --exclude=node3,node5\n" in out
    # A rank that is slow on purpose is on a healthy host, also beside a run with a slow host.
    pinned = failing(straggler="pinned")
    slowed = replace(ill(2), manifest=pinned.manifest)
    for run in (pinned, slowed):
        main(of_files(monkeypatch, {"a": run}))
        out = capsys.readouterr().out
        assert "sbatch --exclude=node3,node5\n" in out
        assert "they say nothing about" not in out
    main(of_files(monkeypatch, {"a": slowed, "b": ill(1), "c": ill(1)}))
    assert "sbatch --exclude=node1,node3,node5\n" in capsys.readouterr().out


def wrong() -> Results:
    """Rank 3 was outvoted; the answers of two hosts and of two GPUs were compared."""
    run = healthy()
    counts = dict.fromkeys(("compared", "differed", "wrong", "written"), 0)
    for member in run.manifest["world"]:
        if member["rank"] in (3, 4, 5):
            member["host"] = "node3" if member["rank"] < 5 else "node5"
            member["serials"] = ["GPU-a"] if member["rank"] < 5 else ["GPU-b"]
            member["checked"] = {**counts, "compared": 40}
        if member["rank"] == 3:
            member["checked"] |= {"wrong": 4, "written": 2}
        if member["rank"] == 6:
            member["unfit"] = "32 of 32 inputs got another class"
    final = {"world": run.manifest["world"], "refuted": [[3, 0, 1234], [3, 0, 7]]}
    run.manifest["sessions"] = [{"session": 2, "final": final}]
    return run


def test_wrong_answers_are_told_by_rank_device_and_host(monkeypatch, capsys) -> None:
    found = {(each["unit"], each["name"]): each for each in compared_answers(wrong().manifest)}
    assert [*found] == [
        *(("rank", "2:3"), ("rank", "2:4"), ("rank", "2:5")),
        *(("device", "GPU-a"), ("device", "GPU-b"), ("host", "node3"), ("host", "node5")),
    ]
    figures = {name: (each["compared"], each["wrong"]) for name, each in found.items()}
    assert figures["rank", "2:3"] == (40, 4)
    assert figures["device", "GPU-a"] == figures["host", "node3"] == (80, 4)
    assert found["rank", "2:3"]["interval"] == pytest.approx((0.02793, 0.23664), abs=1e-5)
    main(of_files(monkeypatch, {"a": wrong()}))
    lines = capsys.readouterr().out.splitlines()
    bad = [line.split() for line in lines if line.endswith("WRONG")]
    assert [words[:4] for words in bad] == [
        ["2:3", "node3", "40", "4"],
        ["GPU-a", "node3", "80", "4"],
        ["node3", "node3", "80", "4"],
    ]
    assert any(line.startswith("2:4 ") for line in lines)
    out = "\n".join(lines)
    assert "FAILING node3: rank 3 answered wrongly (4 of 40 comparisons)" in out
    why = "rank 6 answered known inputs wrongly (32 of 32 inputs got another class)"
    assert f"FAILING node6: {why}" in out
    assert "--exclude=node3,node6" in out
    *_, table = tables.ranks(wrong())[1]
    assert [row[:3] for row in table.rows][::3] == [
        ["rank 2:3", "node3", 40],
        ["device GPU-a", "node3", 80],
        ["host node5", "node5", 40],
    ]
    assert [row[3].bad for row in table.rows] == [True, False, False, True, False, True, False]
    main(of_files(monkeypatch, {"a": wrong(), "b": healthy()}))  # in short
    assert "2:4 " not in capsys.readouterr().out


def test_a_summary_warns_of_wrong_ranks_and_of_rows_that_were_refuted_too_late() -> None:
    manifest = {**wrong().manifest, "shards": [{"path": "in/a.h5"}]}
    found = {"checked": compared_answers(manifest), "refuted": refuted_rows(manifest)}
    first, second, *rest = warnings({**found, "accuracy": {"by_source": {}}, "errors": {}})
    assert not rest
    assert first.startswith("WRONG: rank 2:3 (")
    assert "of node3) was outvoted in 4 of 40 comparisons: 2.8 % to 24 % of its answers" in first
    assert "run --redo-rank 2:3 classifies its images again. Leave node3 out" in first
    assert second.startswith("REFUTED: 2 rows of rank 2:3 had been written")
    assert second.endswith("row 1,234 of in/a.h5; row 7 of in/a.h5")


def test_a_host_that_is_slow_and_fails_is_named_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ill(3)
    run.manifest["sessions"] = failing().manifest["sessions"]
    main(of_files(monkeypatch, {"a": run}))
    assert "sbatch --exclude=node3,node5\n" in capsys.readouterr().out


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = simulated(900, slow_ranks=["4:5"], scheme="none")
    main([*of_files(monkeypatch, {"a": run, "b": ill(), "c": ill()}), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["exclude"] == ["node2"]
    first, second, _ = found["runs"]
    assert first["injected"]
    assert not second["injected"]
    assert [s["ranks"] for s in first["speeds"] if s["slow"]] == [[4]]
    assert found["hosts"][0]["again"]


def test_many_ranks_are_cut_but_for_the_slow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run({rank: 4.0 if rank < 16 else 1.0 for rank in range(1, 41)})
    main(of_files(monkeypatch, {"a": run}))
    out = capsys.readouterr().out
    assert sum(line.startswith("rank ") and "SLOW" in line for line in out.splitlines()) == 15
    assert "and 25 more, none of them slow" in out
    assert command.SHOWN < 15


def test_of_a_run_with_too_few_answers_nothing_is_said(tmp_path, capsys) -> None:
    assert main(["ranks", str(make_run(tmp_path / "few", 18))]) == 0
    out = capsys.readouterr().out
    assert "too few answers to tell whether a rank is slower" in out
    assert "significantly" not in out


def test_a_folder_that_is_no_run_is_left_out_where_others_are_runs(tmp_path, capsys) -> None:
    (tmp_path / "a").mkdir()
    make_run(tmp_path / "b", 18)
    (make_run(tmp_path / "c", 18) / "run.1.json").write_text("{")
    paths = [str(tmp_path / name) for name in "abc"]
    assert main(["ranks", *paths, "--json"]) == 0
    out, err = capsys.readouterr()
    assert [run["run"] for run in json.loads(out)["runs"]] == [paths[1]]
    assert err.count("ranks: left out: ") == 2
    assert f"{paths[0]}: no run here" in err
    assert main(["ranks", paths[2], paths[0]]) == 3  # the last word is the error
    assert main(["ranks", paths[0], paths[2]]) == 4
    assert "Traceback" not in capsys.readouterr().err


def test_a_rank_where_most_of_the_failed_tasks_were_is_named_although_it_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Tasks fail everywhere if the input is bad: then no node is to blame."""

    def fail(run: Results, **failures: int) -> str:
        run.manifest["sessions"] = [{"session": 1, "final": {"world": run.manifest["world"]}}]
        for rank, count in failures.items():
            mine = np.flatnonzero(run.tasks["rank"] == int(rank[1:]))
            run.tasks["outcome"][mine[:count]] = OUTCOME_CODE["failed"]
        main(of_files(monkeypatch, {"a": run}))
        return capsys.readouterr().out

    run = healthy()
    assert "FAILING" not in fail(run, r4=4)
    out = fail(run, r4=6, r1=3, r2=2)
    assert "FAILING node4: rank 4 kept failing (6 failed tasks)\n" in out
    assert "sbatch --exclude=node4\n" in out
    assert "FAILING" not in fail(run, r3=1)
    assert "FAILING" not in fail(a_run({1: 1.0, 2: 1.0}), r1=6)  # two ranks tell too little


def test_of_a_run_without_slow_ranks_only_the_tasks_are_read(tmp_path, monkeypatch, capsys) -> None:
    run, read = make_run(tmp_path / "run", slow_rank=None), []
    stored = reader.rows_of

    def noted(path: Path, table: Any, group: int | None) -> np.ndarray:
        read.append(table.name)
        return stored(path, table, group)

    monkeypatch.setattr(reader, "rows_of", noted)
    assert main(["ranks", str(run)]) == 0
    assert set(read) == {"tasks"}

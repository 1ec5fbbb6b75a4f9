"""`collage-mpi slow-ranks`: what is printed, and whom Slurm leaves out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results_harness import make_run
from test_slow_ranks import a_run

from collage_mpi.cli import main
from collage_mpi.commands import look as command
from collage_mpi.results import Results, reader
from collage_mpi.rows import OUTCOME_CODE
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.runs import simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob


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
    return ["slow-ranks", *named]


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
    assert main(["slow-ranks", str(make_run(tmp_path / "few", 18))]) == 0
    out = capsys.readouterr().out
    assert "too few answers to tell whether a rank is slower" in out
    assert "significantly" not in out


def test_a_folder_that_is_no_run_is_left_out_where_others_are_runs(tmp_path, capsys) -> None:
    (tmp_path / "a").mkdir()
    make_run(tmp_path / "b", 18)
    (make_run(tmp_path / "c", 18) / "manifest.json").write_text("{")
    paths = [str(tmp_path / name) for name in "abc"]
    assert main(["slow-ranks", *paths, "--json"]) == 0
    out, err = capsys.readouterr()
    assert [run["run"] for run in json.loads(out)["runs"]] == [paths[1]]
    assert err.count("slow-ranks: left out: ") == 2
    assert f"{paths[0]}: no run here" in err
    assert main(["slow-ranks", paths[2], paths[0]]) == 3  # the last word is the error
    assert main(["slow-ranks", paths[0], paths[2]]) == 4
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
    stored = reader._stored

    def noted(path: Path, table: Any) -> np.ndarray:
        read.append(table.name)
        return stored(path, table)

    monkeypatch.setattr(reader, "_stored", noted)
    assert main(["slow-ranks", str(run)]) == 0
    assert set(read) == {"tasks"}

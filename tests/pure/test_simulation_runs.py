"""Simulated runs: answers replayed, costs, summaries without rows, seeds, beside a real run."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal

import numpy as np
import pytest
from rows_by_name import cells_of
from simulate_to import simulate_to

from collage_mpi.cli import main
from collage_mpi.core.outcomes import Outcomes
from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.results import read_results, summarise, verify_run
from collage_mpi.results.row_sink import MemoryWriter
from collage_mpi.rows import ABSENT, PRESENT, SOURCE_CODE
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.costs import Costs, costs_of
from collage_mpi.simulation.runs import of_seed, run_job, simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob, read_answers, save_answers

COLLAGE = SOURCE_CODE["collage"]


def fill(path, n=23, side=2, **changed):
    """Answers of which the single is right always, the collage for even images only; image 5's
    cell is absent."""
    labels = np.arange(n) % 4
    arrays = {
        "version": 1, "side": side, "labels": labels,
        "single_class": labels.astype(np.int16), "single_score": np.full(n, 0.9, np.float32),
        "collage_class": np.where(np.arange(n) % 2, (labels + 1) % 4, labels).astype(np.int16),
        "collage_score": np.linspace(0, 1, n, dtype=np.float32),
        "collage_absent": np.arange(n) == 5, "class_names": np.array(list("abcd")),
        **changed,
    }  # fmt: skip
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return str(path)


def test_answers_are_replayed_and_accuracy_follows(tmp_path):
    """Singles never answer: images 20.. wrap to row 0; one in two is wrong, one absent."""
    path = fill(tmp_path / "a.npz")
    job = RunSettings(
        side=2, straggler="pinned", slow_ranks=("1:50", "2:50", "3:50", "4:50"), warmup_groups=0
    )
    status, out = simulate_to(job, tmp_path / "run", 40, answers=path)
    assert status == "complete"
    run = read_results(out)
    rows = np.sort(run.images, order="row")
    assert run.manifest["class_names"] == list("abcd")
    assert (rows["label"] == np.tile(np.arange(20) % 4, 2)).all()
    singles = np.flatnonzero(rows["source"] != COLLAGE)
    assert singles.tolist() == [5, 25]  # absent from the collage
    collage = rows[rows["source"] == COLLAGE]
    assert ((collage["predicted"] == collage["label"]) == (collage["row"] % 2 == 0)).all()
    assert collage["score"] == pytest.approx(np.linspace(0, 1, 23)[collage["row"] % 20])
    assert summarise(run)["accuracy"]["overall"]["accuracy"] == pytest.approx(22 / 40)


def test_a_quick_network_answers_first_and_the_single_one_where_it_is_unsure(tmp_path):
    """The quick one is always wrong, and sure of two images in three."""
    n = 24
    wrong, sure = (np.arange(n) % 4 + 1) % 4, np.arange(n) % 3 > 0
    quick = {
        "stage1_class": wrong.astype(np.int16), "stage1_absent": np.zeros(n, bool),
        "stage1_score": np.where(sure, 0.8, 0.4).astype(np.float32),
    }  # fmt: skip
    without = {f"collage_{what}": None for what in ("class", "score", "absent")}
    path = fill(tmp_path / "a.npz", n, **quick, **without)  # a collage network is not needed
    settings = RunSettings(
        scheme="cascade", side=2, single="s", first=("q",),
        confidence=0.7, batch_cost=0.1, warmup_groups=0,
    )  # fmt: skip
    status, out = simulate_to(settings, tmp_path / "run", n, answers=path)
    rows = np.sort(read_results(out).images, order="row")
    assert status == "complete"
    assert (rows["source"] == SOURCE_CODE["stage1"]).tolist() == sure.tolist()
    assert ((rows["predicted"] != rows["label"]) == sure).all()
    for first, kind, flag in ((("q",), "stage1", "first"), ((), "collage", "collage")):
        arrays = dict.fromkeys(quick) if first else without
        other = fill(tmp_path / f"{kind}.npz", n, **arrays)
        asked = dataclasses.replace(settings, first=first)
        with pytest.raises(DataFault, match=f"no {kind} answers: .* --{flag} W --save-answers"):
            simulate_to(asked, tmp_path / "other", n, answers=other)


def test_it_reads_what_evaluate_saves(tmp_path):
    single = [(i % 3, 0.5) for i in range(10)]
    collage = [None, *single[1:]]
    save_answers(
        tmp_path / "a.npz",
        3,
        np.arange(10),
        {"single": cells_of(single), "collage": cells_of(collage)},
        list("abc") * 4,
    )
    found = read_answers(tmp_path / "a.npz", 3)
    assert len(found.labels) == 9
    assert found.known["collage"]["state"].tolist() == [ABSENT] + [PRESENT] * 8
    assert found.known["single"][4].tolist()[:2] == (1, 0.5)
    assert found.label(np.array([11])) == [2]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"side": 3}, "side 3"),
        ({"version": 2}, "version 2"),
        ({"n": 3}, "a group of side 2 needs 4"),
        ({"single_score": np.zeros(5, np.float32)}, "single_score"),
        ({"collage_absent": np.zeros(23)}, "collage_absent"),
        ({"labels": np.full(23, 9)}, "labels is outside"),
        ({"labels": np.zeros((23, 2), int)}, "labels"),
        ({"single_class": None}, "single_class"),
        ({"class_names": np.array([{}], object)}, "save-answers"),
    ],
)
def test_bad_answers_are_one_message(tmp_path, changed, says):
    with pytest.raises(DataFault, match=says):
        read_answers(tmp_path / fill(tmp_path / "a.npz", **changed), 2)


def test_no_answers_and_no_zip(tmp_path):
    with pytest.raises(EnvironmentFault):
        read_answers(tmp_path / "none.npz", 3)
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "one.npy", np.ones(3))
    for name in ("text.npz", "one.npy"):
        with pytest.raises(DataFault, match="save-answers"):
            read_answers(tmp_path / name, 3)


def test_a_policy_that_needs_scores_needs_answers(tmp_path, capsys):
    words = ["simulate", "--images", "80", "--side", "2", "--straggler", "lognormal"]
    words += ["--confidence", "0.5", "--deadline-ms", "200"]
    words += ["--summary-only"]
    assert main(words) == 2
    assert "--save-answers" in capsys.readouterr().err
    assert main([*words, "--answers", fill(tmp_path / "a.npz")]) == 0
    assert "overall" in capsys.readouterr().out


def test_a_summary_alone_is_that_of_the_rows(tmp_path):
    settings = RunSettings(straggler="lognormal", depth=2, batch=2)
    job = SimulatedJob(
        settings,
        900,
        answers=fill(tmp_path / "a.npz", 1200, side=3, single_class=np.arange(1200) // 300),
        first=459,
        measured_batch_costs={"single": 0.5, "collage": 0.5},
    )
    on_disk = run_job(dataclasses.replace(job, settings=RunSettings.from_mapping(
        {**job.settings.to_dict(), "out": str(tmp_path / "rows")})))  # fmt: skip
    alone = summarise(simulate_in_memory(job))
    for key in ("latency", "price", "accuracy", "parts_ms", "rows", "scheme", "mode"):
        assert json.dumps(alone[key]) == json.dumps(on_disk[key]), key


@pytest.mark.parametrize("taken", [2, 200, 333])
def test_an_interrupted_simulation_is_incomplete_and_not_damaged(
    tmp_path, capsys, monkeypatch, taken
):
    told = []

    def interrupt(outcomes, *args, **more):  # in the midst of an event
        accept(outcomes, *args, **more)
        if outcomes.totals.images >= taken and not told:
            told.append(taken)
            os.kill(os.getpid(), signal.SIGINT)

    accept = Outcomes.accept
    monkeypatch.setattr(Outcomes, "accept", interrupt)
    words = [
        "simulate",
        "--images",
        "9000",
        "--straggler",
        "lognormal",
        "--out",
        str(tmp_path / "a"),
    ]
    before = signal.getsignal(signal.SIGINT)
    assert main(words) == 130
    assert signal.getsignal(signal.SIGINT) is before
    report = verify_run(tmp_path / "a")
    assert report.status == "incomplete"
    assert report.problems == [f"{report.headline}; {report.next_step}"]
    assert taken <= report.rows < 9000
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "a")]) == 6
    assert "simulate again" in capsys.readouterr().out
    assert main(words) == 3
    assert "remove it" in capsys.readouterr().err


def test_rows_in_memory_are_those_given():
    writer = MemoryWriter()
    assert len(writer.results("x", {}).images) == 0  # type: ignore[arg-type]


def figures(told: str) -> dict[str, list[str]]:
    """Scheme -> its cells in the table that simulate prints."""
    lines = (re.split(r"  +", line.strip()) for line in told.splitlines())
    return {line[0]: line[1:] for line in lines if len(line) > 5}


def test_schemes_are_compared_over_all_seeds(tmp_path, capsys):
    """One machine of eight is ten times slower: whoever pulls leaves its images to the others."""
    times_s = np.random.default_rng(0).uniform(0.09, 0.11, (8, 300))
    times_s[3] *= 10
    np.save(tmp_path / "t.npy", times_s)
    words = ["simulate", "--images", "400", "--side", "2", "--seeds", "0-3", "--rate", "15"]
    words += [
        "--schemes",
        "none --assign turn",
        "none --singles 6",
        "hedge --deadline-ms 130 --singles 6",
    ]
    words += ["--straggler", str(tmp_path / "t.npy")]
    told = []
    for jobs in ("1", "2"):
        assert main([*words, "--jobs", jobs]) == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    found = figures(told[0])
    names = ["none", "none, pulled, N = 6", "hedge, pulled after 130 ms, N = 6"]
    assert list(found)[1:] == names
    plain, pulled, _ = (found[name] for name in names)
    assert (plain[0], pulled[0]) == ("5", "7")
    assert float(plain[2]) > 900 > 500 > float(pulled[2])  # P99, ms
    assert "over 4 seeds" in told[0]


@pytest.mark.parametrize(
    ("entry", "code"), [("none --dead-ranks 9:20", 2), ("none --dead-ranks 1:20", 0), ("none", 2)]
)
def test_a_scheme_has_dead_ranks_of_its_own_or_those_of_the_command(entry, code, capsys):
    """There is no rank 8 or 9, so whichever of them is used is refused by its number."""
    words = ["simulate", "--images", "400", "--side", "2", "--straggler", "lognormal"]
    assert main([*words, "--dead-ranks", "8:20", "--schemes", entry]) == code
    assert ("dead rank 9" in capsys.readouterr().err) == ("9:20" in entry)


def test_with_answers_the_table_says_what_a_collage_costs(tmp_path, capsys):
    path = fill(tmp_path / "a.npz", 40)  # the collage is wrong about every other image
    words = ["simulate", "--images", "400", "--side", "2", "--answers", path, "--summary-only"]
    words += ["--schemes", "none", "collage-only --collage-ranks 3"]
    assert main([*words, "--confidence", "0"]) == 0
    *_, (_, _, _, _, _, lost, _) = figures(capsys.readouterr().out).values()
    assert float(lost) == pytest.approx(50, abs=3)


def test_a_seed_draws_service_times_poisson_arrivals_and_other_images():
    job = SimulatedJob(RunSettings(straggler="lognormal"), 90)
    poisson = SimulatedJob(RunSettings(rate=9.0), 90)
    closed, opened = of_seed(job, 4), of_seed(poisson, 7)
    assert (closed.settings.straggler_seed, opened.settings.straggler_seed) == (4, 7)
    times_ns = [settings.arrival_times_ns(90) for settings in (poisson.settings, opened.settings)]
    assert not np.array_equal(*times_ns)
    assert (closed.first, opened.first) == (360, 630)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--images", "90"], 2),
        (["--summary-only"], 2),
        (["--images", "0", "--summary-only"], 2),
        (["--images", "90", "--seeds", "x"], 2),
        (["--images", "90", "--seeds", "10000"], 2),
        (["--images", "90", "--seeds", "1", "--out", "x"], 2),
        (["--images", "90", "--summary-only", "--seeds", "1", "--jobs", "0"], 2),
        (["--images", "90", "--summary-only", "--send-us", "-1"], 2),
        (["--images", "90", "--summary-only", "--costs", "no.json"], 3),
        (["--images", "90", "--summary-only", "--answers", "no.npz"], 3),
        (["--images", "90", "--summary-only", "--teams", "2"], 2),
        (["--images", "90", "--summary-only", "--teams", "2", "--seeds", "1,2"], 2),
    ],
)
def test_what_cannot_work_is_one_message(words, code, capsys):
    assert main(["simulate", *words]) == code
    assert "Traceback" not in capsys.readouterr().err


@pytest.fixture
def as_if_real(tmp_path):
    """A run whose rows were simulated with known costs, and that says so of its rank 0."""
    settings = RunSettings(straggler="lognormal:100:0.4", cost_ratio=1.2, out=str(tmp_path / "run"))
    costs = Costs(70_000, 50_000, 90_000, 400_000, 3_000_000)
    _, out = simulate_to(settings, tmp_path / "run", 900, costs)
    path = out / "jobs" / "0001.json"
    content = json.loads(path.read_text())
    content["facts"]["final"]["rank0"] = {"receive_ns": 70_000.4, "send_ns": 5e4, "encode_ns": 9e4}
    content["facts"]["final"]["idle_service_ns"] = {"single": 3_000_000}
    path.write_text(json.dumps(content))
    return out, costs


def test_costs_are_measured_from_a_run(as_if_real):
    out, costs = as_if_real
    found = costs_of(read_results(out))
    assert dataclasses.replace(found, network_ns=0) == dataclasses.replace(costs, network_ns=0)
    # a task's answer may also have waited for rank 0 to be done with another
    assert found.network_ns == pytest.approx(costs.network_ns, rel=0.1)


def test_a_simulation_takes_the_costs_of_a_run(as_if_real, tmp_path, capsys):
    out, costs = as_if_real
    words = ["simulate", "--images", "90", "--costs", str(out), "--send-us", "7"]
    assert main([*words, "--out", str(tmp_path / "simulated")]) == 0
    told = read_results(tmp_path / "simulated").manifest["simulated"]["costs"]
    assert (told["send_ns"], told["encode_ns"]) == (7_000, costs.encode_ns)


def test_ranks_of_one_task_each_found_it_idle(as_if_real):
    run = read_results(as_if_real[0])
    run.tasks["rank"] = np.arange(len(run.tasks))
    run.tasks["sent_ns"], run.tasks["done_ns"], run.tasks["compute_ns"] = 0, 10**9, 4 * 10**6
    assert costs_of(run).network_ns == (10**9 - 4 * 10**6) // 2


def test_no_way_takes_less_than_no_time(as_if_real):
    """Rank 0's clock and a rank's own may disagree by more than the way."""
    run = read_results(as_if_real[0])
    run.tasks["compute_ns"] += 10**9
    assert costs_of(run).network_ns == 0


def test_a_simulation_has_no_predictions_to_export(tmp_path, capsys):
    words = ["simulate", "--images", "90", "--straggler", "lognormal"]
    for more in (["--summary-only"], ["--out", str(tmp_path / "run")]):
        assert main([*words, *more]) == 0
        told = capsys.readouterr().out
        assert "wasted work" in told
        assert "export" not in told
        assert "predictions" not in told


def test_a_run_that_measured_no_costs_says_so(tmp_path):
    _, out = simulate_to(RunSettings(straggler="pinned"), tmp_path / "run", 90)
    with pytest.raises(DataFault, match="real run"):
        costs_of(read_results(out))

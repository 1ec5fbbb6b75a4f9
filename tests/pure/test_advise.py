"""Which scheme is advised for a trace or a run: by hand, and for traces whose answer is known."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from paper import paper
from simulate_to import question_of, simulate_to

from collage_mpi.cli import main
from collage_mpi.commands.advise import AdviseArguments, _question
from collage_mpi.results import read_results
from collage_mpi.results.rows import OUTCOME_CODE
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.advice import (
    Candidate,
    _job,
    best_of,
    candidates,
    groups_of,
    simulated,
    simulated_one,
)
from collage_mpi.simulation.costs import Costs
from collage_mpi.simulation.replayed_answers import Answers, save_answers

FEW = ["--side", "2", "--placements", "4", "--groups", "130"]
PLAIN = Candidate({"scheme": "none"}, "none", 10, 100.0, 1000.0, 0.95, 0.0, lossless=True)


def slow_machine() -> np.ndarray:
    """(8, 300) seconds: one machine ten times slower all along."""
    times_s = np.random.default_rng(0).uniform(0.09, 0.11, (8, 300))
    times_s[3] *= 10
    return times_s


def heavy_requests() -> np.ndarray:
    """(8, 300): machines alike, one request of twenty takes ten times as long."""
    rng = np.random.default_rng(0)
    return np.where(rng.random((8, 300)) < 0.05, 1.0, 0.1) * rng.uniform(0.95, 1.05, (8, 300))


def saved(path: Path, times_s: np.ndarray) -> str:
    np.save(path, times_s)
    return str(path)


def asked(capsys, *words: str) -> dict:
    assert main(["advise", *words, *FEW, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("requests", "placements", "groups"),
    [(10, 12, 33), (10, 1, 370), (60, 12, 60), (300, 12, 200), (300, 1, 370)],
)
def test_few_times_are_replayed_no_oftener_than_a_p99_needs(requests, placements, groups):
    assert groups_of(np.ones((9, requests)), placements) == groups


def test_a_short_run_is_advised_in_few_groups_and_told_to_be_rough(tmp_path, capsys):
    simulate_to(RunSettings(scheme="none", straggler="lognormal"), tmp_path / "run", 90)
    assert main(["advise", str(tmp_path / "run")]) == 0
    told = capsys.readouterr()
    assert "Simulated: 12 placements of 33 groups each." in told.out
    assert "n/a" not in told.out  # a P99 of every scheme
    assert "ROUGH: 9 ranks with" in told.out
    assert "of 10 schemes" in told.err
    assert main(["advise", saved(tmp_path / "t.npy", heavy_requests()), "--groups", "3"]) == 0
    told = capsys.readouterr().out
    assert "Simulated: 12 placements of 3 groups each." in told
    assert "ROUGH" not in told  # 2,400 times


def test_the_fastest_that_costs_no_more_than_may_be_lost():
    first = replace(PLAIN, label="collage", ranks=12, p99_ms=200.0, accuracy=0.94, lossless=False)
    sure = replace(first, label="confident", p99_ms=400.0, accuracy=0.949)
    copies = replace(PLAIN, label="replicate", ranks=19, p99_ms=100.0)
    found = [PLAIN, first, sure, copies]
    assert first.points_lost(PLAIN) == pytest.approx(1)
    assert copies.points_lost(PLAIN) == 0
    assert best_of(found, 12, 0.2) is sure
    assert best_of(found, 12, 1.1) is first
    assert best_of(found, 12, 0.0) is PLAIN
    assert best_of(found, 19, 0.2) is copies


def test_what_gains_too_little_or_is_not_known_is_not_chosen():
    little = replace(PLAIN, label="hedge", p99_ms=960.0)
    unknown = replace(PLAIN, label="collage", p99_ms=10.0, accuracy=None, lossless=False)
    short = replace(PLAIN, label="short", p99_ms=None)
    assert unknown.points_lost(PLAIN) is None
    assert best_of([PLAIN, little, unknown, short], 12, 100) is PLAIN
    assert best_of([PLAIN, replace(little, p99_ms=950.0)], 12, 0) is not PLAIN


def test_all_but_the_last_have_the_ranks_that_were_asked_for():
    question = question_of(slow_machine(), side=2, spare=2, placements=1, groups=3)
    found = simulated(question, lambda more: None)
    few = [one.ranks for one in found if one.flags.get("collage_ranks") == 3]
    assert few == [4]  # collage-only is compared on three ranks too
    assert {one.ranks for one in found[1:-1]} == {7, 4}
    assert (found[0].ranks, found[-1].ranks, found[-1].label[:9]) == (5, 9, "replicate")


def test_what_neither_a_flag_nor_a_run_says_is_a_collage_of_nine_that_costs_as_much(tmp_path):
    question = _question(AdviseArguments(source=saved(tmp_path / "t.npy", slow_machine())))
    known = question.side, question.cost_ratio, question.batch_cost, question.confidence
    assert known == (3, 1.0, 1.0, None)
    assert question.costs == Costs()


def test_without_answers_of_a_collage_no_collage_is_compared():
    question = question_of(slow_machine(), side=2, spare=2, confidence=0.9)
    quick = Answers(2, ("a",), [0] * 4, {"single": [], "backup": []})
    names = {flags["scheme"] for flags in candidates(question, quick)}
    assert names == {"none", "hedge", "cascade-batch", "replicate"}
    both = replace(quick, known={**quick.known, "collage": []})
    names = {flags["scheme"] for flags in candidates(question, both)}
    assert {"cascade", "collage", "collage-only"} < names


def test_of_one_slow_machine_it_is_enough_to_know(tmp_path, capsys):
    found = asked(capsys, saved(tmp_path / "t.npy", slow_machine()))
    assert (found["best"]["flags"]["scheme"], found["best"]["lossless"]) == ("none", True)
    assert found["best"]["flags"].get("assign") == "finish"
    plain = found["candidates"][0]
    assert plain["p99_ms"] > 900 > 500 > found["best"]["p99_ms"]
    assert found["tail"]["spell_requests"] is None  # it is slow all along
    assert found["tail"]["weight"] == pytest.approx(10, rel=0.2)
    words = shlex.split(found["command"])
    assert words[:6] == ["collage-mpi", "launch", "-n", "7", "--", "run"]
    assert words[words.index("--side") + 1] == "2"
    assert words[-4:] == ["--assign", "finish", "--out", "DIR"]


def test_a_tail_in_the_requests_asks_for_redundancy_that_is_cheap(tmp_path, capsys):
    trace = saved(tmp_path / "t.npy", heavy_requests())
    found = asked(capsys, trace, "--batch-cost", "0.05", "--spare", "3")
    assert found["best"]["flags"]["scheme"] == "hedge"
    each = {one["flags"]["scheme"]: one for one in found["candidates"]}
    assert each["collage"]["points_lost"] is None
    assert found["tail"]["spell_requests"] == pytest.approx(1 / 0.95, rel=0.1)
    assert found["best"]["lossless"]


def test_rare_slow_requests_ask_for_a_copy_at_a_fixed_time(tmp_path, capsys):
    rng = np.random.default_rng(0)
    times_s = np.where(rng.random((8, 900)) < 0.01, 1.0, 0.1) * rng.uniform(0.95, 1.05, (8, 900))
    found = asked(capsys, saved(tmp_path / "t.npy", times_s))
    own = {"hedge_ms": 130.0, "assign": "finish"}  # 1.3 medians of 100 ms
    assert found["best"]["flags"] == {"scheme": "hedge", "singles": 6, **own}
    assert found["best"]["p99_ms"] < 0.3 * found["candidates"][0]["p99_ms"]  # 231 of 1022
    assert "--hedge-ms 130.0" in found["command"]


def test_with_answers_the_price_is_known(tmp_path, capsys):
    n = 40
    right = [(i % 4, 0.95) for i in range(n)]
    wrong = [((i + (i % 4 == 0)) % 4, 0.95) for i in range(n)]  # a quarter of the cells
    save_answers(tmp_path / "a2.npz", 2, np.arange(n) % 4, {"single": right, "collage": wrong},
                 list("abcd"))  # fmt: skip
    trace = saved(tmp_path / "t.npy", heavy_requests())
    answers = ["--answers", str(tmp_path / "a{side}.npz")]
    words = [trace, "--cost-ratio", "0.5"]
    found = asked(capsys, *words, *answers)
    collages = [one for one in found["candidates"] if one["flags"]["scheme"] == "collage"]
    assert [one["flags"]["accept"] for one in collages] == ["first", "first", "confident"]
    lost = [one["points_lost"] for one in collages]
    assert 0 < min(lost) <= max(lost) < 26, lost
    assert found["best"]["flags"]["scheme"] != "collage"
    found = asked(capsys, *words, *answers, "--points", "30")
    assert found["best"]["flags"]["scheme"] in ("collage", "collage-only")


BALANCED = "shipped:fashion_collage_side3_balanced.safetensors"  # sure from 0.8515 on


def sure_words(path: Path) -> list[str]:
    """Machines alike; cells that are right where they are sure: eight of nine."""
    n = 90
    right = [(i % 5, 0.95) for i in range(n)]
    cells = [((i + (i % 9 == 0)) % 5, 0.1 if i % 9 == 0 else 0.95) for i in range(n)]
    answers = {"single": right, "collage": cells}
    save_answers(path / "a3.npz", 3, np.arange(n) % 5, answers, list("abcde"))
    even = saved(path / "t.npy", np.random.default_rng(0).uniform(0.09, 0.11, (12, 300)))
    words = ["advise", even, "--answers", str(path / "a3.npz"), "--cost-ratio", "0.5"]
    return [*words, "--placements", "1", "--groups", "372"]


def test_a_cascade_serves_most_and_what_is_unsure_costs_nothing(tmp_path, capsys):
    words = [*sure_words(tmp_path), "--collage", BALANCED]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    cascade = next(one for one in found["candidates"] if one["flags"]["scheme"] == "cascade")
    assert (cascade["points_lost"], cascade["flags"]["confidence"]) == (0, 0.8515)
    plain = found["candidates"][0]
    assert plain["images_per_s"] == pytest.approx(90, rel=0.05)
    # Nine images for half a service time and one of them again, on 11 ranks.
    assert cascade["images_per_s"] == pytest.approx(6 * 110, rel=0.1)
    assert found["most_images"]["flags"] == cascade["flags"]
    assert 0.03 < cascade["wasted"] < 0.12  # the unsure cell, audits, copies of the end game
    assert found["best"]["flags"]["scheme"] != "cascade"
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "is not compared" not in told
    assert "For the most images/s choose cascade, confident 0.8515: " in told
    assert "for 0.00 points of accuracy and " in told
    assert told.strip().splitlines()[-1].startswith("collage-mpi launch -n 12 -- run ")


def test_where_more_arrive_than_singles_serve_a_cascade_is_the_soonest(tmp_path, capsys):
    words = [*sure_words(tmp_path), "--collage", BALANCED]
    assert main([*words, "--rate", "165", "--json"]) == 0  # 11 single ranks serve 110
    found = json.loads(capsys.readouterr().out)
    assert found["best"]["flags"]["scheme"] == "cascade"
    assert found["most_images"] is None
    assert "--scheme cascade --collage-ranks 2 --accept confident" in found["command"]
    assert "fashion_collage_side3_balanced.safetensors" in found["command"]
    plain = found["candidates"][0]
    assert plain["p99_ms"] > 10 * found["best"]["p99_ms"]


def test_without_a_threshold_a_cascade_is_not_compared_and_that_is_said(tmp_path, capsys):
    words = [*sure_words(tmp_path)[:-2], "--groups", "4", "--rate", "20"]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "Scheme cascade is not compared: it needs --answers FILE" in told
    assert "Open loop: 20 images a second arrive. Latency of an image." in told
    assert "For the most images/s" not in told
    assert "collage-only, pulled, M = 11, 4 copies" in told


def test_in_open_loop_a_latency_is_an_images_and_each_placement_has_arrivals_of_its_own(tmp_path):
    question = question_of(np.full((12, 300), 0.1), placements=2, groups=30, rate=20.0)
    found = simulated_one(question, {"scheme": "none"})
    assert found.p50_ms == pytest.approx(100, rel=0.05)  # nine images take 450 ms to come
    seeds = [_job(question, {"scheme": "none"}, seed).settings.arrival_seed for seed in (0, 1)]
    assert seeds == [0, 1]


def test_the_collage_network_of_a_run_is_known(tmp_path):
    shipped = RunSettings(straggler="pinned", accept="first", collage=BALANCED)
    gone = replace(shipped, collage=str(tmp_path / "gone.safetensors"))
    for name, settings, score in (("a", shipped, 0.8515), ("b", gone, None)):
        simulate_to(settings, tmp_path / name, 90)
        assert _question(AdviseArguments(source=str(tmp_path / name))).confidence == score


def test_a_run_is_asked_of_with_what_it_measured(tmp_path, capsys):
    settings = paper(side=2, scheme="collage", straggler="lognormal", cost_ratio=0.5)
    simulate_to(settings, tmp_path / "run", 4 * 60)
    assert main(["advise", str(tmp_path / "run"), *FEW[2:]]) == 0
    shown = capsys.readouterr().out
    assert "points lost" in shown
    assert "P99 is 1.5 x the median, a slow spell lasts 1.11 requests, 0.12 x" in shown
    assert "Choose " in shown
    assert "collage-mpi launch -n " in shown
    assert "evaluate --save-answers" in shown


def test_of_a_run_with_a_slow_rank_no_time_is_left_out(tmp_path):
    settings = RunSettings(scheme="none", side=2, straggler="lognormal", slow_ranks=("2:10",))
    simulate_to(settings, tmp_path / "run", 4 * 60)
    found = read_results(tmp_path / "run").measured_tasks
    found = found[found["outcome"] == OUTCOME_CODE["answered"]]
    most = max(np.unique(found["rank"], return_counts=True)[1])
    times_s = _question(AdviseArguments(source=str(tmp_path / "run"))).times_s
    assert times_s.shape == (4, most)
    medians = sorted(np.median(times_s, axis=1))
    assert medians[3] > 5 * medians[2]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--spare", "0"], 2, "--spare is 0; it needs at least 1"),
        (["--placements", "0"], 2, "at least 1"),
        (["--groups", "2"], 2, "at least 3"),
        (["--rate", "0"], 2, "--rate is 0.0; it needs a positive number"),
        (["--collage", "null"], 2, "--collage null has no threshold, which scheme cascade needs"),
        (["--collage", "gone.safetensors"], 3, "gone.safetensors"),
        (
            ["--side", "2", "--collage", BALANCED],
            2,
            "has side 3, but the schemes are compared at side 2",
        ),
        (["--side", "99"], 2, "side is 99"),
        (["--cost-ratio", "-1"], 2, "cost_ratio"),
        (["--answers", "gone.npz"], 3, "gone.npz"),
    ],
)
def test_what_cannot_be_asked_is_one_message(words, code, says, tmp_path, capsys):
    assert main(["advise", saved(tmp_path / "t.npy", slow_machine()), *words]) == code
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told


def test_what_is_neither_trace_nor_run_is_one_message(tmp_path, capsys):
    (tmp_path / "t.npy").write_bytes(b"no numbers")
    assert main(["advise", str(tmp_path / "t.npy")]) == 4
    assert "no .npy file" in capsys.readouterr().err
    assert main(["advise", str(tmp_path)]) == 3

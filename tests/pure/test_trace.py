"""Traces from runs, models from traces, and back."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from simulate_to import simulate_to

from collage_mpi.cli import main
from collage_mpi.errors import DataFault
from collage_mpi.results import read_results
from collage_mpi.results.rows import KIND_CODE, OUTCOME_CODE
from collage_mpi.results.slow_ranks import record_trace
from collage_mpi.settings.files import read_settings_file
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.costs import Costs
from collage_mpi.workload.fitting import fit_trace, ks_distance
from collage_mpi.workload.straggler_settings import StragglerSettings, make_delays
from collage_mpi.workload.trace import load_trace


@pytest.fixture
def trace(tmp_path):
    times = np.random.default_rng(1).lognormal(-2, 0.3, (5, 40)).astype(np.float32)
    np.save(tmp_path / "t.npy", times)
    return tmp_path / "t.npy"


def test_a_recorded_run_is_the_trace_that_it_followed(trace, tmp_path):
    """Drained and without redundancy every rank serves every group: its row, in order."""
    job = RunSettings(
        scheme="none", side=2, between="drain", warmup_groups=3, straggler="trace",
        trace_file=str(trace), straggler_seed=2, assign="turn", endgame="off",
    )  # fmt: skip
    simulate_to(job, tmp_path / "run", 4 * 30, Costs())
    assert main(["trace", "record", str(tmp_path / "run"), "--out", str(tmp_path / "r.npy")]) == 0
    found = load_trace(str(tmp_path / "r.npy"))
    draw = make_delays(job).draw_ns
    expected = [[draw(rank, group, 1) / 1e9 for group in range(3, 30)] for rank in range(1, 5)]
    assert found == pytest.approx(np.array(expected), rel=1e-6)
    # the recorded trace drives a run in its turn
    again = RunSettings(straggler="trace", trace_file=str(tmp_path / "r.npy"), side=2)
    assert simulate_to(again, tmp_path / "again", 40)[0] == "complete"
    assert main(["trace", "record", str(tmp_path / "run"), "--out", str(tmp_path / "r.npy")]) == 3


def test_rows_are_cut_to_the_shortest_and_short_ones_can_be_left_out(tmp_path, capsys):
    job = RunSettings(straggler="pinned", slow_ranks=("2:30",), side=2, warmup_groups=0)
    simulate_to(job, tmp_path / "run", 400)
    run = read_results(tmp_path / "run")
    all_rows = record_trace([run])
    assert all_rows.times_s.shape[0] == 4
    assert all_rows.cut > 100
    wanted = (run.measured_tasks["outcome"] == OUTCOME_CODE["answered"]) & (
        run.measured_tasks["kind"] == KIND_CODE["single"]
    )
    assert all_rows.cut + all_rows.times_s.size == wanted.sum()
    kept = record_trace([run, run], least=50)
    assert kept.times_s.shape[0] == 6
    assert [rank for _, rank, _ in kept.short] == [2, 2]
    with pytest.raises(DataFault, match="longer run"):
        record_trace([run], least=10**6)


def test_later_sessions_follow_and_what_took_no_time_is_left_out(tmp_path):
    """Each session has a clock of its own, which begins anew."""
    job = RunSettings(scheme="none", straggler="lognormal", side=2, warmup_groups=0)
    simulate_to(job, tmp_path / "run", 400)
    run = read_results(tmp_path / "run")
    whole = record_trace([run])
    tasks = run.tasks.copy()
    half = int(np.median(tasks["done_ns"]))
    later = tasks["done_ns"] > half
    tasks["session"][later] = 2
    for clock in ("sent_ns", "done_ns"):
        tasks[clock][later] -= half
    found = record_trace([replace(run, tasks=tasks)])
    assert np.array_equal(found.times_s, whole.times_s)
    idle = tasks["rank"] == 1
    tasks["compute_ns"][idle] = tasks["held_ns"][idle] = 0
    found = record_trace([replace(run, tasks=tasks)])
    assert [rank for _, rank, _ in found.short] == [1]
    assert found.times_s.min() > 0


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("lognormal", {"sigma": 0.35}),
        ("pareto", {"tail": 2.5}),
        ("bimodal", {"sigma": 0.2, "slow_share": 0.1, "slow_factor": 5.0}),
        ("markov", {"sigma": 0.2, "slow_share": 0.15, "slow_factor": 5.0, "spell_s": 4.0}),
    ],
)
def test_a_fit_finds_the_parameters_that_made_a_trace(model, more, seed):
    settings = StragglerSettings(
        model, seed, 120, **{f"straggler_{name}": value for name, value in more.items()}
    )
    draw = make_delays(settings).draw_ns
    times = np.empty((25, 800))
    for rank in range(25):
        at_ns = 0
        for request in range(800):
            service_ns = draw(rank + 1, request, 1, at_ns)
            times[rank, request] = service_ns / 1e9
            at_ns += service_ns
    fits = {fit.model: fit for fit in fit_trace(times)}
    fit = fits[model]
    assert fit.settings["straggler_median_ms"] == pytest.approx(120, rel=0.03)
    loose = {"spell_s": 0.3, "slow_share": 0.3}
    for name, value in more.items():
        found = fit.settings[f"straggler_{name}"]
        assert found == pytest.approx(value, rel=loose.get(name, 0.06)), name
    assert fit.ks < 0.03
    if model in ("lognormal", "pareto"):
        assert "markov" not in fits or fits["markov"].ks > fit.ks
    else:
        assert fits["lognormal"].ks > 2 * fit.ks


def test_ks_distance_by_hand():
    assert ks_distance(np.array([1.0, 2.0]), lambda t: t / 2) == pytest.approx(0.5)
    assert ks_distance(np.array([5.0]), lambda t: np.zeros_like(t)) == 1.0


def test_the_fit_command_prints_flags_that_work_and_writes_only_when_asked(trace, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert main(["trace", "fit", str(trace)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " KS " in line]
    assert sorted(tmp_path.iterdir()) == before
    words = lines[0].split("   ")[1].split()
    out = str(tmp_path / "run")
    assert main(["simulate", "--images", "90", "--out", out, *words]) == 0
    saved = str(tmp_path / "fit.toml")
    more = ["--model", "lognormal", "--row", "1", "--out", saved]
    assert main(["trace", "fit", str(trace), *more]) == 0
    job = RunSettings.from_mapping(read_settings_file(tmp_path / "fit.toml"))
    assert job.straggler == "lognormal"
    assert job.straggler_sigma == pytest.approx(0.3, abs=0.12)
    assert main(["trace", "fit", str(trace), *more]) == 3  # it is there already


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["fit", "{t}", "--row", "5"], 2, "rows 0 to 4"),
        (["fit", "{t}", "--model", "cauchy"], 2, "cauchy"),
        (["fit", "nothing.npy"], 3, "nothing.npy"),
        (["record", "nothing", "--out", "x.npy"], 3, "nothing"),
        (["record", "nothing", "--out", "x.txt"], 2, ".npy"),
    ],
)
def test_bad_input_is_one_message(trace, words, code, says, capsys):
    assert main(["trace", *(word.format(t=trace) for word in words)]) == code
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told


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
    words = ["--images", "90", "--straggler", "trace", "--trace-file", str(path)]
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

"""Open loop: times of arrival, latencies from the intended one, what overload looks like."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paper import paper
from simulate_to import simulate_to

from collage_mpi.cli import main
from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.results import read_results, summarise, verify_run
from collage_mpi.settings import run_settings
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.costs import Costs
from collage_mpi.workload.arrivals import ClosedLoop, OpenLoop, load_times_ns, poisson_times_ns

FREE = Costs(receive_ns=0, send_ns=0, encode_ns=0, network_ns=0)
S_NS = 1_000_000_000


def test_poisson_times_have_their_rate_and_are_a_prefix_of_longer_ones():
    times = poisson_times_ns(200.0, 3, 20_000)
    gaps_s = np.diff(times) / 1e9
    assert gaps_s.mean() == pytest.approx(1 / 200, rel=0.03)
    assert gaps_s.std() == pytest.approx(1 / 200, rel=0.03)
    assert (poisson_times_ns(200.0, 3, 100) == times[:100]).all()
    assert (poisson_times_ns(200.0, 4, 100) != times[:100]).any()


def test_times_from_files(tmp_path):
    times = np.array([0.0, 0.5, 0.5, 2.25])
    np.save(tmp_path / "t.npy", times)
    (tmp_path / "t.txt").write_text("# seconds\n0\n0.5  # twice\n\n5e-1\n2.25\n")
    for name in ("t.npy", "t.txt"):
        found = load_times_ns(str(tmp_path / name), 3)
        assert found.tolist() == [0, S_NS // 2, S_NS // 2]


@pytest.mark.parametrize(
    ("content", "fault", "says"),
    [
        ("0\n2\n1\n", DataFault, "before time 1"),
        ("0\n-2\n1\n", DataFault, "time 1 is -2"),
        ("0\nnan\n1\n", DataFault, "time 1 is nan"),
        ("0\n1\n", DataFault, "--limit 2"),
        ("", DataFault, "--limit 0"),
        ("a b", DataFault, "no list of numbers"),
        (None, EnvironmentFault, "cannot be read"),
        (np.ones((2, 2)), DataFault, "shape"),
        (np.array(["a"]), DataFault, "numbers"),
    ],
)
def test_a_bad_file_is_one_message_before_anything_starts(content, fault, says, tmp_path):
    path = tmp_path / "t.txt"
    if isinstance(content, np.ndarray):
        path = tmp_path / "t.npy"
        np.save(path, content)
    elif content is not None:
        path.write_text(content)
    job = RunSettings(arrival_file=str(path))
    with pytest.raises(fault, match=says):
        simulate_to(job, tmp_path / "out", 3)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"rate": 0.0},
        {"rate": float("nan")},
        {"rate": 5.0, "arrival_file": "x"},
        {"rate": 5.0, "between": "drain"},
        {"arrival_file": "x", "between": "drain"},
    ],
)
def test_settings_that_contradict_each_other(wrong):
    with pytest.raises(UsageError):
        RunSettings(**wrong)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=60),
)
def test_nobody_enters_early_twice_or_beyond_the_window(gaps, steps):
    times = np.cumsum(np.array(gaps, np.int64))
    loop = OpenLoop(times)
    loop.start(1000)
    now, room, seen = 1000, 0, []
    for wait, more in steps:
        now += wait
        if more:
            loop.admit(now, more)
            room += more
        due = loop.due(now)
        t0s, asked = loop.enter(now, due) if due else (np.empty(0, np.int64), 0)
        assert due == len(t0s) <= room
        assert asked <= now
        assert (t0s <= now).all()
        room -= due
        seen += t0s.tolist()
        upcoming = loop.next_ns(now)
        if upcoming is not None:
            assert upcoming > now  # what is due has entered
        assert loop.waiting == (room > 0)
    assert seen == (1000 + times[: len(seen)]).tolist()


def test_closed_loop_gives_all_of_a_request_its_time():
    loop = ClosedLoop()
    loop.admit(5, 3)
    loop.admit(9, 2)
    assert loop.due(20) == 3
    assert loop.enter(20, 2) == (5, 5)
    assert loop.enter(21, loop.due(21)) == (5, 5)
    assert loop.enter(22, loop.due(22)) == (9, 9)
    assert not loop.waiting
    assert loop.next_ns(30) is None


def latencies_ms(
    tmp_path, images: int, costs: Costs = FREE, dead: tuple[str, ...] = (), **settings
) -> np.ndarray:
    """(images,) in the order of arrival."""
    job = paper(warmup_groups=0, **settings)
    status, out = simulate_to(job, tmp_path / "run", images, costs, dead_ranks=dead)
    assert status == "complete"
    assert verify_run(out).ok
    rows = np.sort(read_results(out).images, order="row")
    return rows["latency_ns"] / 1e6


def test_one_rank_waits_as_pollaczek_and_khinchine_say(tmp_path):
    """M/D/1: mean wait = rho S / (2 (1 - rho))."""
    found = latencies_ms(
        tmp_path, 9000, scheme="none", singles=1, straggler="pinned:10", rate=50.0,
    )  # fmt: skip
    assert found.mean() - 10 == pytest.approx(0.5 * 10 / (2 * 0.5), rel=0.06)


def test_overload_grows_in_time_whatever_the_window_and_is_said(tmp_path, monkeypatch):
    """100 images/s at a rank that does 50: image i waits some 10 ms x i. No omission."""
    common = {
        "scheme": "none", "singles": 1, "straggler": "pinned:20",
        "rate": 100.0,
    }  # fmt: skip
    wide = latencies_ms(tmp_path / "wide", 2000, **common)
    monkeypatch.setattr(run_settings, "OPEN_WINDOW", 9)
    monkeypatch.setattr(run_settings, "OPEN_WINDOW_A_RANK", 9)
    narrow = latencies_ms(tmp_path / "narrow", 2000, **common)
    assert narrow == pytest.approx(wide)
    times_ms = poisson_times_ns(100.0, 0, 2000) / 1e6
    assert wide[-1] == pytest.approx(times_ms[0] + 2000 * 20 - times_ms[-1], rel=0.02)
    summary = summarise(read_results(tmp_path / "wide" / "run"))
    assert summary["arrivals"]["overloaded"]
    assert summary["arrivals"]["offered_per_s"] == pytest.approx(100, rel=0.06)
    assert summary["arrivals"]["served_per_s"] == pytest.approx(50, rel=0.06)
    assert "open loop, poisson 100/s" in summary["mode"]


def test_one_image_has_no_rate(tmp_path):
    common = {"scheme": "none", "singles": 1, "rate": 100.0}
    for images, known in ((1, False), (2, True)):
        latencies_ms(tmp_path / str(images), images, **common)
        summary = summarise(read_results(tmp_path / str(images) / "run"))
        assert (summary["arrivals"] is not None) == known


def test_of_few_images_nobody_says_that_they_are_too_many(tmp_path):
    common = {
        "scheme": "none", "singles": 1, "straggler": "pinned:20",
        "rate": 100.0,
    }  # fmt: skip
    for images, known in ((199, None), (200, True)):
        latencies_ms(tmp_path / str(images), images, **common)
        summary = summarise(read_results(tmp_path / str(images) / "run"))
        assert summary["arrivals"]["overloaded"] is known


def test_a_load_that_is_served_is_no_overload(tmp_path, capsys):
    words = ["--rate", "50", "--straggler", "pinned"]
    out = str(tmp_path / "run")
    assert main(["simulate", "--images", "900", "--out", out, *words]) == 0
    told = capsys.readouterr().out
    assert "offered load" in told
    assert "OVERLOADED" not in told


def test_the_deadline_counts_from_each_image_s_own_arrival(tmp_path):
    times = tmp_path / "t.txt"
    times.write_text("0\n0.1\n0.2\n0.3\n")
    slow = {"straggler": "pinned:10000", "side": 2}
    file = {"arrival_file": str(times)}
    found = latencies_ms(
        tmp_path / "a",
        4,
        confidence=1.0,
        deadline_ms=900.0,
        cost_ratio=0.01,
        **slow,
        **file,
    )
    assert found == pytest.approx([900, 900, 900, 900])  # the collage's answer is there at 400

"""Delay draws: seeded, keyed as documented, with the quantiles they promise."""

from __future__ import annotations

import numpy as np
import pytest

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.workload.arrivals import load_trace
from collage_mpi.workload.straggler_settings import StragglerSettings, make_delays


def draws_ms(settings: StragglerSettings, ranks=range(1, 6), groups=range(400)) -> np.ndarray:
    model = make_delays(settings)
    return np.array([[model.draw_ns(r, g, 1) for g in groups] for r in ranks]) / 1e6


def test_none_injects_nothing():
    assert make_delays(StragglerSettings()).draw_ns(1, 0, 1) == 0


SHOWN = {
    "none": "no injected delay",
    "trace": "trace times {x}.npy, seed 0",
    "lognormal": "lognormal, median 80 ms, sigma 0.2, seed 0",
    "bimodal": "bimodal, median 80 ms, sigma 0.2, seed 0",
    "markov": "markov, median 80 ms, sigma 0.2, seed 0",
    "pinned": "constant 80 ms",
}


@pytest.mark.parametrize("model", SHOWN)
def test_every_model_draws_and_is_described(tmp_path, model):
    path = tmp_path / "times {x}.npy"
    np.save(path, np.full((2, 3), 0.08))
    given = {"none": "none", "trace": str(path)}.get(model, f"{model}:80")
    settings = StragglerSettings(given)
    assert settings.describe_delays() == SHOWN[model]
    assert (make_delays(settings).draw_ns(1, 0, 1) > 0) == (model != "none")


def test_lognormal_has_its_median_and_sigma():
    found = draws_ms(StragglerSettings("lognormal:80:0.3", straggler_seed=3))
    assert np.median(found) == pytest.approx(80, rel=0.03)
    assert np.log(found).std() == pytest.approx(0.3, rel=0.06)


def test_a_draw_depends_on_its_key_only():
    settings = StragglerSettings("lognormal", straggler_seed=3)
    first, again = make_delays(settings), make_delays(settings)
    assert first.draw_ns(2, 7, 1) == again.draw_ns(2, 7, 1)
    assert first.draw_ns(2, 7, 1) != first.draw_ns(2, 7, 2)
    other = make_delays(StragglerSettings("lognormal", straggler_seed=4))
    assert first.draw_ns(2, 7, 1) != other.draw_ns(2, 7, 1)


def test_slow_ranks_are_slower_by_their_factor():
    plain = draws_ms(StragglerSettings("lognormal", straggler_seed=1))
    slow = draws_ms(StragglerSettings("lognormal", straggler_seed=1, slow_ranks=("2:5.0",)))
    assert slow[1] == pytest.approx(5 * plain[1], rel=1e-6)
    assert (slow[[0, 2, 3, 4]] == plain[[0, 2, 3, 4]]).all()


def test_pinned_is_constant():
    found = draws_ms(StragglerSettings("pinned:30", slow_ranks=("1:2.0",)))
    assert (found[0] == 60).all()
    assert (found[1] == 30).all()


@pytest.fixture
def trace(tmp_path):
    times = np.arange(1, 61, dtype=np.float32).reshape(3, 20)
    np.save(tmp_path / "times.npy", times)
    return tmp_path / "times.npy"


def test_trace_rows_are_followed_in_order_one_machine_a_rank(trace):
    found = draws_ms(StragglerSettings(str(trace)), range(1, 4), range(40)) / 1e3
    machines = ((found - 1) // 20).astype(int)
    assert sorted(machines[:, 0]) == [0, 1, 2]
    assert (machines == machines[:, :1]).all()
    assert set(np.diff(found[0])) == {1.0, -19.0}


def test_another_seed_is_another_placement(trace):
    seen = {
        tuple(
            draws_ms(
                StragglerSettings(str(trace), straggler_seed=s),
                range(1, 4),
                [0],
            )[:, 0]
        )
        for s in range(10)
    }
    assert len(seen) > 5


def test_more_ranks_than_machines_reuse_the_rows_elsewhere_in_an_order_of_its_own(trace):
    same = 0
    for seed in range(30):
        settings = StragglerSettings(str(trace), straggler_seed=seed)
        times = draws_ms(settings, range(1, 7), range(5)) / 1e3
        first, second = times[:3], times[3:]  # (3, 5) each: laps
        machines, again = (first[:, 0] - 1) // 20, (second[:, 0] - 1) // 20
        assert sorted(machines) == sorted(again) == [0, 1, 2]
        assert not set(first.ravel()) & set(second.ravel())
        same += (machines == again).all()
    assert 0 < same < 15  # one order in six: an image's two copies are rarely all on one machine


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((0, 3)), "not empty"),
        (np.ones((2, 2, 2)), "shape"),
        (np.array([[1.0, -1.0]]), "positive"),
        (np.array([[1.0, np.nan]]), "positive"),
        (np.array([["a"]]), "numbers"),
    ],
)
def test_a_bad_trace_is_refused(tmp_path, array, says):
    np.save(tmp_path / "bad.npy", array)
    with pytest.raises(DataFault, match=says):
        load_trace(str(tmp_path / "bad.npy"))


def test_a_missing_or_foreign_trace_is_refused(tmp_path):
    with pytest.raises(EnvironmentFault, match=r"no\.npy"):
        load_trace(str(tmp_path / "no.npy"))
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(DataFault, match=r"no \.npy"):
        load_trace(str(tmp_path / "text.npy"))


@pytest.mark.parametrize(
    "settings",
    [
        {"straggler": "cauchy"},
        {"straggler": "trace"},
        {"straggler": "lognormal:0"},
        {"straggler": "lognormal:9:nan"},
        {"straggler": "lognormal:9:-1"},
        {"straggler": "lognormal:9:1:1"},
        {"straggler": "pinned:9:1"},
        {"straggler": "none:9"},
        {"straggler": "bimodal:"},
        {"straggler": "pinned", "slow_ranks": ("0:5",)},
        {"straggler": "pinned", "slow_ranks": ("1:-5",)},
    ],
)
def test_bad_settings_are_usage_errors(settings):
    with pytest.raises(UsageError):
        StragglerSettings(**settings)

"""The map of schemes: what its service times are like, which candidate a cell shows, the figure."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from rows_by_name import cells_of
from tails import Tail, measure_tail

from collage_mpi.kinds import COLLAGE
from collage_mpi.models import describe
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.simulator import save_answers
from collage_mpi.system.fields import with_shipped

ANALYSIS = Path(__file__).parents[2] / "analysis"


@pytest.fixture
def regimes(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from imported("regimes", monkeypatch)


@pytest.fixture
def regime_map(regimes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    yield from imported("regime_map", monkeypatch)


def imported(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(ANALYSIS)
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module(name)
    sys.modules.pop(name, None)


# ---- service times ----------------------------------------------------------------


@pytest.mark.parametrize("weight", [2.0, 3.0, 8.0])
@pytest.mark.parametrize("spell", [1 / 0.95, 9.0, 27.0])
def test_a_cell_is_measured_where_it_was_made(regimes, spell, weight):
    tail = measure_tail(regimes.service_times(spell, weight, 1))
    assert tail.weight == pytest.approx(weight, rel=0.03)
    assert tail.spell == pytest.approx(spell, rel=0.3 if weight > 2 else 0.5)


def test_machines_that_are_slow_all_along_are_their_share(regimes):
    times_s = regimes.service_times(regimes.ALL_ALONG, 5.0, 1)
    medians = np.median(times_s, axis=1)
    assert (medians > 0.3).sum() == regimes.SHARE * regimes.MACHINES == 2
    assert measure_tail(times_s).spell == math.inf


def test_a_group_is_one_moment_of_a_rank(regimes):
    """Its images' columns are all slow or all usual, whichever of them the rank serves."""
    one = regimes.service_times(9.0, 8.0, 1) > 0.3
    nine = regimes.service_times(9.0, 8.0, 9) > 0.3
    assert (nine.reshape(*one.shape, 9) == one[:, :, None]).all()
    assert 0.03 < one.mean() < 0.07


def test_a_slow_request_is_as_slow_as_the_weight_says(regimes):
    factor = regimes.slow_factor(5.0)
    rng = np.random.default_rng(0)
    slow = rng.random(400_000) < regimes.SHARE
    times = np.where(slow, factor, 1.0) * np.exp(rng.normal(0, regimes.SIGMA, slow.shape))
    assert np.quantile(times, 0.99) / np.median(times) == pytest.approx(5.0, rel=0.02)
    with pytest.raises(ValueError, match="without a slow request"):
        regimes.slow_factor(1.1)


# ---- candidates -------------------------------------------------------------------


def test_all_but_replication_have_as_many_ranks(regimes):
    for entry in regimes.entries(9):
        ranks = RunSettings.from_mapping(entry.flags).world_size
        others = {"replicate, 2N": 19, "collage-only, 3 ranks": 4}
        assert ranks == others.get(entry.name, 12), entry.name


def test_a_cascade_counts_what_the_threshold_in_the_networks_file_says(regimes):
    info = describe(with_shipped("shipped:fashion_collage_side3.safetensors"), COLLAGE)
    flags = {e.flags["confidence"] for e in regimes.entries(9) if e.family == regimes.CASCADE}
    assert flags == {info.accept.confidence}


def test_a_hedge_waits_a_share_of_the_median(regimes):
    each = {entry.name: entry.flags for entry in regimes.entries(9, 0.2)}
    assert each["hedge 1.3 x median, pull"]["deadline_ms"] == pytest.approx(260)


def test_only_collages_are_simulated_for_each_cost_ratio(regimes):
    for entry in regimes.entries(9):
        with_one = entry.flags["scheme"] in ("collage", "collage-only", "cascade")
        assert entry.by_ratio == with_one, entry.name


# ---- the table and what a cell shows -------------------------------------------------


def some_rows(
    regime_map: ModuleType, p99_ms: dict[str, float], lost: float
) -> list[dict[str, str]]:
    """A place where all candidates have a P99 of 100 ms but those named."""
    rows = []
    for entry in regime_map.regimes.entries(9):
        for ratio in regime_map.RATIOS if entry.by_ratio else ("",):
            values = ["", "9", "5", ratio, entry.name, 19 if "2N" in entry.name else 12, 50]
            values += [p99_ms.get(entry.name, 100.0)]
            values += [0.94 - lost / 100 if entry.by_ratio else 0.94, 0.1, not entry.by_ratio]
            rows.append(dict(zip(regime_map.COLUMNS, map(str, values), strict=True)))
    return rows


def test_a_gain_is_over_the_better_of_what_does_nothing_twice(regime_map):
    rows = some_rows(
        regime_map, {"none, pull": 300, "none, turn": 200, "fixed, M=2, first": 50}, 0.4
    )
    cell = regime_map.best_cell(rows, 1.0, 0.5)
    assert (cell.name, cell.baseline) == ("fixed, M=2, first", "none, turn")
    assert (cell.gain, round(cell.lost, 6)) == (4.0, 0.4)
    cell = regime_map.best_cell(rows, 1.0, 0.2)  # it costs too much
    assert (cell.name, cell.gain, cell.lost) == ("none, pull, end game", 2.0, 0.0)


def test_replication_is_not_chosen_nor_what_gains_too_little(regime_map):
    rows = some_rows(regime_map, {"replicate, 2N": 10, "hedge 1.3 x median, pull": 96}, 0.0)
    cell = regime_map.best_cell(rows, 0.6, 0.5)
    assert (cell.family, cell.gain) == (regime_map.regimes.NONE, 1.0)
    rows = some_rows(regime_map, {"hedge 1.3 x median, pull": 94}, 0.0)
    assert regime_map.best_cell(rows, 0.6, 0.5).family == regime_map.regimes.HEDGE


def test_a_place_that_is_not_whole_is_left_out(regime_map):
    rows = some_rows(regime_map, {}, 0.0)
    assert set(regime_map.cells(rows, 1.0, 0.5)) == {("", "9", "5")}
    assert regime_map.cells(rows[:-1], 1.0, 0.5) == {}


def test_positions_are_logarithmic_and_hold_at_the_edges(regime_map):
    spells, weights = regime_map.SPELLS, regime_map.WEIGHTS
    for place, (spell, weight) in enumerate(zip(spells, weights, strict=False)):
        assert regime_map.position(spell, weight) == pytest.approx((place, place))
    assert regime_map.position(math.sqrt(spells[1] * spells[2]), 1.0) == pytest.approx((1.5, 0))
    assert regime_map.position(math.inf, 100.0) == (len(spells) - 1, len(weights) - 1)


@pytest.fixture
def small(regime_map, monkeypatch, tmp_path) -> Path:
    """Four placements; answers of which a tenth of the collage's are wrong."""
    monkeypatch.setattr(regime_map, "PLACEMENTS", 4)
    monkeypatch.setattr(regime_map, "GROUPS", 100)
    labels = np.arange(90) % 4
    right = [(int(label), 0.95) for label in labels]
    wrong = [((label + (i % 10 == 0)) % 4, 0.95) for i, (label, _) in enumerate(right)]
    said = {"single": cells_of(right), "collage": cells_of(wrong)}
    save_answers(tmp_path / "a.npz", 3, labels, said, list("abcd"))
    return tmp_path


def test_the_table_goes_on_where_it_was_and_the_figure_is_drawn(regime_map, small, monkeypatch):
    names = ("none, pull", "none, turn", "fixed, M=2, first", "fastest, M=2, first")
    few = [entry for entry in regime_map.regimes.entries(9) if entry.name in names]
    monkeypatch.setattr(regime_map.regimes, "entries", lambda n, median_s=0.1: few)
    times_s = regime_map.regimes.service_times(math.inf, 5.0, 9)
    place = regime_map.Place("mine", measure_tail(times_s), times_s)
    table = small / "map.csv"
    found = regime_map.simulated(times_s, few[0].flags, str(small / "a.npz"))
    monkeypatch.setattr(regime_map, "simulated", lambda *_: found)  # 9 take 5 s of a core
    regime_map.simulate_places(iter([place]), str(small / "a.npz"), table)
    lines = table.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 2 + 2 * len(regime_map.RATIOS)
    table.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while it wrote
    assert len(regime_map.read_table(table)) == len(lines) - 2
    monkeypatch.setattr(regime_map, "simulated", once(regime_map.simulated))
    regime_map.simulate_places(iter([place]), str(small / "a.npz"), table)
    rows = regime_map.read_table(table)
    assert len(rows) == len(lines) - 1
    assert {row["spell"] for row in rows} == {"inf"}
    pytest.importorskip("matplotlib")
    for path in regime_map.draw(rows, small / "map"):
        assert path.stat().st_size > 10_000


def once(simulate):
    """It may be asked for one candidate, the one that was cut off."""
    calls = []

    def only(*args):
        calls.append(args)
        assert len(calls) == 1
        return simulate(*args)

    return only


# ---- cells whose winner is known ----------------------------------------------------


def p99_ms(regime_map: ModuleType, times_s: np.ndarray, names: list[str]) -> dict[str, float]:
    each = {entry.name: entry for entry in regime_map.regimes.entries(9)}
    return {name: regime_map.simulated(times_s, each[name].flags, None).p99_ms for name in names}


def test_of_machines_slow_all_along_it_is_enough_to_know(regime_map):
    times_s = regime_map.regimes.service_times(math.inf, 8.0, 9)
    found = p99_ms(regime_map, times_s, ["none, pull", "none, turn", "fixed, M=2, first"])
    assert found["none, pull"] < found["none, turn"]


def test_of_requests_slow_by_themselves_nothing_can_be_known(regime_map):
    times_s = regime_map.regimes.service_times(regime_map.ALONE, 8.0, 9)
    found = p99_ms(regime_map, times_s, ["none, pull", "none, turn", "fastest, M=2, first"])
    assert found["none, turn"] == pytest.approx(found["none, pull"], rel=0.15)
    assert found["none, turn"] > 3 * found["fastest, M=2, first"]


def test_a_candidate_is_simulated_at_a_place(regime_map, monkeypatch):
    monkeypatch.setattr(regime_map, "PLACEMENTS", 1)
    monkeypatch.setattr(regime_map, "GROUPS", 8)
    times_s = np.full((11, 9 * 8), 0.1)  # each of 11 machines takes 0.1 s
    place = regime_map.Place("alike", Tail(1.0, 1.0, 0.0), times_s)
    entry = next(e for e in regime_map.regimes.entries(9) if e.name == "none, turn")
    row = regime_map._row(place, entry, "", None)
    assert (row["profile"], row["name"], row["ranks"]) == ("alike", "none, turn", 12)
    assert row["p50_ms"] == pytest.approx(100, rel=0.02)

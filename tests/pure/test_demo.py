"""What the demo injects and says: how long draws are and runs take, what follows from figures."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collage_mpi import cli
from collage_mpi.experiments import demo
from collage_mpi.simulation.runs import simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob
from collage_mpi.workload.straggler_settings import make_delays

OUT = Path("demo")
settings_of = partial(demo.demo_settings, groups=demo.GROUPS, time_scale=demo.TIME_SCALE)
CALL_S, CORES = 0.004, 2  # processor time of a network in float32, and what ten ranks share
LONGEST_S, FIXED_S = 120, 40  # of all, and to start the ranks, to load networks and to draw
SLOW_COLLAGE = 1.5  # the least kind ratio of the two networks that was seen


def test_draws_are_long_beside_what_ten_ranks_compute_on_two_cores() -> None:
    delays = make_delays(settings_of(OUT, "waiting", "paper"))
    draws_ns = [delays.draw_ns(rank, group, 1) for rank in range(1, 11) for group in range(74)]
    assert np.quantile(draws_ns, 0.01) / 1e9 >= 3 * 10 * CALL_S / CORES


def test_ranks_compute_in_the_precision_that_they_take_by_default() -> None:
    assert settings_of(OUT, "waiting", "none").precision == "auto"


@pytest.mark.parametrize("load", demo.LOADS)
@pytest.mark.parametrize("scheme", demo.SCHEMES)
def test_no_scheme_leaves_a_rank_of_the_demo_without_a_network(load: str, scheme: str) -> None:
    placed = settings_of(OUT, load, scheme).place(demo.RANKS)
    assert placed.workers == tuple(range(1, 11))


def test_the_second_load_is_what_its_title_says_whatever_the_time_scale() -> None:
    for scale in (0.75, 1.5):
        settings = settings_of(OUT, "arriving", "none", time_scale=scale)
        delays = make_delays(settings)
        per_s = [1e9 / np.mean([delays.draw_ns(r, g, 1) for g in range(500)]) for r in range(1, 11)]
        assert settings.rate == pytest.approx(demo.LOAD * sum(per_s), rel=0.03)


def test_the_eight_runs_take_less_than_the_page_says() -> None:
    took_s = 0.0
    for load in demo.LOADS:
        for scheme in demo.SCHEMES:
            settings = settings_of(OUT, load, scheme)
            answers = None
            if settings.uses_collage:
                settings = replace(settings, cost_ratio=SLOW_COLLAGE)
            if scheme == "cascade":
                answers = "analysis/answers/fashion_collage_side3_balanced.npz"
            groups = simulate_in_memory(
                SimulatedJob(settings, 9 * demo.GROUPS, answers=answers)
            ).groups
            took_s += (groups["t0_ns"] + groups["latency_ns"]).max() / 1e9
    assert 40 < took_s <= LONGEST_S - FIXED_S


@pytest.mark.parametrize("tuning", ["bfloat16, channels-last", "float32, channels-last"])
def test_ratios_are_told_with_the_precision_that_they_were_measured_in(tuning: str) -> None:
    worker: dict[str, Any] = {"rank": 1, "tuning": {"single": tuning}}
    world = [{"rank": 0, "role": "coordinator"}, {"rank": 10, "tuning": {}}, worker]
    alone = {"cost_ratio": 1.0, "cost_ratio_interval": None, "world": world}
    paper = {"cost_ratio": 1.115, "cost_ratio_interval": [1.06, 1.16], "world": world}
    cascade = {"cost_ratio": 0.72, "cost_ratio_interval": [0.71, 0.76], "world": world}
    said = demo._costs([alone, alone, paper, cascade])
    assert f"in {tuning.partition(',')[0]} as the ranks compute" in said
    assert (
        "1.11 x (1.06 to 1.16) for the paper's collage, 0.72 x (0.71 to 0.76) for cascade." in said
    )


def entries(**columns: list[Any]) -> list[dict[str, Any]]:
    """Of the demo's four schemes, as `compare` has them."""
    base = {"invalid": False, "accuracy": 0.93, "p95_ms": 200.0}
    found = [dict(base) for _ in demo.SCHEMES]
    for key, values in columns.items():
        for entry, value in zip(found, values, strict=True):
            entry[key] = value
    return found


def waiting(*paces: float, **columns: list[Any]) -> list[dict[str, Any]]:
    return entries(price=[{"images_per_s": pace} for pace in paces], **columns)


@pytest.mark.parametrize(
    ("paces", "most", "tails", "shortest"),
    [
        ((80, 60, 75, 400), "cascade", [200, 180, 220, 150], "cascade: 150 ms, 0.75"),
        ((80, 60, 75, 40), "none", [200, 180, 220, 300], "none --assign finish: 180 ms, 0.90"),
    ],
)
def test_the_verdict_follows_from_the_figures(
    paces: Any, most: str, tails: Any, shortest: str
) -> None:
    accuracy = [0.93, 0.93, 0.92, 0.94]
    first = waiting(*paces, accuracy=accuracy, p95_ms=[200, 150, 140, 300])
    _, all_wait, arriving = demo._headline(first, entries(p95_ms=tails), 66.5).splitlines()
    rate, best = max(paces), accuracy[paces.index(max(paces))]
    ratio = f"{rate / 80:.2f} x none's rate"
    assert f": {most} answered the most images a second, {rate}, which is {ratio}. " in all_wait
    assert f"{100 * best:.2f} % of its answers were right, and 93.00 % of none's." in all_wait
    assert all_wait.endswith("was that of the paper's collage: 140 ms, 0.70 x none's.")
    assert arriving.endswith(f"was that of {shortest} x none's.")


def test_runs_whose_times_do_not_count_have_no_verdict() -> None:
    invalid = entries(invalid=[False, False, False, True])
    said = demo._headline(waiting(80, 60, 75, 400), invalid, 66.5)
    assert "No verdict: 1 of 8 runs are marked (INVALID)" in said
    assert "--time-scale 1.5" in said
    assert "images a second" not in said


def test_too_few_groups_have_no_tail_to_tell() -> None:
    said = demo._headline(waiting(80, 60, 75, 400), entries(p95_ms=[None] * 4), 66.5)
    assert said.endswith("The runs have too few groups for a P95.")


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf"])
def test_a_time_scale_that_is_none_is_refused_before_any_rank(
    scale: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", f"--out={tmp_path / 'demo'}", f"--time-scale={scale}"]) == 2
    assert "needs a number above 0" in capsys.readouterr().err

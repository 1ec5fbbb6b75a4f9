"""What the demo injects and says: how long draws are and runs take, which ratio it tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collage_mpi import cli
from collage_mpi.experiments import demo
from collage_mpi.simulation.runs import Job, simulate_in_memory
from collage_mpi.workload.straggler_settings import make_delays

OUT = Path("demo")
CALL_S, CORES = 0.004, 2  # processor time of a network in float32, and what ten ranks share
LONGEST_S, FIXED_S = 90, 25  # of all, and to start the ranks, to load networks and to draw
SLOW_COLLAGE = 1.5  # the least kind ratio of the two networks that was seen


def test_draws_are_long_beside_what_ten_ranks_compute_on_two_cores() -> None:
    delays = make_delays(demo.demo_settings(OUT, "slow-single", "collage"))
    draws_ns = [delays.draw_ns(rank, group, 1) for rank in range(1, 11) for group in range(74)]
    assert np.quantile(draws_ns, 0.01) / 1e9 >= 3 * 10 * CALL_S / CORES


def test_ranks_compute_in_the_precision_that_they_take_by_default() -> None:
    assert demo.demo_settings(OUT, "slow-single", "none").precision == "auto"


def test_the_four_runs_take_less_than_the_page_says() -> None:
    took_s = 0.0
    for case in demo.CASES:
        for scheme in demo.SCHEMES:
            settings = demo.demo_settings(OUT, case, scheme)
            if scheme == "collage":
                settings = replace(settings, cost_ratio=SLOW_COLLAGE)
            elif case == "slow-collage":  # the simulator has no rank that does nothing
                settings = replace(settings, slow_ranks=())
            job = Job(settings, 9 * demo.groups_of(case))
            groups = simulate_in_memory(job).groups
            took_s += (groups["t0_ns"] + groups["latency_ns"]).max() / 1e9
    assert 40 < took_s <= LONGEST_S - FIXED_S


@pytest.mark.parametrize("tuning", ["bfloat16, channels-last", "float32, channels-last"])
def test_the_ratio_is_told_with_the_precision_that_it_was_measured_in(tuning: str) -> None:
    worker: dict[str, Any] = {"rank": 1, "tuning": {"single": tuning}}
    world = [{"rank": 0, "role": "coordinator"}, {"rank": 10, "tuning": {}}, worker]
    manifest = {"cost_ratio": 1.115, "cost_ratio_interval": [1.06, 1.16], "world": world}
    said = demo._costs(manifest)
    assert f"in {tuning.partition(',')[0]} as the ranks compute" in said
    assert "takes 1.11 x the time of the single network (95 % interval 1.06 to 1.16)" in said


def test_each_case_tells_the_figure_that_its_groups_support() -> None:
    entries = [{}, {"p95_ratio": 0.264, "p50_ratio": 1.006}]
    assert "group p95 is 0.26 x" in demo._headline("slow-single", 4, entries)
    assert "--scheme none --assign finish" in demo._headline("slow-single", 4, entries)
    assert "median group takes 1.01 x" in demo._headline("slow-collage", 10, entries)


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf"])
def test_a_time_scale_that_is_none_is_refused_before_any_rank(
    scale: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", f"--out={tmp_path / 'demo'}", f"--time-scale={scale}"]) == 2
    assert "needs a number above 0" in capsys.readouterr().err

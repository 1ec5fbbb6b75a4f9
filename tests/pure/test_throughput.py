"""Throughput against latency: repeats together, what is drawn, what a sample supports."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import pytest
from simulate_to import simulate_to

from collage_mpi.errors import UsageError
from collage_mpi.figures.throughput import batch_points, render_batches
from collage_mpi.results import read_results
from collage_mpi.settings.run_settings import RunSettings

SCRIPT = Path(__file__).parents[2] / "analysis" / "throughput_latency.py"
GROUPS = 96


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Simulated: a further image of a batch takes a tenth of the first."""
    folder = tmp_path_factory.mktemp("runs")
    common = {"straggler": "lognormal", "straggler_sigma": 0.1, "batch_cost": 0.1, "side": 2}
    for batch in (4, 1):
        for seed in (1, 2):
            settings = RunSettings(batch=batch, straggler_seed=seed, **common)
            images = 4 * (GROUPS * batch + settings.warm_groups)
            simulate_to(settings, folder / f"{batch}-{seed}", images)
    (folder / "table.csv").write_text("no run\n")
    return folder


def test_repeats_are_one_point_and_batches_are_counted(runs: Path) -> None:
    found = [read_results(path) for path in sorted(runs.iterdir()) if path.is_dir()]
    one, four = batch_points(found)
    assert (one["batch"], one["runs"], one["batches"]) == (1, 2, GROUPS)
    assert (four["batch"], four["runs"], four["batches"]) == (4, 2, GROUPS)
    assert four["images_per_s"] > 2 * one["images_per_s"]
    assert four["group_p50_ms"] > one["group_p50_ms"]
    assert one["group_p95_ms"] is not None  # 96 batches carry a P95, no P99
    assert four["group_p95_ms"] is not None
    assert four["group_p99_ms"] is None  # 384 groups
    assert four["image_p99_ms"] is None
    text = render_batches([one, four])
    assert "n/a (n=96)" in text
    assert "(1.00x)" in text


def test_the_script_writes_figure_and_table(runs: Path, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "figures" / "batches"
    words = [str(SCRIPT), *map(str, sorted(runs.iterdir())), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert end.value.code == 0
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert out.with_suffix(".pdf").exists()
    rows = list(csv.DictReader(out.with_suffix(".csv").open()))
    assert [row["batch"] for row in rows] == ["1", "4"]
    assert rows[1]["batch_cost_single"] == "0.1"


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(UsageError, match="no runs"):
        batch_points([])

"""The figure's files, its numbers, and what it refuses to draw."""

from __future__ import annotations

import csv
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results_harness import make_run

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.figures import plots
from collage_mpi.figures.plots import plot_latency_cdf
from collage_mpi.results import Results, read_results

SCRIPT = Path(__file__).parents[2] / "analysis" / "latency_cdf.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    base = tmp_path_factory.mktemp("runs")
    none = make_run(base / "none", 900, collage=False, warmup_groups=1)
    collage = make_run(base / "collage", 900, warmup_groups=1)
    return [read_results(none), read_results(collage)]


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_files_and_the_csv_behind_them(runs: list[Results], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    png, pdf, table = plot_latency_cdf(runs, tmp_path / "sub" / "figure.v1")
    assert [path.name for path in (png, pdf, table)] == [
        "figure.v1.png",
        "figure.v1.pdf",
        "figure.v1.csv",
    ]
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert pdf.read_bytes()[:4] == b"%PDF"
    rows = rows_of(table)
    legends = {row["legend"] for row in rows}
    assert legends == {
        "none | carry, depth 1 | n = 99 groups",
        "collage, first | carry, depth 1 | n = 99 groups",
    }
    drawn = [float(row["latency_ms"]) for row in rows if row["legend"].startswith("none")]
    measured = np.sort(runs[0].measured_groups["latency_ns"] / 1e6)
    assert drawn == pytest.approx(measured.tolist(), abs=1e-6)
    assert float(rows[-1]["share_done"]) == 1.0


def test_a_guide_is_at_the_height_of_its_percentile(
    runs: list[Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    drawn, save = [], plots.save

    def keep(figure: Any, stem: Path) -> tuple[Path, Path]:
        drawn.append(figure)
        return save(figure, stem)

    monkeypatch.setattr(plots, "save", keep)
    plot_latency_cdf(runs, tmp_path / "f")
    for axes, heights in zip(
        drawn[0].axes, ({"P50": 0.5, "P95": 0.95}, {"P50": 0.5, "P95": 0.05}), strict=True
    ):
        names = {text.get_text(): text.xy[1] for text in axes.texts}
        lines = [line.get_ydata() for line in axes.lines if len(set(line.get_ydata())) == 1]
        assert names == pytest.approx(heights)
        assert {y[0] for y in lines if len(y) == 2} >= set(names.values())


def test_per_image_and_differing_stragglers(runs: list[Results], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    other = read_results(make_run(tmp_path / "other", 90, straggler="rank 10 slow | five times"))
    _, _, table = plot_latency_cdf([*runs, other], tmp_path / "f", per="image", title="A title")
    legends = {row["legend"] for row in rows_of(table)}
    assert "n = 891 in 99 groups" in " ".join(legends)
    assert "stragglers: rank 10 slow | five times" in " ".join(legends)


def test_refusals(runs: list[Results], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(UsageError, match="no runs"):
        plot_latency_cdf([], tmp_path / "f")
    with pytest.raises(UsageError, match="cell"):
        plot_latency_cdf(runs, tmp_path / "f", per="cell")
    warm = read_results(make_run(tmp_path / "warm", 18, warmup_groups=2))
    with pytest.raises(DataFault, match="no measured group"):
        plot_latency_cdf([warm], tmp_path / "f")
    (tmp_path / "file").write_text("x")
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        plot_latency_cdf(runs, tmp_path / "file" / "f")


def test_without_matplotlib_the_extra_is_named(
    runs: list[Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(EnvironmentFault, match="pip install 'matplotlib"):
        plot_latency_cdf(runs, tmp_path / "f")


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, collage_mpi.figures.plots, collage_mpi.results.writer; "
        "import collage_mpi.commands.look, "
        "collage_mpi.commands.look, collage_mpi.results.verify, collage_mpi.results.export;"
        "print([m for m in ('matplotlib', 'torch', 'h5py', 'mpi4py', 'pyarrow') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_script(
    runs: list[Results],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    words = [str(SCRIPT), *(str(run.path) for run in runs), "--out", str(tmp_path / "f")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert done.value.code == 0
    out = capsys.readouterr().out
    assert "f.png" in out
    assert "P95" in out
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path), "--out", str(tmp_path / "f")])
    with pytest.raises(SystemExit) as failed:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert failed.value.code == 3
    assert "no run here" in capsys.readouterr().err

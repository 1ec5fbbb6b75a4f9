"""analysis/load_ramp.py: its unit of load, when images come, its table and its figure."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from collage_mpi.cli import main
from collage_mpi.results import Results, read_results
from collage_mpi.results.statistics import percentile
from collage_mpi.shards import ShardSet

ANALYSIS = Path(__file__).parents[2] / "analysis"
ANSWERS = ANALYSIS / "answers" / "fashion_collage_side3_balanced.npz"
SPEC = importlib.util.spec_from_file_location("load_ramp", ANALYSIS / "load_ramp.py")
assert SPEC is not None
assert SPEC.loader is not None
ramp = sys.modules["load_ramp"] = importlib.util.module_from_spec(SPEC)
sys.path.insert(0, str(ANALYSIS))
try:
    SPEC.loader.exec_module(ramp)
finally:
    sys.path.remove(str(ANALYSIS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ramp")
    ramp.prepare(folder, 1.0)
    return folder


@pytest.fixture(scope="module")
def times_s(folder: Path) -> np.ndarray:
    return np.load(folder / "times.npy", allow_pickle=False)


@pytest.fixture(scope="module")
def runs(folder: Path, times_s: np.ndarray) -> dict[str, Results]:
    """The schemes on virtual time, with the settings of the real jobs."""
    cascade = ["--scheme", "cascade", "--answers", str(ANSWERS), "--cost-ratio", "0.5"]
    cascade += ["--confidence", "0.8515"]
    flags = {"none": ramp.SCHEMES["none"], "cascade": cascade}
    found = {}
    for name, words in flags.items():
        more = ["--arrival-file", str(folder / "times.npy")]
        more += ["--images", str(len(times_s)), "--out", str(folder / name)]
        assert main(["simulate", *ramp.machines(1.0), *words, *more]) == 0
        found[name] = read_results(folder / name)
    return found


def test_the_load_is_in_units_of_what_the_single_networks_serve(tmp_path: Path) -> None:
    """Two scales: a closed loop keeps all ranks at work, whatever the scale."""
    for scale in (0.5, 1.0):
        out = tmp_path / str(scale)
        words = ["simulate", *ramp.machines(scale), *ramp.SCHEMES["none"]]
        assert main([*words, "--images", "4000", "--out", str(out)]) == 0
        rows = read_results(out).images
        ends_ns = rows["t0_ns"] + rows["latency_ns"]
        served = len(rows) / (ends_ns.max() - rows["t0_ns"].min()) * 1e9
        assert served == pytest.approx(ramp.capacity(scale), rel=0.01)


def test_images_come_at_the_rate_of_the_load(times_s: np.ndarray) -> None:
    assert (np.diff(times_s) >= 0).all()
    rate = ramp.capacity(1.0)
    for begin, end, load in ((0, 5, 0.5), (5, 20, 1.25), (20, 35, 1.25), (35, 60, 0.5)):
        came = ((times_s >= begin) & (times_s < end)).sum()
        expected = rate * load * (end - begin)
        assert came == pytest.approx(expected, abs=3 * expected**0.5)
    assert times_s[-1] < 60
    assert not np.array_equal(times_s[:100], ramp.arrivals_s(rate, seed=1)[:100])


def test_the_demo_images_are_repeated_and_a_folder_keeps_one_scale(folder: Path) -> None:
    with ShardSet.open([folder / "images.h5"]) as shard:
        images, _ = shard.read_all()
    assert len(images) == len(np.load(folder / "times.npy", allow_pickle=False))
    assert np.array_equal(images[1800:], images[: len(images) - 1800])
    ramp.prepare(folder, 1.0)
    with pytest.raises(SystemExit, match="another --out"):
        ramp.prepare(folder, 0.5)


def test_the_table_tells_the_phases_apart(runs: dict[str, Results], times_s: np.ndarray) -> None:
    lines = [line.strip("| ").split(" | ") for line in ramp.table(runs, times_s).splitlines()[2:]]
    none, cascade = lines[::2], lines[1::2]
    assert [cells[0] for cells in none] == ["rising, below 1", "above 1", "below 1 again"]
    counts = [int(cells[1].replace(",", "")) for cells in none]
    assert counts == np.histogram(times_s, (0, 10, 30, 60))[0].tolist()
    p99_ms = [float(cells[4].replace(",", "")) for cells in (none[1], cascade[1])]
    assert p99_ms[0] > 5000 > 1000 > p99_ms[1]
    shares = [[int(cells[5].rstrip("%")) for cells in scheme] for scheme in (none, cascade)]
    assert shares[0] == [0, 0, 0]
    assert shares[1][1] > 2 * max(shares[1][0], shares[1][2])


def test_images_are_put_in_the_order_in_which_they_came(runs: dict[str, Results]) -> None:
    none = runs["none"]
    late_ms, _ = ramp.in_order(replace(none, images=none.images[::-1]))
    assert late_ms[0] == none.images["latency_ns"][none.images["row"] == 0][0] / 1e6


def test_a_p99_is_of_as_many_images_as_it_needs_a_point_every_hundred() -> None:
    of_p99 = ramp.windows(1_050, ramp.WINDOW)
    assert of_p99[:, 0].tolist() == [0, 100, 200, 300, 400, 500, 600]
    assert of_p99[-1, -1] == 999
    assert percentile(np.arange(ramp.WINDOW), 0.99) is not None


def test_the_figure_is_drawn_and_what_a_run_took_is_said(
    runs: dict[str, Results], times_s: np.ndarray, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    png, _ = ramp.draw(runs, times_s, 1.0, tmp_path / "f")
    assert png.read_bytes()[:4] == b"\x89PNG"
    none = runs["none"]
    said = ramp.said_of("none", none)
    assert said.endswith("; 0% of the images were in collages; 157 ms of rank time an image.")

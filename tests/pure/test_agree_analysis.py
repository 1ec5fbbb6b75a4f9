"""The replays of `--agree` and of audits: they run, and show an error that is put in."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from collage_mpi.job import calibration
from collage_mpi.results.statistics import least_counted, no_scores, step_of
from collage_mpi.rows import AUDIT_CODE, IMAGES, SOURCE_CODE

ANALYSIS = Path(__file__).parents[2] / "analysis"
REPLAYS = 40


def script(name: str):
    sys.path.insert(0, str(ANALYSIS))
    try:
        spec = importlib.util.spec_from_file_location(name, ANALYSIS / f"{name}.py")
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ANALYSIS))
    return module


replays, runs = script("agree_replays"), script("agree_runs")


@pytest.fixture(scope="module")
def network():
    """Of 4,500 images every tenth cell is unsure, and of these a third differ."""
    rng = np.random.default_rng(0)
    scores = rng.random(4_500)
    differs = rng.random(4_500) < (1 - scores) ** 2 / 4
    ratios = dict.fromkeys(replays.PRECISIONS, 0.5)
    return replays.Network("made", 3, scores, differs, ratios)


def outcomes(network, agree=0.98, audit=0.2):
    return [replays.replay(network, agree, audit, seed) for seed in range(REPLAYS)]


def test_a_replay_counts_what_is_accepted_behind_the_images_that_choose(network):
    (one, *_) = found = outcomes(network, audit=1.0)
    counts = network.scores >= one.threshold
    assert (one.sure, one.changed) == (counts.mean(), (counts & network.differs).mean())
    settings = replays.settings_of(network, 0.98)
    first = settings.calibration_images(4_500)
    assert counts.sum() - first <= one.audited <= counts.sum()
    assert len({each.threshold for each in found}) > REPLAYS / 4  # a seed is a job of its own
    row = replays.row_of(network, 0.98, found)
    assert row.within
    assert row.threshold[2:4] == ["0.0%", f"{sum(o.changed > 0.02 for o in found) / REPLAYS:.1%}"]


def test_a_threshold_without_a_bound_is_shown(network, monkeypatch):
    """It allows as many differing answers among those that choose as among all."""

    def without(scores, differs, agree):
        counts = no_scores()
        np.add.at(counts, (step_of(scores), differs.astype(int)), 1)
        return least_counted(counts, int((1 - agree) * len(scores)))

    monkeypatch.setattr(calibration, "least_threshold", without)
    row = replays.row_of(network, 0.98, outcomes(network))
    assert not row.within
    assert float(row.threshold[3].rstrip("%")) > 30


def test_an_interval_for_one_look_is_shown(network, monkeypatch):
    monkeypatch.setattr(replays, "rules_out", replays.outside_fixed)
    row = replays.row_of(network, 0.98, outcomes(network))
    assert not row.within
    assert row.audits[2] == row.audits[3]


def test_a_threshold_that_rises_in_vain_is_shown(network, monkeypatch):
    monkeypatch.setattr(calibration, "rules_out", lambda *_: True)
    row = replays.row_of(network, 0.98, outcomes(network))
    assert not row.within
    assert float(row.audits[4].rstrip("%")) > 20


def test_a_network_that_drifts_is_noticed_sooner_the_more_is_audited(network):
    found = {
        share: [replays.drift(network, share, seed) for seed in range(10)] for share in (0.01, 0.5)
    }
    rows = {share: replays.drift_row(share, each) for share, each in found.items()}
    assert [row[0] for row in rows.values()] == ["1%", "50%"]
    assert float(rows[0.01][2].rstrip("%")) < 90
    assert rows[0.5][2] == "100.0%"
    assert all(after <= audits for audits, after in found[0.5])
    assert replays.drift_row(0.01, [(5, None)]) == ["1%", "5", "0.0%"]


def test_where_no_threshold_is_found_the_row_ends(network):
    row = replays.row_of(network, 0.98, [replays.Outcome(None)] * 4)
    assert row.within
    text = replays.table(replays.THRESHOLD, [row.threshold])
    assert text.splitlines()[2] == "| `made` | 0.98 | 100.0% | 0.0% |  |  |  |"


def test_the_command_says_how_long_it_took_and_fills_a_page(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("<!-- agree replays -->\n<!-- end of agree replays -->\n")
    folder = ANALYSIS / "answers" / "photographs"
    words = ["--answers", str(folder), "--replays", "2", "--jobs", "1", "--page", str(page)]
    assert replays.main(words) == 0
    told = capsys.readouterr()
    assert told.out.strip() in page.read_text()
    assert "`tiny_imagenet_side3_60px` | 0.995 |" in told.out
    assert "2 replays a row, 20% of the images audited" in told.out
    assert re.search(r"^\d+ s$", told.err, re.MULTILINE)


# ---- real jobs ----------------------------------------------------------------


def results(thresholds, predicted=0, n=100):
    """100 images of class 0, all by collages, of which ten were audited and one differed."""
    rows = np.zeros(n, IMAGES.dtype)
    rows["row"], rows["source"] = np.arange(n)[::-1], SOURCE_CODE["collage"]
    rows["predicted"][:1] = predicted
    rows["audited"][:10], rows["other"][0] = AUDIT_CODE["done"], 1
    held = [{"confidence": each} for each in thresholds]
    return SimpleNamespace(images=rows, manifest={"thresholds": held})


@pytest.mark.parametrize(
    ("thresholds", "predicted", "wanted", "good"),
    [
        ([0.75], 0, "bound", True),
        ([0.75], 2, "bound", True),  # 1 of 100, where 2 may change
        ([0.75], 2, "notice", False),  # nothing was noticed
        ([0.75, 0.875], 2, "notice", True),
        ([None], 0, "notice", True),
        ([0.75], 2, "either", True),
    ],
)
def test_a_job_keeps_its_bound_or_notices(thresholds, predicted, wanted, good):
    case = runs.Case("side3", 0.98, wanted=wanted)
    cells, found = runs.row_of(case, results(thresholds, predicted), results([], 0))
    assert found == good
    assert cells[4:6] == ["100.0%", f"{predicted / 2:.2f}%"]
    assert cells[7].startswith("10, 1")


def test_a_bound_that_is_broken_is_shown():
    case = runs.Case("side3", 0.995)
    assert not runs.row_of(case, results([0.75], 2), results([], 0))[1]


def test_spoiled_networks_answer_wrong_as_surely_as_before(monkeypatch):
    scores = np.tile(np.eye(4, dtype=np.float32), (1, 1, 1))  # a collage of four cells
    inner = SimpleNamespace(predict=lambda batch: np.repeat(scores, len(batch), axis=0))
    monkeypatch.setattr(runs, "load_predictor", lambda *_: inner)
    assert runs.lost().predict([0]).argmax(-1).tolist() == [[0, 1, 2, 0]]
    network = runs.drift()
    third = int(runs.IMAGES / runs.CELLS / runs.WORKERS / 3)
    for n in (third, 600):  # the third is over behind the first of these
        assert (network.predict(range(n)).argmax(-1) == np.arange(4)).all()
    after = network.predict(range(600))
    assert (after.argmax(-1) != np.arange(4)).mean() == pytest.approx(1 / 6, abs=0.03)
    assert (after.max(-1) == 1).all()


def test_random_weights_are_the_shipped_ones_in_another_order(tmp_path):
    path = tmp_path / "random.safetensors"
    runs.write_random(path)
    mine, shipped = runs.load_file(path), runs.load_file(runs.with_shipped(runs.BALANCED))
    assert any((mine[name] != shipped[name]).any() for name in shipped)
    assert all(np.array_equal(np.sort(mine[n], None), np.sort(shipped[n], None)) for n in shipped)
    info = runs.describe_weights(str(path))
    assert info.side == 3

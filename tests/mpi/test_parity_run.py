"""Schemes parity, approx and batch-backup under mpiexec: shipped networks, one slow rank."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from conftest import codes, run_many

from collage_mpi.errors import ExitCode
from collage_mpi.results import OUTCOMES, read_results
from collage_mpi.results.rows import KIND_CODE, SOURCE_CODE
from collage_mpi.results.verify import verify_run

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.slow, pytest.mark.timeout(420)]

DATA = files("collage_mpi") / "data"
SLOW = 2  # of three single ranks
SINGLE = str(DATA / "fashion_single.safetensors")
COMMON = ["run", "--shards", str(DATA / "fashion_demo.h5"), "--side", "2", "--single", SINGLE]
COMMON += ["--warmup-groups", "0"]
DELAYS = ["--singles", "3", "--limit", "80", "--straggler", "pinned"]
DELAYS += ["--straggler-median-ms", "60", "--slow-ranks", f"{SLOW}:6"]
PARITY = ["--scheme", "parity", "--parity-k", "3"]
PARITY += ["--parity", str(DATA / "fashion_parity_k3.safetensors")]
CODED = ["--scheme", "approx", "--parity-k", "2", "--parity-ranks", "1", "--top-k", "2"]
BACKUP = ["--scheme", "batch-backup"]
RUNS = {
    "parity": [*DELAYS, *PARITY],
    "approx": [*DELAYS, *CODED],
    "backup": [*DELAYS, *BACKUP, "--batch-cost", "0.1"],
    "measured": [*DELAYS, *BACKUP, "--backup", SINGLE, "--limit", "24"],
    "alone": ["--singles", "4", "--scheme", "none", "--limit", "80"],
    "refused": [*DELAYS, *PARITY, "--singles", "2"],
}


@pytest.fixture(scope="module")
def runs(mpi, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run a folder, all in one launch: ranks that load torch take most of the time here."""
    folder = tmp_path_factory.mktemp("runs")
    cases = [[*COMMON, *words, "--out", name] for name, words in RUNS.items()]
    *done, refused = run_many(mpi, 5, cases, folder, timeout=400)
    for name, case in zip(RUNS, done, strict=False):
        assert codes(case) == [0] * 5, (name, case[0]["err"])
    assert codes(refused) == [ExitCode.ENVIRONMENT] * 5
    assert "launch with -n 4" in "".join(rank["err"] for rank in refused)
    return folder


def test_a_slow_rank_is_made_up_for_by_its_stripe(runs: Path) -> None:
    """Groups of four: a stripe of three and one of one."""
    results = read_results(runs / "parity")
    assert verify_run(runs / "parity").status == "complete"
    decoded = results.images[results.images["source"] == SOURCE_CODE["parity"]]
    assert len(decoded) >= 3
    assert set(decoded["rank"]) == {4}
    assert SLOW not in set(decoded["rank"])
    right = decoded["predicted"] == decoded["label"]
    assert right.mean() > 0.7  # by chance: a tenth
    tasks = results.tasks[results.tasks["kind"] == KIND_CODE["parity"]]
    assert set(tasks["items"]) <= {1, 2, 3}
    assert np.isin(3, tasks["items"])
    summary = json.loads((runs / "parity" / "summary.json").read_text())
    assert summary["price"]["parity_share"] == pytest.approx(len(decoded) / 80)
    assert summary["price"]["parity_ranks"] == 1
    assert summary["price"]["cost_ratio"] > 0


def test_the_single_network_makes_up_for_itself(runs: Path) -> None:
    report = verify_run(runs / "approx")
    assert (report.status, report.vectors) == ("complete", 80)
    results = read_results(runs / "approx")
    decoded = results.images[results.images["source"] == SOURCE_CODE["coded"]]
    assert len(decoded) >= 3
    assert set(decoded["rank"]) == {4}
    assert (decoded["predicted"] == decoded["label"]).mean() > 0.2  # by chance: a tenth
    fingerprints = results.manifest["networks"]
    assert fingerprints["coded"] == fingerprints["single"]
    summary = json.loads((runs / "approx" / "summary.json").read_text())
    assert summary["price"]["coded_share"] == pytest.approx(len(decoded) / 80)
    assert summary["price"]["cost_ratio"] == 1.0  # one network, whatever was measured


def test_a_group_as_a_batch_gives_the_single_networks_answers(runs: Path) -> None:
    assert verify_run(runs / "backup").status == "complete"
    results = read_results(runs / "backup")
    backed = results.images[results.images["source"] == SOURCE_CODE["backup"]]
    assert len(backed) >= 3
    assert set(backed["rank"]) == {4}
    tasks = results.tasks[results.tasks["kind"] == KIND_CODE["backup"]]
    whole = tasks[tasks["items"] == 4]
    longer_ns = 6_000_000 * (tasks["items"].astype(int) - 1)  # a tenth for each image but one
    held = tasks["outcome"] == OUTCOMES.index("answered")  # for the others nothing is drawn
    assert (tasks["drawn_ns"] == 60_000_000 + longer_ns)[held].all()
    assert len(whole) > 5
    assert results.manifest["batch_costs"] == {"backup": 0.1}
    alone = read_results(runs / "alone")  # the same pictures
    rows = [np.sort(r.images, order=("shard", "row")) for r in (results, alone)]
    assert (rows[0]["predicted"] == rows[1]["predicted"]).all()


def test_what_a_batch_costs_is_measured_where_nobody_says_it(runs: Path) -> None:
    manifest = read_results(runs / "measured").manifest
    assert manifest["batch_costs"]["backup"] >= 0  # how much, the machine's load decides
    assert set(manifest["sessions"][0]["final"]["idle_batch_ns"]) == {"backup"}
    assert manifest["inputs"].keys() >= {"single", "backup"}

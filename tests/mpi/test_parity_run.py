"""Schemes parity, approx and batch-backup under mpiexec: shipped networks, one slow rank."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from collage_mpi.errors import ExitCode
from collage_mpi.results import read_results
from collage_mpi.results.rows import KIND_CODE, SOURCE_CODE
from collage_mpi.results.verify import verify_run

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.timeout(420)]

DATA = files("collage_mpi") / "data"
SLOW = 2  # of three single ranks


def test_a_slow_rank_is_made_up_for_by_its_stripe(mpiexec, tmp_path: Path) -> None:
    """Groups of four: a stripe of three and one of one."""
    run = ["-m", "collage_mpi", "run", "--shards", str(DATA / "fashion_demo.h5")]
    run += ["--single", str(DATA / "fashion_single.safetensors"), "--scheme", "parity"]
    run += ["--parity", str(DATA / "fashion_parity_k3.safetensors"), "--parity-k", "3"]
    run += ["--side", "2", "--singles", "3", "--limit", "80", "--warmup-groups", "0"]
    run += ["--straggler", "pinned", "--straggler-median-ms", "60", "--slow-ranks", f"{SLOW}:6"]
    done = mpiexec(5, [*run, "--out", "run"])
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path / "run")
    assert verify_run(tmp_path / "run").status == "complete"
    decoded = results.images[results.images["source"] == SOURCE_CODE["parity"]]
    assert len(decoded) >= 10
    assert set(decoded["rank"]) == {4}
    assert SLOW not in set(decoded["rank"])
    right = decoded["predicted"] == decoded["label"]
    assert right.mean() > 0.7  # by chance: a tenth
    tasks = results.tasks[results.tasks["kind"] == KIND_CODE["parity"]]
    assert set(tasks["items"]) <= {1, 2, 3}
    assert np.isin(3, tasks["items"])
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["price"]["parity_share"] == pytest.approx(len(decoded) / 80)
    assert summary["price"]["parity_ranks"] == 1
    assert summary["price"]["cost_ratio"] > 0
    done = mpiexec(4, [*run, "--out", "other"])
    assert done.returncode == ExitCode.ENVIRONMENT
    assert "launch with -n 5" in done.stderr


COMMON = ["-m", "collage_mpi", "run", "--shards", str(DATA / "fashion_demo.h5"), "--side", "2"]
COMMON += ["--single", str(DATA / "fashion_single.safetensors"), "--singles", "3"]
COMMON += ["--limit", "80", "--warmup-groups", "0", "--straggler", "pinned"]
COMMON += ["--straggler-median-ms", "60", "--slow-ranks", f"{SLOW}:6"]


def test_the_single_network_makes_up_for_itself(mpiexec, tmp_path: Path) -> None:
    done = mpiexec(5, [*COMMON, "--scheme", "approx", "--parity-k", "2", "--parity-ranks", "1",
                       "--top-k", "2", "--out", "run"])  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = verify_run(tmp_path / "run")
    assert (report.status, report.vectors) == ("complete", 80)
    results = read_results(tmp_path / "run")
    decoded = results.images[results.images["source"] == SOURCE_CODE["coded"]]
    assert len(decoded) >= 10
    assert set(decoded["rank"]) == {4}
    assert (decoded["predicted"] == decoded["label"]).mean() > 0.2  # by chance: a tenth
    fingerprints = results.manifest["networks"]
    assert fingerprints["coded"] == fingerprints["single"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["price"]["coded_share"] == pytest.approx(len(decoded) / 80)
    assert summary["price"]["cost_ratio"] == 1.0  # one network, whatever was measured


def test_a_group_as_a_batch_gives_the_single_networks_answers(mpiexec, tmp_path: Path) -> None:
    given = ["--scheme", "batch-backup", "--batch-cost", "0.1"]
    done = mpiexec(5, [*COMMON, *given, "--out", "run"])
    assert done.returncode == 0, done.stderr
    assert verify_run(tmp_path / "run").status == "complete"
    results = read_results(tmp_path / "run")
    backed = results.images[results.images["source"] == SOURCE_CODE["backup"]]
    assert len(backed) >= 10
    assert set(backed["rank"]) == {4}
    tasks = results.tasks[results.tasks["kind"] == KIND_CODE["backup"]]
    whole = tasks[tasks["items"] == 4]
    assert (tasks["drawn_ns"] == (60e6 * (1 + 0.1 * (tasks["items"].astype(int) - 1)))).all()
    assert len(whole) > 5
    assert results.manifest["batch_costs"] == {"backup": 0.1}
    alone = mpiexec(5, [*COMMON, "--scheme", "none", "--out", "alone"])  # the same pictures
    assert alone.returncode == 0, alone.stderr
    rows = [np.sort(r.images, order=("shard", "row")) for r in
            (results, read_results(tmp_path / "alone"))]  # fmt: skip
    assert (rows[0]["predicted"] == rows[1]["predicted"]).all()


def test_what_a_batch_costs_is_measured_where_nobody_says_it(mpiexec, tmp_path: Path) -> None:
    small = ["--backup", str(DATA / "fashion_single.safetensors"), "--limit", "24"]
    done = mpiexec(5, [*COMMON, "--scheme", "batch-backup", *small, "--out", "run"])
    assert done.returncode == 0, done.stderr
    manifest = read_results(tmp_path / "run").manifest
    assert 0 <= manifest["batch_costs"]["backup"] < 3
    assert set(manifest["sessions"][0]["final"]["idle_batch_ns"]) == {"backup"}
    assert manifest["inputs"].keys() >= {"single", "backup"}

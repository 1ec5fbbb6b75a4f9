"""Scheme parity under mpiexec: shipped networks, a slow rank, an image made up for by others."""

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

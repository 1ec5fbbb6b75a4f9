"""A real experiment: ranks started as often as needed, skipped, resumed, one table."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from collage_mpi.results import verify_run
from collage_mpi.shards import write_shard

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi]

TEXT = """
repeat = [1, 2]
[base]
shards = ["{shard}"]
single = "null"
collage = "null"
singles = 2
side = 2
warmup_groups = 1
straggler = "pinned"
straggler_median_ms = 5
[grid]
scheme = ["none", "collage"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    images = np.arange(41 * 64, dtype=np.uint8).reshape(41, 8, 8, 1) % 10
    labels = images[:, 0, 0, 0].astype(np.int64)
    names = [str(i) for i in range(10)]
    write_shard(tmp_path / "s.h5", images, labels, class_names=names, source="test")
    path = tmp_path / "e.toml"
    path.write_text(TEXT.format(shard=tmp_path / "s.h5"))
    return path


def experiment(file: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "collage_mpi", "experiment", str(file), "--out", str(out)]
    return subprocess.run([*words, *more], capture_output=True, text=True, timeout=150)


def test_an_experiment_from_its_file_to_its_table(file: Path, tmp_path: Path, mpiexec) -> None:
    out = tmp_path / "out"
    # One point by index, as in a Slurm array; then one as ranks that are there already.
    done = experiment(file, out, "--index", "1")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in out.iterdir()] == ["scheme-none_seed-2"]
    words = ["-m", "collage_mpi", "experiment", file, "--out", out, "--index", "2"]
    as_ranks = mpiexec(4, words)
    assert as_ranks.returncode == 0, as_ranks.stderr
    # One that was killed: its rows are kept, its marker is missing, and it goes on.
    (out / "scheme-collage_seed-1" / "COMPLETE").unlink()
    first = experiment(file, out)
    assert first.returncode == 0, first.stderr
    assert "1 of 4 runs are done already" in first.stdout
    assert "wrote" in first.stdout
    for folder in out.glob("scheme-*"):
        assert verify_run(folder).ok
    with (out / "table.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["name"] for row in rows] == [
        f"scheme-{scheme}_seed-{seed}" for scheme in ("none", "collage") for seed in (1, 2)
    ]
    assert [row["ranks"] for row in rows] == ["3", "3", "4", "4"]
    assert {row["accuracy"] for row in rows} == {"1.0"}
    assert {row["status"] for row in rows} == {"complete"}
    assert float(rows[0]["p50_ms"]) > 5
    assert rows[0]["p99_ms"] == ""  # ten groups do not support it

    changed = tmp_path / "changed.toml"
    changed.write_text(file.read_text().replace("median_ms = 5", "median_ms = 6"))
    refused = experiment(changed, out)
    assert refused.returncode == 2
    assert "straggler_median_ms: 5.0 before, 6.0 now" in refused.stderr


def test_a_world_of_the_wrong_size_is_refused(file: Path, tmp_path: Path, mpiexec) -> None:
    words = ["-m", "collage_mpi", "experiment", file, "--out", tmp_path / "out", "--index", "2"]
    done = mpiexec(5, words)
    assert done.returncode == 3
    assert done.stderr.count("needs 4") == 1

"""The README's first command, short: real images, four runs, a table, pictures, proofs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from collage_mpi.experiments.demo import CASES, SCHEMES
from collage_mpi.results import read_results, verify_run

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.slow]

GROUPS = 8


def demo(out: Path, groups: int) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "collage_mpi", "demo", f"--out={out}", f"--groups={groups}"]
    return subprocess.run(words, capture_output=True, text=True, timeout=280)


def test_the_demo_runs_shows_and_proves_both_cases(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = demo(out, GROUPS)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "5x slower throughout: the collage's group p95 is" in said
    assert "The other case: rank 10, the collage rank, is the slow one" in said
    assert said.count("as the ranks compute: the collage network takes") == len(CASES)
    assert said.count(f"complete: {9 * GROUPS} of {9 * GROUPS} rows, no doubles") == 4
    for case in CASES:
        for ending in ("png", "pdf", "csv"):
            assert (out / f"latency_cdf_{case}.{ending}").stat().st_size > 1000
        assert (out / f"report_{case}.html").stat().st_size > 50_000
        for scheme in SCHEMES:
            assert verify_run(out / case / scheme).ok
    none, collage = (read_results(out / "slow-single" / scheme).images for scheme in SCHEMES)
    right = [(rows["predicted"] == rows["label"]).mean() for rows in (none, collage)]
    assert min(right) > 0.85  # these are trained networks on their test images
    again = demo(out, GROUPS)
    assert (again.returncode, again.stdout) == (3, "")
    assert "holds a demo already" in again.stderr


def test_a_demo_of_warm_up_alone_is_refused_before_it_starts(tmp_path: Path) -> None:
    done = demo(tmp_path / "demo", 2)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "collage-mpi demo: --groups is 2; it needs at least 3: 2 are warm-up"
    ]
    assert not (tmp_path / "demo").exists()

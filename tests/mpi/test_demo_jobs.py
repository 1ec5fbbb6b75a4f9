"""The README's first command, short: real images, eight runs, two tables, a picture, proofs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from collage_mpi.experiments.demo import LOADS, SCHEMES
from collage_mpi.results import read_results, verify_run

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.slow]

GROUPS = 8


def demo(out: Path, groups: int) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "collage_mpi", "demo", f"--out={out}", f"--groups={groups}"]
    return subprocess.run(words, capture_output=True, text=True, timeout=280)


def test_the_demo_runs_shows_and_proves_every_scheme(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = demo(out, GROUPS)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert "Rank 4, one of ten worker ranks, is 5x slower throughout." in said
    assert "The injected times of collages are multiplied by it." in said
    assert f"all 8 runs: complete: {9 * GROUPS} of {9 * GROUPS} rows, no doubles\n" in said
    for ending in ("png", "pdf", "csv"):
        assert (out / f"latency_cdf.{ending}").stat().st_size > 1000
    for load in LOADS:
        assert (out / f"report_{load}.html").stat().st_size > 50_000
        for name, _ in SCHEMES.values():
            assert len(re.findall(rf"(?m)^{name}(?:  | \(INVALID\)).* % ", said)) == len(LOADS)
        runs = [read_results(out / load / scheme) for scheme in SCHEMES]
        for run in runs:
            assert verify_run(run.path).ok
            right = run.images["predicted"] == run.images["label"]
            assert right.mean() > 0.85  # these are trained networks on their test images
        assert {len(run.manifest["world"]) for run in runs} == {11}
    first, second = (read_results(out / load / "cascade").manifest for load in LOADS)
    assert first["cost_ratio"] == second["cost_ratio"]
    again = demo(out, GROUPS)
    assert (again.returncode, again.stdout) == (3, "")
    assert "holds a demo already" in again.stderr


def test_a_demo_of_warm_up_alone_is_refused_before_it_starts(tmp_path: Path) -> None:
    done = demo(tmp_path / "demo", 2)
    assert done.returncode == 2
    assert done.stderr == "collage-mpi demo: --groups is 2; it needs at least 3\n"
    assert not (tmp_path / "demo").exists()

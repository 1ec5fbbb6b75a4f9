"""The README's first command, short: real images, three runs, a table, a picture, proofs."""

from __future__ import annotations

from pathlib import Path

import pytest

from collage_mpi.cli import main
from collage_mpi.commands.demo import RANKS, SCHEMES
from collage_mpi.results import read_results, verify_run

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.slow]

IMAGES = 72


def test_the_demo_runs_shows_and_proves_every_scheme(tmp_path: Path, capfd) -> None:
    out = tmp_path / "demo"
    words = ["demo", f"--out={out}", f"--images={IMAGES}"]
    assert main(words) == 0, capfd.readouterr().err
    said = capfd.readouterr().out
    for ending in ("png", "pdf", "csv"):
        assert (out / f"latency_cdf.{ending}").stat().st_size > 1000
    assert (out / "report.html").stat().st_size > 50_000
    for name in SCHEMES:
        proof = f"verify {name}: complete: {IMAGES} of {IMAGES} rows, no doubles\n"
        assert proof in said
        run = read_results(out / name.split()[-1])
        assert verify_run(run.path).ok
        right = run.images["predicted"] == run.images["label"]
        assert right.mean() > 0.85  # these are trained networks on their test images
        assert len(run.manifest["world"]) == RANKS
        slow = run.manifest["settings"]["slow_ranks"]
        assert slow == ["4:5"]
    assert main(words) == 3
    again = capfd.readouterr()
    assert (again.out, "is there already" in again.err) == ("", True)
    assert main(["demo", f"--out={tmp_path / 'x'}", "--images=9"]) == 2
    assert "--images is 9; it needs at least 27" in capfd.readouterr().err

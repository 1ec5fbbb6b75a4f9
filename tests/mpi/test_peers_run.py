"""The peers do the work that they are measured at: every image once, whoever reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from collage_mpi.shards import write_shard

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi]

PEERS = Path(__file__).parents[2] / "analysis" / "peers"


@pytest.mark.parametrize(
    ("program", "source"),
    [
        ("bare_mpi", "workers"),
        ("futures", "sender"),
        ("futures", "workers"),
        ("static_loader", "workers"),
    ],
)
def test_every_image_is_classified_once(mpiexec, tmp_path, program, source):
    images = np.random.default_rng(0).integers(0, 256, (23, 5, 6, 3), np.uint8)
    write_shard(tmp_path / "s.h5", images)
    words = [PEERS / f"{program}.py", "--shard", tmp_path / "s.h5", "--images", "23"]
    words += ["--workers", "2", "--chunk", "4", "--source", source, "--notes", tmp_path]
    start = ["-m", "mpi4py.futures"] if program == "futures" else []
    ranks = 2 if program == "static_loader" else 3
    done = mpiexec(ranks, [*start, *words], env={"PYTHONPATH": str(PEERS)})
    assert done.returncode == 0, done.stderr
    (line,) = (text for text in done.stdout.splitlines() if text.startswith("{"))
    said = json.loads(line)
    assert said["rows"] == 23
    assert said["class_sum"] == int((images[:, 0, 0, 0] % 10).sum())
    assert (tmp_path / "started").exists()
    assert all(int((tmp_path / number).read_text()) > 0 for number in "12")

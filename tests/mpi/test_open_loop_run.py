"""A real open loop: images come at their times, and the rows say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from collage_mpi.results import read_results, summarise, verify_run
from collage_mpi.shards import write_shard
from collage_mpi.workload.arrivals import poisson_times_ns

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi]


def test_rows_of_a_real_open_loop_have_their_intended_arrivals(mpiexec, tmp_path: Path) -> None:
    images = np.arange(90 * 64, dtype=np.uint8).reshape(90, 8, 8, 1) % 10
    labels = images[:, 0, 0, 0].astype(np.int64)
    names = [str(i) for i in range(10)]
    write_shard(tmp_path / "s.h5", images, labels, class_names=names, source="test")
    words = ["-m", "collage_mpi", "run", "--shards", tmp_path / "s.h5", "--out", tmp_path / "run"]
    words += ["--single", "null", "--collage", "null", "--singles", "2", "--side", "2"]
    words += ["--rate", "150", "--warmup-groups", "1"]
    words += ["--straggler", "pinned:2"]
    done = mpiexec(4, words)
    assert done.returncode == 0, done.stderr
    assert "offered load" in done.stdout
    report = verify_run(tmp_path / "run")
    assert report.ok, report.problems
    run = read_results(tmp_path / "run")
    rows = np.sort(run.images, order="row")
    times_ns = poisson_times_ns(150.0, 0, 90)
    started_ns = rows["t0_ns"] - times_ns
    assert (started_ns == started_ns[0]).all()  # whatever the load, each counts from its own time
    assert started_ns[0] >= 0
    assert (rows["latency_ns"] > 0).all()
    arrivals = summarise(run)["arrivals"]
    assert arrivals["offered_per_s"] == pytest.approx(150, rel=0.4)

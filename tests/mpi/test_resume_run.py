"""Going on with a run: error rows done again, and a folder without a run."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import codes, run_many

from collage_mpi.cli import main
from collage_mpi.errors import ExitCode
from collage_mpi.results import read_results, verify_run
from collage_mpi.shards import write_shard

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi]

QUICK = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
RUN = ["-m", "collage_mpi", "run"]
WORN = """
from pathlib import Path
import numpy as np

class TopLeft:
    def predict(self, batch):
        if Path("worn").exists() and (batch == 7).any():
            raise OSError("worn")
        return np.eye(10)[batch[:, 0, 0, 0] % 10][:, None]

def network(kind, shape, side, cell_px, classes, device):
    return TopLeft()
"""


def test_error_rows_are_done_again_on_request(mpi, mpiexec, tmp_path) -> None:
    labels = np.arange(24) % 10
    images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (24, 6, 6, 1))
    write_shard(tmp_path / "s.h5", images, labels, class_names=list("abcdefghij"))
    (tmp_path / "mine.py").write_text(WORN)
    (tmp_path / "worn").touch()
    words = [*RUN, "--shards", "s.h5", "--single", f"{tmp_path}/mine.py:network"]
    words += ["--scheme", "none", "--out", "out", "--side", "2", "--singles", "4"]
    first = mpiexec(5, words, env=QUICK)
    assert first.returncode == ExitCode.COMPLETE_WITH_ERRORS, first.stderr
    errors = json.loads((tmp_path / "out" / "summary.json").read_text())["rows"]["errors"]
    assert errors == 2
    assert "--retry-errors" in first.stdout
    (tmp_path / "worn").unlink()
    retry = ["run", "--retry-errors", "--out", "out"]
    again = run_many(mpi, 5, [["run", "--out", "out"], retry, retry], tmp_path)
    assert [codes(case) for case in again] == [[code] * 5 for code in (5, 0, 0)], again
    report = verify_run(tmp_path / "out")
    assert report.headline == "complete: 24 of 24 rows, no doubles"
    found = read_results(tmp_path / "out")
    assert (found.images["predicted"] == found.images["row"] % 10).all()
    assert errors == (found.images["session"] == 2).sum()
    assert main(["export", str(tmp_path / "out"), "--to", "csv"]) == 0
    lines = (tmp_path / "out" / "export" / "images.csv").read_text().splitlines()
    assert len(lines) == 25
    assert not any(",error," in line for line in lines)


def test_a_folder_without_a_run_needs_settings(mpi, tmp_path) -> None:
    cases = [["run", "--out", "new"], ["run"]]
    for case in run_many(mpi, 4, cases, tmp_path):
        assert codes(case) == [ExitCode.USAGE] * 4
        assert sum("shards" in rank["err"] for rank in case) == 1
    assert not (tmp_path / "new").exists()

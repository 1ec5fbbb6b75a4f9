"""A rank that computes wrongly is named, and the rows are right."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from conftest import MpiExec

from collage_mpi.results import read_results, verify_run
from collage_mpi.results.reader import open_run
from collage_mpi.results.slow_ranks import failing_hosts

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.timeout(180)]

DEMO = str(files("collage_mpi") / "data" / "fashion_demo.h5")
NETWORK = """
from pathlib import Path
import numpy as np
from collage_mpi.job import networks
from collage_mpi.system.environment import launcher_rank

networks.KNOWN_EVERY = 96

class Net:
    '''The class is the brightness of the image. On rank 2 it becomes wrong.'''
    def __init__(self, errs, after):
        bad = launcher_rank() == 2 and not Path("mended").exists()
        self.errs, self.after, self.answered = bad and errs, after, 0
    def predict(self, batch):
        classes = (batch.reshape(len(batch), -1).mean(1) * 7).astype(int) % 10
        self.answered += len(batch)
        if self.errs and self.answered > self.after:
            wrong = self.errs(batch)
            classes[wrong] = (classes[wrong] + 1) % 10
        return (np.eye(10) * 0.9 + 0.01)[classes][:, None]

def now_and_then(kind, shape, side, cell_px, classes, device):
    dark = lambda batch: (batch.reshape(len(batch), -1).mean(1) * 100).astype(int) % 7 == 0
    return Net(lambda batch: dark(batch) & ((batch.reshape(len(batch), -1) == 0).mean(1) > 0.2), 0)

def all_at_once(kind, shape, side, cell_px, classes, device):
    return Net(lambda batch: slice(None), 220)  # a start asks for fewer
"""


def images_of_demo() -> np.ndarray:
    import h5py

    with h5py.File(DEMO) as shard:
        found: np.ndarray = next(each for each in shard.values() if each.ndim >= 3)[:]
    return found.reshape(len(found), -1)


def run(mpiexec: MpiExec, folder: Path, network: str, *more: str) -> str:
    """What a job of rank 0 and four workers says. The run is complete, and verified."""
    (folder / "nets.py").write_text(NETWORK)
    given = ["--single", f"nets:{network}", "--scheme", "none", "--batch", "8", *more]
    done = mpiexec(5, ["-m", "collage_mpi", "run", "--shards", DEMO, *given, "--out", "run"])
    assert done.returncode == 0, done.stderr
    report = verify_run(folder / "run")
    assert report.ok, report.problems
    return done.stdout + done.stderr


def wrong_rows(folder: Path) -> np.ndarray:
    rows = read_results(folder / "run").images
    right = (images_of_demo().mean(1) * 7).astype(int) % 10
    found: np.ndarray = rows[rows["predicted"] != right[rows["row"]]]
    return found


def test_a_rank_that_is_wrong_now_and_then_is_named_and_every_row_is_right(
    mpiexec: MpiExec, tmp_path: Path
) -> None:
    said = run(mpiexec, tmp_path, "now_and_then", "--check", "1")
    assert "warning: rank 2 (cpu of " in said
    assert "otherwise than two other ranks" in said
    assert not len(wrong_rows(tmp_path))
    told = json.loads((tmp_path / "run" / "summary.json").read_text())
    wrong = {each["name"]: each["wrong"] for each in told["checked"] if each["unit"] == "rank"}
    assert wrong.pop("1:2") > 0
    assert not any(wrong.values())
    assert "rank 2 answered wrongly" in str(failing_hosts(open_run(tmp_path / "run")))


def test_a_rank_whose_weights_change_gets_no_more_work(mpiexec: MpiExec, tmp_path: Path) -> None:
    said = run(mpiexec, tmp_path, "all_at_once")
    assert "warning: rank 2 (cpu of " in said
    assert "gets no more work: 32 of 32 inputs got another class than at the start" in said
    wrong = wrong_rows(tmp_path)
    assert {*wrong["rank"].tolist()} <= {2}
    assert len(wrong) <= 112  # KNOWN_EVERY, and the batches around it
    rows = read_results(tmp_path / "run").images
    assert (rows["rank"] == 2).sum() < 450
    assert "rank 2 answered known inputs wrongly" in str(failing_hosts(open_run(tmp_path / "run")))
    (tmp_path / "mended").touch()
    again = ["-m", "collage_mpi", "run", "--redo-rank", "2", "--out", "run"]
    done = mpiexec(5, again)
    assert done.returncode == 0, done.stderr
    assert f"rank 2: {(rows['rank'] == 2).sum():,} answers to be given again" in done.stderr
    assert verify_run(tmp_path / "run").ok
    assert not len(wrong_rows(tmp_path))
    kept = read_results(tmp_path / "run").images
    assert not ((kept["rank"] == 2) & (kept["session"] == 1)).any()
    assert "RANK or JOB:RANK" in mpiexec(1, [*again[:3], "--redo-rank", "x", "--out", "run"]).stderr

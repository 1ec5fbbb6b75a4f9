"""A rank that computes wrongly is named, and the rows are right."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest
from conftest import MpiExec

from collage_mpi.results import read_results, verify_run
from collage_mpi.results.reader import open_run
from collage_mpi.results.slow_ranks import failing_hosts

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.timeout(180)]

DEMO = str(files("collage_mpi") / "data" / "fashion_demo.h5")
NETWORK = """
import numpy as np
from collage_mpi.system.environment import launcher_rank

class Net:
    '''The class is the brightness of the image.'''
    def __init__(self, rank): self.rank, self.answered = rank, 0
    def predict(self, batch):
        classes = (batch.reshape(len(batch), -1).mean(1) * 7).astype(int) % 10
        self.answered += len(batch)
        if self.rank == 2 and self.answered > 300:
            classes[::7] = (classes[::7] + 1) % 10
        return (np.eye(10) * 0.9 + 0.01)[classes][:, None]

def network(kind, shape, side, cell_px, classes, device):
    return Net(launcher_rank())
"""


def test_a_rank_that_answers_wrongly_is_named_and_every_row_is_right(
    mpiexec: MpiExec, tmp_path: Path
) -> None:
    (tmp_path / "nets.py").write_text(NETWORK)
    given = ["--single", "nets:network", "--scheme", "none", "--batch", "8", "--check", "1"]
    done = mpiexec(5, ["-m", "collage_mpi", "run", "--shards", DEMO, *given, "--out", "run"])
    assert done.returncode == 0, done.stderr
    assert "warning: rank 2 (cpu of " in done.stdout + done.stderr
    run = tmp_path / "run"
    assert verify_run(run).ok, verify_run(run).problems
    rows, told = read_results(run).images, json.loads((run / "summary.json").read_text())
    wrong = {each["rank"]: each["wrong"] for each in told["checked"]}
    assert wrong.pop(2) > 0
    assert not any(wrong.values())
    assert "rank 2 answered wrongly" in str(failing_hosts(open_run(run)))
    import h5py

    with h5py.File(DEMO) as shard:
        images = next(each for each in shard.values() if each.ndim >= 3)[:]
    right = (images.reshape(len(images), -1).mean(1) * 7).astype(int) % 10
    assert (rows["predicted"] == right[rows["row"]]).all()

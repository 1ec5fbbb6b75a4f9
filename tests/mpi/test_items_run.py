"""Items that are no pictures, on real ranks: 12-channel uint16 tiles and float32 volumes, through
rank 0 and read by workers, killed and resumed.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import codes, run_many
from test_run import QUICK, one_message

from collage_mpi.errors import ExitCode
from collage_mpi.results import read_results, verify_run
from collage_mpi.shards import write_shard

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi]

WORLD = 4
NETS = """
import numpy as np

class Brightest:
    '''The class is the channel of the largest mean.'''
    input_dtype, input_shape = "uint16", (8, 8, 12)
    def predict(self, batch):
        assert batch.dtype == np.uint16, batch.dtype
        return np.eye(12)[batch.mean((1, 2)).argmax(1)][:, None]

def tiles(kind, shape, side, cell_px, classes, device):
    return Brightest()

def volumes(kind, shape, side, cell_px, classes, device):
    import torch
    from torch import nn
    class Volumes(nn.Module):
        '''A convolution of (n, 2, D, H, W) whose first class is a positive mean of channel 1.'''
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv3d(2, 2, 3, padding=1, bias=False)
            self.conv.weight.data.zero_()
            self.conv.weight.data[0, 1, 1, 1, 1] = 100
            self.conv.weight.data[1, 1, 1, 1, 1] = -100
        def forward(self, x):
            assert x.shape[1:] == (2, *shape[:3])
            return self.conv(x).mean((2, 3, 4))
    return Volumes()
"""


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, np.ndarray]:
    """`tiles.h5`, `tiles.zarr`, `own/tiles.h5` and `volumes.h5`, and the class of each item."""
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    random = np.random.default_rng(3)
    tiles = random.integers(0, 60_000, (40, 8, 8, 12), dtype=np.uint16)
    volumes = random.normal(size=(20, 5, 6, 7, 2)).astype(np.float32)
    for name, array in (("tiles", tiles), ("volumes", volumes)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["images"] = array
    zarr.create_array(str(tmp_path / "tiles.zarr"), data=tiles, chunks=(6, 8, 8, 12))
    (tmp_path / "own").mkdir()
    write_shard(tmp_path / "own" / "tiles.h5", tiles)
    (tmp_path / "nets.py").write_text(NETS)
    means = volumes[..., 1].astype(np.float64).mean((1, 2, 3))
    return {"tiles": tiles.mean((1, 2)).argmax(1), "volumes": (means < 0).astype(int)}


def run_of(path: str, pixels: str, net: str) -> list[str]:
    words = ["run", "--scheme", "none", "--side", "2", "--singles", str(WORLD - 1)]
    words += ["--single", f"nets.py:{net}", "--order", "shuffle:1", "--input", path]
    return [*words, "--pixels", pixels, "--out", f"{path.replace('/', '-')}-{pixels}"]


def predicted(out: Path) -> np.ndarray:
    rows = read_results(out).images
    assert rows["answered"].all()
    return rows["predicted"][np.argsort(rows["row"])]


def test_the_answers_are_those_of_the_network_whoever_reads(mpi, inputs, tmp_path):
    paths = ("tiles.h5", "tiles.zarr", "own/tiles.h5", "volumes.h5")
    cases = [
        [*run_of(path, pixels, path.rpartition("/")[2].partition(".")[0]), "--batch", "3"]
        for path in paths
        for pixels in ("rank0", "workers")
    ]
    wrong = run_of("tiles.h5", "rank0", "tiles")
    collage = ["--scheme", "collage", "--collage", "null", "--singles", "2", "--out", "x"]
    other = ["--single", "nets.py:tiles", "--out", "y"]
    refused = [[*wrong, *collage], [*run_of("volumes.h5", "rank0", "volumes"), *other]]
    done = run_many(mpi, WORLD, [*cases, *refused], tmp_path, libraries=["torch"])
    assert [codes(case) for case in done[: len(cases)]] == [[0] * WORLD] * len(cases), done
    for case in cases:
        out = tmp_path / case[case.index("--out") + 1]
        report = verify_run(out)
        assert report.ok, report.problems
        assert predicted(out).tolist() == inputs[out.name.split(".")[0].rpartition("-")[2]].tolist()
    pasted, typed = ("".join(rank["err"] for rank in case) for case in done[len(cases) :])
    assert codes(done[-2]) == [ExitCode.USAGE] * WORLD
    assert "scheme collage pastes" in one_message(pasted)
    assert codes(done[-1]) == [ExitCode.DATA] * WORLD
    assert "float32 (5, 6, 7, 2), the single network nets.py:tiles takes uint16" in one_message(
        typed
    )


def test_a_killed_run_goes_on_and_a_lost_chunk_is_error_rows(mpiexec, programs, inputs, tmp_path):
    (tmp_path / "tiles.zarr" / "c" / "1" / "0" / "0" / "0").unlink()  # rows 6 to 11
    words = run_of("tiles.zarr", "rank0", "tiles")
    killed = mpiexec(WORLD, [programs / "saboteur.py", 0, "stop:SIGKILL", *words], env=QUICK)
    assert killed.returncode not in (0, 5)
    out = tmp_path / words[-1]
    assert verify_run(out).status == "incomplete"
    go_on = ["-m", "collage_mpi", "run", "--out", out]
    done = mpiexec(WORLD, go_on, env=QUICK)
    assert done.returncode == ExitCode.COMPLETE_WITH_ERRORS, done.stderr
    report = verify_run(out)
    assert report.headline == "complete with errors: 40 of 40 rows, no doubles, 6 error rows"
    rows = read_results(out).images
    assert sorted(rows[~rows["answered"]]["row"].tolist()) == [6, 7, 8, 9, 10, 11]
    good = rows[rows["answered"]]
    assert (good["predicted"] == inputs["tiles"][good["row"].astype(int)]).all()

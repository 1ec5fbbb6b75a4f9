"""JPEGs to a finished run: prep under mpiexec, then a job with a network of the user's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import codes, run_many
from PIL import Image

from collage_mpi.errors import ExitCode
from collage_mpi.results import read_results, verify_run

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.timeout(180)]

NETWORK = """
import numpy as np

class Brightest:
    '''The class is the channel that is brightest: red, green, blue.'''
    def __init__(self, side): self.side = side
    def predict(self, batch):
        n, height, width, channels = batch.shape
        px = height // self.side
        cells = batch.reshape(n, self.side, px, self.side, px, channels).mean((2, 4))
        cells = cells.reshape(n, self.side ** 2, channels)
        return np.eye(3)[cells.argmax(2)]
    def embed(self, batch):
        return self.predict(batch), batch.mean((1, 2))

def network(kind, shape, side, cell_px, classes, device):
    assert classes in (3, None) and shape[2] == 3
    return Brightest(side if kind == "collage" else 1)
"""


def test_jpegs_under_mpi_with_a_network_of_ones_own(mpi, mpiexec, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for channel, name in enumerate(("1 red", "2 green", "3 blue")):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(0, 120, (230 + number, 300, 3), dtype=np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(folder / f"{number}.jpg")
    (tmp_path / "pictures" / "1 red" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    prep = ["-m", "collage_mpi", "prep", "images", "pictures", "--out", "shards"]
    done = mpiexec(3, [*prep, "--images-per-shard", "10"])
    assert done.returncode == ExitCode.COMPLETE_WITH_ERRORS, done.stderr
    assert "rank 2: " in done.stdout
    assert len(list((tmp_path / "shards").glob("*.h5"))) == 4
    plain = ["-m", "collage_mpi", "prep", "images", "pictures/2 green", "--out", "plain"]
    assert mpiexec(1, plain).returncode == ExitCode.COMPLETE
    (tmp_path / "my_nets.py").write_text(NETWORK)
    own = ["--single", "my_nets:network", "--collage", "my_nets.py:network", "--cell-px", "112"]
    kept = ["--top-k", "2", "--save", "scores"]
    common = ["run", "--shards", "shards", "--side", "2"]
    run = [*common, *own, *kept, "--out", "run"]
    embeds = ["--single", "my_nets:network", "--scheme", "none", "--save", "embeddings"]
    cases = [run, [*common, *embeds, "--batch", "3", "--out", "embeddings"]]
    cases.append([*run[:-1], "other", "--single", "my_nets:nothing"])
    unlabelled = ["run", "--shards", "plain", "--side", "2", *own]  # the network knows its classes
    cases.append([*unlabelled, "--top-k", "2", "--out", "unlabelled"])
    cases.append([*unlabelled, "--top-k", "4", "--out", "too-many"])
    done, embedded, refused, counted, too_many = run_many(
        mpi, 6, cases, tmp_path, libraries=["torch"]
    )
    assert codes(done) == [0] * 6, done[0]["err"]
    assert "complete: 36 of 36 images" in done[0]["out"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["accuracy"]["overall"]["correct"] == summary["accuracy"]["overall"]["n"]
    report, results = verify_run(tmp_path / "run"), read_results(tmp_path / "run")
    assert report.ok, report.problems
    assert report.vectors == 36
    labels = results.images["label"]  # all are right
    assert (results.kept("top_classes")[:, 0] == labels).all()
    assert np.array_equal(results.kept("scores"), np.eye(3)[labels])
    assert codes(embedded) == [0] * 6, embedded[0]["err"]
    results = read_results(tmp_path / "embeddings")
    assert verify_run(tmp_path / "embeddings").vectors == 36
    assert (results.kept("embedding").argmax(1) == results.images["label"]).all()
    assert results.kept("embedding").shape == (36, 3)
    assert codes(counted) == [0] * 6, counted[0]["err"]
    rows = read_results(tmp_path / "unlabelled").images
    assert (rows["predicted"] == 1).all()  # green
    assert not rows["has_label"].any()
    assert codes(too_many) == [ExitCode.USAGE] * 6
    assert "top_k is 4, but there are only 3 classes" in too_many[0]["err"]
    assert codes(refused) == [ExitCode.USAGE] * 6
    told = "".join(rank["err"] for rank in refused)
    assert "has no function 'nothing'; it has Brightest, network" in told
    assert "Traceback" not in told

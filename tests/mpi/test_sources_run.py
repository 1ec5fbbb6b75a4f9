"""Pictures where they lie, on real ranks: the rows are those of a run over shards of them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import codes, run_many
from pictures import KINDS, make_source, picture, write_folder
from PIL import Image
from test_run import QUICK

from collage_mpi.errors import ExitCode
from collage_mpi.results import image_names, read_results, verify_run

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi]

WORLD, COUNT = 5, 30
AT_WORKERS = ("folder", "tar", "hugging", "zarr3")
NETWORK = """
import numpy as np

class Mean:
    def predict(self, batch):
        scores = np.exp(batch.reshape(len(batch), -1, 3).mean(1) / 9).astype(np.float32)
        return (scores / scores.sum(1, keepdims=True))[:, None]

def network(kind, shape, side, cell_px, classes, device):
    return Mean()
"""


@pytest.fixture
def run(tmp_path: Path) -> list[str]:
    (tmp_path / "nets.py").write_text(NETWORK)
    words = ["run", "--scheme", "none", "--side", "2", "--single", tmp_path / "nets.py:network"]
    return [*map(str, words), "--image-px", "16", "--resize-px", "16", "--order", "shuffle:1"]


def answers(out: Path) -> list[tuple]:
    """What a run says of each image, times and ranks left out."""
    assert verify_run(out).ok
    rows = read_results(out).images
    return sorted(rows[["shard", "row", "answered", "predicted", "score"]].tolist())


def test_the_rows_are_those_of_shards(mpi, run, tmp_path):
    files = write_folder(tmp_path / "photos", COUNT)
    kinds = [kind for kind in KINDS if "zarr" not in kind or find_spec("zarr")]
    paths = {kind: make_source(kind, tmp_path / kind, files) for kind in kinds}
    cases = [
        [*run, "--input", path, "--pixels", pixels, "--out", tmp_path / f"{kind}-{pixels}"]
        for kind, path in paths.items()
        for pixels in ("rank0", "workers")
        if pixels == "rank0" or kind in AT_WORKERS
    ]
    done = run_many(mpi, WORLD, cases, tmp_path)
    assert [codes(case) for case in done] == [[0] * WORLD] * len(cases), done
    expected = answers(tmp_path / "shard-rank0")
    assert len(expected) == COUNT
    assert len({predicted for *_, predicted, _ in expected}) > 1
    for case in cases:
        assert answers(case[-1]) == expected
    names = image_names(read_results(tmp_path / "folder-workers"))
    assert set(names.id.tolist()) == {f"{file.parent.name}/{file.name}" for file in files}


def test_a_tar_that_is_gone_after_its_last_image_was_read_leaves_a_complete_run(mpi, run, tmp_path):
    files = write_folder(tmp_path / "photos", COUNT)
    Image.new("RGB", (16, 16), "white").save(files[-1], "PNG")  # which is classified last
    tar = make_source("tar", tmp_path / "tar", files)
    text = NETWORK.replace(
        "    def predict(self, batch):",
        "    def predict(self, batch):\n"
        "        if batch.min() == 255:\n"
        f"            __import__('pathlib').Path({str(tar)!r}).unlink(missing_ok=True)",
    )
    (tmp_path / "nets.py").write_text(text)
    words = [*run, "--input", tar, "--pixels", "workers", "--batch", "1", "--order", "file"]
    [done] = run_many(mpi, 2, [[*words, "--out", "out"]], tmp_path)
    assert not tar.exists()
    assert codes(done) == [ExitCode.COMPLETE] * 2, done
    assert len(answers(tmp_path / "out")) == COUNT


def test_a_killed_run_of_a_folder_goes_on_with_the_pictures_that_it_began_with(
    mpi, mpiexec, programs, run, tmp_path
):
    files = write_folder(tmp_path / "photos", 120)
    files[7].write_bytes(picture(7)[:50])
    words = [*run, "--input", "photos", "--pixels", "workers", "--out", "out"]
    saboteur = [programs / "saboteur.py", 0]
    stopped = mpiexec(WORLD, [*saboteur, "stop:SIGTERM", *words], env=QUICK)
    assert stopped.returncode == ExitCode.INCOMPLETE, stopped.stderr
    (tmp_path / "photos" / "bee" / "new.jpg").write_bytes(picture(1))
    go_on = ["run", "--out", "out"]
    killed = mpiexec(WORLD, [*saboteur, "stop:SIGKILL", *go_on], env=QUICK)
    assert killed.returncode not in (0, 5)
    assert verify_run(tmp_path / "out").status == "incomplete"
    done = mpiexec(WORLD, ["-m", "collage_mpi", *go_on], env=QUICK)
    assert done.returncode == ExitCode.COMPLETE_WITH_ERRORS, done.stderr
    report = verify_run(tmp_path / "out")
    assert report.headline == "complete with errors: 120 of 120 rows, no doubles, 1 error row"
    found = read_results(tmp_path / "out").images
    assert {1, 3} <= set(found["session"].tolist())
    assert found[~found["answered"]]["row"].tolist() == [7]

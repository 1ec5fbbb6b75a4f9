"""A user's class over pictures: killed, gone on with by other numbers of ranks, verified, exported,
and the same as a loop over the pictures.
"""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import collage_mpi
from collage_mpi.api import spec_of
from collage_mpi.cli import main
from collage_mpi.errors import ExitCode
from collage_mpi.results import read_results, verify_run

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.timeout(300)]

PX, PICTURES = 16, 160
CLASSES = """
import os, signal, time
from pathlib import Path
import numpy as np

class Detect:
    '''Columns in which a picture is bright: of any number, none of the noise too.'''
    def __init__(self, device): self.seen = 0
    def die(self):
        '''At its 25th image, once so many parts are on the disk.'''
        parts = os.environ.get("DIE_AT")
        while parts and self.seen > 24:
            if len([*Path("out/parts").glob("images-*.parquet")]) >= int(parts):
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(0.01)
    def __call__(self, batch):
        self.seen += int((batch[:, 0, 0, 0] < 9).sum())  # not the noise of the warm-up
        self.die()
        if any(b[0, 0, 0] == 7 for b in batch): raise ValueError("a seven")
        rows = [np.flatnonzero(b.mean((0, 2)) > 132) for b in batch]
        boxes = [np.stack([r, r + 1], 1).astype(np.float32) for r in rows]
        return {"boxes": boxes, "n": [len(r) for r in rows], "said": [f"{len(r)} ä" for r in rows]}

class Embed:
    def __init__(self, device): pass
    def __call__(self, batch):
        if (batch[:, 0, 0, 0] == 7).any(): raise ValueError("a seven")
        return {"embedding": batch.mean((1, 2)).astype(np.float16)}
"""


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch) -> np.ndarray:
    """(n, H, W, C) uint8, which lie in photos/, beside the classes."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Path("own.py").write_text(CLASSES)
    pixels = np.random.default_rng(0).integers(0, 256, (PICTURES, PX, PX, 3), np.uint8)
    pixels[:, 0, 0, 0] = 8
    pixels[5, 0, 0, 0] = 7
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(f"photos/{number:03d}.png")
    return pixels


def classes() -> Any:
    spec = importlib.util.spec_from_file_location("own", "own.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


COMMON = ["--input", "photos", "--image-px", str(PX), "--device", "cpu"]


def test_detections_of_a_job_that_is_killed_are_those_of_a_loop(
    pictures: np.ndarray, monkeypatch, capfd
) -> None:
    words = ["map", "own.py:Detect", *COMMON, "--out", "out"]
    monkeypatch.setenv("DIE_AT", "1")
    assert main([*words, "--ranks", "3"]) not in (0, 2, 3, 4, 5), capfd.readouterr().err
    assert len(read_results("out")) < PICTURES
    monkeypatch.delenv("DIE_AT")
    assert main([*words, "--ranks", "2"]) == ExitCode.COMPLETE_WITH_ERRORS, capfd.readouterr().err
    assert "outputs in out/rows; collage-mpi verify out proves" in capfd.readouterr().out
    report, results = verify_run("out"), read_results("out")
    assert report.ok, report.problems
    assert {*results.images["session"]} in ({1, 2}, {2})  # launchers kill the others at once
    done = np.delete(np.arange(PICTURES), 5)
    expected = classes().Detect("cpu")(pictures[done])
    assert len({len(boxes) for boxes in expected["boxes"]}) > 2
    for name, values in expected.items():
        found = results.kept(name)[done]
        assert len(found) == len(values)
        assert all(np.array_equal(a, b) for a, b in zip(found, values, strict=True))
    zarr = pytest.importorskip("zarr")
    assert main(["export", "out", "--to", "zarr"]) == 0
    arrays = zarr.open_group("out/export/outputs.zarr", mode="r")
    assert np.array_equal(arrays["boxes"][:], np.concatenate(expected["boxes"]))
    assert np.array_equal(np.diff(arrays["boxes_offsets"][:])[done], expected["n"])
    assert arrays["id"][:].tolist() == [f"{number:03d}.png" for number in range(PICTURES)]
    assert arrays["said"][5] == ""


def test_a_hedged_job_keeps_the_first_answers_and_names_what_raised(
    pictures: np.ndarray, capfd
) -> None:
    hedge = ["--scheme", "hedge", "--deadline-ms", "1", "--limit", "40", "--ranks", "3"]
    words = ["map", "own.py:Embed", *COMMON, *hedge, "--out", "out"]
    assert main(words) == ExitCode.COMPLETE_WITH_ERRORS, capfd.readouterr().err
    assert verify_run("out").ok
    results = read_results("out")
    (error,) = results.images[~results.images["answered"]]
    assert error["row"] == 5
    assert b"ValueError: a seven" in error["reason"]
    expected = pictures.mean((1, 2)).astype(np.float16)
    assert np.array_equal(
        np.delete(results.kept("embedding"), 5, 0), np.delete(expected[:40], 5, 0)
    )


def test_a_class_is_mapped_from_python(pictures: np.ndarray, monkeypatch) -> None:
    module = classes()
    monkeypatch.setitem(__import__("sys").modules, "own", module)
    results = collage_mpi.map_batches(
        module.Embed, input="photos", out="out", ranks=2, image_px=PX, device="cpu", limit=5
    )
    assert results.complete
    assert len(results) == 5
    assert [results[i]["embedding"].shape for i in range(5)] == [(3,)] * 5
    assert next(itertools.islice(results, 1))["fingerprint"] == results.fingerprints[0]


def test_volumes_are_mapped_too(pictures: np.ndarray) -> None:
    zarr = pytest.importorskip("zarr")
    volumes = np.random.default_rng(1).integers(0, 4000, (12, 3, 5, 4, 2), np.uint16)
    zarr.save_group("volumes.zarr", images=volumes)
    Path("vol.py").write_text(
        "class Bright:\n    def __init__(self, device): pass\n"
        "    def __call__(self, batch): return {'bright': batch > 2000}\n"
    )
    how = {"out": "out", "ranks": 2, "device": "cpu"}
    results = collage_mpi.map_batches("vol.py:Bright", input=["volumes.zarr"], **how)
    assert results.complete
    assert np.array_equal(results.kept("bright"), volumes > 2000)


def test_what_cannot_be_mapped_is_refused_before_ranks_wait(pictures: np.ndarray, capfd) -> None:
    Path("wrong.py").write_text(
        "class Silent:\n    def __init__(self, device): pass\n"
        "class Refuses:\n    def __init__(self, device): raise OSError('no such model')\n"
        "    def __call__(self, batch): return {}\n"
        "class Counts(Refuses):\n    def __init__(self, device): pass\n"
        "    def __call__(self, batch): return [1] * len(batch)\n"
    )
    local = type("Local", (), {"__qualname__": "test.<locals>.Local"})
    for function, code, says in (
        ("gone.py:Detect", ExitCode.USAGE, "gone.py cannot be imported"),
        ("own.py:Detects", ExitCode.USAGE, "own.py has no function 'Detects'; it has Path"),
        ("wrong.py:Silent", ExitCode.USAGE, "has no __call__(batch)"),
        ("wrong.py:Refuses", ExitCode.USAGE, "OSError: no such model"),
        ("own.py", ExitCode.USAGE, "names no class"),
        ("wrong.py:Counts", ExitCode.DATA, "wrong.py:Counts returned a list; needed: a dict"),
    ):
        words = ["map", function, *COMMON, "--out", "out", "--ranks", "2", "--limit", "4"]
        assert main(words) == code
        said = capfd.readouterr().err
        assert says in said
        assert "Traceback" not in said
    with pytest.raises(collage_mpi.errors.UsageError, match=r"at the top of a \.py file"):
        spec_of(local)

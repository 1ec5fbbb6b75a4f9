"""docs/boxes.py: boxes by torchvision, alone, in two steps, and beside a network of classes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from collage_mpi.cli import main
from collage_mpi.errors import ExitCode
from collage_mpi.results import read_results
from collage_mpi.shards.pictures import PictureFit, picture_pixels

pytest.importorskip("torchvision")
pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.timeout(300)]

EXAMPLE = Path(__file__).parents[2] / "docs" / "boxes.py"
FIT = PictureFit(64, "letterbox")
SIZES = {"a.png": (40, 80), "b/tall.jpg": (90, 30), "c.png": (50, 50)}  # height, width


@pytest.fixture
def boxes(tmp_path: Path, monkeypatch) -> ModuleType:
    """The example, beside photos/ with a damaged picture and one that EXIF turns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LEAST_CONFIDENCE", "0.2")  # of random weights
    random = np.random.default_rng(0)
    for name, size in SIZES.items():
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if "tall" in name else 1
        coarse = random.integers(0, 256, (size[0] // 10, size[1] // 10, 3), np.uint8)
        Image.fromarray(coarse.repeat(10, 0).repeat(10, 1)).save(Path("photos", name), exif=exif)
    Path("photos/damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    spec = importlib.util.spec_from_file_location("boxes", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mapped(name: str, out: str) -> None:
    words = ["map", f"{EXAMPLE}:{name}", "--input", "photos", "--input-labels", "none"]
    words += ["--fit", "letterbox", "--image-px", "64", "--device", "cpu", "--ranks", "2"]
    assert main([*words, "--out", out]) == ExitCode.COMPLETE_WITH_ERRORS


def pixels(name: str) -> np.ndarray:
    return picture_pixels(Path("photos", name).read_bytes(), FIT)[None]


@pytest.mark.usefixtures("torch_once")
def test_megadetectors_json_has_the_boxes_and_classes_of_each_picture(boxes: ModuleType) -> None:
    mapped("TwoSteps", "runs/two")
    words = [sys.executable, str(EXAMPLE), "runs/two", "photos", "boxes.json"]
    subprocess.run(words, check=True, timeout=100)
    told = json.loads(Path("boxes.json").read_text())
    assert told["info"]["format_version"] == "1.4"
    assert told["detection_categories"] == {"1": "animal", "2": "person", "3": "vehicle"}
    assert {*told["classification_categories"]} == {"0", "1", "2", "3"}
    files = {each["file"]: each for each in told["images"]}
    assert {*files} == {*SIZES, "damaged.jpg"}
    assert files["damaged.jpg"]["detections"] is None
    assert "cannot be decoded" in files["damaged.jpg"]["failure"]
    own, found = boxes.TwoSteps("cpu"), 0
    for name, (height, width) in SIZES.items():
        answers = own(pixels(name))
        upright = (height, width) if "tall" in name else (width, height)
        wanted = boxes.in_picture(answers["boxes"][0][:, :4], *upright)
        assert len(files[name]["detections"]) == len(wanted)
        for detection, bbox, box, species in zip(
            files[name]["detections"],
            wanted,
            answers["boxes"][0],
            answers["species"][0],
            strict=True,
        ):
            assert detection["bbox"] == pytest.approx(bbox, abs=1e-3)
            assert min(detection["bbox"]) >= 0
            assert detection["bbox"][0] + detection["bbox"][2] <= 1.001
            assert detection["conf"] == pytest.approx(box[4], abs=1e-3)
            assert detection["category"] == str(int(box[5]))
            ((label, score),) = detection["classifications"]
            assert (label, score) == (str(int(species[0])), pytest.approx(species[1], abs=1e-3))
            found += 1
    assert found > len(SIZES)


@pytest.mark.usefixtures("torch_once")
def test_boxes_alone_have_no_classes_of_what_is_in_them(boxes: ModuleType) -> None:
    mapped("Boxes", "runs/boxes")
    told = boxes.megadetector(Path("runs/boxes"), Path("photos"))
    assert "classification_categories" not in told
    assert all("classifications" not in d for e in told["images"] for d in e["detections"] or ())


def test_boxes_of_the_square_become_boxes_of_the_picture(boxes: ModuleType) -> None:
    square = np.array([[0.0, 0.25, 1.0, 0.75], [0.5, 0.5, 0.75, 0.9]])
    assert boxes.in_picture(square, 80, 40).tolist() == [[0, 0, 1, 1], [0.5, 0.5, 0.25, 0.5]]
    assert boxes.in_picture(square, 50, 50).tolist() == [[0, 0.25, 1, 0.5], [0.5, 0.5, 0.25, 0.4]]


@pytest.mark.usefixtures("torch_once")
def test_boxes_are_columns_beside_classes_in_one_pass(boxes: ModuleType) -> None:
    words = ["classify", "photos", "--fit", "letterbox", "--image-px", "64", "--device", "cpu"]
    words += ["--network", "null", "--network", f"map:{EXAMPLE}:Boxes", "--ranks", "1"]
    assert main([*words, "--out", "t.parquet"]) == ExitCode.COMPLETE_WITH_ERRORS
    rows = {row["id"]: row for row in parquet.read_table("t.parquet").to_pylist()}
    for name in SIZES:
        (wanted,) = boxes.Boxes("cpu")(pixels(name))["boxes"]
        assert np.allclose(rows[name]["Boxes_boxes"], wanted, atol=1e-4)
        assert rows[name]["class"] is not None
    assert rows["damaged.jpg"]["Boxes_boxes"] is None
    assert len(read_results("t.parquet.run")) == 4

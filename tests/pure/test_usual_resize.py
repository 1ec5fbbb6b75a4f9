"""How pictures are resized for networks that do not say it, and the line that tells the user."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from collage_mpi.job import plan
from collage_mpi.models.asking import Described
from collage_mpi.models.info import own_info
from collage_mpi.settings.run_settings import RunSettings


@pytest.mark.parametrize(
    ("single", "network_px", "says", "more", "fit", "told"),
    [
        ("n.onnx", 224, None, {}, "crop 224 x 224 x 3 from 256", True),
        ("n.pt2", 112, None, {}, "crop 112 x 112 x 3 from 128", True),
        ("n.ts", None, None, {"image_px": 28}, "crop 28 x 28 x 3 from 32", True),
        ("own.py:network", None, None, {}, "crop 224 x 224 x 3 from 256", True),
        ("n.onnx", 224, None, {"resize_px": 224}, "crop 224 x 224 x 3 from 224", False),
        ("n.onnx", 224, None, {"fit": "letterbox"}, "letterbox 224 x 224 x 3", False),
        ("timm:m", 224, 235, {}, "crop 224 x 224 x 3 from 235 by bicubic", False),
        ("hf:m", 224, None, {}, "crop 224 x 224 x 3", False),
        ("null", None, None, {}, "crop 224 x 224 x 3", False),
        ("own.py:Map", None, None, {"save": "outputs"}, "crop 224 x 224 x 3", False),
    ],
)
def test_pictures_get_the_usual_resize_if_no_network_says_another(
    single, network_px, says, more, fit, told, tmp_path: Path, monkeypatch, caplog
) -> None:
    def ask(spec, kind, geometry, *_) -> Described:
        shape = geometry.image_shape if network_px is None else (network_px, network_px, 3)
        geometry = plan.Geometry(shape, 3, shape[0], 2)
        return Described(own_info(spec, kind, geometry, "0" * 64), 2, says, says and "bicubic")

    monkeypatch.setattr(plan, "ask", ask)
    monkeypatch.setattr(plan, "describe", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save("photos/a.png")
    settings = RunSettings(shards="photos", single=single, scheme="none", out="o", **more)
    with caplog.at_level(logging.INFO, "collage_mpi"):
        made = plan.make_plan(settings, 10)
    assert [info.fit for info in made.shards.infos] == [fit]
    lines = [r.message for r in caplog.records if "does not say how pictures" in r.message]
    assert [line.startswith(f"{single} does not say") for line in lines] == [True] * told

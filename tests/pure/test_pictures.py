"""Pictures of every mode and size into pixels; damaged ones are told, never guessed. How they are
resized for networks that do not say it, and the line that tells the user.
"""

from __future__ import annotations

import io
import logging
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.job import plan
from collage_mpi.models.asking import Described
from collage_mpi.models.info import own_info
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards.pictures import (
    PictureFit,
    TooSmall,
    UnreadablePicture,
    fit_pixels,
    parse_fit,
    picture_pixels,
)

HALVES = np.zeros((20, 40, 3), np.uint8)  # left red, right blue: a rotation is seen
HALVES[:, :20], HALVES[:, 20:] = (250, 0, 0), (0, 0, 250)


def file_of(picture: Any, kind: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **more)
    return buffer.getvalue()


def colour(mode: str) -> Image.Image:
    return Image.fromarray(HALVES).convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *((mode, "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
        *((mode, "JPEG") for mode in ("L", "RGB", "CMYK", "YCbCr")),
        ("CMYK", "TIFF"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_gives_the_same_picture(mode: str, kind: str, channels: int) -> None:
    grey = np.repeat(np.arange(256, dtype=np.uint8)[None], 64, axis=0)  # (64, 256)
    if mode == "I;16":
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        first = Image.fromarray(grey) if mode == "P" else Image.fromarray(grey).convert("RGB")
        picture = first.convert(mode)  # a palette of greys; of colours it would be dithered
    pixels = picture_pixels(file_of(picture, kind), PictureFit(64, channels=channels))
    assert pixels.shape == (64, 64, channels)
    assert pixels.dtype == np.uint8
    middle = grey[:, 96:160, None].astype(int)
    allowed = 255 if mode == "1" else 6  # one bit is dithered; JPEG rounds
    assert np.abs(pixels.astype(int) - middle).max() <= allowed
    if mode == "1":
        assert abs(pixels.mean() - middle.mean()) < 10


def test_16_bits_are_scaled_not_cut() -> None:
    deep = np.array([[0, 257, 65535, 32768]], dtype=np.uint16)
    pixels = picture_pixels(file_of(Image.fromarray(deep)), PictureFit(4, "letterbox", channels=1))
    assert pixels[1].ravel().tolist() == [0, 1, 255, 128]


def test_transparent_is_white_and_palettes_may_be_so() -> None:
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    assert (picture_pixels(file_of(clear), PictureFit(8)) == 255).all()
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    assert (picture_pixels(file_of(palette, transparency=0), PictureFit(8)) == 255).all()
    assert picture_pixels(file_of(palette), PictureFit(8))[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_it_upright(orientation: int) -> None:
    upright = Image.fromarray(HALVES)
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = picture_pixels(file_of(stored, "JPEG", exif=exif, quality=95), PictureFit(20))
    assert pixels[10, 2, 0] > 200
    assert pixels[10, 17, 2] > 200


def test_damaged_exif_costs_nothing() -> None:
    data = file_of(Image.fromarray(HALVES), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert picture_pixels(data, PictureFit(20)).shape == (20, 20, 3)


def test_crop_takes_the_middle_and_resize_shrinks_what_it_takes() -> None:
    wide = np.zeros((64, 192), np.uint8)
    wide[:, 64:128] = np.arange(64) * 4
    plain = picture_pixels(file_of(Image.fromarray(wide)), PictureFit(64, channels=1))
    assert (plain[..., 0] == wide[:, 64:128]).all()
    same = picture_pixels(file_of(Image.fromarray(wide)), PictureFit(64, "crop", 64, 1))
    assert (same == plain).all()
    assert (fit_pixels(wide[..., None], PictureFit(64, channels=1)) == plain).all()
    part = picture_pixels(file_of(Image.fromarray(wide)), PictureFit(32, "crop", 64, 1))
    assert (part[..., 0] == wide[16:48, 80:112]).all()  # 32 of the 64 px it is resized to


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (640, 480), (33, 31)])
@pytest.mark.parametrize("mode", ["crop", "letterbox"])
def test_any_size(size: tuple[int, int], mode: str) -> None:
    pixels = picture_pixels(file_of(Image.new("RGB", size, (9, 99, 199))), PictureFit(32, mode))
    assert pixels.shape == (32, 32, 3)
    inside = pixels[pixels.any(axis=2)]
    assert np.abs(inside.astype(int) - (9, 99, 199)).max() <= 1
    if mode == "crop":
        assert len(inside) == 32 * 32
    else:
        assert len(inside) == max(1, round(32 * size[0] / max(size))) * max(
            1, round(32 * size[1] / max(size))
        )


def test_a_large_jpeg_is_shrunk_while_it_is_decoded_and_looks_the_same() -> None:
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    large = small.resize((1200, 1200), Image.Resampling.BICUBIC)
    fast = picture_pixels(file_of(large, "JPEG", quality=95), PictureFit(32))
    exact = picture_pixels(file_of(large), PictureFit(32))
    assert np.abs(fast.astype(int) - exact).max() <= 8


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"no picture at all", "known format"),
        (file_of(Image.fromarray(HALVES), "JPEG")[:-150], "(?i)truncated"),
        (file_of(Image.fromarray(HALVES))[:-30], "(?i)truncated|broken|incomplete"),
        (file_of(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "floating-point"),
        (file_of(Image.fromarray(np.full((4, 4), 1 << 20, np.int32)), "TIFF"), "32 bits"),
    ],
)
def test_what_cannot_be_read_is_told(data: bytes, words: str) -> None:
    with pytest.raises(UnreadablePicture, match=words):
        picture_pixels(data, PictureFit(8))


def test_a_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UnreadablePicture, match="decompression bomb"):
        picture_pixels(file_of(Image.new("L", (40, 40))), PictureFit(8))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_bytes_give_pixels_or_a_fault(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]))
    raw = bytearray(file_of(Image.fromarray(HALVES), kind))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    with suppress(UnreadablePicture):  # nothing else may come out
        assert picture_pixels(bytes(raw[:cut]), PictureFit(16)).shape == (16, 16, 3)


@pytest.mark.parametrize(
    "fit",
    [
        PictureFit(224),
        PictureFit(224, "letterbox"),
        PictureFit(64, "crop", 72, 1),
        PictureFit(1, channels=1),
        PictureFit(224, resize_px=256, filter="bicubic"),
        PictureFit(8, "letterbox", filter="lanczos"),
    ],
)
def test_a_fit_is_text_and_back(fit: PictureFit) -> None:
    assert parse_fit(fit.text()) == fit


def test_a_letterbox_is_made_by_the_filter_too() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    fit = PictureFit(16, "letterbox", filter="bicubic")
    wanted = np.asarray(picture.resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(picture_pixels(file_of(picture, "PNG"), fit), wanted)
    with pytest.raises(UsageError, match="known are bilinear, bicubic"):
        PictureFit(16, filter="random")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "crop",
        "crop 8 x 9 x 3",
        "zoom 8 x 8 x 3",
        "crop 8 x 8 x 2",
        "crop 8 x 8 x 3 by zoom",
        "crop 8 x 8 x 3 ",
    ],
)
def test_another_text_is_no_fit(text: str) -> None:
    with pytest.raises(DataFault, match="such as"):
        parse_fit(text)


def test_settings_that_cannot_work() -> None:
    for wrong in (
        {"px": 0},
        {"px": 8, "mode": "stretch"},
        {"px": 8, "resize_px": 7},
        {"px": 8, "channels": 4},
        {"px": 8, "mode": "letterbox", "resize_px": 9},
    ):
        with pytest.raises(UsageError):
            PictureFit(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fit", "size", "small"),
    [
        (PictureFit(8), (8, 30), False),
        (PictureFit(8), (7, 30), True),
        (PictureFit(8, resize_px=10), (9, 30), True),
        (PictureFit(8, resize_px=10), (10, 30), False),
        (PictureFit(8, "letterbox"), (2, 8), False),
        (PictureFit(8, "letterbox"), (2, 7), True),
    ],
)
def test_which_pictures_would_be_enlarged(
    fit: PictureFit, size: tuple[int, int], small: bool
) -> None:
    data = file_of(Image.new("RGB", size))
    assert picture_pixels(data, fit).shape == fit.shape
    if not small:
        assert picture_pixels(data, fit, enlarge=False).shape == fit.shape
        return
    with pytest.raises(TooSmall, match=rf"{size[0]} x {size[1]} pixels.*--enlarge"):
        picture_pixels(data, fit, enlarge=False)


def test_the_first_picture_imports_nothing_more() -> None:
    program = """if True:
        import sys
        from collage_mpi.shards.pictures import PictureFit, import_decoders, picture_pixels
        before = set(sys.modules)
        import_decoders()
        imported = set(sys.modules)
        picture_pixels(sys.stdin.buffer.read(), PictureFit(8))
        print("PIL" in imported - before, *set(sys.modules) - imported)
    """
    data = file_of(colour("RGB"), "JPEG")
    done = subprocess.run([sys.executable, "-c", program], input=data, capture_output=True)
    assert done.stdout.decode().split() == ["True"], done.stderr


def test_a_jpeg_is_not_shrunk_below_the_resize_before_the_crop() -> None:
    """The crop of 32 px comes from a shorter edge of 512 px: 1/8 of 2,000 px would be too few."""
    noise = np.random.default_rng(0).integers(0, 256, (250, 250, 3), dtype=np.uint8)
    large = Image.fromarray(noise).resize((2000, 2000), Image.Resampling.NEAREST)
    jpeg, png = io.BytesIO(), io.BytesIO()
    large.save(jpeg, "JPEG", quality=95)
    Image.open(io.BytesIO(jpeg.getvalue())).save(png, "PNG")  # of the same pixels, never drafted
    fit = PictureFit(32, resize_px=512)
    found, expected = (picture_pixels(b.getvalue(), fit).astype(int) for b in (jpeg, png))
    assert np.abs(found - expected).mean() < 3


def test_a_picture_that_is_upright_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    turned: list[object] = []
    monkeypatch.setattr(ImageOps, "exif_transpose", turned.append)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    picture_pixels(file.getvalue(), PictureFit(8))
    assert turned == []


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

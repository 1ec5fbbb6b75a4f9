"""Several networks that answer the same pictures: how they are named, fitted and joined."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from collage_mpi.commands.classify import parts_named, with_own_names
from collage_mpi.encoding.vectors import KeptColumn
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.models import load_predictor
from collage_mpi.models.beside import Beside
from collage_mpi.models.info import Computation, Geometry, Loading
from collage_mpi.models.named import Part, beside, libraries_of, part_of, parts_of
from collage_mpi.results.beside import paths_inside
from collage_mpi.results.export import together
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards.pictures import (
    PictureFit,
    fit_pixels,
    is_enlarged,
    parse_fit,
    picture_pixels,
    split,
)
from collage_mpi.shards.pictures import beside as fits_beside

PARTS = (
    Part("a", "timm:x,norm=half"),
    Part("b", "n.onnx"),
    Part("boxes", "own.py:Boxes", maps=True),
    Part("e", "hf:i/d,embed=l2", maps=True),
)


def test_the_spec_of_several_networks_names_them_again() -> None:
    spec = "beside:a=timm:x,norm=half;b=n.onnx;boxes=map:own.py:Boxes;e=hf:i/d,embed=l2"
    assert beside(PARTS) == spec
    assert parts_of(spec) == PARTS
    assert parts_of("timm:x") == (Part("", "timm:x"),)
    assert parts_of("timm:x,embed=l2") == (Part("", "timm:x,embed=l2", maps=True),)
    assert libraries_of([spec]) == {"timm", "transformers.models.auto"}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("beside:", "names no network"),
        ("beside:a", "names no network"),
        ("beside:a=", "names no network"),
        ("beside:=null", "names no network"),
        ("beside:1a=null", "names no network"),
        (f"beside:{33 * 'a'}=null", "a name of at most 32 letters"),
        ("beside:a=null;", "names no network"),
        ("beside:a=beside:b=null", "names no network"),
        ("beside:a=null;A=null", "two networks have the name 'a'"),
    ],
)
def test_what_names_no_networks_is_refused(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parts_of(spec)


def test_networks_without_names_get_the_last_word_of_what_names_them() -> None:
    specs = ["timm:resnet50.a1_in1k", "hf:openai/clip-vit", "nets/n.onnx,norm=half", "null:wrong=3"]
    specs += ["map:own/boxes.py:Boxes", "9.onnx", f"{40 * 'x'}.onnx", "timm:a,weights=b/c.pt"]
    named = with_own_names(parts_named((), specs))
    names = ["resnet50", "clip_vit", "n", "null", "Boxes", "n9", 32 * "x", "a"]
    assert [part.name for part in named] == names
    assert [part.maps for part in named] == [spec.startswith("map:") for spec in specs]
    assert named[4].spec == "own/boxes.py:Boxes"
    with pytest.raises(UsageError, match="two networks have the name n: give each its own"):
        with_own_names(parts_named((), ["a/n.onnx", "b/N.onnx"]))


def test_names_are_given_to_all_networks_or_to_none() -> None:
    assert parts_named(("x", "y"), ["null", "map:a.py:B"]) == (
        Part("x", "null"),
        Part("y", "a.py:B", maps=True),
    )
    with pytest.raises(UsageError, match="2 networks and 1 name by --as"):
        parts_named(("x",), ["null", "null"])
    with pytest.raises(UsageError, match="cannot have ; in what names it"):
        part_of("x", "a;b=c")
    for name in ("x y", "a=null;b", "../x", 33 * "x"):
        with pytest.raises(UsageError, match=r"--as .*: needed is a name of at most 32 letters"):
            part_of(name, "null")


def test_a_column_has_one_network() -> None:
    assert together({"a_class": 1}, {"b_class": 2}) == {"a_class": 1, "b_class": 2}
    with pytest.raises(UsageError, match="two networks of this table have the column b_class"):
        together({"a_class": 1, "b_class": 0}, {"b_class": 2})


def test_an_input_is_the_same_however_its_folder_is_named() -> None:
    assert paths_inside(["photos"] * 2) == paths_inside(["/else/photos"] * 2) == ["", ""]
    two = ["p/x.tar", "p/x.tar", "p/y.tar"]
    assert paths_inside(two) == paths_inside([f"/else/{path}" for path in two])
    assert paths_inside(two) == ["x.tar", "x.tar", "y.tar"]


# ---- pixels -------------------------------------------------------------------

FITS = (
    PictureFit(40, resize_px=50),
    PictureFit(24, "letterbox", channels=1),
    PictureFit(56, filter="bicubic"),
)


def picture(width: int = 120, height: int = 90, kind: str = "png") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def test_each_fit_of_several_gives_the_picture_that_it_gives_alone() -> None:
    fit = fits_beside(FITS)
    assert fit.each == FITS
    assert fit.shape == (40 + 24 + 56, 56, 3)
    assert fit.text() == "crop 40 x 40 x 3 from 50 + letterbox 24 x 24 x 1 + " + FITS[2].text()
    assert parse_fit(fit.text()) == fit
    whole = picture_pixels(picture(), fit)
    assert (whole.shape, whole.dtype) == (fit.shape, np.uint8)
    found = split(whole[None], [one.shape for one in FITS])
    for one, (own,) in zip(FITS, found, strict=True):
        assert np.array_equal(own, picture_pixels(picture(), one))
    assert not whole[40:64, 24:].any()  # to the right of a narrower one
    assert not whole[40:64, :, 1:].any()
    image = np.random.default_rng(1).integers(0, 256, (70, 80, 3), np.uint8)
    (last,) = split(fit_pixels(image, fit)[None], [one.shape for one in FITS])[2]
    assert np.array_equal(last, fit_pixels(image, FITS[2]))


def test_equal_fits_are_one() -> None:
    assert fits_beside([FITS[0], PictureFit(40, resize_px=50)]) == FITS[0]
    assert FITS[0].each == (FITS[0],)


def test_a_jpeg_is_decoded_as_finely_as_the_largest_needs() -> None:
    data = picture(1600, 1600, "jpeg")
    small, large = PictureFit(20), PictureFit(300)
    for fit in (fits_beside([small, large]), fits_beside([large, small])):
        own = split(picture_pixels(data, fit)[None], [one.shape for one in fit.each])
        (found,) = own[fit.each.index(large)]
        assert np.array_equal(found, picture_pixels(data, large))


def test_a_picture_is_enlarged_if_one_of_its_fits_enlarges_it() -> None:
    small, wide = PictureFit(80), PictureFit(130, "letterbox")
    assert [is_enlarged(picture(), fit) for fit in (small, wide)] == [False, True]
    for fits in ([small, wide], [wide, small]):
        assert is_enlarged(picture(), fits_beside(fits))


def test_a_picture_is_opened_once(monkeypatch) -> None:
    opened, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(1) or real(*a, **k))
    picture_pixels(picture(), fits_beside(FITS))
    assert len(opened) == 1


@pytest.mark.parametrize("text", ["crop 8 x 8 x 3 + crop 8 x 8", "crop 8 x 8 x 3 + ", " + "])
def test_damaged_fits_are_refused(text: str) -> None:
    with pytest.raises(DataFault, match="fit is"):
        parse_fit(text)


# ---- answers ------------------------------------------------------------------


class Answers:
    """A network of the class that the first pixel names, with the sum of the pixels beside it."""

    kind, cells, device, tuning, runtime = "single", 1, "cpu", "its own", "own"

    def __init__(self, classes: int, *columns: KeptColumn, fingerprint: str = "f") -> None:
        self.classes, self.columns, self.fingerprint = classes, columns, fingerprint
        self.ready, self.shapes, self.nothing = True, [], False

    def weights_sum(self) -> int | None:
        return self.classes if self.columns else None

    def begin(self, batch: np.ndarray) -> Computation[Any]:
        self.shapes.append(batch.shape)
        scores = np.zeros((len(batch), 1, self.classes), np.float32)
        if not self.nothing:
            scores[np.arange(len(batch)), 0, batch[:, 0, 0, 0] % self.classes] = 0.5
        found = {column.name: batch.sum((1, 2, 3), np.int64) for column in self.columns}
        return Computation(lambda: (scores, found), lambda: self.ready)


TOTAL = KeptColumn("total", "<i8", ())


def three(**how: str) -> tuple[Beside, list[Answers]]:
    networks = [Answers(5), Answers(7, fingerprint=how.get("b", "f")), Answers(1, TOTAL)]
    parts = (Part("a", "A"), Part(how.get("name", "b"), "B"), Part("c", "C", maps=True))
    return Beside(parts, networks, [(2, 2, 1), (3, 3, 1), (2, 2, 1)]), networks


def test_the_first_network_answers_and_the_others_are_columns() -> None:
    network, parts = three()
    batch = np.random.default_rng(0).integers(0, 99, (4, 7, 3, 1), np.uint8)
    scores, found = network.answer(batch)
    assert [each.shapes for each in parts] == [[(4, 2, 2, 1)], [(4, 3, 3, 1)], [(4, 2, 2, 1)]]
    assert scores[:, 0].argmax(1).tolist() == (batch[:, 0, 0, 0] % 5).tolist()
    assert found["b_class"].tolist() == (batch[:, 2, 0, 0] % 7).tolist()
    assert found["b_score"].tolist() == [0.5] * 4
    assert found["c_total"].tolist() == batch[:, 5:, :2].sum((1, 2, 3)).tolist()
    told = [(each.name, each.dtype) for each in network.columns]
    assert told == [("b_class", "<i4"), ("b_score", "<f4"), ("c_total", "<i8")]
    assert [found[name].dtype.newbyteorder("<").str for name, _ in told] == [d for _, d in told]
    assert (network.classes, network.cells, network.kind) == (5, 1, "single")
    assert network.weights_sum() == 1
    assert np.array_equal(network.predict(batch), scores)


def test_a_batch_is_done_when_all_networks_are() -> None:
    network, parts = three()
    begun = network.begin(np.zeros((1, 7, 3, 1), np.uint8))
    assert begun.done()
    parts[2].ready = False
    assert not begun.done()


def test_other_weights_or_names_are_another_network() -> None:
    prints = {three(**how)[0].fingerprint for how in ({}, {"b": "g"}, {"name": "x"})}
    assert len(prints) == 3
    assert three()[0].fingerprint in prints


def test_a_network_without_an_answer_fails_the_batch() -> None:
    network, parts = three()
    parts[1].nothing = True
    with pytest.raises(DataFault, match="B: no score is a finite number above 0"):
        network.answer(np.zeros((2, 7, 3, 1), np.uint8))


def test_two_columns_of_one_name_are_refused() -> None:
    maps = [Answers(1, KeptColumn("c_x", "<i8", ())), Answers(1, KeptColumn("x", "<i8", ()))]
    parts = (Part("b", "B", maps=True), Part("b_c", "C", maps=True))
    with pytest.raises(UsageError, match="two networks give the column 'b_c_x'"):
        Beside(parts, maps, ())


def test_networks_are_loaded_each_with_its_own_shape(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shapes.py").write_text(
        "class Net:\n"
        "    def __init__(self, **told): self.told = told\n"
        "    def predict(self, batch):\n"
        "        assert batch.shape[1:] == self.told['shape'], batch.shape\n"
        "        n = self.told['classes'] or 4\n"
        "        import numpy as np; return np.full((len(batch), 1, n), 1 / n, 'f4')\n"
        "class Map:\n"
        "    def __init__(self, device): pass\n"
        "    def __call__(self, batch): return {'px': [batch.shape[1]] * len(batch)}\n"
    )
    spec = "beside:a=null;b=shapes.py:Net;c=map:shapes.py:Map"
    geometry = Geometry((9, 4, 3), 3, 4, 6, beside=((2, 2, 3), (4, 4, 3), (3, 3, 3)))
    network = load_predictor(spec, "single", Loading(geometry=geometry, save="beside"))
    scores, found = network.answer(np.zeros((2, 9, 4, 3), np.uint8))
    assert scores.shape == (2, 1, 6)
    assert found["c_px"].tolist() == [3, 3]
    assert found["b_score"].tolist() == [0.25] * 2  # the number of its classes is its own


# ---- settings -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"save": "none"}, "save is none with single beside:"),
        ({"single": "null"}, "beside is for several networks"),
        ({"single": "beside:a=map:o.py:A;b=null", "save": "outputs"}, "that classifies first"),
        ({"scheme": "cascade", "first": ["null:wrong=3@0.5"]}, "none comes before another"),
        ({"agree": 0.99, "scheme": "cascade"}, "none comes before another"),
        ({"scheme": "collage", "collage": "null"}, "none comes before another"),
        ({"top_k": 2}, "leave out --top-k"),
        ({"runtime": "onnx"}, "several networks run in torch"),
    ],
)
def test_what_several_networks_cannot_do_is_refused(values: dict[str, Any], said: str) -> None:
    usual = {"single": "beside:a=null;b=null", "save": "beside", "scheme": "none"}
    with pytest.raises(UsageError, match=said):
        RunSettings.from_mapping({**usual, **values})


def test_networks_have_titles() -> None:
    run = RunSettings.from_mapping({"single": "beside:a=null;b=n.onnx", "save": "beside"})
    assert run.parts == {
        "single": ("single", Part("a", "null")),
        "single b": ("single", Part("b", "n.onnx")),
    }
    maps = {"single": "beside:a=map:o.py:A;b=map:o.py:B", "save": "outputs"}
    assert not RunSettings.from_mapping(maps).extras.classifies

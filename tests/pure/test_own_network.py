"""A user's own network by MODULE:FUNCTION: what it is told, what may come back."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from collage_mpi.encoding.vectors import KeptColumn
from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.models import describe, load_predictor
from collage_mpi.models.info import PLAIN, Geometry, Loading
from collage_mpi.models.named import is_function
from collage_mpi.models.own import find_function

GEOMETRY = Geometry((8, 8, 3), side=2, cell_px=6, classes=5)

MODULE = """
import numpy as np
TOLD = []

class Mean:
    fingerprint = "one"
    def __init__(self, cells, classes): self.shape = (cells, classes)
    def predict(self, batch):
        scores = np.zeros((len(batch), *self.shape))
        scores[:, :, int(batch.mean()) % self.shape[1]] = 1
        return scores

def network(kind, shape, side, cell_px, classes, device):
    TOLD.append((kind, shape, side, cell_px, classes, device))
    return Mean(side * side if kind == "collage" else 1, classes)

def raising(**told): raise ValueError("no such weights")
def leaving(**told): raise SystemExit(7)
class Leaves:
    def predict(self, batch): raise SystemExit(7)
def leaves(**told): return Leaves()
def text(**told): return "a network"
def wrong(**told): return Mean(7, 2)

def module(kind, shape, side, cell_px, classes, device):
    import torch
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(shape[2], classes, 1)
        def forward(self, x):
            assert x.shape[1:] == (shape[2], *shape[:2])
            assert 0 <= float(x.min()) <= float(x.max()) <= 1
            grid = nn.functional.adaptive_avg_pool2d(self.conv(x), side)  # (n, classes, s, s)
            return grid if kind == "collage" else grid.mean((2, 3))
    return Net()

class Gives:
    def __init__(self, row): self.row = row
    def predict(self, batch): return np.tile(np.float32(self.row), (len(batch), 1, 1))

def logits(**told): return Gives([18.0, -3.0, 2.0, 0.0, 1.0])
def log_probabilities(**told): return Gives(np.log([0.6, 0.1, 0.1, 0.1, 0.1]))
def large_sums(**told): return Gives([0.9, 0.9, 0.1, 0.1, 0.1])
def not_finite(**told): return Gives([np.nan, 1.0, 0.0, 0.0, 0.0])
def no_answer(**told): return Gives([0.0] * 5)
def rounded(**told): return Gives([0.6001, 0.4, 0.0, 0.003, 0.0])

def softmax_twice(kind, shape, side, cell_px, classes, device):
    from torch import nn
    made = module(kind, shape, side, cell_px, classes, device)
    return nn.Sequential(made, nn.Softmax(dim=1))

def embedder(kind, shape, side, cell_px, classes, device):
    import torch
    from torch import nn
    torch.manual_seed(0)
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(shape[2], classes)
        def forward(self, x):
            means = x.mean((2, 3))  # (n, C)
            return self.last(means), 2 * means
    return Net()

class Embeds(Mean):
    length = 2
    def embed(self, batch):
        return self.predict(batch), np.full((len(batch), self.length), batch.mean())

def embeds(kind, shape, side, cell_px, classes, device): return Embeds(1, classes)
def embeds_nothing(**told):
    made = Embeds(1, told["classes"])
    made.length = 0
    return made

def float32_only(kind, shape, side, cell_px, classes, device):
    import torch
    from torch import nn
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(shape[2], classes)
        def forward(self, x): return self.last(x.mean((2, 3)) + torch.zeros(1))
    return Net()

def misshapen(kind, shape, side, cell_px, classes, device):
    from torch import nn
    return nn.Flatten()
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    path = tmp_path / "my_net.py"
    path.write_text(MODULE)
    return str(path)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("my.net:make", True),
        ("folder/net.py:make", True),
        ("null", False),
        ("null:classes=3", False),
        ("w.safetensors", False),
        ("torchvision:resnet18", False),
        ("C:/weights", False),
    ],
)
def test_which_specs_are_own(spec: str, expected: bool) -> None:
    assert is_function(spec) is expected


def test_a_predictor_is_told_its_shapes_and_asked(own: str) -> None:
    assert describe(f"{own}:network", "single") is None
    collage = load_predictor(f"{own}:network", "collage", Loading(geometry=GEOMETRY))
    single = load_predictor(f"{own}:network", "single", Loading(geometry=GEOMETRY))
    told = find_function(f"{own}:network").__globals__["TOLD"]
    assert told == [
        ("collage", (12, 12, 3), 2, 6, 5, "cpu"),
        ("single", (8, 8, 3), 2, 6, 5, "cpu"),
    ]
    scores = collage.predict(np.full((2, 12, 12, 3), 8, np.uint8))
    assert scores.shape == (2, 4, 5)
    assert scores.dtype == np.float32
    assert (scores.argmax(2) == 3).all()
    assert len(single.fingerprint) == 64


def test_a_module_by_name_from_the_current_folder(
    own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(own).parent)
    monkeypatch.syspath_prepend("")  # removes what the search adds
    for kind, cells in (("single", 1), ("collage", 4)):
        predictor = load_predictor("my_net:module", kind, Loading(geometry=GEOMETRY))
        batch = np.zeros((3, *GEOMETRY.input_shape(kind)), np.uint8)
        scores = predictor.predict(batch)
        assert scores.shape == (3, cells, 5)
        np.testing.assert_allclose(scores.sum(2), 1, rtol=1e-5)
        again = load_predictor("my_net:module", kind, Loading(geometry=GEOMETRY))
        assert again.fingerprint == predictor.fingerprint


@pytest.mark.parametrize("spec", ["netted:network", "netted.py:network"])
def test_its_folder_comes_last_once_it_is_imported(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it imports later is still found; nobody else's `queue` is the user's."""
    (tmp_path / "netted_part.py").write_text("answer = 42")
    (tmp_path / "netted.py").write_text(
        "import netted_part\ndef network(**told): import netted_late; return netted_late.answer"
    )
    (tmp_path / "netted_late.py").write_text("from netted_part import answer")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")  # removes what the search adds
    function = find_function(spec)
    assert sys.path.index(str(tmp_path)) == len(sys.path) - 1
    assert function() == 42
    for name in ("netted", "netted_part", "netted_late"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("raising", UsageError, "ValueError: no such weights"),
        ("leaving", UsageError, r"raised SystemExit: 7 \(.*, line \d+\)"),
        ("leaves", DataFault, r"called with noise .* raised SystemExit: 7 \(.*, line \d+\)"),
        ("text", UsageError, "returned a str"),
        ("absent", UsageError, "has no function 'absent'; it has Mean, "),
        ("misshapen", DataFault, r"gave \(1, 192\); needed: logits \(1, 1, 5\) or \(1, 5\)"),
    ],
)
def test_what_is_no_network(own: str, name: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        load_predictor(f"{own}:{name}", "single", Loading(geometry=GEOMETRY))


def test_answers_of_another_shape_and_modules_that_break(own: str, tmp_path: Path) -> None:
    with pytest.raises(DataFault, match=r"predict gave \(1, 7, 2\); needed: \(1, 1, 5\)"):
        load_predictor(f"{own}:wrong", "single", Loading(geometry=GEOMETRY))
    with pytest.raises(UsageError, match="there is no module no_such_module_here"):
        load_predictor("no_such_module_here:f", "single", Loading(geometry=GEOMETRY))
    bad = tmp_path / "bad.py"
    bad.write_text("\n1 / 0\ndef f(**told): return None")
    with pytest.raises(UsageError, match=rf"ZeroDivisionError: .*\({bad}, line 2\)"):
        load_predictor(f"{bad}:f", "single", Loading(geometry=GEOMETRY))
    slip = tmp_path / "slip.py"
    slip.write_text("import json\n\ndef f(**told):\n    return json.loads(netz)")
    with pytest.raises(UsageError, match=rf"NameError: name 'netz' .*\({slip}, line 4\)"):
        load_predictor(f"{slip}:f", "single", Loading(geometry=GEOMETRY))
    slip.with_name("deep.py").write_text("import json\ndef f(**told): json.loads('[')")
    with pytest.raises(UsageError, match=r"JSONDecodeError: .*deep\.py, line 2\)"):
        load_predictor(f"{slip.with_name('deep.py')}:f", "single", Loading(geometry=GEOMETRY))
    with pytest.raises(UsageError, match="cannot be used here"):
        load_predictor(f"{own}:network", "single")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("logits", "scores from -3 to 18, those of a cell 18 in all"),
        ("log_probabilities", "scores from -2.3 to -0.511"),
        ("large_sums", "scores from 0.1 to 0.9, those of a cell 2.1 in all"),
    ],
)
def test_scores_that_are_no_probabilities_are_refused_at_once(
    own: str, name: str, found: str
) -> None:
    with pytest.raises(DataFault, match=f"{name}: predict gave {found}.*Apply softmax"):
        load_predictor(f"{own}:{name}", "single", Loading(geometry=GEOMETRY))


def test_scores_that_are_nan_are_not_taken_for_logits(own: str) -> None:
    with pytest.raises(DataFault, match="not_finite: predict gave scores that are NaN") as caught:
        load_predictor(f"{own}:not_finite", "single", Loading(geometry=GEOMETRY))
    assert "softmax" not in str(caught.value)


def test_cells_without_an_answer_and_rounding_are_believed(own: str) -> None:
    for name in ("no_answer", "rounded"):
        load_predictor(f"{own}:{name}", "single", Loading(geometry=GEOMETRY))


def test_a_module_that_gives_probabilities_is_refused(own: str) -> None:
    for kind in ("single", "collage"):
        with pytest.raises(DataFault, match=r"softmax_twice: the network gave probab.*Leave out"):
            load_predictor(f"{own}:softmax_twice", kind, Loading(geometry=GEOMETRY))


def test_a_module_that_works_in_float32_only_says_so(own: str) -> None:
    for precision in ("auto", "float32"):
        load_predictor(
            f"{own}:float32_only",
            "single",
            Loading(geometry=GEOMETRY, tuning=replace(PLAIN, precision=precision)),
        )
    how = replace(PLAIN, precision="bfloat16")
    says = r"only does not work as bfloat16, .* \(.*dtype.*\): choose --precision"
    with pytest.raises(EnvironmentFault, match=says):
        load_predictor(f"{own}:float32_only", "single", Loading(geometry=GEOMETRY, tuning=how))


def test_a_network_of_ones_own_says_that_it_has_embeddings_by_giving_them(own: str) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    means = batch.mean((1, 2))

    def load(name: str, embed: bool = True):
        return load_predictor(
            f"{own}:{name}",
            "single",
            Loading(geometry=GEOMETRY, save="embeddings" if embed else "none"),
        )

    module = load("embedder")
    assert module.columns == (KeptColumn("embedding", "<f4", (3,)),)
    scores, given = module.answer(batch)
    np.testing.assert_allclose(given["embedding"], 2 * means / 255, atol=1e-4)
    np.testing.assert_allclose(scores, load("embedder", False).predict(batch), atol=1e-6)
    with_method = load("embeds")
    assert with_method.columns == (KeptColumn("embedding", "<f4", (2,)),)
    assert (
        with_method.answer(batch)[1]["embedding"].tolist()
        == [[pytest.approx(batch.mean())] * 2] * 3
    )
    with_method.made.length = 3
    with pytest.raises(DataFault, match=r"embed gave embeddings \(3, 3\); needed: \(3, 2\)"):
        with_method.answer(batch)
    for name, says in (
        ("module", r"return \(logits, embeddings\)"),
        ("network", r"give it embed\(batch\)"),
        ("embeds_nothing", r"embedding.*shape \(0,\).*no value"),
    ):
        with pytest.raises(UsageError, match=says):
            load(name)


def knows(kind: str, cells: int, classes: int) -> str:
    return f"""
import numpy as np, torch
from torch import nn
def given(**told):
    assert told["classes"] is None
class Answers:
    def predict(self, batch): return np.full((len(batch), {cells}, {classes}), 1 / {classes})
    def embed(self, batch): return self.predict(batch), np.ones((len(batch), 2))
class Net(nn.Module):
    def __init__(self, square): super().__init__(); self.square = square
    def forward(self, x):
        logits = x.new_zeros((len(x), {cells}, {classes})) - torch.arange({classes}).to(x)
        if self.square and {cells} > 1:
            return logits.transpose(1, 2).reshape(len(x), {classes}, 2, 2)
        return logits[:, 0] if self.square else logits
class Embeds(Net):
    def forward(self, x): return super().forward(x), x.mean((2, 3))
def object(**told): given(**told); return Answers()
def listed(**told): given(**told); return Net(False)
def square(**told): given(**told); return Net(True)
def embeds(**told): given(**told); return Embeds(True)
def needs(classes, **told): return np.zeros(classes + 1)
"""


@pytest.mark.parametrize(("kind", "cells"), [("single", 1), ("collage", 4)])
def test_the_first_answer_tells_how_many_classes_there_are(
    tmp_path: Path, kind: str, cells: int
) -> None:
    path = tmp_path / f"knows_{kind}.py"
    path.write_text(knows(kind, cells, 7))
    unknown = Geometry((8, 8, 3), side=2, cell_px=6, classes=None)
    batch = np.zeros((3, *unknown.input_shape(kind)), np.uint8)
    names = ("object", "listed", "square") + (("embeds",) if kind == "single" else ())
    for name in names:
        save = "embeddings" if name == "embeds" else "none"
        made = load_predictor(f"{path}:{name}", kind, Loading(geometry=unknown, save=save))
        assert made.classes == 7
        scores = made.answer(batch)[0]
        assert scores.shape == (3, cells, 7)
    told = Geometry((8, 8, 3), side=2, cell_px=6, classes=None)
    with pytest.raises(UsageError, match=r"classes=None.*--class-names-file FILE names them"):
        load_predictor(f"{path}:needs", kind, Loading(geometry=told))

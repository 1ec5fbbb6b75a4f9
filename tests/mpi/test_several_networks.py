"""`classify` and `map` with several networks: in one pass, and one that comes later."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from collage_mpi.cli import main
from collage_mpi.commands import launch
from collage_mpi.errors import ExitCode
from collage_mpi.results import read_results, verify_run

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.timeout(300)]

OWN = """
import os
import numpy as np

class Net:
    fingerprint = os.environ.get("WEIGHTS", "1")
    def __init__(self, kind, shape, side, cell_px, classes, device): pass
    def predict(self, batch):
        if (batch[:, 20, 20, 0] == 255).all() and not os.path.exists("mended"):
            raise ValueError("white")
        scores = np.zeros((len(batch), 1, 7), np.float32)
        scores[np.arange(len(batch)), 0, batch.sum((1, 2, 3), np.int64) % 7] = 0.5
        return scores

class Boxes:
    '''As many boxes as the first pixel says, modulo 4.'''
    def __init__(self, device): pass
    def __call__(self, batch):
        return {"mean": batch.mean((1, 2, 3)).astype(np.float32),
                "boxes": [np.full((b[0, 0, 0] % 4, 4), b[1, 1, 1], np.float32) for b in batch]}
"""
SINGLE = "shipped:fashion_single.safetensors"  # grey pictures of 28 px
WHO = ("source", "runtime")  # of a copy at the end of the job, or the first answer
NET, BOXES = "own.py:Net", "map:own.py:Boxes"


def add(name: str, seed: int, white: bool = False) -> None:
    coarse = np.random.default_rng(seed).integers(0, 2 + 20 * seed % 254, (5, 7, 3), np.uint8)
    pixels = coarse.repeat(10, 0).repeat(10, 1)
    path = Path("photos", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels | (255 if white else 0)).save(path)


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    for number in range(12):
        add(f"{number % 3}/{number:02d}.png", number)


def classify(
    *words: str, out: str = "t.parquet", code: int = 0, source: str = "photos"
) -> list[dict[str, Any]]:
    """The rows of the table; [] if it is not written."""
    how = ["--device", "cpu", "--ranks", "2", "--out", out]
    found = main(["classify", source, *how, *words])
    assert found == code
    return parquet.read_table(out).to_pylist() if Path(out).exists() else []


def read_csv(path: str) -> list[dict[str, str]]:
    with Path(path).open() as file:
        return [*csv.DictReader(file)]


def networks(*specs: str, names: tuple[str, ...] = ()) -> list[str]:
    return [w for spec in specs for w in ("--network", spec)] + [
        w for name in names for w in ("--as", name)
    ]


def without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names}


@pytest.mark.usefixtures("torch_once", "pictures")
def test_in_one_pass_each_network_answers_as_alone(monkeypatch, capfd) -> None:
    """Of different sizes and channels, and for a folder that grows."""
    every = networks(SINGLE, NET, BOXES)
    with monkeypatch.context() as stopped:
        stopped.setattr(launch, "launch_ranks", lambda *_: ExitCode.INCOMPLETE)
        assert classify(*every, code=ExitCode.INCOMPLETE) == []
    rows = classify(*every)
    alone = classify(*networks(SINGLE), out="a.parquet")
    other = classify(*networks(NET), out="b.parquet")
    assert main(["map", "own.py:Boxes", "--input", "photos", "--out", "m", "--device=cpu"]) == 0
    mapped = read_results("m")
    assert len({row["class"] for row in alone}) > 1
    assert len({row["class"] for row in other}) > 1
    for number, row in enumerate(rows):
        own = without(row, "Net_class", "Net_score", "Boxes_mean", "Boxes_boxes", *WHO)
        assert own == without(alone[number], *WHO)
        assert (row["Net_class"], row["Net_score"]) == (other[number]["class"], 0.5)
        assert row["Boxes_mean"] == mapped.kept("mean")[number]
        assert row["Boxes_boxes"] == mapped.kept("boxes")[number].tolist()
    assert [*rows[0]][3:7] == ["Net_class", "Net_score", "Boxes_mean", "Boxes_boxes"]
    assert len({len(row["Boxes_boxes"]) for row in rows}) > 1
    assert read_results("t.parquet.run").manifest["shards"][0]["fit"] == (
        "crop 28 x 28 x 1 + crop 224 x 224 x 3 from 256 + crop 224 x 224 x 3"
    )
    assert {*Path("t.parquet.run").glob("beside/*")} == set()

    add("new.png", 99)
    add("0/00.png", 98)
    capfd.readouterr()
    grown = {row["id"]: row for row in classify(*every)}
    assert "update: 1 new, 1 changed, 0 tried again, 0 removed, 11 unchanged" in (
        capfd.readouterr().err
    )
    assert all(
        value is not None for row in grown.values() for value in without(row, "error").values()
    )
    assert [n for n, row in enumerate(rows) if grown[row["id"]] != row] == [0]
    assert verify_run("t.parquet.run").ok


@pytest.mark.usefixtures("torch_once", "pictures")
def test_a_later_network_is_a_column_group_of_the_same_pictures(capfd, monkeypatch) -> None:
    """Also of pictures that are new, removed, or not answered; whichever network is named."""
    classify(*networks("null"))
    add("new.png", 99)
    add("9/white.png", 97, white=True)
    Path("photos/0/00.png").unlink()
    rows = classify(*networks("null"))
    assert [row["id"] for row in rows][12:] == ["new.png", "9/white.png"]
    wrong = ExitCode.COMPLETE_WITH_ERRORS
    named = str(Path("photos").resolve())  # another way to name the folder
    found = classify(*networks(NET, names=("b",)), code=wrong, source=named)
    assert [without(row, "b_class", "b_score", "error") for row in found] == [
        without(row, "error") for row in rows
    ]
    classes = {row["id"]: row["class"] for row in classify(*networks(NET), out="b.parquet", code=5)}
    assert len({*classes.values()}) > 2
    for row in found:
        assert row["b_class"] == classes.get(row["id"])  # no answer of a picture that is gone
    errors = {row["id"]: row["error"] for row in found if row["error"]}
    assert [*errors] == ["9/white.png"]
    assert "b: " in errors["9/white.png"]
    assert "ValueError: white" in errors["9/white.png"]

    add("9/white.png", 96)
    add("later.png", 95)
    monkeypatch.setenv("WEIGHTS", "2")  # so the first run has the picture, and the other one not
    capfd.readouterr()
    classify(*networks("null"), code=ExitCode.USAGE)
    assert "to change the network, remove t.parquet.run/beside/b or" in capfd.readouterr().out
    assert main(["export", "t.parquet.run", "--to", "csv", "--predictions"]) == 0
    exported = {row["id"]: row for row in read_csv("t.parquet.run/export/predictions.csv")}
    assert exported["later.png"]["b_class"] == ""
    assert exported["later.png"]["error"] == "b: has not answered this picture"
    monkeypatch.setenv("WEIGHTS", "1")
    for words in (networks("null"), networks(NET), networks(BOXES, SINGLE, names=("box", "f"))):
        add("later.png", 94)
        table = {row["id"]: row for row in classify(*words)}
        assert {"b_class"} <= {*table["later.png"]}
        for name in ("later.png", "9/white.png"):
            assert table[name]["b_class"] is not None
            assert table[name]["error"] is None
    assert [*table["later.png"]][1:9] == [
        *("class", "score", "b_class", "b_score", "f_class", "f_score", "box_mean", "box_boxes")
    ]
    assert (
        table["later.png"]["f_class"]
        in read_results("t.parquet.run/beside/f").manifest["class_names"]
    )
    about = json.loads(parquet.read_schema("t.parquet").metadata[b"collage_mpi"])
    assert about["beside"][0]["settings"]["single"] == NET
    assert main(["verify", "t.parquet.run"]) == 0
    assert "t.parquet.run/beside/f: complete" in capfd.readouterr().out
    assert {*classify(*networks("null", names=("z",)))[0]} == {*table["later.png"]}
    assert "z: null is the table's first network" in capfd.readouterr().err
    pruned = classify(*networks("null"), "--prune")
    assert {row["id"] for row in pruned} == {*table} - {"0/00.png"}
    assert main(["export", "t.parquet.run", "--to", "csv", "--predictions"]) == 0
    exported = read_csv("t.parquet.run/export/predictions.csv")
    assert [row["b_class"] for row in exported] == [row["b_class"] for row in pruned]
    assert json.loads(exported[1]["box_boxes"]) == pruned[1]["box_boxes"]


@pytest.mark.usefixtures("pictures")
def test_another_network_under_a_name_is_refused_and_the_table_stays(monkeypatch, capfd) -> None:
    classify(*networks("null", NET, names=("a", "b")))
    classify(*networks("null:wrong=3", names=("c",)))
    before = Path("t.parquet").read_bytes()
    for words, said in (
        (networks("null:wrong=4", names=("a",)), "its columns a are of null, and null:wrong=4 is"),
        (networks("null", names=("b",)), "its columns b are of own.py:Net, and null is another"),
        (networks("null:wrong=5", names=("C",)), "Give it a name of its own: --as C2"),
        (networks("null", "null:wrong=5", names=("a", "c")), "its columns c are of null:wrong=3"),
        (networks("null:wrong=5"), "its classes are of null, and null:wrong=5 is another network"),
        (networks("null", "x/c.onnx"), "its columns c are of null:wrong=3, and x/c.onnx is"),
        (networks("null", "o.onnx", "x/o.onnx"), "two networks have the name o"),
        (networks("null", names=("a", "b")), "1 network and 2 names by --as"),
        ([*networks("null", NET), "--agree", "0.9"], "--agree is for one network"),
        ([*networks("null", NET), "--top-k", "2"], "leave out --top-k"),
    ):
        classify(*words, code=ExitCode.USAGE)
        said_now = capfd.readouterr().err
        assert said in said_now
        assert "Traceback" not in said_now
    classify(*networks(BOXES), out="new.parquet", code=ExitCode.USAGE)
    assert "a table begins with a network that classifies" in capfd.readouterr().err
    add("new.png", 99)
    monkeypatch.setenv("WEIGHTS", "2")  # the same name, other weights
    classify(*networks("null", NET), code=ExitCode.USAGE)
    said_now = capfd.readouterr()
    assert "has another single network" in said_now.err
    assert "to change the network, remove t.parquet.run or" in said_now.out
    assert Path("t.parquet").read_bytes() == before
    monkeypatch.setenv("WEIGHTS", "1")
    assert len(classify(*networks("null", NET))) == 13


@pytest.mark.usefixtures("pictures")
def test_a_name_that_is_listed_twice_is_two_pictures_for_each_network() -> None:
    lines = ["photos/0/00.png", "photos/1/01.png", "photos/0/00.png"]
    Path("list.txt").write_text("\n".join([*lines, ""]))
    words = ["classify", "list.txt", "--device", "cpu", "--ranks", "1", "--out", "l.csv"]
    assert main([*words, "--network", "null"]) == 0
    assert main([*words, "--network", NET, "--as", "b"]) == 0
    rows = read_csv("l.csv")
    assert [row["b_class"] != "" for row in rows] == [True] * 3
    assert rows[0]["b_class"] == rows[2]["b_class"]


@pytest.mark.usefixtures("pictures")
def test_pictures_with_the_same_id_are_told_apart_by_their_order() -> None:
    files = sorted(Path("photos").rglob("*.png"))
    add(str(files[0].relative_to("photos")), 0, white=True)
    pictures = [
        {"bytes": file.read_bytes(), "path": f"{n % 2}.png"} for n, file in enumerate(files)
    ]
    parquet.write_table(pa.table({"image": pictures}), "p.parquet", row_group_size=3)
    words = ["classify", "p.parquet", "--device", "cpu", "--ranks", "2", "--batch", "1"]
    words += ["--network"]
    assert main([*words, "null", "--out", "t.csv"]) == 0
    assert main([*words, NET, "--as", "b", "--out", "t.csv"]) == ExitCode.COMPLETE_WITH_ERRORS
    Path("mended").touch()  # the row that is tried again is in the last part
    assert main([*words, NET, "--as", "b", "--out", "t.csv", "--retry-errors"]) == 0
    assert main([*words, NET, "--out", "b.csv"]) == 0
    found, alone = read_csv("t.csv"), read_csv("b.csv")
    assert [row["id"] for row in found] == ["0.png", "1.png"] * 6
    assert [row["b_class"] for row in found] == [row["class"] for row in alone]
    assert len({row["class"] for row in alone}) > 2


@pytest.mark.usefixtures("pictures")
def test_several_classes_are_mapped_in_one_pass(capfd) -> None:
    Path("more.py").write_text(
        "class Size:\n    def __init__(self, device): pass\n"
        "    def __call__(self, batch): return {'px': [batch.shape[1]] * len(batch)}\n"
    )
    words = ["map", "own.py:Boxes", "more.py:Size", "--input", "photos", "--device", "cpu"]
    words += ["--ranks", "2", "--image-px", "32"]
    assert main([*words, "--out", "m"]) == 0, capfd.readouterr().err
    results = read_results("m")
    assert {*results[0]} == {
        *("fingerprint", "row", "answered", "Boxes_mean", "Boxes_boxes", "Size_px")
    }
    assert results.kept("Size_px").tolist() == [32] * 12
    assert main([*words, "--out", "n", "--as", "x", "--as", "y"]) == 0
    named = read_results("n")
    assert np.array_equal(named.kept("x_mean"), results.kept("Boxes_mean"))
    assert main([*words, "--out", "n", "--as", "x", "--as", "z"]) == ExitCode.USAGE
    assert main(["map", "own.py:Boxes", "own.py:Gone", *words[3:], "--out", "o"]) == ExitCode.USAGE
    assert "has no function 'Gone'" in capfd.readouterr().err

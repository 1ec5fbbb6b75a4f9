"""Which file got which class: names of images in Python and in every export."""

from __future__ import annotations

import csv
import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results_harness import make_run

from collage_mpi.cli import main
from collage_mpi.results import export_run, image_names, read_results
from collage_mpi.shards import ShardSet, remote, write_shard
from collage_mpi.shards.source import ANY_ITEMS

ROWS = 18
IDS = [f"cats/{number}.jpg" for number in range(ROWS // 2)]


def shard(
    path: Path,
    ids: list[str] | None,
    seed: int,
    each: tuple[int, ...] = (4, 4, 1),
    dtype: str = "u1",
) -> dict[str, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (ROWS // 2, *each), dtype)
    write_shard(path, pixels, ids=ids)
    with ShardSet.open([path], read_as=ANY_ITEMS) as found:
        (info,) = found.infos
    return {"path": str(path), "fingerprint": info.fingerprint, "count": info.count}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run over two shards, of which the first has ids; image 3 has an error row."""
    shards = [shard(tmp_path / "in/a.h5", IDS, 1), shard(tmp_path / "in/b.h5", None, 2)]
    errors = frozenset({3})
    return make_run(
        tmp_path / "run", ROWS, shards=shards, errors=errors, status="complete_with_errors"
    )


def test_names_stand_beside_the_rows(run: Path) -> None:
    results = read_results(run)
    names = image_names(results)
    assert names.id[:9].tolist() == IDS
    assert names.id.mask.tolist() == [False] * 9 + [True] * 9
    assert names.shard_name.tolist() == ["a.h5"] * 9 + ["b.h5"] * 9
    numbers = results.images["predicted"].tolist()
    expected = [f"class {number}" for number in numbers]
    expected[3] = None  # an error row
    assert names.predicted_name.tolist() == expected
    assert names.label_name[0] == f"class {results.images['label'][0]}"
    assert names.notes == ("1 of 2 shards hold no ids",)


def test_items_that_are_no_pictures_have_names_too(tmp_path: Path) -> None:
    items = shard(tmp_path / "a.h5", IDS, 1, (2, 4, 4, 12), "u2")
    names = image_names(read_results(make_run(tmp_path / "run", ROWS // 2, shards=[items])))
    assert (names.id.tolist(), names.notes) == (IDS, ())


def test_why_the_ids_of_a_url_are_not_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(remote, "PAUSES_S", ())
    given = {"path": "http://127.0.0.1:1/a.tar", "fingerprint": "f" * 64, "count": ROWS}
    for name, entry in (("url", given), ("named", {**given, "source": "tar"})):
        notes = image_names(read_results(make_run(tmp_path / name, ROWS, shards=[entry]))).notes
        assert "http://127.0.0.1:1/a.tar: cannot be read: " in notes[0]


def test_csv_has_them(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--to", "csv"]) == 0
    said = capsys.readouterr()
    assert "note: 1 of 2 shards hold no ids" in said.err
    with open(said.out.splitlines()[0], newline="") as file:
        rows = list(csv.DictReader(file))
    assert (rows[2]["row"], rows[2]["id"], rows[2]["shard_name"]) == ("2", IDS[2], "a.h5")
    assert rows[2]["predicted_name"] == f"class {rows[2]['predicted']}"
    assert rows[2]["label_name"] == f"class {rows[2]['label']}"
    assert (rows[3]["id"], rows[3]["predicted_name"]) == (IDS[3], "")
    assert (rows[9]["id"], rows[9]["shard_name"]) == ("", "b.h5")


def test_predictions_alone_are_an_image_a_line(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By id, or shard and row where there is none, in the input order; no answer is empty."""
    assert main(["export", str(run), "--to", "csv", "--predictions"]) == 0
    (path,) = map(Path, capsys.readouterr().out.splitlines())
    assert path == run / "export" / "predictions.csv"
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["id", "class", "score", "source", "runtime", "error"]
    assert [row["id"] for row in rows] == [*IDS, *(f"b.h5:{number}" for number in range(9))]
    images = read_results(run).images
    assert (rows[3]["class"], rows[3]["score"]) == ("", "")
    assert rows[4]["class"] == f"class {images['predicted'][4]}"
    assert float(rows[4]["score"]) == pytest.approx(0.9)
    results = read_results(run)
    shuffled = dataclasses.replace(results, images=results.images[::-1])
    parquet = pytest.importorskip("pyarrow.parquet")
    written = export_run(shuffled, "parquet", only_predictions=True)[0]
    table = parquet.read_table(written).to_pylist()
    assert [row["id"] for row in table] == [row["id"] for row in rows]
    assert (table[3]["class"], table[4]["class"]) == (None, rows[4]["class"])


def test_parquet_has_them_as_plain_text(run: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(export_run(read_results(run), "parquet")[0])
    assert str(table.schema.field("id").type) == "string"
    rows = table.to_pylist()
    assert rows[2]["id"] == IDS[2]
    assert rows[2]["predicted_name"] == f"class {rows[2]['predicted']}"
    assert (rows[3]["predicted_name"], rows[9]["id"]) == (None, None)
    assert rows[9]["shard_name"] == "b.h5"


def test_shards_that_moved_are_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in").rename(tmp_path / "moved")
    results = read_results(run)
    names = image_names(results)
    assert names.id.mask.all()
    assert "no ids of 2 of 2 shards" in names.notes[0]
    assert "a.h5: cannot be read: No such file" in names.notes[0]
    assert "--shards PATH" in names.notes[0]
    (tmp_path / "moved/a.h5").rename(tmp_path / "moved/other.h5")
    (tmp_path / "moved/a.h5.sha256").rename(tmp_path / "moved/other.h5.sha256")
    names = image_names(results, [tmp_path / "moved"])
    assert names.id[:9].tolist() == IDS
    assert names.shard_name[0] == "a.h5"  # as the run had it
    (note,) = image_names(results, [tmp_path / "gone"]).notes
    assert re.search(r"a\.h5: no file given has its SHA-256 \(.*gone: cannot be read", note)
    words = ["export", str(run), "--to", "csv", "--shards", str(tmp_path / "moved")]
    assert main(words) == 0


def test_another_file_of_that_name_gives_no_ids(run: Path, tmp_path: Path) -> None:
    shard(tmp_path / "in/a.h5", [f"wrong {number}" for number in range(9)], 3)
    names = image_names(read_results(run))
    assert names.id.mask.all()
    assert "a.h5: is not the file that the run read" in names.notes[0]


def test_without_class_names_only_numbers_are_known(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ROWS, class_names=None)
    names = image_names(read_results(run))
    assert names.predicted_name.mask.all()
    assert names.label_name.mask.all()


def test_shards_of_one_name_are_told_by_their_paths(tmp_path: Path) -> None:
    shards = [shard(tmp_path / "x/a.h5", IDS, 1), shard(tmp_path / "y/a.h5", IDS, 2)]
    names = image_names(read_results(make_run(tmp_path / "run", ROWS, shards=shards)))
    assert set(names.shard_name.tolist()) == {str(tmp_path / "x/a.h5"), str(tmp_path / "y/a.h5")}


def test_a_simulated_input_has_no_shards(tmp_path: Path) -> None:
    shards = [{"path": None, "fingerprint": "simulated", "count": ROWS}]
    run = make_run(tmp_path / "run", ROWS // 2, shards=shards)
    names = image_names(read_results(run))
    assert names.shard_name.mask.all()
    assert names.id.mask.all()
    assert names.notes == ()

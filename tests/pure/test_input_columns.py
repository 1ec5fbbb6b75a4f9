"""The columns that a Parquet input has besides the pictures travel to the output."""

from __future__ import annotations

import csv
import datetime
from pathlib import Path
from typing import Any

import pytest
from pictures import picture
from results_harness import make_run

from collage_mpi.cli import main
from collage_mpi.commands import classify
from collage_mpi.commands.parser import read_command
from collage_mpi.results import export_run, read_results
from collage_mpi.shards import ShardSet

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NOON = datetime.datetime(2026, 12, 1, 12, tzinfo=datetime.timezone.utc)
TIME, BOX = pa.timestamp("us", "UTC"), pa.list_(pa.field("element", pa.int64()))
A = {
    "caption": ["a cat", None, "=1+1"],
    "id": [7, 8, 9],
    "input_id": [True, False, None],
    "taken": pa.array([NOON, None, NOON], TIME),
    "size": [1, 2, 3],
    "box": [[1, 2], [3], []],
    "mask": [b"1", b"2", b"3"],
}
CLASSIFY = ("classify", "a.parquet", "--network", "null")
B = {"id": [5, 4], "size": ["big", "small"], "=url": ["x", "y"]}


def write(path: Path, columns: dict[str, Any]) -> Path:
    """A file with two rows in a row group."""
    images = [picture(number) for number in range(len(columns["id"]))]
    parquet.write_table(pa.table({"image": images, **columns}), path, row_group_size=2)
    return path


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run over two files; rows arrive in another order than that of the input."""
    paths = [write(tmp_path / "a.parquet", A), write(tmp_path / "b.parquet", B)]
    with ShardSet.open(paths) as found:
        shards = [
            {"path": str(one.path), "fingerprint": one.fingerprint, "count": one.count}
            for one in found.infos
        ]
    return make_run(tmp_path / "c.csv.run", 5, shards=shards, arrival=[4, 2, 0, 3, 1])


def test_columns_keep_their_types_and_ours_keep_their_names(run, monkeypatch) -> None:
    monkeypatch.setattr("collage_mpi.shards.tables.BATCH_ROWS", 1)
    table = parquet.read_table(export_run(read_results(run), "parquet", only_predictions=True)[0])
    assert table["id"].to_pylist() == [f"a.parquet:{n}" for n in range(3)] + [
        "b.parquet:0",
        "b.parquet:1",
    ]
    behind = ["caption", "input_input_id", "input_id", "taken", "size", "box", "=url"]
    assert table.column_names == ["id", "class", "score", "source", "runtime", "error", *behind]
    kinds = [pa.string(), pa.int64(), pa.bool_(), TIME, pa.string(), BOX, pa.string()]
    assert [table.schema.field(name).type for name in behind] == kinds
    assert table.select(behind).to_pydict() == {
        "caption": ["a cat", None, "=1+1", None, None],
        "input_input_id": [7, 8, 9, 5, 4],
        "input_id": [True, False, None, None, None],
        "taken": [NOON, None, NOON, None, None],
        "size": ["1", "2", "3", "big", "small"],
        "box": [[1, 2], [3], [], None, None],
        "=url": [None, None, None, "x", "y"],
    }


def test_a_column_can_name_the_images_of_a_table_that_a_spreadsheet_opens(run) -> None:
    assert main(["export", str(run), "--to", "csv", "--id", "id"]) == 0
    rows = list(csv.DictReader((run / "export/images.csv").open()))
    assert [row["id"] for row in rows] == ["7", "8", "9", "5", "4"]
    names = ("input_id", "taken", "caption", "'=url")
    assert [rows[2][name] for name in names] == ["", "2026-12-01 12:00:00.000000Z", "'=1+1", ""]
    assert rows[0]["input_id"] == "1"
    classify._export(read_command([*CLASSIFY, "--out", f"{run.parent}/c.csv", "--id", "size"])[1])
    rows_by_size = list(csv.DictReader((run.parent / "c.csv").open()))
    assert [row["id"] for row in rows_by_size] == ["1", "2", "3", "big", "small"]
    assert "size" not in rows_by_size[0]
    (run.parent / "b.parquet").unlink()
    assert main(["export", str(run), "--to", "csv", "--id", "id"]) == 3
    assert main(["export", str(run), "--to", "csv"]) == 0
    rows = list(csv.DictReader((run / "export/images.csv").open()))
    assert [row["caption"] for row in rows] == ["a cat", "", "'=1+1", "", ""]


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (
            "url",
            "a.parquet has no such column. Columns that can name images: caption, id, input_id",
        ),
        ("box", "no such column"),
        ("caption", "1 of 3 rows without a value"),
        ("twice", "the value 4 is there more than once"),
    ],
)
def test_an_id_that_cannot_name_images_is_refused_first(
    column, said, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.parquet", {**A, "twice": [4, 5, 4]})
    words = [*CLASSIFY, "--out", "c.csv", "--id", column]
    monkeypatch.setattr("collage_mpi.commands.classify.check_and_launch", lambda how: 1 / 0)
    assert main(words) == 2
    assert f"--id {column}: " in (found := capsys.readouterr().err)
    assert said in " ".join(found.split())

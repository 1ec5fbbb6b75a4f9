"""Tables that name pictures: Parquet, CSV and JSON. Their columns travel to the output."""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jobs_by_hand import GOOD, Job

from collage_mpi.cli import main
from collage_mpi.commands.parser import read_command
from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.results import export_run
from collage_mpi.results.export import NameBook
from collage_mpi.results.input_columns import InputColumns
from collage_mpi.results.reader import open_run
from collage_mpi.shards import ShardSet
from collage_mpi.shards.inputs import source_of
from collage_mpi.shards.members import Member, MemberIndex
from collage_mpi.shards.tables import ListedColumns, reader_of, unified
from collage_mpi.shards.update import AGAIN, Update

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

PLAYS = 12
ROWS = [
    {"path": "p/0.png", "code": "007", "said": "a, b"},
    {"path": "p/1.png", "code": "01", "said": 'two\nlines "q"'},
    {"path": "p/2.png", "code": "NA", "said": None},
    {"path": "p/1.png", "code": "1e3", "said": "the second again"},
    {"path": "gone.png", "code": "true", "said": "é"},
]


def with_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    delimiter = {".tsv": "\t", ".semicolon.csv": ";"}.get(path.name.removeprefix("t"), ",")
    with path.open("w", newline="", encoding="utf-8-sig" if delimiter == ";" else "utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0]], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def with_json(path: Path, rows: list[dict[str, Any]]) -> None:
    lines = [json.dumps(row) for row in rows]
    path.write_text("\n\n".join(lines) if path.suffix == ".jsonl" else json.dumps(rows, indent=1))


def with_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.table({name: [row[name] for row in rows] for name in rows[0]})
    names = table["path"].dictionary_encode()
    parquet.write_table(table.set_column(0, "path", names), path, row_group_size=2)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "t.csv": with_csv,
    "t.tsv": with_csv,
    "t.semicolon.csv": with_csv,
    "t.jsonl": with_json,
    "t.json": with_json,
    "t.parquet": with_parquet,
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, the current one. Tables are decoded two rows at a time."""
    for number in range(5):
        at = tmp_path / f"p/{number}.png"
        at.parent.mkdir(exist_ok=True)
        at.write_bytes(GOOD + b"%d" % number)
    monkeypatch.setattr("collage_mpi.shards.tables.BATCH_ROWS", 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def done(table: Path, out: Path = Path("run"), update: Update | None = None) -> Path:
    """A run of all pictures that a table names, or its update."""
    out.mkdir(exist_ok=True)
    job = Job(table, out, update).begin()
    if job.mine is not None:
        job.do(job.lacking)
    return out


def exported(run: Path, *more: str) -> list[dict[str, Any]]:
    assert main(["export", str(run), "--to", "parquet", "--predictions", *more]) == 0
    rows: list[dict[str, Any]] = parquet.read_table(run / "export/predictions.parquet").to_pylist()
    return rows


@pytest.mark.parametrize("name", WRITERS)
def test_each_row_of_a_table_is_a_picture_and_keeps_what_is_said_of_it(name: str) -> None:
    WRITERS[name](Path(name), ROWS)
    rows = exported(done(Path(name)))
    assert [{key: row[key] for key in ROWS[0]} for row in rows] == ROWS
    assert [row["id"] for row in rows] == [row["path"] for row in ROWS]
    assert [row["class"] is None for row in rows] == [False] * 4 + [True]
    assert "No such file" not in rows[3]["error"] if rows[3]["error"] else True
    told = [(row["source"], row["runtime"]) for row in rows]
    assert told == [("single", "")] * 4 + [(None, None)]
    assert rows[1]["class"] == rows[3]["class"] != rows[0]["class"]


def test_a_table_is_read_once_for_an_output_in_order(monkeypatch) -> None:
    monkeypatch.setattr("collage_mpi.results.export._CHUNK_ROWS", 1)
    with_parquet(Path("t.parquet"), ROWS)
    begun: list[int] = []
    reader = reader_of(Path("t.parquet"))
    scan = reader.scan
    monkeypatch.setattr(
        reader, "scan", lambda table, part, names: begun.append(part) or scan(table, part, names)
    )
    run = done(Path("t.parquet"))
    begun.clear()
    assert [row["said"] for row in exported(run)] == [row["said"] for row in ROWS]
    assert begun == [0, 1, 2]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_rows_of_a_table_can_be_asked_again_and_of_other_columns(name: str) -> None:
    WRITERS[name](Path(name), ROWS)
    table = reader_of(Path(name))(Path(name))
    for rows, column in (([1, 4], "said"), ([0], "said"), ([0, 1], "code"), ([4, 9], "code")):
        found = table.take(np.array(rows), [column])[column].to_pylist()
        assert found == [ROWS[row][column] for row in rows if row < 5]


def test_what_takes_too_much_memory_is_refused(monkeypatch) -> None:
    with_csv(Path("t.csv"), ROWS)
    table = reader_of(Path("t.csv"))(Path("t.csv"))
    monkeypatch.setattr("collage_mpi.shards.members.MOST_ROWS", 4)
    with pytest.raises(DataFault, match="declares 5 images"):
        table.pictures()
    monkeypatch.setattr("collage_mpi.shards.members.LARGEST_UNIT_BYTES", 4)
    monkeypatch.setattr("collage_mpi.shards.members.MOST_TIMES", 0)
    with pytest.raises(DataFault, match="its names of pictures takes"):
        table.pictures()
    with pytest.raises(DataFault, match="what columns say of 5 rows takes"):
        table.take(np.arange(5), ["said"])


def test_fields_of_a_csv_file_may_have_lines_and_be_longer_than_a_block(monkeypatch) -> None:
    monkeypatch.setattr("collage_mpi.shards.tables.CSV_BLOCK_BYTES", 48)
    said = [f"{'line' * at}\n\n{at}, and" for at in range(5)]
    Path("t.csv").write_text("path,said,no\n" + "".join(f'p/0.png,"{one}",""\n' for one in said))
    table = reader_of(Path("t.csv"))(Path("t.csv"))
    assert table.take(np.arange(5), ["said", "no"]).to_pydict() == {"said": said, "no": [""] * 5}
    Path("t.csv").write_text(f"path,said\nx,{'long ' * 99}\n")
    with pytest.raises(DataFault, match="cannot be read as a table"):
        reader_of(Path("t.csv"))(Path("t.csv")).pictures()


def test_a_table_at_a_url_is_read_up_to_the_size_of_a_list(monkeypatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    lines = "\n".join(["path,code", "memory://p.png,007", ""]).encode()
    for name, data in (("t.csv", lines), ("p.png", GOOD)):
        with fsspec.open(f"memory://{name}", "wb") as file:
            file.write(data)
    with ShardSet.open(["memory://t.csv"]) as found:
        assert found.read_files_checked([0])[0] == [GOOD]
        images = np.zeros(1, [("shard", np.uint32), ("row", np.uint64)])
        assert InputColumns({0: found.infos[0]}).of(images)["code"].to_pylist() == ["007"]
    monkeypatch.setattr("collage_mpi.shards.members.LARGEST_LIST_BYTES", 10)
    with pytest.raises(DataFault, match="is longer than 10 bytes"):
        ShardSet.open(["memory://t.csv"])


def test_a_list_that_is_damaged_names_no_row_before_the_first() -> None:
    with_csv(Path("t.csv"), ROWS)
    index = MemberIndex.of([("p/0.png", Member("p/0.png", "p/0.png", 1, offset=-3))])
    found = ListedColumns(reader_of(Path("t.csv"))(Path("t.csv")), index)
    assert found.take(np.zeros(1, int), ["code"]).to_pydict() == {"code": ["007"]}


def test_values_of_json_keep_their_types_and_others_become_text() -> None:
    rows = [
        {"path": "p/0.png", "n": 1, "x": 1, "box": [1, 2], "m": {"k": 1}, "mix": 1, "big": 2**70},
        {"path": "p/1.png", "n": 2, "x": 2.5, "m": {"k": 2, "l": "a"}, "mix": "a", "e": {}},
        {"path": "p/2.png", "n": None, "box": [], "mix": {"k": [1]}, "late": True},
    ]
    with_json(Path("t.jsonl"), rows)
    Path("t.jsonl").write_bytes(b"\xef\xbb\xbf" + Path("t.jsonl").read_bytes())
    found = exported(done(Path("t.jsonl")))
    names = ("n", "x", "box", "mix", "big", "late")
    assert [tuple(row[name] for name in names) for row in found] == [
        (1, 1.0, [1, 2], "1", str(2**70), None),
        (2, 2.5, None, "a", None, None),
        (None, None, [], '{"k":[1]}', None, True),
    ]
    assert [row["m"] for row in found] == [{"k": 1, "l": None}, {"k": 2, "l": "a"}, None]
    assert [row["e"] for row in found] == [None, "{}", None]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", "", "Empty CSV file"),
        ("t.csv", "path,a\n", "names no picture"),
        ("t.csv", "path,a\np/0.png\n", "Expected 2 columns, got 1"),
        ("t.csv", "path\n\xff", "needed: UTF-8"),
        ("t.csv", "name,a\nx,y\n", "no column names pictures; needed: a column of paths"),
        ("t.csv", "path,url\nx,y\n", "may be in path or url: say which, such as t.csv::path"),
        ("t.csv::b", "path\nx\n", "'b' is no column of texts"),
        ("t.csv", "path,path\nx,y\n", "no column names pictures"),
        ("t.json", "", "names pictures"),
        ("t.json", "[]", "names pictures"),
        ("t.jsonl", '{"path": "x"}\n{"path": \n', "an object on each line"),
        ("t.jsonl", '{"path": "x"}\n["x"]\n', "an object on each line"),
        ("t.json", '{"path": 5}', "no column names pictures"),
        ("t.json", "[" * 100_000, "an object on each line"),
    ],
)
def test_what_is_no_table_of_pictures_is_refused_with_a_word(name, content, said) -> None:
    Path(name.partition("::")[0]).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataFault) as caught:
        ShardSet.open([name])
    assert said in str(caught.value)
    assert str(caught.value).startswith(name)


def test_too_many_columns_are_refused(monkeypatch) -> None:
    monkeypatch.setattr("collage_mpi.shards.tables.MOST_COLUMNS", 2)
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        WRITERS[name](Path(name), ROWS)
        with pytest.raises(DataFault, match="has 3 columns; at most 2"):
            ShardSet.open([name])


def test_a_column_is_named_where_several_could_be_meant() -> None:
    with_csv(Path("t.csv"), [{"path": "p/0.png", "url": "p/1.png", "file": "p/9.png"}])
    parquet.write_table(pa.table({"path": ["p/2.png"], "what": ["p/3.png"]}), "t.parquet")
    for path, name in {"t.csv::url": "p/1.png", "t.parquet::what": "p/3.png"}.items():
        with ShardSet.open([path]) as found:
            assert found.infos[0].members.name(0) == name
            assert found.read_files_checked([0])[0] == [Path(name).read_bytes()]
    with ShardSet.open(["t.csv::file"]) as found:  # one picture is missing, not the source
        assert found.read_files_checked([0])[0] == [None]


def test_a_parquet_file_is_a_list_only_if_it_holds_no_pictures() -> None:
    tables = {
        "both": {"path": ["x"], "image": [b"y"]},
        "listed": {"path": ["x"], "image": [1]},
        "neither": {"a": ["x"]},
    }
    for name, columns in tables.items():
        parquet.write_table(pa.table(columns), f"{name}.parquet")
    Path("bad.parquet").write_bytes(b"PAR1")
    words = ("both", "listed", "neither", "bad", "both.parquet::path")
    kinds = [source_of(word if "." in word else f"{word}.parquet")[0].name for word in words]
    assert kinds == ["parquet", "list", "parquet", "parquet", "list"]


# ---- tables that change ------------------------------------------------------


def test_a_table_that_has_changed_is_told_and_says_nothing_of_other_pictures(capsys) -> None:
    with_csv(Path("t.csv"), ROWS)
    run = done(Path("t.csv"))
    with_csv(Path("t.csv"), [ROWS[2], ROWS[1], ROWS[0]])
    rows = exported(run)
    assert [row["code"] for row in rows] == [None, "01", None, None, None]
    assert "4 images without columns of the input: its table" in capsys.readouterr().err
    Path("u").mkdir()
    shutil.move("t.csv", "u/t.csv")
    assert [row.get("code") for row in exported(run)] == [None] * 5
    assert "no columns of the input: t.csv: cannot be read" in capsys.readouterr().err
    assert main(["export", str(run), "--to", "csv", "--columns", "code"]) == 3
    assert [row["code"] for row in exported(run, "--shards", "u/t.csv")][1] == "01"


def test_after_each_update_rows_have_what_the_table_says_of_their_pictures_now(
    monkeypatch, capsys
) -> None:
    """Rows are added, removed, sorted and said otherwise; a picture may be named twice."""
    ns = SimpleNamespace(time_ns=lambda: 2 * 10**18, monotonic_ns=lambda: 0)
    monkeypatch.setattr("collage_mpi.shards.source.time", ns)
    for seed in range(PLAYS):
        chance = random.Random(seed)
        name = chance.choice([*WRITERS])
        rows = [{"path": f"p/{n}.png", "code": f"{n}"} for n in range(3)]
        out = Path(f"run{seed}")
        for turn in range(4):
            WRITERS[name](Path(name), rows)
            done(Path(name), out, Update(touched=AGAIN))
            found = [row for row in exported(out) if not row.get("removed")]
            assert sorted((row["id"], row["code"]) for row in found) == sorted(
                (row["path"], row["code"]) for row in rows
            )
            assert "without columns" not in capsys.readouterr().err
            more = [{"path": f"p/{chance.randrange(5)}.png", "code": f"{turn} {n}"} for n in "ab"]
            rows = chance.sample(rows, chance.randrange(1, len(rows) + 1)) + more
            chance.shuffle(rows)
            rows[0] = {**rows[0], "code": f"{turn} new"}


def test_a_removed_row_keeps_nothing_of_the_table(capsys) -> None:
    with_csv(Path("t.csv"), ROWS[:3])
    done(Path("t.csv"))
    with_csv(Path("t.csv"), ROWS[1:3])
    done(Path("t.csv"), update=Update())
    rows = exported(Path("run"))
    assert [(row["removed"], row["code"]) for row in rows] == [
        (True, None),
        (False, "01"),
        (False, "NA"),
    ]
    assert "without columns" not in capsys.readouterr().err


# ---- what is chosen, and what it becomes ------------------------------------


def test_columns_are_chosen_and_others_stay(capsys) -> None:
    with_csv(Path("t.csv"), ROWS)
    run = done(Path("t.csv"))
    ours = ["id", "class", "score", "source", "runtime", "error"]
    for words, behind in (
        (("said", "code"), ["said", "code"]),
        (("none",), []),
        (("code", "--id", "said"), ["code"]),
    ):
        if "--id" in words:
            assert main(["export", str(run), "--to", "csv", "--columns", *words]) == 2
            assert "1 of 5 rows without a value" in capsys.readouterr().err
            continue
        assert [*exported(run, "--columns", *words)[0]] == [*ours, *behind]
    assert main(["export", str(run), "--to", "csv", "--columns", "sad"]) == 2
    said = "--columns sad: no column of the input that travels; did you mean 'said'?. Columns: path"
    assert said in " ".join(capsys.readouterr().err.split())
    assert main(["export", str(run), "--to", "zarr", "--columns", "code"]) == 2
    assert "--id and --columns are for csv and parquet" in capsys.readouterr().err
    words = ("classify", "t.csv", "--network", "null", "--out", "c.csv", "--columns", "sad")
    command, args = read_command(words)
    with pytest.raises(UsageError, match="--columns sad"):
        command.execute(args)


def test_lists_and_structs_stay_in_parquet_and_are_json_in_csv(capsys) -> None:
    when = np.datetime64("2026-12-01T12:00:00", "us")
    columns = {
        "path": ["p/0.png", "p/1.png"],
        "box": [[1, 2], None],
        "made": [{"by": "me", "at": when.item()}, None],
        "words": pa.array(["a", "b"], pa.dictionary(pa.int8(), pa.string())),
        "pairs": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int8())),
        "three": pa.array([[1.0, 2.0, 3.0]] * 2, pa.list_(pa.float32(), 3)),
        "thumb": [b"x", b"y"],
        "crop": [{"bytes": b"x", "n": 1}] * 2,
        "codes": pa.array([5, 6]).dictionary_encode(),
        "price": pa.array([Decimal("1.50"), None]),
        "hash": pa.array([b"ab", b"cd"], pa.binary(2)),
        "masks": [[b"x"], []],
        "Error": [1, 2],
        "input_error": [3, 4],
    }
    parquet.write_table(pa.table(columns), "t.parquet")
    run = done(Path("t.parquet::path"))
    rows = exported(run)
    behind = "path box made words pairs three codes price input_input_Error input_error"
    assert [*rows[0]][6:] == behind.split()
    assert (rows[0]["codes"], rows[0]["price"]) == (5, Decimal("1.50"))
    assert [rows[0][name] for name in ("box", "made", "words", "pairs")] == [
        [1, 2],
        {"by": "me", "at": when.item()},
        "a",
        [("a", 1)],
    ]
    assert (rows[1]["box"], rows[1]["made"], rows[1]["three"]) == (None, None, [1.0, 2.0, 3.0])
    assert (rows[0]["input_input_Error"], rows[0]["input_error"]) == (1, 3)
    told = capsys.readouterr().err
    assert "names are taken: Error is now input_input_Error\n" in told
    assert "for their type or because several have the name: hash, masks\n" in told
    assert "JSON" not in told
    assert main(["export", str(run), "--to", "csv", "--predictions", "--raw"]) == 0
    assert "are JSON in a CSV file: box, made, pairs, three" in capsys.readouterr().err
    with (run / "export/predictions.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert json.loads(first["made"]) == {"by": "me", "at": "2026-12-01T12:00:00"}
    assert (first["box"], second["box"]) == ("[1,2]", "")


def test_a_column_whose_name_is_there_twice_stays(capsys) -> None:
    Path("t.csv").write_text("a,path,a,b\n1,p/0.png,2,3\n")
    (row,) = exported(done(Path("t.csv")))
    assert [*row][-2:] == ["path", "b"]
    assert "several have the name: a\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kinds", "whole"),
    [
        (("int8", "int64"), "int64"),
        (("int64", "float64"), "float64"),
        (("int64", "string"), "string"),
        (("null", "bool"), "bool"),
        (("string", "large_string"), "large_string"),
        (("date32", "timestamp[us]"), "string"),
    ],
)
def test_types_of_several_files_become_one(kinds, whole) -> None:
    assert unified([*map(pa.type_for_alias, kinds)]) == pa.type_for_alias(whole)
    assert unified([*map(pa.type_for_alias, kinds[::-1])]) == pa.type_for_alias(whole)


def infos_of(*tables: dict[str, Any]) -> dict[int, Any]:
    for number, columns in enumerate(tables):
        parquet.write_table(pa.table({"path": ["p/0.png"], **columns}), f"{number}.parquet")
    with ShardSet.open([f"{number}.parquet" for number in range(len(tables))]) as found:
        return dict(enumerate(found.infos))


def test_files_whose_columns_have_other_types_are_one_table() -> None:
    images = np.array([(1, 0), (0, 0)], [("shard", np.uint32), ("row", np.uint64)])
    infos = infos_of(
        {"a": [1], "m": [{"k": 1}], "b": [[1]]}, {"a": [0.5], "m": [{"l": "x"}], "b": [2]}
    )
    found = InputColumns(infos).of(images)
    values = {name: found[name].to_pylist() for name in ("a", "m", "b")}
    assert values == {
        "a": [0.5, 1.0],
        "m": [{"k": None, "l": "x"}, {"k": 1, "l": None}],
        "b": ["2", "[1]"],
    }


def test_a_value_that_does_not_fit_the_common_type_is_told() -> None:
    images = np.array([(0, 0)], [("shard", np.uint32), ("row", np.uint64)])
    columns = InputColumns(infos_of({"a": [2**60 + 1]}, {"a": [0.5]}))
    with pytest.raises(DataFault, match=r"0\.parquet: column a does not fit .* double .*--columns"):
        columns.of(images)


def test_parquet_says_which_networks_wrote_it() -> None:
    with_csv(Path("t.csv"), ROWS)
    run = open_run(done(Path("t.csv")))
    ranks = [
        {"kinds": []},
        {"kinds": ["single"], "tuning": {"single": "torch float32"}, "devices": ["cpu"]},
        {"kinds": ["single"], "tuning": {"single": "torch float32"}, "runtimes": {"single": "x"}},
        {"kinds": ["stage1"], "tuning": {"stage1": "torch bfloat16"}, "devices": ["cuda:0"]},
    ]
    job = {"versions": {"torch": "2"}, "processor": "p"}
    run.manifest["sessions"] = [
        {"session": 1, "final": {"world": ranks}, "job": job},
        {"session": 2, "final": {}, "job": {"versions": {"torch": "3"}}},
    ]
    run.manifest["networks"] = {"single": "5" * 64, "stage1": "6" * 64}
    run.manifest["inputs"] = {"single": "7" * 64}
    for path in export_run(run, "parquet", Path("out"), NameBook(run.path, run.manifest))[:3]:
        told = json.loads(parquet.read_schema(path).metadata[b"collage_mpi"])
        assert told == {
            "run_id": run.manifest["run_id"],
            "inputs": {"single": "7" * 64},
            "networks": {"single": "5" * 64, "stage1": "6" * 64},
            "settings": {"single": "null"},
            "reference": {
                "network": "null",
                "digest": "5" * 64,
                "weights": "7" * 64,
                "formats": ["torch float32", "x"],
                "devices": ["cpu"],
                "versions": {"torch": ["2", "3"]},
                "processors": ["p"],
            },
        }


JOINS: dict[str, Callable[[Any], list[tuple[Any, ...]]]] = {
    "duckdb": lambda it: it.sql(
        "select t.code, o.class from 'run/export/predictions.parquet' o join 't.parquet' t "
        "on o.id = t.path order by t.code"
    ).fetchall(),
    "polars": lambda it: (
        it.read_parquet("run/export/predictions.parquet")
        .join(it.read_parquet("t.parquet"), left_on="id", right_on="path", suffix="_t")
        .sort("code_t")
        .select("code_t", "class")
        .rows()
    ),
    "pandas": lambda it: [
        *it.read_parquet("run/export/predictions.parquet")
        .merge(it.read_parquet("t.parquet"), left_on="id", right_on="path")
        .sort_values("code_y")[["code_y", "class"]]
        .itertuples(index=False, name=None)
    ],
    "datasets": lambda it: sorted(
        (row["code"], row["class"])
        for row in it.load_dataset(
            "parquet", data_files="run/export/predictions.parquet", split="train"
        )
    ),
}


@pytest.mark.parametrize("name", JOINS)
def test_others_join_the_table_by_its_key(name: str, monkeypatch, here) -> None:
    monkeypatch.setenv("HF_HOME", str(here / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reader = pytest.importorskip(name, reason=f"needs another reader: {name}")
    with_parquet(Path("t.parquet"), ROWS[:3])
    rows = exported(done(Path("t.parquet")))
    assert JOINS[name](reader) == sorted((row["code"], row["class"]) for row in rows)


def test_texts_that_are_not_utf_8_are_told(capsys) -> None:
    with_parquet(Path("t.parquet"), ROWS)
    run = done(Path("t.parquet"))
    names = pa.array([row["path"] for row in ROWS])
    codes = pa.array([b"\xff"] * 5).cast(pa.string(), safe=False)
    parquet.write_table(pa.table({"path": names, "code": codes}), "t.parquet")
    assert main(["export", str(run), "--to", "csv", "--predictions"]) == 3
    assert "t.parquet: cannot be read: ArrowInvalid" in " ".join(capsys.readouterr().err.split())
    parquet.write_table(pa.table({"path": codes}), "u.parquet")
    with pytest.raises(EnvironmentFault, match=r"u\.parquet: cannot be read: UnicodeDecodeError"):
        ShardSet.open(["u.parquet"])

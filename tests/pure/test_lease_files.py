"""rows/: a file for each closed lease, for other readers; whatever breaks, no image is in two."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jobs_by_hand import GOOD, SETTINGS, Job
from msgspec import structs
from results_harness import (
    InlineThread,
    Kill,
    fill,
    kill_at,
    layout_of_run,
    locate,
    make_run,
    manifest,
    vector_of,
)
from rows_by_name import add_image

from collage_mpi.cli import main
from collage_mpi.errors import DataFault, EnvironmentFault, ExitCode, UsageError
from collage_mpi.job.joining import finished_status
from collage_mpi.ledger.cells import Cell
from collage_mpi.ledger.jobs import register
from collage_mpi.ledger.owner import Owner, join
from collage_mpi.ledger.reading import at_home, runs
from collage_mpi.ledger.records import Part, Record, Run, news_name
from collage_mpi.ledger.spans import union
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results import lease_files, read_results, row_sink, verify_run
from collage_mpi.results.columns import Form, as_table, parquet_bytes
from collage_mpi.results.jobs import entry
from collage_mpi.results.lease_files import LeaseFiles, closed
from collage_mpi.results.parts import LedgerReader, read_ledger, write_part
from collage_mpi.results.reader import open_run, rows_of_part
from collage_mpi.results.row_sink import RowSink
from collage_mpi.results.sole import SoleWriter
from collage_mpi.rows import IMAGES, OTHERS
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards.update import Update
from collage_mpi.system import files
from tests.simulation.laws import run_in, wrong_lease_files

EXTRAS = {"top_k": 2, "save": "scores"}
PAGE = Path(__file__).parents[2] / "docs" / "results.md"
MOST_LINES = 40
MOST_JOBS = 5
SOME = ["position", "share", "mask"]


def found(out: Path) -> dict[tuple[str, int], dict]:
    """What another program reads in rows/, by image. No image is there twice."""
    rows = [row for path in (out / "rows").glob("*.parquet") for row in read(path).to_pylist()]
    by_key = {(row["fingerprint"], row["row"]): row for row in rows}
    assert len(by_key) == len(rows)
    return by_key


def read(path: Path) -> pa.Table:
    return pq.ParquetFile(path, page_checksum_verification=True).read()


def test_another_reader_finds_what_the_page_says(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(import pandas.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(program.splitlines()) <= MOST_LINES
    assert "collage_mpi" not in program
    run = make_run(tmp_path / "OUT", 27, errors=frozenset({4}), extras=EXTRAS,
                   status="complete_with_errors")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    results = read_results(run)
    classes = np.unique(results.images["predicted"][results.images["answered"]])
    assert done.stdout.splitlines() == [
        "27 images, 1 without an answer: crc32 of row wrong",
        f"{len(classes)} classes",
        "26 rows of scores, each of 10",
    ]


READERS: dict[str, Callable[[Any, str], list[Any]]] = {  # -> SOME of each row
    "duckdb": lambda it, files: it.sql(f"select {', '.join(SOME)} from '{files}'").fetchall(),
    "polars": lambda it, files: it.read_parquet(files).select(SOME).rows(),
    "datasets": lambda it, files: [
        tuple(row[name] for name in SOME)
        for row in it.load_dataset("parquet", data_files=files, split="train")
    ],
}


@pytest.mark.parametrize("name", READERS)
def test_other_readers_find_what_is_kept(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    reader = pytest.importorskip(name, reason=f"needs another reader: {name}")
    run = make_run(tmp_path / "OUT", 27, errors=frozenset({4}), status="complete_with_errors",
                   extras={"top_k": None, "save": "outputs"}, labels=False)  # fmt: skip
    rows = {at: kept for at, *kept in READERS[name](reader, str(run / "rows/*.parquet"))}
    assert rows[4] == [None, None]
    assert rows[6] == [3.0, [[6] * 3] * 2]
    assert [*sorted(rows)] == [*range(27)]


def test_the_page_names_every_column() -> None:
    page = PAGE.read_text()
    for name in IMAGES.dtype.names:
        assert f"`{name}`" in page, name


def test_a_file_has_the_rows_of_its_lease_and_what_is_kept_of_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 27, errors=frozenset({4}), extras=EXTRAS,
                   status="complete_with_errors")  # fmt: skip
    rows, results = found(run), read_results(run)
    assert len(rows) == 27
    for image in results.images:
        row = rows[results.fingerprints[image["shard"]], image["row"]]
        answered = bool(image["answered"])
        assert (row["answered"], row["position"]) == (answered, image["position"])
        assert row["predicted"] == (image["predicted"] if answered else None)
        assert row["source"] == ("error" if not answered else row["source"])
        assert (row["scores"] is not None) == answered
        assert row["reason"] == image["reason"].decode()
    schema = read(run / "rows/0.parquet").schema
    assert b'"run_id": "test-run"' in schema.metadata[b"collage_mpi"]


def test_what_an_image_does_not_have_is_null() -> None:
    rows = np.zeros(64, IMAGES.dtype)
    for at, name in enumerate(["answered", "has_label", "audited"]):
        rows[name] = np.arange(64) >> at & 1
    rows["stages"] = np.arange(64)[::-1]
    table = as_table(rows, IMAGES, Form(["f"]))
    there = {name: rows["answered"] for name in ("predicted", "score", "rank")}
    there |= {"label": rows["has_label"], **dict.fromkeys(OTHERS[0], rows["audited"] != 0)}
    for at, pair in enumerate(OTHERS[1:], 1):
        there |= dict.fromkeys(pair, rows["stages"] >> at & 1 == 1)
    for name in IMAGES.dtype.names:
        valid = table[name].is_valid().to_pylist()
        assert valid == there.get(name, np.ones(64, bool)).tolist(), name


def test_a_row_that_was_asked_again_is_in_the_place_of_the_older_one(tmp_path: Path) -> None:
    full, out = manifest(27, extras=EXTRAS), tmp_path / "run"
    first = SoleWriter(out, full, rows_per_part=5)
    fill(first, full, range(27), errors=frozenset({3, 20}))
    first.close("complete_with_errors")
    again = SoleWriter(out, full, read_ledger(out).errors)
    fill(again, full, [3, 20], errors=frozenset({20}))
    again.close("complete_with_errors")
    third = SoleWriter(out, full, read_ledger(out).errors)
    fill(third, full, [20])
    third.commit()
    assert [row["position"] for row in found(out).values() if not row["answered"]] == [28]
    third = SoleWriter(out, full)
    third.close("complete")
    assert verify_run(out).ok
    rows = found(out)
    assert len(rows) == 27
    assert all(row["answered"] for row in rows.values())
    assert {*(row["position"] for row in rows.values())} == {*range(27), 27, 29} - {3, 20}
    assert [path.name for path in (out / "rows").iterdir()] == ["0.parquet"]


def test_who_looked_before_the_parts_went_looks_again(tmp_path: Path) -> None:
    full, out = manifest(27, extras=EXTRAS), tmp_path / "run"
    for rows, status in ((range(20), "incomplete"), (range(20, 27), "complete")):
        writer = SoleWriter(out, full, rows_per_part=10)
        fill(writer, full, rows)
        writer.close(status)
        if status == "incomplete":
            before = open_run(out)
            (part, *_) = (part for part in before.parts if part.table == "images")
    assert [*(out / "parts").glob("images-*")] == []
    rows = np.concatenate([piece() for piece in before.pieces(IMAGES)])
    assert rows["position"].tolist() == [*range(20)]
    scores = before.kept_of_piece(0, before.pieces(IMAGES)[0](), ["scores"])["scores"]
    assert (scores.argmax(axis=1) == rows["predicted"][:10]).all()
    assert [piece() for piece in before.other_pieces()] == []
    (out / "rows/0.parquet").unlink()
    with pytest.raises(DataFault, match=r"0\.parquet: missing"):
        before.pieces(IMAGES)[0]()
    shutil.rmtree(out / "leases")
    (out / "leases").mkdir()
    assert len(rows_of_part(part, IMAGES)) == 0  # nothing counts


def test_parts_that_a_killed_job_has_left_do_no_harm_and_a_repair_moves_them(
    tmp_path: Path, capsys
) -> None:
    full, out = manifest(27, extras=EXTRAS), tmp_path / "run"
    writer = SoleWriter(out, full, rows_per_part=10)
    fill(writer, full, range(27))
    assert writer.drain() is None
    left = {path: path.read_bytes() for path in (out / "parts").glob("images-*")}
    writer.close("complete")
    for path, raw in left.items():
        path.write_bytes(raw)
    assert main(["verify", str(out)]) == 0
    assert len(read_results(out)) == 27
    assert main(["verify", "--repair", str(out)]) == 0
    assert "3 parts without a row that counts: moved to" in capsys.readouterr().err
    assert [*(out / "parts").glob("images-*")] == []
    assert {path.name for path in left} == {path.name for path in (out / "orphans").iterdir()}


def test_parts_go_though_the_folder_failed_when_their_lease_was_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare, failed = Owner._spare, list[int]()

    def fails_once(self: Owner, cell: Cell) -> Any:
        failed.append(cell.start)
        if len(failed) == 1:
            raise OSError(errno.EIO, "it hangs")
        return spare(self, cell)

    monkeypatch.setattr(Owner, "_spare", fails_once)
    full, out = manifest(27, extras=EXTRAS), tmp_path / "run"
    writer = SoleWriter(out, full, rows_per_part=10)
    fill(writer, full, range(27))
    writer.close("complete")
    assert len(failed) == 2
    assert [*(out / "parts").glob("images-*")] == []
    assert verify_run(out).ok


def test_parts_stay_where_the_file_of_their_lease_is_another_one(tmp_path: Path, capsys) -> None:
    other = make_run(tmp_path / "other", 27, extras=EXTRAS, run_id="another")
    full, out = manifest(27, extras=EXTRAS), tmp_path / "run"
    writer = SoleWriter(out, full, rows_per_part=10)
    fill(writer, full, range(27))
    shutil.copy(other / "rows/0.parquet", out / "rows/0.parquet")
    writer.close("complete")
    assert len([*(out / "parts").glob("images-*")]) == 3
    assert len(read_results(out)) == 27
    assert main(["verify", str(out)]) == 4
    assert "0.parquet: undamaged, but of another run" in capsys.readouterr().out
    assert main(["verify", "--repair", str(out)]) == 0
    assert len(found(out)) == 27


def test_a_reader_learns_that_a_closed_cell_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, out = manifest(27), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(LeaseFiles, "make", lambda *_: False)
        writer = SoleWriter(out, full)
        fill(writer, full, range(27))
        writer.commit()
    reader = LedgerReader(out)
    assert [part.session for part in reader.look().parts if part.table == "images"] == [1]
    SoleWriter(out, full).close("complete")
    assert [part.session for part in reader.look().parts if part.table == "images"] == [0]


def test_a_file_whose_rows_were_dropped_goes_unless_the_run_is_over(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run", 27)
    files = LeaseFiles(out, runs(FolderStore(out))[0])
    for still in (False, True):
        files.mend(0, [], still=lambda: still)  # noqa: B023
        assert (out / "rows/0.parquet").exists() is not still


def test_a_file_that_is_replaced_while_it_is_read_is_told(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 27, errors=frozenset({4}), status="complete_with_errors")
    before = open_run(run)
    again = SoleWriter(run, manifest(27), read_ledger(run).errors)
    fill(again, manifest(27), [4])
    again.close("complete")
    with pytest.raises(EnvironmentFault, match=r"0\.parquet: replaced while it was read"):
        before.pieces(IMAGES)[0]()
    assert len(read_results(run)) == 27


def test_a_row_group_is_read_alone_and_each_change_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_files, "GROUP_BYTES", 4000)
    full, out = manifest(90, extras=EXTRAS), tmp_path / "run"
    writer = SoleWriter(out, full, rows_per_part=20)
    fill(writer, full, range(90))
    writer.close("complete")
    run, path = open_run(out), out / "rows/0.parquet"
    pieces, raw = run.pieces(IMAGES), path.read_bytes()
    assert len(pieces) > 1
    assert [*np.concatenate([piece() for piece in pieces])["position"]] == [*range(90)]
    page = pq.ParquetFile(path).metadata.row_group(1).column(3)
    for place, number in ((page.data_page_offset + page.total_compressed_size - 2, 1), (9, 0)):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        with pytest.raises(DataFault, match="damaged"):
            pieces[number]()
    path.write_bytes(raw)


def test_a_kill_between_any_two_steps_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_sink, "PartThread", InlineThread)
    monkeypatch.setattr(files.os, "fsync", lambda _fd: None)  # counted, but not waited for
    full, without = manifest(9, extras=EXTRAS), 0

    def story(out: Path) -> None:
        run = SoleWriter(out, full, rows_per_part=5)
        fill(run, full, range(9), errors=frozenset({3}))
        run.close("complete_with_errors")
        again = SoleWriter(out, full, read_ledger(out).errors)
        fill(again, full, [3])
        again.close("complete")

    for step in range(1, 600):
        out = tmp_path / f"kill-{step}"
        with monkeypatch.context() as patch:
            kill_at(step, patch)
            try:
                story(out)
                break
            except Kill:
                pass
        if not (out / "run.1.json").exists():
            continue
        rows = found(out)
        assert len(rows) in (0, 9)
        if [*out.glob("COMPLETE.*")]:
            assert len(rows) == 9
            assert verify_run(out).rows == 9
        if not rows and len(closed(FolderStore(out))) == 1:
            without += 1  # the cell was closed, and its file not made: another job does it
            SoleWriter(out, full).close("complete_with_errors")
            assert len(found(out)) == 9
            assert verify_run(out).ok
    assert step > 60
    assert without > 0


def updated(pictures: Path, out: Path) -> None:
    """Jobs that take what has changed into a run, until nothing is left to do."""
    for _ in range(MOST_JOBS):
        if (job := Job(pictures, out, Update(prune=True))).mine is None:
            return
        job.begin().do(job.lacking)
    raise AssertionError(f"{out}: {MOST_JOBS} jobs did not end it")


def two_pictures(folder: Path) -> tuple[Path, Path]:
    """A folder of pictures, and a run of them."""
    pictures, out = folder / "pictures", folder / "run"
    pictures.mkdir()
    out.mkdir()
    for name in "ab":
        (pictures / f"{name}.png").write_bytes(GOOD + name.encode())
    updated(pictures, out)
    return pictures, out


@pytest.mark.parametrize("back", [False, True])
def test_a_kill_between_any_two_steps_of_an_update_leaves_no_picture_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    """At first nothing is left of a cell; then a picture is there again, and another one goes."""
    monkeypatch.setattr(row_sink, "PartThread", InlineThread)
    monkeypatch.setattr(files.os, "fsync", lambda _fd: None)  # counted, but not waited for
    pictures, before, ended = tmp_path / "pictures", tmp_path / "before", False
    pictures.mkdir()
    before.mkdir()

    def has(**data: bytes) -> None:
        for path in pictures.iterdir():
            path.unlink()
        for name, each in data.items():
            (pictures / f"{name}.png").write_bytes(GOOD + each)

    def positions(out: Path) -> set[int]:
        return {row["position"] for row in found(out).values()}

    has(a=b"1", b=b"2", c=b"3")
    updated(pictures, before)
    has(a=b"1", b=b"4", c=b"3", d=b"5")
    updated(pictures, before)
    assert positions(before) == {0, 2, 3, 4}
    has(a=b"1", b=b"4")
    kept, then = {0, 3}, {0, 3}
    if back:
        updated(pictures, before)
        has(a=b"1", c=b"3")
        kept, then = {0}, {0, 5}
    for step in range(1, 600):
        out = tmp_path / f"kill-{step}"
        shutil.copytree(before, out)
        with monkeypatch.context() as patch:
            kill_at(step, patch)
            try:
                updated(pictures, out)
                break
            except Kill:
                pass
        assert kept <= positions(out)
        if (ledger := read_ledger(out)).complete:
            counts = {at for part in ledger.parts for span in part.spans for at in range(*span)}
            assert positions(out) == counts
            ended |= {*counts} == then
        updated(pictures, out)
        assert positions(out) == then
        assert verify_run(out).ok
        assert len([*out.glob("rows/*.parquet")]) == 1
    assert step > 10
    assert ended


def test_verify_knows_what_was_dropped(tmp_path: Path, capsys) -> None:
    pictures, out = two_pictures(tmp_path)
    (pictures / "c.png").write_bytes(GOOD + b"c")
    updated(pictures, out)
    raw = {path: path.read_bytes() for path in (out / "rows").iterdir()}
    assert len(raw) == 2
    (pictures / "c.png").unlink()
    (pictures / "a.png").unlink()
    updated(pictures, out)
    assert [row["position"] for row in found(out).values()] == [1]
    assert [*wrong_lease_files(out, run_in(out), whole=True)] == []
    for path, older in raw.items():
        path.write_bytes(older)  # as a job does that was suspended for long
    (said,) = wrong_lease_files(out, run_in(out), whole=True)
    assert said == "a marker, and 3 rows in rows/, where 1 last"
    assert [*read_results(out).images["position"]] == [1]  # nothing is lost, and nothing is back
    assert main(["verify", str(out)]) == 4
    said = capsys.readouterr().out
    assert "2.parquet: there, though its rows were dropped" in said
    assert "0.parquet: has other rows than the ledger says" in said
    assert main(["verify", "--repair", str(out)]) == 0
    assert [row["position"] for row in found(out).values()] == [1]
    assert not (out / "orphans").exists()


def test_a_cell_that_asks_again_and_has_new_images_is_closed(tmp_path: Path) -> None:
    pictures, out = two_pictures(tmp_path)
    (pictures / "b.png").write_bytes(GOOD + b"changed")
    (pictures / "c.png").write_bytes(GOOD + b"c")
    job = Job(pictures, out, Update())
    assert job.mine is not None
    job.mine = structs.replace(job.mine, cell=2)
    job.begin().do(job.lacking)
    there = closed(FolderStore(out))
    spans = {start: union(*(part.spans for part in parts)) for start, parts in there.items()}
    assert spans == {0: ((0, 1), (2, 3)), 2: ((3, 4),)}
    run = open_run(out)  # the part with 2 is there, too: its row of 3 is not another one
    rows = np.concatenate([piece() for piece in (*run.pieces(IMAGES), *run.other_pieces())])
    assert sorted(rows["position"].tolist()) == [0, 2, 3]


def test_a_job_that_was_suspended_puts_no_older_content_back(tmp_path: Path) -> None:
    """It has written the content, and sleeps until others have marked the run as complete."""
    pictures, out = two_pictures(tmp_path)
    store, path = FolderStore(out), out / "rows/0.parquet"
    older = path.read_bytes()
    (cell,) = closed(store).values()
    (pictures / "a.png").unlink()
    updated(pictures, out)
    newer = path.read_bytes()
    assert newer != older
    first, second = runs(store)
    for run in (second, first):
        news, late = out / news_name(run), LeaseFiles(out, run)
        said = news.read_bytes()
        news.write_bytes(b"")
        others = partial(news.write_bytes, said)  # is called while the content is written
        if run is second:
            late.mend(0, cell, others, late.goes_on)
            assert all(each.read_bytes() == newer for each in (out / "rows").iterdir())
            path.unlink()
        else:
            parts = (Part("images-0001-000001.parquet", 1, 1, ((0, 2),)),)
            (out / parts[0].name).write_bytes(older)
            made = late.make(store, Cell(0, 2, Record(0, 2, 0, "", "0" * 32, parts)), others)
            assert not made
            assert [*(out / "rows").iterdir()] == []
        assert not late.goes_on()


AGAIN = ["gone", "changed", "other rows", "a row twice", "another run", "tasks", "other columns"]


def closed_and_not_packed(run: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Path:
    """A complete run whose files of rows could not be made."""
    with monkeypatch.context() as patch:
        patch.setattr(LeaseFiles, "make", lambda *_: False)
        return make_run(run, 27, **more)


@pytest.mark.parametrize("how", ["gone", "changed", "no folder"])
def test_a_file_whose_parts_are_there_is_made_anew(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    whole = found(make_run(tmp_path / "whole", 27, extras=EXTRAS))
    run = closed_and_not_packed(tmp_path / "run", monkeypatch, extras=EXTRAS)
    path = run / "rows/0.parquet"
    if how == "changed":
        path.write_bytes((tmp_path / "whole/rows/0.parquet").read_bytes()[:-1])
    elif how == "no folder":
        path.parent.rmdir()
    assert len(read_results(run)) == 27
    assert main(["verify", str(run)]) == 4
    assert f"{path}: " in capsys.readouterr().out
    assert main(["verify", "--repair", str(run)]) == 0
    assert f"{path}: made anew" in capsys.readouterr().err
    assert found(run) == whole


@pytest.mark.parametrize("how", [*AGAIN, "no folder"])
def test_the_rows_of_a_file_that_is_wrong_are_done_again(tmp_path: Path, capsys, how: str) -> None:
    run = make_run(tmp_path / "run", 27, extras=EXTRAS)
    assert [*(run / "parts").glob("images-*")] == []
    path, whole = run / "rows/0.parquet", found(run)
    raw = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "changed":
        path.write_bytes(raw[:999] + bytes([raw[999] ^ 1]) + raw[1000:])
    elif how == "no folder":
        shutil.rmtree(path.parent)
    elif how == "another run":
        other = make_run(tmp_path / "other", 27, extras=EXTRAS, run_id="another")
        shutil.copy(other / "rows/0.parquet", path)
    elif how == "tasks":
        shutil.copy(run / "parts/tasks-0001-000001.parquet", path)
    else:
        table = read(path)
        names = ["a position" if name == "position" else name for name in table.column_names]
        cut = {"other rows": table.slice(1), "other columns": table.rename_columns(names)}
        table = cut.get(how, pa.concat_tables([table, table.slice(0, 1)]))
        path.write_bytes(b"".join(parquet_bytes(table)))
    assert main(["verify", str(run)]) == 4
    assert f"{path}: " in capsys.readouterr().out
    assert main(["verify", "--repair", str(run)]) == 6
    assert "27 images will be done again" in capsys.readouterr().err
    again = SoleWriter(run, manifest(27, extras=EXTRAS))
    fill(again, manifest(27, extras=EXTRAS), range(27))
    again.close("complete")
    assert [*found(run)] == [*whole]
    assert verify_run(run).ok


@pytest.mark.parametrize("name", ["0 (copy).parquet", "00.parquet", "99.parquet", "0.parquet"])
def test_what_is_of_no_lease_is_told_and_moved_away(tmp_path: Path, capsys, name: str) -> None:
    run = make_run(tmp_path / "run", 27)
    whole, path = found(run), run / "rows" / name
    if name == "0.parquet":  # what nobody can read to its end
        path.unlink()
        os.mkfifo(path)
    else:
        shutil.copy(run / "rows/0.parquet", path)
    lost = name == "0.parquet"
    assert main(["verify", str(run)]) == (3 if lost else 4)
    told = capsys.readouterr()
    assert f"{path}: {'cannot be read: it is a FIFO' if lost else 'of no lease'}" in f"{told}"
    assert main(["verify", "--repair", str(run)]) == (6 if lost else 0)
    assert found(run) == ({} if lost else whole)
    assert (run / "orphans" / f"rows-{name}").exists()


def test_a_repair_on_a_full_disk_says_so_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    run = closed_and_not_packed(tmp_path / "run", monkeypatch)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert main(["verify", "--repair", str(run)]) == 3
    assert f"{run / 'rows'}: cannot be written: No space left" in capsys.readouterr().err
    assert [*(run / "rows").iterdir()] == []


def test_the_file_of_a_lease_that_is_done_again_is_moved_away(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 27)
    (run / "leases/0.1").unlink()
    assert main(["verify", "--repair", str(run)]) == 6
    assert found(run) == {}
    assert (run / "orphans/rows-0.parquet").exists()


def test_row_groups_are_bounded_and_dictionaries_of_parts_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_files, "GROUP_BYTES", 4000)
    full, run = manifest(90, extras=EXTRAS), tmp_path / "run"
    writer = SoleWriter(run, full, rows_per_part=20)
    fill(writer, full, [*range(45, 90), *range(45)])
    writer.close("complete")
    file = pq.ParquetFile(run / "rows/0.parquet")
    assert file.num_row_groups > 1
    assert len({row["fingerprint"] for row in found(run).values()}) == 2
    assert verify_run(run).ok


def test_jobs_that_keep_other_columns_leave_their_rows_in_parts(tmp_path: Path) -> None:
    full, run = manifest(27, extras=EXTRAS), tmp_path / "run"
    writer = SoleWriter(run, full, rows_per_part=13)
    fill(writer, full, range(27))
    assert writer.drain() is None
    first, *_ = sorted((run / "parts").glob("images-*"))
    table = read(first)
    field = table.schema.field("scores").with_type(pa.list_(pa.int32()))
    scores = pa.array([[1] * 10] * len(table), field.type)
    other = table.set_column(table.column_names.index("scores"), field, scores)
    first.write_bytes(b"".join(parquet_bytes(other)))
    writer.close("complete")
    assert [*(run / "rows").iterdir()] == []
    assert len([*(run / "parts").glob("images-*")]) == 3
    assert (run / "COMPLETE.1").exists()
    assert len(read_results(run)) == 27
    LeaseFiles(run, Run(1, 0, 27, 27)).mend(0, closed(FolderStore(run))[0])
    assert [*(run / "rows").iterdir()] == []


def test_positions_lie_in_the_file_of_the_row_that_they_replace() -> None:
    first = Run(1, 0, 10, 4)
    second = Run(2, 10, 16, 4, again=((2, 3), (7, 9)))  # 10, 11, 12 for 2, 7, 8; then 13 to 15
    third = Run(3, 16, 17, 4, again=((11, 12),))  # 16 for 11, which stands for 7
    known = [first, second, third]
    assert at_home(known, ((0, 17),)) == {
        0: ((0, 4), (10, 11)),
        4: ((4, 8), (11, 12), (16, 17)),
        8: ((8, 10), (12, 13)),
        10: ((13, 14),),
        14: ((14, 16),),
    }


class LostReplies:
    """Does what it is asked, and then raises the error of that function, once."""

    def __init__(self, errors: dict[str, OSError]) -> None:
        self._errors = errors

    def __getattr__(self, name: str) -> Any:
        def ask(*given: Any) -> Any:
            result = getattr(os, name)(*given)
            if error := self._errors.pop(name, None):
                raise error
            return result

        return ask


def test_the_content_that_is_there_first_stays(tmp_path: Path, monkeypatch) -> None:
    """Two jobs may make a file at once: one link is made."""
    (tmp_path / "parts").mkdir()
    store = FolderStore(tmp_path)
    store.make()
    rows = np.zeros(2, IMAGES.dtype)
    rows["position"] = 0, 1
    name = "images-0001-000001.parquet"
    size, crc = write_part(tmp_path / "parts" / name, IMAGES, rows, Form(["f"], {"jobs": {}}))
    part = Part(name, size, crc, ((0, 2),))
    cell = Cell(0, 2, Record(0, 2, 0, "", "0" * 32, (part,)))
    cell.free = ()
    alive: list[int] = []
    made = LeaseFiles(tmp_path, join(store, Run(1, 0, 2, 2)))
    made.make(store, cell, lambda: alive.append(1))
    raw = (tmp_path / "rows/0.parquet").read_bytes()
    assert alive
    content = (tmp_path / "parts" / name).read_bytes()
    (tmp_path / "parts" / name).unlink()
    synced: list[str] = []
    monkeypatch.setattr(store, "sync_folder", synced.append)
    made.make(store, cell, lambda: None)  # it is there: no part is read
    assert (tmp_path / "rows/0.parquet").read_bytes() == raw
    assert synced == ["rows/0.parquet"]  # who made it may have had no time for it
    (tmp_path / "rows/0.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        made.make(store, cell, lambda: None)
    (tmp_path / "parts" / name).write_bytes(content)
    lost = FolderStore(
        tmp_path, LostReplies({"open": FileExistsError(), "link": FileExistsError()})
    )
    lost.sync_folder = synced.append  # type: ignore[method-assign]
    with pytest.raises(OSError, match="told that it was there before"):
        made.make(lost, cell, lambda: None)
    assert not (tmp_path / "rows/0.parquet").exists()
    made.make(lost, cell, lambda: None)
    assert (tmp_path / "rows/0.parquet").read_bytes() == raw
    assert synced == 2 * ["rows/0.parquet"]


def test_a_lost_part_of_an_update_leaves_a_run_that_is_incomplete_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that it had replaced count again, and the file of their lease lacks them."""
    pictures, out = two_pictures(tmp_path)
    (pictures / "b.png").write_bytes(GOOD + b"changed")
    updated(pictures, out)
    (part,) = (out / "parts").glob("images-0002-*")
    part.unlink()
    assert main(["verify", "--repair", str(out)]) == ExitCode.INCOMPLETE
    assert "incomplete" in capsys.readouterr().out
    updated(pictures, out)
    assert verify_run(out).ok
    assert len(found(out)) == 2


def test_rows_of_a_complete_run_that_are_lost_are_not_finished(tmp_path: Path) -> None:
    pictures, out = two_pictures(tmp_path)
    (pictures / "b.png").write_bytes(GOOD + b"changed")
    updated(pictures, out)
    settings = RunSettings(shards=(str(pictures),), out=str(out), **SETTINGS)
    assert finished_status(settings, retry_errors=False) == "complete"
    (out / "rows/0.parquet").unlink()
    assert main(["verify", "--repair", str(out)]) != 0
    assert finished_status(settings, retry_errors=False) is None
    updated(pictures, out)
    assert verify_run(out).ok


def test_answers_of_a_rank_are_given_again_in_a_complete_run_only(tmp_path: Path) -> None:
    pictures, out = two_pictures(tmp_path)
    (out / "COMPLETE.1").unlink()
    with pytest.raises(UsageError, match="--redo-rank needs a complete run"):
        Job(pictures, out, redo="1")


def test_kept_values_go_with_their_images_wherever_they_lie_by_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part has rows of two cells in another order than the files of their leases."""
    monkeypatch.setattr(row_sink, "PartThread", InlineThread)
    out, full = tmp_path / "run", manifest(12, extras=EXTRAS)
    (out / "parts").mkdir(parents=True)
    store, name = FolderStore(out), "a" * 32
    store.make()
    run = join(store, Run(1, 0, 12, 6, name, settings=entry({"started": "now", **full})))
    session, times = register(store, name, {}), iter(range(99))
    owner = Owner(store, run, 1, lambda: next(times) / 9, name, files=LeaseFiles(out, run))
    for _ in range(6):
        owner.turn(12)
    sink = RowSink(out, full, session, owner.wrote)
    sink.keep(layout_of_run(full))

    def write(images: list[int]) -> None:
        for image in images:
            shard, row = locate(full, image)
            place = {"position": image, "shard": shard, "row": row, "source": "single"}
            said = {"answered": True, "predicted": image % 10, "score": 0.9, "rank": 1}
            add_image(sink, vector_of(full, image, image % 10), **place, **said)
        sink.flush()
        owner.turn()

    write([0, 1, 6, 7, 2, 3])
    write([8])
    early = read_results(out)
    assert [early[image]["class"] for image in (0, 6)] == [0, 8]  # it has learned where they lie
    write([4, 5, 9, 10, 11])
    assert sink.drain() is None
    for _ in range(4):
        owner.turn()
    assert sorted(path.name for path in (out / "rows").iterdir()) == ["0.parquet", "6.parquet"]
    assert not [*(out / "parts").glob("images*")]
    for image in range(len(early)):
        answer = early[image]
        assert answer["scores"].argmax() == answer["class"]

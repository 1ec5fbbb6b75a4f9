"""What is kept beyond a class: packed and unpacked; beside its rows whatever breaks."""

from __future__ import annotations

import csv
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from job_messages import HELLO
from results_harness import InlineThread, Kill, fill, kill_at, make_run, manifest
from wire_tasks import unpack_results

from collage_mpi.cli import main
from collage_mpi.encoding.collage import decode
from collage_mpi.encoding.vectors import (
    MOST_BYTES,
    Extras,
    KeptColumn,
    layout_of,
    unpack,
)
from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.job.handshake import answer_bytes, kept_columns
from collage_mpi.job.plan import make_plan
from collage_mpi.job.provenance import fixed_facts
from collage_mpi.job.session import build_encoder
from collage_mpi.mpi.answers import (
    ANSWERED,
    Score,
    WireResult,
    in_messages,
    pack_results,
)
from collage_mpi.mpi.protocol import UP_BYTES
from collage_mpi.results import (
    export,
    export_run,
    lease_files,
    read_results,
    row_sink,
    verify_run,
)
from collage_mpi.results.columns import Form, parquet_bytes
from collage_mpi.results.reader import open_run
from collage_mpi.results.sole import SoleWriter
from collage_mpi.rows import IMAGES
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import write_shard
from collage_mpi.system import files

pyarrow = pytest.importorskip("pyarrow")
dataset = pytest.importorskip("pyarrow.dataset")
parquet = pytest.importorskip("pyarrow.parquet")

BOTH = {"top_k": 3, "save": "scores"}
ROWS = 27


# ---- the vector ---------------------------------------------------------------


@given(
    arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 12)),
                  elements=st.floats(0, 1, width=32)),
    st.data(),
)  # fmt: skip
def test_what_is_packed_comes_back(scores, data):
    n, classes = scores.shape
    k = data.draw(st.integers(1, classes))
    embeddings = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    for save, saved in (("none", 0), ("scores", classes), ("embeddings", 2)):
        extras = Extras(k, save)
        layout = layout_of(extras.columns(classes, [KeptColumn.of("embedding", embeddings)]))
        vectors = extras.pack(layout, scores, {"embedding": embeddings})
        assert vectors.shape == (n, saved + 2 * k)
        found = unpack(layout, vectors)
        assert layout.names == extras.names
        top = found["top_classes"]
        assert np.array_equal(np.take_along_axis(scores, top, 1), found["top_scores"])
        assert np.array_equal(found["top_scores"], -np.sort(-scores, axis=1)[:, :k])
        best = [record[0] if record else None for record in decode(scores)]
        assert all(b in (None, t) for b, t in zip(best, top[:, 0].tolist(), strict=True))
        if save == "scores":
            assert np.array_equal(found["scores"], scores)
        if save == "embeddings":
            assert np.array_equal(found["embedding"], embeddings)


def test_they_travel_as_they_are():
    """Class numbers are bits in floats: no conversion may touch them on their way."""
    extras = Extras(2, "none")
    layout = layout_of(extras.columns(3))
    vectors = extras.pack(layout, np.float32([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]]))
    buffer = np.zeros(4096, np.uint8)
    sent = WireResult(1, ANSWERED, cells=(Score(1, 0.7), Score(0, 0.5)), vectors=vectors)
    (got,) = unpack_results(buffer[: pack_results(buffer, 1, [sent])])
    assert unpack(layout, got.vectors)["top_classes"].tolist() == [[1, 2], [0, 2]]


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    """RunSettings of a small shard with three classes."""
    write_shard(tmp_path / "a.h5", np.zeros((40, 6, 6, 1), np.uint8), np.arange(40) % 3,
                class_names=("a", "b", "c"))  # fmt: skip

    def made(**more: Any) -> RunSettings:
        names = {"single": "null", "collage": "null", "out": "out", "side": 2}
        return RunSettings(shards=(str(tmp_path / "a.h5"),), **{**names, **more})

    return made


@pytest.mark.parametrize(
    ("scheme", "world", "extras"),
    [
        ("collage", 6, {"top_k": 3, "save": "scores"}),
        ("cascade", 6, {"save": "scores", "first": ("null",)}),
        ("none", 5, {"save": "embeddings"}),
        ("none", 5, {"save": "embeddings", "batch": 8}),
    ],
)
def test_the_largest_answer_fits_its_message(settings, scheme, world, extras):
    plan = make_plan(settings(scheme=scheme, **extras), world)
    plan.shards.close()
    kept = {name: value for name, value in extras.items() if name not in ("batch", "first")}
    assert fixed_facts(plan)["extras"] == {"top_k": None, "save": "none", **kept}
    length = [KeptColumn("embedding", "<f4", (9000,))]
    kept = layout_of(plan.settings.extras.columns(plan.classes, length)).itemsize // 4
    columns = plan.settings.extras.columns(plan.classes, length)
    room = answer_bytes(plan, build_encoder(plan), columns)
    items = 4 if scheme in ("collage", "cascade") else extras.get("batch", 1)
    result = WireResult(1, ANSWERED, cells=(Score(1, 0.5),) * items, reason="x" * 480)
    result.vectors = np.zeros((items, kept), np.float32)
    assert room < max(UP_BYTES, 2 * items * 4 * kept) + 4096  # and is not many times too large
    ((only,),) = in_messages([result], room)
    assert pack_results(np.zeros(room, np.uint8), 1, [only]) <= room


@pytest.mark.parametrize("scheme", ["collage", "collage-only", "cascade"])
def test_embeddings_need_a_scheme_whose_answers_have_them(settings, scheme):
    with pytest.raises(UsageError, match="scheme none, replicate or hedge"):
        settings(scheme=scheme, save="embeddings")


def test_what_cannot_be_kept_is_refused_before_ranks_load(settings):
    with pytest.raises(UsageError, match="top_k is 4, but there are only 3 classes"):
        make_plan(settings(top_k=4), 6)
    with pytest.raises(UsageError, match="top_k is 0"):
        settings(top_k=0)


def test_ranks_must_give_embeddings_of_one_length():
    four, five = ((KeptColumn("embedding", "<f4", (length,)),) for length in (4, 5))
    same = {1: replace(HELLO, columns=four), 2: HELLO}
    assert kept_columns(same) == four
    assert kept_columns({2: HELLO}) == ()
    says = r"embedding <f4 \(4,\) on rank 1; embedding <f4 \(5,\) on rank 3"
    with pytest.raises(DataFault, match=says):
        kept_columns({**same, 3: replace(HELLO, columns=five)})


def test_an_answer_that_mpi_cannot_send_is_refused(settings):
    plan = make_plan(settings(scheme="none", save="embeddings", batch=64), 5)
    plan.shards.close()
    columns = [KeptColumn("embedding", "<f4", (MOST_BYTES // 4,))]
    with pytest.raises(UsageError, match=r"an answer for 64 images takes .* a smaller --batch"):
        answer_bytes(plan, build_encoder(plan), columns)


# ---- the files ------------------------------------------------------------------


def test_whatever_keeps_vectors_from_the_disk_ends_the_run_by_name(tmp_path, monkeypatch):
    full = manifest(ROWS, extras=BOTH)
    run = SoleWriter(tmp_path / "run", full, rows_per_part=10)

    def refuses(*_: Any, **__: Any) -> None:
        raise ValueError("not a table")

    monkeypatch.setattr(parquet, "ParquetWriter", refuses)

    def whole() -> None:
        try:  # the first row after the thread has failed raises it, or else the end does
            fill(run, full, range(ROWS))
        finally:
            run.close("complete")

    with pytest.raises(EnvironmentFault, match=r"ValueError: not a table.*Repeat"):
        whole()


def session(out: Path, full: dict[str, Any], indices: range | list[int], status: str) -> None:
    run = SoleWriter(out, full, rows_per_part=10)
    fill(run, full, indices)
    run.close(status)


def test_what_is_written_and_read_back_does_not_import_pandas(tmp_path):
    """pyarrow.array imports it: a second of processor time on rank 0."""
    pytest.importorskip("pandas")
    program = f"""
import sys
import numpy as np
import pyarrow.parquet as pq
from pathlib import Path
from collage_mpi.results.columns import Form, array_of, rows_of
from collage_mpi.results.parts import write_part
from collage_mpi.rows import IMAGES
layout = [("n", "<i4"), ("k", "<f4", (3,)), ("mask", "?", (2, 4)), ("half", "<f2", (2, 2))]
form = Form(["f"], layout=np.dtype(layout))
row = np.zeros(1, form.layout)
row["n"], row["k"], row["mask"][0, 1, 3], row["half"] = 7, [[1, 2, 3]], True, 0.5
image, path = np.zeros(1, IMAGES.dtype), Path({str(tmp_path / "x")!r})
image["row"], image["answered"] = 4, True
write_part(path, IMAGES, image, form, [np.frombuffer(row.tobytes(), np.float32)])
assert (rows_of(path, IMAGES) == image).all()
table = pq.ParquetFile(path).read()
for name in ("n", "k", "half", "mask"):
    assert "pandas" not in sys.modules
    assert (array_of(table[name]) == row[name]).all(), name
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_waits_for_a_slow_disk_is_bounded_by_its_bytes(tmp_path, monkeypatch):
    rows = memoryview(bytearray(500))[: IMAGES.dtype.itemsize]  # part-filled, and held as a whole
    monkeypatch.setattr(row_sink, "QUEUE_BYTES", 2000)
    begun, go_on = threading.Event(), threading.Event()

    def slow(*part: Any) -> None:
        begun.set()
        go_on.wait(10)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(row_sink.parts, "write_part", slow)
    thread = row_sink.PartThread(tmp_path, 1, lambda part: None, Form())
    thread.put(IMAGES, rows)
    assert begun.wait(10)
    waiting = thread._queue
    for vectors, full in (((), False), ((), False), ([np.zeros(250, np.float32)], True)):
        thread.put(IMAGES, rows, vectors)
        assert waiting.full() is full
    go_on.set()
    thread.end()
    assert isinstance(thread.fault, EnvironmentFault)
    assert not waiting.full()


def each_once(out: Path, rows: int = ROWS) -> None:
    """What another program reads from the folder: every image once."""
    table = dataset.dataset([*(out / "parts").glob("images-*.parquet")]).to_table()
    if rows:
        table = table.select(["fingerprint", "row"])
        assert len(set(zip(*table.to_pydict().values(), strict=True))) == rows
    assert len(table) == rows


def test_a_kill_between_any_two_steps_leaves_no_row_without_its_vector(tmp_path, monkeypatch):
    monkeypatch.setattr(row_sink, "PartThread", InlineThread)
    monkeypatch.setattr(files.os, "fsync", lambda _fd: None)  # counted, but not waited for
    full, orphans = manifest(ROWS, extras=BOTH), 0
    for step in range(1, 400):
        out = tmp_path / f"kill-{step}"
        with monkeypatch.context() as patch:
            kill_at(step, patch)
            try:
                session(out, full, range(ROWS), "complete")
                break
            except Kill:
                pass
        if (out / "run.1.json").exists():
            found = verify_run(out)
            assert found.status == "incomplete" or found.ok, found.problems
            assert len(read_results(out).kept("scores")) == found.rows == found.vectors
            orphans += len(list((out / "parts").glob("images-*"))) > -(-found.rows // 10)
    assert step > 60
    assert orphans > 0  # such kills were among them


def test_they_are_there_while_the_run_goes_on(tmp_path):
    out, full = tmp_path / "run", manifest(ROWS, extras=BOTH)
    run = SoleWriter(out, full, rows_per_part=9)
    fill(run, full, range(18))
    run.flush()
    run._thread.end()
    each_once(out, 18)
    table = dataset.dataset([*(out / "parts").glob("images-*.parquet")]).to_table().to_pylist()
    assert table[0]["fingerprint"] == full["shards"][0]["fingerprint"]
    assert all(row["scores"][row["top_classes"][0]] == row["top_scores"][0] for row in table)


def test_error_rows_have_none(tmp_path):
    run = make_run(tmp_path / "run", ROWS, errors=frozenset(range(0, 27, 2)), extras=BOTH,
                   status="complete_with_errors")  # fmt: skip
    report = verify_run(run)
    assert report.ok, report.problems
    assert (report.vectors, report.error_rows) == (13, 14)
    assert report.headline.endswith("14 error rows, 13 vectors")
    results = read_results(run)
    answered = results.images["answered"]
    best = results.kept("top_classes")[answered, 0]
    assert np.array_equal(best, results.images["predicted"][answered])
    assert results.kept("scores").shape == (27, 10)
    with pytest.raises(UsageError, match="no embedding; it has top_classes, top_scores, scores"):
        results.kept("embedding")
    nothing = make_run(tmp_path / "none", 9, errors=frozenset(range(9)), extras=BOTH,
                       status="complete_with_errors")  # fmt: skip
    assert verify_run(nothing).ok
    assert len(read_results(nothing).to_arrow("vectors")) == 0
    export_run(read_results(nothing), "csv")


def test_a_run_without_any_says_so(tmp_path):
    results = read_results(make_run(tmp_path / "run", 9))
    with pytest.raises(UsageError, match="without --top-k and --save"):
        results.to_arrow("vectors")


def rewritten(path: Path, change: Any) -> None:
    table = parquet.read_table(path)
    path.write_bytes(b"".join(parquet_bytes(change(table))))


def with_column(name: str, change: Any) -> Any:
    def changed(table: Any) -> Any:
        at, values = table.column_names.index(name), change(table[name].to_pylist())
        field = table.schema.field(at)
        return table.set_column(at, field, pyarrow.array(values, field.type))

    return changed


def of_any_length(name: str) -> Any:
    def changed(table: Any) -> Any:
        kind = pyarrow.list_(pyarrow.field("element", pyarrow.float32()))
        field = table.schema.field(name).with_type(kind)
        return table.set_column(table.column_names.index(name), field, table[name].cast(kind))

    return changed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_column("scores", lambda v: [None, *v[1:]]), "nulls among the vectors"),
        (of_any_length("top_scores"), "has the columns top_scores of list<element: float>"),
        (with_column("top_classes", lambda v: v[1:] + v[:1]), "best class is not the row's"),
        (lambda table: table.drop_columns(["scores"]), "has the columns"),
    ],
)
def test_verify_finds_vectors_that_are_not_those_of_the_rows(tmp_path, change, says):
    run = make_run(tmp_path / "run", 9, extras=BOTH)
    assert verify_run(run).ok
    (path,) = (run / "rows").glob("*.parquet")
    rewritten(path, change)
    report = verify_run(run)
    assert report.exit_code == 4
    assert any(says in problem for problem in report.problems), report.problems


def test_a_bit_that_flips_is_found(tmp_path):
    run = make_run(tmp_path / "run", ROWS, extras={"top_k": None, "save": "embeddings"})
    (path,) = (run / "rows").glob("*.parquet")
    good = path.read_bytes()
    group = parquet.ParquetFile(path).metadata.row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    assert [column.path_in_schema for column in columns][-1].startswith("embedding")
    for column in (columns[0], columns[2], columns[-1]):
        damaged = bytearray(good)
        damaged[column.data_page_offset + column.total_compressed_size - 3] ^= 4
        path.write_bytes(damaged)
        assert not verify_run(run).ok, column.path_in_schema
    for raw in (good[: len(good) // 2], good.replace(b"embedding", b"embed\xffing")):
        path.write_bytes(raw)
        assert any("damaged" in each or "truncated" in each for each in verify_run(run).problems)


def test_images_whose_vectors_are_gone_are_done_again(tmp_path, capsys):
    full, out = manifest(ROWS, extras=BOTH), tmp_path / "run"
    session(out, full, range(ROWS), "complete")
    gone = out / "rows/0.parquet"
    gone.unlink()
    assert main(["verify", str(out)]) == 4
    assert str(gone) in capsys.readouterr().out
    assert main(["verify", "--repair", str(out)]) == 6
    told = capsys.readouterr().err
    assert "its rows lie in rows/0.parquet, which is damaged or missing" in told
    assert f"{ROWS} images will be done again" in told  # the cell was packed
    session(out, full, range(ROWS), "complete")
    assert main(["verify", str(out)]) == 0
    assert verify_run(out).vectors == ROWS


def test_of_a_part_with_other_jobs_rows_only_the_vectors_of_its_own_count(tmp_path):
    """Two jobs do the same images: the ledger gives each of them to one."""
    full, out = manifest(ROWS, extras=BOTH), tmp_path / "run"
    session(out, full, range(10), "incomplete")
    early = read_results(out)
    session(out, full, range(5, ROWS), "complete")
    assert len(early.kept("scores")) == 10  # of what was read, though more has come, and it moved
    assert verify_run(out).ok
    assert verify_run(out).vectors == ROWS
    results = read_results(out)
    assert len(results.others) == 0  # they went with the parts
    for place in (7, 12):
        best = results[place]["top_classes"][0]
        assert best == results.images["predicted"][place]
    assert (results.kept("top_classes")[:, 0] == results.images["predicted"]).all()


def test_export_reads_some_rows_at_a_time_and_writes_images_in_the_order_of_the_input(
    tmp_path, monkeypatch
):
    """Two shards, images answered in any order, windows that cut both; the last of top-k too."""
    monkeypatch.setattr(row_sink, "PART_BYTES", 200)  # some images a part
    monkeypatch.setattr(lease_files, "GROUP_BYTES", 200)
    arrival = np.random.default_rng(0).permutation(40).tolist()
    out = make_run(tmp_path / "run", 40, errors=frozenset({3, 30}), extras=BOTH, arrival=arrival,
                   status="complete_with_errors")  # fmt: skip
    images, run = read_results(out).images, open_run(out)
    assert len(run.of_table(IMAGES)) > 3  # row groups
    monkeypatch.setattr(export, "WINDOW", 7)
    monkeypatch.setattr(export, "_CHUNK_ROWS", 3)
    monkeypatch.setattr(export, "_GROUP_ROWS", 5)
    (path,) = export_run(run, "csv", only_predictions=True)
    told = list(csv.DictReader(path.open()))
    assert [one["id"] for one in told] == [f"{s}.h5:{row}" for s in "ab" for row in range(20)]
    for one, image in zip(told, images, strict=True):
        third = f"class {(image['predicted'] + 2) % 10}"
        assert one["class_3"] == (third if image["answered"] else "")
    tables = [parquet.read_table(path) for path in export_run(run, "parquet")[:3]]
    assert tables[0]["row"].to_pylist() == images["row"].tolist()
    assert tables[0]["top_3_name"].to_pylist() == [one["class_3"] or None for one in told]
    assert list(map(len, tables[1:])) == [
        len(read_results(out).groups),
        len(read_results(out).tasks),
    ]
    names = tables[0]["predicted_name"].to_pylist()
    assert [name or "" for name in names] == [one["class"] for one in told]


def test_export_has_the_best_classes_by_name(tmp_path):
    run = make_run(tmp_path / "run", 18, errors=frozenset({3}), extras=BOTH,
                   status="complete_with_errors")  # fmt: skip
    results = read_results(run)
    images, answered = results.images, results.images["answered"]
    rows = list(csv.DictReader(export_run(results, "csv")[0].open()))
    assert [rows[3][f"top_{k}{n}"] for k in (1, 3) for n in ("", "_name", "_score")] == [""] * 6
    for row, image in zip(rows, images, strict=True):
        if image["answered"]:
            assert int(row["top_1"]) == image["predicted"]
            assert int(row["top_2"]) == (image["predicted"] + 1) % 10
            assert row["top_3_name"] == f"class {(image['predicted'] + 2) % 10}"
            assert float(row["top_1_score"]) > float(row["top_2_score"])
    table = parquet.read_table(export_run(results, "parquet")[0]).to_pylist()
    assert table[3]["top_1"] is None
    assert table[0]["top_2_name"] == rows[0]["top_2_name"]
    told = list(csv.DictReader(export_run(results, "csv", only_predictions=True)[0].open()))
    wanted = "id class score class_2 score_2 class_3 score_3 source runtime error"
    assert list(told[0]) == wanted.split()
    assert [bool(one["error"]) for one in told] == [one["class"] == "" for one in told]
    assert [one["class_3"] for one in told] == [row["top_3_name"] for row in rows]
    assert [one["score_2"] for one in told] == [row["top_2_score"] for row in rows]
    frame = results.to_pandas()
    assert frame["top_1"].isna().sum() == 1
    assert frame["top_2_name"].dtype == "category"
    vectors = results.to_pandas("vectors")
    joined = frame[answered].merge(vectors, on=["shard", "row"])
    assert (joined["top_1"] == [classes[0] for classes in joined["top_classes"]]).all()

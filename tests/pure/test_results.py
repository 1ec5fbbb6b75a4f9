"""Rows in, the same rows out; summaries, exports and comparisons of them."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results_harness import COLLAGE_RANK, fill, input_digest, locate, make_run, manifest
from rows_by_name import add_task, packed

from collage_mpi.cli import main
from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.ledger.jobs import register
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results import (
    compare,
    export_run,
    parts,
    read_results,
    render_comparison,
    render_summary,
    summarise,
    verify_run,
    write_summary,
)
from collage_mpi.results.manifest import check_manifest, compose
from collage_mpi.results.reader import label_of
from collage_mpi.results.sole import SoleWriter
from collage_mpi.results.summary import Tally, ranks_used
from collage_mpi.rows import (
    IMAGE_ROW,
    IMAGES,
    OUTCOMES,
    REASON_BYTES,
    TABLES,
    TASKS,
    ImageRow,
    TableLayout,
    inputs_of,
    ran_together,
    reason_bytes,
    wait_ns,
)

ROW = ImageRow(
    *(0, 7, 7, 0, 3, 1, True, 4, 0.75, True, 4, 10, 1, 5, 1000, 10, 20, 30, 300, 1, False),
    *(1, 5, 0.5, 9, 0, 0.0, 0, 0.0, 0, ""),
)

LAST = ROW._replace(position=89)


def test_layouts_of_struct_and_numpy_agree() -> None:
    for table in TABLES:
        assert table.packer.size == table.dtype.itemsize
        assert table.dtype.names == table.row._fields


def test_a_row_comes_back_as_it_was(tmp_path: Path) -> None:
    writer = SoleWriter(tmp_path / "run", manifest(9))
    writer.image_rows(packed(IMAGES, ROW))
    writer.image_rows(packed(IMAGES, ROW._replace(row=8, position=8, reason="späte Antwort")))
    writer.close("incomplete")
    images = read_results(tmp_path / "run").images
    assert images.dtype == IMAGE_ROW
    assert images[0].item() == (*ROW[:-1], b"")
    assert images[1]["reason"].decode() == "späte Antwort"
    assert wait_ns(images).tolist() == [1000 - 10 - 20 - 300] * 2


def test_encode_counts_only_for_answers_of_the_collage() -> None:
    images = np.zeros(2, IMAGE_ROW)
    images["latency_ns"], images["encode_ns"], images["source"] = 100, 30, [0, 1]
    assert wait_ns(images).tolist() == [100, 70]


def test_reasons_are_cut_between_characters() -> None:
    assert reason_bytes("a\n b") == b"a b"
    cut = reason_bytes("x" + "ü" * 90)
    assert len(cut) == REASON_BYTES - 1
    assert cut.decode().endswith("ü")


def test_rows_wait_for_a_tick_when_they_are_old(tmp_path: Path) -> None:
    full = manifest(9)
    writer = SoleWriter(tmp_path, full, flush_s=60)
    fill(writer, full, range(9))
    writer.tick()
    assert writer._images._used
    writer._flushed_ns -= 61 * 10**9
    writer.tick()
    assert not writer._images._used + writer._tasks._used
    fill(writer, full, [0])
    writer.tick()
    assert writer._images._used, "they have just been handed over"
    writer.close("incomplete")


def test_rows_are_written_as_they_came_and_of_a_flush_those_of_images_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the job is killed between two of its parts no image lacks its tasks."""
    full, written, write_part = manifest(9), [], parts.write_part

    def noted(path: Path, table: TableLayout, rows: np.ndarray, *more: Any) -> tuple[int, int]:
        written.append((table.name, rows))
        return write_part(path, table, rows, *more)

    monkeypatch.setattr(parts, "write_part", noted)
    writer = SoleWriter(tmp_path, full)
    order = [7, 2, 8, 0, 5, 1, 6, 3, 4]
    fill(writer, full, order)
    writer.flush()
    writer.close("complete")
    assert [name for name, _ in written] == ["tasks", "images"]
    assert written[-1][1]["row"].tolist() == [locate(full, index)[1] for index in order]
    assert len(written[-1][1]) == 9


def test_a_place_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="no run here"):
        read_results(tmp_path)
    assert main(["verify", str(tmp_path)]) == 3


def test_complete_run_verifies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", 95)  # a partial last group
    report = verify_run(run)
    assert report.ok, report.problems
    assert main(["verify", str(run)]) == 0
    assert "complete: 95 of 95 rows, no doubles" in capsys.readouterr().out


def test_error_rows_are_allowed_and_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", errors=frozenset({3}), status="complete_with_errors")
    report = verify_run(run)
    assert (report.ok, report.status, report.error_rows) == (True, "complete_with_errors", 1)
    summary = summarise(read_results(run))
    assert summary["errors"] == {"crc32 of row wrong": 1}
    assert "error rows: 1 x crc32 of row wrong (row 3 of a.h5)" in render_summary(summary)
    assert summary["accuracy"]["by_source"]["error"]["accuracy"] == 0.0


def test_a_runs_repr_is_one_line(tmp_path: Path) -> None:
    run = read_results(make_run(tmp_path / "run", 20))
    assert repr(run) == f"<Results '{tmp_path / 'run'}': 20 of 20 rows, complete>"


def test_limit_in_file_order_expects_the_prefix(tmp_path: Path) -> None:
    full = manifest(90, limit=18, rows=18)
    for name, indices, good in (("a", range(18), True), ("b", range(1, 19), False)):
        writer = SoleWriter(tmp_path / name, full)
        fill(writer, full, indices)
        writer.close("complete")
        assert verify_run(tmp_path / name).ok is good


def test_limit_in_another_order_is_proven_by_the_digest(tmp_path: Path) -> None:
    chosen = [3, 80, 41, 7, 5, 60, 2, 77, 13]
    shard = np.array([int(i >= 45) for i in chosen])
    digest = input_digest(shard, np.array(chosen) - 45 * shard)
    full = manifest(90, limit=9, rows=9, order="shuffle:1", input_digest=digest)
    last = {"good": chosen[-1], "other": 14, "double": chosen[0], "foreign": 4_000}
    for name, index in last.items():
        writer = SoleWriter(tmp_path / name, full)
        fill(writer, full, [*chosen[:-1], index])
        writer.close("complete")
    assert verify_run(tmp_path / "good").ok
    assert "other images" in verify_run(tmp_path / "other").problems[0]
    for name, told in (("double", "1 double"), ("foreign", "outside the input")):
        problems = "".join(verify_run(tmp_path / name).problems)
        assert told in problems
        assert "other images" not in problems  # that explains the digest


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda w: w.image_rows(packed(IMAGES, ROW._replace(row=0, position=89))), "1 double"),
        (lambda w: w.image_rows(packed(IMAGES, LAST._replace(row=4_000))), "outside the input"),
        (lambda w: w.image_rows(packed(IMAGES, LAST._replace(shard=9))), "outside the input"),
        (
            lambda w: add_task(w,
                task=999, rank=2, kind="single", group=0, attempt=0, items=1, resolved=1,
                sent_ns=0, done_ns=1, outcome="answered",
            ),
            "its tasks resolved",
        ),
    ],
)  # fmt: skip
def test_verify_finds(tmp_path: Path, spoil, words: str) -> None:
    full = manifest(90)
    writer = SoleWriter(tmp_path / "run", full)
    fill(writer, full, range(89))
    spoil(writer)
    writer.close("complete")
    report = verify_run(tmp_path / "run")
    assert not report.ok
    assert words in "\n".join(report.problems)
    assert main(["verify", str(tmp_path / "run")]) == 4


def test_of_what_cannot_be_read_no_row_is_counted(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    next((run / "rows").glob("*.parquet")).write_bytes(b"")
    assert verify_run(run).headline == "damaged: 0 of 0 rows, no doubles"


def test_what_is_far_too_large_for_a_part_is_not_read(tmp_path: Path, monkeypatch) -> None:
    run, read = make_run(tmp_path / "run"), Path.read_bytes
    part = next((run / "rows").glob("*.parquet"))
    os.truncate(part, 1 << 37)
    monkeypatch.setattr(
        Path, "read_bytes", lambda path: pytest.fail("it is") if path == part else read(path)
    )
    assert "far too large for rows" in verify_run(run).problems[0]


def test_a_missing_part_is_found(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    next((run / "parts").glob("tasks-*")).unlink()
    assert "a part is gone" in verify_run(run).problems[0]


def test_summary_counts_and_prices(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 900, warmup_groups=2)
    results = read_results(run)
    summary = write_summary(results)
    assert json.loads((run / "summary.json").read_text()) == summary
    assert '\n "run_id": ' in (run / "summary.json").read_text()  # to be read by eye too
    assert summary["rows"]["warmup_images"] == 18
    assert summary["latency"]["group"]["groups"] == 98
    assert summary["latency"]["image"]["n"] == 882
    assert summary["latency"]["image"]["p95_ms"] is not None
    assert summary["latency"]["image"]["p99_ms"] is None  # 98 groups, however many images
    assert summary["accuracy"]["overall"]["n"] == 900  # of warm-up groups too
    price = summary["price"]
    measured = results.images[~results.images["warmup"]]
    assert price["collage_share"] == pytest.approx((measured["rank"] == COLLAGE_RANK).mean())
    assert (price["ranks"], price["single_ranks"], price["collage_ranks"]) == (11, 9, 1)
    assert price["late_answers"] > 0
    assert 0 < price["wasted_work"] < 1
    assert summary["rank0"]["longest_poll_gap_ms"] == 1.5


def test_a_rank_without_a_network_is_one_of_all(tmp_path: Path) -> None:
    results = read_results(make_run(tmp_path / "run"))
    lead = {"rank": 99, "role": "coordinator"}
    manifest = {**results.manifest, "world": [*results.manifest["world"], lead]}
    tasks = Tally(results).tasks
    before = ranks_used(results, tasks)
    after = ranks_used(replace(results, manifest=manifest), tasks)
    assert after["all"] == before["all"] + 1


def test_the_ten_commonest_errors_are_named(tmp_path: Path) -> None:
    images = np.zeros(78, IMAGE_ROW)
    images["reason"] = [f"reason {n}" for n in range(12) for _ in range(n + 1)]
    found = summarise(replace(read_results(make_run(tmp_path / "run")), images=images))["errors"]
    assert list(found.items()) == [(f"reason {n}", n + 1) for n in range(11, 1, -1)]


def test_how_long_unfinished_tasks_were_out_is_told_beside_the_wasted_work(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 900)
    assert "without unfinished" not in render_summary(summarise(read_results(run)))
    results = read_results(run)
    last = np.flatnonzero(~results.tasks["warmup"])[-2:]
    results.tasks["outcome"][last] = OUTCOMES.index("unfinished")
    results.tasks["done_ns"][last] = results.tasks["sent_ns"][last] + [10**9, 3 * 10**9]
    summary = summarise(results)
    assert summary["price"]["unfinished_s"] == 4.0
    assert "without unfinished tasks (4.0 s together)" in render_summary(summary, width=200)


def test_printed_summary_says_why_a_percentile_is_missing(tmp_path: Path) -> None:
    results = read_results(make_run(tmp_path / "run", 450))
    text = render_summary(summarise(results))
    assert "n/a (n=50)" in text
    assert "carry, depth 1" in text
    assert "\x1b" not in text


def test_the_summary_says_in_which_number_format_the_networks_ran(tmp_path: Path) -> None:
    """In all sessions: a later one may have run on another device. Null networks have none."""
    world = [
        {"rank": 0, "kinds": []},
        *({"rank": k, "kinds": ["single"], "tuning": {"single": "bfloat16"}} for k in (1, 2)),
        {"rank": 3, "kinds": ["collage"], "tuning": {"collage": "float32"}},
    ]
    found = summarise(read_results(make_run(tmp_path / "run", 90, final={"world": world})))
    assert found["networks"] == "single network bfloat16; collage network float32"
    line = "number format: single network bfloat16; collage network float32"
    assert line in render_summary(found).splitlines()[:4]
    null = [{"rank": 1, "kinds": ["single"], "tuning": {"single": "null"}}]
    found = summarise(read_results(make_run(tmp_path / "null", 90, final={"world": null})))
    assert found["networks"] == ""
    assert "number format" not in render_summary(found)
    other = [{"rank": 1, "tuning": {"single": 16}}]
    with pytest.raises(DataFault, match="world"):
        read_results(make_run(tmp_path / "bad", 90, final={"world": other}))


def test_what_the_ledger_cost_is_told(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run", 18)
    run = read_results(out)
    assert summarise(run)["ledger"] is None
    entry = run.manifest["sessions"][0]
    cost = {"records": 6, "seconds": 0.4, "taken_over": 1, "split": 0, "written": 24}
    entry["final"] = {**entry["final"], "ledger": cost}
    told = summarise(run)
    assert told["ledger"] == {**cost, "twice": 6}
    assert "6 records" in render_summary(told)
    assert "0.4 s, 1 takeover, 0 splits, 25.0 % done twice" in render_summary(told)


def test_a_run_without_labels_ends_with_its_predictions(tmp_path: Path) -> None:
    run = read_results(make_run(tmp_path / "run", errors=frozenset({3}), labels=False))
    summary = summarise(run)
    found = summary["predictions"]
    assert found["n"] == 89
    assert sum(one["n"] for one in found["classes"]) == 89
    assert found["classes"] == sorted(found["classes"], key=lambda one: -one["n"])
    assert found["mean_score"] == pytest.approx(0.9)
    assert [one["row"] for one in found["examples"]][:2] == [0, 22]
    assert [one["shard"] for one in found["examples"]] == ["a.h5"] * 3 + ["b.h5"] * 2
    assert found["examples"][0]["name"] == f"class {run.images['predicted'][0]}"
    printed = render_summary(summary)
    assert "predictions (no labels)" in printed
    first = found["classes"][0]
    assert re.search(
        rf"{first['name']} +{first['n']} +{100 * first['share']:.2f} % +0.900", printed
    )
    assert printed.endswith("--to csv writes a line an image, with its id")
    json.dumps(summary)


@pytest.mark.parametrize(
    ("known", "label"),
    [
        ({}, "unknown scheme (mode unknown)"),
        ({"scheme": "cascade", "mode": "carry"}, "cascade (carry)"),
        ({"scheme": "collage", "accept": "first", "mode": "carry"}, "collage, first (carry)"),
        ({"scheme": "none", "accept": "first", "mode": "drain"}, "none (drain)"),
    ],
)
def test_a_run_is_called_by_what_its_manifest_knows(known: dict, label: str) -> None:
    assert label_of(known) == label


def test_a_run_with_labels_says_nothing_of_predictions(tmp_path: Path) -> None:
    summary = summarise(read_results(make_run(tmp_path / "run")))
    assert summary["predictions"] is None
    assert "predictions" not in render_summary(summary)


def test_classes_without_names_and_many_of_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", labels=False, class_names=None)
    summary = summarise(read_results(run))
    assert {one["name"] for one in summary["predictions"]["classes"]} == {None}
    found = summary["predictions"]
    found["classes"] = [{**found["classes"][0], "class": number} for number in range(14)]
    assert "4 other classes" in render_summary(summary)


def test_an_empty_run_can_be_summarised(tmp_path: Path) -> None:
    SoleWriter(tmp_path / "run", manifest(9)).close("incomplete")
    results = read_results(tmp_path / "run")
    assert "INCOMPLETE" in render_summary(summarise(results))
    assert "n/a" in render_comparison(compare([results, results]))


def test_comparison_is_paired_on_the_same_images(tmp_path: Path) -> None:
    runs = [
        read_results(make_run(tmp_path / "none", 900, collage=False)),
        read_results(make_run(tmp_path / "collage", 450, warmup_groups=2)),
    ]
    first, second = compare(runs)
    assert first["p50_ratio"] == 1.0
    assert second["p50_ratio"] < 0.5
    assert second["p99_ratio"] is None
    assert second["paired"]["n"] == 450  # by fingerprint and row, any order; of warm-up groups too
    difference = second["paired"]["only_this"] - second["paired"]["only_baseline"]
    assert second["paired"]["difference"] == pytest.approx(difference / second["paired"]["n"])
    text = render_comparison([first, second])
    assert "none (carry, depth 1)" in text
    assert "collage, first (carry, depth 1)" in text


def test_the_summary_fits_a_terminal_of_80_columns(tmp_path: Path) -> None:
    run = read_results(make_run(tmp_path / "run", 9 * 80))
    run.groups["latency_ns"] *= 1000  # 100 s a group
    run.images["latency_ns"] *= 1000
    narrow, wide = (render_summary(summarise(run), width=width) for width in (80, 160))
    assert max(map(len, narrow.splitlines())) <= 80
    assert "\u2026" not in narrow  # nothing is cut
    numbers = re.compile(r"\d[\d.,]*")
    assert numbers.findall(narrow) == numbers.findall(wide)


def test_a_comparison_numbers_its_runs_where_their_names_do_not_fit(tmp_path: Path) -> None:
    runs = [read_results(make_run(tmp_path / f"{i}", 900, collage=i > 0)) for i in range(3)]
    entries = compare(runs)
    wide, narrow = (render_comparison(entries, width=width) for width in (200, 80))
    assert max(map(len, narrow.splitlines())) <= 80
    assert "\u2026" not in narrow
    assert narrow.startswith("1  none (carry, depth 1)\n2  collage, first (carry, depth 1) [1]\n")
    assert "1  none" not in wide
    for name in ("p50", "p95", "std"):
        assert all(f"{entry[f'{name}_ms']:.1f}" in narrow for entry in entries)


def test_runs_of_different_images_are_told_so(tmp_path: Path) -> None:
    other = [{"path": "/data/c.h5", "fingerprint": "cc" * 32, "count": 90}]
    runs = [
        read_results(make_run(tmp_path / "a")),
        read_results(make_run(tmp_path / "b", shards=other)),
    ]
    bare = read_results(make_run(tmp_path / "c"))
    bare.images["has_label"] = False
    first, second, third = compare([*runs, bare])
    text = " ".join(render_comparison([first, second, third]).split())
    assert "has other images than the first run's: c.h5, 90 images; a.h5, b.h5, 90 images" in text
    assert "has no labels" in text
    assert "n=0" not in text
    assert "not paired" not in render_comparison([first, first])


def test_export_csv_leaves_absent_values_empty(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", errors=frozenset({3}), status="complete_with_errors")
    files = export_run(read_results(run), "csv")
    with open(files[0], newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 90
    assert rows[3]["predicted"] == rows[3]["rank"] == rows[3]["wait_ns"] == ""
    assert rows[3]["source"] == "error"
    assert rows[3]["reason"] == "crc32 of row wrong"
    assert (rows[0]["answered"], rows[0]["source"] in ("single", "collage")) == ("1", True)
    assert not list((run / "export").glob(".*"))


def test_export_parquet_has_nulls(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    run = make_run(tmp_path / "run", errors=frozenset({3}), status="complete_with_errors")
    files = export_run(read_results(run), "parquet", tmp_path / "elsewhere")
    table = parquet.read_table(files[0]).to_pylist()
    assert table[3]["predicted"] is None
    assert table[3]["source"] == "error"
    assert table[0]["latency_ns"] == int(read_results(run).images["latency_ns"][0])
    assert table[0]["answered"] is True


def test_a_table_as_a_frame(tmp_path: Path) -> None:
    """What export writes, in memory: types do not depend on whether anything is absent."""
    pa, pd = pytest.importorskip("pyarrow"), pytest.importorskip("pandas")
    run = read_results(
        make_run(tmp_path / "run", errors=frozenset({3}), status="complete_with_errors")
    )
    whole = read_results(make_run(tmp_path / "whole"))
    table, frame = run.to_arrow(), run.to_pandas()
    assert isinstance(table, pa.Table)
    assert table["predicted"].to_pylist()[:5] == [
        None if row["source"] == 6 else row["predicted"] for row in run.images[:5]
    ]
    assert list(frame.columns) == table.column_names
    assert frame["predicted"].isna().sum() == 1
    assert frame["predicted"].isna()[3]
    assert (
        frame["predicted"].dropna().tolist()
        == run.images["predicted"][run.images["answered"]].tolist()
    )
    assert frame["source"].value_counts()["error"] == 1
    assert frame["predicted_name"][0] == f"class {run.images['predicted'][0]}"
    assert frame["id"].isna().all()
    for name in ("predicted", "score", "label", "wait_ns"):
        assert frame[name].dtype == whole.to_pandas()[name].dtype
        assert isinstance(frame[name].dtype, pd.api.extensions.ExtensionDtype)
    assert len(run.to_pandas("tasks")) == len(run.tasks)
    assert run.to_arrow("groups").num_rows == len(run.groups)
    with pytest.raises(UsageError, match="no table 'rows'; it has images, groups, tasks"):
        run.to_pandas("rows")


def test_a_frame_without_its_library_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_results(make_run(tmp_path / "run", 9))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(EnvironmentFault, match="pip install 'pandas>="):
        run.to_pandas()


def test_export_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", 9)
    assert main(["export", str(run), "--to", "csv", "--out", str(tmp_path / "x")]) == 0
    printed = capsys.readouterr().out.split()
    assert [Path(line).name for line in printed] == [
        "images.csv",
        "groups.csv",
        "tasks.csv",
        "manifest.json",
    ]
    with pytest.raises(UsageError, match="xlsx"):
        export_run(read_results(run), "xlsx")


def test_a_session_with_fewer_ranks_leaves_the_rows_of_the_others_good(tmp_path: Path) -> None:
    """Each row's rank is looked for in the world of its own session."""
    full = manifest(18)
    world = full.pop("world")
    run = SoleWriter(tmp_path / "run", full)
    fill(run, full, range(9))
    run.close("incomplete", world=world)
    run = SoleWriter(tmp_path / "run", full)
    fill(run, full, range(9, 18), collage=False)
    run.close("complete", world=world[:-1])
    assert verify_run(tmp_path / "run").ok
    entry = tmp_path / "run/jobs/0001.json"
    found = json.loads(entry.read_text())
    found["facts"]["final"]["world"] = world[:2]
    entry.write_text(json.dumps(found))
    assert "unknown rank" in " ".join(verify_run(tmp_path / "run").problems)


def test_a_session_that_tells_no_world_is_not_measured_by_a_later_ones(tmp_path: Path) -> None:
    """As one that ended by a fault, or was killed, when it had more ranks."""
    full = manifest(18)
    world = full.pop("world")
    run = SoleWriter(tmp_path / "run", full)
    fill(run, full, range(9))
    run.close("incomplete")
    run = SoleWriter(tmp_path / "run", full)
    run.close("complete", world=world[:2])
    assert "unknown rank" not in " ".join(verify_run(tmp_path / "run").problems)


def test_tasks_of_one_batch_share_its_time() -> None:
    """Two batches of rank 1, one of rank 2; a skipped task ran in none."""
    tasks = np.zeros(6, TASKS.dtype)
    tasks["rank"] = [1, 1, 1, 2, 2, 1]
    tasks["sent_ns"] = [10, 20, 10, 10, 10, 10]
    tasks["done_ns"] = [50, 90, 50, 50, 50, 50]
    tasks["compute_ns"] = [7, 7, 7, 7, 7, 0]
    assert ran_together(tasks).tolist() == [2, 1, 2, 2, 2, 1]
    assert ran_together(tasks[:0]).tolist() == []
    tasks["items"] = [3, 4, 5, 2, 0, 9]
    assert inputs_of(tasks).tolist() == [3, 4, 5, 2, 1, 9]
    assert ran_together(tasks, inputs_of(tasks)).tolist() == [8, 4, 8, 3, 3, 9]


def test_groups_of_a_batch_are_one_sample(tmp_path: Path) -> None:
    alone = read_results(make_run(tmp_path / "alone", 900))
    batches = read_results(make_run(tmp_path / "batches", 900, batch=5))
    one, five = (summarise(run)["latency"]["group"] for run in (alone, batches))
    assert (one["groups"], one["independent"]) == (five["groups"], 5 * five["independent"])
    assert one["p95_ms"] is not None
    assert five["p95_ms"] is None
    assert five["p50_ms"] == one["p50_ms"]
    assert "n/a (n=20)" in render_summary(summarise(batches))


def test_each_session_has_its_own_batch(tmp_path: Path) -> None:
    run = read_results(make_run(tmp_path / "run", 900, batch=5, final={"batch": 5}))
    told = {"session": 2, "final": {"batch": 4}}, {"session": 3, "final": None}
    own = {**run.manifest, "batch": 2, "sessions": [*run.manifest["sessions"], *told]}
    resumed = replace(run, manifest=own)
    groups = run.groups[:20].copy()
    counts = []
    for groups["session"] in (1, 2, 3):
        counts.append(resumed.independent(groups))
    assert counts == [4, 5, 10]  # the third was killed: the batch of the last is taken
    alone = {**own, "open_loop": True}
    assert replace(run, manifest=alone).independent(groups) == 20
    for damage in (
        {"batch": "5"},
        {"rows": None},
        {"sessions": [{"session": 1, "final": {"batch": []}}]},
    ):
        with pytest.raises(DataFault, match=next(iter(damage))):
            check_manifest({**run.manifest, **damage}, "manifest.json")


def test_the_ranks_of_teams_are_listed_by_the_numbers_of_the_teams(tmp_path: Path) -> None:
    """Whichever of them was the first to get a number."""
    store = FolderStore(out := make_run(tmp_path / "run", 18))
    for name, first in (("b" * 32, 5), ("c" * 32, 0)):
        world = [{"rank": first + each, "kinds": [], "host": "h"} for each in range(2)]
        final = {"world": world, "began_ns": 10**18, "seconds": 9.0}
        register(store, name, {"final": final})
    assert [each["rank"] for each in compose(out)["world"]] == [0, 1, 5, 6]

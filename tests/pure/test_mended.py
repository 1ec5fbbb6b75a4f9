"""A picture that has an error row and was mended is classified again; an answered one is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import COUNT, make_source, picture, write_folder
from rows_by_name import add_image

from collage_mpi.errors import UsageError
from collage_mpi.job.plan import Plan, make_plan
from collage_mpi.job.provenance import make_manifest
from collage_mpi.results import INDEX_FOLDER, RunWriter, read_results
from collage_mpi.results.manifest import read_manifest
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards.reader import member_changes

BROKEN = 5


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    files = write_folder(tmp_path / "photos")
    files[BROKEN].write_bytes(picture(BROKEN)[:90])
    return files


def plan_of(source: Path, out: Path, known: dict | None = None) -> Plan:
    words = {"single": "null", "scheme": "none", "singles": 2, "input_labels": "none"}
    return make_plan(RunSettings(shards=(str(source),), out=str(out), **words), 3, known)


def add(writer: RunWriter, rows: list[int], errors: tuple[int, ...] = ()) -> None:
    for row in rows:
        failed = row in errors
        source, reason = ("error", "cannot be decoded") if failed else ("single", "")
        add_image(writer, row=row, source=source, answered=not failed, reason=reason)


def begin(source: Path, out: Path, rows: list[int]) -> None:
    """A run with a row for each of `rows`, of which BROKEN is an error row."""
    plan = plan_of(source, out)
    writer = RunWriter.create(out, make_manifest(plan))
    plan.shards.save_indexes(out / INDEX_FOLDER)
    add(writer, rows, errors=(BROKEN,))
    writer.close("complete_with_errors" if len(rows) == COUNT else "incomplete")
    plan.shards.close()


def go_on(source: Path, out: Path) -> tuple[RunWriter, list[int], list[str]]:
    """The writer of the next session, the rows that it lacks, and what the user is told."""
    known = read_manifest(out)
    plan = plan_of(source, out, known)
    told = member_changes(plan.shards, known["shards"], out / INDEX_FOLDER)
    manifest = make_manifest(plan)
    assert RunWriter.finished(out, manifest) is None
    writer, done = RunWriter.reopen(out, manifest)
    plan.shards.save_indexes(out / INDEX_FOLDER)
    plan.shards.close()
    positions = [place for each in plan.lacking(done) for place in range(*each)]  # file order
    return writer, positions, told


@pytest.mark.parametrize("kind", ["folder", "tar", "list"])
def test_a_mended_picture_is_classified_again_also_after_a_kill(kind, tmp_path, files) -> None:
    source, out = make_source(kind, tmp_path / kind, files), tmp_path / "run"
    begin(source, out, list(range(COUNT)))
    files[BROKEN].write_bytes(picture(BROKEN))
    if kind == "tar":
        source.unlink()
        source.parent.rmdir()
        make_source(kind, tmp_path / kind, files)
    writer, lacking, told = go_on(source, out)
    assert lacking == [BROKEN]
    assert "1 picture changed since the last session" in told[0]
    assert files[BROKEN].name in told[0]
    writer.close("incomplete")  # before the row was written
    writer, lacking, told = go_on(source, out)
    assert (lacking, told) == ([BROKEN], [])
    add(writer, lacking)
    assert writer.close("complete") is None
    plan = plan_of(source, out, read_manifest(out))
    assert RunWriter.finished(out, make_manifest(plan)) == "complete"
    results = read_results(out)
    assert results.images["answered"].sum() == len(results.images) == COUNT
    assert len(results.superseded) == 1


def test_a_picture_that_stays_broken_is_tried_once_each_time_that_it_changes(tmp_path, files):
    source, out = tmp_path / "photos", tmp_path / "run"
    begin(source, out, list(range(COUNT)))
    for cut in (95, 99):
        files[BROKEN].write_bytes(picture(BROKEN)[:cut])
        writer, lacking, _ = go_on(source, out)
        assert lacking == [BROKEN]
        add(writer, lacking, errors=(BROKEN,))
        writer.close("complete_with_errors")
        plan = plan_of(source, out, read_manifest(out))
        assert RunWriter.finished(out, make_manifest(plan)) == "complete_with_errors"


def test_a_picture_without_a_row_may_change_and_one_with_an_answer_may_not(tmp_path, files):
    source, out = tmp_path / "photos", tmp_path / "run"
    begin(source, out, [0, 1, 2, BROKEN])
    files[7].write_bytes(picture(30))
    writer, lacking, _ = go_on(source, out)
    assert lacking == sorted({*range(COUNT)} - {0, 1, 2, BROKEN})
    writer.close("incomplete")
    was, size = files[1].read_bytes(), files[1].stat().st_size
    files[1].write_bytes(was[:-9] + bytes(9))
    assert files[1].stat().st_size == size
    with pytest.raises(UsageError, match=r"1 picture changed after the answer .*row 1 of .*photos"):
        go_on(source, out)
    files[1].write_bytes(was)
    go_on(source, out)[0].close("incomplete")
    files[0].unlink()
    with pytest.raises(UsageError, match="SHA-256"):
        go_on(source, out)

"""Parts of teams: published by one process alone, adopted once, dropped where a row stands."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from results_harness import fill, manifest
from rows_by_name import add_image

from collage_mpi.errors import CollageError, EnvironmentFault
from collage_mpi.results import RunWriter, pending, read_results, summarise, verify_run
from collage_mpi.results import writer as writer_module
from collage_mpi.results.manifest import read_manifest, resume_command
from collage_mpi.results.pending import Publisher
from collage_mpi.results.row_sink import RowSink

ROWS = 54
FULL = {key: value for key, value in manifest(ROWS, teams=2).items() if key != "session"}


def team_rows(out: Path, session: int, indices: list[int]) -> RowSink:
    """Another team's rows of these images, on the disk."""
    rows = RowSink(out, read_manifest(out), session)
    fill(rows, FULL, indices)
    assert rows.drain() is None
    return rows


def publish_all(lead: RunWriter, rows: RowSink) -> None:
    assert lead.publisher is not None
    while rows.pending:
        part = rows.pending.popleft()
        lead.publisher.put(part.table, rows.session, part.number)


def entry(rows: RowSink, **final) -> dict:
    said = {"session": rows.session, "status": "complete", "rows": rows.counts}
    return {**said, "final": {"world": FULL["world"], **final}}


def published_by_two(out: Path) -> tuple[RunWriter, RowSink]:
    """The lead and another team with all their rows published, half of the input each."""
    lead = RunWriter.create(out, FULL)
    other = team_rows(out, 2, list(range(27, 54)))
    fill(lead, FULL, list(range(27)))
    lead.drain()
    publish_all(lead, lead)
    publish_all(lead, other)
    return lead, other


def test_what_is_pending_no_reader_sees_until_it_is_published(tmp_path):
    out = tmp_path / "run"
    lead = RunWriter.create(out, FULL)
    other = team_rows(out, 2, list(range(27, 54)))
    fill(lead, FULL, list(range(27)))
    assert lead.drain() is None
    assert len(read_results(out).images) == 0
    publish_all(lead, lead)
    publish_all(lead, other)
    lead.teams = [entry(other, began_ns=3_000_000_000)]
    lead.note(thresholds=[{"confidence": None, "session": 1, "since_ns": 0}])
    assert lead.close("complete", world=FULL["world"], began_ns=5_000_000_000) is None
    assert verify_run(out).ok
    images = read_results(out).images
    after = images["t0_ns"] + images["latency_ns"] > np.where(images["session"] == 2, 2e9, 0)
    assert read_manifest(out)["thresholds"][0]["images"] == after.sum() < len(images)
    assert set(read_results(out).images["session"]) == {1, 2}
    assert read_manifest(out)["world"] == 2 * FULL["world"]
    assert not (out / "pending").exists()


def test_a_team_is_idle_when_all_that_it_handed_over_is_on_the_disk(tmp_path):
    out = tmp_path / "run"
    lead = RunWriter.create(out, FULL)
    disk = threading.Event()
    rows = RowSink(out, read_manifest(out), 2, disk.wait)
    assert rows.idle
    fill(rows, FULL, list(range(27, 54)))
    rows.flush()
    assert not rows.idle
    assert not rows.pending
    disk.set()
    while not rows.idle:  # at most for the time limit of a test
        os.sched_yield()
    assert {part.table for part in rows.pending} == {"images", "tasks"}
    assert (rows.drain(), lead.drain()) == (None, None)


def test_what_teams_left_stays_until_the_run_is_marked(tmp_path, monkeypatch):
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    out = tmp_path / "run"
    lead, other = published_by_two(out)
    lead.teams = [entry(other)]
    monkeypatch.setattr("collage_mpi.results.writer.write_manifest", full_disk)
    with pytest.raises(EnvironmentFault, match="No space"):
        lead.close("complete", world=FULL["world"])
    assert (out / "pending").exists()


def test_teams_count_side_by_side_and_are_told_apart(tmp_path):
    out = tmp_path / "run"
    lead, other = published_by_two(out)
    lead.teams = [entry(other, began_ns=6_000_000_000)]
    lead.close("complete", world=FULL["world"], began_ns=5_000_000_000)
    found = read_results(out)
    ends_ns = found.groups["t0_ns"] + found.groups["latency_ns"]
    of_other = found.groups["session"] == 2
    last_ns = max(int(ends_ns[~of_other].max()), 1_000_000_000 + int(ends_ns[of_other].max()))
    span_s = (last_ns - int(found.groups["t0_ns"].min())) / 1e9
    summary = summarise(found)
    assert summary["price"]["images_per_s"] == pytest.approx(ROWS / span_s)
    assert [(team["team"], team["n"]) for team in summary["teams"]] == [(0, 3), (1, 3)]


def test_a_lost_leads_parts_are_adopted_once_and_never_beside_a_row(tmp_path):
    out = tmp_path / "run"
    lead = RunWriter.create(out, FULL)
    whole, doubled = team_rows(out, 2, list(range(9, 18))), [*range(4)]
    fill(lead, FULL, list(range(9)))
    lead.drain()
    publish_all(lead, lead)
    lead.publisher.end()  # type: ignore[union-attr]
    # Parts of a given-up team that woke: one of images that have a row, one of images that another
    # pending part has; and one of a launch before this one.
    for number, rows in ((2, doubled), (3, [9, 10])):
        late = RowSink(out, read_manifest(out), 2)
        late._thread._numbers["images"] = number
        for row in rows:
            add_image(late, shard=0, row=row, group=0, cell=0, source="single", answered=True,
                       predicted=0, score=0.5, rank=1, t0_ns=0, latency_ns=1)  # fmt: skip
        late.drain()
    other = RowSink(out, read_manifest(out), 9)
    add_image(other, shard=0, row=20, group=0, cell=0, source="single", answered=True,
                predicted=0, score=0.5, rank=1, t0_ns=0, latency_ns=1)  # fmt: skip
    other.drain()
    lead._claim.release()  # as if the lead had been killed
    writer, done = RunWriter.reopen(out, FULL)
    assert sorted(done["row"].tolist()) == list(range(18))
    assert whole.pending
    assert writer.session == 3  # that of its first team: 1 and 2 were the launch before
    writer.close("incomplete")
    report = verify_run(out)
    assert (report.rows, report.doubles) == (18, 0)
    assert read_manifest(out)["launches"] == [[1, 2], [3, 2]]


def test_a_part_that_is_listed_and_gone_is_no_fault(tmp_path, monkeypatch):
    out = tmp_path / "run"
    RunWriter.create(out, FULL)._claim.release()
    team_rows(out, 2, list(range(9)))
    read_part = pending.parts.read_part

    def renamed_before(path, table):
        monkeypatch.undo()
        path.rename(out / "parts" / path.name)
        return read_part(path, table)

    monkeypatch.setattr(pending.parts, "read_part", renamed_before)
    writer, done = RunWriter.reopen(out, FULL)
    assert sorted(done["row"].tolist()) == list(range(9))
    writer.close("incomplete")


FORMER = "images-0002-000001.npy"  # a part that the former lead renames at last


@pytest.mark.parametrize(
    "before",
    ["adopt", "parts.list_parts", "parts.read_part", "flat_keys", "publish", "shutil.rmtree"],
)
def test_what_the_former_lead_publishes_at_last_is_not_adopted_twice(tmp_path, monkeypatch, before):
    out = tmp_path / "run"
    RunWriter.create(out, FULL)._claim.release()
    for session in (1, 2):  # one of both teams had been given up
        team_rows(out, session, list(range(9)))
    place = writer_module if before == "adopt" else pending
    *folders, name = before.split(".")
    for folder in folders:
        place = getattr(place, folder)
    original = getattr(place, name)

    def afterwards(*args, **how):
        monkeypatch.undo()
        with suppress(FileNotFoundError):
            pending.publish({out / "pending" / FORMER: None}, lambda: None)
        return original(*args, **how)

    monkeypatch.setattr(place, name, afterwards)
    writer, done = RunWriter.reopen(out, FULL)
    assert getattr(place, name) is original
    assert sorted(done["row"].tolist()) == list(range(9))
    writer.close("incomplete")
    assert verify_run(out).doubles == 0
    assert [path.name for path in out.glob("pending*")] == ["pending"]


def test_what_a_session_took_and_left_is_adopted_by_the_next(tmp_path, monkeypatch):
    out = tmp_path / "run"
    RunWriter.create(out, FULL)._claim.release()
    team_rows(out, 2, list(range(9)))

    def failing(*args):
        monkeypatch.undo()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(pending, "publish", failing)
    with pytest.raises(EnvironmentFault, match="Input/output"):
        RunWriter.reopen(out, FULL)
    assert not (out / "pending").exists()
    writer, done = RunWriter.reopen(out, FULL)
    assert sorted(done["row"].tolist()) == list(range(9))
    writer.close("incomplete")


def test_what_a_run_that_is_gone_has_left_pending_is_no_part_of_the_next(tmp_path):
    out = tmp_path / "run"
    (out / "pending").mkdir(parents=True)
    (out / "pending" / "images-0002-000001.npy").write_bytes(b"old")
    lead = RunWriter.create(out, FULL)
    assert list((out / "pending").iterdir()) == []
    lead.close("incomplete")


def test_a_run_of_which_another_team_has_rows_is_not_taken_back(tmp_path):
    out = tmp_path / "run"
    lead = RunWriter.create(out, FULL)
    publish_all(lead, team_rows(out, 2, list(range(9))))
    lead.discard()
    _, done = RunWriter.reopen(out, FULL)
    assert len(done) == 9


def test_a_damaged_pending_part_is_done_again(tmp_path):
    out = tmp_path / "run"
    lead = RunWriter.create(out, FULL)
    team_rows(out, 2, list(range(9)))
    part = out / "pending" / "images-0002-000001.npy"
    part.write_bytes(part.read_bytes()[:-7])
    lead._claim.release()
    writer, done = RunWriter.reopen(out, FULL)
    assert len(done) == 0
    writer.close("incomplete")


def test_a_part_that_the_lead_does_not_see_is_told_and_ends_the_job(tmp_path):
    out = tmp_path / "run"
    lead = RunWriter.create(out, FULL)
    assert lead.publisher is not None
    lead.publisher.put("images", 2, 7)
    lead.teams = [entry(team_rows(out, 2, list(range(9))))]
    lead.publisher._queue.put(("images", 2, 1))  # behind it: nothing follows a failure
    lead.publisher.end()
    assert not list((out / "parts").iterdir())
    with pytest.raises(EnvironmentFault, match="hosts of all coordinators share"):
        lead.publisher.put("images", 2, 8)
    with pytest.raises(EnvironmentFault, match="images-0002-000007"):
        lead.close("incomplete", world=FULL["world"])
    # No team says that its rows are there.
    assert [each["rows"] for each in read_manifest(out)["sessions"]] == [None, None]


def test_nothing_is_published_without_the_claim(tmp_path):
    out = tmp_path / "run"
    lead = RunWriter.create(out, FULL)
    rows = team_rows(out, 2, list(range(9)))

    def lost() -> None:
        raise CollageError("taken over")

    publisher = Publisher(out, FULL, lost)
    publisher.put("images", 2, rows.pending[0].number)
    publisher.end()
    assert "taken over" in str(publisher.fault)
    assert not list((out / "parts").iterdir())
    lead.close("incomplete")


def test_parts_that_wait_are_published_together_and_none_is_left_behind(tmp_path, monkeypatch):
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: 7.0, sleep=slept.append)
    monkeypatch.setattr(pending, "time", clock)
    out = tmp_path / "run"
    lead = RunWriter.create(out, FULL)
    first, *others = team_rows(out, 2, list(range(27))).pending
    checks, go_on = [], threading.Event()
    publisher = Publisher(out, FULL, lambda: checks.append(go_on.wait()))
    publisher.put(first.table, 2, first.number)
    while not publisher._queue.empty():  # at most for the time limit of a test
        os.sched_yield()
    for part in others:
        publisher.put(part.table, 2, part.number)
    publisher._queue.put(None)  # it is to end, and finds that with those that wait
    go_on.set()
    publisher.end()
    assert publisher.fault is None
    assert slept == [0.0, pytest.approx(pending.PUBLISH_EVERY_S)]
    assert (len(others), len(checks)) == (1, 2)
    assert len(list((out / "parts").iterdir())) == 2
    assert lead.close("incomplete") is None


def test_of_parts_that_are_published_together_the_one_that_failed_is_named(tmp_path, monkeypatch):
    out = tmp_path / "run"
    RunWriter.create(out, FULL)

    part = out / "pending" / "images-0002-000007.npy"

    def full(*of) -> None:
        raise OSError(28, "No space left on device", str(part))

    monkeypatch.setattr(pending, "publish", full)
    publisher = Publisher(out, FULL, lambda: None)
    publisher.put("images", 2, 1)
    publisher.end()
    assert "images-0002-000007.npy: cannot be written: No space" in str(publisher.fault)


def test_vectors_are_there_before_each_part_that_is_published_with_them(tmp_path, monkeypatch):
    moved = []
    monkeypatch.setattr(pending.os, "rename", lambda old, new: moved.append(new))
    monkeypatch.setattr(pending, "sync_directory", moved.append)
    waiting = {tmp_path / "pending" / "a": None, tmp_path / "pending" / "b": "of b"}
    pending.publish(waiting, lambda: None)
    vectors, parts = tmp_path / "vectors", tmp_path / "parts"
    assert moved == [vectors / "of b", vectors, parts / "a", parts / "b", parts]


def test_vectors_go_with_their_part(tmp_path):
    pytest.importorskip("pyarrow")
    full = {**FULL, "extras": {"top_k": 2, "save": "none"}}
    out = tmp_path / "run"
    lead = RunWriter.create(out, full)
    rows = RowSink(out, read_manifest(out), 2)
    fill(rows, full, list(range(9)))
    rows.drain()
    assert not list((out / "vectors").iterdir())
    publish_all(lead, rows)
    lead.close("incomplete")
    assert [path.name for path in (out / "vectors").iterdir()] == ["vectors-0002-000001.parquet"]
    assert np.array_equal(read_results(out).kept("top_classes").shape, (9, 2))


def test_a_folder_that_is_gone_already_keeps_no_other(tmp_path, monkeypatch):
    left = tmp_path / "left"
    left.mkdir()
    monkeypatch.setattr(pending, "_in", lambda out: [out / "gone", left])
    pending.clear(tmp_path)
    assert not left.exists()


def test_the_command_to_go_on_is_for_all_teams(tmp_path):
    settings = {"scheme": "collage", "side": 2, "teams": 3}
    known = {"settings": settings, "teams": 3, "world": [{"rank": 0}] * 6}  # the third never came
    assert "launch -n RANKS -- run --resume" in resume_command(known, tmp_path)
    assert "launch -n 6 " in resume_command({**known, "teams": None}, tmp_path)
    placed = {**known, "teams": 2, "placement": "0 coordinator, 1 single+collage"}
    assert "launch -n 4 " in resume_command(placed, tmp_path)  # the world it had, not the usual one

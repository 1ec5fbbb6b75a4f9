"""A run killed at any moment, a full disk, damaged files: nothing lost, nothing believed."""

from __future__ import annotations

import errno
import io
import json
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from results_harness import InlineThread, Kill, fill, kill_at, make_run, manifest
from rows_by_name import add_image

from collage_mpi.cli import main
from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, UsageError
from collage_mpi.results import (
    RunWriter,
    compare,
    parts,
    read_results,
    render_comparison,
    render_summary,
    row_sink,
    summarise,
    verify_run,
    writer,
)
from collage_mpi.results.manifest import read_manifest
from collage_mpi.results.summary import ThresholdTally
from collage_mpi.rows import IMAGE_ROW, IMAGES
from collage_mpi.system import files

ROWS = 27


def whole_run(out: Path) -> None:
    full = manifest(ROWS)
    run = RunWriter.create(out, full, rows_per_part=10)
    fill(run, full, range(ROWS))
    run.close("complete")


def test_a_kill_between_any_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sink, "PartThread", InlineThread)
    monkeypatch.setattr(files.os, "fsync", lambda _fd: None)  # counted, but not waited for
    states = set()
    for step in range(1, 200):
        out = tmp_path / f"kill-{step}"
        with monkeypatch.context() as patch:
            kill_at(step, patch)
            try:
                whole_run(out)
                break
            except Kill:
                pass
        states.add(_state_after_kill(out))
    assert step > 30  # the loop met the end of the run, not its own
    assert states == {"no manifest", "incomplete", "complete"}


def _state_after_kill(out: Path) -> str:
    """What a kill left must be read, told and finished by the next session."""
    full = manifest(ROWS)
    if not (out / "manifest.json").exists():
        whole_run(out)
        assert verify_run(out).ok
        return "no manifest"
    before = verify_run(out)
    assert before.doubles == 0
    assert before.status == "incomplete" or before.ok
    assert before.ok is (out / "COMPLETE").exists()
    run, done = RunWriter.reopen(out, full)
    assert len(done) == before.rows
    keys = set(done.tolist())
    first = full["shards"][0]["count"]
    rest = [i for i in range(ROWS) if (int(i >= first), i - first * (i >= first)) not in keys]
    fill(run, full, rest)
    run.close("complete")
    after = verify_run(out)
    assert after.ok, after.problems
    assert not [path for path in out.rglob("*") if files.TEMP_MARK in path.name]
    return before.status


def audited(run: RunWriter, row: int, end_ns: int, score: float) -> None:
    """A collage's answer that the single network contradicts."""
    said = {"predicted": 1, "score": score, "audited": "done", "other": 2}
    times = {"t0_ns": end_ns - 5, "latency_ns": 5}
    add_image(
        run, shard=0, row=row, group=0, cell=0, source="collage", answered=True, **said, **times
    )


def test_after_a_kill_the_counts_of_each_threshold_are_those_of_the_rows(tmp_path: Path) -> None:
    full = manifest(20, audit={"share": 1.0, "seed": 0})
    held = [{"confidence": 0.5, "session": 1, "since_ns": 100}]
    run = RunWriter.create(tmp_path / "run", full)
    audited(run, 0, 100, 0.9)  # while the threshold was chosen
    audited(run, 1, 101, 0.9)
    run.note(thresholds=held)
    audited(run, 2, 150, 0.4)  # not by the cell's score
    run.drain()  # and nothing more: it is killed
    run, done = RunWriter.reopen(tmp_path / "run", {**full, "thresholds": held})
    assert len(done) == 3
    held += [{"confidence": 0.5, "session": 2, "since_ns": 0}]
    held += [{"confidence": 0.7, "session": 2, "since_ns": 200}]
    audited(run, 3, 150, 0.6)
    audited(run, 4, 201, 0.6)
    run.note(thresholds=held)
    run.close("incomplete")
    counts = [(2, 2, 1), (1, 1, 1), (1, 1, 0)]
    assert read_manifest(tmp_path / "run")["thresholds"] == [
        {**each, "images": images, "audited": audits, "differing": differing}
        for each, (images, audits, differing) in zip(held, counts, strict=True)
    ]
    results = read_results(tmp_path / "run")
    undrawn = ThresholdTally({**results.manifest, "audit": None})
    undrawn.add(results.images)  # of images that chose the threshold, and are done again
    assert [each["audited"] for each in undrawn.counts()] == [0, 0, 0]


def test_an_interrupted_run_is_never_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = manifest(90)
    run = RunWriter.create(tmp_path / "run", full)
    fill(run, full, range(36))
    run.close("incomplete")
    assert main(["verify", str(tmp_path / "run")]) == 6
    assert "incomplete: 36 of 90 rows, no doubles" in capsys.readouterr().out


@pytest.mark.parametrize("teams", [None, 2])
def test_a_killed_session_keeps_its_batch(tmp_path: Path, teams: int | None) -> None:
    full = manifest(90) | ({} if teams is None else {"teams": teams})
    for batch in (4, 2, 3):  # each is killed
        how = RunWriter.reopen if (tmp_path / "run").exists() else RunWriter.create
        made = how(tmp_path / "run", full)
        run = made[0] if isinstance(made, tuple) else made
        run.note(batch=batch)
        run.drain()
    told = read_manifest(tmp_path / "run")
    batches = [entry["final"]["batch"] for entry in told["sessions"]]
    assert batches == [each for each in (4, 2) for _ in range(teams or 1)]
    assert [entry["session"] for entry in told["sessions"]] == [*range(1, 1 + len(batches))]
    assert {entry["rows"] for entry in told["sessions"]} == {None}


def test_reopen_goes_on_as_the_next_session(tmp_path: Path) -> None:
    full = manifest(90)
    run = RunWriter.create(tmp_path / "run", full)
    fill(run, full, range(40))
    run.close("incomplete")
    run, done = RunWriter.reopen(tmp_path / "run", full)
    assert (run.session, len(done)) == (2, 40)
    fill(run, full, range(40, 90))
    run.close("complete")
    results = read_results(tmp_path / "run")
    assert verify_run(tmp_path / "run").ok
    assert sorted(set(results.images["session"].tolist())) == [1, 2]
    assert summarise(results)["rows"]["sessions"] == 2


def test_errors_of_an_earlier_session_stay_in_the_status(tmp_path: Path) -> None:
    full = manifest(18)
    run = RunWriter.create(tmp_path / "run", full)
    fill(run, full, range(9), errors=frozenset({3}))
    run.close("incomplete")
    run, done = RunWriter.reopen(tmp_path / "run", full)
    assert len(done) == 9  # an error row is a row: it is not done again
    fill(run, full, range(9, 18))
    run.close("complete")
    assert verify_run(tmp_path / "run").status == "complete_with_errors"


def test_reopen_refuses_other_settings_and_shows_them(tmp_path: Path) -> None:
    make_run(tmp_path / "run", 90)
    changed = manifest(90, class_names=["a"])
    changed["settings"] = {**changed["settings"], "side": 4, "out": "moved"}
    with pytest.raises(UsageError) as caught:
        RunWriter.reopen(tmp_path / "run", changed)
    text = str(caught.value)
    assert "class_names: ['class 0', " in text
    assert "settings.side: 3 before, 4 now" in text
    assert "out" not in text.replace("without", "").replace("--out", "")


def test_reopen_after_a_damaged_part_was_moved_away(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 90)
    part = next((run / "parts").glob("images-*"))
    raw = bytearray(part.read_bytes())
    raw[300] ^= 1
    part.write_bytes(raw)
    assert verify_run(run).status == "damaged"
    with pytest.raises(DataFault, match="move it away"):
        RunWriter.reopen(run, manifest(90))
    part.unlink()
    again, done = RunWriter.reopen(run, manifest(90))
    assert len(done) == 0
    assert not (run / "COMPLETE").exists()
    fill(again, manifest(90), range(90))
    again.close("complete")
    assert verify_run(run).ok, verify_run(run).problems


def test_a_marker_is_gone_for_good_before_its_run_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_run(tmp_path)
    next((tmp_path / "parts").glob("images-*")).unlink()
    synced = []

    def sync(folder: Path) -> None:
        if folder == tmp_path:
            synced.append(((folder / "COMPLETE").exists(), read_manifest(folder)["session"]))

    monkeypatch.setattr(writer, "sync_directory", sync)
    again, _ = RunWriter.reopen(tmp_path, manifest(ROWS))
    assert synced == [(True, 1), (False, 1)]
    again.close("incomplete")


def test_what_a_killed_session_named_is_on_the_disk_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_run(tmp_path)
    (tmp_path / "vectors").mkdir()
    seen, real = [], writer.known_run
    monkeypatch.setattr(writer, "sync_directory", seen.append)
    monkeypatch.setattr(writer, "known_run", lambda *of: seen.append("rows") or real(*of))
    folders = [tmp_path / "parts", tmp_path / "vectors", tmp_path]
    assert RunWriter.finished(tmp_path, manifest(ROWS)) == "complete"
    assert seen == [*folders, "rows"]
    seen.clear()
    RunWriter.reopen(tmp_path, manifest(ROWS))[0].close("complete")
    assert seen[:4] == [*folders, "rows"]


def test_a_run_that_cannot_be_synced_is_not_called_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_run(tmp_path)

    def fails(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(writer, "sync_directory", fails)
    with pytest.raises(EnvironmentFault, match="Input/output error"):
        RunWriter.finished(tmp_path, manifest(ROWS))


def test_truncated_temporary_files_are_ignored_and_swept(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 90, status="incomplete")
    leftover = run / "parts" / ".images-0001-000002.npy.tmp-123"
    leftover.write_bytes(b"\x93NUMPY half a hea")
    assert len(read_results(run).images) == 90
    RunWriter.reopen(run, manifest(90))[0].close("complete")
    assert not leftover.exists()


def test_a_full_disk_reaches_the_caller_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = parts.write_part, []

    def full_after_three(path: Path, *rest: Any) -> None:
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, *rest)
        written.append(path)

    monkeypatch.setattr(parts, "write_part", full_after_three)
    full = manifest(90_000)
    run = RunWriter.create(tmp_path / "run", full, rows_per_part=50)
    with pytest.raises(EnvironmentFault, match="No space left"):
        fill(run, full, range(90_000))
    with pytest.raises(EnvironmentFault, match="--resume"):
        run.close("complete")
    run.close("complete")  # again: nothing more to say
    results = read_results(tmp_path / "run")
    assert len(results.images) + len(results.tasks) == 150
    assert not results.complete
    assert verify_run(tmp_path / "run").status == "incomplete"


def test_a_full_disk_at_the_last_part_is_told_by_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(parts, "write_part", full_disk)
    run = RunWriter.create(tmp_path / "run", manifest(9))
    fill(run, manifest(9), range(9))
    with pytest.raises(EnvironmentFault, match="No space left"):
        run.close("complete", summary=True)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert verify_run(tmp_path / "run").status == "incomplete"


def test_a_run_is_marked_complete_only_when_its_summary_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with the marker is not begun again, so an older summary would stay."""
    out, full = tmp_path / "run", manifest(18)
    run = RunWriter.create(out, full)
    fill(run, full, range(9))
    run.close("incomplete", summary=True)
    for rest in (range(9, 18), ()):
        assert RunWriter.finished(out, full) is None
        run, _ = RunWriter.reopen(out, full)
        fill(run, full, rest)
        with monkeypatch.context() as dies:
            if rest:
                dies.setattr("collage_mpi.results.writer.save_summary", Mock(side_effect=Kill))
                with pytest.raises(Kill):
                    run.close("complete", summary=True)
            else:
                run.close("complete", summary=True)
    assert RunWriter.finished(out, full) == "complete"
    assert json.loads((out / "summary.json").read_text())["rows"]["found"] == 18


@pytest.fixture(scope="module")
def good_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("good") / "run", ROWS)


def read_all(path: Path) -> None:
    """Everything that reads a run; only errors for the user may leave it."""
    verify_run(path)
    results = read_results(path)
    render_summary(summarise(results))
    render_comparison(compare([results, results]))


FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(data=st.data())
def test_any_change_of_a_part_is_found(good_run: Path, tmp_path: Path, data: Any) -> None:
    part = sorted((good_run / "parts").iterdir())[data.draw(st.integers(0, 1))]
    raw = part.read_bytes()
    kind = data.draw(st.sampled_from(("flip", "cut", "grow", "replace")))
    place = data.draw(st.integers(0, len(raw) - 1))
    more = data.draw(st.binary(min_size=1, max_size=40))
    changed = {
        "flip": raw[:place] + bytes([raw[place] ^ (more[0] or 1)]) + raw[place + 1 :],
        "cut": raw[:place],
        "grow": raw + more,
        "replace": more,
    }[kind]
    try:
        part.write_bytes(changed)
        with pytest.raises(DataFault):
            read_all(good_run)
        assert verify_run(good_run).status == "damaged"
    finally:
        part.write_bytes(raw)


def test_any_change_of_a_trailer_is_found(good_run: Path, tmp_path: Path) -> None:
    (part, *_) = sorted((good_run / "parts").glob("images-*"))
    raw = part.read_bytes()
    copy = tmp_path / part.name
    for place in range(len(raw) - parts._TRAILER.size, len(raw)):
        copy.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(DataFault):
            parts.read_part(copy, IMAGES)


def test_another_version_of_numpy_s_format_is_refused(tmp_path: Path) -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.zeros(1, IMAGE_ROW), version=(2, 0))
    body = file.getvalue()
    trailer = parts._TRAILER.pack(parts._MARK, len(body), zlib.crc32(body))
    (tmp_path / "images-000001.npy").write_bytes(body + trailer)
    with pytest.raises(DataFault, match=r"another version of \.npy"):
        parts.read_part(tmp_path / "images-000001.npy", IMAGES)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**300, max_value=10**301)
    | st.floats()
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@FUZZ
@given(data=st.data())
def test_any_manifest_is_read_or_refused(good_run: Path, data: Any) -> None:
    path = good_run / "manifest.json"
    raw = path.read_bytes()
    found = json.loads(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        node: Any = found
        while isinstance(node, dict | list) and node:
            keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(node[key], dict | list) or data.draw(st.booleans()):
                node[key] = data.draw(JSON)
                break
            node = node[key]
    try:
        path.write_text(json.dumps(found))
        try:
            read_all(good_run)
        except CollageError:
            pass
    finally:
        path.write_bytes(raw)


@FUZZ
@given(raw=st.binary(max_size=60) | st.just(b"[" * 100_000))
def test_bytes_that_are_no_manifest(good_run: Path, raw: bytes) -> None:
    path = good_run / "manifest.json"
    before = path.read_bytes()
    try:
        path.write_bytes(raw)
        with pytest.raises(DataFault):
            read_results(good_run)
    finally:
        path.write_bytes(before)

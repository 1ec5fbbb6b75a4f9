"""A run killed at any moment, a full disk, damaged files: nothing lost, nothing believed."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from results_harness import InlineThread, Kill, fill, kill_at, make_run, manifest
from rows_by_name import add_image

from collage_mpi.cli import main
from collage_mpi.errors import CollageError, DataFault, EnvironmentFault
from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results import (
    compare,
    parts,
    read_results,
    render_comparison,
    render_summary,
    row_sink,
    summarise,
    verify_run,
)
from collage_mpi.results.columns import Form, rows_of
from collage_mpi.results.parts import read_ledger
from collage_mpi.results.sole import SoleWriter
from collage_mpi.results.verify import repair_run
from collage_mpi.rows import CHANGED, IMAGES
from collage_mpi.system import files

ROWS = 27


def whole_run(out: Path) -> None:
    full = manifest(ROWS)
    run = SoleWriter(out, full, rows_per_part=10)
    fill(run, full, range(ROWS))
    run.close("complete")


def test_a_kill_between_any_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sink, "PartThread", InlineThread)
    monkeypatch.setattr(files.os, "fsync", lambda _fd: None)  # counted, but not waited for
    states = set()
    for step in range(1, 400):
        out = tmp_path / f"kill-{step}"
        with monkeypatch.context() as patch:
            kill_at(step, patch)
            try:
                whole_run(out)
                break
            except Kill:
                pass
        if not (out / "run.1.json").exists():
            states.add("no run")
            continue
        found = verify_run(out)
        assert found.doubles == 0
        assert found.status == "incomplete" or found.ok, found.problems
        assert found.ok is (out / "COMPLETE.1").exists()
        states.add(found.status)
    assert step > 30  # the loop met the end of the run, not its own
    assert states == {"no run", "incomplete", "complete"}


def audited(run, position: int, score: float, other: int = 2) -> None:
    """An image that both networks have classified; the row is the single network's."""
    said = {"predicted": 1, "audited": "done", "other": other, "other_score": score}
    said["stages"] = 1 | (other != 1) << CHANGED
    add_image(run, shard=0, row=position, group=0, cell=0, source="single", answered=True, **said)


def test_the_summary_tells_what_audits_found_of_the_promise(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = SoleWriter(out, manifest(20, settings={"agree": 0.9}))
    audited(run, 3, 0.9)  # it has proved the threshold
    audited(run, 4, 0.9)
    audited(run, 5, 0.4)  # it does not count
    audited(run, 6, 0.9, other=1)  # the same class
    audited(run, 7, 0.9)  # after the audits
    run.close("incomplete")
    (out / "thresholds").mkdir()
    held = {"confidence": 0.5, "candidate": "collage", "proved": 4, "drawn": 7}
    (out / "thresholds" / "1.json").write_text(json.dumps(held))
    found = summarise(results := read_results(out))
    assert results.manifest["thresholds"] == [held]
    low, high = found["promise"].pop("ci95")
    told = {"agree": 0.9, "top_k": None, **held, "audited": 3, "differing": 1}
    assert found["promise"] == told
    assert (low, high) == pytest.approx((0.0084, 0.9057), abs=1e-4)
    assert "1 of 3 audited ones differ" in render_summary(summarise(results), width=200)
    (out / "thresholds" / "1.json").write_text(json.dumps({**held, "confidence": None}))
    text = render_summary(summarise(read_results(out)), width=200)
    assert "at most 10.00 % of the answers change; all are the single network's" in text


def test_a_job_goes_on_where_others_ended(tmp_path: Path) -> None:
    full = manifest(90)
    run = SoleWriter(tmp_path / "run", full)
    fill(run, full, range(40), errors=frozenset({3}))
    run.close("incomplete")
    run = SoleWriter(tmp_path / "run", full)
    fill(run, full, range(40, 90))
    run.close("complete")
    results = read_results(tmp_path / "run")
    assert verify_run(tmp_path / "run").status == "complete_with_errors"
    assert results.manifest["status"] == "complete_with_errors"
    assert sorted(set(results.images["session"].tolist())) == [1, 2]
    assert summarise(results)["rows"]["sessions"] == 2


def test_an_image_is_asked_again_until_it_has_an_answer(tmp_path: Path) -> None:
    """In a run of its own, which adds positions; the last row of an image counts."""
    out, full = make_run(tmp_path / "run", 27, errors=frozenset({3, 5, 6})), manifest(27)
    for number, left in ((2, {5}), (3, set())):
        asked = read_ledger(out).errors
        again = SoleWriter(out, full, asked)
        mine = {2: [3, 5, 6], 3: [5]}[number]
        assert (again.run.number, sp.count(asked)) == (number, len(mine))
        fill(again, full, mine[:1] if number == 2 else [])
        again.commit()  # a retry that dies leaves the other rows as they were
        assert verify_run(out).error_rows == {2: 2, 3: 1}[number]
        again = SoleWriter(out, full)
        fill(again, full, mine[1:] if number == 2 else mine, errors=frozenset(left))
        again.close("complete")
        found, results = verify_run(out), read_results(out)
        assert (found.ok, found.rows, found.error_rows) == (True, 27, len(left)), found.problems
        errors = results.images["row"][~results.images["answered"]]
        assert set(errors.tolist()) == left
        assert len(results.groups) == number + 2  # three of the first job


def test_a_damaged_part_is_named_and_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, full = tmp_path / "run", manifest(90)
    run = SoleWriter(out, full, rows_per_part=45)
    fill(run, full, range(90))
    run.close("complete")
    part = out / "rows/0.parquet"
    raw = bytearray(part.read_bytes())
    raw[700] ^= 1
    part.write_bytes(raw)
    assert main(["verify", str(out)]) == 4
    assert f"{part}: damaged (CRC-32" in capsys.readouterr().out
    assert main(["verify", "--repair", str(out)]) == 6
    told = capsys.readouterr()
    assert "leases/0.1: its rows lie in rows/0.parquet, which is damaged or missing" in told.err
    assert f"3 files moved to {out}/orphans; 90 images will be done again" in told.err
    assert "0 of 90 rows" in told.out
    run = SoleWriter(out, full)
    fill(run, full, range(90))
    run.close("complete")
    assert verify_run(out).ok, verify_run(out).problems
    assert main(["verify", "--repair", str(out)]) == 0  # there is nothing to repair
    run = SoleWriter(tmp_path / "open", full)
    fill(run, full, range(45))
    run.close("incomplete")
    (part,) = (tmp_path / "open/parts").glob("images-*")
    part.write_bytes(part.read_bytes()[:-1])
    assert main(["verify", "--repair", str(tmp_path / "open")]) == 6
    told = capsys.readouterr().err
    assert f"its rows lie in parts/{part.name}, which is damaged or missing" in told


def test_a_damaged_record_is_named_and_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make_run(tmp_path / "run", 90)
    for name, raw in (("leases/0.1", b"{}"), ("COMPLETE.1", None)):
        good = (out / name).read_bytes()
        if raw is None:
            (out / "leases/0.1").write_bytes(b"")
        (out / name).write_bytes(raw or b'{"number":1,"records":1,"digest":""}')
        assert main(["verify", str(out)]) == 4
        assert f"{out / name}: it " in capsys.readouterr().out
        (out / name).write_bytes(good)
    assert main(["verify", "--repair", str(out)]) == 6
    assert "90 images will be done again" in capsys.readouterr().err


def test_temporary_files_of_killed_jobs_do_no_harm_and_a_repair_removes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make_run(tmp_path / "run", 90)
    (out / "export").mkdir()
    made = [path for path in out.rglob("*") if path.is_file()]
    left = {files.temporary_name(path) for path in made}
    left.add(Path(FolderStore(out)._temporary("leases/0.2")))
    others = files.temporary_name(out / "export" / "images.csv"), out / ".mine.tmp"
    for path in (*left, *others):
        path.write_bytes(b"half")
    assert main(["verify", str(out)]) == 0
    assert main(["verify", "--repair", str(out)]) == 0
    told = f"repaired: {len(left)} temporary files of jobs that were killed: removed\n"
    assert told in capsys.readouterr().err
    assert {path for path in out.rglob("*") if path.is_file()} == {*made, *others}


def test_a_repair_waits_for_the_jobs_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = make_run(tmp_path / "run", 9)
    (out / "leases/0.1").unlink()
    monkeypatch.setattr("collage_mpi.results.verify.find_writer", lambda _: "host h, pid 7")
    assert main(["verify", "--repair", str(out)]) == 3
    assert "a job is writing here (host h, pid 7)" in capsys.readouterr().err
    assert not (out / "orphans").exists()


def test_rows_that_are_not_what_their_record_names_do_not_count(tmp_path: Path) -> None:
    """As where a part was put in the place of another one."""
    out = make_run(tmp_path / "run", 90)
    other = make_run(tmp_path / "other", 90, arrival=[*range(1, 90), 0], limit=90)
    rows = rows_of(other / "rows/0.parquet", IMAGES)
    rows["position"] += 1
    (out / "rows/0.parquet").unlink()
    parts.write_part(out / "rows/0.parquet", IMAGES, rows, Form(["f", "g"]))
    with pytest.raises(DataFault, match="89 of its rows are at the 90 positions"):
        read_results(out)
    assert verify_run(out).status == "damaged"


def test_an_interrupted_run_is_never_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = manifest(90)
    run = SoleWriter(tmp_path / "run", full)
    fill(run, full, range(36))
    run.close("incomplete")
    assert main(["verify", str(tmp_path / "run")]) == 6
    assert "incomplete: 36 of 90 rows, no doubles" in capsys.readouterr().out


def test_a_full_disk_reaches_the_caller_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = parts.write_part, []

    def full_after_three(path: Path, *rest: Any) -> tuple[int, int]:
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        found: tuple[int, int] = real(path, *rest)
        written.append(path)
        return found

    monkeypatch.setattr(parts, "write_part", full_after_three)
    full = manifest(90_000)
    run = SoleWriter(tmp_path / "run", full, rows_per_part=50)
    with pytest.raises(EnvironmentFault, match="No space left"):
        fill(run, full, range(90_000))
    with pytest.raises(EnvironmentFault, match="epeat the command"):
        run.close("complete")
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
    run = SoleWriter(tmp_path / "run", manifest(9))
    fill(run, manifest(9), range(9))
    with pytest.raises(EnvironmentFault, match="No space left"):
        run.close("complete", summary=True)
    assert not (tmp_path / "run" / "summary.json").exists()
    assert verify_run(tmp_path / "run").status == "incomplete"


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
    part = sorted(good_run.glob("*/*.parquet"))[data.draw(st.integers(0, 1))]
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


def test_any_change_of_a_seal_or_a_footer_is_found(good_run: Path, tmp_path: Path) -> None:
    (part, *_) = sorted((good_run / "rows").glob("*.parquet"))
    raw = part.read_bytes()
    copy = tmp_path / part.name
    start = raw.index(b"CMPIseal")
    for place in (*range(start, start + 200), *range(len(raw) - 20, len(raw))):
        copy.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(DataFault):
            rows_of(copy, IMAGES)


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
def test_any_file_of_a_run_is_read_or_refused(good_run: Path, data: Any) -> None:
    path = good_run / data.draw(st.sampled_from(["run.1.json", "jobs/0001.json"]))
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
def test_bytes_that_are_no_run(good_run: Path, raw: bytes) -> None:
    path = good_run / "run.1.json"
    before = path.read_bytes()
    try:
        path.write_bytes(raw)
        with pytest.raises(DataFault):
            read_results(good_run)
    finally:
        path.write_bytes(before)


def test_a_damaged_part_of_tasks_is_moved_away(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run", 27)
    part = next((out / "parts").glob("tasks-*.parquet"))
    part.write_bytes(part.read_bytes()[:-30])
    assert verify_run(out).status == "damaged"
    assert any(part.name in each for each in repair_run(out))
    assert (out / "orphans" / part.name).exists()
    report = verify_run(out)
    assert (report.status, report.rows, report.problems) == ("complete", 27, [])


@pytest.mark.parametrize(("code", "tries"), [(errno.EIO, 3), (errno.ENOSPC, 1)])
def test_a_part_that_a_file_server_fails_to_write_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, tries: int
) -> None:
    """A full disk is told at once."""
    real, tried = row_sink.parts.write_part, list[Path]()

    def write(path: Path, *part: Any) -> tuple[int, int]:
        tried.append(path)
        if len(tried) < 3:
            raise OSError(code, "no")
        return real(path, *part)

    monkeypatch.setattr(row_sink.parts, "write_part", write)
    monkeypatch.setattr(row_sink, "AGAIN_S", 0.0)
    thread = row_sink.PartThread(tmp_path, 1, lambda part: None, Form(["f"]))
    thread.put(IMAGES, memoryview(bytes(IMAGES.dtype.itemsize)))
    thread.end()
    assert (len(tried), thread.fault is None) == (tries, tries == 3)

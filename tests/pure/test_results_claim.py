"""One session at a time: who may write is judged without clocks of others; no row is doubled."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from results_harness import InlineThread, fill, make_run, manifest

from collage_mpi.cli import main
from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, ExitCode
from collage_mpi.results import (
    RunWriter,
    claim,
    export_run,
    read_results,
    reader,
    row_sink,
    verify_run,
)
from collage_mpi.results.claim import (
    STILL_S,
    Claim,
    ClaimLost,
    Holder,
    Patience,
    RunGone,
    find_writer,
)
from collage_mpi.system import files
from collage_mpi.system.process_tree import has_ended, this_process

ROWS = 27
WHO = ("host", "pid", "process", "token")
FULL = manifest(ROWS)
FUZZ = settings(max_examples=60, deadline=None)
JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just({})


class Clock:
    """Time passes only in pauses; at some of them somebody does something."""

    def __init__(self, act: Callable[[int], object] = lambda pause: None) -> None:
        self.now_s, self.pauses, self.told = 0.0, 0, []
        self._act = act

    def patience(self, **more: Any) -> Patience:
        return Patience(clock=lambda: self.now_s, sleep=self._sleep, tell=self.told.append, **more)

    def _sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.pauses += 1
        self._act(self.pauses)


def foreign(out: Path, number: int = 1, count: int = 0, **who: Any) -> Path:
    """A claim of another machine's process."""
    process = {"machine": "another boot", "pid": 7, "started": 1}
    holder = {"host": "far", "pid": 7, "process": process, "token": "aa", **who}
    out.mkdir(exist_ok=True)
    path = out / f"claim-{number}"
    path.write_bytes(b"%020d\n" % count + json.dumps(holder).encode())
    return path


def test_a_claim_whose_counter_moves_is_alive(tmp_path: Path) -> None:
    foreign(tmp_path)
    clock = Clock(lambda pause: pause == 3 and foreign(tmp_path, count=1))
    with pytest.raises(EnvironmentFault, match="host far, pid 7") as caught:
        Claim.take(tmp_path, clock.patience())
    assert clock.now_s < 1
    assert not clock.told
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    assert [path.name for path in tmp_path.iterdir()] == ["claim-1"]


def test_a_claim_that_stands_still_is_taken_over_and_the_wait_is_told(tmp_path: Path) -> None:
    old = foreign(tmp_path, count=12)
    os.utime(old, (2e9, 2e9))  # touched in the future: nobody asks
    clock = Clock()
    mine = Claim.take(tmp_path, clock.patience())
    assert STILL_S <= clock.now_s < STILL_S + 1
    assert len(clock.told) == 1
    assert "host far, pid 7" in clock.told[0]
    assert [path.name for path in tmp_path.iterdir()] == ["claim-2"]
    mine.check()
    assert mine.release()
    assert not list(tmp_path.iterdir())


def test_a_claim_that_is_given_back_meanwhile_is_waited_for_no_longer(tmp_path: Path) -> None:
    old = foreign(tmp_path)
    clock = Clock(lambda pause: pause == 5 and old.unlink())
    Claim.take(tmp_path, clock.patience()).release()
    assert clock.pauses == 5


def test_a_half_written_claim_is_watched_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "claim-1").write_bytes(b"")
    clock = Clock(lambda pause: pause == 2 and foreign(tmp_path))
    writer, _ = find_writer(tmp_path, clock.patience())
    assert str(writer) == "host far, pid 7"


@FUZZ
@given(raw=st.binary(max_size=80), who=st.dictionaries(st.sampled_from(WHO), JSON))
def test_any_claim_is_read(raw: bytes, who: dict[str, Any]) -> None:
    here = this_process()
    assert here is not None
    if who.get("process") is True:
        who["process"] = {**asdict(here), "pid": who.get("pid")}
    for content in (raw, b"%020d\n" % 1 + json.dumps(who).encode()):
        assert str(Holder.read(content))
        assert Holder.read(content).ended in (True, False)


def test_the_claim_of_a_process_of_this_machine_that_has_ended_is_dead_at_once(
    tmp_path: Path,
) -> None:
    program = "import json\nfrom collage_mpi.system.process_tree import this_process as t\n"
    program += "print(json.dumps(vars(t())))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    process = json.loads(said.stdout)
    here = this_process()
    assert here is not None
    foreign(tmp_path, process=process)
    foreign(tmp_path, 2, process={**asdict(here), "started": here.started - 1})  # pid used again
    clock = Clock()
    Claim.take(tmp_path, clock.patience()).release()
    assert clock.pauses == 0
    assert has_ended(here) is False


def test_a_stop_signal_ends_the_wait(tmp_path: Path) -> None:
    foreign(tmp_path)
    clock = Clock()
    patience = clock.patience(stop_reason=lambda: "stopped by SIGTERM" if clock.pauses else None)
    with pytest.raises(CollageError, match="stopped by SIGTERM") as caught:
        Claim.take(tmp_path, patience)
    assert caught.value.exit_code == ExitCode.INCOMPLETE


def test_of_two_who_take_over_one_wins(tmp_path: Path) -> None:
    """The other has judged a claim that is gone by now."""
    old = foreign(tmp_path)
    won: list[Claim] = []

    def take_first(pause: int) -> None:
        if pause == 1:
            old.unlink()
            foreign(tmp_path, 1, token="bb")  # the winner's, of the same number
            won.append(Claim(tmp_path / "claim-2"))

    with pytest.raises(EnvironmentFault, match="another job is writing"):
        Claim.take(tmp_path, Clock(take_first).patience(still_s=0.1))
    won[0].check()
    won[0].release()
    old.unlink()
    found = Claim.take(tmp_path, Clock().patience())
    foreign(tmp_path, 2, token="cc")
    found.check()
    found.release()


def test_a_claim_that_came_between_is_left_alone(tmp_path: Path, monkeypatch) -> None:
    real = claim.find_writer

    def and_another_comes(out: Path, patience: Patience) -> Any:
        found = real(out, patience)
        foreign(out, 7)
        return found

    monkeypatch.setattr(claim, "find_writer", and_another_comes)
    with pytest.raises(EnvironmentFault, match="host far"):
        Claim.take(tmp_path, Clock().patience())
    assert [path.name for path in tmp_path.iterdir()] == ["claim-7"]


def test_what_the_watcher_slept_through_it_did_not_watch(tmp_path: Path) -> None:
    path = foreign(tmp_path)

    def suspended(pause: int) -> None:  # both are, and the watcher wakes first
        clock.now_s += 100 if pause == 1 else 0
        if pause == 5:
            foreign(tmp_path, count=1)

    clock = Clock(suspended)
    writer, _ = find_writer(tmp_path, clock.patience())
    assert writer == Holder.read(path.read_bytes())


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("gone")])
def test_what_is_no_file_is_no_claim(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "claim-3")
    clock = Clock()
    mine = Claim.take(tmp_path, clock.patience())
    assert (mine.path.name, clock.pauses) == ("claim-4", 0)
    mine.check()
    assert mine.release()
    assert os.path.lexists(tmp_path / "claim-3")


def test_a_run_is_taken_back_before_its_claim(tmp_path: Path, monkeypatch) -> None:
    run = RunWriter.create(tmp_path / "run", FULL)
    release, left = Claim.release, []

    def watched(self: Claim) -> bool:
        left.extend(path.name for path in (tmp_path / "run").iterdir())
        return release(self)

    monkeypatch.setattr(Claim, "release", watched)
    run.discard()
    assert left == ["claim-1"]  # whoever claims it next finds nothing that is still to go
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_taken_over_is_not_taken_back(tmp_path: Path) -> None:
    run = RunWriter.create(tmp_path / "run", FULL)
    (tmp_path / "run" / "claim-1").rename(tmp_path / "run" / "claim-2")
    run.discard()
    assert (tmp_path / "run" / "manifest.json").exists()


def test_a_claim_of_the_same_name_is_not_the_same(tmp_path: Path) -> None:
    mine = Claim.take(tmp_path, Clock().patience())
    mine.path.unlink()  # taken over by one that has ended, then made anew
    theirs = foreign(tmp_path)
    with pytest.raises(ClaimLost, match="host far"):
        mine.check()
    assert not mine.release()
    assert theirs.exists()


def test_the_counter_moves_by_itself(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(claim, "BEAT_S", 0.001)
    mine = Claim.take(tmp_path, Clock().patience())
    first = mine.path.read_bytes()
    while mine.path.read_bytes() == first:
        pass  # bounded by the suite's time limit
    mine.check()
    mine.release()


# ---- a session that was suspended, and another that took over --------------------


def begun(out: Path, rows: int = 18) -> RunWriter:
    """A session, as far as it got before it was suspended."""
    run = RunWriter.create(out, FULL, rows_per_part=10)
    fill(run, FULL, range(rows))
    run.flush()
    return run


def overtake(out: Path, *, close: bool = True) -> RunWriter:
    """Another session goes on with the run; it is of this process, so it need not wait."""
    run, done = RunWriter.reopen(out, FULL)
    keys = {tuple(key) for key in done.tolist()}
    fill(run, FULL, [i for i in range(ROWS) if place(i) not in keys])
    if close:
        run.close("complete", summary=True)
    return run


def to_the_end(run: RunWriter) -> None:
    fill(run, FULL, range(ROWS))
    run.close("complete", summary=True)


def place(index: int) -> tuple[int, int]:
    first = FULL["shards"][0]["count"]
    return (0, index) if index < first else (1, index - first)


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sink, "PartThread", InlineThread)


def content(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }


def test_a_session_that_wakes_after_another_completed_writes_nothing(
    tmp_path: Path, inline: None
) -> None:
    out = tmp_path / "run"
    asleep = begun(out)
    overtake(out)
    before = content(out)
    assert verify_run(out).ok
    fill(asleep, FULL, range(18, 22))
    with pytest.raises(RunGone, match="taken over") as caught:
        asleep.close("complete", summary=True)
    assert caught.value.exit_code == ExitCode.INCOMPLETE
    assert content(out) == before
    assert RunWriter.finished(out, FULL) == "complete"


def test_a_session_that_wakes_while_another_writes_is_told_who(
    tmp_path: Path, inline: None
) -> None:
    out = tmp_path / "run"
    asleep = begun(out)
    other = overtake(out, close=False)
    with pytest.raises(ClaimLost, match=f"pid {os.getpid()}") as caught:
        asleep.close("incomplete")
    assert caught.value.exit_code == ExitCode.ENVIRONMENT
    other.close("complete")
    assert verify_run(out).ok
    asleep.discard()
    assert verify_run(out).ok


@pytest.mark.parametrize("step", range(1, 9))  # 5 parts, manifest, marker, summary
def test_a_session_suspended_within_any_write_harms_nothing(
    tmp_path: Path, inline: None, monkeypatch, step: int
) -> None:
    """It stops with all of a file on the disk but its name: after the last look at the claim."""
    out = tmp_path / "run"
    asleep = begun(out, rows=0)
    renames, real = [], os.replace

    def replace(source: Path, target: Path) -> None:
        renames.append(target)
        if len(renames) == step:
            monkeypatch.setattr(files.os, "replace", real)
            overtake(out)
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(RunGone):
        to_the_end(asleep)
    report = verify_run(out)
    assert report.ok, report.problems
    assert (report.rows, report.doubles) == (ROWS, 0)
    assert not report.notes


@pytest.mark.parametrize("begun_before", [False, True])
def test_a_session_suspended_before_its_first_manifest_harms_nothing(
    tmp_path: Path, inline: None, monkeypatch, begun_before: bool
) -> None:
    out, real = tmp_path / "run", os.replace
    if begun_before:
        begun(out).close("incomplete")

    def replace(source: Path, target: Path) -> None:
        monkeypatch.setattr(files.os, "replace", real)
        if begun_before:
            overtake(out)
        else:
            to_the_end(RunWriter.create(out, FULL))
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    with pytest.raises(RunGone):
        RunWriter.reopen(out, FULL) if begun_before else RunWriter.create(out, FULL)
    report = verify_run(out)
    assert report.ok, report.problems
    assert RunWriter.finished(out, FULL) == "complete"


def test_a_part_that_comes_after_the_take_over_does_not_count(tmp_path: Path) -> None:
    """A listing of a file server may be old: a part can be there that the successor did not see."""
    out = tmp_path / "run"
    first = RunWriter.create(out, FULL, rows_per_part=10)
    fill(first, FULL, range(18))
    first.close("incomplete")
    hidden = next((out / "parts").glob("images-0001-000002.npy"))
    hidden.rename(tmp_path / "hidden")
    overtake(out)
    (tmp_path / "hidden").rename(hidden)
    report = verify_run(out)
    assert report.ok, report.problems
    assert report.rows == len(read_results(out).images) == ROWS
    assert "images-0001-000002.npy" in report.notes[0]
    assert RunWriter.finished(out, FULL) == "complete"


# ---- complete only with its rows --------------------------------------------------


@pytest.mark.parametrize("table", ["images", "tasks"])
def test_a_complete_run_that_lost_a_part_is_done_again(tmp_path: Path, table: str) -> None:
    out = make_run(tmp_path / "run", ROWS)
    next((out / "parts").glob(f"{table}-*")).unlink()
    assert verify_run(out).status == "damaged"
    assert RunWriter.finished(out, FULL) is None
    run, done = RunWriter.reopen(out, FULL)
    assert len(done) == (0 if table == "images" else ROWS)
    fill(run, FULL, range(ROWS - len(done)))
    assert run.close("complete") is None
    assert verify_run(out).ok, verify_run(out).problems


def test_a_complete_run_without_its_folder_of_parts_is_done_again(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run", ROWS)
    (out / "parts").rename(tmp_path / "away")
    assert RunWriter.finished(out, FULL) is None
    assert len(RunWriter.reopen(out, FULL)[1]) == 0
    assert not (out / "COMPLETE").exists()


def test_a_job_that_closes_while_its_rows_are_read_damages_nothing(
    tmp_path: Path, monkeypatch
) -> None:
    out = tmp_path / "run"
    run = RunWriter.create(out, FULL)
    fill(run, FULL, range(ROWS))
    read_parts = reader.read_parts

    def read_then_close(path: Path, manifest: Any) -> Any:
        found = read_parts(path, manifest)
        run.close("complete")
        return found

    monkeypatch.setattr(reader, "read_parts", read_then_close)
    assert verify_run(out).status == "incomplete"  # as it was when it was asked
    monkeypatch.undo()
    assert verify_run(out).ok


def test_a_manifest_restored_from_an_older_copy_can_be_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = RunWriter.create(out, FULL)
    old = (out / "manifest.json").read_bytes()
    fill(run, FULL, range(9))
    run.close("incomplete")
    run, _ = RunWriter.reopen(out, FULL)
    fill(run, FULL, range(9, 18))
    run.close("incomplete")
    (out / "manifest.json").write_bytes(old)
    run, done = RunWriter.reopen(out, FULL)
    assert (run.session, len(done)) == (3, 9)  # session 2 is known to nobody
    fill(run, FULL, range(9, ROWS))
    assert run.close("complete") is None
    assert verify_run(out).ok, verify_run(out).problems


def test_a_part_of_a_session_that_no_row_can_name_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "run"
    RunWriter.create(out, FULL).close("incomplete")
    (out / "parts" / "images-65534-000001.npy").write_bytes(b"foreign")  # of a u2 column
    before = content(out)
    with pytest.raises(DataFault, match="'session'"):
        RunWriter.reopen(out, FULL)
    assert content(out) == before


@pytest.mark.parametrize("with_folder", [False, True])
def test_parts_that_vanish_while_the_job_runs_leave_it_incomplete(
    tmp_path: Path, inline: None, with_folder: bool
) -> None:
    out = tmp_path / "run"
    run = RunWriter.create(out, FULL, rows_per_part=10)
    fill(run, FULL, range(ROWS))
    run.flush()
    for path in (out / "parts").iterdir():
        path.unlink()
    if with_folder:
        (out / "parts").rmdir()
    lacking = run.close("complete", summary=True)
    assert lacking is not None
    assert lacking.startswith("27 of 27 images have no row")
    assert run.manifest["status"] == "incomplete"
    assert not (out / "COMPLETE").exists()
    if not with_folder:
        report = verify_run(out)
        assert (report.status, report.exit_code) == ("incomplete", ExitCode.INCOMPLETE)
    again, _ = RunWriter.reopen(out, FULL)
    fill(again, FULL, range(ROWS))
    again.close("complete")
    assert verify_run(out).ok, verify_run(out).problems


def test_a_folder_that_is_replaced_while_the_job_runs_is_written_to_no_more(
    tmp_path: Path, inline: None
) -> None:
    out = tmp_path / "run"
    run = RunWriter.create(out, FULL, rows_per_part=10)
    out.rename(tmp_path / "moved")
    (out / "parts").mkdir(parents=True)
    with pytest.raises(RunGone, match="moved, replaced"):
        fill(run, FULL, range(ROWS))
    with pytest.raises(RunGone):
        run.close("incomplete")
    assert [path.name for path in out.iterdir()] == ["parts"]


# ---- verify ------------------------------------------------------------------------


def test_verify_of_a_running_job_says_so(tmp_path: Path, capsys) -> None:
    """The writer is another process of this machine."""
    out = make_run(tmp_path / "run", ROWS, status="incomplete")
    hold = (
        "import sys; from pathlib import Path\n"
        "from collage_mpi.results.claim import PATIENT, Claim\n"
        "mine = Claim.take(Path(sys.argv[1]), PATIENT); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert main(["verify", str(out)]) == ExitCode.INCOMPLETE
        told = capsys.readouterr().out
        assert "a job is writing here (host" in told
        assert f"pid {holder.pid}" in told
        assert "--resume" not in told
        part = next((out / "parts").glob("images-*"))
        whole = part.read_bytes()
        part.write_bytes(whole[:-1])
        assert main(["verify", str(out)]) == ExitCode.DATA
        assert "a job is writing here (host" in capsys.readouterr().out
        part.write_bytes(whole)
        with pytest.raises(EnvironmentFault, match="another job is writing here"):
            RunWriter.reopen(out, FULL)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert main(["verify", str(out)]) == ExitCode.INCOMPLETE
    assert "--resume" in capsys.readouterr().out
    RunWriter.reopen(out, FULL)[0].close("incomplete")


# ---- leftovers ----------------------------------------------------------------------


def test_only_our_own_leftovers_are_swept(tmp_path: Path) -> None:
    out = make_run(tmp_path / "run", ROWS, status="incomplete")
    ours = [
        out / ".manifest.json.tmp-12",
        out / ".COMPLETE.tmp-12-00aa11bb",
        out / "parts" / ".images-0001-000001.npy.tmp-3",
        out / "parts" / ".tasks-0002-000011.npy.tmp-3-0123abcd",
    ]
    theirs = [
        out / "notes.tmp-draft",
        out / ".manifest.json.tmp-mine",
        out / "manifest.json.tmp-12",
        out / ".thesis.tex.tmp-12",
        out / "parts" / "images-000001.npy.tmp-3",
    ]
    for path in (*ours, *theirs):
        path.write_text("x")
    RunWriter.reopen(out, FULL)[0].close("incomplete")
    assert not [path for path in ours if path.exists()]
    assert all(path.exists() for path in theirs)


# ---- names that are not UTF-8 -------------------------------------------------------


def test_names_that_are_not_utf8_are_stored_so_that_every_reader_can_show_them(
    tmp_path: Path,
) -> None:
    out = tmp_path / os.fsdecode(b"caf\xe9 \xc3\xa9")
    full = manifest(ROWS)
    full["shards"][0]["path"] = os.fsdecode(b"in/s\xff.h5")
    full["settings"]["out"] = str(out)
    full["bad_shards"] = [{"path": os.fsdecode(b"\xfe.h5"), "reason": "half \ud800 a character"}]
    run = RunWriter.create(out, full)
    fill(run, full, range(18))
    run.close("incomplete", summary=True)
    run, done = RunWriter.reopen(out, full)
    assert len(done) == 18
    fill(run, full, range(18, ROWS))
    run.close("complete", summary=True)
    found = read_results(out)
    assert found.manifest["shards"][0]["path"] == r"in/s\xff.h5"
    assert found.manifest["settings"]["out"].endswith("caf\\xe9 \u00e9")
    assert json.loads((out / "summary.json").read_text())["run"].isprintable()
    assert RunWriter.finished(out, full) == "complete"
    export_run(found, "csv")
    export_run(found, "hdf5")
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    words = [sys.executable, "-m", "collage_mpi", "verify", out]
    told = subprocess.run(words, env=strict, capture_output=True, check=False)
    assert told.returncode == ExitCode.INCOMPLETE, told  # a shard could not be read
    assert rb"caf\udce9" in told.stdout

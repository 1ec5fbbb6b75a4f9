"""The status of a running job: its files, who judges whether it lives, what `top` shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results_harness import fill, manifest

from collage_mpi.cli import main
from collage_mpi.commands.look import beside_peers, drawn, life_line
from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.results import STATUS, RunWriter, verify_run
from collage_mpi.results.claim import LOOK_S, STILL_S, read_claims
from collage_mpi.results.reader import read_parts
from collage_mpi.results.status import (
    ALIVE,
    DEAD,
    ENDED,
    SILENT,
    UNKNOWN,
    StatusFiles,
    View,
    Watch,
    add_service_times,
    read_status,
)
from collage_mpi.rows import OUTCOME_CODE, TASK_ROW
from collage_mpi.system.table import to_text

FACTS = {"run_id": "r", "session": 1, "label": "collage, first", "total": 90, "before": 10}
NO_TASKS = np.empty(0, TASK_ROW)


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def a_rank(rank: int, service_ms: float | None = 100.0, **more: Any) -> dict[str, Any]:
    found = {"rank": rank, "host": f"node{rank}", "kinds": ["single"], "state": "ready", "tasks": 1}
    return {**found, "service_ms": service_ms, "answers": 20, **more}


def said(done: int, ranks: tuple[dict[str, Any], ...] = ()) -> dict[str, Any]:
    return {"state": "running", "done": done, "errors": 1, "by_collage": 2, "ranks": list(ranks)}


def written(out: Path, count: int) -> dict[str, Any]:
    """The status once the thread has written that many."""
    for _ in range(500):
        status = read_status(out)
        if status["count"] >= count:
            return status
        threading.Event().wait(0.01)
    raise AssertionError(f"{count} statuses were not written")


def test_a_status_begins_goes_on_and_ends(tmp_path: Path) -> None:
    clock = Hands()
    files = StatusFiles(tmp_path, FACTS, 5.0, lambda: None, clock)
    first = read_status(tmp_path)
    assert (first["state"], first["done"], first["count"]) == ("starting", 0, 1)
    assert (first["pid"], first["total"], first["before"]) == (os.getpid(), 90, 10)
    clock.now_s += 7.0  # networks load
    files.begin()
    files.offer(lambda: (said(0), NO_TASKS), now=True)
    written(tmp_path, 2)
    clock.now_s += 4.0
    files.offer(lambda: pytest.fail("not due"))
    clock.now_s += 1.0
    files.offer(lambda: (said(10), NO_TASKS))
    status = written(tmp_path, 3)
    assert (status["images_per_s"], status["images_per_s_lately"]) == (2.0, 2.0)
    assert status["left_s"] == 40.0
    clock.now_s += 5.0
    files.offer(lambda: (said(60), NO_TASKS))
    status = written(tmp_path, 4)
    assert (status["images_per_s"], status["images_per_s_lately"]) == (6.0, 10.0)
    assert (status["left_s"], status["elapsed_s"]) == (3.0, 17.0)
    clock.now_s += 5.0
    files.offer(lambda: (said(60), NO_TASKS))
    assert written(tmp_path, 5)["left_s"] is None  # nothing moves: no time can be told
    files.begin(60)  # the warm-up is over
    clock.now_s += 5.0
    files.offer(lambda: (said(90), NO_TASKS))
    assert written(tmp_path, 6)["images_per_s"] == 6.0
    files.end("complete")
    last = read_status(tmp_path)
    assert (last["state"], last["done"], last["count"]) == ("complete", 90, 7)


def test_ranks_of_other_teams_stand_behind_ones_own_to_the_end(tmp_path: Path) -> None:
    files = StatusFiles(tmp_path, FACTS, 5.0, lambda: None)
    files.include(lambda: [a_rank(5, 70.0)])
    files.offer(lambda: (said(3, (a_rank(1),)), NO_TASKS), now=True)
    status = written(tmp_path, 2)
    assert [(r["rank"], r["service_ms"]) for r in status["ranks"]] == [(1, None), (5, 70.0)]
    files.end("complete")
    assert [rank["rank"] for rank in read_status(tmp_path)["ranks"]] == [1, 5]


def test_a_status_that_cannot_be_written_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = StatusFiles(tmp_path / "gone", FACTS, 0.0, lambda: None)
    for _ in range(3):
        files.offer(lambda: (said(1), NO_TASKS))
    files.end("complete")
    assert caplog.text.count("status.json cannot be written") == 1


def test_a_defect_of_the_status_is_told_once_and_the_next_one_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> tuple[dict[str, Any], np.ndarray]:
        raise KeyError("no such rank")

    files = StatusFiles(tmp_path, FACTS, 0.0, lambda: None)
    files.offer(broken)  # in the loop
    files.offer(lambda: ({**said(1), "ranks": [{}]}, NO_TASKS))  # in the thread
    for _ in range(500):
        if caplog.text and files._waiting is None:
            break
        threading.Event().wait(0.01)
    files.offer(lambda: (said(7), NO_TASKS))
    assert written(tmp_path, 2)["done"] == 7
    files.offer(lambda: ({**said(8), "kinds": {1}}, NO_TASKS))
    files.end("complete")  # what cannot be said is not said
    assert read_status(tmp_path)["done"] == 7
    assert caplog.text.count("cannot be written: KeyError: 'no such rank'. The job goes on") == 1
    assert caplog.text.count("warning") == 1


def test_a_session_that_lost_its_claim_leaves_the_new_ones_status(tmp_path: Path) -> None:
    def lost() -> None:
        raise EnvironmentFault("another session has taken over")

    StatusFiles(tmp_path, {**FACTS, "session": 2}, 5.0, lambda: None)
    StatusFiles(tmp_path, FACTS, 5.0, lost).end("incomplete")
    assert (read_status(tmp_path)["session"], read_status(tmp_path)["state"]) == (2, "starting")
    assert {path.name for path in tmp_path.iterdir()} == {STATUS}


def test_the_writer_of_a_run_says_how_it_ended(tmp_path: Path) -> None:
    for rows, status in ((90, "complete"), (45, "incomplete")):
        full, out = manifest(90), tmp_path / status
        writer = RunWriter.create(out, full)
        files = writer.publish({"label": "l", "total": 90, "before": 0}, 5.0)
        fill(writer, full, range(rows))
        recent = writer.recent_tasks()
        assert len(recent) == rows + rows // 9
        assert (recent["outcome"] == OUTCOME_CODE["answered"]).all()
        snapshot = said(rows), recent
        files.offer(lambda found=snapshot: found, now=True)
        writer.close(status)
        last = read_status(out)
        assert (last["state"], last["done"], last["run_id"]) == (status, rows, "test-run")
        assert Watch(out).look().life == ENDED
        assert verify_run(out).status == status  # the files are the run's own


def test_an_end_that_could_not_be_written_is_no_complete_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    full, out = manifest(90), tmp_path / "run"
    writer = RunWriter.create(out, full)
    writer.publish({"label": "l", "total": 90, "before": 0}, 5.0)
    fill(writer, full, range(90))
    monkeypatch.setattr("collage_mpi.results.writer.write_manifest", full_disk)
    with pytest.raises(EnvironmentFault, match="No space"):
        writer.close("complete")
    assert read_status(out)["state"] == "incomplete"


def test_rows_handed_over_are_recent_too(tmp_path: Path) -> None:
    full = manifest(90)
    writer = RunWriter.create(tmp_path, full, rows_per_part=64)
    fill(writer, full, range(90))  # 100 tasks: a buffer of 64 and one of 36
    assert writer.recent_tasks()["task"].tolist() == list(range(100))
    writer.close("complete")


def test_rows_of_many_small_parts_are_recent_too(tmp_path: Path) -> None:
    """As a team hands them over, whenever its input pauses."""
    full = manifest(90)
    writer = RunWriter.create(tmp_path, full, rows_per_part=64)
    for first in range(0, 90, 9):
        fill(writer, full, range(first, first + 9))
        writer._tasks.hand_over()
    tens = [*range(6, 10), *[*range(10)] * 6]  # ten tasks a group; a buffer holds 64
    assert writer.recent_tasks()["task"].tolist() == tens
    writer.close("complete")


def test_a_run_that_was_none_leaves_no_status(tmp_path: Path) -> None:
    out = tmp_path / "run"
    writer = RunWriter.create(out, manifest(90))
    writer.publish({"label": "l", "total": 90, "before": 0}, 5.0)
    writer.discard()
    assert not out.exists()


def test_service_times_are_of_answers_alone() -> None:
    tasks = np.zeros(8, TASK_ROW)
    tasks["rank"] = [1, 1, 1, 1, 2, 2, 3, 1]
    tasks["done_ns"] = range(8)
    tasks["compute_ns"] = np.array([9, 1, 4, 2, 8, 0, 5, 100]) * 10**6
    tasks["outcome"][[5, 6, 7]] = [OUTCOME_CODE[n] for n in ("skipped", "lost", "failed")]
    ranks = [{"rank": number} for number in (1, 2, 3)]
    add_service_times(ranks, tasks, {})
    assert [(r["service_ms"], r["answers"]) for r in ranks] == [(2.0, 4), (8.0, 1), (None, 0)]


def test_a_rank_that_takes_smaller_batches_is_seen_to_be_slower() -> None:
    """The coordinator gives a slow rank less, so that its messages take as long as those of others.
    Images that were sent again have a task of their own in the message."""
    tasks = np.zeros(4, TASK_ROW)
    tasks["rank"], tasks["items"], tasks["done_ns"] = [1, 1, 2, 2], [48, 16, 16, 16], [1, 1, 1, 2]
    tasks["compute_ns"] = 65 * 10**6
    ranks = [{"rank": 1}, {"rank": 2}]
    add_service_times(ranks, tasks, {"single": 1.0})
    assert [(r["service_ms"], r["answers"]) for r in ranks] == [(65 / 64, 1), (65 / 16, 2)]


# ---- who lives --------------------------------------------------------------


def a_claim(out: Path, count: int, host: str = "elsewhere", process: object = None) -> None:
    who = {"host": host, "pid": 1, "process": process, "token": "t"}
    (out / "claim-1").write_bytes(b"%020d\n" % count + json.dumps(who).encode())


def test_a_job_lives_while_its_counter_moves(tmp_path: Path) -> None:
    StatusFiles(tmp_path, FACTS, 5.0, lambda: None)
    a_claim(tmp_path, 1)
    clock = Hands()
    watch = Watch(tmp_path, clock)
    first = watch.look()
    assert (first.life, first.age_s, first.old, first.lost) == (UNKNOWN, 0.0, False, False)
    for second in range(1, 31):
        clock.now_s += 1.0
        a_claim(tmp_path, second + 1)
        view = watch.look()
        assert view.life == ALIVE
        assert view.age_s == second  # the status itself stands still: rank 0's loop does
        assert view.old == (second > 16)
    assert "OLD: at least 30 s" in life_line(view)
    assert not view.lost


def test_a_job_whose_counter_stands_still_is_silent_then_lost(tmp_path: Path) -> None:
    StatusFiles(tmp_path, FACTS, 5.0, lambda: None)
    a_claim(tmp_path, 1)
    clock = Hands()
    watch = Watch(tmp_path, clock)
    watch.look()
    clock.now_s += LOOK_S - 0.1
    assert watch.look().life == UNKNOWN
    clock.now_s += 0.1
    view = watch.look()
    assert (view.life, view.old, view.lost) == (SILENT, True, False)
    assert "NO SIGN OF LIFE for at least 5 s" in life_line(view)
    assert "by the clock of" in life_line(view)
    clock.now_s += STILL_S - LOOK_S
    assert watch.look().lost
    a_claim(tmp_path, 2)  # it was suspended
    back = watch.look()
    assert (back.life, back.lost) == (ALIVE, False)


def test_a_killed_job_of_this_machine_is_known_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from collage_mpi.results.claim import Claim;"
        "Claim(Path(sys.argv[1])); import os; os.kill(os.getpid(), 9)"
    )
    StatusFiles(tmp_path, FACTS, 5.0, lambda: None)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "claim-1")], check=False)
    assert read_claims(tmp_path)
    view = Watch(tmp_path).look()
    assert (view.life, view.old, view.lost) == (DEAD, True, True)
    assert "KILLED while starting" in life_line(view, once=True)


def test_a_job_that_was_killed_after_its_last_row_has_ended(tmp_path: Path) -> None:
    """Between its marker and its last status."""
    full = manifest(90)
    out = tmp_path / "run"
    writer = RunWriter.create(out, full)
    writer.publish({"label": "l", "total": 90, "before": 0}, 5.0)
    fill(writer, full, range(90))
    killed = (out / STATUS).read_bytes()
    writer.close("complete")
    (out / STATUS).write_bytes(killed)
    view = Watch(out).look()
    assert (view.life, view.lost, view.status["state"]) == (ENDED, False, "complete")


def test_who_looks_once_is_told_that_nothing_was_watched(tmp_path: Path) -> None:
    StatusFiles(tmp_path, FACTS, 5.0, lambda: None)
    a_claim(tmp_path, 1)
    line = life_line(Watch(tmp_path).look(), once=True)
    assert "does not check" in line
    assert read_status(tmp_path)["written"] in line


# ---- top --------------------------------------------------------------------


def shown(ranks: tuple[dict[str, Any], ...], most: int = 9, **changes: Any) -> str:
    status = {
        **FACTS,
        **said(45, ranks),
        "host": "h",
        "pid": 7,
        "every_s": 5.0,
        "elapsed_s": 60.0,
        "written": "2026",
        "count": 3,
        "images_per_s": 1.5,
        "images_per_s_lately": 3.0,
        "left_s": 15.0,
        **changes,
    }
    return to_text(drawn(Path("runs/x"), View(status, ALIVE, 0.0, 1.0), most), width=80)


def test_what_top_shows() -> None:
    text = shown(
        (*(a_rank(n) for n in range(1, 9)), a_rank(9, 450.0), a_rank(10, 800.0, answers=2))
    )
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "45 of 90 images (50.0 %); 10 in earlier sessions; 1 error row" in text
    assert "3 images/s now, 1.5 on average, 15 s left, collage share 4.4 %" in text
    table = [line.split() for line in lines if line.split()[1:2] and line.split()[1][:4] == "node"]
    assert table[0][:4] == ["10", "node10", "single", "ready"]
    assert "SLOW" not in table[0]  # of two answers
    assert table[1][0] == "9"
    assert table[1][-2:] == ["4.5", "SLOW"]
    assert "10 ranks: 10 ready; 1 not shown" in text


def test_lost_ranks_come_first_with_the_reason_and_escapes_are_shown() -> None:
    lost = a_rank(7, None, state="lost", why="its process has ended", host="evil\x1b[2J")
    text = shown((*(a_rank(n) for n in range(1, 7)), lost), most=2)
    lines = text.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("rank"))
    assert lines[place + 1].startswith("7 ")
    assert "LOST" in lines[place + 1]
    assert "its process has ended" in lines[place + 1]
    assert "\x1b[2J" not in text
    assert "7 ranks: 6 ready, 1 lost; 5 not shown" in text


def test_peers_are_of_the_same_kinds() -> None:
    ranks = [a_rank(n, ms) for n, ms in ((1, 10.0), (2, 20.0), (3, 40.0), (4, 80.0))]
    alone = a_rank(5, 900.0, kinds=["collage"])
    found = beside_peers([*ranks, alone, a_rank(6, None)])
    assert found == {1: 10 / 40, 2: 20 / 40, 3: 40 / 20, 4: 80 / 20, 5: None, 6: None}
    pair = beside_peers([a_rank(1, 10.0), a_rank(2, 30.0)])
    assert pair == {1: 10 / 30, 2: 3.0}
    odd = beside_peers([a_rank(n, float(n)) for n in range(1, 6)])
    assert odd == {1: 1 / 3.5, 2: 2 / 3.5, 3: 3 / 3.0, 4: 4 / 2.5, 5: 5 / 2.5}


def test_top_of_runs_that_ended_and_of_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    full = manifest(90)
    writer = RunWriter.create(out, full)
    writer.publish({"label": "l", "total": 90, "before": 0}, 5.0)
    fill(writer, full, range(90))
    writer.close("complete")
    for once in ([], ["--once"]):
        assert main(["top", str(out), *once]) == 0
        assert "ended: complete" in capsys.readouterr().out
    (out / STATUS).unlink()
    assert main(["top", str(out)]) == 3
    assert "collage-mpi verify" in capsys.readouterr().err
    assert main(["top", str(tmp_path)]) == 3
    assert "no run here" in capsys.readouterr().err
    assert main(["top", str(out), "--ranks", "-1"]) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"count": "3"},
        {"total": None},
        {"state": "dancing"},
        {"ranks": [{"rank": 1}]},
        {"ranks": {}},
        {"ranks": [a_rank(1, "fast")]},  # type: ignore[arg-type]
        {"left_s": "soon"},
        {"version": 2},
    ],
)
def test_a_damaged_status_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    StatusFiles(tmp_path, FACTS, 5.0, lambda: None)
    good = read_status(tmp_path)
    (tmp_path / STATUS).write_text(json.dumps({**good, **change}))
    with pytest.raises(DataFault, match=r"status\.json"):
        read_status(tmp_path)
    for raw in (b"", b"[]", b"\xff", b"[" * 100_000):
        (tmp_path / STATUS).write_bytes(raw)
        with pytest.raises(DataFault):
            read_status(tmp_path)


def test_a_folder_that_the_system_does_not_look_into_is_told_of(tmp_path: Path) -> None:
    name = tmp_path / ("n" * 300)  # as a server of files that fails
    with pytest.raises(EnvironmentFault, match="cannot be read: File name too long"):
        read_status(name)
    with pytest.raises(EnvironmentFault, match="cannot be read: File name too long"):
        read_parts(name, manifest(10))

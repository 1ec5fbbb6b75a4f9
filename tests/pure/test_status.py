"""The status of a running job: its files, who judges whether it lives, what `top` shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from results_harness import fill, manifest

from collage_mpi.cli import main
from collage_mpi.commands.look import beside_peers, drawn, life_line
from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.ledger.owner import LOOK_S, SILENT_S
from collage_mpi.results import follow
from collage_mpi.results.parts import read_ledger
from collage_mpi.results.sole import SoleWriter
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
    find_writer,
    read_status,
    status_path,
)
from collage_mpi.rows import OUTCOME_CODE, TASK_ROW
from collage_mpi.system.table import to_text

FACTS = {
    "run_id": "r",
    "session": 1,
    "owner": "0" * 32,
    "label": "collage, first",
    "total": 90,
    "before": 10,
}
NO_TASKS = np.empty(0, TASK_ROW)


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder of a run, as far as its status needs it."""
    for name in ("status", "beats"):
        (tmp_path / name).mkdir()
    return tmp_path


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


def test_a_status_begins_goes_on_and_ends(out: Path) -> None:
    clock = Hands()
    files = StatusFiles(out, FACTS, 5.0, clock)
    first = read_status(out)
    assert (first["state"], first["done"], first["count"]) == ("starting", 10, 1)
    assert (first["pid"], first["total"], first["before"]) == (os.getpid(), 100, 10)
    clock.now_s += 7.0  # networks load
    files.begin()
    files.offer(lambda: (said(0), NO_TASKS), now=True)
    written(out, 2)
    clock.now_s += 4.0
    files.offer(lambda: pytest.fail("not due"))
    clock.now_s += 1.0
    files.offer(lambda: (said(10), NO_TASKS))
    status = written(out, 3)
    assert (status["images_per_s"], status["images_per_s_lately"]) == (2.0, 2.0)
    assert status["left_s"] == 40.0
    clock.now_s += 5.0
    files.offer(lambda: (said(60), NO_TASKS))
    status = written(out, 4)
    assert (status["images_per_s"], status["images_per_s_lately"]) == (6.0, 10.0)
    assert (status["left_s"], status["elapsed_s"]) == (3.0, 17.0)
    clock.now_s += 5.0
    files.offer(lambda: (said(60), NO_TASKS))
    assert written(out, 5)["left_s"] is None  # nothing moves: no time can be told
    files.begin(60)  # the warm-up is over
    clock.now_s += 5.0
    files.offer(lambda: (said(90), NO_TASKS))
    assert written(out, 6)["images_per_s"] == 6.0
    files.end("complete")
    last = read_status(out)
    assert (last["state"], last["done"], last["count"]) == ("complete", 100, 7)


def test_a_status_that_cannot_be_written_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = StatusFiles(tmp_path / "gone", FACTS, 0.0)
    for _ in range(3):
        files.offer(lambda: (said(1), NO_TASKS))
    files.end("complete")
    assert caplog.text.count("0001.json cannot be written") == 1


def test_a_defect_of_the_status_is_told_once_and_the_next_one_is_written(
    out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> tuple[dict[str, Any], np.ndarray]:
        raise KeyError("no such rank")

    files = StatusFiles(out, FACTS, 0.0)
    files.offer(broken)  # in the loop
    files.offer(lambda: ({**said(1), "ranks": [{}]}, NO_TASKS))  # in the thread
    for _ in range(500):
        if caplog.text and files._waiting is None:
            break
        threading.Event().wait(0.01)
    files.offer(lambda: (said(7), NO_TASKS))
    assert written(out, 2)["done"] == 17
    files.offer(lambda: ({**said(8), "kinds": {1}}, NO_TASKS))
    files.end("complete")  # what cannot be said is not said
    assert read_status(out)["done"] == 17
    assert caplog.text.count("cannot be written: KeyError: 'no such rank'. The job goes on") == 1
    assert caplog.text.count("warning") == 1


def test_rows_handed_over_are_recent_too(tmp_path: Path) -> None:
    full = manifest(90)
    writer = SoleWriter(tmp_path, full, rows_per_part=64)
    fill(writer, full, range(90))  # 100 tasks: a buffer of 64 and one of 36
    assert writer.recent_tasks()["task"].tolist() == list(range(100))
    writer.close("complete")


def test_rows_of_many_small_parts_are_recent_too(tmp_path: Path) -> None:
    """As they are near the end of a run, when parts are written soon."""
    full = manifest(90)
    writer = SoleWriter(tmp_path, full, rows_per_part=64)
    for first in range(0, 90, 9):
        fill(writer, full, range(first, first + 9))
        writer._tasks.hand_over()
    tens = [*range(6, 10), *[*range(10)] * 6]  # ten tasks a group; a buffer holds 64
    assert writer.recent_tasks()["task"].tolist() == tens
    writer.close("complete")


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


def a_beat(out: Path, count: int, owner: str = FACTS["owner"]) -> None:
    (out / "beats" / owner).write_bytes(b"%020d" % count)


def test_a_job_lives_while_its_counter_moves(out: Path) -> None:
    StatusFiles(out, FACTS, 5.0)
    a_beat(out, 1)
    clock = Hands()
    watch = Watch(out, clock)
    first = watch.look()
    assert (first.life, first.age_s, first.old, first.lost) == (UNKNOWN, 0.0, False, False)
    for second in range(1, 31):
        clock.now_s += 1.0
        a_beat(out, second + 1)
        view = watch.look()
        assert view.life == ALIVE
        assert view.age_s == second  # the status itself stands still: rank 0's loop does
        assert view.old == (second > 16)
    assert "OLD: at least 30 s" in life_line(view)
    assert not view.lost


def test_a_job_whose_counter_stands_still_is_silent_then_lost(out: Path) -> None:
    StatusFiles(out, FACTS, 5.0)
    a_beat(out, 1)
    clock = Hands()
    watch = Watch(out, clock)
    watch.look()
    clock.now_s += LOOK_S - 0.1
    assert watch.look().life == UNKNOWN
    clock.now_s += 0.1
    view = watch.look()
    assert (view.life, view.old, view.lost) == (SILENT, True, False)
    assert "NO SIGN OF LIFE for at least 5 s" in life_line(view)
    assert "by the clock of" in life_line(view)
    clock.now_s += SILENT_S - LOOK_S
    assert watch.look().lost
    a_beat(out, 2)  # it was suspended
    back = watch.look()
    assert (back.life, back.lost) == (ALIVE, False)


def test_a_killed_job_of_this_machine_is_known_at_once(out: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from test_status import FACTS, StatusFiles;"
        "StatusFiles(Path(sys.argv[1]), FACTS, 5.0); os.kill(os.getpid(), 9)"
    )
    paths = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-c", code, str(out)]
    subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": paths})
    view = Watch(out).look()
    assert (view.life, view.old, view.lost) == (DEAD, True, True)
    assert "KILLED while starting" in life_line(view, once=True)
    assert find_writer(out) is None


def a_run(out: Path, *counts: int) -> Path:
    """A run of a job for each of the counts, which does so many of the 90 images left."""
    for session, rows in enumerate(counts, 1):
        full, first = manifest(90), sum(counts[: session - 1])
        writer = SoleWriter(out, full)
        (out / "status").mkdir(exist_ok=True)
        facts = {"session": session, "owner": f"{session:032x}", "before": first}
        files = StatusFiles(out, {**FACTS, **facts, "total": 90 - first}, 5.0)
        fill(writer, full, range(first, first + rows))
        snapshot = said(rows, (a_rank(1),)), writer.recent_tasks()
        files.offer(lambda found=snapshot: found, now=True)
        writer.close("complete" if first + rows == 90 else "incomplete")
        files.end("complete" if first + rows == 90 else "incomplete")
    return out


def test_the_jobs_of_a_run_are_added_up(tmp_path: Path) -> None:
    out = a_run(tmp_path / "run", 27, 36, 27)
    status = read_status(out)
    assert (status["total"], status["done"], status["before"]) == (90, 90, 63)
    assert (status["state"], status["errors"], status["session"]) == ("complete", 3, 3)
    assert Watch(out).look().life == ENDED
    assert sum(len(batch["row"]) for batch in follow(out)) == 90
    for session in (2, 3):  # they live, and have a rank 1 each, of two worlds
        path = status_path(out, session)
        found = {**json.loads(path.read_bytes()), "state": "running"}
        path.write_text(json.dumps(found))
    watch = Watch(out, clock := Hands())
    assert watch.look().life == UNKNOWN
    clock.now_s += 1.0
    for session in (2, 3):
        a_beat(out, 1, f"{session:032x}")
    view = watch.look()
    assert (view.life, view.status["jobs"], view.status["before"]) == (ALIVE, 2, 27)
    assert "and 1 more job" in life_line(view)
    assert [line.split()[0] for line in text_of(view).splitlines()[-3:-1]] == ["2:1", "3:1"]


def test_a_job_that_was_killed_in_a_run_that_is_complete_is_no_end_of_it(tmp_path: Path) -> None:
    out = a_run(tmp_path / "run", 90)
    path = status_path(out, 1)
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "state": "running"}))
    watch = Watch(out, clock := Hands())
    watch.look()
    clock.now_s += LOOK_S
    view = watch.look()
    assert (view.life, view.lost, view.status["state"]) == (ENDED, False, "complete")


def test_while_ranks_start_a_job_gives_signs_of_life(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collage_mpi.results.status._BEAT_S", 0.0)
    files, watch = StatusFiles(out, FACTS, 5.0), Watch(out)
    assert any(watch.look().life == ALIVE for _ in range(1000))
    files.end("incomplete")


def test_a_run_is_followed_from_before_its_first_image(out: Path) -> None:
    files = StatusFiles(out, FACTS, 5.0)
    found = follow(out, every_s=0.001)
    files.end("incomplete")
    assert list(found) == []
    assert not (out / "run.1.json").exists()


def test_who_looks_once_is_told_that_nothing_was_watched(out: Path) -> None:
    StatusFiles(out, FACTS, 5.0)
    a_beat(out, 1)
    line = life_line(Watch(out).look(), once=True)
    assert "does not check" in line
    assert read_status(out)["written"] in line


# ---- top --------------------------------------------------------------------


def shown(ranks: tuple[dict[str, Any], ...], most: int = 9, **changes: Any) -> str:
    status = {
        **FACTS,
        **said(45, ranks),
        "host": "h",
        "pid": 7,
        "every_s": 5.0,
        "jobs": 1,
        "elapsed_s": 60.0,
        "written": "2026",
        "count": 3,
        "images_per_s": 1.5,
        "images_per_s_lately": 3.0,
        "left_s": 15.0,
        **changes,
    }
    return to_text(drawn(Path("runs/x"), View(status, ALIVE, 0.0, 1.0), most), width=80)


def text_of(view: View) -> str:
    return to_text(drawn(Path("runs/x"), view, 9), width=80)


def test_what_top_shows() -> None:
    text = shown(
        (*(a_rank(n) for n in range(1, 9)), a_rank(9, 450.0), a_rank(10, 800.0, answers=2))
    )
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "45 of 90 images (50.0 %); 10 of them by jobs that have ended; 1 error row" in text
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
    assert found == {0: 10 / 40, 1: 20 / 40, 2: 40 / 20, 3: 80 / 20, 4: None, 5: None}
    pair = beside_peers([a_rank(1, 10.0), a_rank(2, 30.0)])
    assert pair == {0: 10 / 30, 1: 3.0}
    odd = beside_peers([a_rank(n, float(n)) for n in range(1, 6)])
    assert odd == {0: 1 / 3.5, 1: 2 / 3.5, 2: 3 / 3.0, 3: 4 / 2.5, 4: 5 / 2.5}


def test_top_of_runs_that_ended_and_of_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = a_run(tmp_path / "run", 90)
    for once in ([], ["--once"]):
        assert main(["top", str(out), *once]) == 0
        assert "ended: complete" in capsys.readouterr().out
    status_path(out, 1).unlink()
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
        {"version": 1},
        {"owner": "somebody"},
    ],
)
def test_a_damaged_status_is_refused(out: Path, change: dict[str, Any]) -> None:
    StatusFiles(out, FACTS, 5.0)
    good = json.loads(status_path(out, 1).read_bytes())
    status_path(out, 1).write_text(json.dumps({**good, **change}))
    with pytest.raises(DataFault, match=r"0001\.json"):
        read_status(out)
    for raw in (b"", b"[]", b"\xff", b"[" * 100_000):
        status_path(out, 1).write_bytes(raw)
        with pytest.raises(DataFault):
            read_status(out)


def test_a_folder_that_the_system_does_not_look_into_is_told_of(tmp_path: Path) -> None:
    name = tmp_path / ("n" * 300)  # as a server of files that fails
    with pytest.raises(EnvironmentFault, match="cannot be read: File name too long"):
        read_status(name)
    with pytest.raises(EnvironmentFault, match="cannot be read: File name too long"):
        read_ledger(name)


def test_a_job_that_still_lists_its_input_lives_between_two_runs(out: Path, monkeypatch) -> None:
    due = SimpleNamespace(due=True, complete=False, status="incomplete")
    monkeypatch.setattr("collage_mpi.results.status.read_ledger", lambda _: due)
    (out / "run.1.json").touch()
    StatusFiles(out, FACTS, 5.0).end("incomplete")
    clock = Hands()
    watch = Watch(out, clock)
    for _ in range(3):
        view = watch.look()
        assert (view.life, view.lost) == (ALIVE, False)
        clock.now_s += SILENT_S
    assert find_writer(out) is not None
    due.due = False
    assert watch.look().life == ENDED
    due.due = True
    monkeypatch.setattr("collage_mpi.results.status.has_ended", lambda _: None)
    assert watch.look().life == ENDED, "of another host nobody knows"

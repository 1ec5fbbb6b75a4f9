"""The laws of the simulated jobs about columns: each slip in a run made by hand is told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from collage_mpi.rows import IMAGE_ROW, TASK_ROW
from tests.simulation import witness
from tests.simulation.figure_laws import figures, wrong_figures
from tests.simulation.inputs import answer, first_answers
from tests.simulation.kernel import Host, Process
from tests.simulation.laws import COLLAGE, Run, broken, forgotten, litter, unwritten
from tests.simulation.order_laws import wrong_order
from tests.simulation.row_laws import OUTCOMES, told_batch, wrong_columns, wrong_export, wrong_files
from tests.simulation.told_laws import Statuses, wrong_words

MS = 1_000_000


def made() -> Run:
    """Two images of the first shard, each by a task of its own, as one group."""
    images, tasks = np.zeros(2, IMAGE_ROW), np.zeros(2, TASK_ROW)
    for i in range(2):
        right = {
            "row": i,
            "cell": i,
            "predicted": answer(0, i),
            "label": answer(0, i),
            "rank": i + 1,
        }
        shared = {"attempt": 1, "session": 1, "compute_ns": (i + 2) * MS}
        image = {"answered": True, "has_label": True, "score": 1.0, "t0_ns": 5}
        image["latency_ns"] = 9 * MS
        task = {
            "task": i,
            "rank": i + 1,
            "items": 1,
            "resolved": 1,
            "sent_ns": 9,
            "done_ns": 9 * MS + 5,
        }
        for row, values in (
            (images[i], {**right, **shared, **image}),
            (tasks[i], {**shared, **task}),
        ):
            for name, value in values.items():
                row[name] = value
    world = [{"rank": rank, "kinds": ["single"], "host": "h0"} for rank in (1, 2)]
    rows = {"images": 2, "tasks": 2}
    final = {"world": world, "seconds": 1.0}
    session = {"session": 1, "status": "complete", "process": {"pid": 1}}
    sessions = [{**session, "rows": rows, "final": final}]
    manifest = {
        "status": "complete",
        "session": 1,
        "side": 2,
        "sessions": sessions,
        "thresholds": [],
        "shards": [{"path": "a.h5"}],
        "settings": dict.fromkeys(("agree", "deadline_ms"))
        | {"scheme": "collage", "between": "drain", "endgame": "off", "assign": "pull"}
        | {"straggler": "none", "slow_ranks": [], "reply_timeout_s": 2.0},
        "order": "file",
        "open_loop": False,
        "warmup_groups": 0,
        "run_id": "1",
        "rows": 2,
    }
    tables = {"images": images, "tasks": tasks}
    return Run(
        manifest,
        tables,
        [(Path("parts/images-0001-000001.parquet"), images, np.arange(len(images)))],
        marked=True,
    )


def test_a_marker_has_all_rows(tmp_path: Path) -> None:
    assert broken(tmp_path, made(), whole=True) == []
    run = made()
    run.manifest["rows"] = 3
    assert broken(tmp_path, run, whole=True) == ["a marker, and 2 of 3 rows"]


def by_first(*rows: int) -> Run:
    """The same run, of which these images have the first network's answer."""
    run = made()
    classes, scores = first_answers(0)
    for row in rows:
        image = run.images[row]
        image["source"], image["predicted"], image["score"] = COLLAGE, classes[row], scores[row]
    run.manifest["accept"] = f"confident {scores[list(rows)].min():.6f}"
    return run


def test_answers_are_those_of_the_network_that_the_row_names(tmp_path: Path) -> None:
    assert broken(tmp_path, by_first(1), whole=False) == []
    for column in ("predicted", "score"):
        run = by_first(1)
        run.images[1][column] += 0.5 if column == "score" else 1
        assert "another answer than the network's" in broken(tmp_path, run, whole=False)[0]
    run = by_first(1)
    run.images[1]["audited"], run.images[1]["other"] = 1, answer(0, 1) + 1
    assert "another answer of the other network" in broken(tmp_path, run, whole=False)[0]


def test_where_a_read_failed_only_a_collage_s_image_may_lack_its_label() -> None:
    for source, misread, faults in ((COLLAGE, True, 0), (COLLAGE, False, 1), (0, True, 1)):
        run = made()
        run.images["source"][0], run.images["has_label"][0], run.misread = source, False, misread
        assert sum("another label" in text for text in wrong_columns(run)) == faults


def test_no_unsure_answer_counts_but_after_the_deadline(tmp_path: Path) -> None:
    run = by_first(0, 1)
    run.manifest["accept"] = "confident 0.99"
    assert "an unsure answer counts" in broken(tmp_path, run, whole=False)[0]
    run.manifest["accept"] = "confident 0.99, else 9 ms"
    assert broken(tmp_path, run, whole=False) == []


@pytest.mark.parametrize(
    ("table", "column", "value", "said"),
    [
        ("images", "label", 9, "another label"),
        ("images", "has_label", False, "another label"),
        ("images", "session", 2, "rows of another"),
        ("images", "rank", 2, "an answer of no task"),
        ("images", "attempt", 2, "an answer of no task"),
        ("images", "compute_ns", 3 * MS, "an answer of no task"),
        ("images", "latency_ns", 7 * MS, "before its task was done"),
        ("images", "cell", 4, "a group has 4 cells"),
        ("images", "read_ns", -1, "read_ns below 0"),
        ("images", "encode_ns", -1, "encode_ns below 0"),
        ("images", "decode_ns", -1, "decode_ns below 0"),
        ("tasks", "sent_ns", -1, "sent before the session"),
        ("tasks", "done_ns", 8, "ended before it was sent"),
        ("tasks", "done_ns", MS // 2, "longer than it was out"),
        ("tasks", "compute_ns", 0, "answered in no time"),
        ("tasks", "items", 0, "without a unit of work"),
        ("tasks", "outcome", 2, "failed without a reason"),
        ("tasks", "rank", 3, r"tasks of ranks \[3\]"),
    ],
)
def test_a_wrong_column_is_told(table: str, column: str, value: int, said: str) -> None:
    run = made()
    assert wrong_columns(run) == []
    run.tables[table][column][0] = value
    with pytest.raises(AssertionError, match=said):
        assert not wrong_columns(run), "; ".join(wrong_columns(run))


def test_a_batch_that_is_chosen_is_told() -> None:
    entry: dict = {"final": {}}
    assert not list(told_batch(1, entry, ""))  # a session that did not come so far
    entry["final"]["batch"] = 4
    assert not list(told_batch(1, entry, "batch 4, chosen by --batch auto; why"))
    assert len(list(told_batch(1, entry, "batch 2, chosen by --batch auto; why"))) == 1


def test_a_task_without_a_row_is_told() -> None:
    run, own = made(), {"tasks sent": 2, "images resolved": 2}
    coordinator = SimpleNamespace(pid=1, own=own)
    assert list(unwritten(run, [coordinator])) == []
    own["tasks sent"] = 3
    assert list(unwritten(run, [coordinator])) == ["session 1 had 3 tasks sent and has rows of 2"]
    assert list(unwritten(run, [SimpleNamespace(pid=2, own=own)])) == []  # of another launch


def exported(run: Run, folder: Path) -> None:
    """The tables as `export` writes them, with numbers for names."""
    names = {"source": "single", "kind": "single", "outcome": "answered", "audited": ""}
    for table, rows in run.tables.items():
        columns = [name for name in rows.dtype.names if name != "reason"]
        lines = [[names.get(n, str(row[n].item())) for n in columns] for row in rows]
        lines = [[{"True": "1", "False": "0"}.get(cell, cell) for cell in line] for line in lines]
        text = "\n".join(",".join(line) for line in (columns, *lines))
        (folder / f"{table}.csv").write_text(f"{text}\n")


def test_another_export_is_told(tmp_path: Path) -> None:
    run = made()
    exported(run, tmp_path)
    assert list(wrong_export(run, tmp_path)) == []
    for table, column in (("images", "latency_ns"), ("images", "label"), ("tasks", "items")):
        run.tables[table][column][1] += 1
        assert f"{table}.csv has" in next(wrong_export(run, tmp_path)), column
        run.tables[table][column][1] -= 1
    (tmp_path / "tasks.csv").write_text("row\n0\n")
    assert next(wrong_export(run, tmp_path)) == "tasks.csv has 1 rows of 2"


def summary_of(run: Run) -> dict:
    """A summary that says each figure as it is."""
    found: dict = {"complete": True}
    for path, value in figures(run).items():
        *above, name = path.split("/")
        at = found
        for each in above:
            at = at.setdefault(each, {})
        at[name] = value
    return found


def test_each_wrong_figure_of_a_summary_is_told() -> None:
    run = made()
    summary = summary_of(run)
    assert list(wrong_figures(run, summary)) == []
    for path, value in figures(run).items():
        *above, name = path.split("/")
        at = summary
        for each in above:
            at = at[each]
        at[name] = "another"
        assert len(list(wrong_figures(run, summary))) == 1, path
        at[name] = value


@pytest.mark.parametrize(
    ("table", "column", "values", "said"),
    [
        ("images", "source", (8, 0), "that the scheme has not"),
        ("images", "source", (5, 0), "a retry of the first try"),
        ("images", "reason", (b"why", b""), "a reason without one"),
        ("images", "compute_ns", (90 * MS, 0), "quicker than its network"),
        ("images", "cell", (1, 1), "two images of one place"),
        ("images", "t0_ns", (4, 5), "at several times"),
        ("images", "row", (1, 0), "not in the order of files"),
        ("images", "warmup", (True, True), "more groups of warm-up"),
        ("images", "latency_ns", (10 * MS, 9 * MS), "at another time than it came"),
        ("tasks", "resolved", (2, 1), "resolved more than it has"),
        ("tasks", "kind", (1, 0), "a rank without that network"),
        ("tasks", "sent_ns", (2, 4), "before all ranks were idle"),
    ],
)
def test_a_row_against_the_order_of_work_is_told(
    table: str, column: str, values: tuple, said: str
) -> None:
    run = made()
    assert list(wrong_order(run)) == []
    run.tables[table][column] = values
    assert said in "; ".join(wrong_order(run))


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("summary", {"rows": {"found": 1}}, "summary.json says"),
        ("summary", {"complete": False}, "summary.json says"),
        ("summary", {"accuracy": {"overall": {"correct": 1}}}, "says 1 right answers; it is 2"),
        ("summary", {"price": {"late_answers": 1}}, "says 1 late answers; it is 0"),
        ("summary", {"price": {"skipped_tasks": 1}}, "says 1 skipped tasks; it is 0"),
        ("summary", {"price": {"wasted_s": 2.0}}, "2.0 s were wasted of 0.005"),
        ("status", {"state": "ending"}, "session 1 says ending"),
        ("status", {"done": 1}, "1 done of 2"),
        ("status", {"ranks": [{"rank": 1, "answers": 2, "tasks": 0}]}, "of 1 answers"),
        ("status", {"audited": 1}, "1 audited of 0"),
        ("status", {"by_collage": 1}, "1 by_collage of 0"),
    ],
)
def test_a_wrong_summary_or_status_is_told(tmp_path: Path, file: str, change: dict, said: str):
    ends = {f"{name}_tasks": 0 for name in OUTCOMES[1:]}
    said_so = summary_of(made())
    said_so["rows"] |= {"found": 2, "answered": 2, "errors": 0}
    said_so["accuracy"]["overall"] = {"correct": 2}
    said_so["price"] |= {"tasks": 2, "late_answers": 0, **ends}
    status = {"state": "complete", "session": 1, "done": 2, "audited": 0, "differing": 0}
    status["by_collage"] = 0
    right = {"summary": said_so, "status": {**status, "before": 0, "total": 2}}
    right["status"]["ranks"] = [{"rank": 1, "answers": 1, "tasks": 0}]
    places = {"summary": tmp_path / "summary.json", "status": tmp_path / "status/0001.json"}
    places["status"].parent.mkdir()
    for name, values in right.items():
        places[name].write_text(json.dumps(values))
    assert wrong_files(tmp_path, made(), [1], True) == []
    for name, value in change.items():
        was = right[file][name]
        right[file][name] = {**was, **value} if isinstance(value, dict) else value
    places[file].write_text(json.dumps(right[file]))
    assert said in "; ".join(wrong_files(tmp_path, made(), [1], True))


def calls(*asked: tuple[int, int]) -> list[witness.Call]:
    """Calls of the single network: rank, and row of the first shard."""
    ranks = {rank: Process(rank, Host("h0"), f"rank {rank}") for rank, _ in asked}
    return [witness.Call(ranks[rank], "single", 0, 1, (((0, row),),)) for rank, row in asked]


def test_what_the_networks_were_asked_is_held_against_the_rows() -> None:
    run, right = made(), calls((1, 0), (2, 1))
    assert list(witness.unheard(run, right)) == []
    assert list(witness.unlike_tasks(run, [1], right)) == []
    assert "a rank that was not asked" in next(witness.unheard(run, calls((1, 0), (1, 1))))
    assert list(witness.unlike_tasks(run, [1], calls((1, 0), (2, 1), (2, 0)))) == [
        "('rank 2', 'single') computed 2 images, of 1 in its tasks"
    ]
    assert list(witness.again(run, [(0, 1)], right)) == [
        "1 images were answered before, and were done again: (0, 1)"
    ]
    run.tables["tasks"]["outcome"][0] = 2
    assert "a task that was not answered, and nothing went wrong" in next(
        witness.troubled(run, [1])
    )
    assert "rank 1 is 1 on h0, not" in next(
        witness.other_processes(by_pid(run, 3), [each.process for each in calls((0, 0), (1, 0))])
    )


def by_pid(run: Run, pid: int) -> Run:
    run.manifest["sessions"][0]["final"]["world"] = [{"rank": 1, "pid": pid, "host": "h0"}]
    return run


def test_words_that_are_not_so_are_told() -> None:
    run, right = made(), "none: 2 of 2 images (100 %)\ncomplete: 2 of 2 images, 1 group\n"
    assert list(wrong_words(run, 1, right, 0)) == []
    assert len(list(wrong_words(run, 1, right.replace(": 2", ": 1"), 0))) == 2
    assert list(wrong_words(run, 1, "", 3)) == ["exit code 3 without a word"]
    run.manifest["sessions"][0]["final"]["lost"] = [{"rank": 2}]
    assert list(wrong_words(run, 1, right, 0)) == ["it does not tell that rank 2 is lost"]
    assert (
        list(wrong_words(run, 1, f"{right}rank 2 (single) is lost: its process has ended", 0)) == []
    )


def test_a_status_that_runs_back_or_is_late_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    statuses, place = Statuses(told.append), tmp_path / "status/0001.json"
    statuses.calm = True
    place.parent.mkdir()
    status = {"run_id": "1", "owner": "a", "count": 1, "done": 2, "total": 2, "errors": 0}
    status |= {"elapsed_s": 1.0, "every_s": 5.0, "state": "running"}
    last = {"count": 4, "state": "complete"}
    changes = ({}, {"count": 2}, {"count": 1}, {"count": 3}, last, last | {"owner": "b"})
    for at_s, change in zip((1, 2, 3, 30, 31, 32), changes, strict=True):
        place.write_text(json.dumps(status | change))
        if "owner" in change:
            (tmp_path / "COMPLETE.1").touch()
        statuses.written(place, at_s * 1000 * MS)
    assert told == [
        "status/0001.json: count was 2, and is 1",
        "status/0001.json was not written for 27000 ms",
        "status/0001.json: complete, and there is no marker",
        "status/0001.json is written by two jobs",
    ]


def test_what_a_later_session_forgets_is_told() -> None:
    before, after = (Run({"sessions": [{"session": 1, "status": "incomplete"}]}) for _ in range(2))
    after.manifest["sessions"].append({"session": 2, "status": "complete"})
    assert [*forgotten(before, after)] == []
    before.manifest["thresholds"] = [{"confidence": 0.9, "proved": 4, "drawn": 5}]
    assert [*forgotten(before, after)] == [
        "the manifest had [(0.9, 4, 5)] as thresholds, and has []"
    ]


def test_what_a_job_leaves_behind_is_told(tmp_path: Path) -> None:
    for name in ("parts/a.parquet", "leases/0.0", "run.1.json", "COMPLETE.1", "summary.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert litter(tmp_path) == []
    (tmp_path / "beats").mkdir()
    (tmp_path / "beats/a").touch()
    assert litter(tmp_path) == ["the job leaves beats/a"]

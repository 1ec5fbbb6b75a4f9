"""Each check of `verify` finds the one thing that is wrong with a run that is right otherwise."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results_harness import make_run

from collage_mpi.cli import main
from collage_mpi.results import Results, read_results, verify, verify_run
from collage_mpi.rows import OUTCOME_CODE, SOURCE_CODE

ERROR, SINGLE = SOURCE_CODE["error"], SOURCE_CODE["single"]
OF = "session 1: "


class Run:
    """A verified run of ten groups in memory, to be spoiled."""

    def __init__(self, results: Results) -> None:
        self.images, self.groups, self.tasks = (
            table.copy() for table in (results.images, results.groups, results.tasks)
        )
        self.manifest: dict[str, Any] = {**results.manifest}
        self.complete = True
        self._results = results

    def verify(self) -> tuple[str, list[str]]:
        spoiled = replace(
            self._results, manifest=self.manifest, images=self.images, groups=self.groups,
            tasks=self.tasks, complete=self.complete,
        )  # fmt: skip
        report = verify_run(self._results.path, spoiled)
        return report.status, report.problems

    def early(self) -> int:
        """An image of group 0 that a single rank answered, and not as the last of its group."""
        ends = self.images["t0_ns"] + self.images["latency_ns"]
        mine = (self.images["group"] == 0) & (self.images["source"] == SINGLE)
        return int(np.flatnonzero(mine & (ends < ends[self.images["group"] == 0].max()))[0])

    def task_of(self, image: int) -> int:
        """The task that resolved an image of a single rank."""
        row = self.images[image]
        same = (self.tasks["group"] == row["group"]) & (self.tasks["rank"] == row["rank"])
        return int(np.flatnonzero(same & (self.tasks["resolved"] > 0))[0])

    def drop(self, image: int) -> None:
        """Take a row away as if it had never been written."""
        self.tasks["resolved"][self.task_of(image)] -= 1
        self.images = np.delete(self.images, image)
        self.said("images", -1)

    def said(self, table: str, more: int) -> None:
        """The session says that it wrote so many more rows."""
        (entry,) = self.manifest["sessions"]
        rows = {**entry["rows"], table: entry["rows"][table] + more}
        self.manifest["sessions"] = [{**entry, "rows": rows}]


def image(**columns: Any) -> Callable[[Run], None]:
    def spoil(run: Run) -> None:
        early = run.early()
        for column, value in columns.items():
            run.images[column][early] = value

    return spoil


def a_row_more(run: Run) -> None:
    first, second = run.manifest["shards"]
    run.manifest["shards"] = [first, {**second, "count": second["count"] + 1}]


def without_a_reason(run: Run) -> None:
    early, task = run.early(), run.task_of(run.early())
    run.images["source"][early], run.images["answered"][early] = ERROR, False
    run.tasks["resolved"][task] = 0


def says(**changes: Any) -> Callable[[Run], None]:
    return lambda run: run.manifest.update(changes)


def fewer_ranks(run: Run) -> None:
    run.manifest["world"] = [m for m in run.manifest["world"] if m["rank"] != 3]


def more_than_it_holds(run: Run) -> None:
    one = run.task_of(run.early())
    of_rank = (run.tasks["rank"] == run.tasks["rank"][one]) & (run.tasks["resolved"] == 1)
    other = int(np.flatnonzero(of_rank)[1])
    run.tasks["resolved"][[one, other]] = 2, 0


def twice(table: str, column: str) -> Callable[[Run], None]:
    return lambda run: getattr(run, table)[column].__setitem__(1, getattr(run, table)[column][0])


def of_task(column: str, value: Any) -> Callable[[Run], None]:
    return lambda run: run.tasks[column].__setitem__(run.task_of(run.early()), value)


def another(run: Run) -> None:
    run.images[["shard", "row"]][1] = run.images[["shard", "row"]][0]


def incomplete(run: Run) -> None:
    run.drop(run.early())
    run.complete = False


NOT_CLOSED = "all rows are there, but no job has marked the run as complete"
SPOILERS: list[tuple[Callable[[Run], None], str, list[str]]] = [
    (another, "damaged", ["1 double, the first is shard 0 row 0"]),
    (image(row=4000), "damaged", ["1 row outside the input, the first is shard 0 row 4000"]),
    (image(shard=2), "damaged", ["1 row outside the input, the first is shard 2 row"]),
    (a_row_more, "damaged", ["manifest expects 90 rows, its shards and limit give 91"]),
    (
        says(limit=80, order="shuffle:1", input_digest="0"),
        "damaged",
        ["manifest expects 90 rows, its shards and limit give 80", "input_digest differs"],
    ),
    (says(input_digest="0"), "damaged", ["as many rows as images, but other images"]),
    (says(limit=90, order="shuffle:1"), "damaged", ["manifest lacks input_digest"]),
    (
        says(rows=89, limit=89, order="shuffle:1", input_digest="0"),
        "damaged",
        ["90 rows for 89 images"],
    ),
    (
        image(source=ERROR, reason=b"boom"),
        "damaged",
        ["1 image rows answered and error at once, or neither"],
    ),
    (without_a_reason, "damaged", ["1 error rows without a reason"]),
    (image(latency_ns=-1), "damaged", ["1 image rows with a negative latency"]),
    (image(predicted=10), "damaged", ["1 image rows with predicted outside the 10 classes"]),
    (image(predicted=-1), "damaged", ["1 image rows with predicted outside the 10 classes"]),
    (image(label=10), "damaged", ["1 image rows with label outside the 10 classes"]),
    (image(label=-1), "damaged", ["1 image rows with label outside the 10 classes"]),
    (
        says(audit={"share": 1.0, "seed": 0}),
        "damaged",
        ["accepted answers without their audit"],
    ),
    (image(audited=1, other=10), "damaged", ["1 image rows with other outside the 10 classes"]),
    (fewer_ranks, "damaged", ["image rows answered by an unknown rank"]),
    (lambda run: run.said("tasks", 1), "damaged", ["100 rows of tasks found, 101 were written"]),
    (twice("tasks", "task"), "damaged", [OF + "1 task rows are doubles"]),
    (more_than_it_holds, "damaged", [OF + "tasks resolved more than they hold"]),
    (
        of_task("outcome", OUTCOME_CODE["failed"]),
        "damaged",
        [OF + "tasks resolved images unanswered"],
    ),
    (of_task("resolved", 0), "damaged", [OF + "rank 7 answered 7 images, its tasks resolved 6"]),
    (incomplete, "incomplete", ["incomplete: 89 of 90 rows"]),
    (
        lambda run: run.drop(run.early()),
        "damaged",
        ["incomplete: 89 of 90 rows", "marked COMPLETE, but images have no row"],
    ),
    (
        says(bad_shards=[{"path": "c.h5", "reason": "c.h5: torn"}]),
        "incomplete",
        [
            "all rows of the shards that could be read",
            "no image of this shard has a row: c.h5: torn",
        ],
    ),
    (lambda run: setattr(run, "complete", False), "incomplete", [NOT_CLOSED]),
    (says(status="incomplete"), "incomplete", [NOT_CLOSED]),
    (
        says(status="complete_with_errors"),
        "damaged",
        ["the ledger says complete_with_errors, 0 error rows found"],
    ),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return read_results(make_run(tmp_path_factory.mktemp("verify") / "run", 90))


def test_what_is_not_spoiled_is_proven(results: Results) -> None:
    assert Run(results).verify() == ("complete", [])


@pytest.mark.parametrize(("spoil", "status", "wanted"), SPOILERS)
def test_one_spoiler_one_finding(results: Results, spoil, status: str, wanted: list[str]) -> None:
    run = Run(results)
    spoil(run)
    found, problems = run.verify()
    assert found == status
    assert len(problems) == len(wanted), problems
    for problem, words in zip(problems, wanted, strict=True):
        assert all(part in problem for part in words.split(OF)), problem
        assert (OF in words) <= (OF in problem)


def test_every_sentence_of_verify_has_its_spoiler(results: Results) -> None:
    """A check that is added needs one; those of vectors are tested beside them."""
    said = []
    for spoil, _, _ in SPOILERS:
        run = Run(results)
        spoil(run)
        said += run.verify()[1]
    sentences = 0
    for function in ast.parse(inspect.getsource(verify)).body:
        if not isinstance(function, ast.FunctionDef) or function.name == "_check_vectors":
            continue
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            name = ast.unparse(call.func)
            if name != "_count" and not name.endswith("problems.append"):
                continue
            parts = {
                node.value
                for node in ast.walk(call)
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
            parts = {part for part in parts if " " in part and len(part) > 4}
            sentences += bool(parts)
            if not parts:
                continue  # it passes on what another says
            assert any(all(p in one for p in parts) for one in said), f"nothing says {parts}"
    assert sentences > 20


def test_an_error_row_that_was_done_again_is_of_its_session_still(results: Results) -> None:
    run = Run(results)
    mended = run.images[:1].copy()
    mended["source"], mended["answered"], mended["reason"] = ERROR, False, b"boom"
    run.said("images", 1)
    report = verify_run(
        results.path,
        replace(results, manifest=run.manifest, others=mended),
    )
    assert (report.status, report.problems) == ("complete", [])


def test_parts_that_exceed_a_latency_are_a_note(results: Results) -> None:
    run = Run(results)
    run.images["compute_ns"][run.early()] += 1 << 40
    report = verify_run(results.path, replace(results, images=run.images))
    assert report.ok
    assert report.notes == ["1 image whose parts exceed their latency (wait < 0)"]


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda run: None, 0),
        (lambda run: (run / "COMPLETE.1").unlink(), 6),
        (lambda run: (run / "COMPLETE.1").write_text("{}"), 4),
        (lambda run: next((run / "parts").glob("images-*")).unlink(), 4),
    ],
    ids=["nothing", "incomplete", "mark", "vectors"],
)
def test_the_command_calls_nothing_proven_that_is_not(tmp_path: Path, capsys, spoil, code) -> None:
    pytest.importorskip("pyarrow")
    run = make_run(tmp_path / "run", 27, extras={"top_k": 2, "save": "none"})
    spoil(run)
    assert main(["verify", "--json", str(run)]) == code
    (told,) = json.loads(capsys.readouterr().out)
    assert told["ok"] == (code == 0)
    assert bool(told["problems"]) == (code != 0)
    if not [*(run / "parts").glob("images-*")]:
        assert "images-0001-000001.parquet: missing" in told["problems"][0]

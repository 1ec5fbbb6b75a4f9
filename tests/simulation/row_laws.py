"""What columns of rows, the summary and the status must say of each other: read from the disk, as
`laws` reads it. Whole classes of slips are seen here that no count of rows shows.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.simulation.figure_laws import wrong_figures
from tests.simulation.inputs import answer, number_of

if TYPE_CHECKING:
    from tests.simulation.laws import Run

OUTCOMES = ("answered", "skipped", "failed", "lost", "unfinished")
COLLAGE, ERROR, KEPT, ANSWERED, FAILED = 1, 6, 10, 0, 2  # sources, outcomes
OF_FIRST = (1, 8, 10)  # sources
AUDITED = 1  # by both networks
SINGLE, BATCHES = 0, (0, 3)  # kinds; those whose tasks may be batches of images
SLACK_NS = 1_000_000  # clocks of hosts run at other rates
DRIFT = 1e-3
OF_ANSWER = ("predicted", "score", "rank", "compute_ns", "decode_ns", "encode_ns")
OTHERS = ("other", "other_score", "other2", "other2_score", "other3", "other3_score")
MAY_LACK = ("label", *OTHERS, "runtime")  # an empty text where there is none


def wrong_columns(run: Run) -> list[str]:
    """Columns that contradict the images, or the rows of other tables."""
    if not len(run.images):
        return []
    faults = [*_labels(run), *_places(run)]
    closed = {each["session"]: each for each in run.manifest["sessions"] if each["rows"]}
    for number, entry in closed.items():
        of = {name: rows[rows["session"] == number] for name, rows in run.tables.items()}
        if all(map(len, of.values())):
            told = (*_times(of["tasks"]), *_answers(of), *_ranks(of, entry))
            told += tuple(_cells(of["images"], run.manifest["side"] ** 2))
            faults += [f"session {number}: {text}" for text in told]
    return faults


def _labels(run: Run) -> Iterator[str]:
    """Of a shard or an image that became unreadable an image may be answered, by an answer that was
    kept too, whose label was not read yet. A collage's answer for an image that another rank could
    not read has no label either."""
    names = [Path(shard["path"]).name for shard in run.manifest["shards"]]
    worn = {*run.images["shard"][run.images["source"] == ERROR].tolist()}
    for row in run.images[run.images["answered"]]:
        right = answer(number_of(names[int(row["shard"])]), int(row["row"]))
        unread = int(row["shard"]) in worn or row["source"] == KEPT
        unread |= run.misread and row["source"] in OF_FIRST
        lacks = run.labelled and not unread
        if not run.labelled or int(row["label"]) != right if row["has_label"] else lacks:
            yield f"another label than the image's: {row}"


def _places(run: Run) -> Iterator[str]:
    """A row lies in a part of its session."""
    for path, rows, _ in run.files:
        if path.parent.name == "parts" and (rows["session"] != int(path.stem.split("-")[1])).any():
            yield f"{path.name} has rows of another session"


def told_batch(session: int, entry: dict[str, Any], text: str) -> Iterator[str]:
    """The batch that a job says to have chosen, in what rank 0 has told, is the one it has.

    Args:
        entry: of the job of rank 0.
        text: what it has told.
    """
    batch = entry["final"].get("batch")
    if batch is not None and f"batch {batch}, chosen by --batch auto" not in text:
        yield f"session {session} has batch {batch}, and says nothing of it, or another one"


def _price(run: Run, summary: dict[str, Any]) -> Iterator[str]:
    """The summary counts the answers that are right, and the tasks by how they ended."""
    rows, tasks = run.lasting, run.tables["tasks"]
    tasks = tasks[~tasks["warmup"]]
    single = tasks["kind"] == SINGLE
    inputs = np.where(np.isin(tasks["kind"], BATCHES), tasks["items"].astype(np.int64), 1)
    ends = {name: int(inputs[tasks["outcome"] == code].sum()) for code, name in enumerate(OUTCOMES)}
    unused = np.where(single, inputs - tasks["resolved"], inputs * (tasks["resolved"] == 0))
    late = unused[tasks["outcome"] == ANSWERED]
    right = rows["answered"] & rows["has_label"] & (rows["predicted"] == rows["label"])
    price = summary["price"]
    for what, said, found in (
        ("right answers", summary["accuracy"]["overall"]["correct"], int(right.sum())),
        ("tasks", price["tasks"], int(inputs.sum())),
        ("late answers", price["late_answers"], int(late.sum())),
        *((f"{name} tasks", price[f"{name}_tasks"], ends[name]) for name in OUTCOMES[1:]),
    ):
        if said != found:
            yield f"summary.json says {said} {what}; it is {found}"
    if not 0 <= price["wasted_s"] <= price["work_s"]:
        yield f"summary.json says {price['wasted_s']} s were wasted of {price['work_s']}"


def wrong_export(run: Run, folder: Path) -> Iterator[str]:
    """The tables that were exported have the rows of the run, in input order, column by column."""
    sources = {0: "single", 1: "collage", 2: "replica", 3: "hedge", 5: "retry", 6: "error"}
    sources |= {7: "endgame", 8: "stage1", 10: "kept"}
    names = {"source": sources, "outcome": dict(enumerate(OUTCOMES))}
    names["kind"] = {0: "single", 1: "collage", 3: "stage1"}
    for name, rows in run.tables.items():
        keys = ("shard", "row") if name == "images" else ("session", "task")
        rows = run.lasting if name == "images" else rows
        rows = rows[np.lexsort([rows[key] for key in keys[::-1]])]
        with open(folder / f"{name}.csv", newline="") as file:
            found = list(csv.DictReader(file))
        if len(found) != len(rows):
            yield f"{name}.csv has {len(found)} rows of {len(rows)}"
            continue
        if name != "images":
            found.sort(key=lambda line: tuple(int(line[key]) for key in keys))
        for line, row in zip(found, rows, strict=True):
            for column in rows.dtype.names:
                value, said = row[column].item(), line.get(column)
                unset = name == "images" and column in OF_ANSWER and not row["answered"]
                if column == "audited":
                    value, said = value > 0, str(said != "")
                elif said is None or unset or (said == "" and column in MAY_LACK):
                    continue
                value = names.get(column, {}).get(value, value)
                value = value.decode() if isinstance(value, bytes) else value
                same = said == str(value)
                if not same and not isinstance(value, str):
                    same = abs(float(said) - value) < 1e-6
                if not same:
                    yield f"{name}.csv has {said} as {column}: {row}"
                    break
            if "wait_ns" in line and row["answered"]:
                spent = ("read_ns", "compute_ns", *(("encode_ns",) * (row["source"] in (1, 10))))
                wait_ns = row["latency_ns"] - sum(int(row[each]) for each in spent)
                if int(line["wait_ns"]) != wait_ns:
                    yield f"images.csv has a wait of {line['wait_ns']}, not {wait_ns}: {row}"


def wrong_predictions(run: Run, path: Path) -> Iterator[str]:
    """One line an image, in input order: its class and score, or why it has none."""
    rows = run.lasting[np.lexsort((run.lasting["row"], run.lasting["shard"]))]
    with open(path, newline="") as file:
        lines = list(csv.DictReader(file))
    if len(lines) != len(rows):
        yield f"predictions.csv has {len(lines)} lines of {len(rows)}"
        return
    for line, row in zip(lines, rows, strict=True):
        score = float(line["score"] or 0)
        right = line["class"] == (str(row["predicted"]) if row["answered"] else "")
        right &= not row["answered"] or abs(score - row["score"]) < 1e-6
        if not right or bool(line["error"]) == row["answered"]:
            yield f"predictions.csv says {line}: {row}"
            return


def facts(run: Run, out: Path, export: Path, *, exact: bool) -> dict[str, Any]:
    """What a complete run says that depends neither on time nor on what went wrong. Its last status
    may lack: a session may be killed when the run has been marked.

    `exact`: its answers are all of one network.
    """
    names = [Path(shard["path"]).name for shard in run.manifest["shards"]]
    kept = ("row", "has_label", "label", *(("predicted", "score") if exact else ()))
    rows = [(names[int(row["shard"])], *(row[n].item() for n in kept)) for row in run.lasting]
    summary = json.loads((out / "summary.json").read_bytes())
    with open(export / "images.csv", newline="") as file:
        columns = ("row", "id", "label", *(("predicted",) if exact else ()))
        lines = [(names[int(row["shard"])], row) for row in csv.DictReader(file)]
        exported = [(name, *(row.get(column) for column in columns)) for name, row in lines]
    found = {
        "rows": sorted(rows),
        "exported": sorted(exported),
        "counted": {k: summary["rows"][k] for k in ("found", "answered", "errors")},
        "classes": run.manifest["class_names"],
    }
    first = np.sort(run.images, order=["session", "group", "cell"])
    alone = run.alone and run.manifest["settings"]["agree"] is None
    found["order"] = [(names[row["shard"]], int(row["row"])) for row in first] if alone else None
    came = (first["t0_ns"] - first["t0_ns"].min()).tolist()
    found["arrivals"] = came if alone and run.manifest["open_loop"] else None
    if exact:
        found["right"] = summary["accuracy"]["overall"]
    return found


def _times(tasks: np.ndarray) -> Iterator[str]:
    """What a rank took lies between sending a task and its answer."""
    span = tasks["done_ns"] - tasks["sent_ns"]
    took = tasks["compute_ns"]
    answered = tasks["outcome"] == ANSWERED
    for what, wrong in (
        ("ended before it was sent", span < 0),
        ("sent before the session", tasks["sent_ns"] < 0),
        ("took longer than it was out", answered & (took > span * (1 + DRIFT) + SLACK_NS)),
        ("answered in no time", answered & (tasks["compute_ns"] <= 0)),
        ("without a unit of work", tasks["items"] < 1),
        ("failed without a reason", (tasks["outcome"] == FAILED) & (tasks["reason"] == b"")),
    ):
        if wrong.any():
            yield f"a task {what}: {tasks[wrong][0]}"


def _answers(of: dict[str, np.ndarray]) -> Iterator[str]:
    """An answer is that of a task of its rank, and has what this took."""
    tasks, images = of["tasks"], of["images"]
    names = ("rank", "attempt", "compute_ns")
    known: dict[tuple[int, ...], int] = {}  # the first of those that took the same
    for task in tasks[tasks["outcome"] == ANSWERED]:
        key, done = tuple(task[n].item() for n in names), int(task["done_ns"])
        known[key] = min(done, known.get(key, done))
    for row in images[images["answered"]]:
        done_ns = known.get(tuple(row[n].item() for n in names))
        if done_ns is None:
            yield f"an answer of no task: {row}"
        elif done_ns > row["t0_ns"] + row["latency_ns"]:
            yield f"an answer before its task was done, at {done_ns}: {row}"
    parts = ("read_ns", "encode_ns", "decode_ns", "compute_ns", "latency_ns")
    for name in parts:
        if (images[name] < 0).any():
            yield f"{name} below 0"


def _cells(images: np.ndarray, cells: int) -> Iterator[str]:
    for row in images[images["cell"] >= cells]:
        yield f"a group has {cells} cells: {row}"


def _ranks(of: dict[str, np.ndarray], entry: dict[str, Any]) -> Iterator[str]:
    """Tasks go to ranks that hold networks, and no rank has two kinds of it at once."""
    world = (entry.get("final") or {}).get("world") or []
    workers = {member["rank"] for member in world if member["kinds"]}
    strange = set(of["tasks"]["rank"].tolist()) - workers
    if world and strange:
        yield f"tasks of ranks {sorted(strange)}, which hold no network"


def wrong_files(out: Path, run: Run, mine: Collection[int], undisturbed: bool) -> list[str]:
    """What the summary and the statuses of a launch say of a run that has ended with its marker.

    Args:
        mine: the sessions of the launch.
        undisturbed: nothing kept it from writing its last status.
    """
    faults: list[str] = []
    rows = run.lasting
    errors = int((rows["source"] == ERROR).sum())
    right = {"found": len(rows), "answered": len(rows) - errors, "errors": errors}
    if not (out / "summary.json").exists() and not undisturbed:
        return []  # a session ended before it, and the next had nothing to do
    summary = json.loads((out / "summary.json").read_bytes())
    said = {key: summary["rows"][key] for key in right}
    if said != right or summary["complete"] is not True:
        faults.append(f"summary.json says {said}, complete {summary['complete']}; it is {right}")
    faults += [*_price(run, summary), *wrong_figures(run, summary)]
    if not undisturbed:
        return faults
    for number in mine:
        faults += _wrong_status(json.loads((out / f"status/{number:04d}.json").read_bytes()), run)
    return faults


def _wrong_status(status: dict[str, Any], run: Run) -> Iterator[str]:
    number = status["session"]
    if status["state"] != run.manifest["status"]:
        yield f"the status of session {number} says {status['state']}"
    mine = run.images[run.images["session"] == number]
    both = mine[(mine["audited"] == AUDITED) & np.isin(mine["source"], OF_FIRST)]
    counts = {"done": len(mine), "audited": len(both)}
    counts["by_collage"] = int((mine["source"] == COLLAGE).sum())
    counts["differing"] = int((both["predicted"] != both["other"]).sum())
    ended = run.tables["tasks"][run.tables["tasks"]["session"] == number]
    for member in status["ranks"]:
        of_rank = ended[(ended["rank"] == member["rank"]) & (ended["outcome"] == ANSWERED)]
        late = ended[(ended["rank"] == member["rank"]) & (ended["outcome"] > FAILED + 1)]
        answers = len(np.unique(of_rank[["kind", "sent_ns", "done_ns"]]))  # messages
        if member["answers"] > answers or member["tasks"] > len(late):  # it tells of the latest
            yield f"the status of session {number} says {member}, of {answers} answers"
    for name, count in counts.items():
        said = status.get(name, 0)  # a job that could not begin tells none
        if said != count if run.alone else said < count:
            yield f"the status of session {number} says {said} {name} of {count}"

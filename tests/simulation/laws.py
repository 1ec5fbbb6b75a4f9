"""What must be true of a run, whatever went wrong: read from the disk, not by the package."""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.simulation.inputs import CHOOSING, answer, first_answers, number_of, rows_of
from tests.simulation.kernel import Process
from tests.simulation.ledger_laws import rows_in, runs_in, sessions_in
from tests.simulation.order_laws import wrong_order
from tests.simulation.row_laws import wrong_columns

CODES = {  # what the codes of columns stand for, in their order
    "runtime": [
        "",
        "own",
        "torch float32",
        "torch float16",
        "torch bfloat16",
        "compile float32",
        "compile float16",
        "compile bfloat16",
        "openvino float32",
        "openvino float16",
        "openvino bfloat16",
        "onnx float32",
        "onnx float16",
        "onnx bfloat16",
        "openvino int8",
        "onnx int8",
    ],
    "source": [
        "single",
        "collage",
        "replica",
        "hedge",
        "parity",
        "retry",
        "error",
        "endgame",
        "stage1",
        "coded",
        "kept",
        "stage2",
        "stage3",
    ],
    "audited": ["", "done", "failed"],
    "kind": ["single", "collage", "parity", "stage1", "coded", "stage2", "stage3"],
    "outcome": ["answered", "skipped", "failed", "lost", "unfinished"],
}
SEAL = struct.Struct("<8sII")
COMPLETE = ("complete", "complete_with_errors")
COLLAGE, ERROR, STAGE1, KEPT = 1, 6, 8, 10  # sources
TABLES = ("images", "tasks")
_READ = {"position": "u8", "shard": "u4", "row": "u8"}
_READ |= {"source": "u1", "session": "u2"}  # columns, by the laws
_READ |= {"warmup": "?", "outcome": "u1", "resolved": "u4", "kind": "u1", "items": "u4"}
_READ |= {"answered": "?", "has_label": "?", "label": "i8", "predicted": "i8"}
_READ |= {"audited": "u1", "other": "i8", "score": "f4", "position": "i8"}
_READ |= {"t0_ns": "i8", "latency_ns": "i8", "sent_ns": "i8", "done_ns": "i8", "rank": "i4"}
NO_ROWS = np.dtype([*_READ.items()])  # of a table without a part
LASTING = r"(parts|rows|index|jobs|leases|status|thresholds)/|summary\.json$|report\.html$"
LASTING += r"|((run|networks)\.\d+\.json|(news|COMPLETE)\.\d+)$"
HISTORY = {"sessions": ("session", "owner"), "thresholds": ("confidence", "proved", "drawn")}
MOST_OPEN = 16  # files of a process at once
_WORD = (1 << 64) - 1

Json = dict[str, Any]


@dataclass
class Run:
    """What a run's folder holds.

    Attributes:
        tables: name -> (n,) all rows that count.
        files: of each part of images that counts: session, number, rows.
        marked: whether the marker is there.
        labelled: whether its images have labels.
        misread: whether a read may have failed for a moment.
    """

    manifest: Json
    tables: dict[str, np.ndarray] = field(default_factory=dict)
    files: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    marked: bool = False
    labelled: bool = True
    misread: bool = False

    @property
    def images(self) -> np.ndarray:
        return self.tables["images"]

    @property
    def lasting(self) -> np.ndarray:
        """The image rows without those of errors after which a later run has another."""
        rows = self.images
        if not len(rows) or not (rows["source"] == ERROR).any():
            return rows
        last: dict[tuple[int, int], int] = {}
        for key, position in zip(keys_of(rows), rows["position"].tolist(), strict=True):
            last[key] = max(last.get(key, 0), position)
        newest = np.array([last[key] for key in keys_of(rows)])
        found: np.ndarray = rows[(rows["source"] != ERROR) | (rows["position"] == newest)]
        return found

    def sessions_of(self, ranks: Sequence[Process]) -> dict[int, Json]:
        """Number -> entry, of the jobs of a launch: each of its teams has one."""
        pids = {process.pid for process in ranks}
        entries = self.manifest["sessions"]
        return {each["session"]: each for each in entries if each["process"]["pid"] in pids}

    @property
    def alone(self) -> bool:
        """Whether one job alone worked on the run so far."""
        return len(self.manifest["sessions"]) == 1

    @property
    def complete(self) -> bool:
        return self.marked


def keys_of(rows: np.ndarray) -> list[tuple[int, int]]:
    """Shard and row of each."""
    return list(zip(rows["shard"].tolist(), rows["row"].tolist(), strict=True))


def run_in(out: Path, *, labelled: bool = True, misread: bool = False) -> Run | None:
    """The run of a folder; None where there is none."""
    runs = runs_in(out)
    if not runs:
        return None
    manifest: Json = {}
    for each in runs:
        manifest |= each["settings"]
    thresholds = sorted(out.glob("thresholds/[0-9]*.json"), key=lambda path: int(path.stem))
    manifest["sessions"] = sessions_in(out)
    manifest["thresholds"] = [json.loads(path.read_bytes()) for path in thresholds]
    marked = (out / f"COMPLETE.{runs[-1]['number']}").exists()
    run = Run(manifest, marked=marked, labelled=labelled, misread=misread)
    counted: dict[str, list[int]] = {}
    dropped = {at for each in runs for span in each.get("dropped", ()) for at in range(*span)}
    for position, file in (item for each in runs for item in rows_in(out, each).items()):
        if position not in dropped:
            counted.setdefault(file, []).append(position)
    for table in TABLES:
        found = []
        for path in sorted((out / "parts").glob(f"{table}-*.parquet")):
            _, session, number = path.stem.split("-")
            counts = table != "images" or path.name in counted
            rows = _part(path) if counts else None
            if rows is not None and table == "images":
                run.files.append((int(session), int(number), rows))
                rows = rows[np.isin(rows["position"], counted[path.name])]
            if rows is not None:
                found.append(rows)
        run.tables[table] = np.concatenate(found) if found else np.zeros(0, NO_ROWS)
    errors = bool((run.lasting["source"] == ERROR).any())
    manifest["status"] = COMPLETE[errors] if marked else "incomplete"
    return run


def _part(path: Path) -> np.ndarray | None:
    """The rows of a part; None where it was damaged on purpose."""
    raw = path.read_bytes()
    end = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")  # where the footer begins
    if end < SEAL.size:
        return None
    pages, footer = raw[: end - SEAL.size], raw[end:]
    if SEAL.unpack(raw[len(pages) : end])[1:] != (zlib.crc32(pages), zlib.crc32(footer)):
        return None
    return _rows(pq.read_table(pa.py_buffer(raw)))


def _rows(table: pa.Table) -> np.ndarray:
    """Columns of rows, with codes in place of texts, and 0 for what is null."""
    found = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        texts = column.to_pylist()
        if name in CODES:
            found[name] = np.array([CODES[name].index(text) for text in texts], np.uint8)
        elif name == "reason":
            found[name] = np.array([text.encode() for text in texts], "S96")
        elif not pa.types.is_nested(column.type) and not pa.types.is_dictionary(column.type):
            kind = column.type.to_pandas_dtype()
            found[name] = np.array([value or 0 for value in texts], kind)
    rows = np.zeros(len(table), [(name, values.dtype) for name, values in found.items()])
    for name, values in found.items():
        rows[name] = values
    return rows


def broken(out: Path, run: Run | None, *, whole: bool) -> list[str]:
    """Which laws what is on the disk breaks.

    Args:
        run: that in `out`, as `run_in` gave it.
        whole: no part was taken away.
    """
    if run is None:
        return ["a marker, and no run"] if [*out.glob("COMPLETE.*")] else []
    keys, faults = keys_of(run.lasting), _wrong_answers(run)
    if len(set(keys)) < len(keys):
        double = next(key for key in keys if keys.count(key) > 1)
        faults.append(f"{len(keys) - len(set(keys))} doubled rows, of image {double} for one")
    known = {entry["session"] for entry in run.manifest["sessions"]}
    if {*run.images["session"].tolist()} - known:
        faults.append(f"rows of other sessions than {sorted(known)}")
    if run.marked and len(set(keys)) != run.manifest["rows"]:
        faults.append(f"a marker, and {len(set(keys))} of {run.manifest['rows']} rows")
    if whole:
        faults += _sessions(run) or [*wrong_columns(run), *wrong_order(run)]
    faults += [*_thresholds(run), *wrong_lease_files(out, run, whole=whole)]
    if run.manifest.get("extras"):
        faults += _vectors(out, run)
    if run.complete and (run.manifest.get("audit") or {}).get("share"):
        faults += _audits(run)
    return faults


def wrong_lease_files(out: Path, run: Run, *, whole: bool) -> Iterator[str]:
    """Other programs read rows/: no image twice, and in a complete run each one as it lasts."""
    found: list[tuple[int, int]] = []
    for path in sorted(out.glob("rows/[0-9]*.parquet")):
        rows = _part(path)
        if rows is None:
            yield f"rows/{path.name} is damaged"
            return
        found += zip(keys_of(rows), rows["answered"].tolist(), strict=True)
    if len({key for key, _ in found}) < len(found):
        yield f"{len(found) - len({key for key, _ in found})} images twice in rows/"
    lasting = [*zip(keys_of(run.lasting), run.lasting["answered"].tolist(), strict=True)]
    if run.marked and whole and (out / "rows").exists() and sorted(found) != sorted(lasting):
        yield f"a marker, and {len(found)} rows in rows/, where {len(lasting)} last"


def _wrong_answers(run: Run) -> list[str]:
    """An answer is that of the network whose it is said to be, its score too."""
    names = [Path(shard["path"]).name for shard in run.manifest["shards"]]
    numbers = list(map(number_of, names))
    of_first = {number: first_answers(number) for number in numbers}
    stages = run.manifest["settings"].get("first")
    for row in run.images:
        shard, number = int(row["shard"]), int(row["row"])
        if number >= rows_of(names[shard]):
            return [f"a row of no image: {row}"]
        if row["answered"] == (row["source"] == ERROR):
            return [f"answered and an error, or neither: {row}"]
        classes, scores = of_first[numbers[shard]]
        sure = 2 * scores[number] - 1 if stages else scores[number]  # of a stage the margin
        said = [(answer(numbers[shard], number), 1.0), (classes[number], sure)]
        if row["source"] in (COLLAGE, STAGE1, KEPT):
            said.reverse()
        right, score = said[0]
        if row["answered"] and (row["predicted"] != right or abs(row["score"] - score) > 1e-6):
            return [f"another answer than the network's, {right} by {score:.6f}: {row}"]
        if row["audited"] == 1 and row["other"] != said[1][0]:
            return [f"another answer of the other network, which says {said[1][0]}: {row}"]
    return []


def _thresholds(run: Run) -> list[str]:
    """Of a first network only those answers count that are sure enough, and the answers that chose
    a threshold prove it."""
    manifest, rows = run.manifest, run.images
    chosen = [each["confidence"] or math.inf for each in manifest.get("thresholds") or ()]
    fixed = re.match(r"confident ([\d.]+)(?:, else (\d+) ms)?", manifest.get("accept") or "")
    agree = manifest["settings"].get("agree")
    if agree is None:
        chosen = [float(fixed[1])] if fixed else [0.0]
    counted = rows[np.isin(rows["source"], (COLLAGE, STAGE1))]
    if fixed and fixed[2]:  # after that time any answer counts
        counted = counted[counted["latency_ns"] < int(fixed[2]) * 1_000_000]
    unsure = counted[counted["score"] < min(chosen, default=math.inf) - 1e-6]
    if len(unsure):
        return [f"an unsure answer counts: {unsure[0]}, with thresholds {chosen}"]
    if agree is None or not chosen or chosen[0] == math.inf or not run.alone:
        return []
    held, names = manifest["thresholds"][0], [Path(s["path"]).name for s in manifest["shards"]]
    images = manifest["settings"]["images"]
    both = np.sort(
        rows[(rows["audited"] == 1) & (rows["position"] < held["drawn"])], order="position"
    )
    audits = int((both["position"] >= held["proved"]).sum())
    wanted = math.ceil(max(0.001 * images, min(0.01 * images, 300)))
    if audits < min(wanted, images - held["proved"]) and len(both) == held["drawn"]:
        return [f"{audits} audits, where {wanted} are due: {held}"]
    if len(both) < held["drawn"]:  # rows of a session that was killed; its threshold stays
        return []
    proof = both[both["position"] < held["proved"]][CHOOSING:]
    scores = [first_answers(number_of(names[s]))[1][r] for s, r in keys_of(proof)]
    differs = (proof["predicted"] != proof["other"]) & (np.array(scores) >= chosen[0])
    most = math.floor((1 - agree) * images + 1e-9) + 1
    highest = _money(differs.tolist(), images - CHOOSING, most)
    if highest < 20 * (1 - 1e-9):
        return [
            f"{differs.sum()} of {len(proof)} differ: agree {agree} is not shown by {chosen[0]}"
        ]
    return []


def _money(differs: list[bool], images: int, least: int) -> float:
    """The most that four bettors held who bet against "`least` or more of the images differ"."""
    money = {0.0: 0.4, 0.25: 0.2, 0.5: 0.2, 0.75: 0.2}
    seen, highest = 0, 1.0
    for drawn, other in enumerate(differs):
        m = (least - seen) / (images - drawn)
        if m >= 1:
            return math.inf
        money = {f: each * (f if other else (1 - f * m) / (1 - m)) for f, each in money.items()}
        seen += other
        highest = max(highest, sum(money.values()))
    return highest


def _sessions(run: Run) -> list[str]:
    """The tables of sessions that closed agree."""
    faults = []
    numbers = [entry["session"] for entry in run.manifest["sessions"]]
    if numbers != sorted({*numbers}):
        faults.append(f"the sessions are {numbers}")
    for entry in run.manifest["sessions"]:
        number, said = entry["session"], entry["rows"]
        if said is None:
            continue
        of = {name: rows[rows["session"] == number] for name, rows in run.tables.items()}
        found = {name: len(rows) for name, rows in of.items()}
        if found != said:
            faults.append(f"session {number} has {found} rows and said {said}")
            continue
        if not all(found.values()):
            continue
        if len(np.unique(of["tasks"]["task"])) < found["tasks"]:
            faults.append(f"session {number}: two tasks of one number")
        answered = of["images"][of["images"]["answered"]]
        by_task: Counter[int] = Counter()
        for task in of["tasks"]:
            by_task[int(task["rank"])] += int(task["resolved"])
        by_image = Counter(answered["rank"].tolist())  # other jobs' rows of some may count instead
        if +by_task != by_image if run.alone else by_image - by_task:
            faults.append(f"session {number}: ranks resolved {+by_task} of {len(answered)} images")
    return faults


def unwritten(run: Run, ranks: Sequence[Process]) -> Iterator[str]:
    """Of the coordinators of a launch, whether each task that was sent has its row, and each image
    that was resolved: those for which another job's row counts have none."""
    for number, entry in run.sessions_of(ranks).items():
        own = next(p.own for p in ranks if p.pid == entry["process"]["pid"])
        for table, what in (("tasks", "tasks sent"), ("images", "images resolved")):
            said, count = (entry["rows"] or {}).get(table), own.get(what)
            if said is None or count is None:
                continue
            if said != count if table == "tasks" or run.alone else said > count:
                yield f"session {number} had {count} {what} and has rows of {said}"


def forgotten(before: Run, run: Run) -> Iterator[str]:
    """A later session adds to what the manifest says of earlier ones."""
    for name, keys in HISTORY.items():
        was, now = (
            [tuple(entry.get(key) for key in keys) for entry in each.manifest.get(name) or ()]
            for each in (before, run)
        )
        if now[: len(was)] != was:
            yield f"the manifest had {was} as {name}, and has {now}"


def litter(out: Path) -> list[str]:
    """What a job leaves in its folder though it has ended in its own way."""
    names = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    found = [name for name in names if not re.match(LASTING, name)]
    return [f"the job leaves {', '.join(sorted(found)[:4])}"] if found else []


def ended(out: Path, run: Run, ranks: Sequence[Process]) -> Iterator[str]:
    """The status of a job that has ended by itself, on a disk that takes all."""
    for number in run.sessions_of(ranks):
        state = json.loads((out / f"status/{number:04d}.json").read_bytes())["state"]
        if state.startswith("complete") and not run.complete:
            yield f"the status of session {number} says {state} of an incomplete run"


def _vectors(out: Path, run: Run) -> list[str]:
    """One vector an answered image, in its row."""
    top_k = run.manifest["extras"]["top_k"]
    for session, number, rows in run.files:
        path = out / "parts" / f"images-{session:04d}-{number:06d}.parquet"
        table = pq.read_table(path).to_pydict()
        for at, row in enumerate(rows):  # a null network gives the rest to the class before
            kept = [table[name][at] for name in ("scores", "top_scores") if name in table]
            if any((values is not None) != row["answered"] for values in kept):
                return [f"{path.name} has vectors without an answer, or the other way round"]
            if not row["answered"]:
                continue
            best, score = int(row["predicted"]), float(row["score"])
            if run.manifest["settings"].get("first") and row["source"] in (STAGE1, KEPT):
                score = (1 + score) / 2
            right = np.zeros(10)
            right[best - 1], right[best] = 1 - score, score
            if "scores" in table:
                given = table["scores"][at]
            else:
                given, right = table["top_scores"][at], np.sort(right)[::-1][:top_k]
            if not np.allclose(given, right, atol=1e-6):
                return [f"the scores are {given}, where {right} are right: {row}"]
            if top_k and table["top_classes"][at][0] != best:
                return [f"the best classes are {table['top_classes'][at]}: {row}"]
    return []


def _audits(run: Run) -> list[str]:
    """In a complete cascade those accepted answers have an audit that are drawn for it. Images that
    choose the threshold of `agree` have one too, wherever they are in the order."""
    agree = run.manifest["settings"].get("agree") is not None
    audit, shards = run.manifest["audit"], run.manifest["shards"]
    texts = (f"{audit['seed']}:{shard['fingerprint']}".encode() for shard in shards)
    words = [int.from_bytes(blake2b(text, digest_size=8).digest(), "little") for text in texts]
    for row in run.images[np.isin(run.images["source"], (COLLAGE, STAGE1))]:
        word = _mixed(words[int(row["shard"])] ^ _mixed(int(row["row"])))
        drawn, audited = word / 2**64 < audit["share"], bool(row["audited"])
        if drawn > audited or (audited > drawn and not agree):
            return [f"drawn and not audited, or the other way round: {row}"]
    return []


def _mixed(word: int) -> int:
    """The end of SplitMix64."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        word = (word ^ (word >> shift)) * factor & _WORD
    return word ^ (word >> 31)


def untrue(
    code: int | None, run: Run | None, expected: int, excused: set[int], unseen: bool = False
) -> list[str]:
    """What an exit code says that is not so.

    Args:
        excused: codes that what went wrong explains.
        unseen: the session's host may not have seen what another one had done.
    """
    errors = 0 if run is None else int((run.lasting["source"] == ERROR).sum())
    rows = 0 if run is None else len(run.lasting)
    complete = run is not None and run.complete
    how = f"exit code {code}, marker {complete}, {rows} of {expected} rows, {errors} errors"
    status = None if run is None else run.manifest["status"]
    if code in (0, 5):
        right = complete and rows == expected and status == COMPLETE[code == 5]
        return [] if right and bool(errors) == (code == 5) else [f"{how}, status {status}"]
    if code == 6 and complete and rows < expected:
        return []  # the others can be read by now: it says so
    done = complete or (rows == expected and code not in excused)
    if code == 6 and done and not unseen:
        return [how]
    return [] if code in excused else [f"{how}, and nothing that explains it"]


def careless(process: Process) -> list[str]:
    """What a process that has ended in its own way did with files."""
    faults = []
    if process.code in (0, 5) and process.left_open:
        faults.append(f"{process.name} left open: {', '.join(process.left_open[:4])}")
    if process.most_open > MOST_OPEN:
        faults.append(f"{process.name} had {process.most_open} files open at once")
    return faults

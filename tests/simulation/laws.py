"""What must be true of a run, whatever went wrong: read from the disk, not by the package."""

from __future__ import annotations

import json
import math
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from tests.simulation.inputs import answer, first_answers, number_of, rows_of
from tests.simulation.kernel import Process
from tests.simulation.order_laws import wrong_order
from tests.simulation.row_laws import wrong_columns

TRAILER = struct.Struct("<8sQI")
COMPLETE = ("complete", "complete_with_errors")
COLLAGE, ERROR, BACKUP, KEPT = 1, 6, 8, 10  # sources
TABLES = ("images", "tasks")
_READ = {"shard": "u4", "row": "u8", "source": "u1", "session": "u2"}  # columns, by the laws
_READ |= {"warmup": "?", "outcome": "u1", "resolved": "u4", "kind": "u1", "items": "u4"}
_READ |= {"answered": "?", "has_label": "?", "label": "i8", "predicted": "i8"}
_READ |= {"audited": "u1", "other": "i8", "score": "f4"}
_READ |= {"t0_ns": "i8", "latency_ns": "i8", "sent_ns": "i8", "done_ns": "i8", "rank": "i4"}
NO_ROWS = np.dtype([*_READ.items()])  # of a table without a part
LASTING = r"(parts|vectors|index)/|(manifest|summary|status)\.json$|COMPLETE$|report\.html$"
HISTORY = {"sessions": ("session", "status"), "thresholds": ("session", "since_ns", "confidence")}
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
    """

    manifest: Json
    tables: dict[str, np.ndarray] = field(default_factory=dict)
    files: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    marked: bool = False
    labelled: bool = True

    @property
    def images(self) -> np.ndarray:
        return self.tables["images"]

    @property
    def lasting(self) -> np.ndarray:
        """The image rows without those of errors after which a later session wrote another."""
        rows = self.images
        if not len(rows) or not (rows["source"] == ERROR).any():
            return rows
        last = dict(zip(keys_of(rows), rows["session"].tolist(), strict=True))
        for key, session in zip(keys_of(rows), rows["session"].tolist(), strict=True):
            last[key] = max(last[key], session)
        newest = np.array([last[key] for key in keys_of(rows)])
        found: np.ndarray = rows[(rows["source"] != ERROR) | (rows["session"] == newest)]
        return found

    @property
    def complete(self) -> bool:
        return self.marked and self.manifest["status"] in COMPLETE


def keys_of(rows: np.ndarray) -> list[tuple[int, int]]:
    """Shard and row of each."""
    return list(zip(rows["shard"].tolist(), rows["row"].tolist(), strict=True))


def run_in(out: Path, *, labelled: bool = True) -> Run | None:
    """The run of a folder; None where there is none."""
    try:
        manifest = json.loads((out / "manifest.json").read_bytes())
    except FileNotFoundError:
        return None
    run = Run(manifest, marked=(out / "COMPLETE").exists(), labelled=labelled)
    for table in TABLES:
        found = []
        for path in sorted((out / "parts").glob(f"{table}-*.npy")):
            _, session, number = path.stem.split("-")
            rows = _part(path) if _counts(manifest, table, int(session), int(number)) else None
            if rows is not None:
                found.append(rows)
                if table == "images":
                    run.files.append((int(session), int(number), rows))
        run.tables[table] = np.concatenate(found) if found else np.zeros(0, NO_ROWS)
    return run


def teams_of(run: Run) -> int:
    return run.manifest.get("teams") or 1


def _counts(manifest: Json, table: str, session: int, number: int) -> bool:
    first = manifest["session"]
    ranges = manifest["accepted"].get(str(session), {}).get(table, ())
    own = first <= session < first + (manifest.get("teams") or 1)
    return own or any(a <= number <= b for a, b in ranges)


def _part(path: Path) -> np.ndarray | None:
    """The rows of a part; None where it was damaged on purpose."""
    raw = path.read_bytes()
    _, length, crc = TRAILER.unpack(raw[-TRAILER.size :])
    if length != len(raw) - TRAILER.size or zlib.crc32(raw[: -TRAILER.size]) != crc:
        return None
    return np.lib.format.read_array(_Bytes(raw), allow_pickle=False)


class _Bytes:
    """What numpy reads an array from, without what stands behind it."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    def read(self, count: int = -1) -> bytes:
        end = len(self._raw) if count < 0 else self._at + count
        found = self._raw[self._at : end]
        self._at = end
        return found


def broken(out: Path, run: Run | None, expected: int | None, *, whole: bool) -> list[str]:
    """Which laws what is on the disk breaks.

    Args:
        run: that in `out`, as `run_in` gave it.
        expected: images of the run; None where a marker may be wrong.
        whole: no part was taken away.
    """
    if run is None:
        return ["a marker, and no manifest"] if (out / "COMPLETE").exists() else []
    keys, faults = keys_of(run.lasting), _wrong_answers(run)
    if len(set(keys)) < len(keys):
        double = next(key for key in keys if keys.count(key) > 1)
        faults.append(f"{len(keys) - len(set(keys))} doubled rows, of image {double} for one")
    known = {entry["session"] for entry in run.manifest["sessions"]}
    known |= {*range(run.manifest["session"], run.manifest["session"] + teams_of(run))}
    if {*run.images["session"].tolist()} - known:
        faults.append(f"rows of other sessions than {sorted(known)}")
    if run.marked and expected is not None and len(set(keys)) != expected:
        faults.append(f"a marker, and {len(set(keys))} of {expected} rows")
    if whole:
        faults += _sessions(run) or [*wrong_columns(run), *wrong_order(run)]
    faults += _thresholds(run)
    if run.manifest.get("extras"):
        faults += _vectors(out, run)
    if run.complete and (run.manifest.get("audit") or {}).get("share"):
        faults += _audits(run)
    return faults


def _wrong_answers(run: Run) -> list[str]:
    """An answer is that of the network whose it is said to be, its score too."""
    names = [Path(shard["path"]).name for shard in run.manifest["shards"]]
    numbers = list(map(number_of, names))
    of_first = {number: first_answers(number) for number in numbers}
    for row in run.images:
        shard, number = int(row["shard"]), int(row["row"])
        if number >= rows_of(names[shard]):
            return [f"a row of no image: {row}"]
        if row["answered"] == (row["source"] == ERROR):
            return [f"answered and an error, or neither: {row}"]
        classes, scores = of_first[numbers[shard]]
        said = [(answer(numbers[shard], number), 1.0), (classes[number], scores[number])]
        if row["source"] in (COLLAGE, BACKUP, KEPT):
            said.reverse()
        right, score = said[0]
        if row["answered"] and (row["predicted"] != right or abs(row["score"] - score) > 1e-6):
            return [f"another answer than the network's, {right} by {score:.6f}: {row}"]
        if row["audited"] == 1 and row["other"] != said[1][0]:
            return [f"another answer of the other network, which says {said[1][0]}: {row}"]
    return []


def _thresholds(run: Run) -> list[str]:
    """Of a first network only those answers count that are sure enough, and a threshold is chosen
    by a bound that holds for the images that it was chosen by."""
    manifest, rows = run.manifest, run.images
    chosen = [each["confidence"] or math.inf for each in manifest.get("thresholds") or ()]
    fixed = re.match(r"confident ([\d.]+)(?:, else (\d+) ms)?", manifest.get("accept") or "")
    agree = manifest["settings"].get("agree")
    if agree is None:
        chosen = [float(fixed[1])] if fixed else [0.0]
    counted = rows[np.isin(rows["source"], (COLLAGE, BACKUP))]
    if fixed and fixed[2]:  # after that time any answer counts
        counted = counted[counted["latency_ns"] < int(fixed[2]) * 1_000_000]
    unsure = counted[counted["score"] < min(chosen, default=math.inf) - 1e-6]
    if len(unsure):
        return [f"an unsure answer counts, with thresholds {chosen}: {unsure[0]}"]
    if chosen != sorted(chosen):
        return [f"a threshold is lowered: {chosen}"]
    if agree is None or not chosen or chosen[0] == math.inf or (manifest.get("teams") or 1) > 1:
        return []
    first = manifest["thresholds"][0]
    both = rows[rows["audited"] == 1]
    ended_ns = both["t0_ns"] + both["latency_ns"]
    now = both["session"] == first["session"]
    both = both[(both["session"] < first["session"]) | (now & (ended_ns <= first["since_ns"]))]
    names = [Path(shard["path"]).name for shard in manifest["shards"]]
    scores = [first_answers(number_of(names[s]))[1][r] for s, r in keys_of(both)]
    differs = (both["predicted"] != both["other"]) & (np.array(scores) >= chosen[0])
    most, cells = 1 - agree, manifest["settings"]["side"] ** 2
    size = math.ceil(round(9 / most / cells, 6)) * cells  # images that choose
    audits = max(0, len(both) - size)  # of other images that ended before; who they are is not said
    n, wrong = len(both) - audits, int(differs.sum()) - audits
    if n < 9 / most:  # rows of a session that was killed are asked for again; its threshold stays
        return []
    chance = sum(
        math.comb(n, k) * most**k * (1 - most) ** (n - k) for k in range(max(0, wrong) + 1)
    )
    if chance > 0.1:  # 0.05, and an image or two may have both answers only after it was chosen
        return [f"{wrong} of {n} differ: agree {agree} is not shown by {chosen[0]}"]
    return []


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
        if +by_task != Counter(answered["rank"].tolist()):
            faults.append(f"session {number}: ranks resolved {+by_task} of {len(answered)} images")
    return faults


def unwritten(run: Run | None, table: str, sent: list[int | None]) -> list[str]:
    """Of the last session, team by team, whether each task that was sent has its row, or each image
    that was resolved.

    `sent`: by rank, as many as its scheduler sent, or resolved; None of one without a scheduler.
    """
    if run is None:
        return []
    rows = {entry["session"]: entry["rows"] for entry in run.manifest["sessions"]}
    faults = []
    for team, count in enumerate(sent[:: len(sent) // (run.manifest.get("teams") or 1)]):
        said = rows.get(run.manifest["session"] + team)
        if count is not None and said is not None and said[table] != count:
            faults.append(f"team {team} had {count} {table} and has rows of {said[table]}")
    return faults


def too_early(out: Path, name: str) -> Iterator[str]:
    """What must be on the disk when a file gets its name."""
    part = re.fullmatch(r"parts/images-(\d+)-(\d+)\.npy", name)
    if name != "COMPLETE" and not part:
        return
    manifest = json.loads((out / "manifest.json").read_bytes())
    if part is None:
        if not (out / "summary.json").exists():
            yield "a run is marked that has no summary"
        return
    vectors = out / f"vectors/vectors-{part[1]}-{part[2]}.parquet"
    if manifest.get("extras") and not vectors.exists():
        yield f"{name} is there before its vectors"
    if not manifest.get("networks"):
        yield f"{name} is there, and the manifest does not say of which networks"


def session_in(out: Path) -> int:
    """The number of the present session."""
    number: int = json.loads((out / "manifest.json").read_bytes())["session"]
    return number


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


def claims_left(out: Path) -> list[str]:
    """Claims of a session that has ended by itself, whether it worked or not."""
    return [f"the claim {path.name} is left" for path in out.glob("claim-*")]


def ended(out: Path, run: Run) -> list[str]:
    """What a session leaves that has ended by itself, on a disk that takes all."""
    faults = claims_left(out)
    state = json.loads((out / "status.json").read_bytes())["state"]
    if state != run.manifest["status"]:
        faults.append(f"status.json says {state} of a run that is {run.manifest['status']}")
    return faults


def _vectors(out: Path, run: Run) -> list[str]:
    """One vector an answered image, beside its part."""
    import pyarrow.parquet as pq

    top_k = run.manifest["extras"]["top_k"]
    for session, number, rows in run.files:
        path = out / "vectors" / f"vectors-{session:04d}-{number:06d}.parquet"
        if not path.exists():
            return [f"no {path.name} beside its part of images"]
        table = pq.read_table(path).to_pydict()
        found = list(zip(table["shard"], table["row"], strict=True))
        answered = rows[rows["answered"]]
        if found != keys_of(answered):
            return [f"{path.name} has {len(found)} vectors of other images than its part"]
        for at, row in enumerate(answered):  # a null network gives the rest to the class before
            best, score = int(row["predicted"]), float(row["score"])
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
        if set(table["session"]) - {session}:
            return [f"{path.name} has vectors of other sessions"]
    return []


def _audits(run: Run) -> list[str]:
    """In a complete cascade those accepted answers have an audit that are drawn for it. Images that
    choose the threshold of `agree` have one too, wherever they are in the order."""
    agree = run.manifest["settings"].get("agree") is not None
    audit, shards = run.manifest["audit"], run.manifest["shards"]
    texts = (f"{audit['seed']}:{shard['fingerprint']}".encode() for shard in shards)
    words = [int.from_bytes(blake2b(text, digest_size=8).digest(), "little") for text in texts]
    for row in run.images[np.isin(run.images["source"], (COLLAGE, BACKUP))]:
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
    done = complete or (rows == expected and code not in excused)
    if code == 6 and done and not unseen:
        return [how]
    return [] if code in excused else [f"{how}, and nothing that explains it"]


@dataclass
class Writers:
    """Who writes to a run's folder: who has a claim, and until the next one has begun.

    Attributes:
        tell: of a violation.
        claims: who has made one, in their order.
        begun: pids of those who have published the manifest since.
    """

    out: str
    tell: Callable[[str], object]
    claims: list[Process] = field(default_factory=list)
    begun: set[int] = field(default_factory=set)

    def made(self, process: Process, path: str) -> None:
        """A process has made or renamed a file."""
        name = os.path.relpath(path, self.out)
        if re.fullmatch(r"claim-\d+", name):
            self.claims.append(process)
        elif not re.match(r"(\.\.|pending|report\.html|.*/\.|\.)", name):  # which anybody may write
            self._published(process, name)

    def _published(self, process: Process, name: str) -> None:
        if process not in self.claims:
            self.tell(f"{process.name} ({process.pid}) wrote {name} without a claim")
            return
        last = len(self.claims) - 1 - self.claims[::-1].index(process)
        later = [other for other in self.claims[last + 1 :] if other.pid in self.begun]
        if later:
            self.tell(f"{process.name} ({process.pid}) wrote {name} after {later[0].pid} had begun")
        if name == "manifest.json":
            self.begun.add(process.pid)


def careless(process: Process) -> list[str]:
    """What a process that has ended in its own way did with files."""
    faults = []
    if process.code in (0, 5) and process.left_open:
        faults.append(f"{process.name} left open: {', '.join(process.left_open[:4])}")
    if process.most_open > MOST_OPEN:
        faults.append(f"{process.name} had {process.most_open} files open at once")
    return faults

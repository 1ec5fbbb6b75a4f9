"""Counts, sums and samples over the rows of a run, made in one pass.

A run on disk is read a part at a time. Memory does not grow with the run, except for one bit for
each image and group.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from collage_mpi.kinds import SHARED_KINDS, SINGLE
from collage_mpi.results.number_sets import SessionNumberSets, draw_of
from collage_mpi.results.parts import began_ns, launch_of
from collage_mpi.results.reader import Inventory, Run
from collage_mpi.results.statistics import BoundedSample, TimedSample
from collage_mpi.rows import (
    ASKED_FIRST,
    AUDIT_CODE,
    ENCODED,
    GROUPS,
    KIND_CODE,
    KINDS,
    OUTCOME_CODE,
    SOURCE_CODE,
    SOURCES,
    TASKS,
    cells_of,
    columns_of,
    inputs_of,
    ran_together,
    wait_ns,
)

PARTS = ("read", "encode", "wait", "compute", "decode")
EXAMPLES = 5
MOST_REASONS = 4096  # distinct reasons of error rows that are counted; others are ignored

Json = dict[str, Any]


class Tally:
    """All counts of a run, made in one pass over its rows."""

    def __init__(self, run: Run) -> None:
        """Read the run. Raises as `read_results`."""
        self.groups, self.images, self.tasks = GroupTally(run), ImageTally(run), TaskTally(run)
        self.thresholds = ThresholdTally(run.manifest)
        adds = {"groups": self.groups.add, "images": self._add_images, "tasks": self.tasks.add}
        self.inventory = Inventory(run, lambda table, rows: adds[table.name](rows), groups=True)
        self.tasks.finish()

    def _add_images(self, rows: np.ndarray) -> None:
        self.images.add(rows)
        self.thresholds.add(rows)


class GroupTally:
    """Counts over the rows of groups. Measured groups are those after the warm-up.

    Attributes:
        n: number of groups; warmup: number of warm-up groups.
        latency_ms: latencies of measured groups.
        samples: independent samples of these latencies.
        of_session: session -> the latencies and samples of its groups, for launches of several
            teams.
        span_ns: session -> first admission and last end of its measured groups.
        slowest: row of the slowest measured group, of GROUP_ROW; None if there is none.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.n = self.warmup = 0
        bound = run.bound and run.bound // 4  # a value with its key takes as much as four values
        self.latency_ms = TimedSample(bound)
        self.samples = SessionNumberSets(run.rows_of(GROUPS))
        teams = launch_of(run.manifest)
        bound = bound and bound // max(1, len(teams))
        self.of_session = {
            each: (TimedSample(bound), SessionNumberSets(run.rows_of(GROUPS))) for each in teams
        }
        self.span_ns: dict[int, tuple[int, int]] = {}
        self.slowest: np.void | None = None

    def add(self, rows: np.ndarray) -> None:
        """Add rows, (n,) of GROUP_ROW."""
        self.n += len(rows)
        self.warmup += int(rows["warmup"].sum())
        rows = rows[~rows["warmup"]]
        if not len(rows):
            return
        latency_ms, keys = rows["latency_ns"] / 1e6, columns_of(rows, _IN_TIME)
        samples = self._run.samples_of(rows)
        self.latency_ms.add_at(latency_ms, keys)
        self.samples.add(rows["session"], samples)
        slowest = rows[int(np.argmax(rows["latency_ns"]))]
        if self.slowest is None or slowest["latency_ns"] > self.slowest["latency_ns"]:
            self.slowest = slowest.copy()
        ends_ns = rows["t0_ns"] + rows["latency_ns"]
        for session in np.unique(rows["session"]).tolist():
            mine = rows["session"] == session
            first, last = self.span_ns.get(session, (1 << 63, -(1 << 63)))
            first = min(first, int(rows["t0_ns"][mine].min()))
            self.span_ns[session] = first, max(last, int(ends_ns[mine].max()))
            if session in self.of_session:
                sample, marks = self.of_session[session]
                sample.add_at(latency_ms[mine], keys[mine])
                marks.add(rows["session"][mine], samples[mine])


_IN_TIME = GROUPS.only("session", "t0_ns", "group")


class ImageTally:
    """Counts over the rows of images that count. Measured images are those after the warm-up.

    Attributes:
        n, answered, errors, warmup, labelled: numbers of images.
        sessions: the sessions that have rows.
        warmup_ends_ns: session -> arrays of the ends of its warm-up images, on its clock.
        reasons: reason -> number of error rows.
        first: reason -> the first error row, of IMAGE_ROW.
        right: (2, sources) int64, number of labelled images and of right answers, by source.
        latency_ms: latencies of measured images.
        samples: independent samples of these latencies.
        parts_ms: part of the latency -> its values, of measured images with an answer.
        measured, resolved: number of measured images, and of those with an answer.
        by_kind: kind -> number of measured images that it answered.
        classes: class -> number of answers, and the sum of their scores; only without labels.
        examples: answered images from all over the input; only without labels.
        audits: accepted class -> number of audits, and of audits that named another class.
        unaudited: number of accepted answers whose audit failed.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.n = self.answered = self.errors = self.warmup = self.labelled = 0
        self.measured = self.resolved = 0
        self.sessions: set[int] = set()
        self.warmup_ends_ns: dict[int, list[np.ndarray]] = defaultdict(list)
        self.reasons: Counter[bytes] = Counter()
        self.first: dict[bytes, np.void] = {}
        self.right = np.zeros((2, len(SOURCES)), np.int64)  # labelled, right
        self.latency_ms = BoundedSample(run.bound)
        self.samples = SessionNumberSets(run.rows_of(GROUPS))
        self.parts_ms = {name: BoundedSample(run.bound) for name in PARTS}
        self.by_kind = dict.fromkeys(SHARED_KINDS, 0)
        self.classes: dict[int, list[float]] = defaultdict(lambda: [0, 0.0])
        self.examples = _Examples(run.manifest)
        self.audits: dict[int, list[int]] = defaultdict(lambda: [0, 0])
        self.unaudited = 0

    def add(self, rows: np.ndarray) -> None:
        """Add rows that count, (n,) of IMAGE_ROW."""
        answered = rows["answered"]
        self.n += len(rows)
        self.answered += int(answered.sum())
        self.errors += int((~answered).sum())
        self.warmup += int(rows["warmup"].sum())
        self.sessions.update(np.unique(rows["session"]).tolist())
        self._add_warmup(rows[rows["warmup"]])
        self._add_errors(rows[~answered])
        self._add_labelled(rows[rows["has_label"]])
        self._add_answers(rows[answered])
        self._add_measured(rows[~rows["warmup"]])
        self._add_audits(rows[np.isin(rows["source"], ASKED_FIRST) & (rows["audited"] > 0)])

    def _add_warmup(self, rows: np.ndarray) -> None:
        for session in np.unique(rows["session"]).tolist():
            mine = rows[rows["session"] == session]
            self.warmup_ends_ns[session].append(mine["t0_ns"] + mine["latency_ns"])

    def _add_audits(self, rows: np.ndarray) -> None:
        done = rows["audited"] == AUDIT_CODE["done"]
        self.unaudited += int((~done).sum())
        rows = rows[done]
        _add_by_class(self.audits, rows, (rows["predicted"] != rows["other"]).astype(np.int64))

    def _add_errors(self, rows: np.ndarray) -> None:
        reasons, first, counts = np.unique(rows["reason"], return_index=True, return_counts=True)
        for reason, place, n in zip(reasons.tolist(), first, counts.tolist(), strict=True):
            if reason in self.first or len(self.first) < MOST_REASONS:
                self.reasons[reason] += n
                self.first.setdefault(reason, rows[place].copy())

    def _add_labelled(self, rows: np.ndarray) -> None:
        right = rows["answered"] & (rows["predicted"] == rows["label"])
        self.labelled += len(rows)
        for i, of in enumerate((rows, rows[right])):
            self.right[i] += np.bincount(of["source"], minlength=len(SOURCES))

    def _add_answers(self, rows: np.ndarray) -> None:
        if self.labelled or not len(rows):
            return
        _add_by_class(self.classes, rows, rows["score"].astype(np.float64))
        self.examples.add(rows)

    def _add_measured(self, rows: np.ndarray) -> None:
        self.measured += len(rows)
        self.latency_ms.add(rows["latency_ns"] / 1e6)
        self.samples.add(rows["session"], self._run.samples_of(rows))
        for kind in self.by_kind:
            self.by_kind[kind] += int((rows["source"] == SOURCE_CODE[kind]).sum())
        rows = rows[rows["answered"]]
        self.resolved += len(rows)
        encoded = rows[np.isin(rows["source"], ENCODED)]
        for name, sample in self.parts_ms.items():
            of = encoded if name == "encode" else rows
            sample.add((wait_ns(of) if name == "wait" else of[f"{name}_ns"]) / 1e6)


def _add_by_class(sums: dict[int, list[Any]], rows: np.ndarray, values: np.ndarray) -> None:
    """Add up rows by their predicted class: class -> number of rows, and the sum of their values.

    Args:
        sums: class -> [count, sum], changed in place.
        values: (n,) int64 or float64, one a row.
    """
    numbers, place, n = np.unique(rows["predicted"], return_inverse=True, return_counts=True)
    totals = np.bincount(place, values).astype(values.dtype)
    for number, *more in zip(numbers.tolist(), n.tolist(), totals.tolist(), strict=True):
        sums[number] = [a + b for a, b in zip(sums[number], more, strict=True)]


class _Examples:
    """Keeps the answered images that are nearest to EXAMPLES evenly spaced places of the input."""

    def __init__(self, manifest: Json) -> None:
        counts = [shard["count"] for shard in manifest["shards"]]
        # Floats, because counts of a damaged manifest could overflow integers.
        self._starts = np.cumsum([0.0, *counts])
        in_order = manifest.get("order") == "file" and manifest.get("limit") is not None
        total = manifest["rows"] if in_order else sum(counts)
        self._wanted = np.floor(np.linspace(0.0, max(0, total - 1), EXAMPLES))
        self._found: list[tuple[float, float, np.void] | None] = [None] * EXAMPLES

    def add(self, rows: np.ndarray) -> None:
        rows = rows[rows["shard"] < len(self._starts) - 1]
        if not len(rows):
            return
        places = self._starts[rows["shard"]] + rows["row"]
        for i, wanted in enumerate(self._wanted.tolist()):
            off = np.abs(places - wanted)
            nearest = int(np.argmin(off))
            known = self._found[i]
            if known is None or off[nearest] < known[0]:
                self._found[i] = float(off[nearest]), float(places[nearest]), rows[nearest].copy()

    def rows(self) -> list[np.void]:
        """The kept rows in the order of the input, without duplicates."""
        found = {at: row for _, at, row in filter(None, self._found)}
        return [found[at] for at in sorted(found)]


class ThresholdTally:
    """Counts the images that were resolved while each threshold of `--agree` was in force."""

    def __init__(self, manifest: Json) -> None:
        self._held = manifest.get("thresholds") or []
        self._first, self._began_ns = launch_of(manifest), began_ns(manifest)
        self._draw = draw_of(manifest)
        least = (each["confidence"] for each in self._held)
        # (thresholds + 1,); index 0 is the time before the first threshold, the calibration
        self._least = np.array([np.inf, *(np.inf if each is None else each for each in least)])
        self._counts = np.zeros((len(self._least), 3), np.int64)

    def add(self, rows: np.ndarray) -> None:
        """Add rows that count, (n,) of IMAGE_ROW."""
        for session in np.unique(rows["session"]).tolist() if self._held else ():
            mine = rows[rows["session"] == session]
            at = self._held_at(session, mine["t0_ns"] + mine["latency_ns"])
            scores, differs = cells_of(mine)
            # After a kill, images of the calibration go to both networks again: not audits
            both = (mine["audited"] == AUDIT_CODE["done"]) & self._draw.some(mine)
            changed = both & differs & (scores >= self._least[at])
            for column, which in enumerate((both | True, both, changed)):
                self._counts[:, column] += np.bincount(at[which], minlength=len(self._least))

    def _held_at(self, session: int, times_ns: np.ndarray) -> np.ndarray:
        """(n,) int64, the number of thresholds that had been decided at these times of a
        session."""
        first = self._first.get(session, session)  # the session with the clock of `since_ns`
        later_ns = self._began_ns.get(session, 0) - self._began_ns.get(first, 0)
        since_ns = [each["since_ns"] for each in self._held if each["session"] == first]
        before = sum(each["session"] < first for each in self._held)
        found: np.ndarray = before + np.searchsorted(since_ns, times_ns + later_ns)
        return found

    def counts(self) -> list[dict[str, int]]:
        """The counts of each threshold: images; audited, the images drawn for an audit that both
        networks classified; differing, the audited images whose cell counts and names another
        class.
        """
        names = ("images", "audited", "differing")
        return [dict(zip(names, each, strict=True)) for each in self._counts[1:].tolist()]


class TaskTally:
    """Counts over the rows of measured tasks, which are those after the warm-up.

    Attributes:
        n: number of tasks. As in `inputs_of`, a batch of images counts as one task an image,
            whether its message has one row or many.
        by_outcome, by_kind: code -> number of tasks.
        late: number of answered tasks that resolved nothing.
        work_s: total service time, in seconds.
        wasted_s: service time of tasks that resolved nothing. In a cascade also the share of images
            that a task did not resolve, because these are sent again.
        work_of: (kinds,) service time in seconds, by the code of the kind.
        unfinished_ns: total time from sending unfinished tasks to the end of their sessions.
        ranks: code of a kind -> ranks that were sent a task of the kind, also in the warm-up.
        answered: ranks that answered a measured task.
    """

    def __init__(self, run: Run) -> None:
        self._bound = run.bound
        scheme = (run.manifest.get("settings") or {}).get("scheme")
        self._by_image = str(scheme).startswith("cascade")
        self.n = self.late = self.unfinished_ns = 0
        self.work_s = self.wasted_s = 0.0
        self.work_of = np.zeros(len(KINDS))
        self.by_outcome: Counter[int] = Counter()
        self.by_kind: Counter[int] = Counter()
        self.ranks: dict[int, set[int]] = defaultdict(set)
        self.answered: set[int] = set()
        self._waiting: list[np.ndarray] = []

    def add(self, rows: np.ndarray) -> None:
        """Add rows, (n,) of TASK_ROW."""
        for kind in np.unique(rows["kind"]).tolist():
            self.ranks[kind].update(np.unique(rows["rank"][rows["kind"] == kind]).tolist())
        rows = rows[~rows["warmup"]]
        inputs = inputs_of(rows)  # (n,)
        self.n += int(inputs.sum())
        for column, counts in (("outcome", self.by_outcome), ("kind", self.by_kind)):
            n = np.bincount(rows[column], inputs).astype(np.int64)
            counts.update({code: int(n[code]) for code in np.flatnonzero(n).tolist()})
        answered = rows["outcome"] == OUTCOME_CODE["answered"]
        self.answered.update(np.unique(rows["rank"][answered]).tolist())
        useless = np.where(rows["resolved"] == 0, inputs, 0)
        useless = np.where(rows["kind"] == KIND_CODE[SINGLE], inputs - rows["resolved"], useless)
        self.late += int(useless[answered].sum())
        unfinished = rows[rows["outcome"] == OUTCOME_CODE["unfinished"]]
        self.unfinished_ns += int((unfinished["done_ns"] - unfinished["sent_ns"]).sum())
        self._waiting.append(columns_of(rows, _OF_WORK))
        if self._bound is not None and sum(map(len, self._waiting)) > self._bound:
            # Tasks of one message are close together in the file. So the half that ended first is
            # complete: no later row belongs to its messages.
            waiting = np.concatenate(self._waiting)
            order = np.lexsort([waiting[name] for name in ("rank", "session", "done_ns")])
            cut = len(order) // 2
            ended = waiting[order[cut]]["done_ns"]
            while cut < len(order) and waiting[order[cut]]["done_ns"] == ended:
                cut += 1
            self._waiting = [waiting[order[cut:]]]
            self._add_work(waiting[order[:cut]])

    def finish(self) -> None:
        """Call when all rows have been added."""
        self._add_work(np.concatenate(self._waiting) if self._waiting else np.empty(0, _OF_WORK))
        self._waiting = []

    def _add_work(self, rows: np.ndarray) -> None:
        inputs = inputs_of(rows)  # (n,)
        share = inputs / np.maximum(ran_together(rows, inputs), 1)
        work_s = rows["compute_ns"] / 1e9 * share  # (n,)
        self.work_s += float(work_s.sum())
        self.work_of += np.bincount(rows["kind"], work_s, minlength=len(KINDS))
        by_image = self._by_image | (rows["kind"] == KIND_CODE[SINGLE])
        part = 1.0 - rows["resolved"] / np.maximum(rows["items"], 1)
        useless = np.where(by_image, part, rows["resolved"] == 0)  # (n,)
        self.wasted_s += float((work_s * useless).sum())


_OF_WORK = TASKS.only(
    *("session", "rank", "sent_ns", "done_ns"),
    *("compute_ns", "items", "resolved", "kind"),
)

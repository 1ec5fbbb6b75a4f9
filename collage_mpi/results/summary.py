"""The summary of one run: latency, its parts, accuracy, and the price (C8).

Warm-up groups are left out of all times, shares and prices, but not of the accuracy. Names of times
end in _ms or _s. A percentile for which there are too few samples is None; `support` says how many
each percentile needs.

`Tally` makes the counts, sums and samples in one pass. A run on disk is read a part at a time.
Memory does not grow with the run, except for one bit for each image and group.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.kinds import COLLAGE, SHARED_KINDS, SINGLE
from collage_mpi.ledger.spans import count, union
from collage_mpi.models.info import tunings_text
from collage_mpi.results import SUMMARY
from collage_mpi.results.class_counts import ClassCounts
from collage_mpi.results.manifest import COMPARED, Json, began_ns, class_name, finals, launch_of
from collage_mpi.results.number_sets import SessionNumberSets
from collage_mpi.results.reader import Inventory, Run
from collage_mpi.results.statistics import (
    PERCENTILES,
    BoundedSample,
    Spread,
    TimedSample,
    differing_interval,
    percentile_name,
    support_needed,
    wilson_interval,
)
from collage_mpi.results.vectors import extras_of
from collage_mpi.rows import (
    ASKED_FIRST,
    AUDIT_CODE,
    ENCODED,
    GROUPS,
    IMAGES,
    KIND_CODE,
    KINDS,
    OUTCOME_CODE,
    OUTCOMES,
    SOURCE_CODE,
    SOURCES,
    TASKS,
    columns_of,
    inputs_of,
    pairs_in,
    ran_together,
    wait_ns,
)
from collage_mpi.system.bottleneck import limit_of_members
from collage_mpi.system.files import plain, write_atomic, writing
from collage_mpi.system.printable import counted, readable

COMPARED_UNITS = ("rank", "device", "host")
PARTS = ("read", "encode", "wait", "compute", "decode")
COSTS = ("records", "seconds", "taken_over", "split", "written")  # of the ledger
EXAMPLES = 5
MOST_REASONS = 4096  # distinct reasons of error rows that are counted; others are ignored


class Tally:
    """All counts of a run, made in one pass over its rows."""

    def __init__(self, run: Run) -> None:
        """Read the run. Raises as `read_results`."""
        self.groups, self.images, self.tasks = GroupTally(run), ImageTally(run), TaskTally(run)
        self.promise, self.counts = PromiseTally(run.manifest), ClassCounts(run.manifest)
        adds = {"groups": self.groups.add, "images": self._add_images, "tasks": self.tasks.add}
        self.inventory = Inventory(run, lambda table, rows: adds[table.name](rows), groups=True)
        self.tasks.finish()

    def _add_images(self, rows: np.ndarray) -> None:
        self.images.add(rows)
        self.promise.add(rows)
        self.counts.add(rows)


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


class PromiseTally:
    """Counts the images whose answers audited the threshold of `--agree`."""

    def __init__(self, manifest: Json) -> None:
        settings = manifest.get("settings") or {}
        self._asked = {name: settings.get(name) for name in ("agree", "top_k")}
        self._held = next(iter(manifest.get("thresholds") or []), None)
        self.audited = self.differing = 0

    def add(self, rows: np.ndarray) -> None:
        """Add rows that count, (n,) of IMAGE_ROW."""
        if self._held is None or self._held["confidence"] is None:
            return
        at = rows["position"]
        mine = rows[(at >= self._held["proved"]) & (at < self._held["drawn"])]
        both, scores, differs = pairs_in(mine, self._held["candidate"])
        self.audited += int(both.sum())
        self.differing += int((both & differs & (scores >= self._held["confidence"])).sum())

    def told(self) -> Json | None:
        """The promise and its threshold, with what was audited; None without `--agree`."""
        if self._held is None:
            return None
        from collage_mpi.bounds.exact import share_interval

        ends = share_interval(self.differing, self.audited)
        counts = {"audited": self.audited, "differing": self.differing, "ci95": list(ends)}
        return {**self._asked, **self._held, **counts}


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

    def saving(self, images: int) -> float | None:
        """What so many images would have taken in the exact network alone, divided by the work of a
        cascade; None for other schemes."""
        exact = KIND_CODE[SINGLE]
        if not (self._by_image and self.work_s and self.by_kind[exact]):
            return None
        return images * float(self.work_of[exact]) / self.by_kind[exact] / self.work_s

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


SERVED_SHARE = 0.95  # an open loop that answers a smaller share in time is overloaded
AUDITS_BY_CLASS = 500  # from this number on, audits are shown by class
ENOUGH_IMAGES = 200  # with fewer, the images in progress at the end would look like an overload


def summarise(run: Run, tally: Tally | None = None) -> Json:
    """All figures of a run, ready for JSON. docs/results.md explains each.

    Args:
        run: complete or not, in memory or on disk. A run on disk is read a part at a time.
        tally: of the run, if it is known; otherwise the run is read.
    """
    manifest = run.manifest
    tally = tally or Tally(run)
    return {
        "run": readable(str(run.path)),
        "run_id": manifest["run_id"],
        "complete": run.complete,
        "status": manifest.get("status"),
        "scheme": run.scheme,
        "mode": run.mode,
        "batch": manifest.get("batch"),
        "side": manifest.get("side"),
        "straggler": manifest.get("straggler"),
        "order": manifest.get("order"),
        "rows": _rows(run, tally),
        "latency": _latency(tally),
        **_by_team(run, tally),
        "support": {percentile_name(q): support_needed(q) for q in PERCENTILES},
        "parts_ms": _parts_ms(tally.images),
        "accuracy": _accuracy(tally.images),
        "audit": _audit(run, tally.images),
        "promise": tally.promise.told(),
        "predictions": _predictions(run, tally),
        **({"outputs": True} if _maps(run) else {}),
        "price": _price(run, tally),
        "cost": cost_of(run),
        "arrivals": _arrivals(run),
        "rank0": _rank0(run),
        "ledger": _ledger(run),
        "checked": compared_answers(run.manifest),
        "refuted": refuted_rows(run.manifest),
        "errors": _errors(tally.images),
        "first_errors": _first_errors(run, tally.images),
        "lost_ranks": [
            loss for final in finals(manifest).values() for loss in final.get("lost") or []
        ],
        "networks": networks_text(run),
        "limit": _limit(run),
    }


def networks_text(run: Run) -> str:
    """How the networks ran in all sessions, in words: number formats, runtimes that they changed
    over to, and ranks that did not. "" for null networks and simulations."""
    worlds = [found.get("world") or [] for found in (*finals(run.manifest).values(), run.manifest)]
    members = [member for world in worlds for member in world]
    text = tunings_text(member.get("tuning") or {} for member in members)
    later = {name: None for each in members for name in (each.get("runtimes") or {}).values()}
    parts = [", then ".join(filter(None, (text, " and ".join(later))))]
    parts += dict.fromkeys(
        f"rank {member['rank']} stayed with torch ({why})"
        for member in members
        for why in (member.get("stayed") or {}).values()
    )
    return "; ".join(filter(None, parts))


def _limit(run: Run) -> Json | None:
    """What limited the run; None if its ranks did not say what they did with their time."""
    worlds = [final.get("world") or [] for final in finals(run.manifest).values()]
    members = [member for world in worlds for member in world if member.get("use")]
    if not members:
        return None
    found = limit_of_members(members, open_loop=bool(run.manifest.get("open_loop")))
    return {"name": found.name, "text": found.sentence, "gpus": dict(found.gpus)}


def write_summary(run: Run, out: Path | None = None) -> Json:
    """Summarise a run and write summary.json to the run directory, or to `out`.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    summary = summarise(run)
    save_summary(summary, out or run.path)
    return summary


def save_summary(summary: Json, out: Path) -> None:
    """Write a summary to summary.json in `out`. Raises as `write_summary`."""
    path = out / SUMMARY
    text = json.dumps(summary, indent=1, default=plain)
    with writing(path):
        write_atomic(path, (text.encode(), b"\n"))


def _rows(run: Run, tally: Tally) -> Json:
    images, groups = tally.images, tally.groups
    return {
        "expected": run.manifest["rows"],
        "found": images.n,
        "answered": images.answered,
        "errors": images.errors,
        "groups": groups.n,
        "warmup_groups": groups.warmup,
        "warmup_images": images.warmup,
        "sessions": len(images.sessions),
    }


def _latency(tally: Tally) -> Json:
    """Latency per group and per image. For both, groups or batches are the independent samples."""
    groups, images = tally.groups, tally.images
    spreads = {
        "group": groups.latency_ms.spread(len(groups.samples)),
        "image": images.latency_ms.spread(len(images.samples)),
    }
    return {per: _in_ms(spread, groups.latency_ms.n) for per, spread in spreads.items()}


def _by_team(run: Run, tally: Tally) -> Json:
    """Latency per group of each team, if there are several. Each launch has its own teams."""
    teams, found = launch_of(run.manifest), []
    for session, first in teams.items():
        latency_ms, samples = tally.groups.of_session[session]
        spread = latency_ms.spread(len(samples))
        found.append({"session": session, "team": session - first, **_in_ms(spread, latency_ms.n)})
    return {"teams": found} if teams else {}


def _in_ms(spread: Spread, groups: int) -> Json:
    """A spread of values in ms as JSON."""
    return {
        "n": spread.n,
        "groups": groups,
        "independent": spread.independent,
        **{f"{name}_ms": value for name, value in spread.percentiles.items()},
        **{f"{name}_ci95_ms": ci.ends and list(ci.ends) for name, ci in spread.intervals.items()},
        **{f"{name}_ci95_samples": ci.samples for name, ci in spread.intervals.items()},
        "mean_ms": spread.mean,
        "std_ms": spread.std,
        "max_ms": spread.maximum,
        "over_3_medians": spread.over_3_medians,
    }


def _parts_ms(images: ImageTally) -> Json:
    """Median and mean of each part of the latency over answered images; encode only over answers of
    encoded tasks."""
    return {
        name: {"n": sample.n, "median": sample.median, "mean": sample.mean}
        for name, sample in images.parts_ms.items()
    }


def _accuracy(images: ImageTally) -> Json:
    """Accuracy over all labelled images and by source. Error rows count as wrong."""
    labelled, right = images.right.tolist()
    by_source = {
        name: _share(right[code], labelled[code])
        for code, name in enumerate(SOURCES)
        if labelled[code]
    }
    return {"overall": _share(sum(right), sum(labelled)), "by_source": by_source}


def _share(correct: int, n: int) -> Json:
    ci = wilson_interval(correct, n)
    accuracy = correct / n if n else None
    return {"n": n, "correct": correct, "accuracy": accuracy, "ci95": ci and list(ci)}


def _audit(run: Run, images: ImageTally) -> Json | None:
    """How often audited answers agree with the single network; None if nothing was audited."""
    audited, differing = (sum(counts[i] for counts in images.audits.values()) for i in (0, 1))
    if not audited + images.unaudited:
        return None
    names = run.manifest.get("class_names") or []
    by_class = [
        {"class": number, "name": class_name(names, number), **_agreement(*counts)}
        for number, counts in sorted(images.audits.items())
    ]
    enough = audited >= AUDITS_BY_CLASS
    return {
        **_agreement(audited, differing),
        "not_done": images.unaudited,
        "by_class": by_class if enough else None,
    }


def _agreement(audited: int, differing: int) -> Json:
    low, high = differing_interval(differing, audited)
    agreement = 1 - differing / audited if audited else None
    return {
        "audited": audited,
        "differing": differing,
        "agreement": agreement,
        "ci95": [1 - high, 1 - low],
    }


def _predictions(run: Run, tally: Tally) -> Json | None:
    """For a run without labels: answers and mean score of each class, how many the exact network
    would have called so (`ClassCounts`), and some examples.

    Returns:
        None if an image has a label, no image has an answer, or the run is simulated or maps a
        function.
    """
    images = tally.images
    if "simulated" in run.manifest or images.labelled or not images.answered or _maps(run):
        return None
    names = run.manifest.get("class_names") or []
    told = tally.counts.told() if tally.counts.others else None
    ends = {one["class"]: [one["low"], one["high"]] for one in told or ()}
    classes = [
        {
            "class": number,
            "name": class_name(names, number),
            "n": n,
            "exact_ci95": ends.get(number),
            "share": n / images.answered,
            "mean_score": score / n,
        }
        for number, (n, score) in sorted(images.classes.items())
    ]
    return {
        "n": images.answered,
        "mean_score": sum(score for _, score in images.classes.values()) / images.answered,
        "classes": sorted(classes, key=lambda one: -one["n"]),
        "examples": [_example(run, row, names) for row in images.examples.rows()],
    }


def _maps(run: Run) -> bool:
    return not extras_of(run.manifest).classifies


def _example(run: Run, row: Any, names: list[str]) -> Json:
    number, path = int(row["predicted"]), run.manifest["shards"][int(row["shard"])].get("path")
    return {
        "shard": path and Path(path).name,
        "row": int(row["row"]),
        "class": number,
        "name": class_name(names, number),
        "score": float(row["score"]),
    }


def _price(run: Run, tally: Tally) -> Json:
    """The price of the answers (C8), over measured groups."""
    tasks = tally.tasks
    ranks, (done, took_s) = ranks_used(run, tasks), _throughput(run, tally)
    n, resolved = tally.images.measured, tally.images.resolved
    by_kind = tally.images.by_kind
    return {
        **{f"{kind}_share": n / resolved if resolved else None for kind, n in by_kind.items()},
        "cost_ratio": run.manifest.get("cost_ratio"),
        "wasted_work": tasks.wasted_s / tasks.work_s if tasks.work_s else None,
        "wasted_s": tasks.wasted_s,
        "work_s": tasks.work_s,
        "saving": tasks.saving(n),
        "work_s_of": {KINDS[code]: float(tasks.work_of[code]) for code in tasks.by_kind},
        "ranks": ranks["all"],
        "coordinators": ranks["coordinators"],
        **{f"{kind}_ranks": ranks[kind] for kind in KINDS},
        "rank_seconds_per_image": _rank_seconds(run, tally, ranks["all"], took_s) / done
        if done
        else None,
        "busy_seconds_per_image": tasks.work_s / n if n else None,
        "images_per_s": done / took_s if took_s else None,
        "tasks": tasks.n,
        "collage_tasks": tasks.by_kind[KIND_CODE[COLLAGE]],
        "late_answers": tasks.late,
        **{
            f"{name}_tasks": tasks.by_outcome[code]
            for code, name in enumerate(OUTCOMES)
            if name != "answered"
        },
        "unfinished_s": float(tasks.unfinished_ns) / 1e9,
    }


def _arrivals(run: Run) -> Json | None:
    """The offered and the served rate of an open loop; None in a closed loop.

    An image is served if it was answered before the last image of its session arrived. The run is
    overloaded if fewer than 95 % of the images were served. Latencies then grow with the length of
    the run.
    """
    if not run.manifest.get("open_loop"):
        return None
    came: dict[int, tuple[int, int]] = {}  # session -> its first and last arrival, ns
    for session, rows in _measured_by_session(run):
        first, last = came.get(session, (1 << 63, -(1 << 63)))
        t0_ns = rows["t0_ns"]
        came[session] = min(first, int(t0_ns.min())), max(last, int(t0_ns.max()))
    offered = served = 0
    for session, rows in _measured_by_session(run):
        offered += len(rows)
        served += int((rows["t0_ns"] + rows["latency_ns"] <= came[session][1]).sum())
    if offered < 2:
        return None
    came_s = sum((last - first) / 1e9 for first, last in came.values())
    known = came_s > 0
    return {
        "offered_per_s": offered / came_s if known else None,
        "served_per_s": served / came_s if known else None,
        "waiting_at_the_end": offered - served,
        "overloaded": bool(served < SERVED_SHARE * offered) if offered >= ENOUGH_IMAGES else None,
    }


def _measured_by_session(run: Run) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (session, rows) of measured images, some rows at a time."""
    for rows in run.chunks(IMAGES):
        measured = rows[~rows["warmup"]]
        for session in np.unique(measured["session"]).tolist():
            yield session, measured[measured["session"] == session]


def ranks_used(run: Run, tasks: TaskTally) -> dict[str, int]:
    """The number of ranks: all, coordinators, and those that hold each kind."""
    world = run.manifest.get("world")
    if not world:  # interrupted before the world was recorded: count ranks that were sent a task
        known = {name: tasks.ranks.get(code, set()) for name, code in KIND_CODE.items()}
        kinds = {name: {_named({"rank": rank}) for rank in ranks} for name, ranks in known.items()}
    else:
        kinds = {
            name: {_named(member) for member in world if name in (member.get("kinds") or ())}
            for name in KIND_CODE
        }
    members = {_named(member) for member in world or ()} or {(None, 0)}
    everyone = members.union(*kinds.values())
    leading = sum(member.get("role") == "coordinator" for member in world or ())
    found = {"all": len(everyone), "coordinators": max(1, leading)}
    return {**found, **{name: len(ranks) for name, ranks in kinds.items()}}


def _named(member: Json) -> tuple[int | None, int]:
    """A rank: each world has a rank 0."""
    return member.get("session"), member["rank"]


def _rank_seconds(run: Run, tally: Tally, ranks: int, seconds: float) -> float:
    """What all ranks were there for, from the first measured admission to the last end of each
    session.

    Args:
        ranks: of the run, for sessions that did not record theirs.
        seconds: of `_throughput`.
    """
    spans, told = tally.groups.span_ns, finals(run.manifest)
    sizes = {session: len(told.get(session, {}).get("world") or ()) for session in spans}
    if not all(sizes.values()):
        return seconds * ranks
    return sum(sizes[each] * (last - first) / 1e9 for each, (first, last) in spans.items())


def _throughput(run: Run, tally: Tally) -> tuple[int, float]:
    """The images that were done since the first measured group was admitted, and the seconds until
    the last measured end, summed over launches.

    Images of the warm-up that end later than this admission count, because the ranks work on them
    in these seconds. The teams of a launch run at the same time, so their clocks are aligned.
    """
    launches, began = launch_of(run.manifest), began_ns(run.manifest)
    spans: dict[int, tuple[int, int]] = {}
    for session, (first_ns, last_ns) in tally.groups.span_ns.items():
        launch, at_ns = launches.get(session, session), began.get(session, 0)
        known = spans.get(launch, (at_ns + first_ns, at_ns + last_ns))
        spans[launch] = min(known[0], at_ns + first_ns), max(known[1], at_ns + last_ns)
    done = tally.images.measured
    for session, ends_ns in tally.images.warmup_ends_ns.items():
        span = spans.get(launches.get(session, session))
        if span is not None:
            done += int((began.get(session, 0) + np.concatenate(ends_ns) > span[0]).sum())
    return done, sum(last_ns - first_ns for first_ns, last_ns in spans.values()) / 1e9


def _rank0(run: Run) -> Json:
    poll = run.manifest.get("poll") or {}
    gap_ns = poll.get("longest_gap_ns")
    return {"longest_poll_gap_ms": None if gap_ns is None else gap_ns / 1e6, "poll": poll}


def _ledger(run: Run) -> Json | None:
    """What the ledger has cost the jobs that ended: records, seconds of their threads, takeovers,
    splits, rows that they wrote, and how many of these do not count because another job did the
    image, too. None if no job told.
    """
    ended = [entry for entry in run.manifest.get("sessions") or () if entry.get("rows")]
    told = [((entry.get("final") or {}).get("ledger"), entry["rows"]["images"]) for entry in ended]
    known = [(cost, images) for cost, images in told if cost]
    if not known:
        return None
    found = {key: sum(cost.get(key, 0) for cost, _ in known) for key in COSTS}
    return {**found, "twice": found["written"] - sum(images for _, images in known)}


def compared_answers(manifest: Mapping[str, Any]) -> list[Json]:
    """The ranks, devices (by serial) and hosts whose exact answers were compared with others'.

    Returns:
        Of each: unit (of COMPARED_UNITS); name, of a rank JOB:RANK; host; devices; the counts of
        COMPARED; interval, the exact one (95 %) of the share of wrong answers. The most wrong ones
        of a unit come first.
    """
    counts: dict[tuple[str, str], Counter[str]] = {}
    where: dict[tuple[str, str], Json] = {}
    for unit, name, member in _compared(manifest):
        counts.setdefault((unit, name), Counter()).update(member["checked"])
        where[unit, name] = {key: member.get(key) for key in ("host", "devices")}
    if not counts:
        return []
    from collage_mpi.bounds.exact import share_interval

    found = [
        {
            "unit": unit,
            "name": name,
            **where[unit, name],
            **{key: own[key] for key in COMPARED},
            "interval": share_interval(own["wrong"], own["compared"]),
        }
        for (unit, name), own in counts.items()
    ]
    return sorted(found, key=lambda each: (COMPARED_UNITS.index(each["unit"]), -each["wrong"]))


def _compared(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str, Json]]:
    """(unit, name, a rank of it) for each rank whose answers were compared."""
    for session, final in finals(manifest).items():
        for member in final.get("world") or ():
            if member.get("checked"):
                yield "rank", f"{session}:{member['rank']}", member
                for serial in member.get("serials") or ():
                    yield "device", serial, member
                if member.get("host"):
                    yield "host", member["host"], member


def refuted_rows(manifest: Mapping[str, Any]) -> list[Json]:
    """The rows that a third rank refuted after they were written: rank (JOB:RANK), shard (a path)
    and row. A job names its first 1,000."""
    shards = manifest.get("shards") or []
    return [
        {
            "rank": f"{session}:{rank}",
            "shard": shards[shard].get("path") if shard < len(shards) else None,
            "row": row,
        }
        for session, final in finals(manifest).items()
        for rank, shard, row in final.get("refuted") or ()
    ]


def wrong_text(each: Json) -> str:
    """How many answers of a rank, device or host were wrong, in words."""
    low, high = (f"{100 * end:.2g} %" for end in each["interval"])
    share = f"{each['wrong']:,} of {counted(each['compared'], 'comparison')}"
    return f"{share}: {low} to {high} of its answers are wrong (95 %)"


def _first_errors(run: Run, images: ImageTally) -> dict[str, Json]:
    """Reason of error rows -> shard (a path) and row of the first image with this reason."""
    shards = run.manifest["shards"]
    found = {}
    for reason, image in sorted(images.first.items()):
        shard = int(image["shard"])
        path = shards[shard].get("path") if shard < len(shards) else None
        found[reason.decode("utf-8", "replace")] = {"shard": path, "row": int(image["row"])}
    return found


def _errors(images: ImageTally) -> dict[str, int]:
    """The ten commonest reasons of error rows -> their number."""
    commonest = sorted(images.reasons.items(), key=lambda item: (-item[1], item[0]))[:10]
    return {reason.decode("utf-8", "replace"): n for reason, n in commonest}


def cost_of(run: Run) -> Json | None:
    """Node-hours of the sessions that ended.

    A host counts once at any time, even if several coordinators run on it. A killed session did not
    record how long it took.

    Returns:
        node_hours; hosts; sessions, and sessions_told, how many of them recorded their time. None
        if no session recorded it.
    """
    began = began_ns(run.manifest)
    used: dict[str, list[tuple[int, int]]] = defaultdict(list)
    told = 0
    for session, final in finals(run.manifest).items():
        world = final.get("world") or []
        if final.get("seconds") is None or not world:
            continue
        told += 1
        first_ns = began.get(session, 0)
        for host in {str(member.get("host")) for member in world}:
            used[host].append((first_ns, first_ns + int(1e9 * final["seconds"])))
    if not told:
        return None
    return {
        "node_hours": sum(count(union(spans)) for spans in used.values()) / 3600e9,
        "hosts": len(used),
        "sessions": len(run.manifest["sessions"]),  # killed ones too
        "sessions_told": told,
    }

"""What the rows of a session must say of order, time and work, by the settings of its run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tests.simulation.laws import Run

Json = dict[str, Any]
MS = 1_000_000
SLACK_NS = 1 * MS
TURN_NS = 5 * MS  # an image may be let in so long after its time
LATE_NS = 250 * MS  # a timer may be looked at so late
SINGLE, COLLAGE, REPLICA, HEDGE, RETRY, ERROR, ENDGAME, STAGE1, KEPT = 0, 1, 2, 3, 5, 6, 7, 8, 10
ANSWERED, FAILED, LOST = 0, 2, 3  # outcomes
ALWAYS = {SINGLE, RETRY, ERROR, ENDGAME}
PLAIN = ("none", "replicate", "hedge", "cascade --first")  # schemes without collages
SOURCES = {  # scheme -> who may answer
    "none": ALWAYS,
    "replicate": ALWAYS | {REPLICA},
    "hedge": ALWAYS | {HEDGE},
    "collage": ALWAYS | {COLLAGE, KEPT},
    "collage-only": {COLLAGE, RETRY, ERROR, ENDGAME},
    "cascade": ALWAYS | {COLLAGE, KEPT},
    "cascade --first": ALWAYS | {STAGE1, KEPT},
}


def wrong_order(run: Run) -> Iterator[str]:
    """Of each session that said how it ended."""
    for entry in run.manifest["sessions"]:
        if entry["rows"] and entry.get("final"):
            number = entry["session"]
            images = run.images[run.images["session"] == number]
            tasks = run.tables["tasks"][run.tables["tasks"]["session"] == number]
            if len(images) and len(tasks):
                session = Session(run, entry, images, tasks)
                yield from (f"session {number}: {text}" for text in session.broken())


def overdue(run: Run) -> Iterator[str]:
    """Where nothing disturbs a job, an unsure answer that has come counts at the deadline."""
    said = run.manifest["settings"]
    if said["deadline_ms"] is None or said["scheme"] != "collage" or not run.alone:
        return
    images, tasks = run.images, run.tables["tasks"]
    came = tasks[(tasks["kind"] == 1) & (tasks["outcome"] == ANSWERED)]
    at_ns = dict(zip(came["group"].tolist(), came["done_ns"].tolist(), strict=True))
    for row in images:
        due_ns = max(at_ns.get(row["group"], 1 << 62), row["t0_ns"] + said["deadline_ms"] * MS)
        if row["t0_ns"] + row["latency_ns"] > due_ns + LATE_NS:
            yield f"an answer that was kept does not count at the deadline: {row}"
            return


class Session:
    """The rows of one session."""

    def __init__(self, run: Run, entry: Json, images: np.ndarray, tasks: np.ndarray) -> None:
        self.manifest, self.said = run.manifest, run.manifest["settings"]
        self.final, self.tasks = entry["final"], tasks
        self.alone, self.ended = run.alone, run.complete
        self.images = images[np.lexsort((images["cell"], images["group"]))]
        self.answered = self.images[self.images["answered"]]
        self.scheme = self.said["scheme"] + " --first" * bool(self.said.get("first"))
        self.batch = self.final.get("batch") or 1
        self.ends_ns = self.images["t0_ns"] + self.images["latency_ns"]
        self.closed = not run.manifest["open_loop"]
        self.kind_of = {m["rank"]: set(m["kinds"]) for m in self.final.get("world") or ()}

    def broken(self) -> Iterator[str]:
        yield from self._columns()
        yield from self._groups()
        yield from self._messages()
        yield from self._matches()
        yield from self._waits()
        yield from self._pace()
        yield from self._sizes()
        yield from self._losses()
        yield from self._kept()
        yield from self._judged()

    def _columns(self) -> Iterator[str]:
        """Rows and tasks, each by itself."""
        images, tasks = self.images, self.tasks
        first = np.isin(images["source"], (SINGLE, REPLICA, HEDGE, STAGE1))
        again = images["attempt"] > 1
        late = images["source"] == RETRY
        reason = images["reason"] != b""
        of_one = tasks["kind"] == 0
        cells = self.manifest["side"] ** 2
        ended = tasks["outcome"] == ANSWERED
        names = {0: "single", 1: "collage", 3: "stage1"}
        fits = [names[t["kind"]] in self.kind_of.get(t["rank"], names.values()) for t in tasks]
        for what, wrong in (
            (
                "an answer that the scheme has not",
                ~np.isin(images["source"], [*SOURCES[self.scheme]]),
            ),
            ("a first answer of a later try", first & again),
            ("a retry of the first try", late & ~again),
            ("an error without a reason, or a reason without one", reason == images["answered"]),
            ("a collage was made", (self.scheme in PLAIN) & (images["encode_ns"] > 0)),
            (
                "quicker than its network",
                images["answered"]
                & (images["latency_ns"] < images["compute_ns"] * (1 - 1e-3) - SLACK_NS),
            ),
            (
                "an answer of the end game, which is off",
                (images["source"] == ENDGAME) & (self.said["endgame"] == "off"),
            ),
        ):
            if wrong.any():
                yield f"{what}: {images[wrong][0]}"
        for what, wrong in (
            ("resolved more than it has", tasks["resolved"] > tasks["items"]),
            (
                "more images than a collage has",
                ~of_one & (tasks["kind"] == 1) & (tasks["items"] > cells),
            ),
            ("resolved without an answer", ~ended & (tasks["resolved"] > 0)),
            ("a rank without that network", ~np.array(fits)),
        ):
            if wrong.any():
                yield f"a task: {what}: {tasks[wrong][0]}"

    def _groups(self) -> Iterator[str]:
        """Groups, their order, and the warm-up."""
        images = self.images
        key = images["group"].astype(np.int64) * 1000 + images["cell"]
        if len(np.unique(key)) < len(key):
            yield "two images of one place in a group"
        step = np.diff(images["group"]) == 0
        t0 = np.diff(images["t0_ns"])
        _, counts = np.unique(images["group"], return_counts=True)
        whole = (counts[:-1] == self.manifest["side"] ** 2).all()  # no image was left out
        if self.closed and self.alone and whole and (t0[step] != 0).any():
            yield "images of a group came in at several times"
        if (t0 < 0).any():
            yield f"a later image came in earlier: {images[1:][t0 < 0][0]}"
        warm = images["warmup"]
        if (
            warm.any()
            and not warm.all()
            and images["group"][warm].max() >= images["group"][~warm].min()
        ):
            yield "a group of the warm-up after others"
        if self.alone and len(np.unique(images["group"][warm])) > self.manifest["warmup_groups"]:
            yield "more groups of warm-up than there are"
        known = dict(zip(images["group"].tolist(), warm.tolist(), strict=True))
        for task in self.tasks:
            if known.get(int(task["group"]), task["warmup"]) != task["warmup"]:
                yield f"a task of a group that is warm-up or not, and the task is not: {task}"
        place = images["shard"].astype(np.int64) * 1000 + images["row"].astype(np.int64)
        early = images[1:][np.diff(place) < 0]
        by_file = self.manifest["order"] == "file" and self.said["agree"] is None
        if by_file and self.alone and len(early):
            yield f"not in the order of files: {early[0]}"

    def _by_message(self) -> dict[tuple[int, int], list[Any]]:
        found = defaultdict(list)
        for task in self.tasks:
            found[int(task["rank"]), int(task["sent_ns"])].append(task)
        return found

    def _messages(self) -> Iterator[str]:
        """A message holds what the batch says, and no rank more messages than its credit."""
        out: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for (rank, sent_ns), tasks in self._by_message().items():
            ends = [int(task["done_ns"]) for task in tasks]
            out[rank] += [(sent_ns, 1), (max(ends), -1)]
            if len(tasks) > self.batch and self.final.get("batch"):
                yield f"a message of {len(tasks)} tasks, with batch {self.batch}: {tasks[0]}"
        from collage_mpi.settings.run_settings import RunSettings  # late: the stand-ins come first

        credit = RunSettings.from_mapping(self.said).messages
        for rank, changes in out.items():
            count = 0
            for at_ns, change in sorted(changes):
                count += change
                if count > credit:
                    yield f"rank {rank} has {count} messages at {at_ns}, with credit {credit}"
                    break

    def _matches(self) -> Iterator[str]:
        """An answer counts from the moment at which its task was done."""
        known = defaultdict(set)
        names = ("rank", "attempt", "compute_ns")
        for task in self.tasks[self.tasks["outcome"] == ANSWERED]:
            known[tuple(task[n].item() for n in names)].add(int(task["done_ns"]))
        for row in self.answered[self.answered["source"] != KEPT]:
            done = known[tuple(row[n].item() for n in names)]
            if int(row["t0_ns"] + row["latency_ns"]) not in done:
                yield f"an answer counts at another time than it came, {done}: {row}"
        for kinds, sources in (
            (np.array([0]), (SINGLE, REPLICA, HEDGE)),
            (np.array([1, 3]), (COLLAGE, STAGE1)),
        ):
            for rank in np.unique(self.tasks["rank"]).tolist():
                of = (self.tasks["rank"] == rank) & np.isin(self.tasks["kind"], kinds)
                count = int(
                    (
                        np.isin(self.answered["source"], sources) & (self.answered["rank"] == rank)
                    ).sum()
                )
                if int(self.tasks["resolved"][of].sum()) < count:
                    yield f"rank {rank} resolved fewer images than say so"

    def _waits(self) -> Iterator[str]:
        """Hedges, deadlines and drains."""
        said = self.said
        rows = self.images
        if self.scheme == "hedge":
            for row in rows[rows["source"] == HEDGE]:
                sent = self._sent_of(row)
                if sent and min(sent) < row["t0_ns"] + said["deadline_ms"] * MS - SLACK_NS:
                    yield f"a hedge before its time: {row}"
        if (
            said["deadline_ms"] is not None
            and self.scheme == "collage"
            and not self.final.get("lost")
            and not (self.tasks["outcome"] == FAILED).any()  # given up, if it failed too often
        ):
            early = (rows["source"] == KEPT) & (
                rows["latency_ns"] < said["deadline_ms"] * MS - SLACK_NS
            )
            if early.any():
                yield f"an unsure answer before the deadline: {rows[early][0]}"
        if said["between"] == "drain" and self.alone and self.closed:
            silent_ns = (said["reply_timeout_s"] or 30) * 1000 * MS  # a silent rank is not awaited
            for t0 in np.unique(rows["t0_ns"]).tolist():
                before = self.tasks[(self.tasks["sent_ns"] < t0) & (self.tasks["outcome"] < LOST)]
                waited = before["done_ns"] - before["sent_ns"] < silent_ns
                late = before[waited & (before["done_ns"] > t0 + SLACK_NS)]
                if len(late):
                    yield f"a group came in at {t0} before all ranks were idle: {late[0]}"

    def _sent_of(self, row: Any) -> list[int]:
        same = self.tasks["outcome"] == ANSWERED
        for name in ("rank", "attempt", "compute_ns"):
            same = same & (self.tasks[name] == row[name])
        same = same & (self.tasks["done_ns"] == row["t0_ns"] + row["latency_ns"])
        return self.tasks["sent_ns"][same].tolist()

    def _pace(self) -> Iterator[str]:
        """First tries leave in the order of their groups, where ranks pull."""
        tasks = self.tasks
        if self.said["assign"] == "pull" and self.scheme == "none" and self.alone:
            one = tasks[(tasks["attempt"] == 1) & (tasks["outcome"] != LOST)]
            one = one[np.lexsort((one["task"], one["sent_ns"]))]
            if (np.diff(one["group"]) < 0).any():
                yield f"a later group first: {one[1:][np.diff(one['group']) < 0][0]}"
        model, _, median_ms = self.said["straggler"].partition(":")
        if model != "pinned" or self.said["slow_ranks"]:
            return
        for sent in self._by_message().values():
            calls = [t for t in sent if t["kind"] == SINGLE and t["outcome"] == ANSWERED]
            inputs = sum(int(t["items"]) for t in calls)
            further = 1.0 if self.said["batch_cost"] is None else self.said["batch_cost"]
            least_ms = float(median_ms or 100) * (1 + (inputs - 1) * further)
            for task in calls:
                if (task["done_ns"] - task["sent_ns"]) / MS < least_ms * (1 - 1e-3):
                    yield f"quicker than {least_ms} ms, which are pinned: {task}"

    def _sizes(self) -> Iterator[str]:
        """A group is full, or the last one."""
        images, cells = self.images, self.manifest["side"] ** 2
        numbers, counts = np.unique(images["group"], return_counts=True)
        whole = self.alone and not self.final.get("lost")
        whole &= self.ended  # a session that is stopped has images of later groups, too
        if self.closed and self.alone and whole and (counts[:-1] < cells).any():
            yield f"groups {numbers[:-1][counts[:-1] < cells]} are not full, nor the last"

    def _losses(self) -> Iterator[str]:
        """Ranks that failed five times in a row get no more work; silent ones are waited for."""
        retired = {int(rank) for rank in self.final.get("retired") or ()}
        for rank in np.unique(self.tasks["rank"]).tolist():
            mine = self.tasks[self.tasks["rank"] == rank]
            ends = mine[np.lexsort((mine["task"], mine["done_ns"]))]
            row = most = 0
            for outcome in ends["outcome"].tolist():
                if outcome in (ANSWERED, FAILED):
                    row = row + 1 if outcome == FAILED else 0
                    most = max(most, row)
            if rank in retired and most < 5:
                yield f"rank {rank} is retired after {most} failures in a row"
        limit_s = self.said["reply_timeout_s"]
        for lost in self.final.get("lost") or ():
            silent_s = lost.get("silent_s")
            known = lost["layer"] == "timeout" and limit_s and silent_s is not None
            if known and silent_s < 2 * limit_s * 0.99:
                yield f"lost after {silent_s} s, with a reply timeout of {limit_s}: {lost}"

    def _kept(self) -> Iterator[str]:
        """No image gets an error row after its group's collage, with all of its images, was
        answered. Where a share is promised, no unsure answer counts."""
        if self.said["agree"] is not None:
            return
        tasks = self.tasks[(self.tasks["kind"] != SINGLE) & (self.tasks["outcome"] == ANSWERED)]
        sizes = dict(zip(*np.unique(self.images["group"], return_counts=True), strict=True))
        unread = np.char.startswith(self.images["reason"], b"on ")  # which no network was asked for
        for row in self.images[~self.images["answered"] & ~unread]:
            over_ns = row["t0_ns"] + row["latency_ns"]
            for task in tasks[(tasks["group"] == row["group"]) & (tasks["done_ns"] < over_ns)]:
                if task["items"] == sizes[row["group"]] and self.batch == 1:
                    yield f"an error row of an image that was answered by {task}: {row}"

    def _judged(self) -> Iterator[str]:
        """An answer of the first network counts by the threshold that was chosen."""
        told = self.manifest["thresholds"]
        if self.said["agree"] is None or self.scheme != "cascade":
            return
        least = (told[0]["confidence"] or 2.0) if told else 2.0
        for row in self.images[self.images["source"] == COLLAGE]:
            if row["score"] < least - 1e-6:
                yield f"an unsure answer counts, with {least}: {row}"

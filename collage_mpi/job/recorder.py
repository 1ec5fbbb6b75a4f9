"""Makes the rows of a run from what the coordinator sends and receives.

The rows of images that came as runs are written together, some ms later, column by column. The row
of a task is written when the task has ended and no group of its images is open, because until then
a reserved answer may still resolve an image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from collage_mpi.encoding.vectors import Extras
from collage_mpi.job.image_buffer import ImageRun, InFlight
from collage_mpi.kinds import COLLAGE, KIND
from collage_mpi.mpi.answers import ANSWERED, CELL, FAILED, SKIPPED, Cells, WireResult
from collage_mpi.mpi.protocol import packer
from collage_mpi.mpi.tasks import PLACE
from collage_mpi.rows import (
    AUDIT_CODE,
    IMAGES,
    KIND_CODE,
    OUTCOME_CODE,
    SOURCE_CODE,
)
from collage_mpi.scheduler.events import Resolve, ResolveRun, Send, Unread
from collage_mpi.shards.readahead import ImageRecord


class Writer(Protocol):
    """Where rows go, as tuples in the order of ImageRow and TaskRow."""

    session: int

    def image(self, row: tuple[Any, ...], /) -> object: ...
    def image_rows(self, rows: np.ndarray, /) -> object: ...
    def task(self, row: tuple[Any, ...], /) -> object: ...


UNFINISHED, LOST = 0, -1  # statuses of tasks without an answer
OUTCOMES = {
    UNFINISHED: "unfinished",
    LOST: "lost",
    ANSWERED: "answered",
    FAILED: "failed",
    SKIPPED: "skipped",
}
# The columns that are equal in the rows of a run resolved by one task, and `place`: the first
# image's place in the order of groups and cells.
SAID_COLUMNS = (
    *("source", "rank", "attempt", "t0_ns", "latency_ns"),
    *("read_ns", "decode_ns", "compute_ns", "runtime"),
)
SAID = np.dtype([("place", "<i8"), *((name, IMAGES.dtype[name].str) for name in SAID_COLUMNS)])
_SAID = packer(SAID)
NO_RESULT = WireResult(0, UNFINISHED)
NO_SCORE = (0, 0.0)
NO_REASON = b""  # bytes, because the writer encodes a str and rebuilds the row


class Vectors:
    """Keeps, for each image, the vector of the answer that resolved it."""

    def __init__(self, extras: Extras, write: Callable[[int, int, np.ndarray], None]) -> None:
        """Start without vectors.

        Args:
            extras: what the user keeps of each image.
            write: `write(shard, row, vector)` stores a vector.
        """
        self._write = write
        self.labelled = extras.classifies  # a label says nothing about a row without a class

    def keep(self, resolve: Resolve, record: ImageRecord, send: Send, result: WireResult) -> None:
        """Write the vector of an image that this task has resolved."""
        assert result.vectors is not None
        place = next(i for i, (image, _) in enumerate(send.items) if image == resolve.image)
        self._write(record.shard, record.row, result.vectors[place])  # (floats,) float32


@dataclass(slots=True)
class _Task:
    send: Send
    sent_ns: int
    encode_ns: int  # only of a bundle; the time of other tasks counts for their group
    result: WireResult  # NO_RESULT until it has ended
    done_ns: int = 0
    decode_ns: int = 0
    resolved: int = 0  # images that it resolved
    open: int = 0  # open groups that it waits for after its end


@dataclass(slots=True)
class _Group:
    first: int  # the image in cell 0
    size: int  # its images; until the next group is known, the images of a full group
    encode_ns: int = 0
    images: int = 0  # resolved images
    ended: list[_Task] = field(default_factory=list)  # tasks that wait for it


@dataclass
class Totals:
    """Counts for the status line."""

    images: int = 0
    errors: int = 0
    collage: int = 0
    audited: int = (
        0  # images with an accepted collage answer that the single network classified too
    )
    differing: int = 0  # of these, images to which the two networks gave different classes
    admitted: int = 0  # images that entered the job, of this team only


class Grouping(NamedTuple):
    """How rows count groups.

    Attributes:
        size: images of a full group.
        warmup: how many groups are marked as warm-up.
        by_number: an image's group and cell follow from its number, because one group of the
            scheduler is a whole batch of groups.
    """

    size: int
    warmup: int
    by_number: bool = False


class Recorder:
    """Writes the rows, from every send, end and outcome; times are of the coordinator's clock."""

    def __init__(
        self,
        writer: Writer,
        images: Mapping[int, ImageRecord],
        *,
        start_ns: int,
        grouping: Grouping,
        vectors: Vectors | None = None,
    ) -> None:
        """Start without tasks.

        Args:
            writer: takes the rows.
            images: the images in flight by id, from their admission until they are released.
            start_ns: the time 0 of the rows.
            grouping: of the rows.
            vectors: keeps what the user wants of an image beyond its class; None if nothing.
        """
        self.totals = Totals()
        self._vectors = vectors
        self._writer = writer
        self._start_ns = start_ns
        self.began_ns = time.time_ns()  # Unix time of `start_ns`, to align sessions
        self._group_size, self._warmup_groups, self._by_number = grouping
        self._images = images
        self._runs = images if isinstance(images, InFlight) else InFlight()
        self._tasks: dict[int, _Task] = {}
        self._groups: dict[int, _Group] = {}
        # Resolved images of runs whose rows are not written: SAID, cells, run, place in the run
        self._late: list[tuple[bytes, memoryview, ImageRun, slice]] = []

    def warm_up_from(self, group: int) -> None:
        """The number of the session's first group, from which warm-up groups are counted."""
        self._warmup_groups += group

    def sent(self, sends: Sequence[Send], now_ns: int, encodes_ns: Sequence[int]) -> None:
        """Tasks left in one message. `encodes_ns`: time for pasting each task's collage."""
        for send, encode_ns in zip(sends, encodes_ns, strict=True):
            self._tasks[send.task] = _Task(send, now_ns, encode_ns if send.bundle else 0, NO_RESULT)
            if send.bundle:
                for (image, _), (number, cell) in zip(send.items, send.bundle, strict=True):
                    if number not in self._groups:
                        self._group_of(number, image - cell)
            elif not self._by_number:
                image, cell = send.items[0]
                self._group_of(send.group, image - cell).encode_ns += encode_ns

    def ended(self, results: Sequence[WireResult], now_ns: int, decode_ns: int) -> None:
        """Tasks ended on their rank; all their results came in one message."""
        for result in results:
            task = self._tasks[result.task]
            task.result, task.done_ns, task.decode_ns = result, now_ns, decode_ns
            if result.unread:
                self._note_unread(task.send, result.unread)

    def _note_unread(self, send: Send, unread: Sequence[Unread | None]) -> None:
        for (image, _), why in zip(send.items, unread, strict=True):
            with suppress(KeyError):  # the image may have been released
                if why is not None:
                    record = self._images[image]  # `get` makes no record for an image of a run
                    record.unread = why.of_input or bool(record.unread)

    def settled(self, tasks: Iterable[int]) -> None:
        """Write the rows of ended tasks after the scheduler has acted on their ends.

        Tasks of open groups wait until their groups are closed.
        """
        for task_id in tasks:
            task = self._tasks[task_id]
            for number in self._groups_of(task.send):
                group = self._groups.get(number)
                if group is not None:
                    task.open += 1
                    group.ended.append(task)
            if not task.open:
                self._write_task(task)  # first: see `resolved`
                del self._tasks[task_id]

    def lost(self, rank: int, now_ns: int, why: str) -> None:
        """The rank is lost: its tasks ended without an answer."""
        for task_id, task in list(self._tasks.items()):
            if task.send.rank == rank and task.result is NO_RESULT:
                task.result, task.done_ns = WireResult(task_id, LOST, reason=why), now_ns
                self.settled((task_id,))

    def _groups_of(self, send: Send) -> Collection[int]:
        """The numbers of the groups that the task waits for after its end."""
        if self._by_number:
            return ()  # no answer is reserved
        return {number for number, _ in send.bundle} if send.bundle else (send.group,)

    def run_resolved(self, run: ResolveRun, now_ns: int) -> None:
        """A run of images has its outcome; `write_late` writes the rows."""
        task, size, count = self._tasks[run.task], self._group_size, len(run.scores)
        came, result = self._runs.run_of(run.image), task.result
        part = came.part(run.image, count)
        place = run.image if self._by_number else run.group * size + run.cell
        said = _SAID.pack(
            place,
            SOURCE_CODE[run.source],
            task.send.rank,
            task.send.attempt,
            came.t0_ns - self._start_ns,
            now_ns - came.t0_ns,  # latency_ns
            came.read_ns + result.read_ns,
            task.decode_ns,
            result.compute_ns,
            result.runtime,
        )
        assert isinstance(run.scores, Cells)
        self._late.append((said, run.scores.data, came, part))
        task.resolved += count
        self.totals.images += count
        self.totals.collage += count if run.source == COLLAGE else 0

    def write_late(self) -> None:
        """Write the rows of resolved runs, column by column."""
        if not self._late:
            return
        answers, cells, runs, parts = zip(*self._late, strict=True)
        counts = [part.stop - part.start for part in parts]
        said = np.frombuffer(b"".join(answers), SAID).repeat(counts)  # (n,)
        rows = np.zeros(len(said), IMAGES.dtype)
        for name in SAID_COLUMNS:
            rows[name] = said[name]
        within = np.arange(len(said)) - np.repeat(np.cumsum(counts) - counts, counts)
        rows["group"], rows["cell"] = np.divmod(said["place"] + within, self._group_size)
        rows["warmup"] = rows["group"] < self._warmup_groups
        found = np.frombuffer(b"".join(cells), CELL)
        rows["predicted"], rows["score"] = found["label"], found["score"]
        rows["answered"], rows["session"] = True, self._writer.session
        each = list(zip(runs, parts, strict=True))
        where = np.frombuffer(b"".join([run.data_of(part) for run, part in each]), PLACE)
        rows["shard"], rows["row"] = where["shard"], where["row"]
        if runs[0].columns.label is not None:
            rows["has_label"] = True
            rows["label"] = np.concatenate([run.columns.label[part] for run, part in each])
        self._writer.image_rows(rows)  # first: see `resolved`
        self._late.clear()
        if not self._by_number:
            self._count(rows["group"])

    def _count(self, numbers: np.ndarray) -> None:
        """Count images, (n,) of group numbers, for their groups."""
        found = np.unique(numbers, return_counts=True)
        for number, count in zip(*(each.tolist() for each in found), strict=True):
            self._group_of(number, number * self._group_size).images += count
            self._close_if_whole(number)

    def resolved(self, resolve: Resolve, now_ns: int) -> None:
        """An image has its outcome. An audited answer counts from the time of the decision."""
        if self._by_number:
            number, cell = divmod(resolve.image, self._group_size)
            resolve = resolve._replace(group=number, cell=cell)
        if resolve.decided_ns is not None:
            now_ns = resolve.decided_ns
        group = None
        if not self._by_number:
            group = self._group_of(resolve.group, resolve.image - resolve.cell)
        record = self._images[resolve.image]
        task = self._tasks[resolve.tasks[0]] if resolve.tasks else None
        label = record.label
        if record.unread is not None:
            label = _trusted_label(record, resolve, task)
        if self._vectors is not None:
            label = label if self._vectors.labelled else None
            if task is not None:
                self._vectors.keep(resolve, record, task.send, task.result)
        encode_ns = 0 if group is None else group.encode_ns
        # First: a writer that raises leaves everything as if this had not happened.
        self._writer.image(self._image_row(resolve, record, label, task, encode_ns, now_ns))
        if task is not None:  # with several tasks the others resolved images of their own
            task.resolved += 1
        if group is not None:
            group.images += 1
        totals = self.totals
        totals.images += 1
        if resolve.source == COLLAGE:
            totals.collage += 1
        totals.errors += resolve.outcome == "error"
        if resolve.decided_ns is not None and resolve.other and resolve.score:
            totals.audited += 1
            totals.differing += resolve.other.label != resolve.score.label
        self._close_if_whole(resolve.group)

    def finish(self, now_ns: int) -> None:
        """Write the rows of all other tasks. The times of tasks without an end are censored."""
        self.write_late()
        for number in list(self._groups):
            self._close_group(number)
        for task in self._tasks.values():
            if task.result is NO_RESULT:
                task.done_ns = now_ns
            self._write_task(task)
        self._tasks.clear()

    def _group_of(self, number: int, first: int) -> _Group:
        """The group with this number; it is made when its first image is seen.

        Images and groups are numbered in order of arrival, so a group ends where the next one
        begins. This gives the size of a group that was closed before it was full.

        Args:
            number: of the group.
            first: number of its image in cell 0.
        """
        group = self._groups.get(number)
        if group is not None:
            return group
        group = self._groups[number] = _Group(first, self._group_size)
        following, previous = self._groups.get(number + 1), self._groups.get(number - 1)
        if following is not None:
            group.size = following.first - first
        if previous is not None:
            previous.size = first - previous.first
            self._close_if_whole(number - 1)
        return group

    def _close_if_whole(self, number: int) -> None:
        group = self._groups.get(number)
        if group is not None and group.images == group.size:
            self._close_group(number)

    def _close_group(self, number: int) -> None:
        group = self._groups[number]
        while group.ended:
            task = group.ended[0]
            if task.open == 1:
                self._write_task(task)  # first: see `resolved`
                del self._tasks[task.send.task]
            task.open -= 1
            del group.ended[0]
        del self._groups[number]

    def _image_row(
        self,
        resolve: Resolve,
        record: ImageRecord,
        label: int | None,
        task: _Task | None,
        encode_ns: int,
        now_ns: int,
    ) -> tuple[Any, ...]:
        """A row in the order of ImageRow; a tuple takes a sixth of the time of an ImageRow."""
        predicted, score = resolve.score or NO_SCORE
        result = task.result if task is not None else NO_RESULT
        return (
            record.shard,
            record.row,
            resolve.group,
            resolve.cell,
            SOURCE_CODE[resolve.source],
            resolve.score is not None,  # answered
            predicted,
            score,
            label is not None,  # has_label
            label if label is not None else 0,
            task.send.rank if task is not None else 0,
            task.send.attempt if task is not None else 0,
            record.t0_ns - self._start_ns,
            now_ns - record.t0_ns,  # latency_ns
            record.read_ns + result.read_ns,
            encode_ns + (task.encode_ns if task is not None else 0),
            task.decode_ns if task is not None else 0,
            result.compute_ns,
            self._writer.session,
            resolve.group < self._warmup_groups,
            AUDIT_CODE[resolve.audited],
            *(resolve.other or NO_SCORE),
            result.runtime,
            resolve.reason or NO_REASON,
        )

    def _write_task(self, task: _Task) -> None:
        send, result = task.send, task.result
        group = send.group if not self._by_number else send.items[0].image // self._group_size
        row = (  # in the order of TaskRow
            send.task,
            send.rank,
            KIND_CODE[send.kind],
            group,
            send.attempt,
            len(send.items),
            task.resolved,
            task.sent_ns - self._start_ns,
            max(task.done_ns, task.sent_ns) - self._start_ns,
            result.compute_ns,
            OUTCOME_CODE[OUTCOMES[result.status]],
            self._writer.session,
            group < self._warmup_groups,
            result.reason or NO_REASON,
        )
        self._writer.task(row)


def _trusted_label(record: ImageRecord, resolve: Resolve, task: _Task | None) -> int | None:
    """The label of an image that a rank could not read, or None if the label cannot be trusted.

    It cannot if no rank could read the image, or if the row is bad and only its stored cell was
    classified. This is what rank 0 would decide if it had read the row.
    """
    by_row = task is not None and not KIND[task.send.kind].encoded
    untrusted = resolve.outcome == "error" or (record.unread and not by_row)
    return None if untrusted else record.label

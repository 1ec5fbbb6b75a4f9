"""From what happens to the rows of a run.

A group's row is written when its last image is resolved (and, if it was closed part-filled,
the next group is seen), a task's when it has ended and its group is done, since until then
a held answer of it may still resolve an image. The row of a bundle, whose images may be of several
groups, is written when it has ended and all its images are resolved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np

from collage_mpi.encoding.vectors import Extras
from collage_mpi.kinds import COLLAGE, KIND
from collage_mpi.mpi.answers import ANSWERED, FAILED, SKIPPED, WireResult
from collage_mpi.results.rows import (
    AUDIT_CODE,
    KIND_CODE,
    OUTCOME_CODE,
    SOURCE_CODE,
    GroupRow,
    ImageRow,
    TaskRow,
)
from collage_mpi.scheduler.events import Resolve, Send, Unread
from collage_mpi.shards.readahead import ImageRecord


class Writer(Protocol):
    """Where rows go."""

    session: int

    def image(self, row: ImageRow, /) -> None: ...
    def group(self, row: GroupRow, /) -> None: ...
    def task(self, row: TaskRow, /) -> None: ...


# A task whose compute + held is over this times its draw met no delay of the model: the network
# computed too long, or the rank was not given its core back in time (docs/stragglers.md).
TOLERATED = 1.1


class Vectors:
    """Picks the vector of the answer that resolved an image, which is kept."""

    def __init__(
        self, extras: Extras, write: Callable[[int, int, np.ndarray], None], evidence: int = 0
    ) -> None:
        """`write(shard, row, vector)` keeps it.

        `evidence`: numbers before it that are the scheme's, of an answer that has both.
        """
        self._extras, self._write, self._evidence = extras, write, evidence
        self._decoded: dict[int, np.ndarray] = {}

    def decoded(self, image: int, scores: np.ndarray) -> None:
        """The image's scores, (classes,), as several answers together give them."""
        self._decoded[image] = self._extras.pack(scores[None].astype(np.float32))[0]

    def keep(self, resolve: Resolve, record: ImageRecord, send: Send, result: WireResult) -> None:
        """The image is resolved by the task's answer; its row follows."""
        vector = self._decoded.pop(resolve.image, None)
        if vector is None:
            assert result.vectors is not None
            place = next(i for i, (image, _) in enumerate(send.items) if image == resolve.image)
            vector = result.vectors[place, self._evidence :]  # (floats,) float32
        self._write(record.shard, record.row, vector)


NO_RESULT = WireResult(0, 0)  # of a task that has not ended
OUTCOMES = {ANSWERED: "answered", FAILED: "failed", SKIPPED: "skipped"}


NO_SCORE = (0, 0.0)
NO_REASON = b""  # as it is stored: of a text the writer makes bytes, and the row anew


class _Image(NamedTuple):
    record: ImageRecord
    t0_ns: int
    read_ns: int


@dataclass(slots=True)
class _Task:
    send: Send
    sent_ns: int
    result: WireResult
    done_ns: int = 0
    decode_ns: int = 0
    outcome: str = "unfinished"
    encode_ns: int = 0
    resolved: int = 0
    open: int = 0  # of a bundle, images that are not resolved yet
    waits: bool = False  # for them alone
    reason: str = ""


@dataclass(slots=True)
class _Group:
    first: int  # image in cell 0
    size: int  # images it has, or may have while nothing is known of the next group
    t0_ns: int
    read_ns: int
    encode_ns: int = 0
    images: int = 0
    last_ns: int = 0
    collage_cells: int = 0
    labels: set[int] = field(default_factory=set)
    ended: list[_Task] = field(default_factory=list)


@dataclass
class Totals:
    """Counts for the status line and the validity of injected delays."""

    images: int = 0
    errors: int = 0
    collage: int = 0
    audited: int = 0  # accepted answers beside which the single network was asked
    differing: int = 0  # of these, where it gave another class
    drawn_tasks: int = 0
    exceeded: int = 0


class Recorder:
    """Told of every admission, send, end and outcome; writes rows. Times are rank 0's."""

    def __init__(
        self,
        writer: Writer,
        *,
        start_ns: int,
        group_size: int,
        warmup_groups: int,
        vectors: Vectors | None = None,
    ) -> None:
        """`vectors` picks what is kept of an image beyond its class, where anything is."""
        self.totals = Totals()
        self._vectors = vectors
        self._writer = writer
        self._start_ns = start_ns
        self.began_ns = time.time_ns()  # Unix time of `start_ns`, to lay sessions side by side
        self._group_size = group_size
        self._warmup_groups = warmup_groups
        self._images: dict[int, _Image] = {}
        self._tasks: dict[int, _Task] = {}
        self._groups: dict[int, _Group] = {}
        # Images that a rank could not read, and whether a rank has found the row itself to be bad
        self._unread: dict[int, bool] = {}
        self._bundles: dict[int, list[_Task]] = {}  # unresolved image -> bundles it left in

    def warm_up_from(self, group: int) -> None:
        """The session's first group has that number."""
        self._warmup_groups += group

    def admitted(self, image: int, record: ImageRecord, t0_ns: int, read_ns: int) -> None:
        """An image of the input entered at t0_ns; reading its group took read_ns."""
        self._images[image] = _Image(record, t0_ns, read_ns)

    def sent(self, sends: Sequence[Send], now_ns: int, encodes_ns: Sequence[int]) -> None:
        """Tasks left in one message; for a collage or a stripe, encoding it took so long."""
        for send, encode_ns in zip(sends, encodes_ns, strict=True):
            task = self._tasks[send.task] = _Task(send, now_ns, NO_RESULT)
            if send.bundle:
                task.encode_ns, task.open = encode_ns, len(send.items)
                for (image, _), place in zip(send.items, send.bundle, strict=True):
                    self._bundles.setdefault(image, []).append(task)
                    self._group_of(place[0], image, place[1])
            else:
                self._group_of(send.group, *send.items[0]).encode_ns += encode_ns

    def ended(self, results: Sequence[WireResult], now_ns: int, decode_ns: int) -> None:
        """Tasks ended on their rank, which has said so in one message."""
        for result in results:
            task = self._tasks[result.task]
            task.result, task.outcome, task.done_ns = result, OUTCOMES[result.status], now_ns
            task.decode_ns, task.reason = decode_ns, result.reason
            if result.unread:
                self._note_unread(task.send, result.unread)
            if result.drawn_ns > 0 and result.status == ANSWERED:
                self.totals.drawn_tasks += 1
                took_ns = result.compute_ns + result.held_ns
                self.totals.exceeded += took_ns > TOLERATED * result.drawn_ns

    def _note_unread(self, send: Send, unread: Sequence[Unread | None]) -> None:
        for (image, _), why in zip(send.items, unread, strict=True):
            if why is not None and image in self._images:
                self._unread[image] = why.of_input or self._unread.get(image, False)

    def settled(self, tasks: Iterable[int]) -> None:
        """The scheduler has acted on the end of these: file each, or keep it for its group."""
        for task_id in tasks:
            task = self._tasks[task_id]
            group = self._groups.get(task.send.group)
            if task.open:
                task.waits = True
            elif group is not None and not task.send.bundle:
                group.ended.append(task)  # a reserved answer may still resolve an image
            else:
                self._file(task)

    def _file(self, task: _Task) -> None:
        del self._tasks[task.send.task]
        self._write_task(task)

    def lost(self, rank: int, now_ns: int, why: str) -> None:
        """The rank is gone: its tasks ended without an answer."""
        for task_id, task in list(self._tasks.items()):
            if task.send.rank == rank and task.outcome == "unfinished":
                task.outcome, task.done_ns, task.reason = "lost", now_ns, why
                self.settled((task_id,))

    def resolved(self, resolve: Resolve, now_ns: int) -> None:
        """An image has its outcome, known at now_ns, or decided before and audited since."""
        if resolve.decided_ns is not None:
            now_ns = resolve.decided_ns
        group = self._group_of(resolve.group, resolve.image, resolve.cell)
        image, totals = self._images[resolve.image], self.totals
        task = self._tasks[resolve.tasks[0]] if resolve.tasks else None
        if resolve.image in self._unread:
            by_row = task is not None and not KIND[task.send.kind].encoded
            if resolve.outcome == "error" or (self._unread[resolve.image] and not by_row):
                # As when rank 0 reads, a row that nobody could read has no label to be trusted.
                # Neither has a bad row whose stored cell was classified.
                image = image._replace(record=replace(image.record, label=None))
        if self._vectors is not None and task is not None:
            self._vectors.keep(resolve, image.record, task.send, task.result)
        # First: a writer that raises leaves everything as if this had not happened.
        self._writer.image(self._image_row(resolve, image, task, group, now_ns))
        del self._images[resolve.image]
        self._unread.pop(resolve.image, None)
        if task is not None:  # of several the first: the others resolved images of their own
            task.resolved += 1
        group.images += 1
        if now_ns > group.last_ns:
            group.last_ns = now_ns
        if image.record.label is not None:
            group.labels.add(image.record.label)
        totals.images += 1
        if resolve.source == COLLAGE:
            group.collage_cells += 1
            totals.collage += 1
        totals.errors += resolve.outcome == "error"
        if resolve.decided_ns is not None and resolve.other and resolve.score:
            totals.audited += 1
            totals.differing += resolve.other.label != resolve.score.label
        for bundle in self._bundles.pop(resolve.image, ()):
            bundle.open -= 1
            if bundle.waits and not bundle.open:
                self._file(bundle)
        if group.images == group.size:
            self._close_group(resolve.group)

    def finish(self, now_ns: int) -> None:
        """File what is left: part-filled groups; tasks without an end, which are censored now."""
        for number in list(self._groups):
            self._close_group(number)
        for task in self._tasks.values():
            if task.outcome == "unfinished":
                task.done_ns = now_ns
            self._write_task(task)
        self._tasks.clear()

    def _group_of(self, number: int, image: int, cell: int) -> _Group:
        """The group, made at the first sight of one of its images.

        Images and groups are numbered in order of arrival: where the next group begins, this
        one ends, which tells the size of a group that was closed part-filled.
        """
        group = self._groups.get(number)
        if group is not None:
            return group
        first = image - cell
        member = self._images.get(first) or self._images[image]  # all one t0 in a closed loop
        group = _Group(first, self._group_size, member.t0_ns, member.read_ns)
        self._groups[number] = group
        following, previous = self._groups.get(number + 1), self._groups.get(number - 1)
        if following is not None:
            group.size = following.first - first
        if previous is not None:
            previous.size = first - previous.first
            if previous.images == previous.size:
                self._close_group(number - 1)
        return group

    def _close_group(self, number: int) -> None:
        group = self._groups.pop(number)
        for task in group.ended:
            self._tasks.pop(task.send.task, None)
            self._write_task(task)
        if group.images == 0:
            return  # no image of it was resolved: it will be done again
        row = GroupRow(
            group=number,
            images=group.images,
            t0_ns=group.t0_ns - self._start_ns,
            latency_ns=group.last_ns - group.t0_ns,
            read_ns=group.read_ns,
            encode_ns=group.encode_ns,
            classes=len(group.labels),
            collage_cells=group.collage_cells,
            session=self._writer.session,
            warmup=number < self._warmup_groups,
        )
        self._writer.group(row)

    def _image_row(
        self, resolve: Resolve, image: _Image, task: _Task | None, group: _Group, now_ns: int
    ) -> ImageRow:
        label, score = resolve.score or NO_SCORE
        known = image.record.label
        result = task.result if task is not None else NO_RESULT
        return ImageRow(  # in order: by name it takes twice as long
            image.record.shard,
            image.record.row,
            resolve.group,
            resolve.cell,
            SOURCE_CODE[resolve.source],
            resolve.score is not None,  # answered
            label,  # predicted
            score,
            known is not None,  # has_label
            known if known is not None else 0,
            task.send.rank if task is not None else 0,
            task.send.attempt if task is not None else 0,
            image.t0_ns - self._start_ns,
            now_ns - image.t0_ns,  # latency_ns
            image.read_ns + result.read_ns,
            group.encode_ns + (task.encode_ns if task is not None else 0),
            task.decode_ns if task is not None else 0,
            result.compute_ns,
            result.held_ns,
            self._writer.session,
            resolve.group < self._warmup_groups,
            AUDIT_CODE[resolve.audited],
            *(resolve.other or NO_SCORE),
            resolve.reason or NO_REASON,
        )

    def _write_task(self, task: _Task) -> None:
        send, result = task.send, task.result
        row = TaskRow(  # in order: by name it takes twice as long
            send.task,
            send.rank,
            KIND_CODE[send.kind],
            send.group,
            send.attempt,
            len(send.items),
            task.resolved,
            task.sent_ns - self._start_ns,
            max(task.done_ns, task.sent_ns) - self._start_ns,
            result.compute_ns,
            result.held_ns,
            result.drawn_ns,
            OUTCOME_CODE[task.outcome],
            self._writer.session,
            send.group < self._warmup_groups,
            task.reason or NO_REASON,
        )
        self._writer.task(row)

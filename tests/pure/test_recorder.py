"""Rows by hand: every time and price of a group, each number its own, where it should stand."""

from __future__ import annotations

from contextlib import suppress
from unittest.mock import Mock

import numpy as np
import pytest
from rows_by_name import group_rows

from collage_mpi.encoding.vectors import Extras
from collage_mpi.errors import EnvironmentFault
from collage_mpi.job.image_buffer import ImageRun, InFlight
from collage_mpi.job.recorder import Grouping, Recorder, Vectors
from collage_mpi.mpi.answers import ANSWERED, CELL, FAILED, SKIPPED, Cells, WireResult
from collage_mpi.rows import (
    KIND_CODE,
    OUTCOME_CODE,
    SOURCE_CODE,
    GroupRow,
    ImageRow,
    TaskRow,
)
from collage_mpi.scheduler import events as ev
from collage_mpi.shards.readahead import Columns, ImageRecord

SINGLE, COLLAGE = "single", "collage"
START_NS = 1_000_000


class Rows:
    """A writer that keeps what it is given."""

    session = 3

    def __init__(self) -> None:
        self.images, self.tasks = [], []

    def image(self, row: tuple) -> None:
        self.images.append(ImageRow(*row))

    @property
    def groups(self) -> list[GroupRow]:
        return group_rows(self.images)

    def image_rows(self, rows: np.ndarray) -> None:
        self.images += [ImageRow(*row) for row in rows.tolist()]

    def task(self, row: tuple) -> None:
        self.tasks.append(TaskRow(*row))


def recorder(warmup_groups: int = 0) -> tuple[Rows, Recorder]:
    rows = Rows()
    return rows, Recorder(rows, {}, start_ns=START_NS, grouping=Grouping(2, warmup_groups))


def admit(book: Recorder, image: int, label: int | None, t0_ns: int = 0, read_ns: int = 0) -> None:
    """As the coordinator does with an image of the input."""
    record = ImageRecord(image, 4, 50 + image, None, label)
    record.t0_ns, record.read_ns = START_NS + t0_ns, read_ns
    book._images[image] = record


def send(
    task: int, rank: int, kind: str, cells: dict[int, int], group: int, attempt: int
) -> ev.Send:
    items = tuple(ev.Item(image, cell) for image, cell in cells.items())
    return ev.Send(task, rank, kind, items, group, attempt)


def ended(book: Recorder, now_ns: int, decode_ns: int, result: WireResult) -> None:
    book.ended([result], START_NS + now_ns, decode_ns)


def resolved(
    image: int, source: str, tasks: tuple[int, ...], cell: int, label: int | None, reason: str = ""
) -> ev.Resolve:
    score = None if label is None else ev.Score(label, 0.5 + image / 8)
    return ev.Resolve(
        image, source, tasks, 9, cell, score, "error" if score is None else "ok", reason
    )


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("before", [0, 6])
def test_a_group_of_two_runs_is_the_same_written_at_once_or_in_parts(before, labelled):
    """It begins with its earliest image, which is answered last here. Its number follows from its
    images' only where there are none `before` that were of a part-filled group."""

    cells = Cells(memoryview(np.array([(7, 0.5, 1, 0)] * 2, CELL).tobytes()))
    for in_parts in (False, True):
        rows, images = Rows(), InFlight()
        for first, t0_ns, read_ns in ((0, 0, 22), (2, 50, 11)):
            first, two = before + first, np.arange(first, first + 2)
            columns = Columns(two, two, two, two if labelled else None)
            images.add_run(ImageRun(first, columns, START_NS + t0_ns, read_ns))
        grouping = Grouping(4, 1, by_number=not before)
        book = Recorder(rows, images, start_ns=START_NS, grouping=grouping)
        for task, now_ns in ((1, 300), (0, 900)):
            at = 2 * task
            items = {before + at: at, before + at + 1: at + 1}
            book.sent([send(task, 1, SINGLE, items, 0, 1)], START_NS, [0])
            ended(book, now_ns, 1, WireResult(task, ANSWERED))
            source = COLLAGE if task else SINGLE
            run = ev.ResolveRun(before + at, source, task, 0, at, cells)
            book.run_resolved(run, START_NS + now_ns)
            if in_parts:
                book.write_late()
        book.write_late()
        assert [image.latency_ns for image in rows.images] == [250, 250, 900, 900]
        assert {(image.session, image.warmup) for image in rows.images} == {(3, True)}
        assert [image.has_label for image in rows.images] == [labelled] * 4
        assert rows.groups == [GroupRow(0, 4, 0, 900, 0, 4 * labelled, 2, 3, True)]


def test_groups_are_told_apart_whichever_is_answered_first():
    rows, images = Rows(), InFlight()
    cells = Cells(memoryview(np.array([(7, 0.5, 1, 0)] * 2, CELL).tobytes()))
    book = Recorder(rows, images, start_ns=START_NS, grouping=Grouping(2, 1))
    for first in (0, 2):
        two = np.arange(first, first + 2)
        columns = Columns(two, two, two, np.maximum(two, 2))
        images.add_run(ImageRun(first, columns, START_NS + 10 * first, 5 + first))
    for group, source, now_ns in ((1, COLLAGE, 300), (0, SINGLE, 900)):
        items = {2 * group: 0, 2 * group + 1: 1}
        book.sent([send(group, 1, SINGLE, items, group, 1)], START_NS, [0])
        ended(book, now_ns, 1, WireResult(group, ANSWERED))
        run = ev.ResolveRun(2 * group, source, group, group, 0, cells)
        book.run_resolved(run, START_NS + now_ns)
    book.write_late()
    assert [image.group for image in rows.images] == [1, 1, 0, 0]
    assert rows.groups == [
        GroupRow(0, 2, 0, 900, 0, 1, 0, 3, True),
        GroupRow(1, 2, 20, 280, 0, 2, 2, 3, False),
    ]


def test_a_group_row_by_row():
    rows, book = recorder(warmup_groups=9)
    admit(book, 0, 6, 100, 11)
    admit(book, 1, 7, 101, 12)
    book.sent([send(20, 1, SINGLE, {0: 0}, 9, 1)], START_NS + 110, [0])
    book.sent([send(21, 2, SINGLE, {1: 1}, 9, 1)], START_NS + 120, [0])
    book.sent([send(22, 5, COLLAGE, {0: 0, 1: 1}, 9, 2)], START_NS + 150, [30])
    ended(book, 200, 1, WireResult(21, FAILED, reason="boom"))
    book.settled((21,))
    ended(book, 300, 17, WireResult(20, ANSWERED, 41, read_ns=5))
    book.resolved(resolved(0, SINGLE, (20,), 0, 6), START_NS + 290)
    book.settled((20,))
    assert rows.tasks == [], "the group is not over"
    ended(book, 400, 19, WireResult(22, ANSWERED, 51))
    book.resolved(resolved(1, COLLAGE, (22,), 1, 3), START_NS + 390)
    book.settled((22,))
    single, collage = rows.images
    assert single == (
        4, 50, 9, 0, SOURCE_CODE["single"], True, 6, 0.5, True, 6, 1, 1, 100, 190,
        16, 30, 17, 41, 3, False, 0, 0, 0.0, 0, b"",
    )  # fmt: skip
    assert collage == (
        4, 51, 9, 1, SOURCE_CODE["collage"], True, 3, 0.625, True, 7, 5, 2, 101, 289,
        12, 30, 19, 51, 3, False, 0, 0, 0.0, 0, b"",
    )  # fmt: skip
    assert rows.groups == [(9, 2, 100, 290, 30, 2, 1, 3, False)]
    codes, kinds = OUTCOME_CODE, KIND_CODE
    assert rows.tasks == [
        (21, 2, kinds[SINGLE], 9, 1, 1, 0, 120, 200, 0, codes["failed"], 3, False, "boom"),
        (20, 1, kinds[SINGLE], 9, 1, 1, 1, 110, 300, 41, codes["answered"], 3, False, b""),
        (22, 5, kinds[COLLAGE], 9, 2, 2, 1, 150, 400, 51, codes["answered"], 3, False, b""),
    ]  # fmt: skip
    totals = book.totals
    assert (totals.images, totals.errors, totals.collage) == (2, 0, 1)


def test_a_group_begins_with_the_first_of_its_images_whichever_is_sent_first():
    rows, book = recorder()
    admit(book, 0, 6, 100, 11)
    admit(book, 3, 6, 140, 12)  # those between are of rows that could not be read
    book.sent([send(20, 2, SINGLE, {3: 1}, 9, 1)], START_NS + 150, [0])
    book.sent([send(21, 1, SINGLE, {0: 0}, 9, 1)], START_NS + 160, [0])
    for task, image, cell in ((20, 3, 1), (21, 0, 0)):
        ended(book, 300 + task, 1, WireResult(task, ANSWERED))
        book.resolved(resolved(image, SINGLE, (task,), cell, 6), START_NS + 300 + task)
        book.settled((task,))
    (group,) = rows.groups
    assert (group.t0_ns, group.latency_ns) == (100, 221)


def test_a_late_task_that_could_not_be_taken_is_written_at_the_end(monkeypatch):
    rows, book = recorder()
    admit(book, 0, 6)
    book.sent([send(20, 1, SINGLE, {0: 0}, 9, 1)], START_NS, [0])
    book.finish(START_NS)  # its group is over
    book.sent([send(21, 1, SINGLE, {0: 0}, 9, 1)], START_NS, [0])
    book._groups.clear()
    ended(book, 300, 1, WireResult(21, ANSWERED))
    with monkeypatch.context() as full:
        full.setattr(rows, "task", Mock(side_effect=EnvironmentFault("no space left")))
        with pytest.raises(EnvironmentFault):
            book.settled((21,))
    book.finish(START_NS + 400)
    assert [task.task for task in rows.tasks] == [20, 21]


def test_a_row_that_could_not_be_taken_is_written_at_the_end(monkeypatch):
    rows, book = recorder()
    for image in (0, 1):
        admit(book, image, 6)
        book.sent([send(20 + image, 1, SINGLE, {image: image}, 9, 1)], START_NS, [0])
    with monkeypatch.context() as full:
        full.setattr(rows, "task", Mock(side_effect=EnvironmentFault("no space left")))
        for image in (0, 1):
            ended(book, 300, 1, WireResult(20 + image, ANSWERED))
            with suppress(EnvironmentFault):
                book.resolved(resolved(image, SINGLE, (20 + image,), image, 6), START_NS + 300)
            with suppress(EnvironmentFault):
                book.settled((20 + image,))
        with pytest.raises(EnvironmentFault):
            book.finish(START_NS + 400)
    book.finish(START_NS + 400)
    assert [task.task for task in rows.tasks] == [20, 21]
    assert [task.resolved for task in rows.tasks] == [1, 1]
    assert [group.group for group in rows.groups] == [9]


def bundled(task: int, images: list[int]) -> ev.Send:
    """A task of images of several groups, the first one group 9."""
    cells = {image: place for place, image in enumerate(images)}
    places = tuple((9 + image // 2, image % 2) for image in images)
    return send(task, 5, COLLAGE, cells, places[0][0], 1)._replace(bundle=places)


def test_an_audited_answer_counts_from_when_it_was_decided():
    rows, book = recorder()
    admit(book, 0, 6, 100, 11)
    admit(book, 1, 6, 100, 11)
    book.sent([send(20, 1, SINGLE, {0: 0}, 9, 1)], START_NS + 110, [0])
    ended(book, 300, 17, WireResult(20, ANSWERED, 41))
    audit = {"audited": "done", "other": ev.Score(8, 0.25), "decided_ns": START_NS + 290}
    decided = resolved(0, COLLAGE, (20,), 0, 6)._replace(**audit)
    book.resolved(decided, START_NS + 900)
    same = decided._replace(image=1, cell=1, score=ev.Score(8, 1.0))
    book.resolved(same._replace(decided_ns=START_NS + 310), START_NS + 901)
    first, second = rows.images
    assert (first.latency_ns, second.latency_ns) == (190, 210)
    assert (first.audited, first.other, first.other_score, first.reason) == (1, 8, 0.25, b"")
    assert rows.groups[0].latency_ns == 210
    assert (book.totals.audited, book.totals.differing) == (2, 1)


def test_a_group_lasts_as_long_as_its_latest_image_whichever_is_told_of_last():
    rows, book = recorder()
    admit(book, 0, 6, 100, 11)
    admit(book, 1, 6, 100, 11)
    book.sent([send(20, 1, SINGLE, {0: 0, 1: 1}, 9, 1)], START_NS + 110, [0])
    ended(book, 300, 17, WireResult(20, ANSWERED, 41))
    book.resolved(resolved(0, SINGLE, (20,), 0, 6), START_NS + 310)
    audited = resolved(1, COLLAGE, (20,), 1, 6)._replace(audited="failed")
    book.resolved(audited._replace(decided_ns=START_NS + 290), START_NS + 900)
    assert rows.groups[0].latency_ns == 210


def test_an_audit_that_could_not_be_had_is_told_and_not_counted():
    rows, book = recorder()
    admit(book, 0, 6, 100, 11)
    book.sent([send(20, 1, SINGLE, {0: 0}, 9, 1)], START_NS + 110, [0])
    ended(book, 300, 17, WireResult(20, ANSWERED, 41))
    kept = resolved(0, COLLAGE, (20,), 0, 6)._replace(audited="failed", decided_ns=START_NS + 290)
    book.resolved(kept, START_NS + 900)
    (row,) = rows.images
    assert (row.latency_ns, row.audited, row.other, row.other_score) == (190, 2, 0, 0.0)
    assert (book.totals.audited, book.totals.differing) == (0, 0)


def test_an_audit_of_an_unsure_image_counts_as_none():
    rows, book = recorder()
    admit(book, 0, 6, 100, 11)
    book.sent([send(20, 1, SINGLE, {0: 0}, 9, 1)], START_NS + 110, [0])
    ended(book, 300, 17, WireResult(20, ANSWERED, 41))
    single = resolved(0, SINGLE, (20,), 0, 6)._replace(audited="done", other=ev.Score(8, 0.25))
    book.resolved(single, START_NS + 290)
    assert rows.images[0].other == 8
    assert (book.totals.audited, book.totals.differing) == (0, 0)


def test_a_bundle_row_by_row():
    """Task 30 answers images of two groups, but for image 1, which task 31 does."""
    rows, book = recorder()
    for image in range(4):
        admit(book, image, 6, 100, 11)
    book.sent([bundled(30, [0, 1, 2])], START_NS + 110, [30])
    ended(book, 200, 17, WireResult(30, ANSWERED, 41))
    book.resolved(resolved(0, COLLAGE, (30,), 0, 6), START_NS + 210)
    book.resolved(resolved(2, COLLAGE, (30,), 0, 6)._replace(group=10), START_NS + 210)
    book.sent([send(31, 1, SINGLE, {1: 1}, 9, 1)], START_NS + 220, [0])
    book.settled((30,))
    assert rows.tasks == [], "image 1 is open, and may yet be resolved by the kept answer"
    ended(book, 300, 1, WireResult(31, ANSWERED, 51))
    book.resolved(resolved(1, SINGLE, (31,), 1, 6), START_NS + 310)
    book.settled((31,))
    assert [row.task for row in rows.tasks] == [31], "image 3 of group 10 is open"
    book.resolved(resolved(3, "error", (), 1, None, "gone")._replace(group=10), START_NS + 320)
    assert [(row.task, row.items, row.resolved, row.outcome) for row in rows.tasks[1:]] == [
        (30, 3, 2, OUTCOME_CODE["answered"])
    ]
    assert [(row.row, row.encode_ns, row.decode_ns, row.rank) for row in rows.images[:3]] == [
        (50, 30, 17, 5),
        (52, 30, 17, 5),
        (51, 0, 1, 1),
    ]
    counted = [(row.group, row.encode_ns, row.collage_cells) for row in rows.groups]
    assert counted == [(9, 30, 1), (10, 30, 1)]
    assert book._tasks == {}


def test_the_row_of_a_bundle_is_written_at_its_end_where_no_group_of_it_is_open():
    rows, book = recorder()
    for image in range(2):
        admit(book, image, 6)
    book.sent([bundled(30, [0, 1])], START_NS, [30])
    for image in range(2):
        book.resolved(resolved(image, "error", (), image, None, "gone"), START_NS + 175)
    ended(book, 200, 17, WireResult(30, SKIPPED))
    assert rows.tasks == [], "the scheduler has not said all about it"
    book.settled((30,))
    assert ([row.task for row in rows.tasks], len(rows.groups)) == ([30], 1)
    assert book._tasks == {}


def test_a_bundle_whose_rank_is_lost_is_written_with_the_last_of_its_images():
    rows, book = recorder()
    for image in range(2):
        admit(book, image, 6)
    book.sent([bundled(30, [0, 1])], START_NS, [0])
    book.lost(5, START_NS + 170, "killed")
    for image in range(2):
        assert rows.tasks == []
        book.resolved(resolved(image, "error", (), image, None, "gone"), START_NS + 175)
    (row,) = rows.tasks
    assert (row.outcome, row.resolved, row.done_ns) == (OUTCOME_CODE["lost"], 0, 170)


def test_a_bundle_tells_where_a_group_that_was_closed_part_filled_ends():
    """Group 9 has one image, and image 1 is the first of group 10."""
    _, book = recorder()
    for image in range(2):
        admit(book, image, 6)
    book.sent([bundled(30, [0, 1])._replace(bundle=((9, 0), (10, 0)))], START_NS, [0])
    ended(book, 200, 17, WireResult(30, ANSWERED))
    book.resolved(resolved(0, COLLAGE, (30,), 0, 6), START_NS + 210)
    assert sorted(book._groups) == [10]


def test_an_image_may_leave_in_a_second_bundle():
    rows, book = recorder()
    for image in range(2):
        admit(book, image, 6)
    for task in (30, 31):
        book.sent([bundled(task, [0, 1])], START_NS, [0])
        ended(book, 200, 17, WireResult(task, ANSWERED))
    book.settled((30, 31))
    for image in range(2):
        assert rows.tasks == []
        book.resolved(resolved(image, COLLAGE, (31,), image, 6), START_NS + 210)
    assert [(row.task, row.resolved) for row in rows.tasks] == [(30, 0), (31, 2)]


def test_what_is_written_is_forgotten():
    _, book = recorder()
    unread = ev.Unread("worn", of_input=True)
    for image in range(4):
        group = 8 + image // 2
        admit(book, image, None)
        book.sent([send(image, 1, SINGLE, {image: image % 2}, group, 1)], START_NS, [0])
        ended(book, 1, 0, WireResult(image, FAILED, reason="worn", unread=(unread,)))
        book.settled((image,))
        error = resolved(image, "error", (), image % 2, None, "worn")
        book.resolved(error._replace(group=group), START_NS + 2)
    assert not any((book._groups, book._tasks))


def test_a_late_answer_for_a_released_image_of_a_run_leaves_nothing_behind():
    images, numbers = InFlight(), np.arange(2)
    images.add_run(ImageRun(0, Columns(numbers, numbers * 0, numbers, None)))
    book = Recorder(Rows(), images, start_ns=START_NS, grouping=Grouping(2, 0))
    book.sent([send(0, 1, SINGLE, {0: 0, 1: 1}, 0, 1)], START_NS, [0])
    images.release((0,))
    unread = ev.Unread("worn", of_input=True)
    ended(book, 1, 0, WireResult(0, FAILED, reason="worn", unread=(unread, unread)))
    assert images[1].unread
    images.release((1,))
    assert not images


def test_an_error_row_that_no_rank_could_read_has_no_label():
    """Whether its row was bad or its whole file was replaced; a sound answer keeps the label."""
    rows, book = recorder()
    whole_file = (ev.Unread("has changed since the job began", of_input=False),)
    for image in range(2):
        admit(book, image, 6)
        book.sent([send(image, 1, SINGLE, {image: image}, 9, 1)], START_NS, [0])
        ended(book, 1, 0, WireResult(image, FAILED, reason="gone", unread=whole_file))
        book.settled((image,))
    book.sent([send(2, 2, COLLAGE, {1: 1}, 9, 2)], START_NS, [0])
    ended(book, 2, 0, WireResult(2, ANSWERED))
    book.resolved(resolved(0, "error", (), 0, None, "gone"), START_NS + 3)
    book.resolved(resolved(1, COLLAGE, (2,), 1, 6), START_NS + 3)
    labels = [(row.answered, row.has_label, row.label) for row in rows.images]
    assert labels == [(False, False, 0), (True, True, 6)]


def test_a_row_of_a_mapped_function_has_no_label():
    extras = Extras(top_k=None, save="outputs")
    kept: list[tuple] = []
    rows = Rows()
    vectors = Vectors(extras, lambda *row: kept.append(row))
    book = Recorder(rows, {}, start_ns=START_NS, grouping=Grouping(2, 0), vectors=vectors)
    admit(book, 0, 6)
    book.sent([send(0, 1, SINGLE, {0: 0}, 9, 1)], START_NS, [0])
    ended(book, 1, 0, WireResult(0, ANSWERED, vectors=np.ones((1, 2), np.float32)))
    book.resolved(resolved(0, SINGLE, (0,), 0, 0), START_NS + 3)
    assert [(row.answered, row.has_label) for row in rows.images] == [(True, False)]
    assert [(shard, row) for shard, row, _ in kept] == [(4, 50)]


def test_a_row_that_one_rank_found_bad_stays_so():
    """Whatever other ranks say after it: a stored cell that is classified keeps no label."""
    rows, book = recorder()
    admit(book, 0, 6)
    for task, of_input in enumerate((False, True, False)):
        why = (ev.Unread("worn", of_input=of_input),)
        book.sent([send(task, 1, SINGLE, {0: 0}, 9, 1)], START_NS, [0])
        ended(book, 1, 0, WireResult(task, FAILED, reason="worn", unread=why))
        book.settled((task,))
    book.sent([send(3, 2, COLLAGE, {0: 0}, 9, 2)], START_NS, [0])
    ended(book, 2, 0, WireResult(3, ANSWERED))
    book.resolved(resolved(0, COLLAGE, (3,), 0, 6), START_NS + 3)
    assert [(row.answered, row.has_label) for row in rows.images] == [(True, False)]


def test_an_error_row_and_what_never_ended():
    rows, book = recorder(warmup_groups=10)
    admit(book, 0, None, 100, 11)
    admit(book, 1, 7, 100, 11)
    book.sent([send(20, 1, SINGLE, {0: 0}, 9, 1)], START_NS + 110, [0])
    book.sent([send(21, 2, SINGLE, {1: 1}, 9, 3)], START_NS + 120, [0])
    book.lost(2, START_NS + 170, "killed")
    book.lost(2, START_NS + 180, "killed twice")
    book.resolved(resolved(1, "error", (), 1, None, "nobody"), START_NS + 175)
    book.finish(START_NS + 500)
    (error,) = rows.images
    assert error == (
        4, 51, 9, 1, SOURCE_CODE["error"], False, 0, 0.0, True, 7, 0, 0, 100, 75,
        11, 0, 0, 0, 3, True, 0, 0, 0.0, 0, "nobody",
    )  # fmt: skip
    assert rows.groups == [(9, 1, 100, 75, 0, 1, 0, 3, True)]
    codes = OUTCOME_CODE
    assert rows.tasks == [
        (21, 2, 0, 9, 3, 1, 0, 120, 170, 0, codes["lost"], 3, True, "killed"),
        (20, 1, 0, 9, 1, 1, 0, 110, 500, 0, codes["unfinished"], 3, True, b""),
    ]
    assert (book.totals.images, book.totals.errors) == (1, 1)

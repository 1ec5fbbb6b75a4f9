"""Scheme batch-backup: the group again as one batch, and what becomes of it."""

from __future__ import annotations

from itertools import permutations

import pytest
from scheduler_harness import BACKUP, SINGLE, Harness, started

from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.state import Message


def job_of(**kwargs) -> Harness:
    """A group of side 2 under way on four singles and a backup rank."""
    return started(scheme="batch-backup", **kwargs)


def test_the_batch_leaves_when_the_group_is_full():
    job = Harness(scheme="batch-backup")
    job.start()
    job.arrive(3)
    assert {send.kind for send in job.live.values()} == {SINGLE}
    job.arrive(1)
    batch = job.live[job.task_of(0, BACKUP)]
    assert batch.items == tuple(ev.Item(i, i) for i in range(4))
    assert batch.rank == 5


def test_whichever_is_first_resolves_in_every_order():
    for order in permutations(range(5)):
        job = job_of()
        job.close()
        tasks = [*(job.task_of(i) for i in range(4)), job.task_of(0, BACKUP)]
        for position in order:
            if job.finish is None:
                job.answer(tasks[position])
        for image in range(4):
            own_first = order.index(image) < order.index(4)
            assert job.resolved[image].source == (SINGLE if own_first else BACKUP)
        assert job.finish == ev.Finish(ev.COMPLETE, "")


def test_what_is_resolved_before_the_batch_leaves_is_left_out():
    job = job_of(depth=2, credit=1)
    first = job.task_of(0, BACKUP)
    for image in (4, 6):  # of the second group, whose batch waits for the first's
        job.answer(job.task_of(image - 4))
        job.answer(job.task_of(image))
    job.answer(first)
    assert [item.image for item in job.live[job.task_of(5, BACKUP)].items] == [5, 7]


def test_a_message_of_batches_has_the_inputs_of_all():
    job = job_of(batch=2, together=True)
    dispatch = job.scheduler.dispatch
    (batch,) = {task.message for task in dispatch.tasks.out.values() if task.kind == BACKUP}
    (single,) = {task.message for task in dispatch.ranks.known[1].outstanding.values()}
    assert isinstance(batch, Message)
    assert (batch.left, batch.inputs) == (2, 8)
    assert (single.left, single.inputs) == (2, 2)


def test_no_batch_is_made_of_a_group_that_is_resolved():
    job = Harness(scheme="batch-backup")
    job.start()
    job.arrive(3)
    for image in range(3):
        job.answer(job.task_of(image))
    job.arrived.add(3)
    job.feed(ev.ImageArrived(job.now_ns, 3, job.now_ns, "cannot be read"))
    assert not job.live


@pytest.mark.parametrize("how", ["lose", "fail", "absent", "suspect"])
def test_an_image_whose_single_goes_wrong_has_its_batch(how):
    job = job_of()
    job.close()
    task = job.task_of(1)
    if how == "lose":
        job.lose(job.live[task].rank)
    elif how == "fail":
        job.fail(task)
    elif how == "absent":
        job.answer(task, frozenset({1}))
    else:
        job.suspect(job.live[task].rank)
    assert [s.kind for s in job.live.values() if any(i.image == 1 for i in s.items)].count(
        SINGLE
    ) == (how == "suspect")  # the batch is out: no second single copy
    job.answer(job.task_of(1, BACKUP))
    assert (job.resolved[1].source, job.resolved[1].outcome) == (BACKUP, "ok")


def test_a_single_that_goes_wrong_before_the_group_is_full_waits_for_the_batch():
    job = Harness(scheme="batch-backup", linger_ns=1000)
    job.start()
    job.arrive(1)
    job.fail(job.task_of(0))
    assert not job.live
    job.fire(min(job.timers))
    assert [item.image for item in job.live[job.task_of(0, BACKUP)].items] == [0]


def test_a_batch_that_fails_is_sent_again_without_what_is_resolved():
    job = job_of(collages=2)
    first = job.task_of(0, BACKUP)
    job.answer(job.task_of(2))
    job.fail(first)
    again = job.live[job.task_of(0, BACKUP)]
    assert (again.attempt, [item.image for item in again.items]) == (2, [0, 1, 3])
    assert again.rank != job.sent[first].rank


def test_an_image_that_could_not_be_read_is_none_of_the_batch():
    job = job_of()
    job.answer(job.task_of(0, BACKUP), unread=frozenset({3}))
    assert sorted(job.resolved) == [0, 1, 2]
    assert job.task_of(3)  # its single goes on


def test_backups_alone_answer_when_all_singles_are_lost():
    job = job_of()
    job.close()
    for rank in range(1, 5):
        job.lose(rank)
    job.run_out()
    assert job.finish.status == ev.COMPLETE
    assert {found.source for found in job.resolved.values()} == {BACKUP}


def test_without_a_backup_rank_nobody_waits_for_one():
    job = Harness(scheme="batch-backup")
    job.start()
    job.lose(5)
    job.arrive(1)
    job.fail(job.task_of(0))
    assert job.live[job.task_of(0)].attempt == 2


def test_a_batch_is_cancelled_when_all_that_it_was_sent_is_resolved():
    job = Harness(scheme="batch-backup")
    job.start()
    job.arrive(3)
    job.answer(job.task_of(0))
    job.arrive(1)
    batch = job.task_of(1, BACKUP)
    assert [item.image for item in job.live[batch].items] == [1, 2, 3]
    for image in (1, 2):
        job.answer(job.task_of(image))
    assert not job.cancelled
    job.answer(job.task_of(3))
    assert job.cancelled == {batch}

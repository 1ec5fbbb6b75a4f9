"""Scheme parity: every order of a stripe's answers, losses and failures, and the odd cases."""

from __future__ import annotations

from itertools import permutations, product

import pytest
from scheduler_harness import PARITY, SINGLE, Harness

from collage_mpi.scheduler import events as ev

MS = 1_000_000
STRIPES = {2: [[0, 1], [2, 3]], 3: [[0, 1, 2], [3]]}  # of a group of side 2


def started(k: int, **kwargs) -> Harness:
    """A job of one group of side 2 under way: stripes of k images and what is left."""
    job = Harness(scheme="parity", parity_k=k, parities=2, **kwargs)
    job.start()
    job.arrive(job.admitted)
    return job


def tasks_of(job: Harness, k: int) -> list[int]:
    """The single tasks of images 0 to 3, then the parity task of each stripe."""
    return [job.task_of(i) for i in range(4)] + [job.task_of(s[0], PARITY) for s in STRIPES[k]]


@pytest.mark.parametrize("k", [2, 3])
def test_stripes_are_made_by_arrival_and_leave_when_they_are_full(k):
    job = Harness(scheme="parity", parity_k=k, parities=2)
    job.start()
    job.arrive(k - 1)
    assert {s.kind for s in job.live.values()} == {SINGLE}
    job.arrive(1)
    parity = job.live[job.task_of(0, PARITY)]
    assert parity.items == tuple(ev.Item(i, i) for i in range(k))
    assert parity.rank == 5  # after the singles
    job.arrive(4 - k)
    assert [i.image for i in job.live[job.task_of(3, PARITY)].items] == STRIPES[k][1]


def test_an_answer_of_its_own_leaves_the_others_of_a_stripe_alone(monkeypatch):
    """Each of them has its task: a look at them all for every answer would be for nothing."""
    job, looked = started(3), []
    monkeypatch.setattr(job.scheduler.retries, "image", looked.append)
    job.answer(job.task_of(0))
    assert looked == []


@pytest.mark.parametrize("k", [2, 3])
def test_whichever_is_first_resolves_in_every_order_of_a_group(k):
    """An image by its single, or once the parity and all others of its stripe are there."""
    for order in permutations(range(6)):
        job = started(k)
        job.close()
        tasks = tasks_of(job, k)
        for step, position in enumerate(order):
            if job.finish is None:
                job.answer(tasks[position])
            for number, stripe in enumerate(STRIPES[k]):
                for image in stripe:
                    rest = [order.index(i) for i in stripe if i != image]
                    own, together = order.index(image), max([*rest, order.index(4 + number)])
                    assert (image in job.resolved) == (min(own, together) <= step)
                    if image in job.resolved:
                        found = job.resolved[image]
                        assert found.source == (SINGLE if own < together else PARITY)
                        assert len(found.tasks) == (1 if own < together else len(stripe))
        assert job.finish == ev.Finish(ev.COMPLETE, "")


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("how", ["lose", "fail", "fail for good", "absent", "silent"])
def test_one_task_of_a_stripe_that_goes_wrong_at_every_moment(how, k):
    """Each task of the first stripe is the victim, in every order of its singles and its parity."""
    stripe = [*STRIPES[k][0], 4]  # places in `tasks_of`
    for victim, order in product(stripe, permutations(stripe)):
        job = started(k, **{"max_attempts": 1} if how == "fail for good" else {})
        job.close()
        tasks = tasks_of(job, k)
        for position in order:
            task = tasks[position]
            if task not in job.live:
                continue
            if position != victim:
                job.answer(task)
            elif how == "lose":
                job.lose(job.live[task].rank)
            elif how == "silent":
                job.suspect(job.live[task].rank)
            elif how == "absent":
                job.answer(task, frozenset(i.image for i in job.live[task].items))
            else:
                job.fail(task)
        job.run_out()
        # A single that is refused for good is made up for by its stripe, whenever that comes.
        assert job.finish.status == ev.COMPLETE
        assert all(r.outcome == "ok" for r in job.resolved.values())


def test_two_of_a_stripe_refused_for_good_are_errors_and_hang_nothing():
    """Images 0 and 1 of stripe 0, 1, 2 in every order: a parity answer makes up for one."""
    for order in permutations([0, 1, 2, 4]):
        job = started(3, max_attempts=1)
        job.close()
        tasks = tasks_of(job, 3)
        for position in order:
            task = tasks[position]
            if task not in job.live:
                continue
            if position < 2:
                job.fail(task)
            else:
                job.answer(task)
        job.run_out()
        assert job.finish.status == ev.COMPLETE_WITH_ERRORS
        assert [job.resolved[i].outcome for i in range(4)] == ["error", "error", "ok", "ok"]


def test_a_failed_single_is_tried_again_at_once_although_a_parity_is_out():
    job = started(2)
    job.fail(job.task_of(0))
    again = job.live[job.task_of(0)]
    assert (again.attempt, again.kind) == (2, SINGLE)


def test_an_image_given_up_by_singles_waits_for_the_others_of_its_stripe():
    job = started(2, max_attempts=1)
    job.fail(job.task_of(0))
    job.answer(job.task_of(0, PARITY))
    assert 0 not in job.resolved
    job.answer(job.task_of(1))
    assert (job.resolved[0].source, job.resolved[0].outcome) == (PARITY, "ok")


def test_what_is_resolved_before_the_parity_leaves_is_left_out():
    job = Harness(scheme="parity", parity_k=3, parities=1)
    job.start()
    job.arrive(2)
    job.answer(job.task_of(0))
    job.arrive(1)
    parity = job.task_of(1, PARITY)
    assert [i.image for i in job.live[parity].items] == [1, 2]
    job.answer(parity)
    job.answer(job.task_of(1))
    assert (job.resolved[2].source, len(job.resolved[2].tasks)) == (PARITY, 2)


def test_a_row_that_cannot_be_read_is_no_part_of_its_stripe():
    job = Harness(scheme="parity", parity_k=2, parities=1)
    job.start()
    job.arrive(1)
    job.arrived.add(1)
    job.admitted -= 1
    job.feed(ev.ImageArrived(job.now_ns, 1, job.now_ns, "cannot be read"))
    parity = job.task_of(0, PARITY)
    assert [i.image for i in job.live[parity].items] == [0]
    job.answer(parity)
    assert job.resolved[0].source == PARITY
    assert job.resolved[1].outcome == "error"


def test_a_late_answer_of_an_image_that_timed_out_still_helps_its_stripe():
    job = Harness(scheme="parity", parity_k=2, parities=1, image_timeout_ns=50 * MS)
    job.start()
    job.arrive(1)
    single = job.task_of(0)
    job.now_ns = 10 * MS
    job.arrive(1)
    job.answer(job.task_of(0, PARITY))
    job.fire(min(job.timers, key=job.timers.get))  # of image 0 alone
    assert job.resolved[0].outcome == "error"
    assert 1 not in job.resolved
    job.answer(single)
    assert (job.resolved[1].source, job.resolved[1].outcome) == (PARITY, "ok")


def test_a_parity_answer_that_says_nothing_changes_nothing():
    job = started(2)
    job.close()
    job.answer(job.task_of(0))
    job.answer(job.task_of(1, PARITY), absent=frozenset({1}))
    assert 1 not in job.resolved
    job.run_out()
    assert job.finish.status == ev.COMPLETE
    assert job.resolved[1].source == SINGLE


def test_parity_ranks_alone_carry_no_job():
    job = started(2)
    for rank in range(1, 5):
        job.lose(rank)
    job.run_out()
    assert job.finish.status == ev.INCOMPLETE


def test_a_parity_task_that_is_lost_while_the_job_stops_is_not_made_again():
    job = started(2)
    job.stop()
    job.lose(5)
    assert not any(list(rank.waiting()) for rank in job.scheduler.dispatch.ranks.known.values())


def test_a_parity_answer_is_known_to_say_nothing_when_the_others_are_there():
    job = started(2, max_attempts=1)
    job.close()
    job.fail(job.task_of(0))
    job.answer(job.task_of(0, PARITY), absent=frozenset({0}))
    assert 0 not in job.resolved  # image 1 is still to come
    job.answer(job.task_of(1))
    assert job.resolved[0].outcome == "error"


def test_the_job_goes_on_without_parity_ranks():
    job = started(2)
    job.close()
    job.lose(5)
    job.lose(6)
    job.run_out()
    assert job.finish == ev.Finish(ev.COMPLETE, "")
    assert {r.source for r in job.resolved.values()} == {SINGLE}


def test_an_image_that_the_parity_rank_could_not_read_is_no_part_of_its_equation():
    job = started(3)
    job.answer(job.task_of(0, PARITY), unread=frozenset({1}))
    job.answer(job.task_of(0))
    assert job.resolved[2].source == PARITY  # the sum less image 0's alone
    assert 1 not in job.resolved
    for _ in range(3):
        job.fail(job.task_of(1), of_input=True)
    assert job.resolved[1].reason == "on host: worn"

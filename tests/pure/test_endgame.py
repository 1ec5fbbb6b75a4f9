"""Copies for idle ranks once no image is left to come: whose, where, what they count for."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from scheduler_harness import Harness
from test_simulator import FREE, Rows, play

from collage_mpi.kinds import SINGLE
from collage_mpi.rows import OUTCOME_CODE, SOURCE_CODE
from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.endgame import EndGame
from collage_mpi.scheduler.state import GroupState, ImageState, Order, RankState
from collage_mpi.scheduler.tasks import TaskBook
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.simulator import SimulatedJob, Simulation

SECOND_NS = 1_000_000_000


def started(images: int, **settings) -> Harness:
    """All images in, none to come."""
    common = {"scheme": "none", "collages": 0, "assign": "pull", "endgame": True, "credit": 1}
    job = Harness(**{**common, **settings})
    job.start()
    job.arrive(images)
    job.close()
    return job


def task_of(job: Harness, image: int, attempt: int = 1) -> int:
    (task,) = (
        number
        for number, send in job.sent.items()
        if send.items[0].image == image and send.attempt == attempt
    )
    return task


def copies(job: Harness) -> list[tuple[int, int, int]]:
    """Rank, image and attempt of each copy, in order."""
    sends = [send for send in job.sent.values() if send.attempt > 1]
    return [(send.rank, send.items[0].image, send.attempt) for send in sends]


def test_an_idle_rank_gets_the_oldest_with_the_fewest_copies():
    job = started(4, singles=4)
    assert copies(job) == []
    job.answer(task_of(job, 1))
    assert copies(job) == [(2, 0, 2)]
    job.answer(task_of(job, 3))
    assert copies(job)[1:] == [(4, 2, 2)]
    job.answer(task_of(job, 2))  # and its copy on rank 4 is skipped
    job.skip(task_of(job, 2, 2))
    assert sorted(copies(job)[2:]) == [(3, 0, 3), (4, 0, 4)]  # never where it is


def test_an_image_has_eight_copies_at_most():
    job = started(1, singles=11)
    assert copies(job) == [(rank, 0, rank) for rank in range(2, 10)]


def test_an_image_that_has_its_answer_is_copied_no_more_though_its_first_task_is_out():
    job = started(2, singles=4)
    assert copies(job) == [(3, 0, 2), (4, 1, 2)]
    job.answer(task_of(job, 0, 2))
    assert task_of(job, 0) in job.live
    assert copies(job)[2:] == [(3, 1, 3)]


def test_a_rank_that_had_no_answer_for_an_image_gets_no_further_copy_of_it():
    job = started(1, singles=3)
    assert copies(job) == [(2, 0, 2), (3, 0, 3)]
    job.answer(task_of(job, 0, 2), absent=frozenset({0}))
    assert len(copies(job)) == 2


def test_nothing_is_copied_while_images_may_come():
    job = Harness(scheme="none", collages=0, assign="pull", endgame=True, singles=4)
    job.start()
    job.arrive(4)
    job.answer(task_of(job, 0))
    assert copies(job) == []


def test_the_first_answer_counts_and_copies_are_cancelled_first():
    job = started(3, singles=3)
    job.answer(task_of(job, 0))
    job.answer(task_of(job, 2))
    job.answer(task_of(job, 1, 2))
    assert (job.resolved[1].source, job.resolved[1].tasks) == ("endgame", (task_of(job, 1, 2),))
    cancelled = [action.task for action in job.actions if isinstance(action, ev.Cancel)]
    assert cancelled == [task_of(job, 1, 3), task_of(job, 1, 1)]


@pytest.mark.parametrize("end", ["fails", "says nothing"])
def test_a_copy_is_no_attempt(end):
    job = started(2, singles=3, max_attempts=2)
    if end == "fails":
        job.fail(task_of(job, 0, 2))
    else:
        job.answer(task_of(job, 0, 2), absent=frozenset({0}))
    job.fail(task_of(job, 0))
    assert 0 not in job.resolved  # one attempt is left
    job.run_out()
    assert job.resolved[0].source == "retry"


def test_an_image_that_failed_is_copied_to_nobody():
    job = started(3, singles=3, max_failures=1)
    job.fail(task_of(job, 0))  # and rank 1 is retired
    job.answer(task_of(job, 1))
    assert copies(job) == [(2, 0, 2)]  # its second attempt
    job.answer(task_of(job, 2))
    assert len(copies(job)) == 1  # though rank 3 is idle


def test_an_image_whose_copy_was_lost_is_copied_no_more():
    job = started(2, singles=4)
    assert copies(job) == [(3, 0, 2), (4, 1, 2)]
    job.lose(3)
    job.answer(task_of(job, 1))
    job.skip(task_of(job, 1, 2))
    assert len(copies(job)) == 2


def test_an_image_whose_answer_is_held_needs_no_copy():
    """Its group came while the only single rank was silent: the collage has answered alone."""
    job = Harness(scheme="collage", policy="confident", confidence=1, deadline_ns=SECOND_NS,
                  endgame=True, assign="pull", singles=1, credit=4, depth=2)  # fmt: skip
    job.start()
    job.arrive(4)
    job.suspect(1)
    job.arrive(4)
    job.close()
    for image in (0, 4):
        job.answer(job.task_of(image, "collage"))
    for image in range(4):
        job.answer(job.task_of(image))
    assert len(job.sent) == 4 + 2


def test_alone_a_collage_is_copied_as_a_collage():
    job = started(4, scheme="collage-only", collages=2)
    first, copy = job.sent.values()
    assert (copy.kind, copy.items, copy.attempt) == ("collage", first.items, 2)
    assert copy.rank != first.rank


def test_nobody_waits_long_for_answers_that_were_copied():
    job = started(1, singles=2)
    job.answer(task_of(job, 0, 2))
    assert job.finish is None
    assert list(job.timers.values()) == [job.now_ns + SECOND_NS]


def test_what_is_out_at_the_end_is_censored_a_second_after_the_last_row():
    slow = {"straggler": "pinned", "straggler_median_ms": 500.0, "slow_ranks": ("2:60",)}
    shape = {"side": 2, "depth": 3, "credit": 1}
    rows = play(3, scheme="none", assign="pull", endgame="on", **shape, **slow)
    last_ns = max(row.t0_ns + row.latency_ns for row in rows.images)
    (out,) = [task for task in rows.tasks if task.outcome == OUTCOME_CODE["unfinished"]]
    assert (out.rank, out.sent_ns, out.done_ns) == (2, 0, last_ns + SECOND_NS)


@pytest.mark.parametrize("slower", [5, 60])
@pytest.mark.parametrize("scheme", ["none", "hedge", "collage", "collage-only"])
def test_a_slow_rank_of_nine_takes_no_more_than_its_speed(scheme, slower):
    """From the first admission to the last row, against the sum of the ranks' speeds."""
    settings = RunSettings(
        scheme=scheme,
        assign="pull",
        endgame="on",
        side=2 if scheme == "collage-only" else 3,
        depth=16,
        straggler="pinned",
        straggler_median_ms=500.0,
        slow_ranks=(f"4:{slower}",),
        collage_ranks=9 if scheme == "collage-only" else 1,
        hedge_ms=1000.0 if "hedge" in scheme else None,
        warmup_groups=0,
    )
    tasks, rows = 1080, Rows()
    images = tasks * 4 if scheme == "collage-only" else tasks
    Simulation(SimulatedJob(settings, images, FREE), rows).run()
    assert len(rows.images) == images
    begun_ns = min(row.t0_ns for row in rows.images)
    took_ns = max(row.t0_ns + row.latency_ns for row in rows.images) - begun_ns
    ideal_s = tasks * 0.5 / (8 + 1 / slower)
    assert ideal_s > 60
    assert took_ns / 1e9 <= 1.05 * ideal_s
    if scheme == "none":
        assert any(row.source == SOURCE_CODE["endgame"] for row in rows.images)


@pytest.mark.parametrize(("sends", "wanted"), [(251, True), (252, False)])
def test_numbers_of_attempts_are_left_for_retries(sends, wanted):
    """A row has one byte for them."""
    job = started(4, singles=4)
    image = job.states[0]
    image.sends = sends
    assert EndGame(job.scheduler.dispatch, max_attempts=3)._wants_copy(image) is wanted


@pytest.mark.parametrize("how", ["cut", "apart", "take_apart"])
def test_parts_of_a_run_that_is_split_later_are_copied_too(how: str) -> None:
    """The order in which images are copied is made anew once a run was split."""
    group, rank = GroupState(0, 0), RankState(1, frozenset({SINGLE}), "host", 1)
    run = ImageState(0, group, 0, 0, 4)
    group.images.append(run)
    book = TaskBook(Mock(), Mock(), SINGLE, None)
    task = book.make(Order(SINGLE, SINGLE), [run], rank)
    seen: list[list[int]] = []
    taken = Mock(side_effect=lambda groups: seen.append([i.id for g in groups for i in g.images]))
    dispatch = Mock(tasks=book, main=SINGLE, take_apart=lambda groups: taken(groups) or groups)
    dispatch.ranks.has_idle.return_value = False
    endgame = EndGame(dispatch, 3)
    endgame.copy([group])
    if how == "cut":
        book.cut(task, 1)
    elif how == "apart":
        book.apart(run)
    else:
        assert book.take_apart(task)
    for _ in range(2):
        endgame.copy([group])
    assert seen == [[0], [0, 1] if how == "cut" else [0, 1, 2, 3]]

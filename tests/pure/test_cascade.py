"""Scheme cascade: what waits leaves as a collage, what a collage is unsure of goes to a single."""

from __future__ import annotations

import numpy as np
import pytest
from scheduler_harness import BACKUP, COLLAGE, MS, SINGLE, Harness, Twins
from test_simulator import FREE, Rows

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.results import summarise
from collage_mpi.rows import KIND_CODE, SOURCE_CODE
from collage_mpi.scheduler.backlog import AGAIN, FRESH, LATE, Backlog
from collage_mpi.scheduler.events import ImageArrived, InputPaused, Score
from collage_mpi.scheduler.state import GroupState, ImageState, Order, RankState, TaskState
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.replayed_answers import Answers
from collage_mpi.simulation.runs import simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob, Simulation

SURE, UNSURE = 0.9, 0.5  # of the harness, around a confidence of 0.8


def cascade(**settings) -> Harness:
    given = {
        "scheme": "cascade",
        "policy": "confident",
        "placement": "fastest",
        "side": 3,
        "singles": 2,
        "collages": 0,
        "credit": 1,
        "depth": 4,
        "together": False,
    }
    job = Harness(**{**given, **settings})
    job.start()
    return job


def in_runs(**settings) -> Twins:
    """The same with runs, where images come in together, beside one without them."""
    given = {"scheme": "cascade", "policy": "confident", "placement": "fastest", "credit": 1}
    job = Twins(**{**given, "side": 2, "singles": 2, "collages": 0, "depth": 4, **settings})
    job.start()
    return job


def test_bundles_are_cut_from_what_came_in_together_with_a_drawn_image_among_it():
    job = in_runs()
    job.arrive(2)
    job.arrive(9, drawn=True)  # 2 by itself, then 3 to 10
    job.arrive(5)
    assert [images for _, _, images in out(job)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    end(job, 1, unsure=frozenset({1, 3}))
    assert [*job.resolved] == [0]  # 1 and 3 wait for a single answer, and 2 for its audit
    assert (1, SINGLE, [1]) in out(job)
    end(job, 2)
    assert {4, 5, 6, 7} <= job.resolved.keys()
    job.run_out()
    assert job.finish is None or len(job.resolved) == 16


def test_a_run_that_waits_for_no_rank_goes_to_one_that_is_recalled_image_by_image():
    job = in_runs(max_failures=1)
    job.arrive(16)
    (task,) = (task for task, send in job.live.items() if send.rank == 1)
    job.fail(task)
    assert job.retired == {1}
    job.lose(2)
    assert not job.retired
    assert out(job) == [(1, SINGLE, [0])]
    assert all(job.states[image].count == 1 for image in range(8, 16))
    job.run_out()


def test_what_waits_in_runs_is_copied_image_by_image_at_the_end():
    job = in_runs(endgame=True, singles=3, costs={COLLAGE: 3.0})
    job.arrive(16)
    job.close()
    for rank in (3, 3, 2):
        end(job, rank)
    assert all(image.count == 1 for image in job.states.values() if not image.resolved)
    job.run_out()
    assert len(job.resolved) == 16


def test_once_nothing_is_collaged_a_run_leaves_image_by_image():
    job = in_runs(batch=3, singles=1)
    job.arrive(16)
    job.threshold(None)
    job.run_out()
    last = [send for send in job.sent.values() if send.items[0].image >= 12]
    assert {(send.kind, len(send.items)) for send in last} == {(SINGLE, 1)}


def out(job: Harness) -> list[tuple[int, str, list[int]]]:
    """(rank, kind, images) of what is out, in the order in which it left."""
    return [(s.rank, s.kind, [item.image for item in s.items]) for s in job.live.values()]


def end(job: Harness, rank: int, **answer) -> None:
    """The rank answers what it has."""
    job.answer(next(task for task, send in job.live.items() if send.rank == rank), **answer)


def test_where_ranks_are_idle_images_go_alone():
    job = cascade(singles=3)
    job.arrive(3)
    assert out(job) == [(1, SINGLE, [0]), (2, SINGLE, [1]), (3, SINGLE, [2])]
    assert [job.resolved.get(i) for i in range(3)] == [None] * 3


@pytest.mark.parametrize(
    ("waiting", "taken"),
    [
        (1, (SINGLE, [2])),
        (2, (SINGLE, [2])),
        (3, (COLLAGE, [2, 3, 4])),
        (12, (COLLAGE, [*range(2, 11)])),
    ],
)
def test_a_rank_takes_what_waits_as_a_collage_from_three_images_on(waiting, taken):
    job = cascade()
    job.arrive(2 + waiting)
    end(job, 2)
    assert out(job)[-1] == (2, *taken)


def test_a_collage_holds_images_of_several_groups_each_in_the_place_of_its_turn():
    job = cascade(side=2, singles=1)
    job.arrive(1)
    job.arrive(5)
    end(job, 1)
    (send,) = job.live.values()
    assert [tuple(item) for item in send.items] == [(1, 0), (2, 1), (3, 2), (4, 3)]
    assert (send.bundle, send.attempt) == (((0, 1), (0, 2), (0, 3), (1, 0)), 1)
    end(job, 1)
    cells = [(job.resolved[i].group, job.resolved[i].cell) for i in range(5)]
    assert cells == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)], "those of its group, as ever"


def test_what_a_collage_is_unsure_of_goes_first_and_alone():
    job = cascade(singles=1)
    job.arrive(9)
    end(job, 1)
    job.arrive(9)
    end(job, 1, unsure=frozenset({3, 4}), absent=frozenset({5}))
    assert out(job) == [(1, SINGLE, [3])]
    end(job, 1)
    assert out(job) == [(1, SINGLE, [4])]
    end(job, 1)
    assert out(job) == [(1, SINGLE, [5])]
    end(job, 1)
    assert out(job) == [(1, COLLAGE, [*range(9, 18)])]
    sources = {i: job.resolved[i].source for i in range(9)}
    assert sources == {**dict.fromkeys(range(9), COLLAGE), **dict.fromkeys((0, 3, 4, 5), SINGLE)}
    attempts = {s.attempt for s in job.sent.values() if s.kind == SINGLE}
    assert attempts == {1}, "an unsure cell is no failure"


def test_a_batch_holds_singles_or_whole_collages_never_both():
    job = cascade(singles=1, batch=2, side=2, depth=8)
    job.arrive(16)
    end(job, 1)
    assert [images for _, _, images in out(job)] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    for task in list(job.live):
        job.answer(task, unsure=frozenset({1, 2, 5}))
    assert out(job) == [(1, SINGLE, [1]), (1, SINGLE, [2])]
    for task in list(job.live):
        job.answer(task)
    assert out(job) == [(1, SINGLE, [5])]


def test_a_batch_leaves_idle_ranks_their_share():
    job = cascade(singles=2, batch=4, side=2, depth=4, together=True)
    job.arrive(16)
    assert [(rank, images[0]) for rank, _, images in out(job)] == [(1, 0), (1, 4), (2, 8), (2, 12)]


def test_in_a_closed_loop_a_group_that_enters_is_a_collage_at_once():
    job = cascade(together=True, paced=True)
    job.arrive(9)
    assert out(job) == [(1, COLLAGE, [*range(9)])]
    job.arrive(9)
    assert out(job)[1:] == [(2, COLLAGE, [*range(9, 18)])]
    assert job.admitted == 0, "no rank has nothing to do"


@pytest.mark.parametrize("how", ["fail", "lose", "suspect"])
def test_images_of_a_collage_that_fails_are_sent_alone_before_others(how):
    job = cascade(singles=3)
    job.arrive(3 + 9 + 1)
    end(job, 1)
    task = job.task_of(3, COLLAGE)
    if how == "fail":
        job.fail(task)
    else:
        getattr(job, how)(1)
    end(job, 2)
    end(job, 3)
    alone = {tuple(images) for _, kind, images in out(job) if kind == SINGLE}
    assert {(3,), (4,)} <= alone
    for rank in (2, 3):
        end(job, rank)
    assert not any(s.bundle for t, s in job.sent.items() if t > task)


@pytest.mark.parametrize("deadline_ns", [None, 50 * MS])
def test_a_kept_cell_answers_where_no_single_can(deadline_ns):
    job = cascade(placement="fixed", singles=1, collages=1, deadline_ns=deadline_ns)
    job.arrive(5)
    assert out(job) == [(1, SINGLE, [0]), (2, COLLAGE, [1, 2, 3])]
    job.lose(1)
    end(job, 2, unsure=frozenset({1}))
    assert (job.resolved[1].source, job.resolved[2].source) == ("kept", COLLAGE)
    assert out(job) == [(2, COLLAGE, [4])], "there is nothing else to wait for"
    assert job.resolved[0].outcome == "error", "its only rank is lost"


def test_a_kept_cell_answers_at_the_deadline():
    job = cascade(singles=1, deadline_ns=50 * MS)
    job.arrive(4)
    end(job, 1)
    job.now_ns = 10 * MS
    end(job, 1, unsure=frozenset({1, 2}))
    assert out(job) == [(1, SINGLE, [1])], "a single rank may still be sooner"
    job.fire(min(job.timers))
    assert {job.resolved[i].source for i in (1, 2)} == {"kept"}
    assert job.now_ns == 50 * MS


def test_where_ranks_are_apart_single_ranks_take_the_oldest_and_collage_ranks_what_is_left():
    job = cascade(placement="fixed", singles=2, collages=1)
    job.arrive(4)
    assert out(job) == [(1, SINGLE, [0]), (2, SINGLE, [1])], "two wait"
    job.arrive(2)
    assert out(job)[2:] == [(3, COLLAGE, [2, 3, 4])]
    end(job, 3, unsure=frozenset({2}))
    end(job, 1)
    assert out(job)[-1] == (1, SINGLE, [2]), "before 5, which came earlier than its answer"


def paced(job: Harness, *ns: int) -> None:
    """Each rank answers one image, in so long."""
    job.arrive(len(ns))
    for rank, service_ns in enumerate(ns, start=1):
        end(job, rank, service_ns=service_ns)


def test_the_fastest_idle_rank_goes_first():
    for scheme in ("none", "cascade"):
        job = cascade(scheme=scheme, singles=3, assign="pull")
        paced(job, 30 * MS, 10 * MS, 20 * MS)
        job.arrive(3)
        assert [rank for rank, _, _ in out(job)] == [2, 3, 1], scheme


def test_a_rank_with_less_to_do_goes_before_a_faster_one():
    job = cascade(scheme="none", singles=2, credit=2, assign="pull")
    paced(job, 10 * MS, 30 * MS)
    job.arrive(3)
    assert [rank for rank, _, _ in out(job)] == [1, 2, 1]


def test_a_slow_rank_takes_whole_collages_alone():
    job = cascade(singles=3)
    paced(job, 10 * MS, 10 * MS, 15.1 * MS)
    job.arrive(2 + 9)
    assert [rank for rank, _, _ in out(job)] == [1, 2], "9 wait, rank 3 is idle"
    job.arrive(1)
    assert out(job)[-1] == (3, COLLAGE, [*range(5, 14)])


@pytest.mark.parametrize(("slow_ms", "waiting"), [(20, 18), (40, 54), (160, 270)])
def test_a_slow_rank_leaves_to_others_what_they_would_end_sooner(slow_ms, waiting):
    """While it does one collage of nine each of two others does slow_ms / 10."""
    job = cascade(singles=3, depth=99)
    paced(job, 10 * MS, 10 * MS, slow_ms * MS)
    job.arrive(2 + waiting - 1)
    assert [rank for rank, _, _ in out(job)] == [1, 2]
    job.arrive(1)
    assert out(job)[-1] == (3, COLLAGE, [*range(5, 14)])


def test_a_slow_rank_takes_what_waits_when_a_quicker_one_turns_out_to_be_slow():
    job = cascade(singles=5, depth=9)
    paced(job, *[10 * MS] * 4, 20 * MS)
    job.arrive(4 + 35)
    end(job, 4, service_ns=900 * MS)
    job.arrive(9)
    assert [rank for rank, _, _ in out(job)] == [1, 2, 3, 4], "35 wait, of 36"
    end(job, 4, service_ns=900 * MS)
    assert [rank for rank, _, _ in out(job)] == [1, 2, 3, 5], "three others would take 27 meanwhile"


def test_in_a_closed_loop_a_slow_rank_takes_any_whole_collage():
    job = cascade(singles=3, together=True, depth=9)
    job.arrive(27)
    for rank, service_ms in ((1, 10), (2, 10), (3, 160)):
        end(job, rank, service_ns=service_ms * MS)
    job.arrive(27)
    assert {rank for rank, _, _ in out(job)} == {1, 2, 3}


def test_a_rank_half_as_slow_again_as_the_others_is_not_slow():
    job = cascade(singles=3)
    paced(job, 10 * MS, 10 * MS, 15 * MS)
    job.arrive(3 + 3)
    assert [rank for rank, _, _ in out(job)] == [1, 2, 3]
    end(job, 3, service_ns=15 * MS)
    assert out(job)[-1] == (3, COLLAGE, [6, 7, 8])


def test_a_slow_rank_takes_what_no_quicker_one_may():
    job = cascade(singles=3)
    paced(job, 10 * MS, 10 * MS, 90 * MS)
    job.arrive(1)
    job.fail(job.task_of(3))
    job.fail(job.task_of(3))
    assert [rank for rank, _, _ in out(job)] == [3], "ranks 1 and 2 have failed it"


@pytest.mark.parametrize("placement", ["fastest", "fixed"])
def test_what_was_held_back_goes_to_a_rank_that_is_slow_no_more(placement):
    """Rank 2 is idle while rank 1, the quicker one, is at work; then that takes 20 x as long."""
    job = cascade(singles=2, placement=placement, collages=int(placement == "fixed"))
    paced(job, 10 * MS, 30 * MS)
    job.arrive(2)
    assert out(job) == [(1, SINGLE, [2])], "image 3 waits for rank 1"
    end(job, 1, service_ns=200 * MS)
    assert out(job) == [(1, SINGLE, [3])], "the median of two answers is the lower one"
    job.arrive(2)
    end(job, 1, service_ns=200 * MS)
    assert out(job) == [(2, SINGLE, [4])], "rank 1 is the slow one now, image 5 waits for rank 2"


def test_each_rank_that_is_slow_no_more_takes_what_was_held_back():
    job = cascade(singles=5)
    paced(job, *[10 * MS] * 3, *[30 * MS] * 2)
    job.arrive(3 + 1)
    end(job, 1, service_ns=200 * MS)
    job.arrive(2)
    assert [rank for rank, _, _ in out(job)] == [2, 3, 1], "images 9 and 10 wait"
    end(job, 1, service_ns=200 * MS)
    assert out(job)[2:] == [(4, SINGLE, [9]), (5, SINGLE, [10])]


def test_a_collage_rank_that_is_slow_no_more_takes_what_was_held_back():
    job = cascade(placement="fixed", singles=1, collages=3)
    job.arrive(1 + 3 * 3)
    for rank, service_ns in ((2, 10 * MS), (3, 10 * MS), (4, 30 * MS)):
        end(job, rank, service_ns=service_ns)
    job.arrive(2 * 3)
    end(job, 2, service_ns=200 * MS)
    job.arrive(2 * 3)
    assert [(rank, kind) for rank, kind, _ in out(job)[1:]] == [(3, COLLAGE), (2, COLLAGE)]
    end(job, 2, service_ns=200 * MS)
    assert out(job)[-1] == (4, COLLAGE, [19, 20, 21]), "rank 2 is the slow one now"


def test_a_quick_collage_rank_with_room_goes_before_a_slow_one_that_is_idle():
    job = cascade(placement="fixed", singles=1, collages=2, credit=2)
    job.arrive(2 + 3 + 3)
    end(job, 2, service_ns=10 * MS)
    end(job, 3, service_ns=30 * MS)
    job.arrive(3 + 3)
    assert [rank for rank, _, _ in out(job)] == [1, 1, 2, 2]


@pytest.mark.parametrize("go", ["suspect", "lose"])
def test_a_slow_rank_that_is_idle_hides_no_quicker_one_that_has_room(go):
    """Ten images wait. Rank 4 has room beside one message, and leaves 13 images to three others,
    8 to two. Rank 5 is idle, and leaves them all."""
    job = cascade(singles=5, side=2, credit=2, depth=9)
    paced(job, *[10 * MS] * 3, 21 * MS, 90 * MS)
    job.arrive(3 * 2 + 4 + 10)
    assert [rank for rank, _, _ in out(job)] == [1, 2, 3, 1, 2, 3, 4]
    getattr(job, go)(3)
    assert out(job)[-1] == (4, COLLAGE, [15, 16, 17, 18])


def test_a_slow_rank_takes_what_is_barred_to_all_that_are_quick_beside_one_that_is_back():
    job = cascade(singles=4, credit=2, depth=9)
    paced(job, 10 * MS, 10 * MS, 20 * MS, 90 * MS)
    job.arrive(2 * 2)
    job.fail(job.task_of(6))
    job.arrive(1)
    end(job, 2, service_ns=10 * MS)
    job.arrive(2)
    assert [(rank, *images) for rank, _, images in out(job)] == [(1, 4), (2, 7), (1, 8), (2, 6)]
    job.suspect(2)
    assert out(job)[4:] == [(3, SINGLE, [9]), (3, SINGLE, [10])], "quick, as rank 2 is silent"
    end(job, 2, service_ns=10 * MS)
    assert out(job)[-1] == (4, SINGLE, [6]), "ranks 1 and 2 may not have it, rank 3 is slow again"


def test_a_slow_rank_that_is_at_work_is_not_taken_for_one_that_is_long_idle():
    job = cascade(singles=2)
    paced(job, 10 * MS, 30 * MS)
    job.arrive(1 + 18)
    assert [rank for rank, _, _ in out(job)] == [1, 2]
    job.now_ns += 10**12
    job.arrive(2)
    assert job.scheduler.dispatch.ranks.paces.service_ns(2) == 30 * MS


def test_an_idle_rank_that_failed_an_image_keeps_it_from_no_other_rank():
    """Rank 1, the fastest, has failed image 3. Rank 3 was to take it, and is the slow one now."""
    job = cascade(singles=3)
    paced(job, 10 * MS, 30 * MS, 10 * MS)
    job.arrive(2)
    end(job, 3, service_ns=200 * MS)
    job.arrive(1)
    job.fail(job.task_of(3))
    assert out(job) == [(3, SINGLE, [5])], "rank 2 is slow beside rank 3"
    end(job, 3, service_ns=200 * MS)
    assert out(job) == [(2, SINGLE, [3])]


def test_a_slow_rank_works_when_the_quicker_ones_are_lost():
    job = cascade(singles=3)
    paced(job, 10 * MS, 10 * MS, 90 * MS)
    job.arrive(3)
    job.lose(1)
    job.lose(2)
    assert out(job) == [(3, SINGLE, [3])]


# ---- what each rank takes, and when -----------------------------------------


def test_two_fresh_images_and_one_that_the_rank_failed_are_no_collage():
    job = cascade()
    job.arrive(4)
    job.fail(job.task_of(0))
    assert out(job) == [(2, SINGLE, [1]), (1, SINGLE, [2])], "image 0 waits for rank 2"
    end(job, 2)
    assert out(job)[-1] == (2, SINGLE, [0])


def test_a_rank_that_failed_the_oldest_image_takes_a_collage_of_others():
    job = cascade(batch=2)
    job.arrive(2)
    first = job.task_of(0)
    job.arrive(3)
    job.fail(first)
    assert out(job)[-1] == (1, COLLAGE, [2, 3, 4])


def test_an_image_of_a_silent_rank_is_in_no_collage():
    """It was sent before, though it has not failed."""
    job = cascade()
    job.arrive(2 + 3)
    job.suspect(1)
    end(job, 2)
    assert out(job)[-1] == (2, SINGLE, [0])
    end(job, 2)
    assert out(job)[-1] == (2, COLLAGE, [2, 3, 4])


def test_of_a_batch_of_collages_each_one_is_whole_or_the_only_one():
    job = cascade(singles=1, batch=2, side=2, depth=8)
    job.arrive(1 + 5)
    end(job, 1)
    assert out(job) == [(1, COLLAGE, [1, 2, 3, 4])], "image 5 waits"


def test_a_batch_of_collages_leaves_idle_collage_ranks_theirs():
    apart = {"placement": "fixed", "singles": 1, "collages": 2}
    job = cascade(side=2, batch=4, together=True, **apart)
    job.arrive(16)
    first = [(rank, kind, images[0]) for rank, kind, images in out(job)]
    singles = [(1, SINGLE, image) for image in range(4)]
    assert first == [*singles, (2, COLLAGE, 4), (3, COLLAGE, 8), (3, COLLAGE, 12)]


def test_a_slow_rank_takes_fewer_collages_of_a_batch():
    job = cascade(singles=3, batch=4, side=2, depth=99)
    paced(job, 10 * MS, 10 * MS, 20 * MS)
    job.arrive(200)
    for _ in range(2):  # what it took before much waited
        end(job, 3, service_ns=200 * MS)
    assert [images[0] for rank, _, images in out(job) if rank == 3] == [13, 17]


def test_of_several_idle_ranks_each_takes_its_share_of_what_collages_were_unsure_of():
    """Fresh images do not count: rank 1 takes two of four, with the slow rank 2 idle as well."""
    job = cascade(singles=2, batch=4, side=2)
    paced(job, 10 * MS, 17 * MS)
    job.arrive(1 + 4 + 8)
    end(job, 1, service_ns=10 * MS)
    slow, first, second = job.live
    assert out(job) == [
        (2, COLLAGE, [3, 4, 5, 6]),
        *((1, COLLAGE, [i, *range(i + 1, i + 4)]) for i in (7, 11)),
    ]
    job.answer(slow, service_ns=17 * MS)
    job.arrive(3)
    job.answer(first, unsure=frozenset({7, 8, 9, 10}))
    job.answer(second, service_ns=10 * MS)
    assert out(job) == [(1, SINGLE, [7]), (1, SINGLE, [8])]


def test_a_second_message_of_a_rank_may_be_a_collage():
    job = cascade(singles=1, credit=2)
    job.arrive(2 + 3)
    end(job, 1)
    assert out(job) == [(1, SINGLE, [1]), (1, COLLAGE, [2, 3, 4])]


def test_a_quick_rank_with_room_goes_before_a_slow_one_that_is_idle():
    job = cascade(singles=2, credit=2)
    paced(job, 10 * MS, 30 * MS)
    job.arrive(2)
    assert out(job) == [(1, SINGLE, [2]), (1, SINGLE, [3])]


def test_a_collage_rank_is_slow_beside_collage_ranks_alone():
    job = cascade(placement="fixed", singles=2, collages=2)
    job.arrive(2 + 3 + 3)
    for rank, service_ns in ((3, 30 * MS), (4, 30 * MS), (1, 10 * MS), (2, 10 * MS)):
        end(job, rank, service_ns=service_ns)
    job.arrive(2 + 3)
    assert [(rank, kind) for rank, kind, _ in out(job)] == [
        (1, SINGLE),
        (2, SINGLE),
        (3, COLLAGE),
    ]


def test_where_ranks_are_apart_a_group_comes_in_for_an_idle_collage_rank():
    job = cascade(placement="fixed", singles=1, collages=1, together=True, paced=True)
    job.arrive(9)
    assert (out(job)[1], job.admitted) == ((2, COLLAGE, [*range(1, 9)]), 0)
    end(job, 2)
    assert (out(job), job.admitted) == ([(1, SINGLE, [0])], 9)


def test_collage_ranks_take_every_image_that_comes_while_no_single_rank_does():
    job = cascade(placement="fixed", singles=1, collages=1)
    job.lose(1)
    job.arrive(1)
    assert out(job) == [(2, COLLAGE, [0])]


def test_what_waited_for_a_collage_rank_that_is_lost_waits_for_a_silent_single_rank():
    """The images are parked: they do not wait for a rank that may never come."""
    job = cascade(placement="fixed", singles=1, collages=1)
    job.arrive(1)
    job.suspect(1)
    job.arrive(2)
    assert out(job)[1:] == [(2, COLLAGE, [1])] or out(job)[1:] == [(2, COLLAGE, [0])]
    job.lose(2)
    assert job.scheduler.dispatch.waiting() == []


def test_after_a_stop_nothing_waits():
    job = cascade(singles=1)
    job.arrive(9)
    job.stop()
    assert job.scheduler.dispatch.waiting() == []


def test_a_collage_says_how_fast_its_rank_is_by_its_cost():
    """A collage takes twice as long: rank 1 has taken 12 and 10 ms an image, rank 2 11."""
    job = cascade(singles=2, costs={COLLAGE: 2.0})
    job.arrive(2 + 3)
    end(job, 1, service_ns=12 * MS)
    end(job, 1, service_ns=20 * MS)
    end(job, 2, service_ns=11 * MS)
    job.arrive(2)
    assert [rank for rank, _, _ in out(job)] == [1, 2]


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({}, 3),
        ({"costs": {COLLAGE: 2.0}}, 3),
        ({"costs": {COLLAGE: 2.9}}, 3),
        ({"costs": {COLLAGE: 3.0}}, 4),
        ({"costs": {COLLAGE: 30.0}}, 9),
        ({"costs": {COLLAGE: 30.0}, "scheme": "cascade-batch"}, 3),
        ({"costs": {BACKUP: 4.5}, "scheme": "cascade-batch"}, 5),
    ],
)
def test_more_images_must_wait_where_a_collage_takes_longer(settings, least):
    bundle = cascade(**settings).scheduler.dispatch.bundles.bundle
    assert (bundle.least, bundle.most) == (least, 9)


def test_with_a_batch_in_the_collages_place_the_quick_network_is_asked_first():
    job = cascade(scheme="cascade-batch")
    job.arrive(2 + 3)
    end(job, 2)
    assert out(job)[-1] == (2, BACKUP, [2, 3, 4])
    end(job, 2, unsure=frozenset({3}))
    assert out(job)[-1] == (2, SINGLE, [3])
    assert {i: job.resolved[i].source for i in (2, 4)} == {2: BACKUP, 4: BACKUP}


def test_a_silent_rank_may_answer_its_collage_after_all():
    job = cascade()
    job.arrive(2 + 3)
    end(job, 1)
    job.suspect(1)
    end(job, 2)
    end(job, 2)
    assert out(job) == [(1, COLLAGE, [2, 3, 4]), (2, SINGLE, [3])]
    end(job, 1)
    assert {i: job.resolved[i].source for i in (2, 3, 4)} == {2: SINGLE, 3: COLLAGE, 4: COLLAGE}


def test_what_waited_for_the_last_single_rank_is_answered_by_what_was_kept():
    job = cascade(placement="fixed", singles=1, collages=1)
    job.arrive(4)
    end(job, 2, unsure=frozenset({1}))
    assert out(job) == [(1, SINGLE, [0])], "image 1 waits"
    job.lose(1)
    assert job.resolved[1].source == "kept"


def test_a_second_collage_of_an_image_keeps_no_second_answer():
    job = cascade(placement="fixed", singles=1, collages=2, deadline_ns=50 * MS)
    job.arrive(4)
    job.suspect(1)
    job.suspect(2)
    again = job.task_of(1, COLLAGE)
    assert job.live[again].rank == 3
    end(job, 2, unsure=frozenset({1}))
    job.answer(again, unsure=frozenset({1}))
    job.fire(min(job.timers, key=job.timers.get))
    assert 1 in job.resolved


def test_what_a_single_is_unsure_of_is_resolved_all_the_same():
    for scheme in ("cascade", "cascade-batch"):
        job = cascade(scheme=scheme)
        job.arrive(1)
        end(job, 1, unsure=frozenset({0}))
        assert job.resolved[0].source == SINGLE


# ---- settings ---------------------------------------------------------------


def test_its_ranks_hold_both_networks_and_any_number_will_do():
    run = RunSettings(scheme="cascade")
    assert (run.layout, run.messages, run.world_size) == ("fastest", 1, 11)
    assert run.place(4).describe() == "0 coordinator, 1-3 single+collage"
    assert (
        RunSettings(scheme="cascade", singles=3).place(5).describe().endswith("1-4 single+collage")
    )
    with pytest.raises(EnvironmentFault, match="the world has 4 ranks"):
        RunSettings(scheme="cascade", singles=5).place(4)
    apart = RunSettings(scheme="cascade", placement="fixed", side=2)
    assert apart.place(6).describe() == "0 coordinator, 1-4 single, 5 collage"
    with pytest.raises(EnvironmentFault, match="the world has 4 ranks"):
        RunSettings(side=2, placement="fastest").place(4)
    assert run.groups_in_flight(30) == 31, "a group for each rank there is"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"assign": "turn"}, "assign is turn with scheme cascade; it takes: pull"),
        ({"assign": "finish"}, "assign is finish"),
        ({"profile": "paper"}, r"assign is turn .* \(profile paper sets"),
        ({"save": "embeddings"}, "save is embeddings with scheme cascade"),
    ],
)
def test_what_does_not_go_with_it_is_refused_by_name(settings, said):
    with pytest.raises(UsageError, match=said):
        RunSettings.from_mapping({"scheme": "cascade", **settings}, "x")


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({}, "cascade, end game"),
        ({"placement": "fixed"}, "cascade, ranks apart, end game"),
    ],
)
def test_its_label(settings, label):
    assert RunSettings(scheme="cascade", **settings).labels()["scheme"] == label


# ---- a run on virtual time --------------------------------------------------


def play(images: int, unsure: int = 3, **settings) -> Rows:
    """Of every group the first `unsure` cells are below the confidence of 0.8."""
    sure = {"confidence": 0.8, "warmup_groups": 0}
    job = RunSettings(**{"scheme": "cascade", **sure, **settings})
    n = job.group_size
    cells = [Score(0, UNSURE if cell < unsure else SURE) for cell in range(n)]
    known = {"single": [Score(0, 1.0)] * n, "collage": cells}
    answers = Answers(job.side, ("a",), [0] * n, known)
    rows = Rows()
    Simulation(SimulatedJob(job, images, FREE), rows, answers).run()
    return rows


def test_in_a_closed_loop_every_image_is_collaged_once_and_a_third_sent_again():
    rows = play(9 * 40)
    sources = [image.source for image in rows.images]
    assert len(rows.images) == 360
    assert {sources.count(SOURCE_CODE[name]) for name in (SINGLE, "endgame")} <= {*range(121)}
    assert sources.count(SOURCE_CODE[COLLAGE]) == 240
    collages = [task for task in rows.tasks if task.kind == KIND_CODE[COLLAGE]]
    assert sum(task.items for task in collages) == 360
    assert sum(task.resolved for task in collages) == 240


def test_the_row_of_a_collage_is_written_with_the_last_of_its_images():
    """Its images are of two groups; it has resolved all but one, which a single rank does."""
    rows = play(18, rate=1e6, singles=1, collage_ranks=1, straggler="pinned")
    collages = [task for task in rows.tasks if task.kind == KIND_CODE[COLLAGE]]
    assert sum(task.items for task in collages) > sum(task.resolved for task in collages) > 0
    assert len({image.row for image in rows.images}) == 18
    assert len(rows.groups) == 2


def test_the_unsure_part_of_a_collage_is_wasted_work(tmp_path):
    """Of every nine cells three are unsure; a collage and a single answer take equally long."""
    cells = np.arange(9)
    np.savez(
        tmp_path / "answers.npz",
        version=1,
        side=3,
        labels=np.zeros(9, int),
        class_names=np.array(["a"]),
        single_class=np.zeros(9, int),
        single_score=np.ones(9),
        collage_class=np.zeros(9, int),
        collage_score=np.where(cells < 3, UNSURE, SURE),
        collage_absent=cells < 0,
    )
    sure = {"confidence": 0.8, "endgame": "off", "warmup_groups": 0}
    sure["audit"] = 0.0
    job = SimulatedJob(
        RunSettings(scheme="cascade", **sure), 360, answers=str(tmp_path / "answers.npz")
    )
    price = summarise(simulate_in_memory(job))["price"]
    assert price["wasted_work"] == pytest.approx(40 / 3 / (40 + 120))
    work_s = price["work_s_of"]
    assert work_s[SINGLE] / work_s[COLLAGE] == pytest.approx(120 / 40)
    assert sum(work_s.values()) == pytest.approx(price["work_s"])
    assert (price["late_answers"], price["collage_share"]) == (0, pytest.approx(2 / 3))


# ---- what a reader found ----------------------------------------------------


def test_a_rank_that_may_not_take_what_waits_hides_no_other():
    """Rank 1 failed image 3; rank 3, which was to take it, has become the slow one: rank 2 does."""
    job = cascade(singles=3)
    job.arrive(3)
    end(job, 1, service_ns=10 * MS)
    end(job, 2, service_ns=20 * MS)
    job.arrive(1)
    job.fail(job.task_of(3))
    assert out(job) == [(3, SINGLE, [2])], "image 3 waits for rank 3, of which nothing is known"
    end(job, 3, service_ns=100 * MS)
    assert out(job) == [(2, SINGLE, [3])]


def test_a_slow_rank_that_was_long_idle_is_tried_again():
    """After a hundred of its service times."""
    job = cascade(singles=3)
    paced(job, 10 * MS, 10 * MS, 16 * MS)
    job.now_ns = 1600 * MS
    job.arrive(2)
    assert [rank for rank, _, _ in out(job)] == [1, 2]
    for rank in (1, 2):
        end(job, rank, service_ns=10 * MS)
    job.now_ns += 1
    job.arrive(1)
    assert out(job) == [(3, SINGLE, [5])]
    end(job, 3, service_ns=10 * MS)
    job.arrive(3)
    assert {rank for rank, _, _ in out(job)} == {1, 2, 3}, "it is as quick as the others"


def test_one_idle_rank_is_looked_at_each_time_however_many_images_come(monkeypatch):
    job, looked = cascade(singles=3), []
    monkeypatch.setattr(job.scheduler.dispatch.ranks.paces, "forget_one", looked.append)
    for now_ns in (5 * MS, 6 * MS):
        job.now_ns = now_ns
        job.arrive(3)
    assert looked == [5 * MS, 6 * MS]


def test_an_image_that_failed_is_not_kept_in_mind_once_it_has_left():
    job = cascade(singles=2)
    job.arrive(2)
    job.fail(job.task_of(0))
    assert job.scheduler.dispatch.bundles._tried
    end(job, 2)
    assert (2, SINGLE, [0]) in out(job)
    end(job, 2)
    assert not job.scheduler.dispatch.bundles._tried


def test_what_is_barred_to_all_ranks_that_are_still_quick_goes_to_a_slow_one_at_once():
    job = cascade(singles=4)
    paced(job, 10 * MS, 20 * MS, 18 * MS, 90 * MS)
    job.arrive(3)
    assert out(job) == [(1, SINGLE, [4]), (3, SINGLE, [5]), (2, SINGLE, [6])]
    job.fail(job.task_of(4))
    end(job, 3, service_ns=0)
    job.fail(job.task_of(4))  # rank 3 had it, and rank 2 alone is to have it now
    job.arrive(2)
    assert out(job) == [(2, SINGLE, [6]), (1, SINGLE, [7]), (3, SINGLE, [8])]
    end(job, 3, service_ns=9 * MS)  # beside which rank 2 is slow
    assert out(job)[2:] == [(4, SINGLE, [4])]


def test_where_ranks_are_apart_a_slow_collage_rank_hides_no_quick_one():
    job = cascade(placement="fixed", singles=1, collages=3, credit=2, costs={COLLAGE: 4.0})
    job.arrive(12)
    for rank, service_ns in ((2, 10 * MS), (3, 10 * MS), (4, 90 * MS)):
        job.arrive(5)
        if any(send.rank == rank for send in job.live.values()):
            end(job, rank, service_ns=service_ns)
    slow = [rank for rank, kind, images in out(job) if kind == COLLAGE and len(images) < 9]
    assert 4 not in slow[1:]


def test_without_single_ranks_a_collage_that_fails_is_sent_again():
    job = cascade(placement="fixed", singles=1, collages=2)
    job.arrive(4)
    job.lose(1)
    job.fail(job.task_of(1, COLLAGE))
    assert out(job)[-1] == (3, COLLAGE, [1, 2, 3])
    end(job, 3)
    assert {job.resolved[i].outcome for i in (1, 2, 3)} == {"ok"}


def test_the_end_game_copies_nothing_that_waits():
    """The slow rank is idle, and two images wait for the others."""
    job = cascade(singles=3, endgame=True)
    paced(job, 10 * MS, 10 * MS, 90 * MS)
    job.arrive(4)
    job.close()
    copies = [(s.rank, s.items[0].image) for s in job.live.values() if s.rank == 3]
    assert copies == [(3, 3)], "of what is out"


def test_a_failure_looks_at_what_waits_only_where_a_rank_has_room():
    job = cascade(singles=2, side=2, depth=99)
    job.arrive(2)
    job.arrive(300)
    asked = []
    before = job.scheduler.dispatch.pulled.barred
    job.scheduler.dispatch.pulled.barred = lambda task: asked.append(task) or before(task)
    job.fail(job.task_of(0))
    assert len(asked) < 20


def test_group_rows_do_not_wait_for_the_end():
    """Groups are cut short, and collages hold images of several of them."""
    job = {"rate": 400.0, "linger_ms": 15.0, "singles": 2}
    rows = play(900, straggler="lognormal", straggler_median_ms=20.0, **job)
    ends = [group.t0_ns + group.latency_ns for group in rows.groups]
    numbers = [group.group for group in rows.groups]
    late = sum(after < max(numbers[: i + 1]) - 50 for i, after in enumerate(numbers))
    assert len(ends) > 100
    assert late == 0, "a row that was kept to the end"


# ---- audits: the single network is asked beside an accepted answer ---------------------------


def audited(job: Harness, images: int = 9) -> Harness:
    """The rank has a collage of drawn images, and has answered it."""
    job.arrive(1)
    job.arrive(images, drawn=True)
    end(job, 1)
    job.now_ns += 5 * MS
    end(job, 1)
    return job


def test_a_drawn_image_is_resolved_by_its_accepted_answer_once_the_single_has_answered():
    job = audited(cascade(singles=1, side=2, depth=8), images=1 + 3)
    decided_ns = job.now_ns
    assert out(job) == [(1, SINGLE, [1])]
    assert 1 not in job.resolved
    job.now_ns += 7 * MS
    end(job, 1, unsure=frozenset({1}))
    first = job.resolved[1]
    assert (first.source, first.score, first.other) == (COLLAGE, Score(1, 0.9), Score(1, 0.5))
    assert (first.audited, first.decided_ns) == ("done", decided_ns)
    assert job.sent[max(first.tasks)].kind == COLLAGE


def test_a_drawn_image_that_is_unsure_is_resolved_by_the_single():
    job = cascade(singles=1, side=2, depth=8)
    job.arrive(1)
    job.arrive(4, drawn=True)
    end(job, 1)
    end(job, 1, unsure=frozenset({2}))
    for _ in range(4):
        end(job, 1)
    sources = {i: (job.resolved[i].source, job.resolved[i].other.score) for i in range(1, 5)}
    assert sources == {i: (COLLAGE, 0.9) for i in (1, 3, 4)} | {2: (SINGLE, 0.5)}
    assert job.resolved[2].decided_ns is None


def test_what_is_not_drawn_is_resolved_at_once_and_names_no_other():
    job = cascade(singles=1)
    job.arrive(10)
    end(job, 1)
    end(job, 1, unsure=frozenset({3}))
    end(job, 1)
    assert {(r.audited, r.other, r.decided_ns) for r in job.resolved.values()} == {("", None, None)}


def test_a_drawn_image_that_no_collage_answered_is_not_audited():
    job = cascade(singles=2)
    job.arrive(2, drawn=True)
    end(job, 1)
    assert job.resolved[0].audited == ""


def test_an_audit_is_tried_as_often_as_an_image_and_then_given_up():
    job = audited(cascade(singles=1, max_attempts=2, max_failures=99), images=9)
    while job.live:
        job.fail(min(job.live))
    assert len(job.sent) == 2 + 2 * 9
    assert {job.resolved[i].audited for i in range(1, 10)} == {"failed"}
    assert {job.resolved[i].source for i in range(1, 10)} == {COLLAGE}
    job.close()
    assert job.finish.status == "complete", "an audit that cannot be had costs no answer"


def test_the_job_ends_when_its_audits_are_done():
    job = audited(cascade(singles=1), images=9)
    job.close()
    for _ in range(9):
        assert job.finish is None
        end(job, 1)
    assert job.finish.status == "complete"


def test_a_stop_leaves_what_is_not_audited_to_the_next_session():
    job = audited(cascade(singles=1), images=9)
    job.stop()
    end(job, 1)
    assert (job.finish.status, sorted(job.resolved)) == ("incomplete", [0, 1])


def test_until_a_threshold_is_told_only_drawn_images_are_collaged_and_none_is_sure():
    job = cascade(singles=1, calibrate=True, side=2, depth=9)
    job.arrive(4)
    job.arrive(4, drawn=True)
    assert out(job) == [(1, SINGLE, [0])]
    end(job, 1)
    assert out(job) == [(1, COLLAGE, [4, 5, 6, 7])]
    end(job, 1)
    assert not job.resolved.keys() & {4, 5, 6, 7}
    for image in (4, 5, 6, 7):
        assert out(job) == [(1, SINGLE, [image])]
        end(job, 1)
        assert (job.resolved[image].source, job.resolved[image].other.score) == (SINGLE, 0.9)
    for image in (1, 2, 3):
        assert out(job) == [(1, SINGLE, [image])]
        end(job, 1)
    job.threshold(0.5)
    job.arrive(1)
    job.arrive(4)
    end(job, 1)
    assert out(job) == [(1, COLLAGE, [9, 10, 11, 12])]
    end(job, 1, unsure=frozenset({10}))
    assert job.resolved[10].source == COLLAGE


def test_a_threshold_is_for_the_answers_that_come_after_it():
    job = cascade(singles=1, depth=9)
    job.arrive(10)
    end(job, 1)
    job.threshold(0.95)
    end(job, 1)
    assert job.resolved.keys() == {0}


def test_without_a_threshold_nothing_is_collaged_any_more_and_slow_ranks_take_singles():
    job = cascade(singles=2, depth=9)
    job.arrive(2)
    job.answer(job.task_of(0), service_ns=1 * MS)
    job.answer(job.task_of(1), service_ns=100 * MS)
    job.arrive(6)
    assert [kind for _, kind, _ in out(job)] == [SINGLE]
    job.threshold(None)
    assert [(rank, kind) for rank, kind, _ in out(job)] == [(1, SINGLE), (2, SINGLE)]
    while job.live:
        end(job, min(send.rank for send in job.live.values()))
    assert {send.kind for send in job.sent.values()} == {SINGLE}
    assert len(job.resolved) == 8


@pytest.mark.parametrize("deadline_ns", [None, 20 * MS])
def test_a_kept_answer_is_no_audit_of_itself(deadline_ns):
    job = cascade(singles=1, max_attempts=1, max_failures=99, deadline_ns=deadline_ns)
    job.arrive(1)
    job.arrive(9, drawn=True)
    end(job, 1)
    end(job, 1, unsure=frozenset({1}))
    while 1 not in job.resolved:
        if job.timers:
            job.fire(min(job.timers, key=lambda timer: job.timers[timer]))
        else:
            job.fail(min(job.live))
    kept = job.resolved[1]
    assert (kept.source, kept.audited, kept.other) == ("kept", "", None)


def test_until_a_threshold_is_told_a_collage_is_better_than_none():
    job = cascade(placement="fixed", singles=1, collages=1, calibrate=True)
    job.lose(1)
    job.arrive(3)
    assert out(job) == [(2, COLLAGE, [0])]
    end(job, 2)
    assert job.resolved[0].source == "kept"


def test_without_a_threshold_a_collage_is_better_than_none():
    job = cascade(placement="fixed", singles=1, collages=1)
    job.threshold(None)
    job.arrive(4)
    assert out(job) == [(1, SINGLE, [0])]
    job.lose(1)
    assert [kind for _, kind, _ in out(job)] == [COLLAGE]
    while job.live:
        end(job, 2)
    assert {r.source for i, r in job.resolved.items() if i} == {"kept"}


def test_without_a_threshold_no_image_is_asked_for_by_a_rank_that_takes_collages_alone():
    job = cascade(placement="fixed", singles=1, collages=1, side=2, depth=3, paced=True)
    job.threshold(None)
    job.arrive(job.admitted)
    assert out(job) == [(1, SINGLE, [0])]
    assert job.admitted == 0


def test_another_threshold_leaves_the_accept_deadline_as_it_is():
    job = cascade(singles=1, depth=9, deadline_ns=20 * MS)
    job.threshold(0.95)
    job.arrive(10)
    end(job, 1)
    end(job, 1)
    assert job.resolved.keys() == {0}
    while job.timers:
        job.fire(min(job.timers, key=lambda timer: job.timers[timer]))
    assert job.now_ns == 20 * MS
    assert {job.resolved[image].source for image in range(1, 10)} == {"kept"}


# ---- what waits, where collages come again, end or are calibrated ---------------------------


def two_copies(**settings) -> tuple[Harness, int, int]:
    """No single rank is left, and a rank that had a collage of drawn image 1 was silent: the
    collage is on another rank too. The job, and the two tasks."""
    job = cascade(placement="fixed", singles=1, collages=2, side=2, depth=8, **settings)
    job.arrive(1)
    job.lose(1)
    job.arrive(7, drawn=True)
    silent = job.task_of(1, COLLAGE)
    job.suspect(job.live[silent].rank)
    while (again := job.task_of(1, COLLAGE)) == silent:
        job.answer(max(job.live))
    return job, silent, again


def test_a_second_collage_of_a_decided_image_ends_its_wait():
    job, silent, again = two_copies()
    job.answer(silent)
    job.answer(again)
    assert (job.resolved[1].source, job.resolved[1].audited) == (COLLAGE, "failed")


def test_of_a_kept_image_no_other_collage_is_an_audit():
    job, silent, again = two_copies(deadline_ns=20 * MS)
    for task in (silent, again):
        job.answer(task, unsure=frozenset({1}))
    job.fire(min(job.timers, key=lambda timer: job.timers[timer]))
    assert (job.resolved[1].source, job.resolved[1].audited) == ("kept", "")


def test_an_answer_that_counts_later_does_not_hold_back_one_that_counts_now():
    job, silent, again = two_copies(deadline_ns=20 * MS)
    job.answer(silent, unsure=frozenset({1}))
    job.answer(again)
    assert job.resolved[1].audited == "failed"
    assert job.now_ns == 0


def test_without_a_threshold_the_oldest_image_still_goes_first():
    job = cascade(singles=1, depth=9)
    job.arrive(4)
    job.threshold(None)
    job.arrive(3)
    order = []
    while job.live:
        order += out(job)[0][2]
        end(job, 1)
    assert order == sorted(order)


def test_without_a_threshold_nothing_leaves_together_when_a_single_rank_is_back():
    job = cascade(placement="fixed", singles=1, collages=1, side=2, depth=8)
    job.arrive(1)
    job.suspect(1)
    job.arrive(7)
    job.threshold(None)
    job.answer(job.task_of(0))
    end(job, 2)
    assert {send.kind for send in job.live.values()} == {SINGLE}


def test_calibration_images_wait_for_none_that_came_later():
    job = cascade(singles=1, depth=9, calibrate=True, side=2)
    job.arrive(1)
    job.arrive(8, drawn=True)
    job.arrive(4)
    end(job, 1)
    assert out(job) == [(1, COLLAGE, [1, 2, 3, 4])]


def test_the_fastest_rank_is_served_first_when_bundles_end():
    job = cascade(singles=5, depth=9)
    job.arrive(5)
    pace = {1: 300, 2: 200, 3: 1, 4: 1, 5: 1}
    for rank in (3, 4, 5, 1, 2):
        end(job, rank, service_ns=pace[rank] * MS)
    job.arrive(4)
    job.threshold(None)
    assert out(job)[-1][0] == 2


def test_what_waited_during_the_calibration_leaves_together_once_a_threshold_is_told():
    job = cascade(singles=1, calibrate=True, side=2, depth=9)
    job.arrive(1 + 3)
    job.threshold(0.5)
    job.arrive(5)
    end(job, 1)
    assert out(job) == [(1, COLLAGE, [1, 2, 3, 4])], "none that came later goes before them"


def test_idle_collage_ranks_take_what_waited_once_a_threshold_is_told():
    job = cascade(singles=1, collages=1, placement="fixed", calibrate=True, side=2, depth=9)
    job.arrive(1 + 4)
    assert [rank for rank, _, _ in out(job)] == [1]
    job.threshold(0.5)
    assert out(job)[1:] == [(2, COLLAGE, [1, 2, 3, 4])]


def test_what_waited_during_a_calibration_that_chose_nothing_goes_first():
    job = cascade(singles=1, calibrate=True, side=2, depth=9)
    job.arrive(1 + 2)
    job.threshold(None)
    job.arrive(2)
    order = []
    while job.live:
        order += out(job)[0][2]
        end(job, 1)
    assert order == [0, 1, 2, 3, 4]


def test_an_audit_that_is_under_way_is_waited_for_whatever_counts_later():
    """Image 1 is in two collages of silent ranks, and on the single rank, which is back."""
    job = cascade(placement="fixed", singles=1, collages=2, side=2, depth=8, deadline_ns=20 * MS)
    job.arrive(1)
    job.suspect(1)
    job.arrive(7, drawn=True)
    silent = job.task_of(1, COLLAGE)
    job.suspect(job.live[silent].rank)
    while (again := job.task_of(1, COLLAGE)) == silent:
        job.answer(max(job.live))
    job.answer(job.task_of(0))
    job.suspect(job.live[again].rank)
    while [1] not in [images for rank, _, images in out(job) if rank == 1]:
        end(job, 1)
    single = job.task_of(1)
    job.answer(silent, unsure=frozenset({1}))
    job.answer(again)
    assert 1 not in job.resolved
    job.answer(single)
    assert (job.resolved[1].source, job.resolved[1].audited) == (COLLAGE, "done")


def test_what_waits_is_sorted_by_age_when_it_is_sorted_anew():
    backlog, rank, group = Backlog(), RankState(1, frozenset(), "", 1), GroupState(0, 0)
    images = [ImageState(image, group, image, 0) for image in (5, 3, 4)]
    for task, image in enumerate(images):
        backlog.add(TaskState(task, Order(SINGLE, SINGLE), rank, [image]), LATE)
    backlog.renew(lambda task: AGAIN if task.images[0].id == 4 else FRESH)
    assert [task.images[0].id for task in backlog.take_fresh(9)] == [3, 5]
    assert list(backlog.tasks) == [2], "image 4 waits alone"


# ---- images that choose a threshold wait for a whole collage, also where ranks are idle ---------


def held(**settings) -> Harness:
    """A single and a collage rank are idle, and two images that choose a threshold wait."""
    layout = {"placement": "fixed", "singles": 1, "collages": 1}
    job = cascade(**{**layout, "calibrate": True, "side": 2, "depth": 9, **settings})
    job.arrive(2, drawn=True)
    assert out(job) == []
    return job


def together(job: Harness) -> None:
    """What waited leaves as a collage, and the job comes to its end."""
    assert out(job)[0] == (2, COLLAGE, [0, 1])
    job.run_out()
    assert [job.resolved[image].audited for image in (0, 1)] == ["done", "done"]


def alone(job: Harness) -> None:
    """What waited leaves, each image by itself, and the job comes to its end."""
    assert out(job) == [(1, SINGLE, [0])]
    end(job, 1)
    assert out(job) == [(1, SINGLE, [1])]
    job.run_out()
    assert {job.resolved[image].outcome for image in (0, 1)} == {"ok"}


@pytest.mark.parametrize("placement", ["fixed", "fastest"])
def test_images_that_choose_a_threshold_wait_for_a_whole_collage(placement):
    job = held(placement=placement)
    job.arrive(2, drawn=True)
    assert [(kind, images) for _, kind, images in out(job)] == [(COLLAGE, [0, 1, 2, 3])]
    job.arrive(3, drawn=True)
    assert len(job.live) == 1


def test_a_single_rank_that_has_room_takes_none_of_them_by_itself():
    job = held()
    job.arrive(2, drawn=True)
    job.arrive(1)
    job.arrive(3, drawn=True)
    end(job, 1)
    assert out(job) == [(2, COLLAGE, [0, 1, 2, 3])]
    end(job, 2)
    assert sorted(out(job)) == [(1, SINGLE, [0]), (2, COLLAGE, [5, 6, 7])]


def test_they_wait_for_no_more_once_one_comes_that_does_not_choose():
    job = held()
    job.arrive(1)
    assert out(job)[1:] == [(1, SINGLE, [2])]
    together(job)


def test_they_wait_for_no_more_when_no_rank_could_take_a_collage():
    job = held()
    job.suspect(2)
    assert out(job) == [], "it has nothing to answer, so it is not silent"
    job.lose(2)
    alone(job)


def test_they_wait_for_no_more_when_the_last_collage_rank_is_silent():
    job = held(singles=1)
    job.arrive(2, drawn=True)
    job.arrive(2, drawn=True)
    assert out(job) == [(2, COLLAGE, [0, 1, 2, 3])]
    job.suspect(2)
    for image in range(6):
        assert out(job)[-1] == (1, SINGLE, [image])
        end(job, 1)


def test_they_go_on_waiting_when_a_retired_collage_rank_is_recalled():
    job = held(collages=2, max_failures=1)
    job.arrive(2, drawn=True)
    job.fail(job.task_of(0, COLLAGE))
    assert job.retired == {2}
    job.arrive(2, drawn=True)
    job.lose(3)
    assert job.retired == set()
    job.arrive(2, drawn=True)
    assert out(job)[-1] == (2, COLLAGE, [4, 5, 6, 7])


def test_they_wait_for_no_more_when_the_input_pauses():
    job = held()
    job.feed(InputPaused(job.now_ns))
    together(job)


def test_they_wait_for_no_more_when_the_input_closes():
    job = held()
    job.close()
    together(job)


def test_they_wait_for_no_more_once_the_threshold_is_known():
    job = held()
    job.threshold(0.5)
    alone(job)


def test_after_a_stop_they_are_left_to_the_next_session():
    job = held()
    job.stop()
    assert (out(job), job.finish.status) == ([], "incomplete")


def test_one_that_cannot_be_read_holds_up_no_others():
    job = held()
    job.arrived |= {2}
    job.admitted -= 1
    job.feed(ImageArrived(job.now_ns, 2, job.now_ns, fault="worn", drawn=True))
    job.arrive(1, drawn=True)
    assert out(job) == [(2, COLLAGE, [0, 1, 3])]

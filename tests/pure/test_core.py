"""The core's rules, each in a case small enough to read; `World` checks the invariants too."""

from __future__ import annotations

import re
import sys
from collections import Counter
from itertools import permutations, product

import numpy as np
import pytest
from core_world import ABSENT, BAD_ROW, COLLAGE, MS, SECOND_NS, SINGLE, UNREAD, World

from collage_mpi.core import events as ev
from collage_mpi.core.core import ProtocolViolation
from collage_mpi.core.policies import Confident
from collage_mpi.core.schemes import SCHEMES
from collage_mpi.core.settings import CoreSettings
from collage_mpi.rows import CELL

UNSURE = Confident(0.99, 100 * MS)


def started(**settings) -> World:
    """A world with its first groups under way."""
    world = World(**settings).start()
    world.arrive(world.admitted)
    return world


def collage(**settings) -> World:
    return started(**{"scheme": "collage", "others": 1, **settings})


def pulled(images: int = 0, **settings) -> World:
    world = World(**{"assign": "pull", **settings}).start()
    if images:
        world.arrive(images)
    return world


def on(world: World, rank: int) -> list[int]:
    """Images that are out on the rank."""
    return [image for task in world.of(rank) for image in world.live[task].images]


# ---- what comes in ----------------------------------------------------------


def test_nothing_is_asked_for_before_every_rank_is_ready_or_lost():
    world = World(scheme="collage", others=1)
    for rank in (1, 2, 3, 4):
        world.rank_ready(rank)
    assert world.admitted == 0
    world.lose(5)
    assert world.admitted == 4


def test_depth_keeps_several_groups_in_flight():
    world = World(depth=3).start()
    assert world.admitted == 12


def test_with_batches_whole_batches_of_groups_come_in_and_leave_together():
    world = World(scheme="collage", others=1, batch=3).start()
    assert world.admitted == 12
    world.arrive(8)
    assert not world.live, "no rank has three yet, and more are awaited"
    world.arrive(4)
    assert [(s.rank, s.kind, len(s.images)) for s in world.live.values()] == [
        *((rank, SINGLE, 3) for rank in (1, 2, 3, 4)),
        *((5, COLLAGE, 4) for _ in range(3)),
    ]


def test_an_open_loop_gathers_nothing():
    world = World(batch=4, together=False, credit=1, depth=9).start()
    world.arrive(1)
    assert world.out() == [(1, SINGLE, [0])]


@pytest.mark.parametrize("event", [ev.InputPaused(), ev.InputClosed()])
def test_what_was_gathered_leaves_when_the_input_ends_or_pauses(event):
    world = pulled(singles=1, batch=4)
    world.arrive(3)
    assert not world.live
    world.step(event)
    assert world.out() == [(1, SINGLE, [0, 1, 2])]


def test_carry_asks_when_a_group_is_over_and_drain_when_ranks_are_idle():
    for drain in (False, True):
        world = collage(drain=drain)
        world.answer(world.task_of(0, COLLAGE))
        assert (world.admitted == 4) == (not drain)
        for task in list(world.live):
            world.skip(task)
        assert world.admitted == 4


def test_drain_waits_neither_for_a_silent_rank_nor_for_ever():
    for how in ("silence", "wait"):
        world = collage(drain=True)
        world.answer(world.task_of(0, COLLAGE))
        for task in [task for task, sent in world.live.items() if sent.rank != 1]:
            world.skip(task)
        assert world.admitted == 0
        world.silence(1) if how == "silence" else world.wake()
        assert world.admitted == 4


def test_paced_the_next_group_comes_in_when_a_rank_has_nothing_to_do():
    world = pulled(4, singles=3, depth=9, paced=True)
    world.answer(world.of(1)[0])
    assert world.admitted == 0, "rank 1 has image 3"
    world.answer(world.of(2)[0])
    assert world.admitted == 4


def test_after_a_pause_images_come_in_groups_again():
    world = World(depth=2).start()
    world.arrive(3)
    world.step(ev.InputPaused())
    assert (world.core.next, world.admitted) == (4, 8)
    world.arrive(8)
    world.run_out()


def test_images_that_are_left_out_do_not_shift_the_groups_that_follow():
    world = World(depth=2).start()
    world.arrive(1)
    world.arrive(2, gap=1)
    assert (world.core.next, world.admitted) == (4, 8)
    world.arrive(8)
    world.run_out()


def test_a_row_that_cannot_be_read_keeps_its_place_and_its_turn():
    world = World().start()
    world.arrive(4, faults={1: "row 1 is damaged"})
    assert [sent.rank for sent in world.live.values()] == [1, 3, 4]
    world.run_out()
    assert world.rows[1]["reason"] == b"row 1 is damaged"
    assert world.finish == ev.Finish(ev.COMPLETE_WITH_ERRORS, "")


def test_an_empty_input_is_complete():
    world = World().start()
    world.close()
    assert world.finish == ev.Finish(ev.COMPLETE, "")
    with pytest.raises(ProtocolViolation, match="after Finish"):
        world.core.step(0)


@pytest.mark.parametrize(
    "event",
    [
        ev.Skipped(99, 1),
        ev.Answered([0], 2, np.zeros(1, CELL)),
        ev.Answered([0], 1, np.zeros(2, CELL)),
        ev.RankReady(1, frozenset({SINGLE}), "host", 2),
    ],
)
def test_a_drivers_fault_is_a_violation(event):
    with pytest.raises(ProtocolViolation):
        started().core.step(0, [event])


def test_time_must_not_run_back_nor_a_lost_rank_come_back_nor_images_after_the_end():
    world = started(depth=2)
    world.close()
    world.step(now_ns=5)
    with pytest.raises(ProtocolViolation):
        world.core.step(4)
    world.lose(1)
    with pytest.raises(ProtocolViolation):
        world.rank_ready(1)
    with pytest.raises(ProtocolViolation):
        world.core.step(5, [ev.Arrived(99, np.zeros(1), 0)])


# ---- who gets what ----------------------------------------------------------


def test_singles_leave_on_arrival_and_the_collage_when_its_group_is_full():
    world = World(scheme="collage", others=1).start()
    world.arrive(3)
    assert world.out() == [(1, SINGLE, [0]), (2, SINGLE, [1]), (3, SINGLE, [2])]
    world.arrive(1)
    assert world.out()[3:] == [(4, SINGLE, [3]), (5, COLLAGE, [0, 1, 2, 3])]


def test_a_collage_that_waits_leaves_out_what_is_resolved_meanwhile():
    world = collage(credit=1, depth=2)
    first = world.task_of(0, COLLAGE)
    for image in (0, 1, 2, 3, 5):
        world.answer(world.task_of(image))
    world.answer(first)
    assert world.live[world.task_of(4, COLLAGE)].images == (4, 6, 7)


@pytest.mark.parametrize("singles", [1, 2, 3, 5, 9])
def test_ranks_in_turn_get_equal_shares(singles):
    world = started(side=3, singles=singles)
    world.run_out()
    share = Counter(sent.rank for sent in world.sent.values() for _ in sent.images)
    assert max(share.values()) - min(share.values()) <= 1


@pytest.mark.parametrize("assign", ["turn", "pull"])
@pytest.mark.parametrize("scheme", ["collage", "collage-only"])
def test_copies_of_a_collage_go_to_different_ranks(scheme, assign):
    world = started(scheme=scheme, others=3, collage_copies=2, assign=assign, batch=2)
    ranks = [sent.rank for sent in world.live.values() if sent.kind == COLLAGE]
    for group in (0, 1):
        ranks = [s.rank for s in world.live.values() if s.kind == COLLAGE and 4 * group in s.images]
        assert len({*ranks}) == len(ranks) == 2


def test_replicas_go_to_different_ranks_and_the_first_answer_counts():
    world = started(scheme="replicate", singles=8)
    assert sorted((sent.images[0], sent.rank) for sent in world.live.values()) == [
        (image, rank) for image in range(4) for rank in (image + 1, image + 5)
    ]
    world.answer(max(task for task, sent in world.live.items() if 0 in sent.images))
    assert world.source(0) == "replica"
    assert len(world.cancelled) == 1


def test_a_pulled_replica_is_taken_by_another_rank():
    world = pulled(4, scheme="replicate", singles=3, credit=1)
    assert [on(world, rank) for rank in (1, 2, 3)] == [[0], [0], [1]]
    world.answer(world.of(1)[0])
    assert on(world, 1) == [1]


def test_a_late_image_is_hedged_on_an_idle_rank_or_when_one_becomes_idle():
    world = started(scheme="hedge", singles=5, hedge_ns=50 * MS)
    world.wake()
    assert world.out()[4:] == [(5, SINGLE, [0])]
    world.answer(world.task_of(3))
    assert world.out()[-1] == (4, SINGLE, [1])
    world.answer(world.task_of(0))
    assert world.source(0) == "hedge"


def test_an_image_that_comes_after_its_hedge_time_is_hedged_at_once():
    world = World(scheme="hedge", singles=2, hedge_ns=50 * MS).start()
    world.now_ns = 60 * MS
    world.arrive(1, t0_ns=0)
    assert world.out() == [(1, SINGLE, [0]), (2, SINGLE, [0])]


def test_pulled_the_oldest_image_goes_to_the_first_rank_with_room():
    world = pulled(8, singles=2, credit=1, depth=2)
    assert world.out() == [(1, SINGLE, [0]), (2, SINGLE, [1])]
    for _ in range(3):
        world.answer(world.of(1)[0])
    assert (on(world, 1), on(world, 2)) == ([4], [1])


def test_a_message_takes_a_batch_of_the_oldest_and_of_fewer_each_rank_its_share():
    world = pulled(32, singles=2, batch=4, credit=1, depth=2)
    assert (on(world, 1), on(world, 2)) == ([0, 1, 2, 3], [4, 5, 6, 7])
    world = pulled(singles=9, side=3, batch=4, credit=1)
    world.arrive(9)
    world.close()
    assert [len(on(world, rank)) for rank in range(1, 10)] == [1] * 9


def test_images_that_are_resolved_before_they_leave_keep_no_rank_waiting():
    world = World(scheme="collage", assign="pull", singles=1, others=1, credit=1, depth=2).start()
    world.arrive(8)
    world.answer(world.of(2)[0])
    world.answer(world.of(1)[0])
    assert on(world, 1) == [4]


# ---- outcomes ---------------------------------------------------------------


@pytest.mark.parametrize("missing", list(product([ABSENT, 1], repeat=4)))
def test_the_first_answer_counts_in_every_order(missing):
    """All 120 orders of four singles and a collage, with all 16 sets of absent cells."""
    for order in permutations(range(5)):
        world = World(scheme="collage", others=1, checked=False).start()
        world.arrive(4)
        world.close()
        tasks = [world.task_of(image) for image in range(4)] + [world.task_of(0, COLLAGE)]
        for place in order:
            world.answer(tasks[place], *(missing if place == 4 else ()))
        assert world.finished().finish == ev.Finish(ev.COMPLETE, "")
        for image in range(4):
            before = order.index(image) < order.index(4) or missing[image] == ABSENT
            assert world.rows[image]["source"] == (SINGLE if before else COLLAGE)


@pytest.mark.parametrize("unsure", range(5))
def test_an_unsure_answer_counts_at_its_deadline_in_every_order(unsure):
    """Four singles (0-3), the collage (4) and the deadline (5), which is for unsure cells only."""
    for order in permutations(range(6)):
        policy = Confident(0.8, 100 * MS)
        world = World(scheme="collage", others=1, policy=policy, checked=False).start()
        world.arrive(4)
        world.close()
        tasks = [world.task_of(image) for image in range(4)] + [world.task_of(0, COLLAGE)]
        for place in order:
            if world.finish is not None:
                break
            if place == 5:
                world.step(now_ns=100 * MS)
            elif place == 4:
                world.unsure(tasks[4], *range(unsure))
            else:
                world.answer(tasks[place])
        world.finished()
        for image in range(4):
            late = image < unsure and order.index(4) < order.index(5)
            counts = order.index(5) if late else order.index(4)
            cell = "kept" if late else COLLAGE
            first = order.index(image) < counts
            assert world.rows[image]["source"] == (SINGLE if first else cell)


def test_a_late_answer_changes_nothing_and_a_cancelled_task_may_be_skipped():
    world = collage()
    world.answer(world.task_of(0, COLLAGE))
    late, *others = world.live
    assert world.cancelled == world.live.keys()
    world.answer(late)
    assert world.actions == []
    for task in others:
        world.skip(task)


def test_a_sure_copy_counts_while_an_unsure_one_is_kept():
    world = collage(others=2, collage_copies=2, policy=Confident(0.8, 100 * MS))
    first, second = (task for task, sent in world.live.items() if sent.kind == COLLAGE)
    world.unsure(first, 0, 1)
    assert world.open.keys() == {0, 1}
    world.unsure(second, 1)
    assert world.open.keys() == {1}
    world.run_out()
    assert world.used[second] >= 1


def test_an_unsure_answer_without_a_deadline_waits_for_the_singles_answer_or_last_failure():
    world = collage(policy=Confident(0.8, None), max_attempts=2)
    world.unsure(world.task_of(0, COLLAGE), 0, 1)
    assert world.open.keys() == {0, 1}
    assert world.core.wake_ns is None
    world.answer(world.task_of(1))
    world.fail(world.task_of(0))
    assert 0 in world.open, "it is tried again first"
    world.fail(world.task_of(0))
    assert (world.source(0), world.source(1)) == ("kept", SINGLE)


def test_an_unsure_answer_that_comes_after_all_attempts_counts():
    world = collage(policy=UNSURE, max_attempts=1)
    world.fail(world.task_of(0))
    world.answer(world.task_of(0, COLLAGE))
    assert world.source(0) == "kept"


@pytest.mark.parametrize("stop", [False, True])
def test_kept_answers_are_used_before_a_job_stops(stop):
    world = collage(policy=UNSURE)
    world.close()
    world.answer(world.task_of(0, COLLAGE))
    if stop:
        world.stop()
    for rank in (1, 2, 3, 4):
        world.lose(rank)
    if world.finish is None:
        world.wake()
    assert world.finish is not None
    assert world.finish.status == ev.COMPLETE
    assert {world.source(image) for image in range(4)} == {"kept"}


# ---- failures ---------------------------------------------------------------


@pytest.mark.parametrize("assign", ["turn", "pull"])
def test_a_failed_image_is_tried_again_on_another_rank(assign):
    world = started(assign=assign)
    world.fail(world.task_of(0))
    again = world.live[world.task_of(0)]
    assert (again.rank != 1, again.attempt) == (True, 2)
    world.answer(again.id)
    assert world.source(0) == "retry"


@pytest.mark.parametrize("end", [(), (ABSENT,), (UNREAD,)])
@pytest.mark.parametrize("scheme", ["none", "collage", "collage-only", "hedge"])
def test_what_always_fails_is_given_up_after_so_many_attempts(scheme, end):
    world = started(scheme=scheme, others=1, max_failures=99, credit=99, hedge_ns=10**12)
    world.close()
    while world.finish is None:
        task = min(world.live)
        states = [*end] * len(world.live[task].images)
        world.fail(task) if not end else world.answer(task, *states)
    world.finished()
    assert world.finish.status == ev.COMPLETE_WITH_ERRORS
    tries = Counter((sent.kind, image) for sent in world.sent.values() for image in sent.images)
    main = COLLAGE if scheme == "collage-only" else SINGLE
    assert [tries[main, image] for image in range(4)] == [3] * 4
    assert max(tries.values()) == 3
    why = {(): "boom", (ABSENT,): "the network gave no answer", (UNREAD,): "on h: worn 0"}[end]
    assert world.rows[0]["reason"].decode() == why


def test_the_collage_saves_an_image_that_cannot_be_tried_again():
    world = collage(max_attempts=1)
    world.fail(world.task_of(0))
    world.answer(world.task_of(0, COLLAGE))
    assert world.source(0) == COLLAGE


def test_collages_alone_are_made_again_of_what_was_absent():
    world = started(scheme="collage-only", others=3)
    first = world.task_of(0, COLLAGE)
    world.answer(first, ABSENT, 1, ABSENT, 1)
    again = world.live[world.task_of(0, COLLAGE)]
    assert (again.images, again.attempt) == ((0, 2), 2)
    assert again.rank != world.sent[first].rank


def test_a_rank_that_keeps_failing_is_retired_but_never_the_last_one():
    world = started(singles=2, max_failures=2, max_attempts=9)
    for _ in range(2):
        world.fail(world.of(1)[0])
    assert world.retired == {1}
    for _ in range(3):
        world.fail(world.of(2)[0])
    assert world.retired == {1}
    world.run_out()


def test_an_answer_clears_the_failures_of_a_rank():
    world = pulled(16, side=4, singles=2, max_failures=2, max_attempts=99)
    for _ in range(3):
        world.fail(world.of(1)[0])
        world.answer(world.of(1)[0])
    assert not world.retired


def test_bad_rows_are_held_against_no_rank():
    world = started(singles=2, max_failures=1, max_attempts=9)
    world.fail(world.of(1)[0], BAD_ROW)
    assert not world.retired
    world.fail(world.of(1)[0], UNREAD)
    assert world.retired == {1}


def test_images_that_fail_on_every_rank_retire_none():
    world = started(singles=4, max_failures=2)
    for image in range(4):
        while image in world.open:
            world.fail(world.task_of(image))
    assert not world.retired
    world.run_out()


def test_a_failed_message_counts_once_whatever_its_length():
    world = pulled(singles=2, batch=4, max_failures=2)
    world.arrive(world.admitted)
    assert len(on(world, 1)) > 2
    world.fail(world.of(1)[0])
    assert not world.retired
    world.fail(world.of(1)[0])
    assert world.retired == {1}
    world.run_out()


def test_a_retired_rank_is_recalled_when_no_other_is_left():
    world = started(singles=3, max_failures=1, max_attempts=9)
    for rank in (1, 2):
        world.fail(world.of(rank)[0])
    assert world.retired == {1, 2}
    world.lose(3)
    assert world.retired == {2}, "one is enough"
    world.lose(1)
    assert world.retired == set()
    world.run_out()


@pytest.mark.parametrize("assign", ["turn", "pull"])
def test_what_has_failed_travels_alone(assign):
    world = started(singles=2, batch=4, credit=1, assign=assign)
    world.fail(world.of(1)[0])
    failed = world.sent[0].images
    seen = len(world.messages)
    world.run_out()
    retries = [m for m in world.messages[seen:] if {*failed} & {*world.sent[m[0]].images}]
    assert len(retries) == 4
    assert all(len(world.sent[message[0]].images) == 1 for message in retries)


def test_an_image_that_failed_while_it_waited_leaves_alone():
    world = pulled(8, singles=2, batch=4, credit=1, together=False, depth=2)
    first = world.of(1)[0]
    world.silence(1)
    world.fail(first)
    world.answer(world.of(2)[0])
    assert world.out() == [(2, SINGLE, [0])]


# ---- hosts that cannot read -------------------------------------------------


@pytest.mark.parametrize("assign", ["turn", "pull"])
def test_what_one_host_cannot_read_is_sent_to_another(assign):
    world = started(hosts="aaab", assign=assign)
    world.fail(world.task_of(0), UNREAD)
    assert world.live[world.task_of(0)].rank == 4
    world.answer(world.task_of(0), UNREAD)
    third = world.task_of(0)
    assert world.live[third].rank in (2, 3), "no other host: another rank"
    world.fail(third, UNREAD)
    world.take()
    assert world.rows[0]["reason"] == b"on a, b: worn 2"


def test_a_reason_names_few_hosts():
    world = started(singles=5, hosts="abcde", max_attempts=5)
    for _ in range(5):
        world.fail(world.task_of(0), UNREAD)
    world.take()
    assert re.fullmatch(rb"on \w, \w, \w and 2 more: worn 2", world.rows[0]["reason"])


def test_a_collage_resolves_nothing_that_it_was_blank_for():
    world = collage(hosts="aaaab")
    world.answer(world.task_of(0, COLLAGE), 1, UNREAD)
    assert world.open.keys() == {1}
    for _ in range(3):
        world.fail(world.task_of(1), UNREAD)
    world.take()
    assert world.rows[1]["reason"] == b"on b, a: worn 2"


@pytest.mark.parametrize(("state", "trusted"), [(BAD_ROW, False), (UNREAD, True)])
def test_the_label_of_a_bad_row_is_not_trusted_though_its_cell_was_classified(state, trusted):
    world = collage(hosts="abcde")
    world.fail(world.task_of(0), state)
    world.answer(world.task_of(0, COLLAGE))
    world.take()
    assert (world.rows[0]["source"], world.rows[0]["has_label"]) == (COLLAGE, trusted)


# ---- silence and loss -------------------------------------------------------


def test_a_silent_rank_may_answer_late_and_takes_work_again():
    world = started()
    first = world.task_of(0)
    world.silence(1)
    second = world.task_of(0)
    assert world.live[second].rank != 1
    world.answer(first)
    assert world.used == Counter()
    assert second in world.cancelled
    world.arrive(4) if world.admitted else None
    for task in list(world.live):
        world.answer(task)
    world.arrive(4)
    assert on(world, 1)


def test_a_rank_that_owes_nothing_or_never_came_is_not_silent():
    assert World().step(ev.RankSilent(3, "no answer")) == []
    world = started()
    world.answer(world.task_of(0))
    world.silence(1)
    assert world.silent == set()


def test_silence_is_no_failure_however_often():
    world = started(singles=9)
    for _ in range(5):
        world.silence(world.live[world.task_of(0)].rank)
    tried = [sent.rank for sent in world.sent.values() if 0 in sent.images]
    assert len(tried) == len({*tried}) == 6
    for _ in range(2):
        world.fail(world.task_of(0))
    world.answer(world.task_of(0))
    assert world.source(0) == "retry"


def test_an_attempt_has_a_number_of_one_byte_however_often_ranks_fall_silent():
    world = World(singles=300, checked=False).start()
    world.arrive(1)
    for _ in range(280):
        world.silence(world.live[world.task_of(0)].rank)
    world.answer(world.task_of(0))
    world.take()
    assert world.rows[0]["attempt"] == 255


def test_images_are_parked_while_every_rank_is_silent_and_then_the_job_stops():
    world = started(singles=1, credit=4, park_ns=30 * MS)
    world.silence(1)
    assert world.open.keys() == {0, 1, 2, 3}
    world.wake()
    assert world.now_ns == 30 * MS
    world.fall_silent()
    assert world.finish == ev.Finish(
        ev.INCOMPLETE, "every rank that could classify an image is silent"
    )


def test_parking_is_over_when_the_rank_is_heard_and_starts_anew():
    world = started(singles=1, credit=4, park_ns=30 * MS)
    world.silence(1)
    world.now_ns = 20 * MS
    world.answer(world.task_of(0))
    world.silence(1)
    world.step(now_ns=40 * MS)
    assert world.core.stopping is None
    world.answer(world.task_of(1))
    world.step(now_ns=60 * MS)
    world.run_out()
    assert world.finish is not None
    assert world.finish.status == ev.COMPLETE


def test_an_image_waits_for_a_silent_collage_rank_that_has_it():
    world = collage(max_attempts=1)
    task = world.task_of(0, COLLAGE)
    world.silence(5)
    world.fail(world.task_of(0))
    assert 0 in world.open
    world.answer(task)
    assert world.source(0) == COLLAGE


def test_each_image_waits_for_silent_ranks_as_long_as_the_first_one_did():
    world = collage(max_attempts=1, park_ns=30 * MS)
    world.silence(5)
    world.fail(world.task_of(0))
    world.now_ns = 10 * MS
    world.fail(world.task_of(1))
    world.step(now_ns=30 * MS)
    assert world.open.keys() == {1, 2, 3}
    world.step(now_ns=40 * MS)
    assert world.open.keys() == {2, 3}


@pytest.mark.parametrize("assign", ["turn", "pull"])
@pytest.mark.parametrize("scheme", ["none", "replicate", "collage-only"])
def test_images_that_come_while_every_rank_is_silent_are_parked(scheme, assign):
    world = World(scheme=scheme, singles=1, others=1, depth=2, assign=assign).start()
    world.arrive(4)
    world.silence(1)
    world.arrive(4)
    assert world.core.wake_ns is not None
    world.answer(min(world.live))
    world.run_out()
    assert world.finish is not None
    assert world.finish.status == ev.COMPLETE


def test_all_ranks_lost_ends_the_job_as_incomplete():
    world = collage()
    for rank in (1, 2, 3, 4, 5):
        world.lose(rank)
    assert world.finish == ev.Finish(ev.INCOMPLETE, "no rank is left that could classify an image")
    world = World(scheme="collage", others=1)
    for rank in (1, 2, 3, 4, 5):
        world.lose(rank)
    assert world.finish is not None
    assert world.finish.status == ev.INCOMPLETE
    assert world.admitted == 0


def test_the_collage_alone_carries_a_job_without_singles():
    world = collage()
    for rank in (1, 2, 3, 4):
        world.lose(rank)
    world.answer(world.task_of(0, COLLAGE), 1, 1, ABSENT)
    assert [world.source(image) for image in range(4)] == [COLLAGE, COLLAGE, "error", COLLAGE]


def test_work_that_was_bound_to_a_lost_rank_goes_to_another():
    world = collage(others=2, credit=1, depth=4)
    world.lose(5)
    for _ in range(2):
        world.answer(world.of(6)[0])
    assert on(world, 6) == [8, 9, 10, 11]


def test_before_its_last_attempt_an_image_waits_until_no_more_ranks_are_lost():
    world = started(settle_ns=SECOND_NS)
    for _ in range(2):
        world.lose(world.live[world.task_of(0)].rank)
    assert 0 not in [image for rank in (3, 4) for image in on(world, rank)]
    world.now_ns = 600 * MS
    world.lose(3)
    world.wake()
    assert world.now_ns == 1000 * MS
    assert 0 not in on(world, 4)
    world.wake()
    assert world.now_ns == 1600 * MS
    world.run_out()
    assert world.rows[0]["source"] == "retry"


def test_an_image_that_kills_its_ranks_is_given_up_after_as_many():
    world = started(singles=5)
    for lost in (1, 2, 3):
        while 0 not in [image for sent in world.live.values() for image in sent.images]:
            world.wake()
        world.lose(world.live[world.task_of(0)].rank)
        assert (0 not in world.open) == (lost == 3)
    world.take()
    assert b"was lost" in world.rows[0]["reason"]


# ---- the end ----------------------------------------------------------------


def test_a_stop_takes_what_is_under_way_and_waits_for_no_hung_rank():
    world = started(depth=2)
    world.stop()
    sends = len(world.sent)
    world.answer(world.task_of(0))
    assert len(world.sent) == sends
    world.wake()
    assert world.now_ns == 5 * SECOND_NS
    assert world.finished().finish == ev.Finish(ev.INCOMPLETE, "asked to")


@pytest.mark.parametrize(("endgame", "wait_s"), [(False, 30), (True, 1)])
def test_the_end_waits_for_late_answers_but_not_for_ever(endgame, wait_s):
    world = collage(endgame=endgame)
    world.answer(world.task_of(0, COLLAGE))
    world.close()
    assert world.finish is None
    world.wake()
    assert world.now_ns == wait_s * SECOND_NS
    world.finished()
    assert {row["outcome"] for row in world.tasks.values()} == {0, 4}, "answered, unfinished"


def ended(images: int, **settings) -> World:
    """All images are in, and none is to come."""
    world = World(**{"assign": "pull", "endgame": True, "credit": 1, **settings}).start()
    world.arrive(images)
    world.close()
    return world


def copies(world: World) -> list[tuple[int, int, int]]:
    """Rank, image and attempt of each copy, in order."""
    return [(s.rank, s.images[0], s.attempt) for s in world.sent.values() if s.spare]


def test_an_idle_rank_gets_the_oldest_image_with_the_fewest_copies():
    world = ended(4)
    world.answer(world.task_of(1))
    assert copies(world) == [(2, 0, 2)]
    world.answer(world.task_of(3))
    assert copies(world)[1:] == [(4, 2, 2)]
    world.answer(min(task for task, sent in world.live.items() if 2 in sent.images))
    world.skip(world.of(4)[0])
    assert sorted(copies(world)[2:]) == [(3, 0, 3), (4, 0, 4)], "never where it is"


def test_an_image_has_eight_copies_at_most():
    assert copies(ended(1, singles=11)) == [(rank, 0, rank) for rank in range(2, 10)]


def test_nothing_is_copied_while_images_may_come_and_a_pause_ends():
    world = pulled(4, endgame=True, depth=2)
    world.answer(world.task_of(0))
    assert copies(world) == []
    world.step(ev.InputPaused())
    assert copies(world) == [(1, 1, 2)]
    world.arrive(4)
    world.answer(world.task_of(2))
    assert len(copies(world)) == 1


def test_the_first_answer_counts_and_copies_are_cancelled_first():
    world = ended(3, singles=3)
    world.answer(world.task_of(0))
    world.answer(world.task_of(2))
    first, copy, other = (task for task, sent in world.live.items() if 1 in sent.images)
    world.answer(copy)
    assert world.source(1) == "endgame"
    assert [a.task for a in world.actions if isinstance(a, ev.Cancel)] == [other, first]


@pytest.mark.parametrize("absent", [False, True])
def test_a_copy_is_no_attempt(absent):
    world = ended(2, singles=3, max_attempts=2)
    first, copy = (task for task, sent in world.live.items() if 0 in sent.images)
    world.answer(copy, ABSENT) if absent else world.fail(copy)
    world.fail(first)
    assert 0 in world.open, "one attempt is left"
    world.run_out()
    assert world.rows[0]["source"] == "retry"


def test_an_image_that_failed_is_copied_to_nobody():
    world = ended(3, singles=3, max_failures=1)
    world.fail(world.task_of(0))
    world.answer(world.task_of(1))
    world.answer(world.task_of(2))
    assert copies(world) == []


def test_a_collage_alone_is_copied_as_a_collage():
    world = ended(4, scheme="collage-only", others=2)
    first, copy = world.sent.values()
    assert (copy.kind, copy.images, copy.attempt) == (COLLAGE, first.images, 2)
    assert copy.rank != first.rank


# ---- the cost of an event ---------------------------------------------------


def lines_a_step(ranks: int, scheme: str, assign: str) -> float:
    """Lines of Python that the core runs in a step; loops count by their turns."""
    world = World(
        scheme=scheme,
        side=4,
        singles=ranks,
        others=0 if scheme in ("none", "replicate", "hedge") else ranks // 16,
        assign=assign,
        depth=ranks // 4,
        hedge_ns=10**12,
        checked=False,
    ).start()
    world.arrive(world.admitted)
    step, counts = world.core.step, [0, 0]

    def line(frame, event, argument):
        counts[0] += event == "line"
        return line

    def counted(now_ns, events=()):
        counts[1] += 1
        before = sys.gettrace()
        sys.settrace(line)
        try:
            return step(now_ns, events)
        finally:
            sys.settrace(before)

    world.core.step = counted
    for turn in range(100):
        tasks = [*world.live][:: max(1, len(world.live) // 7)]
        world.answer(tasks[turn % len(tasks)])
        for task in sorted(world.cancelled & world.live.keys()):
            world.skip(task)
        if world.admitted:
            world.arrive(world.admitted)
    return counts[0] / counts[1]


@pytest.mark.parametrize("assign", ["turn", "pull"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_event_costs_as_much_with_many_ranks(scheme, assign):
    many, few = (lines_a_step(ranks, scheme, assign) for ranks in (160, 16))
    assert many < 1.25 * few, (many, few)


def test_only_what_no_setting_says_has_a_default():
    plain = CoreSettings.__dataclass_fields__
    known = {name for name in plain if name in vars(CoreSettings)}
    assert known == {"max_failures", "end_ns", "stop_ns", "park_ns", "settle_ns"}

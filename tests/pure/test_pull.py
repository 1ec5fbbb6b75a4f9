"""Tasks that ranks pull: who gets what, which rank may not, what it costs, what is drawn."""

from __future__ import annotations

import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from scheduler_harness import Harness
from test_simulator import FREE, Rows, play

from collage_mpi.scheduler.backlog import AGAIN, FRESH, LATE, SPARE, Backlog
from collage_mpi.scheduler.rank_speed import Paces
from collage_mpi.scheduler.ranks import ReadyRanks, Room
from collage_mpi.scheduler.schemes import ASSIGNMENTS, SCHEMES
from collage_mpi.scheduler.state import RankState, Turn
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.simulator import SimulatedJob, Simulation

MS = 1_000_000


def started(**settings) -> Harness:
    job = Harness(**{"scheme": "none", "collages": 0, "assign": "pull", **settings})
    job.start()
    return job


def on(job: Harness, rank: int) -> list[int]:
    """Images out on the rank, in the order they left."""
    return [send.items[0].image for send in job.live.values() if send.rank == rank]


def first_task(job: Harness, rank: int) -> int:
    return min(task for task, send in job.live.items() if send.rank == rank)


def test_what_no_rank_may_take_any_more_is_moved_oldest_first():
    """An image that failed came to wait behind younger ones."""
    job = started(singles=2, credit=1)
    job.arrive(4)
    job.fail(first_task(job, 1))
    for rank in (1, 2):
        job.suspect(rank)
    job.answer(first_task(job, 2))
    assert on(job, 2) == [0]
    job.run_out()


def test_an_image_is_bound_when_a_rank_has_room_oldest_first():
    job = started(singles=2, credit=1, depth=2)
    job.arrive(8)
    assert (on(job, 1), on(job, 2)) == ([0], [1])
    for _ in range(3):  # rank 2 is slow
        job.answer(first_task(job, 1))
    assert (on(job, 1), on(job, 2)) == ([4], [1])


def test_what_has_failed_leaves_alone():
    job = started(singles=1, credit=1, batch=4)
    job.arrive(job.admitted)
    for image in (0, 1, 2, 3):
        (job.fail if image in (0, 2) else job.answer)(job.task_of(image))
    job.answer(job.task_of(0))
    job.answer(job.task_of(2))
    images = [[send.items[0].image for send in sends] for sends in job.messages]
    assert images == [[0, 1, 2, 3], [0], [2], [4, 5, 6, 7]]


def test_what_has_failed_waits_on_when_an_older_image_leaves_without_it():
    job = started(singles=2, credit=1, batch=2)
    job.arrive(job.admitted)
    job.answer(job.task_of(0))
    job.suspect(1)
    job.fail(job.task_of(3))
    job.answer(job.task_of(2))
    job.answer(first_task(job, 2))
    images = [[send.items[0].image for send in sends] for sends in job.messages]
    assert images[:4] == [[0, 1], [2, 3], [1], [3]]


@pytest.mark.parametrize("scheme", ["none", "collage"])
def test_the_images_of_a_batch_are_neighbours(scheme):
    """So that a rank that reads them finds them in one place of a shard."""
    collages = 2 * (scheme == "collage")
    job = Harness(scheme=scheme, collages=collages, singles=3, assign="pull", batch=4, depth=6)
    job.start()
    for turn in range(60):
        job.arrive(job.admitted)
        live = sorted(job.live.keys() - job.cancelled)
        job.answer(live[turn * 7 % len(live)])
        for task in sorted(job.cancelled & job.live.keys()):
            job.skip(task)
    whole = 0
    for sends in job.messages:
        images = [item.image for send in sends for item in send.items]
        whole += len(sends) == 4
        if sends[0].kind == "single":
            assert images == list(range(images[0], images[0] + len(images)))
        else:
            assert images == sorted(images)
    assert whole > 10


def test_idle_ranks_come_before_those_with_room_for_more():
    job = started(singles=3, credit=2)
    job.arrive(3)
    assert [on(job, rank) for rank in (1, 2, 3)] == [[0], [1], [2]]
    job.arrive(1)
    assert on(job, 1) == [0, 3]


def test_paced_the_next_group_comes_in_when_a_rank_has_nothing_to_do():
    job = started(singles=3, credit=2, depth=9, paced=True)
    assert job.admitted == 4  # a group at a time, however deep
    job.arrive(4)
    job.answer(first_task(job, 1))  # image 0; rank 1 has image 3
    assert job.admitted == 0
    job.answer(first_task(job, 2))
    assert (on(job, 2), job.admitted) == ([], 4)


def test_paced_a_rank_that_is_slow_holds_up_no_further_group():
    job = started(singles=2, credit=1, depth=9, paced=True)
    for done in range(4, 40, 4):  # images of rank 2 are never answered
        job.arrive(4)
        while on(job, 1):
            job.answer(first_task(job, 1))
        assert (on(job, 2), job.admitted) == ([1], 4), done


def test_paced_without_a_single_rank_groups_go_on_coming_for_the_collage():
    """No single rank can be idle then: the next comes in when all of the last are resolved."""
    job = started(scheme="collage", singles=2, collages=1, depth=9, paced=True)
    job.lose(1)
    job.lose(2)
    for done in range(4, 20, 4):
        assert job.admitted == 4, done
        job.arrive(4)
        job.answer(first_task(job, 3))
    assert job.admitted == 4


def test_paced_batches_come_in_whole():
    job = started(singles=4, batch=3, depth=9, paced=True)
    assert job.admitted == 12


def test_by_default_all_ranks_work_whichever_is_slow():
    """From the first release to the last row: over 0.95 of what the ranks can do together."""
    for factor in (1, 5, 60):
        slow = {"straggler": "pinned", "straggler_median_ms": 100.0, "slow_ranks": (f"4:{factor}",)}
        job = RunSettings(scheme="none", warmup_groups=0, **slow)
        assert (job.paced, job.endgame) == (True, "on")
        rows = Rows()
        Simulation(SimulatedJob(job, 5400, FREE), rows).run()
        ends = [group.t0_ns + group.latency_ns for group in rows.groups]
        ideal_ns = 5400 * 100 * MS / (8 + 1 / factor)
        assert max(ends) <= ideal_ns / 0.95, factor


def test_ranks_get_work_in_proportion_to_their_speed():
    slow = {"straggler": "pinned", "straggler_median_ms": 100.0, "slow_ranks": ("4:5",)}
    rows = play(80, scheme="none", assign="pull", depth=8, **slow)
    done = Counter(task.rank for task in rows.tasks)
    assert 5 * (done[4] - 2) <= min(done[rank] for rank in range(1, 10) if rank != 4)
    assert 5 * (done[4] + 1) >= max(done.values())


def test_a_rank_barred_from_the_oldest_takes_the_next():
    """replicate: of each image a rank has one copy."""
    job = started(scheme="replicate", singles=3, credit=1, depth=2)
    job.arrive(4)
    assert [on(job, rank) for rank in (1, 2, 3)] == [[0], [0], [1]]
    job.answer(first_task(job, 1))  # image 0: its copy on rank 2 is cancelled
    assert on(job, 1) == [1]
    job.skip(first_task(job, 2))
    assert on(job, 2) == [2]
    job.answer(first_task(job, 3))
    assert on(job, 3) == [2]  # image 1 is resolved
    job.run_out()
    assert job.finish.status == "complete"


def test_a_copy_passes_over_ranks_that_have_or_failed_its_image_while_there_are_others():
    job = started(scheme="replicate", singles=2, credit=3)
    job.arrive(4)  # images 0 to 2 are on both ranks
    job.answer(first_task(job, 1))
    job.answer(first_task(job, 1))
    assert on(job, 1) == [2, 3]  # the other copy waits for rank 2
    job.fail(max(task for task, send in job.live.items() if send.rank == 1))
    assert on(job, 1) == [2]
    job.lose(2)
    assert on(job, 1) == [2, 3]


def test_copies_of_a_collage_go_to_different_ranks():
    job = Harness(assign="pull", scheme="collage-only", collages=2, copies=2, credit=2)
    job.start()
    job.arrive(4)
    assert sorted(send.rank for send in job.live.values()) == [1, 2]


def test_a_failed_image_comes_first_and_goes_to_another_rank():
    job = started(singles=2, credit=1, depth=2)
    job.arrive(8)
    job.fail(first_task(job, 1))
    assert on(job, 1) == [2]  # not image 0 again, though that is older
    job.answer(first_task(job, 2))
    assert on(job, 2) == [0]


def test_a_rank_that_failed_an_image_is_better_than_none():
    job = started(singles=2, credit=1)
    job.arrive(2)
    job.fail(first_task(job, 1))
    assert on(job, 1) == []
    job.lose(2)
    job.fire(min(job.timers)) if not on(job, 1) else None
    assert 0 in on(job, 1)
    job.run_out()
    assert not any(resolve.outcome == "error" for resolve in job.resolved.values())


def test_a_message_takes_a_batch_from_the_head_of_the_queue():
    job = started(singles=2, batch=4, credit=1, depth=2)
    job.arrive(32)
    assert [on(job, rank) for rank in (1, 2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for task in sorted(job.live)[4:]:
        job.answer(task)
    assert on(job, 2) == [8, 9, 10, 11]


def test_of_less_than_a_batch_each_idle_rank_gets_its_share():
    job = started(side=3, singles=9, batch=4, credit=1)
    job.arrive(9)
    job.close()
    assert [len(on(job, rank)) for rank in range(1, 10)] == [1] * 9


class Unchecked(Harness):
    """Its own checks scan."""

    def _check_progress(self) -> None:
        pass

    def _check_leaks(self) -> None:
        pass

    def _message(self, sends) -> None:
        for send in sends:
            self._task_leaves(send)


def lines_an_event(ranks: int, scheme: str, assign: str) -> float:
    """Lines of Python that the scheduler runs for an event, loops counted by their turns."""
    job = Unchecked(
        collages=0 if scheme in ("none", "replicate", "hedge") else ranks // 16,
        assign=assign,
        scheme=scheme,
        side=4,
        singles=ranks,
        depth=ranks // 4,
        hedge_ns=10**12,
    )
    job.start()
    job.arrive(job.admitted)
    handle, counts = job.scheduler.handle, [0, 0]

    def line(frame, event, argument):
        counts[0] += event == "line"
        return line

    def counted(event):
        counts[1] += 1
        before = sys.gettrace()
        sys.settrace(line)
        try:
            return handle(event)
        finally:
            sys.settrace(before)

    job.scheduler.handle = counted
    for turn in range(100):
        tasks = [*job.live][:: max(1, len(job.live) // 7)]
        job.answer(tasks[turn % len(tasks)])
        for task in sorted(job.cancelled & job.live.keys()):
            job.skip(task)
        if job.admitted:
            job.arrive(job.admitted)
    return counts[0] / counts[1]


@pytest.mark.parametrize("assign", ASSIGNMENTS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_event_costs_as_much_with_many_ranks(scheme, assign):
    many, few = (lines_an_event(ranks, scheme, assign) for ranks in (160, 16))
    assert many < 1.25 * few, (many, few)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_rank_that_runs_a_whole_group_draws_a_time_for_each_image(batch):
    alone = {"scheme": "none", "side": 2, "singles": 1, "straggler": "lognormal", "depth": 2}
    rows = play(6, assign="pull", batch=batch, **alone)
    drawn = {(task.done_ns, task.compute_ns) for task in rows.tasks}
    assert len({ns for _, ns in drawn}) == len(drawn) == 24 // batch
    in_turn = play(6, assign="turn", **alone)
    assert len({task.compute_ns for task in in_turn.tasks}) == 6  # as ever: one a group


def test_the_task_with_the_oldest_image_is_first():
    backlog = Backlog()
    for number, images in enumerate(([5, 6], [1, 8], [2, 3])):
        images = [SimpleNamespace(id=image) for image in images]
        backlog.add(SimpleNamespace(id=number, images=images, inputs=1))
    assert [backlog.take(bool).id for _ in range(3)] == [1, 2, 0]


def test_what_waits_no_more_is_cleared_from_the_order_now_and_then():
    backlog, lengths = Backlog(), []
    for number in range(3 * SPARE):
        task = SimpleNamespace(id=number, images=[SimpleNamespace(id=number)], inputs=1)
        backlog.add(task)
        backlog.forget(task)
        lengths.append(len(backlog._order[AGAIN]))
    assert max(lengths) == SPARE
    assert lengths.count(0) == 2


def backlog_of(*tasks: tuple[int, bool]) -> Backlog:
    """One task an image, fresh or not."""
    backlog = Backlog()
    for number, (image, fresh) in enumerate(tasks):
        task = SimpleNamespace(id=number, images=[SimpleNamespace(id=image)], inputs=1)
        backlog.add(task, FRESH if fresh else AGAIN)
    return backlog


def test_fresh_tasks_come_after_all_others():
    backlog = backlog_of((0, True), (5, False), (1, True), (4, False))
    taken = [backlog.take(bool) for _ in range(4)]
    assert [task.images[0].id for task in taken] == [4, 5, 0, 1]
    assert backlog.fresh == backlog.tasks == {}


def test_without_fresh_ones_the_first_that_fits_is_taken_or_none():
    backlog = backlog_of((0, True), (5, False), (4, False))
    assert backlog.take(lambda task: task.id == 0, (AGAIN,)) is None
    assert backlog.take(lambda task: task.id == 1, (AGAIN,)).id == 1
    assert backlog.take(bool, (AGAIN,)).id == 2
    assert backlog.take(bool, (AGAIN,)) is None
    assert [*backlog.tasks] == [*backlog.fresh] == [0]


def test_of_two_sorts_the_oldest_image_goes_first_after_those_that_are_sent_again():
    backlog = backlog_of((3, True), (9, False), (5, True))
    late = SimpleNamespace(id=3, images=[SimpleNamespace(id=4)], inputs=1)
    backlog.add(late, LATE)
    taken = [backlog.take(bool) for _ in range(4)]
    assert [task.images[0].id for task in taken] == [9, 3, 4, 5]
    backlog = backlog_of((3, True))
    backlog.add(late, LATE)
    assert backlog.take(bool, (AGAIN, LATE)) is late
    assert backlog.take(bool, (AGAIN, LATE)) is None


def test_the_oldest_fresh_tasks_are_taken_together():
    backlog = backlog_of((7, False), *((image, True) for image in range(5)))
    assert [task.images[0].id for task in backlog.take_fresh(3)] == [0, 1, 2]
    assert [task.images[0].id for task in backlog.take_fresh(3)] == [3, 4]
    assert [*backlog.tasks] == [0]
    assert backlog.take_fresh(3) == []


def test_ranks_with_fewer_messages_come_first_then_faster_ones_then_those_that_wait_longest():
    room = Room()
    for rank, messages, pace_ns in ((4, 1, 1), (9, 0, 20), (2, 0, 20), (3, 0, 30), (1, 2, 0)):
        room.add(rank, messages, pace_ns)
    assert room.idle == 3
    picked = []
    while (rank := room.pick(picked)) is not None:
        picked.append(rank)
    assert picked == [9, 2, 3, 4, 1]
    assert room.pick({9}, 20) == 2
    assert room.pick({9, 2}, 20) == 4, "rank 3 is slower than that"
    room.add(9, 0, 20)  # again, and so behind rank 2
    assert room.pick(()) == 2
    room.discard(2)
    room.discard(2)
    assert (room.pick(()), room.idle, 2 in room) == (9, 2, False)


def test_of_ranks_whose_room_has_changed_the_last_one_to_change_is_last():
    ranks = ReadyRanks(Turn(), pulls=True)
    found = [RankState(number, frozenset({"single"}), "", 2) for number in (1, 2, 3)]
    for rank in found:
        ranks.enter(rank)
    ranks.room_changed(found[0])
    room = ranks.rooms["single"]
    assert [room.pick(()), room.pick({2}), room.pick({2, 3})] == [2, 3, 1]
    found[1].messages = 2
    ranks.room_changed(found[1])
    assert ranks.rooms["single"].pick(()) == 3


def test_where_ranks_do_not_pull_nobody_keeps_their_room():
    ranks = ReadyRanks(Turn())
    ranks.enter(RankState(1, frozenset({"single"}), "", 2))
    assert not ranks.rooms


def test_to_clear_the_order_leaves_what_waits():
    backlog = backlog_of(*((10**6 - number, number % 2 == 1) for number in range(3 * SPARE)))
    for task in list(backlog.tasks.values())[2:]:
        backlog.forget(task)
    assert [backlog.take(bool).id for _ in range(2)] == [0, 1]


def test_of_what_is_cleared_nothing_waits():
    backlog = backlog_of((0, True), (1, False))
    backlog.clear()
    assert (backlog.tasks, backlog.take_fresh(2), backlog.take(bool)) == ({}, [], None)


def in_runs(**settings) -> Harness:
    return started(**{"runs": True, "credit": 1, **settings})


def test_a_run_is_cut_where_a_message_is_full_and_the_rest_waits():
    job = in_runs(singles=2, batch=5, depth=1)
    job.arrive(20)
    assert [len(sends[0].items) for sends in job.messages] == [5, 5]
    job.answer(first_task(job, 1))
    (rest,) = job.messages[2]
    assert [item.image for item in rest.items] == [10, 11, 12, 13, 14]
    assert [*job.resolved] == [0, 1, 2, 3, 4]


def test_of_a_short_run_each_idle_rank_gets_its_share():
    job = in_runs(singles=3, batch=8, depth=1)
    job.arrive(10)
    job.close()
    assert [len(sends[0].items) for sends in job.messages] == [4, 3, 3]


def of_paces(unit_ns: int, batch: int = 8, **settings) -> Harness:
    """Three ranks that have answered a batch each; an image takes them 10, 10 and 40 units."""
    job = in_runs(singles=3, batch=batch, depth=9, **settings)
    job.arrive(4 * batch * 9)
    for rank, units in ((1, 10), (2, 10), (3, 40)):
        job.answer(first_task(job, rank), service_ns=batch * units * unit_ns)
    return job


def size(job: Harness, rank: int) -> int:
    return len(job.live[first_task(job, rank)].items)


@pytest.mark.parametrize(
    ("unit_ns", "slow"), [(MS, 2), (MS // 10, 2), (MS // 50, 7), (MS // 99, 8)]
)
def test_a_slow_rank_gets_what_takes_it_as_long_as_a_batch_takes_others(unit_ns, slow):
    """But no fewer than take it 5 ms, which would only cost messages."""
    job = of_paces(unit_ns)
    assert [size(job, rank) for rank in (1, 2, 3)] == [8, 8, slow]
    job.answer(first_task(job, 3), service_ns=slow * 10 * unit_ns)  # the median of two is the lower
    assert size(job, 3) == 8


def test_a_network_that_costs_more_is_split_the_sooner():
    paces = Paces({"collage": 3.0}, {}, 64)
    for rank, pace_ns in ((1, 1), (2, 1), (3, MS // 2)):
        paces.enter(RankState(rank, frozenset({"single", "collage"}), "", 1), 0)
        paces._paces[rank].observe(pace_ns)
        paces._sort(paces._ranks[rank])
    assert [paces.portion(kind, 3) for kind in ("single", "collage")] == [10, 4]
    assert paces.portion("single", 1) == 64


def test_no_slow_rank_keeps_a_whole_batch_when_the_others_are_done():
    """Without an end game the last rows wait for a rank that is five times slower."""
    slow = {"straggler": "pinned", "straggler_median_ms": 10.0, "slow_ranks": ("4:5",)}
    given = {"scheme": "none", "batch": 8, "endgame": "off", **slow}
    job = RunSettings.from_mapping({**given, "warmup_groups": 0})
    rows = Rows()
    Simulation(SimulatedJob(job, 720, FREE), rows).run()
    assert max(group.t0_ns + group.latency_ns for group in rows.groups) <= 900 * MS  # else 1,200


def test_what_was_cut_off_when_the_end_game_had_begun_is_copied_too():
    """Rank 1 is slow with what it is given then: the other rank copies it as a whole."""
    job = in_runs(singles=2, batch=4, depth=1, endgame=True)
    job.arrive(16)
    job.close()  # the end game begins while a run waits
    for rank in (1, 2, 2):
        job.answer(first_task(job, rank))
    (copy,) = (send for send in job.live.values() if send.rank == 2)
    assert (copy.attempt, [item.image for item in copy.items]) == (2, [8, 9, 10, 11])
    job.answer(first_task(job, 1))
    assert copy.task in job.cancelled
    assert len(job.resolved) == 16


def test_a_run_that_failed_is_tried_again_image_by_image():
    job = in_runs(singles=2, batch=3, depth=1)
    job.arrive(12)
    job.fail(first_task(job, 1))
    job.run_out()
    again = [send for send in job.sent.values() if send.attempt > 1]
    assert sorted((send.attempt, [i.image for i in send.items]) for send in again) == [
        (2, [0]),
        (2, [1]),
        (2, [2]),
    ]
    assert job.finish is None or len(job.resolved) == 12


def test_the_end_game_copies_each_image_of_a_run_that_was_taken_apart_in_it():
    job = in_runs(singles=3, batch=3, depth=1, endgame=True)
    job.arrive(9)
    job.close()
    job.suspect(1)  # its images wait for another rank, one by one
    job.answer(first_task(job, 2))  # which has them now, and is slow
    job.answer(first_task(job, 3))
    for image in range(3):
        copy = first_task(job, 3)
        assert [item.image for item in job.live[copy].items] == [image]
        job.answer(copy)
    assert len(job.resolved) == 9

"""Two ranks answer an image: what is compared, who decides, and which answer the row has."""

from __future__ import annotations

from core_world import MS, World

from collage_mpi.core import events as ev
from collage_mpi.core.checks import HOLD_NS

FAST = dict(singles=3, side=1, assign="pull", credit=1)
FAST_2 = dict(singles=2, assign="pull", batch=4, depth=8, together=False, check=1.0)


def checked(**changes) -> World:
    """An image that rank 1 has answered with class 7, which rank 2 is asked for as well."""
    world = World(**{**FAST, "check": 1.0, "likes": "aaa", **changes}).start()
    world.arrive(1)
    world.close()
    world.answer_with(world.of(1)[0], 7)
    return world


def told(world: World) -> list[tuple[tuple[int, ...], int | None]]:
    return [(tuple(each.ranks), each.wrong) for each in world.differed]


def test_a_checked_image_goes_to_another_rank_and_its_row_waits():
    world = checked()
    assert [(s.rank, s.source) for s in world.live.values()] == [(2, "check")]
    world.take()
    assert not world.rows
    assert world.core.checks.held
    assert world.finish is None
    world.answer_with(world.of(2)[0], 7)
    world.finished()
    assert (told(world), world.rows[0]["source"], world.rows[0]["rank"]) == ([], "single", 1)
    assert (world.core.checks.of[1].compared, world.core.checks.of[2].differed) == (1, 0)


def test_a_third_rank_decides_and_the_row_has_the_right_answer():
    world = checked()
    world.answer_with(world.of(2)[0], 4)
    assert [(s.rank, s.source) for s in world.live.values()] == [(3, "check")]
    world.answer_with(world.of(3)[0], 4)
    world.finished()
    assert told(world) == [((1, 2), 1)]
    row = world.rows[0]
    assert (row["predicted"], row["rank"], row["source"]) == (4, 3, "check")
    assert row["attempt"] == 3
    assert world.core.checks.of[1].wrong == 1


def test_a_row_stays_as_it_is_if_the_second_rank_is_outvoted():
    world = checked()
    world.answer_with(world.of(2)[0], 4)
    world.answer_with(world.of(3)[0], 7)
    world.finished()
    assert told(world) == [((1, 2), 2)]
    assert (world.rows[0]["predicted"], world.rows[0]["source"]) == (7, "single")


def test_three_different_answers_and_two_ranks_blame_nobody():
    world = checked()
    world.answer_with(world.of(2)[0], 4)
    world.answer_with(world.of(3)[0], 5)
    world.finished()
    assert told(world) == [((1, 2), None)]
    world = checked(singles=2)
    world.answer_with(world.of(2)[0], 4)
    world.finished()
    assert told(world) == [((1, 2), None)]
    assert world.rows[0]["predicted"] == 7


def test_a_third_rank_that_is_lost_blames_nobody():
    world = checked()
    world.answer_with(world.of(2)[0], 4)
    world.lose(3)
    world.finished()
    assert told(world) == [((1, 2), None)]


def test_the_last_bits_count_between_equal_ranks_alone():
    for likes, score, differed in (
        ("aaa", 0.91, 1),  # equal ranks, and both answered it alone
        ("aba", 0.91, 0),
        ("aaa", 0.9, 0),
    ):
        world = checked(likes=likes)
        world.answer_with(world.of(2)[0], 7, score)
        assert world.core.checks.of[1].differed == differed
        assert world.core.checks.of[1].compared == 1


def test_between_other_kinds_only_a_sure_class_counts():
    for first, second, compared in ((0.5, 0.6, 0), (0.5, 0.61, 1), (0.9, 0.3, 1), (0.5, 1.5, 0)):
        world = World(**FAST, check=1.0, likes="aba").start()
        world.arrive(1)
        world.close()
        world.answer_with(world.of(1)[0], 7, first)
        world.answer_with(world.of(2)[0], 4, second)
        found = world.core.checks.of[2]
        assert (found.compared, found.differed) == (compared, compared)


def test_no_image_is_checked_without_another_rank_or_unasked():
    world = checked(singles=1)
    assert world.finish is not None
    world = checked(check=0.0)
    assert world.finish is not None
    assert not world.core.checks.of
    assert not world.core.checks.held


def test_a_late_copy_is_compared_though_nobody_asked_for_it():
    world = World(**FAST, endgame=True).start()
    world.arrive(1)
    world.close()
    world.answer_with(world.of(1)[0], 7)
    assert len(world.cancelled) == 2  # the copies of ranks 2 and 3
    world.answer_with(world.of(2)[0], 4)
    world.answer_with(world.of(3)[0], 4)
    world.finished()
    assert told(world) == [((1, 2), 1)]
    assert world.rows[0]["predicted"] == 4


def test_the_row_of_a_silent_rank_does_not_wait_and_is_told():
    world = World(**FAST, endgame=True).start()
    world.arrive(1)
    world.close()
    world.silence(3)
    world.silence(2)
    world.answer_with(world.of(1)[0], 7)
    world.take()
    assert world.rows[0]["predicted"] == 7
    world.answer_with(world.of(2)[0], 4)
    assert told(world) == [((1, 2), None)]


def test_a_row_waits_four_seconds_and_what_refutes_it_later_is_told():
    for answers, written in (((4,), True), ((4, 4), True), ((), False)):
        world = checked(singles=4)
        if not answers:
            world.answer_with(world.of(2)[0], 4)
        world.step(now_ns=HOLD_NS - 1)
        world.take()
        assert not world.rows
        if len(answers) == 1:  # the second answer came in time
            world.answer_with(world.of(2)[0], 4)
        if written:
            world.step(now_ns=HOLD_NS)
            world.take()
            assert world.rows[0]["predicted"] == 7
            assert world.held == {0}  # its pixels are needed for a third answer
        while world.live:
            world.answer_with(min(world.live), 4)
        world.finished()
        (each,) = world.differed
        assert (each.image, each.wrong, each.written) == ((5, 0), 1, written)
        assert world.core.checks.of[1].written == written
        assert world.rows[0]["predicted"] == (7 if written else 4)


def test_each_row_has_a_time_of_its_own():
    world = World(**FAST, check=1.0).start()
    world.arrive(1)
    world.answer_with(world.of(1)[0], 7)
    world.arrive(1)
    world.step(now_ns=HOLD_NS // 2)
    world.answer_with(world.of(3)[0], 7)
    world.step(now_ns=HOLD_NS)
    world.take()
    assert [*world.rows] == [0]
    world.step(now_ns=HOLD_NS * 3 // 2)
    world.take()
    assert [*world.rows] == [0, 1]


def test_a_check_that_no_other_rank_can_take_is_given_up_and_the_row_goes():
    world = World(**FAST_2, side=1).start()
    world.arrive(1)
    world.answer_with(world.of(1)[0], 7)
    assert world.held == {0}
    world.lose(2)
    assert not world.held
    world.take()
    assert world.rows[0]["predicted"] == 7


def test_a_late_answer_takes_the_place_of_a_check_and_the_third_is_asked_at_once():
    world = World(**{**FAST_2, "singles": 3}, side=1).start()
    world.arrive(1)
    world.silence(1)
    world.answer_with(world.of(2)[0], 7)
    assert [*world.live] == [0]
    assert world.core.checks.waiting
    world.answer_with(0, 4)  # rank 1 is heard again
    assert [(sent.rank, sent.source) for sent in world.live.values()] == [(3, "check")]
    world.answer_with(world.of(3)[0], 7)
    assert told(world) == [((2, 1), 1)]


def test_a_stop_lets_the_rows_go_that_wait():
    world = World(**FAST_2, side=1).start()
    world.arrive(2)
    world.answer_with(world.of(1)[0], 7)
    world.step(ev.StopRequested("asked to"))
    while world.finish is None:
        world.wake()
    assert world.finish.status == ev.INCOMPLETE
    world.finished()
    assert [*world.rows] == [0]


def test_two_ranks_that_differ_are_told_once():
    world = World(**FAST, endgame=True).start()
    world.arrive(1)
    world.close()
    world.answer_with(world.of(1)[0], 7)
    world.step(ev.RankUnfit(3, "single"))
    world.answer_with(world.of(2)[0], 4)
    world.answer_with(world.of(3)[0], 4)
    assert told(world) == [((1, 2), None)]


def test_checks_leave_as_full_batches_or_after_a_second():
    world = World(**FAST_2, side=2).start()
    world.arrive(8)
    for rank in (1, 2):
        world.step(world.answered(world.of(rank)[0]))
    checks = [sent for sent in world.live.values() if sent.source == "check"]
    assert [len(sent.images) for sent in checks] == [4, 4]
    world = World(**FAST_2, side=1).start()
    world.arrive(1)
    world.step(world.answered(world.of(1)[0]))
    assert not world.live
    assert world.core.wake_ns == world.now_ns + 1000 * MS
    world.step(now_ns=world.now_ns + 999 * MS)
    assert not world.live
    world.step(now_ns=world.now_ns + MS)
    assert [sent.source for sent in world.live.values()] == ["check"]


def test_checks_wait_for_the_oldest_one_or_the_end_though_ranks_have_room():
    world = World(**FAST_2, side=1).start()
    assert not world.core.checks.due
    world.arrive(1)
    world.step(world.answered(world.of(1)[0]))
    world.step(now_ns=900 * MS)
    world.arrive(1)  # a rank takes it, and leaves the check
    (sent,) = world.live.values()
    assert (sent.source, sent.images) == ("single", (1,))
    world.step(world.answered(sent.id))
    world.step(now_ns=1000 * MS)
    assert sorted(image for sent in world.live.values() for image in sent.images) == [0, 1]
    for end in (ev.InputPaused(), ev.InputClosed()):
        world = World(**FAST_2, side=1).start()
        world.arrive(1)
        world.step(world.answered(world.of(1)[0]))
        assert not world.live
        world.step(end)
        assert [sent.source for sent in world.live.values()] == ["check"]


def test_the_end_waits_for_the_answer_that_decides():
    world = World(**FAST, endgame=True).start()
    world.arrive(1)
    world.close()
    world.answer_with(world.of(1)[0], 7)
    world.skip(world.of(3)[0])
    world.step(now_ns=900 * MS)
    world.answer_with(world.of(2)[0], 4)
    (task,) = world.live
    world.step(now_ns=1100 * MS)
    assert world.finish is None
    world.answer_with(task, 4)
    world.finished()
    assert world.rows[0]["predicted"] == 4


def test_the_share_of_checked_images_is_as_asked():
    world = World(singles=2, side=1, assign="pull", batch=500, depth=500, check=0.02).start()
    drawn = 0
    for _ in range(20):
        world.arrive(500)
        for _ in range(2):
            for task in list(world.live):
                drawn += len(world.live[task].images) * (world.live[task].source == "check")
                world.step(world.answered(task))
        world.step(now_ns=world.now_ns + 1000 * MS)
    assert 140 <= drawn + len(world.core.checks.waiting) <= 260

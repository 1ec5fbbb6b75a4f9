"""Cascades: what waits leaves together, what the first stage is unsure of goes to a single rank."""

from __future__ import annotations

import pytest
from core_world import ABSENT, COLLAGE, MS, SINGLE, STAGES, UNREAD, World

from collage_mpi.core import events as ev
from collage_mpi.core.policies import Confident
from collage_mpi.core.states import DECIDED


def cascade(**settings) -> World:
    given = {
        "scheme": "cascade",
        "policy": Confident(0.8, settings.pop("deadline_ns", None)),
        "placement": "fastest",
        "side": 3,
        "singles": 2,
        "credit": 1,
        "depth": 4,
        "together": False,
    }
    return World(**{**given, **settings}).start()


APART = {"placement": "fixed", "singles": 1, "others": 1}


def end(world: World, rank: int, *unsure: int, compute_ns: int = 0) -> None:
    """The rank answers its oldest task, with a low score for the images `unsure`."""
    task = world.of(rank)[0]
    cells = {image: (image % 10, 0.5, 1) for image in unsure}
    world.step(world.answered(task, cells, compute_ns=compute_ns))


def came(world: World, count: int) -> None:
    """Images come one by one."""
    for _ in range(count):
        world.arrive(1)


def drawn(world: World, count: int) -> None:
    world.arrive(count, drawn=range(count))


def sources(world: World) -> dict[int, str]:
    world.take()
    return {image: row["source"] for image, row in world.rows.items()}


# ---- ranks that can no longer answer first -----------------------------------


def test_a_rank_that_is_unfit_for_the_first_stage_does_exact_work():
    world = cascade(side=2)
    came(world, 6)
    end(world, 1)
    assert world.out() == [(2, SINGLE, [1]), (1, COLLAGE, [2, 3, 4, 5])]
    world.step(ev.RankUnfit(1, COLLAGE), world.failed(world.of(1)[0]))
    assert world.out() == [(2, SINGLE, [1]), (1, SINGLE, [2])]
    came(world, 4)
    end(world, 1)
    assert {kind for rank, kind, _ in world.out() if rank == 1} == {SINGLE}
    while world.live:
        end(world, *{sent.rank for sent in list(world.live.values())[:1]})
    assert world.core.ranks.known[1].status == "ready"  # what it could not do is one failure
    assert len(sources(world)) == 10
    assert {sent.kind for sent in world.sent.values() if sent.rank == 2} == {SINGLE, COLLAGE}


@pytest.mark.parametrize("settings", [{}, APART])
def test_without_a_rank_that_is_fit_all_is_exact(settings):
    world = cascade(side=2, **settings)
    came(world, 2)
    for rank, kinds in world.kinds.items():
        if COLLAGE in kinds:
            world.step(ev.RankUnfit(rank, COLLAGE))
    came(world, 6)
    while world.live:
        end(world, *{sent.rank for sent in list(world.live.values())[:1]})
    assert set(sources(world).values()) == {SINGLE}
    assert len(world.rows) == 8


def test_drawn_images_that_wait_for_a_rank_that_turns_out_unfit_are_classified():
    world = cascade(calibrate=True, side=2, depth=9, **APART)
    drawn(world, 2)
    assert world.out() == []
    world.step(ev.RankUnfit(2, COLLAGE))
    assert world.out() == [(1, SINGLE, [0])]
    end(world, 1)
    end(world, 1)
    assert sources(world) == {0: SINGLE, 1: SINGLE}


# ---- what leaves, and how ---------------------------------------------------


def test_where_ranks_are_idle_images_go_alone():
    world = cascade(singles=3)
    came(world, 3)
    assert world.out() == [(1, SINGLE, [0]), (2, SINGLE, [1]), (3, SINGLE, [2])]


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
    world = cascade()
    came(world, 2 + waiting)
    end(world, 2)
    assert world.out()[-1] == (2, *taken)


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({}, 3),
        ({"costs": {COLLAGE: 2.9}}, 3),
        ({"costs": {COLLAGE: 3.0}}, 4),
        ({"costs": {COLLAGE: 30.0}}, 9),
        ({"costs": {COLLAGE: 30.0}, "stages": STAGES[:1]}, 3),
        ({"costs": {STAGES[0]: 4.5}, "stages": STAGES[:1]}, 5),
    ],
)
def test_more_images_must_wait_where_a_collage_takes_longer(settings, least):
    world = cascade(**settings)
    first = world.scheme.first(world.core)
    assert world.scheme.least(world.core, first) == least


def test_a_collage_holds_images_of_several_groups_in_its_first_cells():
    world = cascade(side=2, singles=1)
    came(world, 6)
    end(world, 1)
    (sent,) = world.live.values()
    assert (sent.images, sent.cells, sent.attempt) == ((1, 2, 3, 4), (0, 1, 2, 3), 1)
    end(world, 1)
    world.take()
    assert (world.rows[4]["group"], world.rows[4]["cell"]) == (1, 0), "those of its group, as ever"


def test_what_a_collage_is_unsure_of_goes_first_and_is_no_failure():
    world = cascade(singles=1)
    came(world, 9)
    end(world, 1)
    came(world, 9)
    task = world.of(1)[0]
    cells = {i: (0, 0.5, 1) for i in (3, 4)} | {5: (0, 0.9, ABSENT)}
    world.step(world.answered(task, cells))
    for image in (3, 4, 5):
        assert world.out() == [(1, SINGLE, [image])]
        end(world, 1)
    assert world.out() == [(1, COLLAGE, [*range(9, 18)])]
    assert {sent.attempt for sent in world.sent.values() if sent.kind == SINGLE} == {1}
    found = sources(world)
    assert [image for image in range(9) if found[image] == SINGLE] == [0, 3, 4, 5]


def test_a_batch_holds_singles_or_whole_collages_never_both():
    world = cascade(singles=1, batch=2, side=2, depth=8)
    came(world, 16)
    end(world, 1)
    end(world, 1)
    found = world.out()
    assert {kind for _, kind, _ in found} == {COLLAGE}
    assert all(len(images) == 4 for _, _, images in found)
    end(world, 1, *found[0][2])
    if world.live:
        end(world, 1, *found[-1][2])
    assert {kind for _, kind, _ in world.out()} == {SINGLE}


def test_in_a_closed_loop_each_group_that_enters_is_a_collage_at_once():
    world = cascade(together=True, paced=True)
    came(world, 9)
    assert world.out() == [(1, COLLAGE, [*range(9)])]
    came(world, 9)
    assert world.out()[1:] == [(2, COLLAGE, [*range(9, 18)])]
    assert world.admitted == 0, "no rank has nothing to do"


def test_ranks_apart_singles_take_the_oldest_and_collage_ranks_what_is_left():
    world = cascade(placement="fixed", singles=2, others=1)
    came(world, 4)
    assert world.out() == [(1, SINGLE, [0]), (2, SINGLE, [1])], "two wait"
    came(world, 2)
    assert world.out()[2:] == [(3, COLLAGE, [2, 3, 4])]
    end(world, 3, 2)
    end(world, 1)
    assert world.out()[-1] == (1, SINGLE, [2]), "before 5, which came earlier than its answer"


def test_each_stage_gets_what_the_one_before_it_is_unsure_of():
    world = cascade(stages=(COLLAGE, STAGES[1]), singles=1)
    came(world, 8)
    end(world, 1)
    assert world.out() == [(1, COLLAGE, [*range(1, 8)])]
    end(world, 1, 2, 3, 5)
    assert world.out() == [(1, STAGES[1], [2, 3, 5])]
    end(world, 1, 3)
    assert world.out() == [(1, SINGLE, [3])]
    end(world, 1)
    exact = dict.fromkeys((0, 3), SINGLE)
    assert sources(world) == {
        **dict.fromkeys((1, 4, 6, 7), COLLAGE),
        **exact,
        2: STAGES[1],
        5: STAGES[1],
    }
    world.take()
    assert world.rows[2]["score"] == pytest.approx(0.9), "the score of the stage that answered"


def test_a_stage_without_a_rank_is_left_out():
    stages = STAGES[:2]
    world = cascade(stages=stages, placement="fixed", singles=1, others=2, side=2)
    came(world, 4)
    assert world.out() == [(1, SINGLE, [0]), (2, STAGES[0], [1, 2, 3])]
    end(world, 2, 1, 2)
    assert world.out()[1:] == [(3, STAGES[1], [1, 2])]
    end(world, 3, 2)
    end(world, 1)
    assert world.out() == [(1, SINGLE, [2])]
    world.lose(2)
    came(world, 3)
    assert world.out()[1:] == [(3, STAGES[1], [4, 5, 6])], (
        "the second stage takes the first's place"
    )
    world.lose(3)
    end(world, 1)
    assert world.out() == [(1, SINGLE, [4])]


def test_an_audit_and_a_retry_ask_the_exact_stage_at_once():
    world = cascade(stages=STAGES[:2], singles=1, side=2, depth=9)
    came(world, 1)
    drawn(world, 4)
    end(world, 1)
    assert world.out() == [(1, STAGES[0], [1, 2, 3, 4])]
    task = world.of(1)[0]
    unsure = {2: (2, 0.5, 1), 3: (3, 0.9, ABSENT)}
    world.step(world.answered(task, unsure))
    order = []
    while world.live:
        order.append(world.out()[0][1:])
        end(world, 1)
    assert order == [(SINGLE, [1]), (SINGLE, [3]), (SINGLE, [4]), (STAGES[1], [2]), (SINGLE, [2])]
    assert [world.judged[image].accepted for image in (1, 2, 3, 4)] == [True, True, False, True]


# ---- what is kept -----------------------------------------------------------


@pytest.mark.parametrize("deadline_ns", [None, 50 * MS])
def test_a_kept_answer_counts_where_no_single_rank_is_left(deadline_ns):
    world = cascade(deadline_ns=deadline_ns, **APART)
    came(world, 4)
    assert world.out() == [(1, SINGLE, [0]), (2, COLLAGE, [1, 2, 3])]
    world.lose(1)
    end(world, 2, 1)
    assert sources(world) == {0: "error", 1: "kept", 2: COLLAGE, 3: COLLAGE}


def test_a_kept_answer_counts_at_the_deadline():
    world = cascade(singles=1, deadline_ns=50 * MS)
    came(world, 4)
    end(world, 1)
    world.now_ns = 10 * MS
    end(world, 1, 1, 2)
    assert world.out() == [(1, SINGLE, [1])], "a single rank may still be sooner"
    world.wake()
    assert world.now_ns == 50 * MS
    assert sources(world)[1] == sources(world)[2] == "kept"


def test_collage_ranks_take_every_image_while_no_single_rank_does():
    world = cascade(**APART)
    world.lose(1)
    came(world, 1)
    assert world.out() == [(2, COLLAGE, [0])]
    end(world, 2, 0)
    assert sources(world)[0] == "kept"


# ---- audits -----------------------------------------------------------------


def audited(images: int = 9, **settings) -> World:
    """The only rank has answered a collage of drawn images, and is asked about each of them."""
    world = cascade(singles=1, **settings)
    came(world, 1)
    drawn(world, images)
    end(world, 1)
    world.now_ns += 5 * MS
    end(world, 1)
    return world


def test_a_drawn_image_has_its_accepted_answer_once_the_single_has_answered():
    world = audited(4, side=2, depth=8)
    assert world.out() == [(1, SINGLE, [1])]
    world.now_ns += 7 * MS
    end(world, 1, 1)
    world.take()
    row = world.rows[1]
    assert (row["source"], row["latency_ns"], row["audited"]) == (COLLAGE, 5 * MS, "done")
    assert world.judged[1] == ev.Judged(1, {COLLAGE: (pytest.approx(0.9), False)}, True)


def test_a_drawn_image_that_is_unsure_is_resolved_by_the_single():
    world = cascade(singles=1, side=2, depth=8)
    came(world, 1)
    drawn(world, 4)
    end(world, 1)
    end(world, 1, 2)
    world.run_out()
    assert [world.rows[i]["source"] for i in (1, 2, 3)] == [COLLAGE, SINGLE, COLLAGE]
    assert world.judged[2] == ev.Judged(2, {COLLAGE: (0.5, False)}, False)


def test_a_drawn_image_that_only_one_network_answered_is_not_audited():
    world = cascade()
    drawn(world, 2)
    end(world, 1)
    assert world.judged[0] == ev.Judged(0, {}, False)


def test_an_audit_is_tried_as_often_as_an_image_and_then_given_up():
    world = audited(max_attempts=2, max_failures=99)
    world.close()
    while world.live:
        world.fail(min(world.live))
    world.finished()
    assert len(world.sent) == 2 + 2 * 9
    assert {world.rows[i]["audited"] for i in range(1, 10)} == {"failed"}
    assert world.finish == ev.Finish(ev.COMPLETE, ""), "no answer is lost with its audit"


def test_a_stop_leaves_what_is_not_audited_to_the_next_session():
    world = audited()
    world.stop()
    end(world, 1)
    world.finished()
    assert (world.finish.status, sorted(world.rows)) == (ev.INCOMPLETE, [0, 1])


def two_copies(**settings) -> tuple[World, int, int]:
    """No single rank is left. A collage of drawn image 1 is on a silent rank and on another one."""
    world = cascade(placement="fixed", singles=1, others=2, side=2, depth=8, **settings)
    came(world, 1)
    world.lose(1)
    drawn(world, 7)
    silent = world.task_of(1, COLLAGE)
    world.silence(world.live[silent].rank)
    assert world.core.retries.waits(1)
    return world, silent, max(world.live)


def test_a_decided_image_whose_audit_cannot_be_had_waits_for_nobody():
    world, silent, _ = two_copies()
    world.answer(silent)
    world.take()
    assert (world.rows[1]["source"], world.rows[1]["audited"]) == (COLLAGE, "failed")


def test_an_audit_under_way_is_waited_for_whatever_counts_at_a_deadline():
    """An unsure answer is kept with a deadline; then a second collage decides."""
    world = cascade(placement="fixed", singles=1, others=2, side=2, deadline_ns=20 * MS, depth=8)
    came(world, 1)
    world.arrive(3, drawn=[0, 1, 2])
    first = world.task_of(1, COLLAGE)
    task = world.core.tasks[first]
    world.unsure(first, 1, 2, 3)
    end(world, 1)
    assert world.out() == [(1, SINGLE, [1])]
    world.table.state[world.slots()[1]] |= DECIDED  # as by another collage
    world.images[1].decided = True
    world.step(now_ns=20 * MS)
    assert 1 in world.open
    assert task.kept == 1
    end(world, 1)
    world.take()
    assert world.rows[1]["audited"] == "done"


# ---- a threshold that is chosen ---------------------------------------------


def test_until_a_threshold_is_told_only_drawn_images_are_in_collages_and_none_is_sure():
    world = cascade(singles=1, calibrate=True, side=2, depth=9)
    came(world, 4)
    drawn(world, 4)
    end(world, 1)
    assert world.out() == [(1, COLLAGE, [4, 5, 6, 7])]
    end(world, 1)
    assert not {4, 5, 6, 7} - world.open.keys()
    for image in (4, 5, 6, 7, 1, 2, 3):
        assert world.out() == [(1, SINGLE, [image])]
        end(world, 1)
    assert [world.judged[image].accepted for image in (4, 5, 6, 7)] == [False] * 4
    world.step(ev.Stages((COLLAGE,), 0.5))
    came(world, 5)
    end(world, 1)
    assert world.out() == [(1, COLLAGE, [9, 10, 11, 12])]
    end(world, 1, 10)
    assert sources(world)[10] == COLLAGE


def test_a_threshold_is_for_the_answers_that_come_after_it():
    world = cascade(singles=1, depth=9)
    came(world, 10)
    end(world, 1)
    world.step(ev.Stages((COLLAGE,), 0.95))
    end(world, 1)
    assert world.open.keys() == {*range(1, 10)}


def test_without_a_threshold_nothing_leaves_together_any_more_and_the_oldest_goes_first():
    world = cascade(singles=1, depth=9)
    came(world, 4)
    world.step(ev.Stages((), None))
    came(world, 3)
    order = []
    while world.live:
        order += world.out()[0][2]
        end(world, 1)
    assert order == [*range(7)]
    assert {sent.kind for sent in world.sent.values()} == {SINGLE}


def test_another_threshold_leaves_the_deadline_as_it_is():
    world = cascade(singles=1, depth=9, deadline_ns=20 * MS)
    world.step(ev.Stages((COLLAGE,), 0.95))
    came(world, 10)
    end(world, 1)
    end(world, 1)
    world.wake()
    assert world.now_ns == 20 * MS
    assert {source for image, source in sources(world).items() if image} == {"kept"}


@pytest.mark.parametrize("threshold", [None, 0.95])
def test_no_unsure_answer_counts_where_a_share_is_promised(threshold):
    world = cascade(calibrate=True, side=2, depth=9, **APART)
    if threshold is None:
        drawn(world, 4)
    else:
        world.step(ev.Stages((COLLAGE,), threshold))
        came(world, 5)
    end(world, 2)
    unsure = {image for image, found in world.open.items() if found.kept is not None}
    assert unsure
    world.step(ev.RankLost(1, "killed"))
    while world.live:
        end(world, 2)
    world.take()
    assert {world.rows[image]["source"] for image in unsure} == {"error"}


def tried(**settings) -> World:
    """Three networks are tried on four drawn images, which have passed the first one."""
    chain = (COLLAGE, *STAGES[1:])
    world = cascade(singles=1, calibrate=True, side=2, depth=9, stages=chain, **settings)
    drawn(world, 4)
    assert world.out() == [(1, COLLAGE, [0, 1, 2, 3])]
    end(world, 1, 2)
    return world


def test_until_one_is_chosen_all_networks_classify_drawn_images_and_rows_have_their_answers():
    world = tried()
    assert world.out() == [(1, STAGES[1], [0, 1, 2, 3])]
    task = world.of(1)[0]
    world.step(world.answered(task, {1: (7, 0.95, 1)}))
    assert world.out() == [(1, STAGES[2], [0, 1, 2, 3])]
    end(world, 1)
    world.run_out()
    assert world.judged[2].answers == {
        COLLAGE: (0.5, False),
        STAGES[1]: (pytest.approx(0.9), False),
        STAGES[2]: (pytest.approx(0.9), False),
    }
    assert world.judged[1].answers[STAGES[1]] == (pytest.approx(0.95), True)
    row = world.rows[1]
    assert (row["source"], row["predicted"], row["stages"]) == (SINGLE, 1, 7 + 16)
    assert (row["other"], row["other2"], row["other3"]) == (1, 7, 1)
    assert row["other2_score"] == pytest.approx(0.95)


@pytest.mark.parametrize("unsure", [True, False])
def test_an_answer_of_the_same_class_is_changed_if_more_than_the_class_is_promised(unsure):
    world = cascade(singles=1, side=2, depth=8)
    came(world, 1)
    drawn(world, 4)
    end(world, 1)
    while world.live:
        (task,) = world.of(1)
        first = world.live[task].kind == COLLAGE
        score = 0.5 if first and unsure else 0.9
        cells = {image: (image, score, 1, 9) for image in (2, 3, 4)}
        cells[1] = 1, score, 1, 7 if first else 8
        world.step(world.answered(task, cells))
    world.run_out()
    kind = next(iter(world.judged[1].answers))
    assert [world.judged[image].answers[kind][1] for image in (1, 2)] == [True, False]
    assert world.judged[1].accepted != unsure
    assert [world.rows[image]["stages"] for image in (1, 2)] == ([9, 1] if unsure else [8, 0])


@pytest.mark.parametrize(
    ("chosen", "now", "then"),
    [
        (COLLAGE, (SINGLE, [0]), COLLAGE),
        (STAGES[2], (STAGES[2], [0, 1, 2, 3]), STAGES[2]),
        (None, (SINGLE, [0]), SINGLE),
    ],
)
def test_what_was_not_chosen_is_asked_no_more(chosen, now, then):
    world = tried()
    world.step(ev.Stages((chosen,) if chosen else (), None))
    end(world, 1)  # of the second network, which had the images then
    assert world.out() == [(1, *now)]
    while world.live:
        end(world, 1)
    assert world.scheme.calibrating == (chosen is not None)
    drawn(world, 4)
    kinds = []
    while world.live:
        kinds.append(world.out()[0][1])
        end(world, 1)
    assert kinds == [*([then] if chosen else []), *[SINGLE] * 4]
    world.take()
    assert chosen is None or world.judged[5].answers.keys() == {chosen}
    world.step(ev.Stages((chosen,) if chosen else (), 0.5 if chosen else None))
    drawn_before = len(world.sent)
    came(world, 5)
    while world.live:
        end(world, 1)
    later = {sent.kind for number, sent in world.sent.items() if number >= drawn_before}
    assert later == {SINGLE, then}
    assert then in sources(world).values()


def test_what_waited_while_a_threshold_was_chosen_leaves_together_with_it():
    world = cascade(calibrate=True, side=2, depth=9, **APART)
    came(world, 5)
    assert world.out() == [(1, SINGLE, [0])]
    world.step(ev.Stages((COLLAGE,), 0.5))
    assert world.out()[1:] == [(2, COLLAGE, [1, 2, 3, 4])]


def held(**settings) -> World:
    """A single and a collage rank are idle, and two images that choose a threshold wait."""
    world = cascade(**{**APART, "calibrate": True, "side": 2, "depth": 9, **settings})
    drawn(world, 2)
    assert world.out() == []
    return world


@pytest.mark.parametrize("placement", ["fixed", "fastest"])
def test_images_that_choose_a_threshold_wait_for_a_whole_collage(placement):
    world = held(placement=placement)
    drawn(world, 2)
    assert [(kind, images) for _, kind, images in world.out()] == [(COLLAGE, [0, 1, 2, 3])]
    drawn(world, 3)
    assert len(world.live) == 1


@pytest.mark.parametrize("event", [ev.InputPaused(), ev.InputClosed()])
def test_they_wait_no_longer_when_no_image_will_come(event):
    world = held()
    world.step(event)
    assert world.out()[0] == (2, COLLAGE, [0, 1])
    world.run_out()
    assert {row["audited"] for row in world.rows.values()} == {"done"}


@pytest.mark.parametrize("how", ["threshold", "lost"])
def test_they_wait_no_longer_when_nothing_can_leave_together(how):
    world = held()
    world.step(ev.Stages((COLLAGE,), 0.5)) if how == "threshold" else world.lose(2)
    assert world.out() == [(1, SINGLE, [0])]
    end(world, 1)
    assert world.out() == [(1, SINGLE, [1])]
    world.run_out()


def test_they_wait_no_longer_when_the_last_collage_rank_is_silent():
    world = held()
    drawn(world, 4)
    assert world.out() == [(2, COLLAGE, [0, 1, 2, 3])]
    world.silence(2)
    for image in range(6):
        assert world.out()[-1] == (1, SINGLE, [image])
        end(world, 1)


def test_they_go_on_waiting_when_a_retired_collage_rank_is_recalled():
    world = held(others=2, max_failures=1)
    drawn(world, 2)
    world.fail(world.task_of(0, COLLAGE))
    assert world.retired == {2}
    drawn(world, 2)
    world.lose(3)
    assert world.retired == set()
    drawn(world, 2)
    assert world.out()[-1] == (2, COLLAGE, [4, 5, 6, 7])


def test_one_that_cannot_be_read_holds_up_no_others():
    world = held()
    world.arrive(2, drawn=[0, 1], faults={0: "worn"})
    assert world.out() == [(2, COLLAGE, [0, 1, 3])]


def test_an_image_that_a_collage_could_not_read_goes_to_another_host():
    world = cascade(singles=3, hosts="aab", side=2)
    came(world, 6)
    world.answer(world.of(1)[0])
    task = world.task_of(3, COLLAGE)
    world.answer(task, UNREAD)
    end(world, 2)
    end(world, 3)
    assert (3, SINGLE, [3]) in world.out()

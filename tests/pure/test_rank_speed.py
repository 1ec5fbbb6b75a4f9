"""Running service times, and the order of finish against a plain scan over all ranks."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.dispatch import Dispatch
from collage_mpi.scheduler.rank_speed import PROBE_AFTER, WINDOW, Health, Pace, Paces
from collage_mpi.scheduler.ranks import ReadyRanks
from collage_mpi.scheduler.state import GroupState, ImageState, Order, RankState, Turn
from collage_mpi.scheduler.transitions import RESOLVED

MS = 1_000_000
BOTH = frozenset({SINGLE, COLLAGE})


def new_dispatch(
    health: Health | None = None, paces: Paces | None = None, batch: int = 1
) -> Dispatch:
    """One without ranks; they pull if there are `paces`."""
    turn = Turn()
    ranks = ReadyRanks(turn, health, paces, pulls=paces is not None)
    return Dispatch(turn, ranks, SINGLE, batch, None)


def dispatch_of(n: int, costs: dict[str, float] | None = None) -> Dispatch:
    """`n` ranks that hold both networks."""
    dispatch = new_dispatch(Health(costs or {}, {}, 1))
    dispatch.turn.now_ns = 10**15  # a clock begins anywhere
    for rank in range(1, n + 1):
        dispatch.ranks.enter(RankState(rank, BOTH, "host", 2))
    return dispatch


def give(dispatch: Dispatch, rank: int, kind: str = SINGLE):
    """One task to this very rank."""
    others = set(dispatch.ranks.known) - {rank}
    image = ImageState(0, GroupState(0, 0), 0, 0)
    return dispatch.to_least(Order(kind, kind), [image], others)


def served(dispatch: Dispatch, rank: int, service_ns: int, kind: str = SINGLE) -> None:
    """The rank has done one task in that time."""
    task = give(dispatch, rank, kind)
    dispatch.turn.now_ns += service_ns
    dispatch.tasks.end(task, "answered", service_ns)


def test_one_slow_answer_says_little_and_half_a_window_says_all():
    pace = Pace()
    for _ in range(WINDOW):
        pace.observe(100.0)
    pace.observe(9000.0)
    assert pace.service_ns == 100.0
    for _ in range(WINDOW // 2):
        pace.observe(500.0)
    assert pace.service_ns == 500.0


def test_a_collage_counts_by_its_cost():
    dispatch = dispatch_of(2, {COLLAGE: 2.0})
    served(dispatch, 1, 200 * MS, COLLAGE)
    served(dispatch, 2, 120 * MS)
    assert dispatch.ranks.health.service_ns(1) == 100 * MS
    assert dispatch.ranks.health.pick(SINGLE, dispatch.turn.now_ns) == 1


def test_a_batch_says_how_long_it_took_once_when_its_last_task_ends():
    dispatch = new_dispatch(Health({}, {SINGLE: 0.5}, 2), batch=2)
    dispatch.ranks.enter(RankState(1, BOTH, "host", 1))
    alone = give(dispatch, 1)
    first, second = give(dispatch, 1), give(dispatch, 1)
    dispatch.tasks.end(alone, "answered", 100 * MS)
    dispatch.pump(dispatch.ranks.known[1])
    dispatch.tasks.end(first, "answered", 900 * MS)
    assert dispatch.ranks.health.service_ns(1) == 100 * MS
    dispatch.tasks.end(second, "answered", 90 * MS)
    assert dispatch.ranks.health.service_ns(1) == 60 * MS, "two take 1.5 times as long as one"
    assert dispatch.ranks.health._typical.service_ns == 60 * MS


def paces_of(*ms: float, kinds: tuple[frozenset[str], ...] = ()) -> Paces:
    """Ranks 1, 2, ... with these service times; of a rank with 0 none is known."""
    dispatch = new_dispatch(paces=Paces({}, {}, 1))
    for rank, service_ms in enumerate(ms, start=1):
        state = RankState(rank, kinds[rank - 1] if kinds else BOTH, "host", 2)
        dispatch.ranks.enter(state)
        image = ImageState(0, GroupState(0, 0), 0, 0)
        task = dispatch.tasks.make(Order(SINGLE, SINGLE), [image], state)
        dispatch.ranks.paces.observe(task, int(service_ms * MS))
    return dispatch.ranks.paces


@pytest.mark.parametrize(
    ("ms", "limit_ms"),
    [
        ((), inf),
        ((0, 0, 10), inf),  # of more than half nothing is known
        ((0, 10), inf),
        ((0, 10, 20), 15.0),
        ((10, 40), 15.0),
        ((10, 20, 40), 30.0),
        ((40, 10, 20, 30), 30.0),
    ],
)
def test_a_rank_is_slow_beyond_one_and_a_half_times_the_median(ms, limit_ms):
    assert paces_of(*ms).limit_ns(SINGLE) == limit_ms * MS


@pytest.mark.parametrize(
    ("avoid", "quick"),
    [
        ((), True),
        ((1,), True),
        ((1, 3), True),
        ((2,), True),
        ((1, 2, 3), True),  # rank 4 is left: exactly as slow as may be
        ((1, 3, 4), False),
        ((1, 3, 5), True),  # rank 5 does collages, rank 6 is not there
        ((1, 3, 6), True),
        ((1, 2, 3, 4, 5, 6), False),
    ],
)
def test_a_kind_has_a_quick_rank_while_one_is_left_that_is_not_slow(avoid, quick):
    one = frozenset({SINGLE})
    paces = paces_of(10, 16, 10, 15, 10, kinds=(one, one, one, one, frozenset({COLLAGE})))
    assert paces.limit_ns(SINGLE) == 15 * MS
    assert paces.has_quick(SINGLE, avoid) is quick


def test_without_a_known_pace_every_rank_is_quick():
    paces = paces_of(0, 0)
    assert paces.has_quick(SINGLE, (1,))
    assert not paces.has_quick(SINGLE, (1, 2))


def test_a_rank_that_comes_back_is_as_fast_as_it_was():
    paces = paces_of(10, 30, 40)
    for rank, limit_ms in ((2, 15), (1, 60)):
        paces.leave(paces._ranks[rank])
        assert paces.limit_ns(SINGLE) == limit_ms * MS
    for rank in (2, 1):
        paces.enter(RankState(rank, BOTH, "host", 2), 0)
    assert [paces.service_ns(rank) for rank in (1, 2, 3)] == [10 * MS, 30 * MS, 40 * MS]
    assert paces.limit_ns(SINGLE) == 45 * MS
    paces.leave(RankState(9, BOTH, "host", 2))


def test_a_late_answer_of_a_rank_that_left_says_how_fast_it_is_when_it_comes_back():
    paces = paces_of(40, 10, 30)
    rank = paces._ranks[1]
    paces.leave(rank)
    paces.leave(rank)
    image = ImageState(0, GroupState(0, 0), 0, 0)
    task = new_dispatch().tasks.make(Order(SINGLE, SINGLE), [image], rank)
    assert not paces.observe(task, 0)
    assert paces.observe(task, 50 * MS)
    assert paces.limit_ns(SINGLE) == 15 * MS, "of ranks 2 and 3"
    assert paces.observe(task, 50 * MS)
    paces.enter(rank, 0)
    assert (paces.service_ns(1), paces.limit_ns(SINGLE)) == (50 * MS, 45 * MS)


def test_a_watched_rank_that_comes_back_was_not_idle_for_all_that_time():
    dispatch = dispatch_of(2)
    served(dispatch, 1, 100 * MS)
    served(dispatch, 2, 300 * MS)
    dispatch.leave(dispatch.ranks.known[2])
    dispatch.turn.now_ns += (PROBE_AFTER + 1) * 300 * MS
    dispatch.ranks.enter(dispatch.ranks.known[2])
    assert dispatch.ranks.health.pick(SINGLE, dispatch.turn.now_ns) == 1


def test_where_watched_ranks_pull_the_fastest_comes_first():
    dispatch = new_dispatch(Health({}, {}, 1), Paces({}, {}, 1))
    for rank in (1, 2):
        dispatch.ranks.enter(RankState(rank, BOTH, "host", 2))
    served(dispatch, 1, 300 * MS)
    served(dispatch, 2, 100 * MS)
    image = ImageState(0, GroupState(0, 0), 0, 0)
    assert dispatch.to_any(Order(SINGLE, SINGLE), [image]).rank.id == 2


def test_a_slow_rank_that_was_long_idle_counts_as_one_that_nothing_is_known_of():
    paces = paces_of(10, 10, 30)
    paces.idle(3, 7)
    until_ns = 7 + PROBE_AFTER * 30 * MS
    assert paces.forget_one(until_ns) is None
    assert paces.forget_one(until_ns + 1).id == 3
    assert (paces.service_ns(3), paces.limit_ns(SINGLE)) == (0, 15 * MS)
    assert paces.forget_one(2 * until_ns) is None, "once"
    assert paces._by_pace[SINGLE].entries == [(0, 3), (10 * MS, 1), (10 * MS, 2)]


def test_idle_ranks_are_looked_at_in_turn_and_quick_busy_and_lost_ones_stay_as_they_are():
    paces = paces_of(10, 10, 30, 30, 10, 10)
    later_ns = 2 * PROBE_AFTER * 30 * MS
    for rank in (1, 2, 3, 4):
        paces.idle(rank, 0)
    paces.busy(3)
    paces.leave(paces._ranks[2])
    assert [paces.forget_one(later_ns) for _ in range(1)] == [None]
    assert paces.forget_one(later_ns).id == 4
    assert [paces.forget_one(later_ns) for _ in range(3)] == [None] * 3
    paces.idle(3, 0)
    paces.idle(3, later_ns)
    assert [paces.forget_one(later_ns + 1) for _ in range(3)] == [None] * 3
    assert [paces.service_ns(rank) / MS for rank in (1, 2, 3, 4)] == [10, 10, 30, 0]


def test_a_rank_that_is_slow_for_one_of_its_kinds_is_tried_again_too():
    one = frozenset({SINGLE})
    paces = paces_of(10, 10, 30, kinds=(one, one, BOTH))
    paces.idle(3, 0)
    assert paces.forget_one(2 * PROBE_AFTER * 30 * MS).id == 3


def test_a_rank_that_left_while_it_was_at_work_is_not_looked_at():
    paces = paces_of(10, 10, 30)
    rank = paces._ranks[3]
    paces.leave(rank)
    paces.idle(3, 0)
    assert paces.forget_one(2 * PROBE_AFTER * 30 * MS) is None


def test_an_answer_that_names_no_time_says_nothing():
    dispatch = dispatch_of(1)
    for took_ns in (0, 100 * MS, 0):
        served(dispatch, 1, took_ns)
    assert dispatch.ranks.health.service_ns(1) == 100 * MS
    assert dispatch.ranks.health._typical.service_ns == 100 * MS


def test_a_busy_fast_rank_may_finish_before_an_idle_slow_one():
    dispatch = dispatch_of(2)
    served(dispatch, 1, 100 * MS)
    served(dispatch, 2, 300 * MS)
    assert dispatch.to_best(Order(SINGLE, SINGLE), [ImageState(0, GroupState(0, 0), 0, 0)])
    assert dispatch.ranks.health.pick(SINGLE, dispatch.turn.now_ns) == 1  # 200 ms against 300
    give(dispatch, 1)
    give(dispatch, 1)
    assert dispatch.ranks.health.pick(SINGLE, dispatch.turn.now_ns) == 2  # 400 against 300


def test_what_waits_counts_by_its_share_of_a_batch():
    """A whole batch of 4 takes 2.5 times as long as one: each of those that wait 0.625."""
    dispatch = new_dispatch(Health({}, {SINGLE: 0.5}, 4), batch=4)
    for rank in (1, 2):
        dispatch.ranks.enter(RankState(rank, BOTH, "host", 1))
    served(dispatch, 1, 100 * MS)
    served(dispatch, 2, 300 * MS)
    give(dispatch, 1)
    give(dispatch, 1)
    assert dispatch.ranks.health.pick(SINGLE, dispatch.turn.now_ns) == 1  # 262.5 ms against 300
    give(dispatch, 1)
    assert dispatch.ranks.health.pick(SINGLE, dispatch.turn.now_ns) == 2  # 325


def test_what_is_overdue_is_expected_to_take_as_long_again():
    dispatch = dispatch_of(2)
    served(dispatch, 1, 100 * MS)
    served(dispatch, 2, 300 * MS)
    give(dispatch, 1)
    dispatch.turn.now_ns += 90 * MS
    assert dispatch.ranks.health.pick(SINGLE, dispatch.turn.now_ns) == 1
    dispatch.turn.now_ns += 410 * MS
    assert dispatch.ranks.health.pick(SINGLE, dispatch.turn.now_ns) == 2
    assert dispatch.ranks.health.first(SINGLE, 3, dispatch.turn.now_ns) == [2, 1]


def test_a_further_message_makes_an_overdue_task_no_younger():
    dispatch = dispatch_of(2)
    served(dispatch, 1, 100 * MS)
    served(dispatch, 2, 500 * MS)
    give(dispatch, 1)
    dispatch.turn.now_ns += 250 * MS
    give(dispatch, 1)
    assert dispatch.ranks.health.pick(SINGLE, dispatch.turn.now_ns) == 2  # 650 ms against 500


def test_a_slow_rank_that_was_left_alone_is_tried_again():
    dispatch = dispatch_of(2)
    served(dispatch, 1, 100 * MS)
    served(dispatch, 2, 300 * MS)
    assert dispatch.ranks.health.pick(SINGLE, dispatch.turn.now_ns) == 1
    dispatch.turn.now_ns += (PROBE_AFTER + 1) * 300 * MS
    assert dispatch.ranks.health.pick(SINGLE, dispatch.turn.now_ns) == 2
    assert dispatch.ranks.health.pick(SINGLE, dispatch.turn.now_ns, avoid={2}) == 1


def test_a_rank_that_nothing_is_known_of_gets_one_task():
    dispatch = dispatch_of(3)
    served(dispatch, 1, 100 * MS)
    served(dispatch, 2, 100 * MS)
    order, image = Order(SINGLE, SINGLE), ImageState(0, GroupState(0, 0), 0, 0)
    assert [dispatch.to_best(order, [image]).rank.id for _ in range(3)] == [3, 1, 2]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_order_is_that_of_a_scan(data):
    """Whatever has happened, the choice is a rank that a scan finds no better than."""
    dispatch = dispatch_of(
        data.draw(st.integers(1, 5)), {COLLAGE: data.draw(st.sampled_from([1.0, 1.5]))}
    )
    health = dispatch.ranks.health
    for rank in dispatch.ranks.known:
        served(dispatch, rank, data.draw(st.integers(1, 300)) * MS)
    live: list = []
    for _ in range(data.draw(st.integers(1, 40))):
        dispatch.turn.now_ns += data.draw(st.integers(0, 80)) * MS
        what = data.draw(st.sampled_from(["give", "end", "leave", "resolve"]))
        if what == "give":
            kind = data.draw(st.sampled_from([SINGLE, COLLAGE]))
            rank = data.draw(st.sampled_from(sorted(health._ranks) or [0]))
            if rank:
                live.append(give(dispatch, rank, kind))
        elif what == "leave" and len(health._ranks) > 1 and data.draw(st.booleans()):
            dispatch.leave(dispatch.ranks.known[data.draw(st.sampled_from(sorted(health._ranks)))])
        sent = [task for task in live if task.id in dispatch.tasks.out]
        if what == "end" and sent:
            task = data.draw(st.sampled_from(sent))
            dispatch.tasks.end(task, "answered", data.draw(st.integers(0, 300)) * MS)
            dispatch.pump(task.rank)
        elif what == "resolve" and sent:
            task = data.draw(st.sampled_from(sent))
            if not task.images[0].resolved:
                task.images[0].status = RESOLVED
                dispatch.resolved(task.images[0])
        for kind in BOTH:
            check(dispatch, health, kind)
    assert all(
        isinstance(action, ev.Send | ev.Cancel | ev.Release) for action in dispatch.turn.actions
    )


def check(dispatch: Dispatch, health: Health, kind: str) -> None:
    def finish(rank: int) -> float:
        state, pace = dispatch.ranks.known[rank], health._paces[rank]
        if not state.load:
            return dispatch.turn.now_ns + pace.service_ns * health._costs.get(kind, 1.0)
        return health._finish_ns(state, kind, dispatch.turn.now_ns)

    ranks = sorted(health._ranks)
    found = health.first(kind, len(ranks), dispatch.turn.now_ns)
    assert sorted(found) == ranks
    times = [finish(rank) for rank in found]
    assert times == sorted(times)
    idle = [finish(rank) for rank in ranks if not dispatch.ranks.known[rank].load]
    picked = health.pick_idle(kind, dispatch.turn.now_ns)
    assert (None if picked is None else finish(picked)) == min(idle, default=None)

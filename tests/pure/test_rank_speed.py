"""Running service times, and the order of finish against a plain scan over all ranks."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.dispatch import Dispatch, Order
from collage_mpi.scheduler.rank_speed import PROBE_AFTER, WINDOW, Health, Pace
from collage_mpi.scheduler.state import GroupState, ImageState, RankState
from collage_mpi.scheduler.transitions import RESOLVED

MS = 1_000_000
BOTH = frozenset({SINGLE, COLLAGE})


def dispatch_of(n: int, costs: dict[str, float] | None = None) -> Dispatch:
    """`n` ranks that hold both networks."""
    dispatch = Dispatch(health=Health(costs or {}))
    dispatch.now_ns = 10**15  # a clock begins anywhere
    for rank in range(1, n + 1):
        dispatch.enter(RankState(rank, BOTH, "host", 2))
    return dispatch


def give(dispatch: Dispatch, rank: int, kind: str = SINGLE):
    """One task to this very rank."""
    others = set(dispatch.ranks) - {rank}
    image = ImageState(0, GroupState(0, 0), 0, 0)
    return dispatch.to_least(Order(kind, kind), [image], others)


def served(dispatch: Dispatch, rank: int, service_ns: int, kind: str = SINGLE) -> None:
    """The rank has done one task in that time."""
    task = give(dispatch, rank, kind)
    dispatch.now_ns += service_ns
    dispatch.end(task, "answered")
    dispatch.observe(task, service_ns)


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
    assert dispatch.health.service_ns(1) == 100 * MS
    assert dispatch.health.pick(SINGLE, dispatch.now_ns) == 1


def test_an_answer_that_names_no_time_says_nothing():
    dispatch = dispatch_of(1)
    for took_ns in (0, 100 * MS, 0):
        served(dispatch, 1, took_ns)
    assert dispatch.health.service_ns(1) == 100 * MS


def test_a_busy_fast_rank_may_finish_before_an_idle_slow_one():
    dispatch = dispatch_of(2)
    served(dispatch, 1, 100 * MS)
    served(dispatch, 2, 300 * MS)
    assert dispatch.to_best(Order(SINGLE, SINGLE), [ImageState(0, GroupState(0, 0), 0, 0)])
    assert dispatch.health.pick(SINGLE, dispatch.now_ns) == 1  # 200 ms against 300
    give(dispatch, 1)
    give(dispatch, 1)
    assert dispatch.health.pick(SINGLE, dispatch.now_ns) == 2  # 400 against 300


def test_what_waits_counts_by_its_share_of_a_batch():
    """A whole batch of 4 takes 2.5 times as long as one: each of those that wait 0.625."""
    dispatch = Dispatch(health=Health({}, {SINGLE: 0.5}, 4), batch=4)
    for rank in (1, 2):
        dispatch.enter(RankState(rank, BOTH, "host", 1))
    served(dispatch, 1, 100 * MS)
    served(dispatch, 2, 300 * MS)
    give(dispatch, 1)
    give(dispatch, 1)
    assert dispatch.health.pick(SINGLE, dispatch.now_ns) == 1  # 262.5 ms against 300
    give(dispatch, 1)
    assert dispatch.health.pick(SINGLE, dispatch.now_ns) == 2  # 325


def test_what_is_overdue_is_expected_to_take_as_long_again():
    dispatch = dispatch_of(2)
    served(dispatch, 1, 100 * MS)
    served(dispatch, 2, 300 * MS)
    give(dispatch, 1)
    dispatch.now_ns += 90 * MS
    assert dispatch.health.pick(SINGLE, dispatch.now_ns) == 1
    dispatch.now_ns += 410 * MS
    assert dispatch.health.pick(SINGLE, dispatch.now_ns) == 2
    assert dispatch.health.first(SINGLE, 3, dispatch.now_ns) == [2, 1]


def test_a_slow_rank_that_was_left_alone_is_tried_again():
    dispatch = dispatch_of(2)
    served(dispatch, 1, 100 * MS)
    served(dispatch, 2, 300 * MS)
    assert dispatch.health.pick(SINGLE, dispatch.now_ns) == 1
    dispatch.now_ns += (PROBE_AFTER + 1) * 300 * MS
    assert dispatch.health.pick(SINGLE, dispatch.now_ns) == 2
    assert dispatch.health.pick(SINGLE, dispatch.now_ns, avoid={2}) == 1


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
    health = dispatch.health
    for rank in dispatch.ranks:
        served(dispatch, rank, data.draw(st.integers(1, 300)) * MS)
    live: list = []
    for _ in range(data.draw(st.integers(1, 40))):
        dispatch.now_ns += data.draw(st.integers(0, 80)) * MS
        what = data.draw(st.sampled_from(["give", "end", "leave", "resolve"]))
        if what == "give":
            kind = data.draw(st.sampled_from([SINGLE, COLLAGE]))
            rank = data.draw(st.sampled_from(sorted(health._ranks) or [0]))
            if rank:
                live.append(give(dispatch, rank, kind))
        elif what == "leave" and len(health._ranks) > 1 and data.draw(st.booleans()):
            dispatch.leave(dispatch.ranks[data.draw(st.sampled_from(sorted(health._ranks)))])
        sent = [task for task in live if task.id in dispatch.tasks]
        if what == "end" and sent:
            task = data.draw(st.sampled_from(sent))
            dispatch.end(task, "answered")
            dispatch.observe(task, data.draw(st.integers(0, 300)) * MS)
            dispatch.pump(task.rank)
        elif what == "resolve" and sent:
            task = data.draw(st.sampled_from(sent))
            if not task.images[0].resolved:
                task.images[0].status = RESOLVED
                dispatch.resolved(task.images[0])
        for kind in BOTH:
            check(dispatch, health, kind)
    assert all(isinstance(action, ev.Send | ev.Cancel | ev.Release) for action in dispatch.actions)


def check(dispatch: Dispatch, health: Health, kind: str) -> None:
    def finish(rank: int) -> float:
        state, pace = dispatch.ranks[rank], health._paces[rank]
        if not state.load:
            return dispatch.now_ns + pace.service_ns * health._costs.get(kind, 1.0)
        return health._finish_ns(state, kind, dispatch.now_ns)

    ranks = sorted(health._ranks)
    found = health.first(kind, len(ranks), dispatch.now_ns)
    assert sorted(found) == ranks
    times = [finish(rank) for rank in found]
    assert times == sorted(times)
    idle = [finish(rank) for rank in ranks if not dispatch.ranks[rank].load]
    picked = health.pick_idle(kind, dispatch.now_ns)
    assert (None if picked is None else finish(picked)) == min(idle, default=None)

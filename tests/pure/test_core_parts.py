"""The parts of the core: the table and its rows, the ranks' order and speed, states, schemes."""

from __future__ import annotations

import random
from dataclasses import MISSING, dataclass, fields, replace
from math import inf
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from core_world import ABSENT, COLLAGE, MS, SINGLE, World, scheme_settings

from collage_mpi.core import events as ev
from collage_mpi.core import schemes, states, table
from collage_mpi.core.policies import Confident
from collage_mpi.core.ranks import WINDOW, Rank, Ranks
from collage_mpi.core.schemes import SCHEMES, Scheme, SchemeSettings, make_scheme, scheme_class
from collage_mpi.core.states import DONE, OPEN
from collage_mpi.core.table import Table
from collage_mpi.core.work import Fresh
from collage_mpi.errors import UsageError
from collage_mpi.kinds import KINDS
from collage_mpi.rows import KIND_CODE, OUTCOME_CODE, PLACED, SOURCE_CODE
from collage_mpi.settings.run_settings import RedundancySettings
from collage_mpi.system.fields import setting

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"
BOTH = frozenset({SINGLE, COLLAGE})


# ---- the table --------------------------------------------------------------


def test_slots_are_used_again_once_their_rows_are_taken_and_nothing_refers_to_them():
    """Random images come, are resolved, taken and let go, beside a plain dict."""
    rng, given = random.Random(5), np.zeros(9, PLACED)
    with mock.patch.object(table, "ROOM", 8):
        found, model, end = Table(4, 0, 0, 0), {}, 0  # position -> slot
        held, most = {}, 0
        for _ in range(80):
            end += rng.choice([0, 0, 5])
            slots = found.add(end, given[: rng.randint(1, 9)], None)
            assert not {*slots.tolist()} & ({*model.values()} | {*held.values()})
            assert not found.encode_ns[slots].any(), "a time of the image before is left"
            found.holds[slots] = found.encode_ns[slots] = 1
            model |= zip(range(end, end + len(slots)), slots.tolist(), strict=True)
            end += len(slots)
            most = max(most, len(model) + len(held))
            done = rng.sample(sorted(model), rng.randint(0, len(model)))
            found.state[[model[each] for each in done]] = DONE
            asked = np.array(rng.sample(sorted(model.values()), len(model) // 2), np.int64)
            positions = found.position[asked]
            still = found.still(asked, positions)
            assert still.tolist() == [s for s in asked.tolist() if found.state[s] == OPEN]
            assert not len(found.still(asked, positions + 1))
            rows, _ = found.take()
            assert (rows["group"] * 4 + rows["cell"]).tolist() == sorted(done)
            held |= {each: model.pop(each) for each in done}
            for each in rng.sample(sorted(held), rng.randint(0, len(held))):
                found.holds[held.pop(each)] = 0
        assert len(found.state) <= 4 * most + 8, "slots are not used again"


def test_fresh_images_are_taken_oldest_first():
    fresh = Fresh()
    fresh.add(np.array([19, 18, 17]))
    fresh.add(np.array([16, 15, 14, 13]))
    assert fresh.count == 7
    assert fresh.take(4).tolist() == [19, 18, 17, 16]
    fresh.add(np.array([7]))
    assert fresh.take(9).tolist() == [15, 14, 13, 7]
    assert (fresh.count, len(fresh.clear())) == (0, 0)


def test_a_message_may_resolve_images_of_several_groups_in_any_order():
    """A task and what was tried again come joined, so that first and last are of one group."""
    world = World(scheme="collage", singles=2, others=1).start()
    admission, size = world.core.admission, world.size
    admission.came(0, 3 * size)
    admission.resolved(np.array([size + 1, 2 * size, size]))
    assert admission.left == {0: size, 1: size - 2, 2: size - 1}


def test_rows_name_every_time_and_price_each_where_it_belongs():
    """A group by hand, each number its own."""
    world = World(scheme="collage", singles=2, others=1, keeps=True).start()
    world.now_ns = 100
    world.arrive(4, t0_ns=np.array([90, 91, 92, 93]))
    sends = [*world.live]
    world.step(ev.Left(sends, 110, [0] * (len(sends) - 1) + [30]), now_ns=120)
    collage, first = world.task_of(1, COLLAGE), world.task_of(0)
    world.now_ns = 300
    world.step(world.answered(first, compute_ns=41, at_ns=290))
    world.now_ns = 400
    world.step(world.answered(collage, {1: (7, 0.25, 1), 2: (0, 0, ABSENT)}, compute_ns=51))
    world.take()
    single, cell = world.rows[0], world.rows[1]
    assert (single["source"], single["latency_ns"], single["compute_ns"]) == (SINGLE, 200, 41)
    assert (cell["source"], cell["latency_ns"], cell["compute_ns"]) == (COLLAGE, 309, 51)
    assert (cell["predicted"], cell["score"], cell["encode_ns"]) == (7, 0.25, 30)
    assert (cell["shard"], cell["row"], cell["session"], cell["warmup"]) == (5, 1, 3, True)
    assert (cell["group"], cell["cell"], cell["rank"], cell["attempt"]) == (0, 1, 3, 1)
    task = world.tasks[collage]
    assert (task["kind"], task["outcome"]) == (KIND_CODE[COLLAGE], OUTCOME_CODE["answered"])
    assert (task["items"], task["resolved"], task["sent_ns"], task["done_ns"]) == (4, 2, 110, 400)
    world.run_out()


def test_times_in_rows_count_from_the_start_of_the_session():
    found = Table(4, 1000, 2, 0)
    (slot,) = found.add(0, np.zeros(1, PLACED), None)
    found.state[slot] = DONE
    found.records["t0_ns"][slot], found.records["said"]["done_ns"][slot] = 1500, 1900
    found.records["said"]["source"][slot] = SOURCE_CODE["error"]
    found.reasons[slot] = "gone"
    ((row,), vectors) = found.take()
    told = row["t0_ns"], row["latency_ns"], row["session"], row["reason"]
    assert told == (500, 400, 2, b"gone")
    assert vectors == []


def test_a_long_answer_does_not_make_the_vectors_of_others_longer():
    found = Table(4, 0, 1, 0)
    slots = found.add(0, np.zeros(3, PLACED), None)
    found.state[slots] = DONE
    found.keep(np.array([2]), np.full((1, 1000), 7, np.float32))
    found.keep(np.array([0, 1]), np.zeros((2, 2), np.float32))
    assert found.vector_bytes == 4 * (1000 + 2 * 2)
    _, vectors = found.take()
    assert [len(vector) for vector in vectors] == [2, 2, 1000]
    assert vectors[2][0] == 7
    assert found.vector_bytes == 0


# ---- ranks ------------------------------------------------------------------


def ranks_of(*ms: float, kinds: tuple[frozenset[str], ...] = ()) -> Ranks:
    """Ranks 1, 2, ... with these service times; of a rank with 0 none is known."""
    found = Ranks({COLLAGE: 2.0}, {SINGLE: 0.5}, {})
    for rank, service_ms in enumerate(ms, start=1):
        state = Rank(rank, kinds[rank - 1] if kinds else BOTH, "host", 2)
        found.enter(state, 0)
        if service_ms:
            found.observe(state, service_ms * MS)
            found.changed(state, 0)
    return found


def test_one_slow_answer_says_little_and_half_a_window_says_all():
    rank = Rank(1, BOTH, "host", 2)
    for _ in range(WINDOW):
        rank.observe(100.0)
    rank.observe(9000.0)
    assert rank.pace_ns == 100.0
    for _ in range(WINDOW // 2):
        rank.observe(500.0)
    assert rank.pace_ns == 500.0


def test_a_message_says_how_fast_its_rank_is_once_by_its_cost():
    costs = {"costs": {COLLAGE: 2.0}, "batch_costs": {SINGLE: 0.5}}
    world = World(singles=1, batch=2, assign="pull", credit=1, **costs).start()
    world.arrive(2)
    world.close()
    (rank,) = world.core.ranks.known.values()
    (task,) = world.of(1)
    world.step(world.answered(task, compute_ns=90 * MS))
    assert rank.pace_ns == 60 * MS, "two take 1.5 times as long as one"
    assert world.core.ranks.cost(COLLAGE, 1) == 2.0


@pytest.mark.parametrize(
    ("ms", "limit_ms"),
    [
        ((), inf),
        ((0, 0, 10), inf),
        ((0, 10), inf),
        ((0, 10, 20), 15.0),
        ((10, 40), 15.0),
        ((10, 20, 40), 30.0),
        ((40, 10, 20, 30), 30.0),
    ],
)
def test_a_rank_is_slow_beyond_one_and_a_half_times_the_median(ms, limit_ms):
    assert ranks_of(*ms).limit_ns(SINGLE) == limit_ms * MS


@pytest.mark.parametrize(
    ("avoid", "quick"),
    [((), True), ((1, 3), True), ((1, 2, 3), True), ((1, 3, 4), False), ((1, 3, 5), True)],
)
def test_a_kind_has_a_quick_rank_while_one_is_left_that_is_not_slow(avoid, quick):
    one = frozenset({SINGLE})
    found = ranks_of(10, 16, 10, 15, 10, kinds=(one, one, one, one, frozenset({COLLAGE})))
    assert found.quicker(SINGLE, avoid) is quick


def test_a_rank_that_comes_back_is_as_fast_as_it_was():
    found = ranks_of(10, 30, 40)
    for rank, limit_ms in ((2, 15), (1, 60)):
        found.leave(found.known[rank], 0)
        assert found.limit_ns(SINGLE) == limit_ms * MS
    for rank in (1, 2):
        found.enter(found.known[rank], 0)
    assert found.limit_ns(SINGLE) == 45 * MS


def test_a_late_answer_of_a_silent_rank_says_how_fast_it_is():
    world = World(singles=3).start()
    world.arrive(4)
    task = world.of(1)[0]
    world.silence(1)
    world.step(world.answered(task, compute_ns=90 * MS))
    assert world.core.ranks.known[1].pace_ns == 90 * MS
    world.step()


def test_ranks_with_fewest_messages_come_first_then_faster_then_those_that_wait_longest():
    found = ranks_of(20, 10, 10)
    assert [place[-1].id for place in found.room[SINGLE]] == [2, 3, 1]
    found.known[2].messages = 1
    found.changed(found.known[2], 5)
    assert [place[-1].id for place in found.room[SINGLE]] == [3, 1, 2]
    found.changed(found.known[3], 6)
    found.known[2].messages = 0
    found.changed(found.known[2], 7)
    assert [place[-1].id for place in found.room[SINGLE]] == [3, 2, 1]


# ---- states -----------------------------------------------------------------


def diagram(moves: dict[str, dict[str, str]]) -> str:
    """The table as Mermaid draws it; what leads from one state to another on one arrow."""
    lines = [f"    [*] --> {next(iter(moves))}"]
    for state, after in moves.items():
        for end in dict.fromkeys(after.values()):
            lines.append(
                f"    {state} --> {end}: {' / '.join(e for e in after if after[e] == end)}"
            )
        lines += [] if after else [f"    {state} --> [*]"]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])


@pytest.mark.parametrize("name", ["RANK", "TASK"])
def test_the_docs_draw_the_states_and_each_can_be_reached(name):
    moves = getattr(states, name)
    drawn = diagram(moves)
    assert drawn in ARCHITECTURE.read_text(), f"docs/architecture.md needs, of a {name}:\n{drawn}"
    reached, new = set(), {next(iter(moves))}
    while new:
        reached |= new
        new = {after for state in new for after in moves[state].values()} - reached
    assert reached == moves.keys()


def test_a_move_that_is_in_no_table_raises():
    world = World().start()
    world.arrive(4)
    with pytest.raises(states.IllegalMove):
        world.core.step(0, [ev.Skipped(0, 1)])  # it was not cancelled
    with pytest.raises(states.IllegalMove):
        world.core.ranks.known[1].move("heard")


# ---- schemes ----------------------------------------------------------------

ASKED = scheme_settings("none", policy=Confident(0.5, 9 * MS), collage_copies=2, hedge_ns=5 * MS)


def asked(name: str, **changes) -> SchemeSettings:
    return replace(ASKED, name=name, **changes)


def test_schemes_are_known_by_name_and_an_error_lists_them():
    with pytest.raises(UsageError, match=f"known are: {', '.join(SCHEMES)}"):
        scheme_class("nine")


@pytest.mark.parametrize(
    ("name", "needs", "label"),
    [
        ("none", {SINGLE}, "none, pulled"),
        ("replicate", {SINGLE}, "replicate 2, pulled"),
        ("hedge", {SINGLE}, "hedge, pulled after 5 ms"),
        ("collage", {SINGLE, COLLAGE}, "collage, pulled"),
        ("collage-only", {COLLAGE}, "collage-only, pulled"),
        ("cascade", {SINGLE, COLLAGE}, "cascade, ranks apart"),
    ],
)
def test_a_scheme_needs_kinds_and_shows_the_settings_that_it_takes(name, needs, label):
    made = make_scheme(asked(name, assign="pull"))
    assert (made.needs, made.label) == (needs, label)
    assert made.main in needs <= {*KINDS}
    assert made.takes <= {each.name for each in fields(SchemeSettings)} - {"name"}


def test_collages_alone_wait_for_nobody():
    """An accept policy would keep their cells for singles that do not come."""
    assert make_scheme(asked("collage-only")).accept == {}
    assert make_scheme(asked("collage")).accept[COLLAGE].name == "confident 0.5, else 9 ms"


@pytest.mark.parametrize("name", SCHEMES)
def test_only_a_scheme_with_collages_places_them_by_speed(name):
    if "placement" in scheme_class(name).takes:
        make_scheme(asked(name, placement="fastest"))
        return
    with pytest.raises(UsageError, match=f"scheme {name} makes none"):
        make_scheme(asked(name, placement="fastest"))


def test_hedging_needs_a_time_and_no_setting_of_a_scheme_has_a_default():
    with pytest.raises(UsageError, match="scheme hedge needs a time: --deadline-ms 150"):
        make_scheme(asked("hedge", hedge_ns=None))
    assert [each.name for each in fields(SchemeSettings) if each.default is not MISSING] == []


def test_one_more_scheme_is_one_class():
    class Spare(Scheme):
        """Singles, and collage ranks that do nothing."""

        name = "spare"
        needs = BOTH

    @dataclass(frozen=True, repr=False)
    class Spared(RedundancySettings):
        scheme: str = setting("spare", "one of those that were known when the class was made")

    schemes.register(Spare)
    try:
        assert make_scheme(asked("spare")).label == "spare"
        found = Spared(collage_ranks=2, side=2).place(7)
        assert found.describe() == "0 coordinator, 1-4 single, 5-6 collage"
        with pytest.raises(AssertionError, match="two schemes spare"):
            schemes.register(Spare)
    finally:
        del schemes.REGISTERED["spare"]


# ---- placement by speed -----------------------------------------------------


def fastest(**settings) -> World:
    """Five ranks that hold both networks; rank 3 has shown to be the fastest, rank 1 slow."""
    given = {"scheme": "collage", "others": 1, "placement": "fastest", "checked": False}
    world = World(**{**given, **settings}).start()
    world.arrive(4)
    for task, sent in sorted(world.live.items()):
        took_ns = {1: 900, 3: 50}.get(sent.rank, 100) * MS
        world.step(world.answered(task, compute_ns=took_ns))
    world.arrive(4)
    return world


def test_the_collage_goes_to_the_fastest_rank_and_singles_to_the_others():
    world = fastest()
    assert world.live[world.task_of(4, COLLAGE)].rank == 3
    assert sorted(world.live[world.task_of(image)].rank for image in range(4, 8)) == [1, 2, 4, 5]
    world.run_out()

"""Which rank holds what, and what a wrong world size is told."""

from __future__ import annotations

import pytest

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.settings.run_settings import Placement, RunSettings


def test_the_default_is_one_coordinator_nine_singles_one_collage():
    found = RunSettings().place(11)
    assert found.world_size == 11
    assert found.kinds[0] == frozenset()
    assert found.ranks_of("single") == tuple(range(1, 10))
    assert found.ranks_of("collage") == (10,)
    assert found.workers == tuple(range(1, 11))
    assert found.idle == ()
    assert found.describe() == "0 coordinator, 1-9 single, 10 collage"


@pytest.mark.parametrize(
    ("world", "idle"), [(10, ()), (11, (10,))], ids=["without", "with the idle rank"]
)
def test_scheme_none_needs_no_collage_rank(world, idle):
    found = RunSettings(singles=9, scheme="none").place(world)
    assert found.ranks_of("single") == tuple(range(1, 10))
    assert found.ranks_of("collage") == ()
    assert found.idle == idle


@pytest.mark.parametrize(("world", "idle"), [(3, ()), (12, tuple(range(1, 10)))])
def test_collages_alone_need_no_single_rank(world, idle):
    found = RunSettings(collage_ranks=2, scheme="collage-only").place(world)
    assert found.ranks_of("collage") == (world - 2, world - 1)
    assert found.ranks_of("single") == ()
    assert found.idle == idle


def test_ranks_of_stages_come_after_the_singles():
    chain = {"scheme": "cascade", "first": ("q", "p"), "placement": "fixed"}
    settings = RunSettings(collage_ranks=2, **chain)
    found = settings.place(14)
    assert found.describe() == "0 coordinator, 1-9 single, 10-11 stage1, 12-13 stage2"
    with pytest.raises(EnvironmentFault, match=r"2 stage1 ranks and 2 stage2 ranks needs 14"):
        settings.place(11)
    with pytest.raises(UsageError, match="collage_ranks is 0"):
        RunSettings(collage_ranks=0, **chain)


def test_with_fastest_every_rank_holds_both_networks():
    found = RunSettings(collage_ranks=2, placement="fastest").place(12)
    assert found.ranks_of("collage") == found.ranks_of("single") == tuple(range(1, 12))
    only = RunSettings(scheme="collage-only", collage_ranks=2, placement="fastest").place(3)
    assert only.describe() == "0 coordinator, 1-2 collage"
    larger = RunSettings(scheme="collage-only", collage_ranks=2, placement="fastest").place(12)
    assert larger.describe() == "0 coordinator, 1-9 idle, 10-11 collage"


def test_a_cascade_takes_a_world_of_any_size():
    assert RunSettings(scheme="cascade").place(5).describe() == "0 coordinator, 1-4 single+collage"


def test_a_rank_may_hold_both():
    both = frozenset({"single", "collage"})
    found = Placement((frozenset(), both, both))
    assert found.ranks_of("single") == found.ranks_of("collage") == (1, 2)
    assert found.describe() == "0 coordinator, 1-2 single+collage"


@pytest.mark.parametrize(
    ("world", "singles", "collages", "scheme", "message"),
    [
        (
            8,
            None,
            1,
            "collage",
            "the world has 8 ranks; --side 3 with 1 collage rank needs 11 (1 coordinator + "
            "9 single + 1 collage): launch with -n 11, or pass --singles 6",
        ),
        (
            5,
            6,
            2,
            "collage",
            "the world has 5 ranks; --singles 6 with 2 collage ranks needs 9 (1 coordinator + "
            "6 single + 2 collage): launch with -n 9, or pass --singles 2",
        ),
        (
            2,
            None,
            1,
            "collage",
            "the world has 2 ranks; --side 3 with 1 collage rank needs 11 (1 coordinator + "
            "9 single + 1 collage): launch with -n 11",
        ),
        (
            5,
            None,
            2,
            "collage-only",
            "the world has 5 ranks; --side 3 with --scheme collage-only needs 3 (1 coordinator + "
            "2 collage): launch with -n 3, or pass --collage-ranks 4",
        ),
        (
            8,
            None,
            1,
            "none",
            "the world has 8 ranks; --side 3 with --scheme none needs 10 (1 coordinator + "
            "9 single): launch with -n 10, or pass --singles 7",
        ),
        (
            8,
            None,
            1,
            "replicate",
            "the world has 8 ranks; --singles 18 with --scheme replicate needs 19 (1 coordinator + "
            "18 single): launch with -n 19, or pass --singles 7",
        ),
    ],
)
def test_a_wrong_world_says_what_to_type(world, singles, collages, scheme, message):
    with pytest.raises(EnvironmentFault) as caught:
        RunSettings(singles=singles, collage_ranks=collages, scheme=scheme).place(world)
    assert str(caught.value) == message


def test_one_process_alone_is_told_how_to_launch():
    with pytest.raises(EnvironmentFault, match=r"on its own.*\n.*launch -n 11 -- run"):
        RunSettings().place(1)
    with pytest.raises(EnvironmentFault, match="the job needs 3 ranks"):
        RunSettings(scheme="collage-only", collage_ranks=2).place(1)


def test_singletons_are_told_apart_from_a_small_world():
    with pytest.raises(
        EnvironmentFault, match="started 11 ranks, but MPI says this is rank 0 of 1"
    ):
        RunSettings().place(1, 11)


@pytest.mark.parametrize(("singles", "collages"), [(0, 1), (-1, 1), (9, 0), (9, -1)])
def test_impossible_numbers(singles, collages):
    with pytest.raises(UsageError):
        RunSettings(singles=singles, collage_ranks=collages).place(11)


# ---- cascades ---------------------------------------------------------------


def test_the_ranks_of_a_cascade_hold_both_networks_and_any_number_will_do():
    run = RunSettings(scheme="cascade")
    assert (run.layout, run.messages, run.world_size) == ("fastest", 1, 11)
    assert run.place(4).describe() == "0 coordinator, 1-3 single+collage"
    three = RunSettings(scheme="cascade", singles=3).place(5)
    assert three.describe().endswith("1-4 single+collage")
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
        ({"save": "embeddings"}, "save is embeddings with scheme cascade"),
    ],
)
def test_what_does_not_go_with_a_cascade_is_refused_by_name(settings, said):
    with pytest.raises(UsageError, match=said):
        RunSettings.from_mapping({"scheme": "cascade", **settings}, "x")


@pytest.mark.parametrize(
    ("settings", "label"),
    [({}, "cascade, end game"), ({"placement": "fixed"}, "cascade, ranks apart, end game")],
)
def test_a_cascade_is_labelled_by_what_it_takes(settings, label):
    assert RunSettings(scheme="cascade", **settings).labels()["scheme"] == label

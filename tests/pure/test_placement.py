"""Which rank holds what, and what a wrong world size is told."""

from __future__ import annotations

import pytest

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.settings.placement import Placement, placement
from collage_mpi.settings.run_settings import RunSettings


def test_the_default_is_one_coordinator_nine_singles_one_collage():
    found = placement(11, None, {"collage": 1}, side=3, scheme="collage")
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
    found = placement(world, 9, {"collage": 1}, side=3, scheme="none")
    assert found.ranks_of("single") == tuple(range(1, 10))
    assert found.ranks_of("collage") == ()
    assert found.idle == idle


@pytest.mark.parametrize(("world", "idle"), [(3, ()), (12, tuple(range(1, 10)))])
def test_collages_alone_need_no_single_rank(world, idle):
    found = placement(world, None, {"collage": 2}, side=3, scheme="collage-only")
    assert found.ranks_of("collage") == (world - 2, world - 1)
    assert found.ranks_of("single") == ()
    assert found.idle == idle


def test_parity_ranks_come_after_the_singles():
    found = placement(13, None, {"collage": 1, "parity": 3}, side=3, scheme="parity")
    assert found.describe() == "0 coordinator, 1-9 single, 10-12 parity"
    with pytest.raises(EnvironmentFault, match=r"3 parity ranks needs 13 .*launch with -n 13"):
        placement(11, None, {"collage": 1, "parity": 3}, side=3, scheme="parity")
    with pytest.raises(UsageError, match="--parity-ranks 0"):
        placement(10, None, {"collage": 1, "parity": 0}, side=3, scheme="parity")


def test_with_fastest_every_rank_holds_both_networks():
    found = RunSettings(collage_ranks=2, placement="fastest").place(12)
    assert found.ranks_of("collage") == found.ranks_of("single") == tuple(range(1, 12))
    only = RunSettings(scheme="collage-only", collage_ranks=2, placement="fastest").place(3)
    assert only.describe() == "0 coordinator, 1-2 collage"


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
    ],
)
def test_a_wrong_world_says_what_to_type(world, singles, collages, scheme, message):
    with pytest.raises(EnvironmentFault) as caught:
        placement(world, singles, {"collage": collages}, side=3, scheme=scheme)
    assert str(caught.value) == message


def test_one_process_alone_is_told_how_to_launch():
    with pytest.raises(EnvironmentFault, match=r"on its own.*\n.*launch -n 11 -- run"):
        placement(1, None, {"collage": 1}, side=3, scheme="collage")


def test_singletons_are_told_apart_from_a_small_world():
    with pytest.raises(
        EnvironmentFault, match="started 11 ranks, but MPI says this is rank 0 of 1"
    ):
        placement(1, None, {"collage": 1}, side=3, scheme="collage", launcher_size=11)


@pytest.mark.parametrize(("singles", "collages"), [(0, 1), (-1, 1), (9, 0), (9, -1)])
def test_impossible_numbers(singles, collages):
    with pytest.raises(UsageError):
        placement(11, singles, {"collage": collages}, side=3, scheme="collage")

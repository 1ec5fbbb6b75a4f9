"""The time until MPI is up: who is missing is said, and it ends."""

from __future__ import annotations

from collage_mpi.launch.ending import END_GRACE_S, INIT_LIMIT_S, Death, Startup


class Clock:
    """Seconds that move when told."""

    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


def start(ranks: int, limit_s: float | None = 600.0) -> tuple[Startup, Clock]:
    clock = Clock()
    return Startup(ranks, limit_s, clock), clock


def test_who_is_missing_is_said_after_30_s_and_again_now_and_then():
    made, clock = start(5)
    for rank in (0, 1, 4):
        made.arrived(rank)
    said = {}
    for second in range(601):
        clock.now_s = 50.0 + second
        news = made.news(clock())
        if news:
            said[second] = news
    assert list(said) == [30, 60, 120, 240, 480]
    assert said[30] == (
        "MPI is not up after 30 s: 3 of 5 ranks are there; nothing yet of ranks 2, 3: "
        "dead, hung or slow to import"
    )


def test_many_missing_ranks_are_not_all_named():
    made, _ = start(100)
    assert "ranks 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 88 more" in made.who_is_missing()


def test_once_all_are_there_mpi_has_less_time():
    made, clock = start(2)
    made.arrived(0)
    clock.now_s += 100.0
    made.arrived(1)
    assert "all 2 ranks have begun to start MPI" in made.who_is_missing()
    clock.now_s += INIT_LIMIT_S
    assert not made.too_late(clock())
    clock.now_s += 1.0
    assert made.too_late(clock())


def test_a_start_that_is_over_or_not_watched_says_nothing():
    made, _ = start(2)
    made.up = True
    free, _ = start(2, None)
    for one in (made, free):
        assert (one.news(1000.0), one.too_late(1000.0), one.watched) == (None, False, False)


def test_of_a_script_a_start_is_watched_once_a_rank_begins_to_start_mpi():
    made, clock = start(3, None)
    made.has_ended(Death(2, 1))
    clock.now_s += END_GRACE_S + 1
    assert not made.too_late(clock())
    made.arrived(0)
    assert made.too_late(clock())
    made.up = True
    assert not made.too_late(clock())


def test_time_in_which_launch_was_suspended_is_not_counted():
    made, _ = start(2)
    made.was_suspended(3600.0)
    assert not made.too_late(50.0 + 600.0 + 3599.0)
    assert made.news(50.0 + 3629.0) is None
    assert made.too_late(50.0 + 600.0 + 3601.0)


def test_a_rank_that_ends_before_mpi_is_up_is_named_with_what_its_end_says():
    how = {139: "SIGSEGV", 135: "SIGBUS: /dev/shm may be full", 3: "code 3"}
    for code, words in how.items():
        made, _ = start(4)
        made.has_ended(Death(2, code))
        made.has_ended(Death(1, 9))  # after the first
        assert made.who_is_missing() == f"rank 2 has ended before it ({words})"

"""The exit code launch leaves with: rank 0's word, the run, signals, the time limit."""

from __future__ import annotations

import signal
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collage_mpi.launch.ending import (
    TIME_LIMIT,
    Death,
    Ending,
    Reached,
    exit_code,
    never_up,
    script_code,
)
from collage_mpi.launch.supervisor import FORWARDED

BEGUN = Reached.BEGUN


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (Ending(0), 0),
        (Ending(3), 3),
        (Ending(7, reported=5), 5),  # MPICH mixes the ranks' codes
        (Ending(0, reported=6), 6),
        (Ending(0, reported=0, cut=TIME_LIMIT), 0),  # only MPI was still to end
        (Ending(137, reported=5, cut=never_up("rank 3", hung=True)), 5),  # it had come up just then
        (Ending(-9), 3),  # before the job had begun
        (Ending(-9, reached=BEGUN), 6),
        (Ending(139, reached=BEGUN), 6),
        (Ending(255), 3),
        (Ending(1), 1),
        (Ending(1, reached=Reached.NO_RANK), 3),  # the launcher's own: it started nobody
        (Ending(0, reached=BEGUN), 6),
        (Ending(143, stopped_by=signal.SIGTERM), 143),
        (Ending(143, reached=BEGUN, stopped_by=signal.SIGTERM), 6),
        (Ending(137, cut=never_up("rank 3 is missing", hung=False), stopped_by=signal.SIGTERM), 3),
        (Ending(1, stopped_by=signal.SIGINT), 130),
        (Ending(6, stopped_by=signal.SIGINT), 6),
        (Ending(0, stopped_by=signal.SIGUSR2), 0),  # it ended before it saw the request
    ],
)
def test_codes(ending, code):
    assert exit_code(ending, None)[0] == code


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        (Ending(0), 0),
        (Ending(7), 7),
        (Ending(7, reported=0, reached=BEGUN), 7),
        (Ending(0, reported=5, reached=BEGUN), 5),
        (Ending(0, reached=BEGUN), 0),
        (Ending(-9, reached=BEGUN), 6),
        (Ending(143, cut=TIME_LIMIT), 6),
        (Ending(137, cut=never_up("rank 3 has ended before it", hung=False)), 3),
    ],
)
def test_a_script_s_own_code_comes_first(ending, code):
    assert script_code(ending)[0] == code


def some(values):
    return st.none() | values


@given(
    ending=st.builds(
        Ending,
        launcher=st.integers(-64, 255),
        reported=some(st.integers(-1, 300)),
        stopped_by=some(st.sampled_from(FORWARDED)),
        cut=st.sampled_from((None, TIME_LIMIT, never_up("rank 3", hung=True))),
        reached=st.sampled_from(Reached),
    ),
    must_report=st.booleans(),
)
def test_every_code_is_a_documented_one(ending, must_report):
    code, note = exit_code(ending, None, must_report=must_report)
    before = {128 + number for number in FORWARDED} if not ending.begun else set()
    assert code in {0, 1, 2, 3, 4, 5, 6} | before
    if code in (0, 5):
        assert note is None
        assert code in (ending.reported, ending.launcher)


def test_a_rank_0_that_died_once_its_run_was_complete_changes_nothing():
    done = lambda: "complete_with_errors"  # noqa: E731
    died = Ending(9, reached=BEGUN, died=Death(0, 137))
    said = "rank 0 was ended by SIGKILL, after the run was complete"
    assert exit_code(died, done) == (5, said)
    # A run that was complete before says nothing of this job.
    assert exit_code(Ending(-9, reached=BEGUN), done, earlier=done())[0] == 6
    assert exit_code(Ending(-9), done)[0] == 3


NEVER_UP = never_up("rank 3", hung=False)


@pytest.mark.parametrize("cut", [None, TIME_LIMIT, NEVER_UP])
@pytest.mark.parametrize("run", ["none", "incomplete", "earlier", "new"])
def test_what_counts_first(run, cut):
    """Rank 0's word; a run that the job has completed; launch's own reason; the launcher's code."""
    others = product(
        (None, 0, 5, 6, 77), Reached, ("complete", "complete_with_errors"), (True, False)
    )
    for reported, reached, status, must_report in others:
        said = None if run == "none" else lambda: status if run in ("earlier", "new") else None  # noqa: B023
        earlier = status if run == "earlier" else None
        ending = Ending(0, reported=reported, cut=cut, reached=reached)
        code, note = exit_code(ending, said, must_report=must_report, earlier=earlier)
        if reported in (0, 5, 6):
            lacks = run == "incomplete" and reported != 6
            assert code == (6 if lacks else reported)
            assert (note is not None) == lacks
        elif run == "new" and reached is BEGUN:
            assert code == {"complete": 0, "complete_with_errors": 5}[status]
            assert note.endswith(", after the run was complete")
            assert cut is None or note.startswith(cut.why)
        elif cut is not None:
            assert code == (3 if cut is NEVER_UP else 6)
            then = "; collage-mpi doctor" if code == 3 else ": the job is"
            assert note.startswith(f"{cut.why}{then}")
        elif must_report and reached is not BEGUN:  # Open MPI says 0 when it has lost a host
            assert code == 3
            assert "before the job had begun" in note
        elif reached is BEGUN or run == "incomplete":
            assert code == 6
            assert "is incomplete" in note
        else:
            assert (code, note) == (0, None)


@pytest.mark.parametrize(
    ("launcher", "died", "reached", "stopped_by", "code"),
    [
        (1, None, Reached.NO_RANK, None, 3),  # its launcher could not start it
        (4, None, Reached.NO_RANK, None, 4),  # a rank has told why
        (4, Death(2, 4), Reached.RANKS, None, 3),  # one rank alone has failed
        (4, Death(2, 137), Reached.RANKS, None, 3),
        (77, None, Reached.RANKS, None, 3),
        (77, None, Reached.RANKS, signal.SIGTERM, 143),
        (0, None, Reached.RANKS, signal.SIGTERM, 0),
        (5, None, Reached.RANKS, signal.SIGTERM, 5),
        (6, None, Reached.RANKS, signal.SIGTERM, 6),
        (77, Death(2, 137), Reached.RANKS, signal.SIGTERM, 143),
        (77, None, BEGUN, signal.SIGTERM, 6),
    ],
)
def test_without_rank_0_s_word(launcher, died, reached, stopped_by, code):
    ending = Ending(launcher, died=died, reached=reached, stopped_by=stopped_by)
    found, note = exit_code(ending, None)
    assert found == code
    assert (note is None) == (code in (0, 4, 5, 143) or (code == 6 and reached is not BEGUN))
    assert note is None or ("before the job had begun" in note) == (code == 3)


def test_a_stop_before_the_job_had_begun_is_a_stop_whatever_a_tolerant_launcher_says():
    stopped = Ending(0, reached=Reached.RANKS, stopped_by=signal.SIGTERM)
    assert exit_code(stopped, None, must_report=True) == (143, None)


def test_what_is_guessed_and_what_is_known():
    assert exit_code(Ending(4), None, must_report=True)[0] == 4  # a rank has told why
    killed, failed = (exit_code(Ending(9, died=Death(2, c)), None)[1] for c in (137, 3))
    assert "MPI cannot start" in killed
    assert "MPI cannot start" not in failed
    assert script_code(Ending(7, died=Death(2, 7))) == (7, "rank 2 has ended with code 7")
    assert script_code(Ending(7)) == (7, None)
    assert [never_up("rank 3", hung=hung).hung for hung in (True, False)] == ["rank 3", None]


def test_complete_needs_a_row_for_each_image():
    code, note = exit_code(Ending(0), lambda: None)
    assert code == 6
    assert "images of the run have no row" in note
    assert exit_code(Ending(0), lambda: "complete") == (0, None)
    assert exit_code(Ending(5), lambda: "complete_with_errors") == (5, None)


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        (
            Ending(9, reached=BEGUN, died=Death(2, 137)),
            6,
            "rank 2 was ended by SIGKILL: the ",
        ),
        (
            Ending(7, reached=BEGUN, died=Death(1, 3)),
            6,
            "rank 1 has ended with code 3: the job is incomplete. Go on with the same command",
        ),
        (
            Ending(15, reached=BEGUN),
            6,
            "a rank has ended without a message (the launcher's code is 15)",
        ),
        (
            Ending(1, died=Death(3, 1)),
            3,
            "rank 3 has ended with code 1 before the job had begun; collage-mpi doctor",
        ),
        (Ending(1, died=Death(3, 0)), 3, "rank 3 has ended with code 0 before the job had begun"),
        (Ending(0, died=Death(3, 0)), 0, None),  # a command that needs no MPI
        (Ending(7, died=Death(2, 135)), 3, "rank 2 was ended by SIGBUS (/dev/shm may be full"),
        (Ending(-9, reached=BEGUN), 6, "the launcher was ended by SIGKILL"),
    ],
)
def test_a_rank_that_dies_is_named_in_a_line_of_ours(ending, code, said):
    found, note = exit_code(ending, None)
    assert found == code
    assert (note is None) == (said is None)
    assert said is None or note.startswith(said)

"""The exit code launch leaves with: rank 0's word, the marker, signals, the time limit."""

from __future__ import annotations

import signal

import pytest

from collage_mpi.banners import Death
from collage_mpi.supervise import COMPLETE_MARKER, Outcome, exit_code


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome(0), 0),
        (Outcome(3), 3),
        (Outcome(7, reported=5), 5),  # MPICH mixes the ranks' codes
        (Outcome(0, reported=6), 6),
        (Outcome(0, reported=0, timed_out=True), 6),
        (Outcome(-9), 137),
        (Outcome(143, stopped_by=signal.SIGTERM), 143),
        (Outcome(1, stopped_by=signal.SIGINT), 130),
        (Outcome(6, stopped_by=signal.SIGINT), 6),
        (Outcome(0, stopped_by=signal.SIGUSR2), 0),  # it ended before it saw the request
    ],
)
def test_codes(outcome, code):
    assert exit_code(outcome, None)[0] == code


def test_complete_needs_the_marker(tmp_path):
    code, note = exit_code(Outcome(0), tmp_path)
    assert code == 6
    assert note
    assert "no COMPLETE marker" in note
    (tmp_path / COMPLETE_MARKER).touch()
    assert exit_code(Outcome(0), tmp_path) == (0, None)
    assert exit_code(Outcome(5), tmp_path) == (5, None)


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        (Outcome(9, up=True, died=Death(137, 2)), 6, "rank 2 was ended by SIGKILL: the job is inc"),
        (Outcome(7, up=True, died=Death(3, 1, 40)), 6, "rank 1 (pid 40) has ended with code 3:"),
        (Outcome(15, up=True), 6, "a rank has ended without a word (the launcher's code is 15)"),
        (Outcome(7, died=Death(135)), 3, "a rank was ended by SIGBUS (/dev/shm may be full"),
        (Outcome(1, died=Death(1)), 1, None),  # its traceback and the banner were shown
        (Outcome(1, up=True, failed=True), 1, None),  # the rank has said so
        (Outcome(-9, up=True), 137, "the launcher was ended by SIGKILL"),
        (Outcome(0, stood_still=40), 6, "rank 0 (pid 40) was stopped for good"),
    ],
)
def test_a_rank_that_dies_is_named_in_a_line_of_ours(outcome, code, said):
    found, note = exit_code(outcome, None)
    assert found == code
    assert (note is None) == (said is None)
    assert said is None or note.startswith(said)


def test_a_rank_that_dies_after_the_end_does_not_make_a_run_incomplete(tmp_path):
    (tmp_path / COMPLETE_MARKER).touch()
    code, note = exit_code(Outcome(9, up=True, died=Death(137, 0)), tmp_path)
    assert code == 9
    assert note == "rank 0 was ended by SIGKILL, after the run was complete"

"""The exit code launch leaves with: rank 0's word, the marker, signals, the time limit."""

from __future__ import annotations

import signal

import pytest

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

"""The exit code launch leaves with: rank 0's word, the marker, signals, the time limit."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collage_mpi.launch.supervisor import (
    FORWARDED,
    Outcome,
    exit_code,
    marker_text,
    script_code,
)
from collage_mpi.system.launchers import Death


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome(0), 0),
        (Outcome(3), 3),
        (Outcome(7, reported=5), 5),  # MPICH mixes the ranks' codes
        (Outcome(0, reported=6), 6),
        (Outcome(0, reported=0, timed_out=True), 6),
        (Outcome(-9), 3),  # before the job had begun
        (Outcome(-9, begun=True), 6),
        (Outcome(139, begun=True), 6),
        (Outcome(255), 3),
        (Outcome(1), 1),
        (Outcome(1, heard=0), 3),  # the launcher's own: it started nobody
        (Outcome(0, begun=True), 6),
        (Outcome(143, stopped_by=signal.SIGTERM), 143),
        (Outcome(143, begun=True, stopped_by=signal.SIGTERM), 6),
        (Outcome(137, never_up="rank 3 is missing", stopped_by=signal.SIGTERM), 3),
        (Outcome(1, stopped_by=signal.SIGINT), 130),
        (Outcome(6, stopped_by=signal.SIGINT), 6),
        (Outcome(0, stopped_by=signal.SIGUSR2), 0),  # it ended before it saw the request
    ],
)
def test_codes(outcome, code):
    assert exit_code(outcome, None)[0] == code


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        (Outcome(0), 0),
        (Outcome(7), 7),
        (Outcome(7, reported=0, begun=True), 7),
        (Outcome(0, reported=5, begun=True), 5),
        (Outcome(0, begun=True), 0),
        (Outcome(-9, begun=True), 6),
        (Outcome(143, timed_out=True), 6),
        (Outcome(137, never_up="rank 3 has ended before it"), 3),
    ],
)
def test_a_script_s_own_code_comes_first(outcome, code):
    assert script_code(outcome)[0] == code


def some(values):
    return st.none() | values


@given(
    outcome=st.builds(
        Outcome,
        launcher=st.integers(-64, 255),
        reported=some(st.integers(-1, 300)),
        stopped_by=some(st.sampled_from(FORWARDED)),
        timed_out=st.booleans(),
        never_up=some(st.just("rank 3 is missing")),
        begun=st.booleans(),
        heard=some(st.integers(0, 3)),
        hung=st.booleans(),
    ),
    must_report=st.booleans(),
)
def test_every_code_is_a_documented_one(outcome, must_report):
    code, note = exit_code(outcome, None, must_report=must_report)
    before = {128 + number for number in FORWARDED} if not outcome.begun else set()
    assert code in {0, 1, 2, 3, 4, 5, 6} | before
    if code in (0, 5):
        assert note is None
        assert code in (outcome.reported, outcome.launcher)


def test_a_rank_0_that_died_once_its_run_was_complete_changes_nothing(tmp_path):
    marker = tmp_path / "COMPLETE"
    marker.write_text('{"status": "complete_with_errors"}')
    died = Outcome(9, begun=True, died=Death(137, 0))
    said = "rank 0 was ended by SIGKILL, after the run was complete"
    assert exit_code(died, marker) == (5, said)
    earlier = marker_text(marker)  # a marker of another job says nothing of this one
    assert exit_code(Outcome(-9, begun=True), marker, earlier=earlier)[0] == 6
    assert exit_code(Outcome(-9), marker)[0] == 3


def test_complete_needs_the_marker(tmp_path):
    marker = tmp_path / "COMPLETE"
    code, note = exit_code(Outcome(0), marker)
    assert code == 6
    assert note
    assert f"{tmp_path} has no COMPLETE marker" in note
    marker.touch()
    assert exit_code(Outcome(0), marker) == (0, None)
    assert exit_code(Outcome(5), marker) == (5, None)


@pytest.mark.parametrize(
    ("outcome", "code", "said"),
    [
        (
            Outcome(9, begun=True, died=Death(137, 2)),
            6,
            "rank 2 was ended by SIGKILL: the ",
        ),
        (Outcome(7, begun=True, died=Death(3, 1, 40)), 6, "rank 1 (pid 40) has ended with code 3:"),
        (Outcome(15, begun=True), 6, "a rank has ended without a word (the launcher's code is 15)"),
        (
            Outcome(1, died=Death(1, 3)),
            3,
            "rank 3 has ended with code 1 before the job had begun; collage-mpi doctor",
        ),
        (Outcome(1, died=Death(0, 3)), 3, "rank 3 has ended with code 0 before the job had begun"),
        (Outcome(0, died=Death(0, 3)), 0, None),  # a command that needs no MPI
        (Outcome(7, died=Death(135)), 3, "a rank was ended by SIGBUS (/dev/shm may be full"),
        (Outcome(1, died=Death(1)), 1, None),  # its traceback and the banner were shown
        (Outcome(1, begun=True, failed=True), 6, None),  # the rank has said so
        (Outcome(-9, begun=True), 6, "the launcher was ended by SIGKILL"),
        (Outcome(0, stood_still=40), 6, "rank 0 (pid 40) was stopped for good"),
    ],
)
def test_a_rank_that_dies_is_named_in_a_line_of_ours(outcome, code, said):
    found, note = exit_code(outcome, None)
    assert found == code
    assert (note is None) == (said is None)
    assert said is None or note.startswith(said)

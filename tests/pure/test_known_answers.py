"""At the start, ranks of a kind are held against each other by their answers to known inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from job_messages import HELLO

from collage_mpi.job.handshake import wrong_at_first

RIGHT = ((1, 0.9), (2, 0.8))
TUNING = {"single": "float32"}


def hellos(*known, like: str = ""):
    """Ranks 1, 2, ... with these known answers. `like`: a letter each."""
    kinds = like or "a" * len(known)
    return {
        rank: replace(HELLO, known=each, like=kind, tuning=TUNING, devices=("cuda:0",), host="n7")
        for rank, (each, kind) in enumerate(zip(known, kinds, strict=True), start=1)
    }


@pytest.mark.parametrize("other", [((1, 0.9), (3, 0.8)), ((1, 0.9), (2, 0.82))])
def test_three_ranks_that_agree_refute_the_fourth(other, caplog):
    assert [*wrong_at_first(hellos(RIGHT, other, RIGHT, RIGHT))] == [2]
    said = caplog.text
    assert "rank 2 (cuda:0 of n7) answers known inputs otherwise than ranks 1, 3, 4" in said
    assert "gets no work" in said


def test_two_ranks_that_agree_refute_nobody_but_it_is_told(caplog):
    assert wrong_at_first(hellos(RIGHT, RIGHT, ((0, 0.9),))) == {}
    said = caplog.text
    assert "rank 3 (cuda:0 of n7) answers known inputs otherwise than ranks 1, 2" in said
    assert "gets no work" not in said


def test_ranks_of_other_kinds_and_those_that_agree_are_not_told(caplog):
    other = ((0, 0.9), (2, 0.8))
    assert wrong_at_first(hellos(RIGHT, RIGHT, RIGHT, other, like="aaab")) == {}
    assert wrong_at_first(hellos(RIGHT, ((1, 0.905),), RIGHT, ())) == {}
    assert caplog.text == ""

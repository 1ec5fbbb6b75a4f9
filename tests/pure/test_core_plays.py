"""Some hundred random plays of the core; by hand, any number (tests/core_plays.py)."""

from __future__ import annotations

from pathlib import Path

import core_plays
import pytest

PLAYS, PARTS = 400, 8
# A speed that is forgotten frees a rank that was passed over; a copy and a retry on one rank.
ONCE_FAILED = (703385, 704875)


@pytest.mark.parametrize("part", range(PARTS))
def test_any_play_keeps_the_invariants(part: int) -> None:
    for seed in (*range(part, PLAYS, PARTS), *ONCE_FAILED[part : part + 1]):
        try:
            core_plays.play(seed)
        except Exception as fault:
            raise AssertionError(f"python tests/core_plays.py --plays 1 --seed {seed}") from fault


def test_a_play_follows_from_its_seed_alone() -> None:
    first, second = (core_plays.play(7) for _ in range(2))
    assert [told for *_, told in first.log] == [told for *_, told in second.log]


def test_each_planted_defect_has_its_place() -> None:
    for defect in core_plays.defects():
        text = Path(core_plays.CORE, defect["file"]).read_text()
        assert text.count(defect["before"]) == 1, defect["kind"]

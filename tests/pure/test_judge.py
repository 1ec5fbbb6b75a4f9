"""What answers are worth: counted by hand on small cases."""

from __future__ import annotations

import numpy as np
import pytest
from rows_by_name import cells_of

from collage_mpi.training.threshold import by_place, judge


def test_counts_of_a_hand_made_case() -> None:
    answers = cells_of([(0, 0.9), (1, 0.9), None, (1, 0.5)])
    report = judge(answers, np.array([0, 0, 1, 1]), classes=2, side=2)
    assert (report["images"], report["accuracy"], report["absent"]) == (4, 0.5, 0.25)
    assert report["confusion"] == [[1, 1], [0, 1]]  # label by answer; the absent one in none
    assert report["ece"] == pytest.approx((2 * 0.4 + 1 * 0.5) / 3)
    assert report["mean_score"] == pytest.approx(2.3 / 3)
    assert report["places"] == {"corner": {"images": 4, "accuracy": 0.5}}
    assert "places" not in judge(answers, np.array([0, 0, 1, 1]), classes=2, side=None)


def test_places_of_a_grid() -> None:
    centre = np.zeros(9 + 5, dtype=bool)
    centre[4] = centre[9 + 4] = True  # the middle cell of the first and of a partial group
    assert by_place(centre, 3) == {
        "corner": {"images": 4 + 2, "accuracy": 0.0},
        "edge": {"images": 4 + 2, "accuracy": 0.0},
        "centre": {"images": 2, "accuracy": 1.0},
    }
    sizes = {k: v["images"] for k, v in by_place(np.ones(16, bool), 4).items()}
    assert sizes == {"corner": 4, "edge": 8, "centre": 4}


def test_no_answer_at_all() -> None:
    report = judge(cells_of([None, None]), np.array([0, 1]), classes=2, side=None)
    assert (report["accuracy"], report["ece"], report["mean_score"]) == (0.0, 0.0, None)

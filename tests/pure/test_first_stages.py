"""The arithmetic of analysis/first_stages.py, without networks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "analysis"))
pytest.importorskip("torch")

import first_stages as fs

from collage_mpi.bounds.sample import Asked


def stage(scores: list[float], differs: list[int], image_s: float) -> fs.First:
    right = np.array([differs]) == 0
    return fs.First(np.array([scores]), ~right, right, (image_s,))


def test_no_picture_is_in_two_thirds() -> None:
    parts = fs.thirds(10, np.random.default_rng(0))
    assert sorted(np.concatenate(parts)) == list(range(10))


def test_the_price_of_a_job_by_hand() -> None:
    exact, first = stage([1.0] * 4, [0] * 4, 10.0), stage([0.9, 0.8, 0.2, 0.1], [0, 1, 0, 1], 1.0)
    asked = Asked(1000, 0.99, 10.0)  # 10 audits
    decision = fs.Decision(first, 0.5, 300.0, 100)
    found = fs.judged(decision, exact, asked, np.arange(4))
    # Half of 900 answers count, and half of the audited ones were asked of the exact one.
    assert found.price_s == 300 + 100 * 10 + 900 * (1 + 10 / 2) + 10 * 10 / 2
    assert found.accepted == pytest.approx(0.89 / 2)
    assert found.changed == pytest.approx(0.89 / 4)
    assert found.right == pytest.approx(1 - 0.89 / 4)


def test_an_exact_job_pays_what_it_tried() -> None:
    exact = stage([1.0], [0], 10.0)
    found = fs.judged(
        fs.Decision(None, np.inf, 7.0, 0), exact, Asked(100, 0.99, 10.0), np.arange(1)
    )
    assert (found.price_s, found.changed, found.exact) == (1007.0, 0.0, 1.0)

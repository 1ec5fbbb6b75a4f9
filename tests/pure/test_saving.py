"""What a collage network saves at no loss, at a threshold and along a curve: counted by hand."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest
from rows_by_name import cells_of

from collage_mpi.models.architecture import AcceptSpec
from collage_mpi.training.threshold import TwoStages, find_savings, saving_of, told_savings

CELLS, RATIO = 4, 0.8
HALF = 1000
LEVELS = (0.9, 0.8, 0.7, 0.6)


def half(counts: tuple[int, ...], lost: dict[float, list[int]]) -> list[tuple[bool, bool, float]]:
    """(single is right, its cell is right, score) of 1,000 images: so many a level of score.

    The first cells of a level are those that change an answer: 1 where it is lost, -1 gained.
    """
    images = []
    for level, count in zip(LEVELS, counts, strict=True):
        changes = [*lost.get(level, []), *[0] * count][:count]
        images += [(change >= 0, change <= 0, level) for change in changes]
    assert len(images) == HALF
    return images


def stages_of(single: list, collage: list, labels: np.ndarray) -> TwoStages:
    return TwoStages(cells_of(single), cells_of(collage), labels, CELLS)


def savings(chooses: list, measures: list, **more):
    """Groups of four, of the half that chooses and of the other in turn."""
    images = []
    for at in range(0, HALF, CELLS):
        images += chooses[at : at + CELLS] + measures[at : at + CELLS]
    single = [(int(not alone), 1.0) for alone, _, _ in images]
    collage = [(int(not cell), score) for _, cell, score in images]
    labels = np.zeros(len(images), np.int64)
    return find_savings(stages_of(single, collage, labels), RATIO, **more)


SAME = half((250, 250, 250, 250), {})


def test_an_image_costs_its_part_of_a_collage_and_a_single_call_where_its_cell_is_unsure():
    assert saving_of(0.9, 9, 1.0) == pytest.approx(10)
    assert saving_of(0.9, 9, 0.8) == pytest.approx(1 / 0.3)
    assert saving_of(0.9, 9, 0.0) == pytest.approx(1 / 1.1)  # a cascade that does not pay


@pytest.mark.parametrize(
    ("lost", "confidence"),
    [
        ({}, 0.6),
        ({0.7: [1]}, 0.8),
        ({0.7: [-1, 1]}, 0.8),  # nothing is lost, but two standard errors on top
        ({0.9: [-1] * 8, 0.7: [1]}, 0.6),
        ({0.9: [-1] * 4, 0.7: [1]}, 0.8),
        ({0.8: [1], 0.7: [-1] * 50}, 0.9),  # what a lower score gains does not make up for it
    ],
)
def test_no_loss_is_a_score_that_loses_nothing_with_two_standard_errors_added(lost, confidence):
    found = savings(half((250, 250, 250, 250), lost), SAME)
    assert found["no_loss"]["confidence"] == pytest.approx(confidence, abs=1e-3)
    assert (found["chosen_on"], found["measured_on"]) == (HALF, HALF)


def test_share_and_loss_are_those_of_the_half_that_did_not_choose():
    chooses = half((100, 100, 400, 400), {0.7: [1]})
    measures = half((450, 300, 150, 100), {0.9: [-1], 0.8: [1] * 3, 0.7: [1] * 90})
    at = savings(chooses, measures)["no_loss"]
    assert at["confidence"] == 0.8
    assert at["share"] == 0.75
    assert at["points"] == pytest.approx(-0.2)  # three lost and one gained, of a thousand
    spread = 100 * math.sqrt(4 / HALF - (2 / HALF) ** 2)
    assert at["two_errors"] == pytest.approx(2 * spread / math.sqrt(HALF))
    assert at["saving"] == pytest.approx(1 / (RATIO / CELLS + 0.25))


def test_where_the_surest_cells_lose_no_score_is_without_loss():
    found = savings(half((250, 250, 250, 250), {0.9: [1]}), SAME)
    assert found["no_loss"] is None
    assert "Saving at no loss: n/a: from every score on" in told_savings(found, "timed so")


def test_the_curve_runs_from_few_sure_cells_to_all():
    scores = np.linspace(0.5, 0.9999, 2 * HALF)
    right = [(0, 1.0)] * 2 * HALF
    collage = [(int(s < 0.6), float(s)) for s in scores]  # the fifth that is least sure is wrong
    order = np.random.default_rng(0).permutation(2 * HALF)
    labels = np.zeros(2 * HALF, np.int64)
    stages = stages_of(right, [collage[i] for i in order], labels)
    curve = find_savings(stages, RATIO)["curve"]
    assert len(curve) == 10
    assert [round(at["share"], 1) for at in curve[:5]] == [0.3, 0.5, 0.6, 0.7, 0.8]
    assert curve[-1]["share"] > 0.99
    assert curve[-1]["points"] == pytest.approx(-20, abs=1.5)
    assert [at["points"] for at in curve[:4]] == [0, 0, 0, 0]
    rising = [at["saving"] for at in curve]
    assert rising == sorted(rising)
    assert all(a["confidence"] > b["confidence"] for a, b in pairwise(curve))
    json.dumps(curve)
    found = savings(half((1000, 0, 0, 0), {}), half((500, 0, 0, 500), {}))
    assert [(at["confidence"], at["share"]) for at in found["curve"]] == [(0.9, 0.5)]


def test_cells_without_an_answer_are_never_sure():
    single, labels = [(0, 1.0)] * 2 * HALF, np.zeros(2 * HALF, np.int64)
    collage = [None if i % 5 == 0 else (0, 0.9) for i in range(2 * HALF)]
    found = find_savings(stages_of(single, collage, labels), RATIO)
    assert found["no_loss"]["share"] == pytest.approx(0.8)
    assert [at["share"] for at in found["curve"]] == pytest.approx([0.8, 0.8])
    assert [at["confidence"] for at in found["curve"]] == [0.9, 0.0]


def test_the_threshold_of_a_file_stands_beside_it():
    accept = AcceptSpec(0.7, "f" * 64, HALF, 0.1, HALF, 0.0, 0.75)
    found = savings(half((250, 250, 250, 250), {0.7: [1]}), SAME, accept=accept)
    assert found["at_threshold"]["share"] == 0.75
    told = told_savings(found, "median of 7 calls, bfloat16, on cpu").splitlines()
    assert told[-2].startswith("Saving at the threshold in the file: 2.22 x, from a score of 0.7")
    assert told[-1] == (
        "Saving at no loss: 1.43 x, from a score of 0.8 on: 50.0% of the answers are sure, +0.00 "
        "points beside the single network (two standard errors 0.00)."
    )
    assert (
        "0.80 times as long as one by the single network (median of 7 calls, bfloat16, on cpu)"
        in told[-3]
    )
    assert "chosen on 1,000 images and measured on 1,000 others" in told[-3]
    assert savings(SAME, SAME)["at_threshold"] is None


def test_too_few_images_tell_nothing():
    few = [(0, 1.0)] * 1999
    labels = np.zeros(1999, np.int64)
    assert find_savings(stages_of(few, few, labels), RATIO) is None
    assert "n/a (it needs 2,000 labelled images" in told_savings(None, "")

"""The threshold that answers prove for other images, and what it saves: counted by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from collage_mpi.bounds.draw import Draw
from collage_mpi.bounds.sample import Asked, Pairs, thresholds_of
from collage_mpi.errors import DataFault
from collage_mpi.models.architecture import AcceptSpec
from collage_mpi.rows import CELL, PRESENT
from collage_mpi.training.measure import AskedImages, distinct
from collage_mpi.training.threshold import (
    TwoStages,
    choose_threshold,
    find_savings,
    saving_of,
    told_savings,
)

FIRST, CELLS, RATIO = 200, 4, 0.8
BETTORS = [(0.0, 0.4), (0.25, 0.2), (0.5, 0.2), (0.75, 0.2)]


def stages_of(scores: np.ndarray, differs: np.ndarray, labels: np.ndarray | None) -> TwoStages:
    """Answers of a single network that always says 0. NaN: the first network has no answer."""
    single, first = np.zeros((2, len(scores)), CELL)
    single["state"], first["state"] = PRESENT, np.where(np.isnan(scores), 0, PRESENT)
    first["score"], first["label"] = np.nan_to_num(scores), differs
    return TwoStages(single, first, labels, CELLS)


def erring(seed: int, n: int, share: float) -> TwoStages:
    """The higher the score the fewer of the answers differ; of all of them this share."""
    rng = np.random.default_rng(seed)
    scores = rng.random(n)
    return stages_of(scores, rng.random(n) < 2 * share * (1 - scores), np.zeros(n, np.int64))


def proved(differs: np.ndarray, share: float) -> bool:
    """Whether four bettors win step by step: an endless population always has the same share."""
    money, most = [weight for _, weight in BETTORS], 1.0
    for each in differs.tolist():
        for bettor, (f, _) in enumerate(BETTORS):
            money[bettor] *= f if each else (1 - f * share) / (1 - share)
        most = max(most, sum(money))
    return most >= 20


@pytest.mark.parametrize("agree", [0.98, 0.99])
@pytest.mark.parametrize("seed", range(6))
def test_the_threshold_is_the_lowest_of_the_grid_that_step_by_step_is_proved(seed, agree):
    stages, n = erring(seed, 3_000, 0.03), 3_000
    order = Draw(n, 0).first(n)
    scores = stages.first["score"].astype(np.float64)[order]
    differs = (stages.first["label"] != 0)[order]
    grid = thresholds_of(Asked(math.inf, agree, 1.0), Pairs(scores[:FIRST], differs[:FIRST]))
    grid = np.unique(np.floor(grid * 1e4) / 1e4)[::-1]
    passed = [level for level in grid if proved((differs & (scores >= level))[FIRST:], 1 - agree)]
    found = stages.lowest_score(agree)
    assert found == passed[-1]
    assert 0 < len(passed) < len(grid)
    rest = (scores >= found)[FIRST:]
    spec = choose_threshold(stages, "f" * 64, agree)
    changed = (differs[FIRST:] & rest).mean()
    share, changed = round(float(rest.mean()), 4), round(float(changed), 4)
    assert spec == AcceptSpec(found, "f" * 64, agree, n, share, changed)


def test_a_threshold_is_written_with_four_digits_and_from_it_on_answers_count():
    stages = stages_of(np.full(3_000, 0.84957), np.zeros(3_000, bool), None)
    assert stages.lowest_score(0.99) == 0.8495
    assert [stages.at(score)["share"] for score in (0.8495, 0.8496)] == [1, 0]
    assert "points" not in stages.at(0.8495)
    sure = stages_of(np.ones(3_000), np.zeros(3_000, bool), None)
    assert sure.lowest_score(0.99) == 0.9999, "from 1 on no answer counts"


def test_sorted_images_are_drawn_from_everywhere():
    """The last third differs, as sure as the others: nothing is proved, whatever the order."""
    differs = np.arange(3_000) >= 2_000
    assert stages_of(np.full(3_000, 0.9), differs, None).lowest_score(0.95) is None
    with pytest.raises(DataFault, match=r"keeps 0.95 .*: 3,000 images were drawn, and to 1,000 of"):
        choose_threshold(stages_of(np.full(3_000, 0.9), differs, None), "s", 0.95)


def test_cells_without_an_answer_are_never_sure():
    scores = np.where(np.arange(3_000) % 5, 0.9, np.nan)
    stages = stages_of(scores, np.isnan(scores), np.zeros(3_000, np.int64))
    at = stages.at(0.0)
    assert at["share"] == pytest.approx(0.8, abs=0.01)
    assert (at["changed"], at["points"]) == (0, 0)
    assert stages.lowest_score(0.99) == 0.8999


@pytest.mark.parametrize(("share", "bounds"), [(0.0102, (0.0, 0.05)), (0.003, (0.5, 1.0))])
def test_in_one_sample_of_twenty_at_most_too_low_a_threshold_is_chosen(share, bounds):
    """All answers have one score. Of all images a little more than 1 % differ, or fewer."""
    rng, chosen = np.random.default_rng(1), 0
    for _ in range(400):
        differs = rng.random(1_500) < share
        chosen += stages_of(np.full(1_500, 0.9), differs, None).lowest_score(0.99) is not None
    assert bounds[0] < chosen / 400 <= bounds[1]


def test_of_equal_images_the_first_counts():
    images = np.zeros((150, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(150) % 70
    order = np.arange(149, -1, -1)
    assert distinct(AskedImages(images, order)).tolist() == list(range(149, 79, -1))


def test_too_few_images_prove_nothing():
    few = stages_of(np.full(699, 0.9), np.zeros(699, bool), None)
    assert few.lowest_score(0.99) is None
    assert few.lowest_score(0.98) == 0.8999
    with pytest.raises(DataFault, match=r"699 different images: .* --agree 0.99 needs 700"):
        choose_threshold(few, "s", 0.99)
    found = find_savings(stages_of(np.ones(100), np.zeros(100, bool), None), RATIO)
    assert (found["thresholds"], found["in_file"]) == ([], None)
    assert told_savings(found, "").startswith("Saving: n/a. 100 images prove no score")
    assert "at least 300 images are needed" in told_savings(found, "")


def test_an_image_costs_its_part_of_a_collage_and_a_single_call_where_its_cell_is_unsure():
    assert saving_of(0.9, 9, 1.0) == pytest.approx(10)
    assert saving_of(0.9, 9, 0.8) == pytest.approx(1 / 0.3)
    assert saving_of(0.9, 9, 0.0) == pytest.approx(1 / 1.1)  # a cascade that does not pay


def test_accuracy_and_saving_are_told_beside_the_promise():
    """Half of the labels are 1: half of the answers that differ gain, the other half lose."""
    n = 2_000
    drawn = np.argsort(Draw(n, 0).first(n))  # number of each image in the draw
    differs = (drawn >= FIRST) & (drawn % 200 == 0)  # 9 of 1,800
    labels = np.where(drawn % 400 == 0, 0, 1)  # of those 4 are lost, 5 gained
    stages = stages_of(np.full(n, 0.75), differs, labels)
    at = stages.at(0.75)
    assert (at["share"], at["changed"]) == (1.0, 9 / 1_800)
    assert at["points"] == pytest.approx(100 * 1 / 1_800)
    spread = np.sqrt(9 / 1_800 - (1 / 1_800) ** 2)
    assert at["two_errors"] == pytest.approx(200 * spread / np.sqrt(1_800))
    found = find_savings(stages, RATIO, AcceptSpec(0.8, "f", 0.97, n, 0.5, 0.0))
    json.dumps(found)
    assert [at["agree"] for at in found["thresholds"]] == [0.98, 0.95]
    assert found["thresholds"][0]["saving"] == pytest.approx(CELLS / RATIO)
    told = told_savings(found, "median of 7 calls, on cpu").splitlines()
    assert " ".join(told[-3].split()) == ("0.97, in the file 0.8000 0.0% 0.00% +0.00 (0.00) 0.83 x")
    assert "2,000 images were drawn" in told[-2]
    assert "0.80 times as long as one by the single network (median of 7 calls" in told[-1]
    right = (labels == 0).mean()
    assert stages.told_accuracy(0.8).endswith(
        f"{right:.2%} by the single network, {right:.2%} with the threshold."
    )
    assert f"{right + 1 / n:.2%} with" in stages.told_accuracy(0.75)

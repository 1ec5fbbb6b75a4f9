"""Temperature scaling and the expected calibration error."""

from __future__ import annotations

import numpy as np
import pytest

from collage_mpi.training.threshold import (
    accuracy,
    answered,
    bins,
    calibration_error,
    fit_temperature,
    log_loss,
)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def test_temperature_undoes_overconfidence() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(4000, 5))
    labels = np.array([random.choice(5, p=p) for p in softmax(logits)])
    fitted = fit_temperature(lambda t: softmax(3 * logits / t), labels)
    assert fitted == pytest.approx(3, rel=0.15)
    scores = [softmax(3 * logits / t) for t in (1.0, fitted)]
    errors = [calibration_error(s.max(1), s.argmax(1) == labels) for s in scores]
    assert errors[1] < 0.03 < errors[0]


def test_the_calibration_error_of_a_hand_made_case() -> None:
    top = np.array([0.9, 0.9, 0.9, 0.9, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    # 4 answers of score 0.9, 75 % right; 2 of 0.55, 50 % right
    assert calibration_error(top, right) == pytest.approx((4 * 0.15 + 2 * 0.05) / 6)
    assert [(b["answers"], b["accuracy"]) for b in bins(top, right)] == [(2, 0.5), (4, 0.75)]
    assert bins(np.array([0.0, 1.0]), np.array([True, True]))[-1]["score"] == 1.0
    assert calibration_error(np.zeros(0), np.zeros(0, bool)) == 0.0


def test_no_answer_is_wrong_and_costs_a_guess() -> None:
    scores = np.array([[0.0, 0.0], [0.2, 0.8], [np.nan, 1.0]])
    assert answered(scores).tolist() == [False, True, False]
    assert accuracy(scores, np.array([0, 1, 1])) == pytest.approx(1 / 3)
    expected = -(2 * np.log(0.5) + np.log(0.8)) / 3
    assert log_loss(scores, np.array([0, 1, 1])) == pytest.approx(expected)

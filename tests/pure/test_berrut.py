"""Berrut's code: weights, pictures and answers against the interpolant as it is written."""

from __future__ import annotations

from math import cos, pi

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collage_mpi.encoding.decode import decode_parity, parity_scores
from collage_mpi.encoding.stripe import (
    BerrutEncoder,
    coding_weights,
    interpolation_weights,
    missing_weights,
    positions,
)
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.models.specs import ParitySpec

SHAPE = (5, 4, 3)


def interpolant(points: list[tuple[float, float]], z: float) -> float:
    """Of (node, value), from the right: the formula, term by term."""
    above = below = 0.0
    for i, (node, value) in enumerate(sorted(points, reverse=True)):
        term = (-1) ** i / (z - node)
        above, below = above + term * value, below + term
    return above / below


@given(
    nodes=st.lists(st.integers(-50, 50), min_size=1, max_size=9, unique=True),
    at=st.integers(-240, 240).map(lambda n: n / 4),
    seed=st.integers(0, 99),
)
def test_weights_are_those_of_the_formula_in_any_order_of_the_nodes(nodes, at, seed):
    values = np.random.default_rng(seed).normal(size=len(nodes))
    found = interpolation_weights(np.array(nodes, float), at)
    assert np.isfinite(found).all()
    assert found.sum() == pytest.approx(1)
    if min(abs(at - node) for node in nodes) > 1e-6:
        exact = interpolant(list(zip(nodes, values, strict=True)), at)
        assert found @ values == pytest.approx(exact, rel=1e-6, abs=1e-6)


def test_at_a_node_its_own_value_alone_counts():
    assert interpolation_weights(np.array([1.0, 0.0, -1.0]), 0.0).tolist() == [0, 1, 0]


@pytest.mark.parametrize("n", range(1, 40))
def test_the_coded_image_stands_between_the_others_and_on_none(n):
    images, coded = positions(n)
    assert images == pytest.approx([cos((2 * i + 1) * pi / (2 * n)) for i in range(n)])
    assert (np.diff(images) < 0).all()
    if n > 1:
        assert np.abs(images - coded).min() > 0.5 / n**2
        assert np.searchsorted(-images, -coded) == n // 2


@given(n=st.integers(1, 9), seed=st.integers(0, 99))
@settings(deadline=None)
def test_a_coded_picture_is_the_curve_at_its_place(n, seed):
    images = np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), dtype=np.uint8)
    found = BerrutEncoder(9, SHAPE).paste(list(images))
    assert found.dtype == np.uint8
    if n == 1:
        assert np.array_equal(found, images[0])
        return
    at, coded = positions(n)
    for pixel in range(0, images[0].size, 7):
        values = images.reshape(n, -1)[:, pixel].astype(float)
        exact = interpolant(list(zip(at.tolist(), values, strict=True)), coded)
        assert abs(int(found.reshape(-1)[pixel]) - min(255.0, max(0.0, exact))) <= 0.51


def test_images_that_are_absent_are_no_part_of_the_code():
    images = np.random.default_rng(1).integers(0, 256, (3, *SHAPE), dtype=np.uint8)
    encoder = BerrutEncoder(4, SHAPE)
    out = np.empty(SHAPE, np.uint8)
    assert encoder.paste([images[0], None, images[1], images[2]], out) is out
    assert np.array_equal(out, encoder.paste(list(images)))
    assert not encoder.paste([None] * 4).any()
    for cells in ([images[0]] * 5, [images[0][:2]]):
        with pytest.raises(DataFault):
            encoder.paste(cells)


@given(n=st.integers(2, 9), seed=st.integers(0, 99))
@settings(deadline=None)
def test_a_missing_answer_is_the_interpolant_of_the_others_at_its_image(n, seed):
    answers = np.random.default_rng(seed).normal(size=(n + 1, 4)).astype(np.float32)
    at, coded = positions(n)
    for place in range(n):
        there = [i for i in range(n) if i != place]
        nodes = [*(float(at[i]) for i in there), coded]
        values = [*answers[there], answers[n]]
        exact = [
            interpolant([(t, float(v[c])) for t, v in zip(nodes, values, strict=True)], at[place])
            for c in range(4)
        ]
        powers = np.exp(np.array(exact) - max(exact))
        found = parity_scores(answers[n], list(answers[there]), 1.0, place)
        assert found == pytest.approx(powers / powers.sum(), rel=1e-4, abs=1e-6)
        assert decode_parity(answers[n], list(answers[there]), 1.0, place)[0] == found.argmax()


def test_of_two_images_it_is_the_mean_and_twice_it_less_the_other():
    assert coding_weights(2) == pytest.approx([0.5, 0.5])
    for place in range(2):
        assert missing_weights(2, place) == pytest.approx([-1, 2])


def test_a_stripe_of_one_is_the_image_itself():
    answer = np.float32([0.5, 2.0])
    label, score = decode_parity(answer, [], 1.0, 0)
    assert (label, score) == (1, pytest.approx(1 / (1 + np.exp(-1.5))))


def test_no_network_is_trained_for_it():
    record = ParitySpec(3, "berrut", "logits", "ab").to_dict()
    with pytest.raises(DataFault, match="no network is trained for encoder berrut"):
        ParitySpec.from_dict(record)
    with pytest.raises(UsageError, match="encoder is 'other'"):
        ParitySpec(3, "other", "logits", "ab")

"""Stripes into pictures, and what of a parity network's answer is left for the missing image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collage_mpi.encoding import ENCODERS, SUMMED
from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.decode import FLOOR, decode, decode_parity, summands
from collage_mpi.encoding.grid import Grid
from collage_mpi.encoding.stripe import make_stripe_encoder
from collage_mpi.errors import DataFault, UsageError

SHAPE = (8, 8, 3)


def make_images(n: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(n).integers(0, 256, (n, *shape), dtype=np.uint8)


@given(k=st.integers(2, 9), present=st.lists(st.booleans(), max_size=9))
def test_the_sum_is_the_rounded_mean_of_k_whoever_is_there(k, present):
    present = present[:k]
    images = make_images(9)
    cells = [images[i] if here else None for i, here in enumerate(present)]
    shown = [image.astype(float) for image in cells if image is not None]
    found = make_stripe_encoder("sum", k, SHAPE).paste(cells)
    exact = sum(shown, np.zeros(SHAPE)) / k
    assert found.dtype == np.uint8
    assert np.abs(found - exact).max() <= 0.5


def test_the_smallest_images_that_are_pasted_are_as_wide_as_their_side():
    assert make_stripe_encoder("concat", 4, (2, 3, 1)).cell_shape == (1, 1, 1)
    with pytest.raises(DataFault, match="too small for 2 x 2"):
        make_stripe_encoder("concat", 4, (1, 3, 1))


def test_256_white_images_are_white():
    encoder = make_stripe_encoder("sum", 256, (1, 1, 1))
    assert encoder.paste([np.full((1, 1, 1), 255, np.uint8)] * 256) == 255


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_concat_is_a_small_collage_with_the_rest_blank(k):
    images = make_images(k)
    encoder = make_stripe_encoder("concat", k, SHAPE)
    side = 2 if k < 5 else 3
    collage = Encoder(Grid(side, 8 // side), SHAPE)
    found = encoder.paste(list(encoder.shrink(images)))
    assert np.array_equal(found, collage.paste(list(collage.shrink(images))))
    assert found.shape == encoder.input_shape == (8 // side * side, 8 // side * side, 3)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("k", [2, 3, 5])
def test_many_at_once_are_what_one_at_a_time_is(name, k):
    encoder = make_stripe_encoder(name, k, SHAPE)
    cells = encoder.shrink(make_images(4 * k)).reshape(4, k, *encoder.cell_shape)
    one_by_one = [encoder.paste(list(stripe)) for stripe in cells]
    assert np.array_equal(encoder.paste_many(cells), one_by_one)


@pytest.mark.parametrize("name", ENCODERS)
def test_what_cannot_be_encoded_is_refused(name):
    encoder = make_stripe_encoder(name, 2, SHAPE)
    small = np.zeros((1, 1, 3), np.uint8)
    for cells in ([small] * 3, [small], [np.zeros(encoder.cell_shape)]):
        with pytest.raises(DataFault):
            encoder.paste(cells)
    for k in (1, 257):
        with pytest.raises(UsageError, match="2 to 256"):
            make_stripe_encoder(name, k, SHAPE)
    with pytest.raises(UsageError, match="sum, concat"):
        make_stripe_encoder("product", 2, SHAPE)
    with pytest.raises(DataFault, match="too small"):
        make_stripe_encoder("concat", 100, SHAPE)


@pytest.mark.parametrize("summed", SUMMED)
@given(data=st.data())
def test_the_sum_less_the_others_is_the_missing_one(summed, data):
    raw = data.draw(st.lists(st.floats(-6, 6), min_size=12, max_size=12))
    powers = np.exp(np.array(raw, np.float32).reshape(3, 4))
    scores = powers / powers.sum(axis=1, keepdims=True)
    each = summands(scores, summed)
    label, score = decode_parity(each.sum(axis=0), list(each[1:]), 1.0) or (0, 0.0)
    ranked = np.sort(np.maximum(scores[0], FLOOR))
    if ranked[-1] > 1.01 * ranked[-2]:
        assert label == decode(scores)[0][0]
    assert 0 < score <= 1
    if summed == "logits" and scores.min() > FLOOR:
        assert score == pytest.approx(float(scores[0].max()), rel=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sum_that_is_not_finite_says_nothing(bad):
    total = np.array([0.0, bad, 1.0], np.float32)
    assert decode_parity(total, [np.zeros(3, np.float32)], 1.0) is None

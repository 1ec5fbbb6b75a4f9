"""Decoding: the class of each cell, or none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from collage_mpi.encoding.collage import decode
from collage_mpi.errors import DataFault

scores = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
)


@given(scores)
def test_an_answer_is_a_real_maximum_or_absent(values: np.ndarray) -> None:
    answers = decode(values)
    assert len(answers) == len(values)
    for row, answer in zip(values, answers, strict=True):
        usable = np.isfinite(row).all() and row.max() > 0
        assert (answer is not None) == bool(usable)
        if answer is not None:
            label, score = answer
            assert score == row.max() == row[label]
            assert label == int(np.flatnonzero(row == row.max())[0])


def test_plain_types_come_out() -> None:
    answer = decode(np.array([[0.25, 0.75]], dtype=np.float32))[0]
    assert answer == (1, 0.75)
    assert type(answer[0]) is int
    assert type(answer[1]) is float


def test_no_cells_give_no_answers() -> None:
    assert decode(np.zeros((0, 10), dtype=np.float32)) == []


@pytest.mark.parametrize("shape", [(3,), (3, 0), (1, 3, 2)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataFault, match="cells, classes"):
        decode(np.zeros(shape, dtype=np.float32))

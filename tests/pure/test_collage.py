"""Encoding: every image in its cell, blanks elsewhere. Decoding: the class of each cell or none."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from collage_mpi.encoding.collage import BLANK, Encoder, decode
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import DataFault

pytest.importorskip("torch")  # imported here: a timed test must not wait for it


@given(
    data=st.data(), side=st.integers(2, 4), px=st.integers(1, 6), channels=st.sampled_from([1, 3])
)
def test_full_size_cells_are_copied(data: st.DataObject, side: int, px: int, channels: int) -> None:
    grid = Grid(side, px)
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    present = data.draw(st.lists(st.booleans(), max_size=grid.cells))
    images = [
        random.integers(1, 256, (px, px, channels), dtype=np.uint8) if here else None
        for here in present
    ]
    out = np.full((grid.px, grid.px, channels), 77, dtype=np.uint8)
    collage = Encoder(grid, (px, px, channels)).paste(images, out=out)
    assert collage is out
    for cell in range(grid.cells):
        image = images[cell] if cell < len(images) else None
        expected = np.full((px, px, channels), BLANK) if image is None else image
        assert (collage[grid.box(cell)] == expected).all()


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    px=st.integers(1, 20),
    channels=st.sampled_from([1, 3]),
    value=st.integers(0, 255),
)
def test_resizing_keeps_a_flat_colour(
    height: int, width: int, px: int, channels: int, value: int
) -> None:
    image = np.full((height, width, channels), value, dtype=np.uint8)
    encoder = Encoder(Grid(2, px), image.shape)
    collage = encoder.paste([None, encoder.shrink(image)])
    assert collage.shape == (2 * px, 2 * px, channels)
    assert (collage[:px, px:] == value).all()
    assert (collage[:px, :px] == BLANK).all()


def test_shrinking_averages_instead_of_dropping_pixels() -> None:
    stripes = np.zeros((32, 32, 1), dtype=np.uint8)
    stripes[:, ::2] = 200
    small = Encoder(Grid(2, 8), stripes.shape).shrink(stripes)
    assert 90 <= small[:, 1:-1].mean() <= 110
    assert small[:, 1:-1].std() < 5


@pytest.mark.parametrize("shape", [(40, 31, 3), (28, 28, 1)])
@pytest.mark.parametrize("px", [20, 45])
def test_a_batch_is_its_images_and_pillow_agrees(shape: tuple[int, int, int], px: int) -> None:
    from PIL import Image

    encoder = Encoder(Grid(2, px), shape)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, *shape), dtype=np.uint8)
    images.flags.writeable = False
    cells = encoder.shrink(images)
    assert cells.shape == (2, 3, px, px, shape[2])
    assert np.array_equal(cells[1, 2], encoder.shrink(images[1, 2]))
    plain = Image.fromarray(images[0, 1].squeeze())
    pillow = np.asarray(plain.resize((px, px), Image.Resampling.BILINEAR))
    assert np.abs(cells[0, 1].squeeze().astype(int) - pillow).max() <= 1


def test_what_does_not_fit_is_refused() -> None:
    encoder = Encoder(Grid(2, 4), (4, 4, 1))
    good = np.zeros((4, 4, 1), dtype=np.uint8)
    with pytest.raises(DataFault, match="5 images for the 4 cells"):
        encoder.paste([good] * 5)
    with pytest.raises(DataFault, match="needed"):
        encoder.shrink(np.zeros((4, 5, 1), dtype=np.uint8))
    with pytest.raises(DataFault, match="float32"):
        encoder.shrink(good.astype(np.float32))
    with pytest.raises(DataFault, match=r"a cell is \(4, 3, 1\)"):
        encoder.paste([good[:, :3]])
    with pytest.raises(DataFault, match=r"a cell is .* float32"):
        encoder.paste([good.astype(np.float32)])
    with pytest.raises(DataFault, match="out is"):
        encoder.paste([good], out=np.zeros((8, 8, 3), dtype=np.uint8))
    with pytest.raises(DataFault, match=r"needs \(H, W, C\)"):
        Encoder(Grid(2, 4), (4, 4))


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

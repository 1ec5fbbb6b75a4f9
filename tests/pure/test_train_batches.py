"""Training batches: split, augmentation, blanks, and the same again after a resume."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collage_mpi.encoding.collage import BLANK, Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.models.architecture import (
    Architecture,
    default_architecture,
    parse_stages,
    parse_stem,
)
from collage_mpi.training.settings import TrainSettings
from collage_mpi.training.sources import (
    BatchMaker,
    draw_moves,
    move,
    plain_batches,
    random_presence,
    split,
)


def make_settings(kind: str = "collage", **changes: object) -> TrainSettings:
    values: dict[str, object] = {"kind": kind, "architecture": default_architecture(kind, 8)}
    if kind == "collage":
        values.update(side=2, cell_px=6)
    return TrainSettings(**{**values, "batch": 3, **changes})  # type: ignore[arg-type]


def make_images(n: int, px: int = 6) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(n) % 5
    images = np.zeros((n, px, px, 1), dtype=np.uint8)
    images[:] = (labels + 1)[:, None, None, None]  # the grey level tells the class
    return images, labels.astype(np.int64)


@given(count=st.integers(20, 500), share=st.floats(0.05, 0.5), seed=st.integers(0, 9))
def test_split_is_disjoint_and_complete(count: int, share: float, seed: int) -> None:
    used, held = split(count, share, seed)
    assert sorted([*used, *held]) == list(range(count))
    assert len(held) == round(count * share)
    assert (split(count, share, seed)[1] == held).all()


def test_split_of_too_few_images_is_refused() -> None:
    with pytest.raises(DataFault, match="cannot be split"):
        split(3, 0.05, 0)


def test_many_collages_are_pasted_as_each_alone() -> None:
    images = np.random.default_rng(0).integers(0, 256, (18, 5, 5, 3), dtype=np.uint8)
    encoder = Encoder(Grid(3, 5), (5, 5, 3))
    expected = [encoder.paste(list(images[:9])), encoder.paste(list(images[9:]))]
    assert (encoder.paste_many(images.reshape(2, 9, 5, 5, 3)) == np.stack(expected)).all()


@given(seed=st.integers(0, 99), step=st.integers(0, 3))
def test_a_batch_shows_its_labels_and_blanks(seed: int, step: int) -> None:
    images, labels = make_images(60)
    maker = BatchMaker(images, labels, make_settings(seed=seed, shift_px=0, blank_share=0.5))
    batch = maker.make(maker.order(0)[step], 0, step)
    assert batch.pixels.shape == (3, 12, 12, 1)
    grid = Grid(2, 6)
    for row in range(3):
        for cell in range(4):
            value = batch.pixels[row][grid.box(cell)]
            shown = batch.labels[row, cell] + 1 if batch.present[row, cell] else BLANK
            assert (value == shown).all()


def test_batches_are_a_function_of_seed_epoch_and_step() -> None:
    images, labels = make_images(60)
    first, second = (BatchMaker(images, labels, make_settings(seed=3)) for _ in range(2))
    one, other = (maker.make(maker.order(2)[4], 2, 4) for maker in (first, second))
    assert (one.pixels == other.pixels).all()
    assert (first.order(0) != first.order(1)).any()
    assert len(np.unique(first.order(0))) == first.order(0).size


def test_small_sets_make_smaller_batches() -> None:
    images, labels = make_images(9)
    maker = BatchMaker(images, labels, make_settings(batch=100))
    assert (maker.steps_per_epoch, maker.per_step) == (1, 8)
    with pytest.raises(DataFault, match="one collage needs 4"):
        BatchMaker(images[:3], labels[:3], make_settings())


def augment(images: np.ndarray, seed: int, flips: bool, shift_px: int) -> np.ndarray:
    drawn = draw_moves(np.random.default_rng(seed), len(images), flips, shift_px)
    return move(images, drawn, shift_px)


@given(st.integers(0, 99))
def test_augment_moves_and_mirrors_but_adds_nothing(seed: int) -> None:
    image = np.zeros((1, 9, 9, 1), dtype=np.uint8)
    image[0, 4, 3:6, 0] = [1, 2, 3]
    moved = augment(image.repeat(8, axis=0), seed, flips=True, shift_px=2)
    for one in moved[..., 0]:
        row, column = np.argwhere(one == 2)[0]
        assert abs(row - 4) <= 2
        assert abs(column - 4) <= 2
        assert sorted(one[one > 0].tolist()) == [1, 2, 3]
        assert {one[row, column - 1], one[row, column + 1]} == {1, 3}


def test_augment_can_be_off() -> None:
    images, _ = make_images(4)
    images[:, 0, 0] = 9
    same = augment(images, 0, flips=False, shift_px=0)
    assert (same == images).all()


def test_presence_keeps_at_least_one_image() -> None:
    present = random_presence(np.random.default_rng(0), 4000, 9, 0.5)
    assert present.any(axis=1).all()
    assert 0.45 < (~present.all(axis=1)).mean() < 0.55
    at_end = [(np.diff(row.astype(int)) <= 0).all() for row in present if not row.all()]
    assert np.mean(at_end) > 0.4
    assert random_presence(np.random.default_rng(0), 50, 9, 0.0).all()


def test_plain_batches_hold_every_image_once() -> None:
    images, labels = make_images(10)
    batches = plain_batches(images, labels, make_settings())
    found = np.concatenate([batch.labels[batch.present] for batch in batches])
    assert (found == labels).all()
    assert sum(len(batch.pixels) for batch in batches) == 3
    assert plain_batches(images, labels, make_settings("single"))[0].pixels.shape[0] == 10


def test_collage_cells_are_shrunk_once() -> None:
    images, labels = make_images(8, px=12)
    maker = BatchMaker(images, labels, make_settings())
    assert maker.images.shape == (8, 6, 6, 1)


def test_one_cycle_rises_then_falls() -> None:
    rate_at = make_settings("single", learning_rate=0.1).learning_rate_at
    rates = [rate_at(step, 100) for step in range(100)]
    top = int(np.argmax(rates))
    assert 15 <= top <= 25
    assert max(rates) == pytest.approx(0.1, rel=0.02)
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    assert rates[-1] == pytest.approx(1e-4)
    assert rate_at(0, 1) > 0


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("batch", 0), ("learning_rate", 0.0), ("validation_share", 1.0),
     ("blank_share", -0.1), ("shift_px", -1), ("precision", "float8"), ("kind", "double")],
)  # fmt: skip
def test_impossible_settings_are_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError):
        make_settings(**{name: value})


def test_stages_and_stems_are_read() -> None:
    stages = parse_stages("48x1, 96x2/2")
    assert [(s.width, s.blocks, s.stride) for s in stages] == [(48, 1, 1), (96, 2, 2)]
    stem = parse_stem(default_architecture("single"), "64x4/2")
    assert (stem.stem_width, stem.stem_kernel, stem.stem_stride) == (64, 4, 2)
    for text in ("48", "x", "48x1,,48x1", ""):
        with pytest.raises(UsageError, match="WIDTHxBLOCKS"):
            parse_stages(text)
    for text in ("48x0", "48x1/9", "0x1"):
        with pytest.raises(UsageError, match="stage"):
            Architecture(48, 3, 1, parse_stages(text))
    with pytest.raises(UsageError, match="WIDTHxKERNEL"):
        parse_stem(default_architecture("single"), "wide")

"""The order of a run: a permutation that is computed in both directions, or an older run's list."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory import peak_bytes

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.shards.order import (
    BLOCK,
    Listed,
    Order,
    Permutation,
    Shuffle,
    gaps,
    read_numbers,
)

N = 90_000


def everything(order: Order) -> np.ndarray:
    return order.indices(range(len(order)))


def test_each_number_of_images_has_a_permutation_and_its_inverse() -> None:
    for images in range(400):
        shuffle, every = Shuffle(images, 5), np.arange(images)
        found = shuffle.indices(every)
        assert sorted(found.tolist()) == every.tolist()
        assert (shuffle.positions(found) == every).all()


@given(images=st.integers(1, 1 << 40), seed=st.integers(0, 1 << 70), data=st.data())
def test_an_image_of_a_huge_input_is_found_again(images: int, seed: int, data) -> None:  # type: ignore[no-untyped-def]
    at = data.draw(st.lists(st.integers(0, images - 1), min_size=1, max_size=9, unique=True))
    shuffle = Shuffle(images, seed)
    found = shuffle.indices(np.array(at))
    assert len({*found.tolist()}) == len(at)
    assert 0 <= found.min() <= found.max() < images
    assert shuffle.positions(found).tolist() == at


def test_a_seed_means_the_same_permutation_for_ever() -> None:
    """A resumed run relies on it: other numbers need another `Shuffle.version`."""
    assert Shuffle.version == 1
    assert Shuffle(12, 0).indices(np.arange(12)).tolist() == [4, 3, 11, 5, 10, 0, 8, 1, 6, 9, 2, 7]
    found = Shuffle(10**9, 7).indices(np.arange(4))
    assert found.tolist() == [722338165, 791774074, 119908949, 948902466]


def off(counts: np.ndarray, free: int) -> float:
    """Chi-square of counts that should be equal, in standard deviations from its mean.

    `free`: how many of the counts chance can choose.
    """
    expected = counts.sum() / counts.size
    chi_square = ((counts - expected) ** 2 / expected).sum()
    return float((chi_square - free) / (2 * free) ** 0.5)


@pytest.mark.parametrize("images", [N, 89_989, 2**16, 3_001])  # square, prime, power of two, few
def test_a_shuffle_is_like_one_by_chance(images: int) -> None:
    """Of shards sorted by class: no stretch of the run has more of a class than chance gives it,
    nor does an image tell where its neighbours, or those a row of the table away, come from."""
    for seed in range(4):
        shuffle = Shuffle(images, seed)
        rows, columns = (int(size) for size in shuffle._sizes)
        for way in (shuffle.indices, shuffle.positions):
            found = way(np.arange(images))
            table = np.histogram2d(found, np.arange(images), (16, 16))[0]
            assert abs(off(table, 15 * 15)) < 4
            for lag in (1, 2, rows, columns, 2 * columns, images // 2):
                steps = (found[lag:] - found[:-lag]) % images
                assert abs(off(np.histogram(steps, 64, (0, images))[0], 63)) < 4.5, lag
    assert (Shuffle(images, 0).indices(np.arange(images)) != found).mean() > 0.99


def test_groups_of_sorted_shards_mix_their_classes() -> None:
    labels = np.repeat(np.arange(100), N // 100)
    groups = labels[everything(Order(Shuffle(N, 0)))].reshape(-1, 9)  # (10,000, 9)
    different = 1 + (np.diff(np.sort(groups), axis=1) > 0).sum(axis=1)
    assert abs(different.mean() - 100 * (1 - 0.99**9)) < 0.02  # 8.65 by chance


def test_an_order_takes_no_memory_that_grows_with_the_input() -> None:
    def use() -> None:
        order = Order(Shuffle(10**10, 3)).part([(10**9, 2 * 10**9), (0, 10**9)])
        indices = order.indices(range(10**9 - 500, 10**9 - 500 + BLOCK))
        assert order.positions(indices)[[0, -1]].tolist() == [10**9 - 500, 10**9 + 523]

    assert peak_bytes(use) < 1_000_000


RANGES = st.lists(st.integers(0, 60), max_size=12, unique=True).map(sorted)


@given(edges=RANGES, again=RANGES, mixed=st.randoms())
def test_a_part_of_an_order_is_what_its_list_would_be(edges, again, mixed) -> None:  # type: ignore[no-untyped-def]
    for order in (Order(Shuffle(60, 1)), Order(Permutation(60)), Order(Listed.by_numpy(60, 1))):
        listed = everything(order)
        for cuts in (edges, again):
            cuts = [cut for cut in cuts if cut <= len(order)]
            ranges = [*zip(cuts[::2], cuts[1::2], strict=False)]
            mixed.shuffle(ranges)
            order = order.part(ranges)
            listed = np.concatenate([listed[:0], *(listed[slice(*each)] for each in ranges)])
        assert everything(order).tolist() == listed.tolist()
        assert order.positions(listed).tolist() == list(range(len(listed)))
        inside, positions = order.find(np.arange(60))
        assert np.flatnonzero(inside).tolist() == sorted(listed)
        assert listed[positions].tolist() == sorted(listed)


@pytest.mark.parametrize("limit", [200_000, 150_000, 1234])
def test_images_are_named_in_ascending_order_a_piece_at_a_time(limit: int) -> None:
    for permutation in (Shuffle(200_000, 1), Permutation(200_000)):
        order = Order(permutation, [(0, limit)])
        pieces = [*order.ascending()]
        assert (np.concatenate(pieces) == np.sort(everything(order))).all()
        assert max(map(len, pieces)) <= 1 << 16


def test_gaps_are_what_no_range_holds() -> None:
    assert gaps([(0, 2), (5, 7)], 9) == [(2, 5), (7, 9)]
    assert gaps([], 3) == [(0, 3)]
    assert gaps([(0, 3)], 3) == []


def test_an_image_that_is_not_in_an_order_has_no_position() -> None:
    with pytest.raises(ValueError, match="image 7 is not in this order"):
        Order(Permutation(9), [(0, 5)]).positions(np.array([3, 7]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no number; needed: numbers of images, one on each line"),
        ("3\nx 4", "has 'x'; needed: numbers of images"),
        ("-1", "has '-1'"),
        ("٣", "needed: numbers of images"),
        ("9\n10\n", "names an image beyond the last one, which is 9"),
        ("1" * 5_000, "names an image beyond the last one"),
        ("7 2\n3\n7\n", "names image 7 twice"),
    ],
)
def test_a_list_of_images_is_checked(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_text(text)
    with pytest.raises(DataFault, match=said):
        read_numbers(path, 10)
    path.write_text("7\n\n 2 9\r\n0")
    assert read_numbers(path, 10).tolist() == [0, 2, 7, 9]
    with pytest.raises(EnvironmentFault, match="cannot be read: it is a folder"):
        read_numbers(tmp_path, 10)

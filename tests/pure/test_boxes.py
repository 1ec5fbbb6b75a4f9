"""Boxes of a yolo head into cells: hand-made cases, and what always holds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from collage_mpi.encoding.collage import decode
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.models.architecture import REFERENCE_HEAD, HeadSpec, read_spec
from collage_mpi.models.collage_net import (
    CONFIDENCE,
    OVERLAP,
    boxes_from_map,
    cell_boxes,
    cells_from_boxes,
    jaccard,
    suppress,
)


def cells(*found: tuple[list[float], list[float]], side: int = 2) -> list[tuple[int, float] | None]:
    """Answers of (box, scores of 3 classes) pairs; scores rounded."""
    boxes = np.array([box for box, _ in found], dtype=np.float64).reshape(-1, 4)
    scores = np.array([score for _, score in found], dtype=np.float32).reshape(-1, 3)
    answers = decode(cells_from_boxes(boxes, scores, side))
    return [None if a is None else (a[0], round(a[1], 3)) for a in answers]


def test_no_box_no_answer() -> None:
    assert cells() == [None] * 4


def test_a_box_answers_its_cell() -> None:
    assert cells(([1, 0, 2, 1], [0.1, 0.8, 0])) == [None, (1, 0.8), None, None]


def test_of_two_boxes_in_a_cell_the_better_wins_with_its_class() -> None:
    for order in (1, -1):
        found = [([0, 0, 1, 1], [0.5, 0.1, 0]), ([0.05, 0, 1, 1], [0.1, 0.2, 0.7])][::order]
        assert cells(*found) == [(2, 0.7), None, None, None]


def test_a_box_between_cells_goes_where_most_of_it_is() -> None:
    assert cells(([0.6, 0, 1.6, 1], [0, 0.9, 0])) == [None, (1, 0.9), None, None]
    assert cells(([0.3, 0.4, 1.3, 1.4], [0, 0.9, 0])) == [(1, 0.9), None, None, None]
    # a wide box overlaps two cells alike; a small one within a cell belongs to that
    assert cells(([0.2, 1.2, 0.6, 1.6], [0, 0.9, 0])) == [None, None, (1, 0.9), None]


def test_a_box_beside_the_collage_is_in_no_cell() -> None:
    assert cells(([5, 5, 6, 6], [0, 0.9, 0]), ([2, 0, 3, 1], [0.9, 0, 0])) == [None] * 4


def test_a_weak_box_is_none() -> None:
    weak = float(np.nextafter(np.float32(CONFIDENCE), np.float32(0)))
    assert cells(([0, 0, 1, 1], [weak, 0, 0])) == [None] * 4
    assert cells(([0, 0, 1, 1], [CONFIDENCE + 1e-6, 0, 0]))[0] == (0, 0.3)


def test_a_stronger_box_of_the_class_takes_the_weaker_away() -> None:
    """The weaker lies more in the next cell, but overlaps the stronger too much to stay."""
    strong, weak = [0.1, 0, 1.1, 1], [0.45, 0, 1.45, 1]
    assert jaccard(np.array([strong]), np.array([weak]))[0, 0] > OVERLAP
    assert cells((strong, [0.9, 0, 0]), ([0.55, 0, 1.55, 1], [0.8, 0, 0])) == [
        (0, 0.9),
        (0, 0.8),  # overlap 0.38: it stays
        None,
        None,
    ]
    wide = [0.1, 0, 1.6, 1]  # most like cell 0
    taken = [0.45, 0, 1.6, 1]  # most like cell 1, overlap 0.77 with the wide one
    assert cells((wide, [0.9, 0, 0]), (taken, [0.8, 0, 0])) == [(0, 0.9), None, None, None]
    assert cells((wide, [0.9, 0, 0]), (taken, [0, 0.8, 0]))[1] == (1, 0.8)  # another class stays


def test_boxes_that_are_not_finite_are_none() -> None:
    found = [([0, 0, np.nan, 1], [0.9, 0, 0]), ([1, 0, 2, 1], [np.nan, 0.9, 0])]
    assert cells(*found) == [None] * 4


def test_jaccard_of_known_boxes() -> None:
    one = np.array([[0.0, 0, 2, 2]])
    other = np.array([[0.0, 0, 2, 2], [1, 1, 3, 3], [4, 4, 5, 5], [1, 1, 1, 1]])
    assert jaccard(one, other)[0] == pytest.approx([1, 1 / 7, 0, 0])


def test_a_map_without_offsets_gives_the_anchors_at_the_squares() -> None:
    raw = np.zeros((6, 6, 2, 5 + 3), dtype=np.float32)
    raw[1, 4, 1, 4], raw[1, 4, 1, 5:] = 9.0, (0, 1, 2)
    anchors = np.array([[1.0, 1.0], [0.5, 2.0]])
    boxes, objectness, logits = boxes_from_map(raw, 2, anchors)
    assert (boxes.shape, objectness.shape, logits.shape) == ((72, 4), (72,), (72, 3))
    number = (1 * 6 + 4) * 2 + 1  # row by row, anchors last
    assert boxes[number] == pytest.approx([1.5 - 0.25, 0.5 - 1, 1.5 + 0.25, 0.5 + 1])
    assert objectness[number] == pytest.approx(1 / (1 + np.exp(-9)))
    assert logits[number].tolist() == [0, 1, 2]
    assert boxes[number - 1] == pytest.approx(cell_boxes(2)[1])  # the first anchor is the cell


@pytest.mark.parametrize("head", [HeadSpec("yolo"), REFERENCE_HEAD])
@pytest.mark.parametrize("side", [2, 3, 4, 5])
def test_what_training_asks_for_is_read_as_each_cells_answer(head: HeadSpec, side: int) -> None:
    """The outputs of loss nothing decode into every cell's own class, on 13 x 13 squares too."""
    torch = pytest.importorskip("torch")
    from collage_mpi.models.collage_net import yolo_scores
    from collage_mpi.training.loop import Labels, YoloObjective
    from collage_mpi.training.sources import TrainBatch

    cells, classes, edge = side * side, side * side + 1, head.map_size(side)
    objective = YoloObjective(Labels(0.0), head, side)
    outputs = torch.zeros(1, edge, edge, len(head.anchors), 5 + classes)
    outputs[..., 4] = -20
    square = (0, objective.rows, objective.columns, objective.anchor)
    outputs[(*square, slice(0, 2))] = torch.logit(objective.boxes[:, :2])
    outputs[(*square, slice(2, 4))] = objective.boxes[:, 2:]
    outputs[(*square, 4)] = 20
    wanted = np.arange(cells)[None] + 1
    outputs[(*square, slice(5, None))] = 30 * torch.eye(classes)[wanted[0]]
    here = np.ones((1, cells), dtype=bool)
    pixels = np.zeros((1, 1, 1, 1), np.uint8)
    batch = TrainBatch(pixels, wanted, here, np.zeros((1, cells), np.int64))
    assert float(objective.loss(outputs, batch)) < 1e-4
    scores = yolo_scores(head, side, outputs, 1.0)[0]
    assert scores.argmax(1).tolist() == wanted[0].tolist()
    assert scores.max(1).min() > 0.99
    boxes, objectness, _ = boxes_from_map(outputs[0].numpy(), side, np.array(head.anchors))
    np.testing.assert_allclose(boxes[objectness > 0.5], cell_boxes(side), atol=1e-5)


@given(
    boxes=hnp.arrays(np.float64, (12, 4), elements=st.floats(-1, 4)),
    scores=hnp.arrays(np.float32, (12, 3), elements=st.floats(0, 1, width=32)),
    side=st.integers(2, 4),
)
def test_an_answer_is_the_row_of_a_box_that_passed(
    boxes: np.ndarray, scores: np.ndarray, side: int
) -> None:
    found = cells_from_boxes(boxes, scores, side)
    assert found.shape == (side * side, 3)
    for row in found:
        if row.max() > 0:
            assert row.max() >= np.float32(CONFIDENCE)
            assert (scores == row).all(axis=1).any()


@given(boxes=hnp.arrays(np.float64, (10, 4), elements=st.floats(0, 3)), seed=st.integers(0, 99))
def test_what_is_suppressed_has_a_stronger_rival_that_stays(boxes: np.ndarray, seed: int) -> None:
    random = np.random.default_rng(seed)
    confidence, classes = random.random(10), random.integers(0, 2, 10)
    kept = suppress(boxes, confidence, classes)
    overlap = jaccard(boxes, boxes)
    for i in range(10):
        stronger = kept & (confidence > confidence[i]) & (classes == classes[i])
        assert kept[i] != bool((overlap[i][stronger] > OVERLAP).any())


def test_head_records_are_checked() -> None:
    spec = HeadSpec("yolo", 3, ((1.0, 1.0), (0.5, 0.75)))
    assert read_spec(HeadSpec, "head", spec.to_dict()) == spec
    papers = HeadSpec("yolo", anchors=((1.0, 1.0),), across=13)
    assert read_spec(HeadSpec, "head", papers.to_dict()) == papers
    assert (spec.map_size(4), papers.map_size(4)) == (12, 13)
    assert HeadSpec("apart").to_dict() == {"name": "apart"}
    assert read_spec(HeadSpec, "head", {"name": "grid"}) == HeadSpec()
    bad: list[object] = [
        {"name": "mask"},
        {"name": "yolo", "squares": 2},
        {"name": "yolo", "across": 0},
        {"name": "yolo", "across": 13.0},
        {"name": "yolo", "anchors": [[1]]},
        {"name": "yolo", "anchors": []},
        {"name": "yolo", "anchors": [[0, 1]]},
        {"name": "yolo", "anchors": 7},
        {"other": 1},
        "yolo",
        7,
    ]
    for record in bad:
        with pytest.raises(DataFault, match="head record"):
            read_spec(HeadSpec, "head", record)
    with pytest.raises(UsageError, match="the heads are grid, apart, yolo"):
        HeadSpec("mask")

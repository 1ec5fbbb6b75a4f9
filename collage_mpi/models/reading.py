"""Turns a network's outputs into scores, with one interface for every head. The boxes of a yolo
head are assigned to cells by the rules of the paper (arXiv 1904.12222).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from collage_mpi.models.info import NetworkInfo
from collage_mpi.models.specs import YOLO, HeadSpec

CONFIDENCE = 0.3  # boxes with a lower score are dropped
OVERLAP = 0.45  # if two boxes of a class have a larger intersection over union, one is dropped


def cells_from_boxes(boxes: np.ndarray, scores: np.ndarray, side: int) -> np.ndarray:
    """The answers for the cells of one collage.

    Each box with a score of at least CONFIDENCE goes to the cell with the largest intersection over
    union (Jaccard index). If a cell has several boxes, the one with the highest score counts.

    Args:
        boxes: (m, 4) float, x0, y0, x1, y1 in cells.
        scores: (m, classes) float32, objectness times the probability of each class.
        side: cells along an edge.

    Returns:
        (side*side, classes) float32: the scores of the box; zeros for a cell without a box.
    """
    cells = np.zeros((side * side, scores.shape[1]), dtype=np.float32)
    best = scores.max(axis=1)  # (m,)
    with np.errstate(invalid="ignore"):
        passed = (best >= CONFIDENCE) & np.isfinite(boxes).all(axis=1) & np.isfinite(best)
    boxes, scores, best = boxes[passed], scores[passed], best[passed]
    kept = suppress(boxes, best, scores.argmax(axis=1))
    boxes, scores, best = boxes[kept], scores[kept], best[kept]
    shared = jaccard(boxes, cell_boxes(side))  # (m, cells)
    within = shared.max(axis=1, initial=0.0) > 0  # boxes outside the collage are in no cell
    rising = np.argsort(best[within], kind="stable")  # the best box writes its cell last
    owner = shared[within].argmax(axis=1)
    cells[owner[rising]] = scores[within][rising]
    return cells


def suppress(boxes: np.ndarray, confidence: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Greedy non-maximum suppression within each class. Returns (m,) bool, the boxes to keep.

    Args:
        boxes: (m, 4).
        confidence: (m,), the score of each box.
        classes: (m,) int.
    """
    rivals = (jaccard(boxes, boxes) > OVERLAP) & (classes[:, None] == classes)  # (m, m)
    kept = np.ones(len(boxes), dtype=bool)
    order = np.argsort(-confidence, kind="stable")
    for place, number in enumerate(order):
        if kept[number]:
            kept[order[place + 1 :]] &= ~rivals[number, order[place + 1 :]]
    return kept


def jaccard(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(m, k) intersection over union of (m, 4) and (k, 4) boxes."""
    low = np.maximum(one[:, None, :2], other[None, :, :2])
    high = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)  # (m, k)
    areas = [np.clip(b[:, 2:] - b[:, :2], 0, None).prod(axis=1) for b in (one, other)]
    union = areas[0][:, None] + areas[1] - shared
    found: np.ndarray = shared / np.maximum(union, 1e-12)
    return found


def cell_boxes(side: int) -> np.ndarray:
    """(side*side, 4) float64: the box of each cell."""
    rows, columns = np.divmod(np.arange(side * side), side)
    return np.stack([columns, rows, columns + 1, rows + 1], axis=1).astype(np.float64)


def boxes_from_map(
    raw: np.ndarray, side: int, anchors: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode the map of a yolo head: (m, 4) boxes, (m,) objectness, (m, classes) logits.

    The centre of a box is within its square, and its size is that of its anchor times exp(t), as in
    YOLOv3 (arXiv 1804.02767).

    Args:
        raw: (rows, columns, anchors, 5 + classes) float32: tx, ty, tw, th, objectness, classes.
        side: cells along an edge.
        anchors: (anchors, 2) widths and heights in cells.
    """
    rows, columns = raw.shape[:2]
    corner = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=2)  # (rows, cols, 2)
    centre = (corner[:, :, None] + sigmoid(raw[..., :2])) * (side / np.array([columns, rows]))
    half = anchors * np.exp(np.clip(raw[..., 2:4], -8, 8)) / 2
    boxes = np.concatenate([centre - half, centre + half], axis=3)  # (rows, columns, anchors, 4)
    return (
        boxes.reshape(-1, 4),
        sigmoid(raw[..., 4]).reshape(-1),
        raw[..., 5:].reshape(-1, raw.shape[3] - 5),
    )


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The logistic function, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x))


# Outputs of a network and temperature -> (n, cells, classes) float32 probabilities. A cell without
# an answer is a row of zeros.
Reading = Callable[[Tensor, float], np.ndarray]


def grid_scores(outputs: Tensor, temperature: float) -> np.ndarray:
    """Scores from (n, cells, classes) logits, of a single network or a grid head."""
    return torch.softmax(outputs / temperature, dim=2).cpu().numpy()  # .cpu() waits


def yolo_scores(head: HeadSpec, side: int, outputs: Tensor, temperature: float) -> np.ndarray:
    """Scores from the outputs of a yolo head, (n, rows, columns, anchors, 5 + classes).

    The score of a class is the objectness of the box times the probability of the class.
    """
    collages = []
    for raw in outputs.float().cpu().numpy():
        boxes, objectness, logits = boxes_from_map(raw, side, np.array(head.anchors))
        scaled = logits / temperature
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)  # (m, classes)
        collages.append(cells_from_boxes(boxes, objectness[:, None] * probabilities, side))
    return np.stack(collages)


def reading_of(info: NetworkInfo) -> Reading:
    """The function that turns a network's outputs into scores."""
    if info.side is None or info.head.name != YOLO:
        return grid_scores
    return partial(yolo_scores, info.head, info.side)

"""Turns a network's outputs into scores, by one interface for every head."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from collage_mpi.models.boxes import boxes_from_map, cells_from_boxes
from collage_mpi.models.heads import YOLO, HeadSpec
from collage_mpi.models.info import NetworkInfo


class Reading(Protocol):
    """How the outputs of a network are read."""

    def scores(self, outputs: Tensor, temperature: float) -> np.ndarray:
        """(n, cells, classes) float32 probabilities; a row of zeros for a cell without an
        answer.
        """
        ...


class GridReading:
    """A single classifier's outputs, or a grid head's: (n, cells, classes) logits."""

    def scores(self, outputs: Tensor, temperature: float) -> np.ndarray:
        return torch.softmax(outputs / temperature, dim=2).cpu().numpy()  # .cpu() waits


class SumReading:
    """The outputs of a parity network: (n, 1, classes) sums, which are not scores and stay
    unchanged.
    """

    def scores(self, outputs: Tensor, temperature: float) -> np.ndarray:
        return outputs.cpu().numpy()  # .cpu() waits


class YoloReading:
    """A yolo head's outputs: (n, rows, columns, anchors, 5 + classes).

    The score of a class is the box's objectness times the class's calibrated probability.
    """

    def __init__(self, head: HeadSpec, side: int) -> None:
        self.side = side
        self.anchors = np.array(head.anchors)  # (anchors, 2)

    def scores(self, outputs: Tensor, temperature: float) -> np.ndarray:
        raw = outputs.float().cpu().numpy()
        return np.stack([self._collage(one, temperature) for one in raw])

    def _collage(self, raw: np.ndarray, temperature: float) -> np.ndarray:
        boxes, objectness, logits = boxes_from_map(raw, self.side, self.anchors)
        scaled = logits / temperature
        powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        probabilities = powers / powers.sum(axis=1, keepdims=True)  # (m, classes)
        return cells_from_boxes(boxes, objectness[:, None] * probabilities, self.side)


def reading_of(info: NetworkInfo) -> Reading:
    """How a network is read."""
    head, side = info.head, info.side
    if info.parity is not None:
        return SumReading()
    if side is None or head.name != YOLO:
        return GridReading()
    return YoloReading(head, side)

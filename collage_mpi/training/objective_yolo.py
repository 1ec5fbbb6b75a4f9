"""The loss of a yolo head. It is known here which cells have images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from collage_mpi.models.reading import YoloReading, jaccard
from collage_mpi.models.specs import HeadSpec
from collage_mpi.training.batches import Batch
from collage_mpi.training.objective import Objective

BOX_WEIGHT = 5.0
# Most squares hold no centre: they count half, as in YOLO (arXiv 1506.02640).
EMPTY_WEIGHT = 0.5


class YoloObjective:
    """Loss of boxes, objectness and classes together.

    For each cell, the square with the cell's centre answers, with the anchor that is most like a
    cell.

    Args:
        classes: what is learned of the class logits of the answering boxes.
    """

    def __init__(self, classes: Objective, head: HeadSpec, side: int) -> None:
        self.classes = classes
        self.reading = YoloReading(head, side)
        anchors = np.array(head.anchors)  # (anchors, 2)
        self.anchor = likest_anchor(anchors)
        width, height = anchors[self.anchor]
        centre = (np.arange(side) + 0.5) * head.map_size(side) / side  # of a cell, in squares
        square = centre.astype(np.int64)
        self.rows = torch.from_numpy(np.repeat(square, side))  # (cells,)
        self.columns = torch.from_numpy(np.tile(square, side))
        across, down = np.tile(centre - square, side), np.repeat(centre - square, side)
        edges = np.full((2, side * side), [[-np.log(width)], [-np.log(height)]])  # of one cell
        self.boxes = torch.from_numpy(
            np.stack([across, down, *edges], axis=1)
        ).float()  # (cells, 4)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        present = torch.from_numpy(batch.present).to(outputs.device, torch.float32)  # (n, cells)
        own = outputs[:, self.rows, self.columns, self.anchor]  # (n, cells, 5 + classes)
        found = torch.cat([own[..., :2].sigmoid(), own[..., 2:4]], dim=2)
        boxes = ((found - self.boxes.to(outputs.device)) ** 2).sum(2) * present
        objectness = outputs[..., 4]
        wanted = torch.zeros_like(objectness)
        wanted[:, self.rows, self.columns, self.anchor] = present
        each = F.binary_cross_entropy_with_logits(objectness, wanted, reduction="none")
        objects = each * torch.where(wanted > 0, 1.0, EMPTY_WEIGHT)
        return (
            self.classes.loss(own[..., 5:].contiguous(), batch)
            + BOX_WEIGHT * boxes.sum()
            + objects.sum()
        )

    def logits(self, outputs: Tensor, batch: Batch) -> Tensor:
        scores = torch.from_numpy(self.reading.scores(outputs, 1.0))  # (n, cells, classes)
        absent = scores.amax(2, keepdim=True) <= 0
        return torch.where(absent, torch.nan, scores.clamp_min(1e-9).log())


def likest_anchor(anchors: np.ndarray) -> int:
    """The index among (anchors, 2) widths and heights of the box that is most like a cell."""
    boxes = np.concatenate([-anchors / 2, anchors / 2], axis=1)
    cell = np.array([[-0.5, -0.5, 0.5, 0.5]])
    return int(jaccard(boxes, cell)[:, 0].argmax())

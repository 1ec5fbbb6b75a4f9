"""The losses of training (`Objective`): from labels, a teacher's answers, and the boxes of a yolo
head.
"""

from __future__ import annotations

from functools import partial
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from collage_mpi.models.reading import jaccard, yolo_scores
from collage_mpi.models.specs import HeadSpec
from collage_mpi.training.batches import TrainBatch


class Objective(Protocol):
    """The loss that the training loop minimises."""

    def loss(self, outputs: Tensor, batch: TrainBatch) -> Tensor:
        """The sum of the losses over cells of the batch that are not blank. The loop divides it by
        their number.

        Args:
            outputs: the network's outputs for `batch.pixels`, float32.
        """
        ...

    def logits(self, outputs: Tensor, batch: TrainBatch) -> Tensor:
        """(n, cells, classes) float32 logits for validation. A row of NaN is a cell without an
        answer.
        """
        ...


class Labels:
    """The cross-entropy with the labels.

    Args:
        smoothing: label smoothing, the share of the target that is spread over all classes (arXiv
            1512.00567).
    """

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing

    def loss(self, outputs: Tensor, batch: TrainBatch) -> Tensor:
        labels = torch.from_numpy(batch.labels).to(outputs.device)
        each = F.cross_entropy(
            outputs.flatten(0, 1),
            labels.flatten(),
            reduction="none",
            label_smoothing=self.smoothing,
        )
        return (each * present_of(batch, outputs)).sum()

    def logits(self, outputs: Tensor, batch: TrainBatch) -> Tensor:
        return outputs


class Distilled(Labels):
    """Knowledge distillation: the loss has a part for the labels and a part for a teacher's
    probabilities (Hinton et al. 2015, arXiv 1503.02531).

    The second part softens both sides by a temperature t. Its factor t * t keeps the proportion of
    the gradients of both parts the same for every t.

    Args:
        smoothing: as in `Labels`, for the part with the labels.
        teacher_logits: (images, classes) float32, calibrated, a row for each training image.
        weight: of the part with the teacher, 0 to 1.
        temperature: t.
    """

    def __init__(
        self, smoothing: float, teacher_logits: np.ndarray, weight: float, temperature: float
    ) -> None:
        super().__init__(smoothing)
        self.weight, self.temperature = weight, temperature
        self._teacher = torch.from_numpy(np.asarray(teacher_logits, dtype=np.float32))

    def loss(self, outputs: Tensor, batch: TrainBatch) -> Tensor:
        rows = torch.from_numpy(batch.chosen).flatten()
        taught = (self._teacher[rows].to(outputs.device) / self.temperature).log_softmax(1)
        own = (outputs.flatten(0, 1) / self.temperature).log_softmax(1)  # (n*cells, classes)
        each = F.kl_div(own, taught, reduction="none", log_target=True).sum(1)
        soft = (each * present_of(batch, outputs)).sum() * self.temperature**2
        return (1 - self.weight) * super().loss(outputs, batch) + self.weight * soft


def present_of(batch: TrainBatch, outputs: Tensor) -> Tensor:
    """(n*cells,) float32 on the device of `outputs`: 1 for a cell with an image, 0 for a blank
    cell."""
    return torch.from_numpy(batch.present).to(outputs.device, torch.float32).flatten()


BOX_WEIGHT = 5.0
# Most squares have no cell's centre. They count half, as in YOLO (arXiv 1506.02640).
EMPTY_WEIGHT = 0.5


class YoloObjective:
    """The loss of a yolo head: of boxes, objectness and classes.

    For each cell, the box of the square with the cell's centre is trained, with the anchor whose
    size is nearest to that of a cell.

    Args:
        classes: the loss for the class logits of these boxes.
        head: of the network.
        side: cells along an edge of the collage.
    """

    def __init__(self, classes: Objective, head: HeadSpec, side: int) -> None:
        self.classes = classes
        self.reading = partial(yolo_scores, head, side)
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

    def loss(self, outputs: Tensor, batch: TrainBatch) -> Tensor:
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

    def logits(self, outputs: Tensor, batch: TrainBatch) -> Tensor:
        scores = torch.from_numpy(self.reading(outputs, 1.0))  # (n, cells, classes)
        absent = scores.amax(2, keepdim=True) <= 0
        return torch.where(absent, torch.nan, scores.clamp_min(1e-9).log())


def likest_anchor(anchors: np.ndarray) -> int:
    """The index of the anchor with the largest intersection over union with a cell.

    Args:
        anchors: (anchors, 2), widths and heights in cells.
    """
    boxes = np.concatenate([-anchors / 2, anchors / 2], axis=1)
    cell = np.array([[-0.5, -0.5, 0.5, 0.5]])
    return int(jaccard(boxes, cell)[:, 0].argmax())

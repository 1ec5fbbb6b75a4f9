"""The `Objective` interface, which gives the loss of a network's outputs on a batch, and two
objectives: labels, and labels together with a teacher's answers.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from collage_mpi.training.batches import Batch


class Objective(Protocol):
    """What the training loop minimises; the same loop trains every network of this package."""

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Sum of the losses of the batch's cells that are not blank. The loop divides by their
        number.

        Args:
            outputs: the network's outputs for `batch.pixels`, float32.
        """
        ...

    def logits(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(n, cells, classes) float32; their softmax are the answers, for validation.

        A row of NaN is a cell without an answer.
        """
        ...


class Labels:
    """Cross-entropy with the label of each cell.

    Args:
        smoothing: share of the target spread over all classes (arXiv 1512.00567).
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        labels = torch.from_numpy(batch.labels).to(outputs.device)
        each = F.cross_entropy(
            outputs.flatten(0, 1),
            labels.flatten(),
            reduction="none",
            label_smoothing=self.smoothing,
        )
        return (each * present_of(batch, outputs)).sum()

    def logits(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs


class Distilled:
    """Labels, and the probabilities that a teacher gives for the image of each cell.

    Hinton et al. 2015 (arXiv 1503.02531): both sides are softened by a temperature t. The factor t
    * t keeps the two parts of the gradient in proportion for every t.

    Args:
        labels: the part of the loss that uses the labels.
        teacher_logits: (images, classes) float32, calibrated, one row a training image.
        weight: of the teacher's part, 0 to 1.
        temperature: t.
    """

    def __init__(
        self, labels: Labels, teacher_logits: np.ndarray, weight: float, temperature: float
    ) -> None:
        self.labels, self.weight, self.temperature = labels, weight, temperature
        self._teacher = torch.from_numpy(np.asarray(teacher_logits, dtype=np.float32))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        rows = torch.from_numpy(batch.chosen).flatten()
        taught = (self._teacher[rows].to(outputs.device) / self.temperature).log_softmax(1)
        own = (outputs.flatten(0, 1) / self.temperature).log_softmax(1)  # (n*cells, classes)
        each = F.kl_div(own, taught, reduction="none", log_target=True).sum(1)
        soft = (each * present_of(batch, outputs)).sum() * self.temperature**2
        return (1 - self.weight) * self.labels.loss(outputs, batch) + self.weight * soft

    def logits(self, outputs: Tensor, batch: Batch) -> Tensor:
        return outputs


def present_of(batch: Batch, outputs: Tensor) -> Tensor:
    """(n*cells,) float32 on the outputs' device: 1 for a cell with an image, 0 for a blank one."""
    return torch.from_numpy(batch.present).to(outputs.device, torch.float32).flatten()

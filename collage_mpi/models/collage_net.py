"""The collage-CNN: one look at s*s images, s*s answers.

Owns: the fully convolutional collage network with the `grid` head, and the choice
of network by kind.
Does not know: how a collage is put together, weights files, training.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from collage_mpi.models.architecture import Architecture
from collage_mpi.models.resnet import ResNet, Trunk


class CollageNet(nn.Module):
    """(n, C, side*cell_px, side*cell_px) float -> (n, side*side, classes) logits.

    The features are pooled to side x side, one vector a cell, and one linear
    classifier, shared by all cells, reads each. There are no boxes to predict and
    none to suppress: where an image is in the collage is known.
    """

    def __init__(self, architecture: Architecture, channels: int, classes: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.trunk = Trunk(architecture, channels)
        self.classifier = nn.Linear(architecture.features, classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(self.trunk(x), self.side)  # (n, features, side, side)
        cells = pooled.flatten(2).transpose(1, 2)  # (n, side*side, features), row by row
        return self.classifier(cells)


def build_network(
    architecture: Architecture, channels: int, classes: int, side: int | None
) -> nn.Module:
    """The single classifier when side is None, else the collage-CNN. Fresh weights."""
    if side is None:
        return ResNet(architecture, channels, classes)
    return CollageNet(architecture, channels, classes, side)

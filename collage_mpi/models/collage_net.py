"""The collage-CNN: one look at s*s images, s*s answers.

Owns: the fully convolutional collage networks with the `grid` and the `yolo` head, and
the choice of network by kind.
Does not know: how a collage is put together, weights files, training, decoding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collage_mpi.errors import UsageError
from collage_mpi.models.architecture import Architecture
from collage_mpi.models.backbone import Backbone
from collage_mpi.models.heads import HeadSpec
from collage_mpi.models.resnet import ConvNorm, ResNet, Trunk


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
        found: Tensor = self.classifier(cells)
        return found


class YoloNet(nn.Module):
    """(n, C, side*cell_px, side*cell_px) -> (n, G, G, anchors, 5 + classes), G = squares*side.

    The paper's form of a collage network: it is not told where images are. Each square
    gives, for each anchor, a box, an objectness and class logits. Pooling to G x G leaves
    a third of a cell a square, so one more convolution looks at the squares around.
    """

    def __init__(
        self, architecture: Architecture, channels: int, classes: int, side: int, head: HeadSpec
    ) -> None:
        super().__init__()
        self.squares = head.squares * side
        self.anchors = len(head.anchors)
        self.trunk = Trunk(architecture, channels)
        width, norm = architecture.features, architecture.norm
        self.around = ConvNorm(width, width, kernel=3, stride=1, norm=norm)
        self.boxes = nn.Conv2d(width, self.anchors * (5 + classes), 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(self.trunk(x), self.squares)  # (n, features, G, G)
        out = self.boxes(torch.relu_(self.around(pooled)))  # (n, anchors*(5+classes), G, G)
        n, _, rows, columns = out.shape
        found: Tensor = out.permute(0, 2, 3, 1).reshape(n, rows, columns, self.anchors, -1)
        return found


def build_network(
    architecture: Architecture | Backbone,
    channels: int,
    classes: int,
    side: int | None,
    head: HeadSpec | None = None,
) -> nn.Module:
    """The single classifier when side is None, else the collage-CNN. Fresh weights.

    Args:
        head: of the collage-CNN; a grid when None.

    Raises:
        UsageError, EnvironmentFault: a backbone that cannot be built; see `vision`.
    """
    if isinstance(architecture, Backbone):
        return _build_backbone(architecture, classes, side, head)
    if side is None:
        return ResNet(architecture, channels, classes)
    if head is not None and head.name == "yolo":
        return YoloNet(architecture, channels, classes, side, head)
    return CollageNet(architecture, channels, classes, side)


def _build_backbone(
    backbone: Backbone, classes: int, side: int | None, head: HeadSpec | None
) -> nn.Module:
    from collage_mpi.models.vision import build_vision  # torchvision only where it is asked for

    if side is not None and head is not None and head.name != "grid":
        raise UsageError(f"backbone {backbone.name} takes the grid head only: leave --head out")
    return build_vision(backbone, classes, side)

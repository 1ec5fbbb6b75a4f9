"""The collage networks, which classify side * side images in one call, and `build_network`, which
builds the network of a weights file.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collage_mpi.errors import UsageError
from collage_mpi.models.architecture import Architecture, Backbone
from collage_mpi.models.backbones import ConvNorm, ResNet, Trunk
from collage_mpi.models.specs import APART, YOLO, HeadSpec


class CollageNet(nn.Module):
    """(n, C, side*cell_px, side*cell_px) float -> (n, side*side, classes) logits.

    The features are pooled to side x side, one vector for each cell. One linear classifier, shared
    by all cells, classifies each vector. No boxes are needed, because the place of each image in
    the collage is known.
    """

    def __init__(self, trunk: Any, classes: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.trunk = trunk
        self.classifier = nn.Linear(trunk.features_out, classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(x)  # (n, features, side, side)
        cells = pooled.flatten(2).transpose(1, 2)  # (n, side*side, features), row by row
        found: Tensor = self.classifier(cells)
        return found

    def pooled(self, x: Tensor) -> Tensor:
        """(n, features, side, side): the trunk's map of the collage, averaged over each cell."""
        return F.adaptive_avg_pool2d(self.trunk(x), self.side)


class ApartNet(CollageNet):
    """Like `CollageNet`, but the trunk gets the cells as a batch, so that no convolution crosses
    the edge of a cell.
    """

    def pooled(self, x: Tensor) -> Tensor:
        n, channels, edge, _ = x.shape
        side, px = self.side, edge // self.side
        rows = x.permute(0, 2, 3, 1).reshape(n, side, px, side, px, channels)
        cells = rows.transpose(2, 3).reshape(n * side * side, px, px, channels)
        features = self.trunk(cells.permute(0, 3, 1, 2)).mean(dim=(2, 3))  # (n*cells, features)
        found: Tensor = features.reshape(n, side, side, -1).permute(0, 3, 1, 2)
        return found


class YoloNet(nn.Module):
    """(n, C, side*cell_px, side*cell_px) -> (n, G, G, anchors, 5 + classes), G = squares*side.

    The collage network of the paper, a detector that does not know where the images are. Each
    square has a box, an objectness and class logits for each anchor. After pooling to G x G a
    square is a third of a cell, so one more convolution takes in the neighbouring squares. If the
    head sets G (`across`), G x G is the trunk's own map, and this convolution is left out.
    """

    def __init__(self, trunk: Any, classes: int, side: int, head: HeadSpec, norm: str) -> None:
        super().__init__()
        features = trunk.features_out
        self.squares = head.map_size(side)
        self.anchors = len(head.anchors)
        self.trunk = trunk
        self.around = None
        if head.across is None:
            self.around = ConvNorm(features, features, kernel=3, stride=1, norm=norm)
        self.boxes = nn.Conv2d(features, self.anchors * (5 + classes), 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(self.trunk(x), self.squares)  # (n, features, G, G)
        if self.around is not None:
            pooled = torch.relu_(self.around(pooled))
        out = self.boxes(pooled)  # (n, anchors*(5+classes), G, G)
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
    """Build a single network if `side` is None, otherwise a collage network, with random weights.

    Args:
        head: of the collage network; None for a grid.

    Raises:
        UsageError, EnvironmentFault: the backbone cannot be built; see `vision`.
    """
    trunk: Any
    if isinstance(architecture, Architecture):
        if side is None:
            return ResNet(architecture, channels, classes)
        trunk, norm = Trunk(architecture, channels), architecture.norm
    else:
        from collage_mpi.models.vision import ConvTrunk, VisionSingle  # imported only if needed

        if side is None:
            return VisionSingle(architecture, classes)
        trunk, norm = ConvTrunk(architecture), "batch"
    head = head or HeadSpec()
    if head.name == YOLO:
        return YoloNet(trunk, classes, side, head, norm)
    return (ApartNet if head.name == APART else CollageNet)(trunk, classes, side)


def check_pixels(
    architecture: Architecture | Backbone,
    shape: tuple[int, ...],
    side: int | None,
    head: HeadSpec | None = None,
) -> None:
    """Check that a network accepts inputs of this size. A small input may leave an empty map.

    Args:
        shape: (H, W, C) of an image, or of a collage.

    Raises:
        UsageError: the network does not accept them.
    """
    if isinstance(architecture, Architecture):
        return  # its convolutions accept any size
    height, width, channels = shape
    with torch.device("meta"):  # only shapes are computed
        network = build_network(architecture, channels, 2, side, head).eval()
        try:
            network(torch.zeros(1, channels, height, width))
        except (RuntimeError, AssertionError) as error:  # a vision transformer asserts its size
            cells = "" if side is None else f", {side} x {side} cells"
            raise UsageError(
                f"{architecture.backbone} cannot see {height} x {width} pixels{cells}: {error}; "
                f"give it {'images' if side is None else 'cells, --cell-px,'} of another size"
            ) from error

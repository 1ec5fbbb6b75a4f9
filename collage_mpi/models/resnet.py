"""A small residual network for images of 28 to 64 px (He et al. 2015, arXiv 1512.03385)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from collage_mpi.models.architecture import Architecture

COUNTER = "num_batches_tracked"  # of a batch norm: plays no part in inference, is not stored


class ConvNorm(nn.Module):
    """Convolution and norm, without the activation. A batch norm can be folded away."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, norm: str) -> None:
        super().__init__()
        # (kernel - 1) // 2 halves even sizes exactly for kernel 4, stride 2: 84 -> 42
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)
        self.norm = _norm(norm, outputs)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.conv(x))
        return found

    def fold(self) -> None:
        """Fold a batch norm into the convolution; the module must be in eval mode."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, which has a 1 x 1 convolution if the shape changes."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, norm: str) -> None:
        super().__init__()
        self.first = ConvNorm(inputs, outputs, kernel=3, stride=stride, norm=norm)
        self.second = ConvNorm(outputs, outputs, kernel=3, stride=1, norm=norm)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.shortcut = ConvNorm(inputs, outputs, kernel=1, stride=stride, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu_(self.first(x))
        return torch.relu_(self.second(inner) + self.shortcut(x))


class Trunk(nn.Module):
    """(n, C, H, W) normalised pixels -> (n, features, h, w)."""

    def __init__(self, architecture: Architecture, channels: int) -> None:
        super().__init__()
        norm, width = architecture.norm, architecture.stem_width
        self.stem = ConvNorm(
            channels,
            width,
            kernel=architecture.stem_kernel,
            stride=architecture.stem_stride,
            norm=norm,
        )
        blocks = []
        for stage in architecture.stages:
            for number in range(stage.blocks):
                stride = stage.stride if number == 0 else 1
                blocks.append(ResidualBlock(width, stage.width, stride=stride, norm=norm))
                width = stage.width
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.blocks(torch.relu_(self.stem(x)))
        return found


class ResNet(nn.Module):
    """The single classifier: (n, C, H, W) float -> (n, 1, classes) logits."""

    def __init__(self, architecture: Architecture, channels: int, classes: int) -> None:
        super().__init__()
        self.trunk = Trunk(architecture, channels)
        self.classifier = nn.Linear(architecture.features, classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.trunk(x).mean(dim=(2, 3))  # (n, features)
        found: Tensor = self.classifier(pooled)[:, None]  # (n, 1, classes)
        return found


def fold_norms(network: nn.Module) -> None:
    """Fold every batch norm in the network, which is put in eval mode first."""
    network.eval()
    for module in network.modules():
        if isinstance(module, ConvNorm):
            module.fold()


def channels_last(network: nn.Module) -> nn.Module:
    """Lay the convolutions' weights out channels-last: faster on the CPU and with tensor cores."""
    found: torch.nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return found


def stored_arrays(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, np.ndarray]:
    """The float32 arrays of a state dict that a weights file keeps, each name with the prefix."""
    return {
        prefix + name: tensor.float().contiguous().numpy()
        for name, tensor in state.items()
        if not name.endswith(COUNTER)
    }


def _norm(name: str, channels: int) -> nn.Module:
    if name == "batch":
        return nn.BatchNorm2d(channels)
    # eight channels a group where they divide, else one group
    return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)

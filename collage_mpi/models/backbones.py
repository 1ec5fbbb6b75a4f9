"""The networks that this package builds: a small residual network for images of 28 to 64 px (He et
al. 2015, arXiv 1512.03385), and the trunk of YOLOv3-tiny (Redmon and Farhadi 2018, arXiv
1804.02767). Also the folding of batch norms into convolutions, for any network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from collage_mpi.models.architecture import Architecture

SAME = 1e-3  # folding may change outputs by at most this share of the input's largest output
COUNTER = "num_batches_tracked"  # of a batch norm; not used in inference, so not stored


class ConvNorm(nn.Module):
    """A convolution and its norm, without activation."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int, stride: int, norm: str) -> None:
        super().__init__()
        # With this padding, kernel 4 and stride 2 halve even sizes exactly: 84 -> 42
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)
        self.norm = _norm(norm, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


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
        self.features_out = architecture.features

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(torch.relu_(self.stem(x)))


class ResNet(nn.Module):
    """The single classifier: (n, C, H, W) float -> (n, 1, classes) logits."""

    def __init__(self, architecture: Architecture, channels: int, classes: int) -> None:
        super().__init__()
        self.trunk = Trunk(architecture, channels)
        self.classifier = nn.Linear(architecture.features, classes)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.trunk(x).mean(dim=(2, 3))  # (n, features)
        return self.classifier(pooled)[:, None]  # (n, 1, classes)


def fold_norms(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Fold each batch norm into the convolution before it. Returns how many were folded.

    The network is put in eval mode. A copy of it runs on noise of `shape` (C, H, W), which shows
    which convolution feeds which norm. The network stays unchanged if the copy fails, or if its
    outputs change when its norms are folded.
    """
    if not any(isinstance(module, _BatchNorm) for module in network.eval().modules()):
        return 0
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    noise = torch.cat([noise, 8 * noise])  # two scales, because activations may clip
    try:
        tried = deepcopy(network)  # a copy, because a module may store state at its first call
        pairs, before = _pairs(tried, noise)
        _fold(tried, pairs)
        after = _outputs(tried, noise)
    except Exception:  # a library's code may raise anything
        return 0
    if not bool(((after - before).abs() <= SAME * before.abs().amax(1, True)).all()):
        return 0
    _fold(network, pairs)
    return len(pairs)


def _fold(network: nn.Module, pairs: Sequence[tuple[str, str]]) -> None:
    for first, second in pairs:
        conv: Any = network.get_submodule(first)
        norm: Any = network.get_submodule(second)
        rest = [*norm.children()]  # a norm of timm has its activation as a child
        owner, _, name = second.rpartition(".")
        left = nn.Sequential(*rest) if rest else nn.Identity()
        setattr(network.get_submodule(owner), name, left)
        told = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *told)


def _pairs(network: nn.Module, noise: Tensor) -> tuple[list[tuple[str, str]], Tensor]:
    """Run the network on noise. Returns the names of (convolution, norm) for each norm whose inputs
    are always the unchanged outputs of one convolution that has no other use; and the outputs."""
    last: tuple[Any, Any, int] = None, None, 0  # last convolution, its output and its version
    calls = Counter[nn.Module]()
    met: list[tuple[Any, nn.Module]] = []

    def note(conv: nn.Module, given: Any, out: Any) -> None:
        nonlocal last
        last = conv, out, out._version
        calls[conv] += 1

    def meet(norm: nn.Module, given: tuple[Any, ...]) -> None:
        conv, out, version = last
        # The version counts changes in place.
        unchanged = given[0] is out and out._version == version
        met.append((conv if unchanged else None, norm))

    names = {module: name for name, module in network.named_modules()}
    hooks = []
    for module in names:
        if module._forward_hooks or module._forward_pre_hooks:
            continue  # a hook of the library uses the inputs or outputs too
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(meet))
        # A parametrised convolution computes its weights at each call; they are not a parameter.
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and "weight" in module._parameters:
            hooks.append(module.register_forward_hook(note))
    answer = _outputs(network, noise)
    for hook in hooks:
        hook.remove()
    uses = Counter(norm for _, norm in met)
    return [
        (names[conv], names[norm])
        for (conv, norm), times in Counter(met).items()
        if conv is not None and times == uses[norm] == calls[conv]
    ], answer


def _outputs(network: nn.Module, noise: Tensor) -> Tensor:
    """The outputs, (n, outputs), of a network, which may be one of transformers."""
    with torch.inference_mode(False), torch.no_grad():  # inference tensors have no version
        found = network(noise)
    outputs: Tensor = getattr(found, "logits", found)
    return outputs.flatten(1)


def channels_last(network: nn.Module) -> nn.Module:
    """Convert the weights to channels-last, which is faster on the CPU and with tensor cores. A
    network with 3-D convolutions stays unchanged, because torch cannot convert it.
    """
    if any(weights.dim() == 5 for weights in network.parameters()):
        return network
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def stored_arrays(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of a state dict for a weights file, float32, their names with the prefix."""
    return {
        prefix + name: tensor.float().contiguous().numpy()
        for name, tensor in state.items()
        if not name.endswith(COUNTER)
    }


def _norm(name: str, channels: int) -> nn.Module:
    if name == "batch":
        return nn.BatchNorm2d(channels)
    # groups of eight channels, or one group if eight does not divide the channels
    return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)


# YOLOv3-tiny, for each layer: channels, kernel, whether max pooling follows; 416 px become 13 x 13
TINY_LAYERS = (
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


class Tiny(nn.Module):
    """YOLOv3-tiny's trunk with a classifier: (n, 3, H, W) -> (n, classes) logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        width, layers = 3, list[nn.Module]()
        for outputs, kernel, halved in TINY_LAYERS:
            layer = nn.Sequential()  # its names are those of weights files
            layer.conv = ConvNorm(width, outputs, kernel=kernel, stride=1, norm="batch")
            layer.leak = nn.LeakyReLU(LEAK, inplace=True)
            if halved:  # ceil_mode, so that 414 px become 13 squares, as 416 px do
                layer.pool = nn.MaxPool2d(2, ceil_mode=True)
            layers.append(layer)
            width = outputs
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layers(x).mean(dim=(2, 3)))

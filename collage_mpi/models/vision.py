"""Classifiers by name, of torchvision and of this package, as a whole or as convolutional trunks.

Only this module imports torchvision, which takes about a second. The paper's collage network, which
this package builds, does not need it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.models.architecture import TINY, Backbone
from collage_mpi.models.backbones import Tiny
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
        found: Tensor = self.trunk(_three(x))[:, None]  # (n, 1, classes)
        return found


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

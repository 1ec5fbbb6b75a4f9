"""A classifier's embedding: what its last layer is given.

Owns: finding that layer.
Does not know: weights files, devices, who asks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class WithEmbedding(nn.Module):
    """A single network that gives (its logits, (n, d) what its last layer was given).

    The last layer is the last linear one or convolution, as torchvision's classifiers and ours
    have it; a map is averaged over its places.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._seen: Tensor | None = None
        layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        layers[-1].register_forward_pre_hook(self._see)

    def _see(self, layer: nn.Module, given: tuple[Any, ...]) -> None:
        self._seen = given[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, seen = self.network(x), self._seen
        assert seen is not None
        self._seen = None
        return logits, seen.flatten(2).mean(2) if seen.dim() == 4 else seen.flatten(1)

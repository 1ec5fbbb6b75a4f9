"""The embedding of a classifier, which is the input of its last layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class WithEmbedding(nn.Module):
    """A single network that returns its logits and (n, d) embeddings, the inputs of its last layer.

    The last layer is the last linear layer or convolution, as in torchvision's classifiers and
    those of this package. A map is averaged over its places.
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

"""The shapes that a user's own network is told, and its facts in place of a weights file's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from collage_mpi.encoding.vectors import MOST_EMBEDDING
from collage_mpi.errors import UsageError
from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.models.info import NetworkInfo

if TYPE_CHECKING:
    import numpy as np

TOLERANCE = 0.01  # of probabilities and their sum: 16-bit formats round
HOW = "docs/images.md (A network of your own) has an example"


def embedding_length(origin: str, embeddings: np.ndarray) -> int:
    """Length d of embeddings (n, d). Raises UsageError if it is zero or too long to send."""
    length = int(embeddings.shape[1])
    if not 1 <= length <= MOST_EMBEDDING:
        raise UsageError(
            f"{origin} gives embeddings of {length:,} numbers; 1 to {MOST_EMBEDDING:,} can be kept"
        )
    return length


@dataclass(frozen=True)
class Geometry:
    """What a network without a weights file must be told.

    Attributes:
        image_shape: (H, W, C) of an image.
        side, cell_px: of the collage.
        classes: at least 1; None if the network's first answer decides.
    """

    image_shape: tuple[int, int, int]
    side: int
    cell_px: int
    classes: int | None

    def input_shape(self, kind: str) -> tuple[int, int, int]:
        """(H, W, C) of one input of the kind's network."""
        if kind == SINGLE:
            return self.image_shape
        px = self.side * self.cell_px
        return (px, px, self.image_shape[2])

    def cells(self, kind: str) -> int:
        """Answers per input."""
        return 1 if kind == SINGLE else self.side * self.side


def own_info(spec: str, kind: str, geometry: Geometry, fingerprint: str) -> NetworkInfo:
    """The facts of a user's own network, in the form of a weights file's."""
    collage = kind == COLLAGE
    channels = geometry.image_shape[2]
    return NetworkInfo(
        kind=kind,
        architecture={"function": spec},
        shape=geometry.input_shape(kind),
        side=geometry.side if collage else None,
        cell_px=geometry.cell_px if collage else None,
        class_names=tuple(str(number) for number in range(geometry.classes or 0)),
        fingerprint=fingerprint,
        metadata={
            "normalisation": {"mean": [0.0] * channels, "std": [1.0] * channels},
            "temperature": 1.0,
        },
    )

"""What the rest of the package knows about a network: `NetworkInfo` and the `Predictor`
interface.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from collage_mpi.errors import UsageError
from collage_mpi.kinds import NETWORKS
from collage_mpi.models.accept_spec import AcceptSpec
from collage_mpi.models.heads import HeadSpec
from collage_mpi.models.parity_spec import ParitySpec

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class NetworkInfo:
    """The facts of a weights file.

    Attributes:
        kind: one of NETWORKS.
        architecture: the settings of `Architecture`, as a plain dict.
        shape: (H, W, C) of one input: (side*cell_px, side*cell_px, C) for a collage network,
            the encoder's output for a parity network.
        side: cells along an edge of the collage; None for other networks.
        cell_px: height and width of a cell in pixels; None for other networks.
        class_names: one name a class, in the order of the scores.
        fingerprint: SHA-256 of the file, 64 hex digits.
        path: where the file is; None if there is no file.
        metadata: the whole JSON header record, training settings included.
        head: how a collage network answers; a grid of one for other networks.
        parity: what a parity network was made for; None for other networks.
        accept: from which score on a collage network's answers may count; None if unknown.
    """

    kind: str
    architecture: dict[str, Any]
    shape: tuple[int, int, int]
    side: int | None
    cell_px: int | None
    class_names: tuple[str, ...]
    fingerprint: str
    path: Path | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    head: HeadSpec = field(default_factory=HeadSpec)
    parity: ParitySpec | None = None
    accept: AcceptSpec | None = None

    @property
    def cells(self) -> int:
        """Answers per input: side*side for a collage, 1 for other networks."""
        return 1 if self.side is None else self.side * self.side

    @property
    def origin(self) -> str:
        """The path of its file, or the user's function that made it."""
        return str(self.path or self.architecture.get("function"))

    def noise(self) -> np.ndarray:
        """(1, H, W, C) uint8: an input of noise, used to test a network's answers."""
        import numpy as np  # late: --help of train reads this module

        return np.random.default_rng(0).integers(0, 256, (1, *self.shape), np.uint8)

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(H, W, C) of the images of a single or parity network; None for a collage network."""
        if self.side is not None:
            return None
        if self.parity is None:
            return self.shape
        return self.metadata["height"], self.metadata["width"], self.shape[2]


class Predictor(Protocol):
    """A network that is ready to answer."""

    kind: str
    cells: int
    classes: int
    fingerprint: str
    device: str
    tuning: str  # how it runs, in words
    embedding: int | None  # numbers of an embedding, where it was loaded to give them

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """Classify.

        Args:
            batch: (n, H, W, C) uint8.

        Returns:
            (n, cells, classes) float32 probabilities, complete on return, on a GPU too. A row of
            zeros means no answer for that cell. A parity network returns (n, 1, classes) sums,
            which only `decode_parity` reads.
        """
        ...

    def embed(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The result of `predict`, and (n, embedding) float32, if `embedding` is a number."""
        ...


def check_kind(kind: str) -> None:
    """Raise UsageError unless kind is one of NETWORKS."""
    if kind not in NETWORKS:
        raise UsageError(f"a network is of kind {kind!r}; the kinds are {', '.join(NETWORKS)}")

"""The vector that a run may keep of each image beyond its class. It travels with the answer.

A vector is float32: first the scores or the embedding, then the best classes (int32 bits, unchanged
on their way), then their scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SCORES, EMBEDDINGS = "scores", "embeddings"
NO_SAVE = "none"
SAVES = (NO_SAVE, SCORES, EMBEDDINGS)
MOST_EMBEDDING = 8192  # numbers; room for a vector is kept for every message of answers


@dataclass(frozen=True)
class Extras:
    """What is kept of each answered image.

    Attributes:
        top_k: number of best classes, the best first, with their scores; None for none.
        save: one of SAVES: the scores of all classes, or the network's embedding.
    """

    top_k: int | None = None
    save: str = NO_SAVE

    def __bool__(self) -> bool:
        return self.top_k is not None or self.save != NO_SAVE

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the kept values, in order."""
        top = ("top_classes", "top_scores") if self.top_k else ()
        saved = {SCORES: ("scores",), EMBEDDINGS: ("embedding",)}
        return (*top, *saved.get(self.save, ()))

    def floats(self, classes: int) -> int:
        """The largest length of a vector."""
        saved = {SCORES: classes, EMBEDDINGS: MOST_EMBEDDING}.get(self.save, 0)
        return saved + 2 * (self.top_k or 0)

    def pack(self, scores: np.ndarray, embeddings: np.ndarray | None = None) -> np.ndarray:
        """(n, classes) float32 scores, (n, d) float32 embeddings -> (n, floats) float32.

        Of equal scores the lowest class comes first, as in `decode`.
        """
        import numpy as np  # late: --help of run reads this module

        parts = []
        if self.save == EMBEDDINGS:
            assert embeddings is not None
            parts.append(embeddings)
        elif self.save == SCORES:
            parts.append(scores)
        if self.top_k:
            top = np.argsort(-scores, axis=1, kind="stable")[:, : self.top_k].astype(np.int32)
            parts += [top.view(np.float32), np.take_along_axis(scores, top, axis=1)]
        return np.concatenate(parts, axis=1, dtype=np.float32)

    def unpack(self, vectors: np.ndarray) -> dict[str, np.ndarray]:
        """(n, floats) float32 -> (n, ...) of each column."""
        import numpy as np

        k = self.top_k or 0
        saved = vectors.shape[1] - 2 * k
        found = {"scores": vectors[:, :saved], "embedding": vectors[:, :saved]}
        found["top_classes"] = np.ascontiguousarray(vectors[:, saved : saved + k]).view(np.int32)
        found["top_scores"] = vectors[:, saved + k :]
        return {name: found[name] for name in self.columns}

"""The objective of a parity network: the sum of the single network's answers for the images of a
stripe.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from collage_mpi.training.batches import Batch


class ParityObjective:
    """Mean squared error to the sum of the summands (ParM, SOSP 2019, section 3.3).

    A blank image adds nothing to the sum. Stripes have blanks if they are the last of a job, or if
    images are resolved before their stripe is sent.

    Args:
        taught: (n, views, classes) float32, the summands of each training image, and of its
            mirror image if training mirrors.
        held: (m, views, classes), the same for the validation images.
    """

    def __init__(self, taught: np.ndarray, held: np.ndarray) -> None:
        self._taught, self._held = (torch.from_numpy(np.asarray(t)) for t in (taught, held))

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        total = _of_cells(self._taught, batch).sum(1).to(outputs.device)  # (n, classes)
        return ((outputs[:, 0] - total) ** 2).mean(1).sum()

    def logits(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(n, cells, classes): for each image, the stripe's answer minus the summands of the
        others.
        """
        each = _of_cells(self._held, batch).to(outputs.device)  # (n, cells, classes)
        return outputs - (each.sum(1, keepdim=True) - each)


def _of_cells(table: Tensor, batch: Batch) -> Tensor:
    """(n, cells, classes): the row of each cell's image, zeros for a blank cell."""
    rows = table[torch.from_numpy(batch.chosen), torch.from_numpy(batch.mirrored)]
    return rows * torch.from_numpy(batch.present).to(torch.float32)[..., None]

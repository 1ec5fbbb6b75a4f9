"""What a training run is told, and the learning rate that follows from it.

Owns: `TrainSettings`, its checks, the one-cycle schedule.
Does not know: torch, shards, the command line.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from collage_mpi.errors import UsageError
from collage_mpi.models.architecture import Architecture
from collage_mpi.models.backbone import Backbone
from collage_mpi.models.heads import HeadSpec
from collage_mpi.models.info import check_kind
from collage_mpi.models.parity_spec import ParitySpec

PRECISIONS = ("auto", "float32", "bfloat16")
SCHEDULES = ("one-cycle", "cosine", "constant")
KEEPS = ("best", "last")


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides the weights; two runs with equal settings train alike.

    Attributes:
        kind: one of KINDS.
        architecture: the network.
        side, cell_px: the collage's grid; None for others.
        head: of a collage network.
        epochs: passes over the training part of the shards.
        batch: inputs per step: images of a single, collages, stripes of a parity network.
        learning_rate: the peak of the schedule.
        schedule: how the rate moves; see `learning_rate_at`.
        weight_decay: on matrices only, not on norms and biases.
        label_smoothing: Szegedy et al. 2015, arXiv 1512.00567.
        flips: mirror half of the images left to right.
        shift_px: largest random shift of an image in pixels, both axes.
        blank_share: share of collages or stripes with some blank cells, as in the last group of
            a job.
        validation_share: part of the shards kept apart to measure on; never trained on.
        seed: of the split, the initial weights, the order and the augmentation.
        precision: "bfloat16" uses autocast; "auto" takes it where the processor has it.
        ema: decay a step of the running average of the weights that is validated and kept
            (Polyak and Juditsky 1992); 0 for none.
        keep: the weights to end with: "best" of the validated epochs, or "last".
        teacher: fingerprint of the single network whose answers are learned too, or None.
        distill_weight: share of the teacher's part in the loss.
        distill_temperature: softens both sides of that part.
        init: fingerprint of the weights that training starts from, or None.
        parity: what a parity network is made for; None for others.
    """

    kind: str
    architecture: Architecture | Backbone
    side: int | None = None
    cell_px: int | None = None
    epochs: int = 12
    batch: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    flips: bool = True
    shift_px: int = 2
    blank_share: float = 0.1
    validation_share: float = 0.05
    seed: int = 0
    precision: str = "auto"
    schedule: str = "one-cycle"
    ema: float = 0.0
    keep: str = "best"
    teacher: str | None = None
    distill_weight: float = 0.7
    distill_temperature: float = 2.0
    head: HeadSpec = field(default_factory=HeadSpec)
    init: str | None = None
    parity: ParitySpec | None = None

    def __post_init__(self) -> None:
        check_kind(self.kind)
        for name in ("epochs", "batch"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a number from 1")
        for name in ("learning_rate", "distill_temperature"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        for name in ("blank_share", "validation_share", "label_smoothing", "ema"):
            value = getattr(self, name)
            _require(0 <= value < 1, name, value, "a share from 0 to below 1")
        for name in ("weight_decay", "shift_px", "seed"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "a number from 0")
        weight = self.distill_weight
        _require(0 <= weight <= 1, "distill_weight", weight, "a share from 0 to 1")
        for name, allowed in (("precision", PRECISIONS), ("schedule", SCHEDULES), ("keep", KEEPS)):
            value = getattr(self, name)
            _require(value in allowed, name, value, " or ".join(allowed))

    @property
    def cells(self) -> int:
        """Images an input holds."""
        if self.parity is not None:
            return self.parity.k
        return 1 if self.side is None else self.side * self.side

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON and checkpoints."""
        return {**asdict(self), "head": self.head.to_dict()}


def learning_rate_at(step: int, steps: int, peak: float, schedule: str = "one-cycle") -> float:
    """The rate of a step.

    one-cycle (Smith 2018, arXiv 1803.09820): up linearly from peak/20 in the first fifth,
    then a cosine down to peak/1000. cosine (Loshchilov and Hutter 2016, arXiv 1608.03983):
    the same with only a twentieth to warm up. constant: a twentieth up, then the peak.

    Args:
        step: 0 .. steps - 1.
        steps: steps of the whole training.
    """
    rising = 0.2 if schedule == "one-cycle" else 0.05
    fraction = step / max(1, steps - 1)
    if fraction < rising:
        return peak * (0.05 + 0.95 * fraction / rising)
    if schedule == "constant":
        return peak
    cosine = 0.5 * (1 + math.cos(math.pi * (fraction - rising) / (1 - rising)))
    return peak * (0.001 + 0.999 * cosine)


def _require(good: bool, name: str, value: object, needed: str) -> None:
    if not good:
        raise UsageError(f"{name} is {value!r}; it needs {needed}")

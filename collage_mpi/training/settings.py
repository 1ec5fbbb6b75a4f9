"""The settings of `train`: those that decide the weights, and the files and devices of a run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.models.architecture import (
    NORMS,
    Architecture,
    Backbone,
    HeadSpec,
    default_architecture,
)
from collage_mpi.models.info import check_kind
from collage_mpi.settings.flags import Arguments, switch
from collage_mpi.system.fields import REQUIRED, Settings, default_of, setting

TRAINING, DISTILLATION, GRID = "training", "distillation", "grid"  # groups of --help
WIDTHS = f"{default_architecture(SINGLE).stem_width}; collage: by --side"

_network = partial(setting, group="network")
_training = partial(setting, group=TRAINING)
_distillation = partial(setting, group=DISTILLATION, kinds=(SINGLE, COLLAGE))
_grid = partial(setting, group=GRID, kinds=(COLLAGE,))


@dataclass(frozen=True, repr=False)
class TrainSettings(Settings):
    """The settings that decide the weights. Two runs with equal settings and data train alike.

    Fields that are a `setting` have a help text. Defaults that differ between kinds are only
    defaults of the flags.

    Attributes:
        kind: one of NETWORKS.
        architecture: the layers of the network.
        teacher: fingerprint of the teacher; None without one.
        head: of a collage network.
        init: fingerprint of the weights that training starts from; None for random weights.
    """

    kind: str
    architecture: Architecture | Backbone
    side: int | None = _grid(
        None, "cells along an edge of the collage", at_least=2, at_most=5, by_kind={COLLAGE: 3}
    )
    cell_px: int | None = _grid(
        None, "height and width of a cell in pixels", unset="the images' height", at_least=1
    )
    epochs: int = _training(
        12,
        "number of passes over the training part of the shards",
        at_least=1,
        by_kind={COLLAGE: 40},
    )
    batch: int = _training(
        128,
        "number of inputs in each step. An input is an image or a collage",
        at_least=1,
        by_kind={COLLAGE: 16},
    )
    seed: int = _training(
        0,
        "seed of the split, the initial weights, the order and the augmentation",
        at_least=0,
        at_most=math.inf,
    )
    learning_rate: float = _training(
        0.1, "peak learning rate", flag="--lr", above=0, at_most=math.inf
    )
    weight_decay: float = _training(
        5e-4, "weight decay of weight matrices; norms and biases are not decayed", at_least=0
    )
    label_smoothing: float = _training(
        0.1, "amount of label smoothing (arXiv 1512.00567)", at_least=0, below=1
    )
    flips: bool = _training(True, "mirror half of the images from left to right")
    shift_px: int = _training(2, "largest random shift of an image in each direction", at_least=0)
    blank_share: float = _training(
        0.1,
        "share of the inputs that get blank cells, as the last group of a job may have",
        at_least=0,
        below=1,
        kinds=(COLLAGE,),
        by_kind={SINGLE: 0.0},
    )
    validation_share: float = _training(
        0.05,
        "share of the images that are kept apart for validation and never trained on",
        flag="--validation",
        at_least=0,
        below=1,
    )
    precision: str = _training(
        "auto",
        "number format. bfloat16: with autocast. auto: bfloat16 if the processor supports it, "
        "otherwise float32",
        choices=("auto", "float32", "bfloat16"),
    )
    schedule: str = _training(
        "one-cycle",
        "how the learning rate changes during the training",
        choices=("one-cycle", "cosine", "constant"),
    )
    ema: float = _training(
        0.0,
        "decay per step of a running average of the weights (Polyak and Juditsky 1992). The "
        "average is then validated and kept instead of the weights. 0: no average",
        at_least=0,
        below=1,
    )
    keep: str = _training(
        "best",
        "which weights to keep. best: those of the epoch with the best validation. last: those of "
        "the last epoch",
        choices=("best", "last"),
    )
    teacher: str | None = None
    distill_weight: float = _distillation(
        0.7, "weight of the teacher's part in the loss", at_least=0, at_most=1
    )
    distill_temperature: float = _distillation(
        2.0,
        "temperature that softens the probabilities of both networks in the teacher's part "
        "of the loss",
        above=0,
    )
    head: HeadSpec = field(default_factory=HeadSpec)
    init: str | None = None

    def _check(self) -> None:
        check_kind(self.kind)

    @property
    def cells(self) -> int:
        """The number of images in an input."""
        return 1 if self.side is None else self.side * self.side

    def record(self) -> dict[str, Any]:
        """The settings as plain values, for JSON and checkpoints."""
        return {**asdict(self), "head": self.head.to_dict()}

    def learning_rate_at(self, step: int, steps: int) -> float:
        """The learning rate at a step.

        one-cycle (Smith 2018, arXiv 1803.09820): it rises linearly from peak/20 in the first fifth
        of the steps, then falls as a cosine to peak/1000. cosine (Loshchilov and Hutter 2016, arXiv
        1608.03983): the same, but it rises in the first twentieth. constant: it rises in the first
        twentieth, then stays at the peak.

        Args:
            step: 0 to steps - 1.
            steps: number of steps of the whole training.
        """
        rising = 0.2 if self.schedule == "one-cycle" else 0.05
        fraction = step / max(1, steps - 1)
        if fraction < rising:
            return self.learning_rate * (0.05 + 0.95 * fraction / rising)
        if self.schedule == "constant":
            return self.learning_rate
        cosine = 0.5 * (1 + math.cos(math.pi * (fraction - rising) / (1 - rising)))
        return self.learning_rate * (0.001 + 0.999 * cosine)


@dataclass(frozen=True, kw_only=True)
class TrainArguments(Arguments):
    """The arguments of `train` for every kind of network, in addition to `TrainSettings`."""

    titles = ("files", "network", TRAINING)
    kind: ClassVar[str]
    preset: str | None = None
    head: str | None = None
    teacher: str | None = None
    trust_network: str = ""
    teacher_cache: Path | None = None

    shards: tuple[Path, ...] = setting(
        REQUIRED, "shards; labelled unless there is a teacher", shipped=True, group="files"
    )
    out: Path = setting(REQUIRED, "weights file to write", metavar="FILE", group="files")
    checkpoint: Path | None = setting(
        None, "checkpoint file", unset="OUT.checkpoint", metavar="FILE", group="files"
    )
    resume: bool = switch("continue from the checkpoint", group="files")
    log: Path | None = setting(
        None, "CSV log with one line for each epoch", unset="OUT.csv", metavar="CSV", group="files"
    )
    width: int | None = _network(None, "channels of the first stage", unset=WIDTHS)
    stem: str | None = _network(
        None, "stem of the network as channels x kernel / stride, such as 64x4/2", metavar="WxK/S"
    )
    stages: str | None = _network(
        None,
        'stages of the network as WIDTHxBLOCKS[/STRIDE],... such as "48x1,96x2/2"',
        metavar="STAGES",
    )
    norm: str = _network(NORMS[0], "kind of normalisation", choices=NORMS)
    backbone: str | None = _network(
        None,
        "use a network of torchvision instead, such as torchvision:resnet34. A collage network "
        "takes only its trunk",
        metavar="LIBRARY:NAME",
    )
    init: Path | None = setting(
        None,
        "weights file to start from. Its network must have the same trunk; the side may differ",
        metavar="WEIGHTS",
        shipped=True,
        group="network",
    )
    limit: int | None = _training(None, "use only the first N images, for a quick try")
    device: str = _training("cpu", "cpu, cuda or cuda:N", metavar="DEVICE")
    threads: int = _training(1, "number of CPU threads", at_least=1)

    def said(self, name: str) -> Any:
        """The value of a `TrainSettings` field: from the user, or the default for this kind."""
        return self.given.get(name, default_of(TrainSettings, name, self.kind))

    def beside(self, ending: str) -> Path:
        """The path of a file beside the weights: their name with an ending."""
        return self.out.with_name(self.out.name + ending)

    @property
    def checkpoint_file(self) -> Path:
        """The path of the checkpoint."""
        return self.checkpoint or self.beside(".checkpoint")

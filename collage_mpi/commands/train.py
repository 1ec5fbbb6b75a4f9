"""`collage-mpi train single|collage`: trains a network on shards."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.commands.parser import Command, Commands
from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.models.architecture import (
    BY_SIDE,
    HEADS,
    PRESETS,
    REFERENCE,
    REFERENCE_BACKBONES,
    REFERENCE_COLLAGE_PX,
    REFERENCE_HEAD,
    YOLO,
    Architecture,
    Backbone,
    HeadSpec,
    default_architecture,
    parse_stages,
    parse_stem,
    preset,
)
from collage_mpi.models.info import NetworkInfo
from collage_mpi.removed import removed
from collage_mpi.settings.flags import add_flags
from collage_mpi.settings.run_settings import NetworkSettings
from collage_mpi.system.environment import torchrun_size
from collage_mpi.system.fields import about, same, setting
from collage_mpi.training.settings import DISTILLATION, GRID, TrainArguments, TrainSettings

if TYPE_CHECKING:
    from collage_mpi.training.sources import TrainData

# Entries of a training record that decide which images are kept for validation
SPLIT = ("shard_fingerprints", "limit", "seed", "validation_share")


@dataclass(frozen=True, kw_only=True)
class _TaughtArguments(TrainArguments):
    teacher: str | None = setting(
        None,
        "single network whose answers this network also learns: anything that run takes as "
        "--single. Labels are then not needed",
        metavar="NETWORK",
        shipped=True,
        group=DISTILLATION,
    )
    trust_network: str = same(NetworkSettings, "trust_network", group=DISTILLATION)
    teacher_cache: Path | None = setting(
        None,
        "file that keeps the answers of the teacher",
        unset="OUT.teacher.npz",
        metavar="NPZ",
        group=DISTILLATION,
    )


@dataclass(frozen=True, kw_only=True)
class TrainSingleArguments(_TaughtArguments):
    """The arguments of `train single`."""

    kind = SINGLE
    preset: str | None = setting(
        None, "train a predefined network: resnet34, for images of 224 px", choices=(REFERENCE,)
    )


@dataclass(frozen=True, kw_only=True)
class TrainCollageArguments(_TaughtArguments):
    """The arguments of `train collage`."""

    kind = COLLAGE
    head: str | None = setting(
        None,
        "how the network answers for the cells",
        unset=f"{HeadSpec.name}; {YOLO} with --preset {REFERENCE}",
        choices=HEADS,
        group=GRID,
    )
    preset: str | None = setting(
        None,
        "train a predefined network",
        unset="by side; see docs/weights.md",
        choices=(*PRESETS, REFERENCE),
        group=GRID,
    )


def execute(args: TrainArguments) -> int:
    """Train, write the weights, and print their accuracy. Returns 0.

    Raises:
        UsageError: the weights file or a checkpoint exists and --resume is not given, or torchrun
            started several processes.
        EnvironmentFault: the folder of --out cannot be written.
    """
    if torchrun_size() > 1:
        raise UsageError(removed("torchrun"))
    if args.out.exists() and not args.resume:
        raise UsageError(
            f"{args.out} exists. Choose another --out, remove the file, or continue its training "
            "with --resume"
        )
    checkpoint = args.checkpoint_file
    if checkpoint.exists() and not args.resume:
        raise UsageError(
            f"{checkpoint} exists from an earlier training. Continue that training with "
            f"--resume, or remove the checkpoint: rm {shlex.quote(str(checkpoint))}"
        )
    if args.out.parent.is_dir() and not os.access(args.out.parent, os.W_OK):
        raise EnvironmentFault(f"{args.out.parent}: cannot be written. Choose another --out")
    if not args.out.parent.is_dir():
        raise EnvironmentFault(f"{args.out.parent} is not a directory. Create it, or change --out")
    return _train(args)


def _train(args: TrainArguments) -> int:
    from collage_mpi.models.predictor import usable_device
    from collage_mpi.training.loop import Trainer, store
    from collage_mpi.training.sources import load

    data, facts, settings = load(args, lambda shape: settings_of(args, shape))
    usable_device(args.device)
    trainer = Trainer(data, settings, args)
    if trainer.taken is not None and not args.resume:
        print(f"{trainer.taken[0]} of {trainer.taken[1]} tensors were taken from {args.init}")
    weights = sum(p.numel() for p in trainer.network.parameters())
    print(
        f"{args.kind}: {weights:,} parameters, {len(data.images):,} images to train on, "
        f"{len(data.held_images):,} to validate, {settings.epochs} epochs, "
        f"{trainer.precision}, checkpoint {args.checkpoint_file}",
        flush=True,
    )
    info = store(args.out, trainer.run(), settings, data, facts)
    print(f"{args.out}: {_worth(info.metadata)}, sha256 {info.fingerprint[:12]}")
    if args.kind == COLLAGE or (args.kind == SINGLE and args.teacher is not None):
        print(_saving(args, info, data))
    return 0


def _saving(args: TrainArguments, info: NetworkInfo, data: TrainData) -> str:
    """Describes the service time saved by asking the network before its teacher, on the validation
    images.
    """
    from collage_mpi.models import describe
    from collage_mpi.training.loop import held_savings
    from collage_mpi.training.sources import teacher_loading
    from collage_mpi.training.threshold import told_savings

    if args.teacher is None:
        return (
            "Saving at no loss: n/a, because it needs the single network to compare with: give "
            "--teacher, or use evaluate or weights threshold."
        )
    how = teacher_loading(args, data.images.shape[1:], data.classes)
    told = told_savings(*held_savings(args.teacher, info, data, how))
    mine = info.metadata["training"]
    teacher = describe(args.teacher, SINGLE, args.trust_network)
    its = None if teacher is None else teacher.metadata.get("training")
    if its and any(its.get(name) != mine[name] for name in SPLIT):
        told += (
            "\nThe teacher was trained on another part of the images, so it may have seen images "
            "of this validation split. Give both the same --shards, --limit, --seed and "
            "--validation."
        )
    return told


def _worth(metadata: dict[str, Any]) -> str:
    """Describes the accuracy on the validation images, or why it is unknown."""
    from collage_mpi.results.statistics import wilson_interval
    from collage_mpi.training.loop import MIN_FOR_TEMPERATURE

    training = metadata["training"]
    accuracy, n = training.get("validation_accuracy"), training["validation_images"]
    what = "agreement with the teacher" if "labels" in training else "validation accuracy"
    if accuracy is None:
        return f"{what} n/a (no images were kept for it: --validation 0.05 keeps one in 20)"
    low, high = wilson_interval(round(accuracy * n), n) or (0.0, 1.0)
    found = f"{what} {accuracy:.2%} ({n:,} images: {low:.1%} to {high:.1%})"
    if "validation_ece" not in training:
        few = (
            f"the temperature needs at least {MIN_FOR_TEMPERATURE} validation images: --validation"
        )
        return f"{found}, temperature 1.0 ({few})"
    error = f"calibration error {training['validation_ece']:.4f}"
    return f"{found}, temperature {metadata['temperature']}, {error}"


def settings_of(args: TrainArguments, shape: tuple[int, ...]) -> TrainSettings:
    """The settings of a training on images of shape (H, W, C). Raises UsageError if the flags
    contradict each other.
    """
    from collage_mpi.models.weights import describe_weights
    from collage_mpi.training.sources import teacher_fingerprint

    teacher = None
    if args.teacher is not None:
        teacher = teacher_fingerprint(args.teacher, args.trust_network)
    init = None if args.init is None else describe_weights(args.init)
    chosen = {
        spec.name: args.said(spec.name) for spec in fields(TrainSettings) if about(spec).group
    }
    if args.kind == COLLAGE and chosen["cell_px"] is None:
        chosen["cell_px"] = default_cell_px(args, int(shape[0]))
    return TrainSettings(
        args.kind,
        architecture_of(args),
        **chosen,
        teacher=teacher,
        head=head_of(args),
        init=None if init is None else init.fingerprint,
    )


def architecture_of(args: TrainArguments) -> Architecture | Backbone:
    """The architecture that the flags choose. Raises UsageError if they contradict each other."""
    name = args.preset
    backbone = REFERENCE_BACKBONES[args.kind] if name == REFERENCE else args.backbone
    given = {
        "--backbone": args.backbone,
        "--preset": name,
        "--width": args.width,
        "--stem": None if backbone is None else args.stem,
        "--stages": None if backbone is None else args.stages,
    }
    several = [f"{flag} {value}" for flag, value in given.items() if value is not None]
    if len(several) > 1:
        raise UsageError(f"{' and '.join(several)}: give only one of them")
    if backbone is not None:
        return Backbone(backbone)
    if args.kind == COLLAGE and name is None and args.width is None:
        name = BY_SIDE.get(args.said("side"))
    architecture = (
        default_architecture(args.kind, args.width, args.norm)
        if name is None
        else preset(name, args.norm)
    )
    if args.stem is not None:
        architecture = parse_stem(architecture, args.stem)
    if args.stages is not None:
        architecture = replace(architecture, stages=parse_stages(args.stages))
    return architecture


def head_of(args: TrainArguments) -> HeadSpec:
    """The head that the flags choose. Only collage networks use it. Raises UsageError if the head
    of the reference network is too coarse for the side.
    """
    name = args.head
    reference = args.kind == COLLAGE and args.preset == REFERENCE
    if reference and name in (None, YOLO):
        side = args.said("side")
        if side > REFERENCE_HEAD.across:
            raise UsageError(
                f"--preset {REFERENCE} has {REFERENCE_HEAD.across} squares along an edge, too few "
                f"for --side {side}: choose a smaller side, or --head grid"
            )
        return REFERENCE_HEAD
    return HeadSpec() if name is None else HeadSpec(name)


def default_cell_px(args: TrainArguments, image_px: int) -> int:
    """The default height and width of a cell: those of the image, or for --preset reference those
    that make a collage of REFERENCE_COLLAGE_PX.
    """
    if args.preset == REFERENCE:
        side: int = args.said("side")
        return REFERENCE_COLLAGE_PX // side
    return image_px


COMMAND = Commands(
    "single|collage",
    {
        takes.kind: Command(
            execute, takes, line, partial(add_flags, of=TrainSettings, kind=takes.kind)
        )
        for takes, line in (
            (TrainSingleArguments, "train the single network, which classifies one image"),
            (
                TrainCollageArguments,
                "train the collage network, which classifies side x side images at once",
            ),
        )
    },
)

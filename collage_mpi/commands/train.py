"""`collage-mpi train single|collage|parity`: trains a network on shards, with torchrun in several
processes.
"""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.encoding import ENCODERS, SUMMED
from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.kinds import COLLAGE, NETWORKS, PARITY, SINGLE
from collage_mpi.models.architecture import (
    BY_SIDE,
    NORMS,
    PRESETS,
    REFERENCE,
    REFERENCE_BACKBONES,
    REFERENCE_COLLAGE_PX,
    REFERENCE_HEAD,
    default_architecture,
    preset,
)
from collage_mpi.models.specs import HEADS, YOLO, HeadSpec
from collage_mpi.settings.flags import add_flags, group_of
from collage_mpi.settings.shipped import path_argument
from collage_mpi.system.fields import about, default_of
from collage_mpi.training.settings import DISTILLATION, GRID, TRAINING, TrainSettings, flagged

if TYPE_CHECKING:
    from collage_mpi.models.architecture import Architecture, Backbone
    from collage_mpi.models.info import NetworkInfo
    from collage_mpi.training.peers import Peers
    from collage_mpi.training.records import TrainData
    from collage_mpi.training.sources import Sources

SPLIT = ("shard_fingerprints", "limit", "seed", "validation_share")  # what decides it, in a record
DEFAULT = "(default: %(default)s)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; the kinds of network differ in defaults and in a few flags."""
    parser.epilog = (
        "To train with several processes: torchrun --standalone --nproc-per-node=2 -m "
        "collage_mpi train single --shards train.h5 --out single.safetensors"
    )
    kinds = parser.add_subparsers(dest="kind", metavar="|".join(NETWORKS), required=True)
    single = kinds.add_parser(SINGLE, help="the single classifier, which classifies one image")
    collage = kinds.add_parser(
        COLLAGE, help="the collage-CNN, which classifies side*side images at once"
    )
    parity = kinds.add_parser(
        PARITY,
        help="the parity network of ParM, which takes k images at once and can replace one missing "
        "answer",
    )
    for kind, child in kinds.choices.items():
        _common(child, kind)
    for kind, child in ((SINGLE, single), (COLLAGE, collage)):
        _distillation(child, kind)
    single.add_argument(
        "--preset",
        choices=(REFERENCE,),
        help="train a predefined network: resnet34, for images of 224 px",
    )
    _settings(collage, COLLAGE, GRID)
    grid = group_of(collage, GRID)
    grid.add_argument(
        "--head",
        choices=HEADS,
        help=f"how the network answers for the cells (default: {HeadSpec.name}; {YOLO} with "
        f"--preset {REFERENCE})",
    )
    grid.add_argument(
        "--preset",
        choices=(*PRESETS, REFERENCE),
        help="train a predefined network (default: by side; see docs/weights.md)",
    )
    _stripe(parity)


def _stripe(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("stripe")
    group.add_argument(
        "--single",
        type=path_argument,
        required=True,
        metavar="WEIGHTS",
        help="the single network whose answers the parity network learns to sum. The parity "
        "network works with no other single network",
    )
    group.add_argument(
        "--k", type=int, default=3, metavar="N", help=f"number of images in a stripe {DEFAULT}"
    )
    group.add_argument(
        "--encoder",
        choices=ENCODERS,
        default="concat",
        help=f"how the images of a stripe become one input {DEFAULT}",
    )
    group.add_argument(
        "--summed",
        choices=SUMMED,
        default="logits",
        help=f"which part of the answers is summed {DEFAULT}",
    )
    _teacher_cache(group)


def _common(parser: argparse.ArgumentParser, kind: str) -> None:
    files = parser.add_argument_group("files")
    files.add_argument(
        "--shards",
        type=path_argument,
        nargs="+",
        required=True,
        metavar="PATH",
        help="labelled shards",
    )
    files.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="weights file to write"
    )
    files.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="checkpoint file (default: OUT.checkpoint)",
    )
    files.add_argument("--resume", action="store_true", help="continue from the checkpoint")
    files.add_argument(
        "--log",
        type=Path,
        metavar="CSV",
        help="CSV log with one line for each epoch (default: OUT.csv)",
    )
    files.add_argument(
        "--tensorboard",
        type=Path,
        metavar="DIR",
        help="also write events for TensorBoard to this folder",
    )
    net = parser.add_argument_group("network")
    width = "by --side" if kind == COLLAGE else default_architecture(kind).stem_width
    net.add_argument(
        "--width", type=int, metavar="N", help=f"channels of the first stage (default: {width})"
    )
    net.add_argument(
        "--stem",
        metavar="WxK/S",
        help="stem of the network as channels x kernel / stride, such as 64x4/2",
    )
    net.add_argument(
        "--stages", help='stages of the network as WIDTHxBLOCKS[/STRIDE],... such as "48x1,96x2/2"'
    )
    net.add_argument(
        "--norm", choices=NORMS, default=NORMS[0], help=f"kind of normalisation {DEFAULT}"
    )
    net.add_argument(
        "--backbone",
        metavar="LIBRARY:NAME",
        help="use a known network instead: torchvision:resnet34, efficientnet-lite:lite0 and "
        "others. A collage network takes only its trunk",
    )
    net.add_argument(
        "--init",
        type=path_argument,
        metavar="WEIGHTS",
        help="weights file to start from; it must have the same trunk, for any side",
    )
    _settings(parser, kind, TRAINING)
    fit = group_of(parser, TRAINING)
    fit.add_argument(
        "--limit", type=int, metavar="N", help="use only the first N images, for a quick try"
    )
    fit.add_argument("--device", default="cpu", help=f"cpu, cuda or cuda:N {DEFAULT}")
    fit.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help=f"number of CPU threads of each process {DEFAULT}",
    )


def _settings(parser: argparse.ArgumentParser, kind: str, group: str) -> None:
    add_flags(parser, TrainSettings, [spec.name for spec in flagged(kind, group)], kind)


def _distillation(parser: argparse.ArgumentParser, kind: str) -> None:
    group = group_of(parser, DISTILLATION)
    group.add_argument(
        "--teacher",
        type=path_argument,
        metavar="WEIGHTS",
        help="single network whose answers are learned as well",
    )
    _settings(parser, kind, DISTILLATION)
    _teacher_cache(group)


def _teacher_cache(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--teacher-cache",
        type=Path,
        metavar="NPZ",
        help="file that keeps the answers of the teacher (default: OUT.teacher.npz)",
    )


def execute(args: argparse.Namespace) -> int:
    """Train, write the weights, and print their accuracy."""
    if args.threads < 1:
        raise UsageError(f"--threads is {args.threads}; it needs a number from 1")
    if args.out.exists() and not args.resume:
        raise UsageError(
            f"{args.out} exists. Choose another --out, remove the file, or continue its training "
            "with --resume"
        )
    checkpoint = checkpoint_of(args)
    if checkpoint.exists() and not args.resume:
        raise UsageError(
            f"{checkpoint} exists from an earlier training. Continue that training with "
            f"--resume, or remove the checkpoint: rm {shlex.quote(str(checkpoint))}"
        )
    if args.out.parent.is_dir() and not os.access(args.out.parent, os.W_OK):
        raise EnvironmentFault(f"{args.out.parent}: cannot be written. Choose another --out")
    from collage_mpi.training.peers import together

    return together(args.device, lambda peers: _train(args, peers))


def _train(args: argparse.Namespace, peers: Peers) -> int:
    from collage_mpi.models.predictor import usable_device
    from collage_mpi.training.finish import store
    from collage_mpi.training.last_layer import train_last_layer
    from collage_mpi.training.logs import epoch_logger
    from collage_mpi.training.loop import Trainer
    from collage_mpi.training.peers import check_batch
    from collage_mpi.training.records import Machine
    from collage_mpi.training.sources import load

    if peers.lead and not args.out.parent.is_dir():
        raise EnvironmentFault(f"{args.out.parent} is not a directory. Create it, or change --out")
    check_batch(args.batch, peers.size)
    data, facts, settings = load(sources_of(args), lambda shape: settings_of(args, shape), peers)
    usable_device(peers.device)
    checkpoint = checkpoint_of(args)
    log = args.log or args.out.with_name(args.out.name + ".csv")
    on_epoch = epoch_logger(log, args.tensorboard) if peers.lead else None
    machine = Machine(peers.device, args.threads, checkpoint, args.resume, peers, on_epoch)
    if settings.layers == "last":
        cache = args.out.with_name(args.out.name + ".features.npz")
        trained = train_last_layer(data, settings, machine, args.init, cache)
        _tell(args, store(args.out, trained, settings, data, facts))
        return 0
    trainer = Trainer(data, settings, machine)
    if not peers.lead:
        trainer.run()
        return 0
    if trainer.taken is not None and not args.resume:
        print(f"{trainer.taken[0]} of {trainer.taken[1]} tensors were taken from {args.init}")
    weights = sum(p.numel() for p in trainer.network.parameters())
    shared = "" if peers.size == 1 else f"{peers.size} processes, "
    print(
        f"{args.kind}: {weights:,} parameters, {len(data.images):,} images to train on, "
        f"{len(data.held_images):,} to validate, {settings.epochs} epochs, {shared}"
        f"{trainer.precision}, checkpoint {checkpoint}",
        flush=True,
    )
    info = store(args.out, trainer.run(), settings, data, facts)
    _tell(args, info)
    if args.kind == COLLAGE or (args.kind == SINGLE and args.teacher is not None):
        print(_saving(args, info, data, peers.device))
    return 0


def _tell(args: argparse.Namespace, info: NetworkInfo) -> None:
    print(f"{args.out}: {_worth(args.kind, info.metadata)}, sha256 {info.fingerprint[:12]}")


def _saving(args: argparse.Namespace, info: NetworkInfo, data: TrainData, device: str) -> str:
    """What the network saves compared with its teacher, on the validation images."""
    from collage_mpi.models.weights import describe_weights
    from collage_mpi.training.finish import held_savings
    from collage_mpi.training.threshold import told_savings

    if args.teacher is None:
        return (
            "Saving at no loss: n/a (--teacher names the single network to compare with, as do "
            "evaluate and weights threshold)."
        )
    told = told_savings(*held_savings(args.teacher, info, data, device, args.threads))
    mine = info.metadata["training"]
    its = describe_weights(args.teacher).metadata.get("training")
    if its and any(its.get(name) != mine[name] for name in SPLIT):
        told += (
            "\nThe teacher was trained on another part of the images, so it may have seen images "
            "of this validation split. Give both the same --shards, --limit, --seed and "
            "--validation."
        )
    return told


def _worth(kind: str, metadata: dict[str, Any]) -> str:
    """The accuracy on the validation images, or why there is none."""
    from collage_mpi.results.statistics import wilson_interval
    from collage_mpi.training.finish import MIN_FOR_TEMPERATURE

    training = metadata["training"]
    accuracy, n = training.get("validation_accuracy"), training["validation_images"]
    what = f"{'degraded ' if kind == PARITY else ''}validation accuracy"
    if accuracy is None:
        return f"{what} n/a (no images were kept apart: --validation 0.05 keeps one in 20)"
    low, high = wilson_interval(round(accuracy * n), n) or (0.0, 1.0)
    found = f"{what} {accuracy:.2%} ({n:,} images: {low:.1%} to {high:.1%})"
    if "validation_ece" not in training:
        few = (
            f"the temperature needs at least {MIN_FOR_TEMPERATURE} validation images: --validation"
        )
        return f"{found}, temperature 1.0 ({few})"
    error = f"calibration error {training['validation_ece']:.4f}"
    return f"{found}, temperature {metadata['temperature']}, {error}"


def checkpoint_of(args: argparse.Namespace) -> Path:
    """The path of the checkpoint, given or default."""
    given: Path | None = args.checkpoint
    return given or args.out.with_name(args.out.name + ".checkpoint")


def sources_of(args: argparse.Namespace) -> Sources:
    """The files that the flags name."""
    from collage_mpi.training.sources import Sources

    return Sources(
        shards=args.shards,
        limit=args.limit,
        teacher=teacher_of(args),
        teacher_cache=args.teacher_cache or args.out.with_name(args.out.name + ".teacher.npz"),
        init=args.init,
        threads=args.threads,
    )


def teacher_of(args: argparse.Namespace) -> Path | None:
    """The single network whose answers are learned, if there is one."""
    teacher: Path | None = args.single if args.kind == PARITY else args.teacher
    return teacher


def settings_of(args: argparse.Namespace, shape: tuple[int, ...]) -> TrainSettings:
    """The settings that the flags give, for images of a shape (H, W, C)."""
    from collage_mpi.models.specs import ParitySpec
    from collage_mpi.models.weights import describe_weights

    path = teacher_of(args)
    teacher = None if path is None else describe_weights(path, SINGLE)
    init = None if args.init is None else describe_weights(args.init)
    parity = None
    if args.kind == PARITY:
        assert teacher is not None
        parity = ParitySpec(args.k, args.encoder, args.summed, teacher.fingerprint)
    # What the kind has no flag for is as its default says.
    chosen = {
        spec.name: getattr(args, spec.name, default_of(TrainSettings, spec.name, args.kind))
        for spec in fields(TrainSettings)
        if about(spec).group
    }
    if args.kind == COLLAGE and args.cell_px is None:
        chosen["cell_px"] = default_cell_px(args, int(shape[0]))
    return TrainSettings(
        args.kind,
        architecture_of(args),
        **chosen,
        teacher=None if teacher is None else teacher.fingerprint,
        head=head_of(args),
        init=None if init is None else init.fingerprint,
        parity=parity,
    )


def architecture_of(args: argparse.Namespace) -> Architecture | Backbone:
    """The network that the flags name. Raises UsageError if they contradict each other."""
    from collage_mpi.models.architecture import Backbone, parse_stages, parse_stem

    name = getattr(args, "preset", None)
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
        name = BY_SIDE.get(args.side)
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


def head_of(args: argparse.Namespace) -> HeadSpec:
    """The head that the flags name; for other kinds of network a default without effect."""
    name: str | None = getattr(args, "head", None)
    reference = args.kind == COLLAGE and args.preset == REFERENCE
    if reference and name in (None, YOLO):
        if args.side > REFERENCE_HEAD.across:
            raise UsageError(
                f"--preset reference has {REFERENCE_HEAD.across} squares an edge, too few for "
                f"--side {args.side}: choose a smaller side, or --head grid"
            )
        return REFERENCE_HEAD
    return HeadSpec() if name is None else HeadSpec(name)


def default_cell_px(args: argparse.Namespace, image_px: int) -> int:
    """The default height and width of a cell: the image's own, or the reference's share."""
    if getattr(args, "preset", None) == REFERENCE:
        side: int = args.side
        return REFERENCE_COLLAGE_PX // side
    return image_px

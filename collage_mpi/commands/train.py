"""`collage-mpi train single|collage|parity`: shards in, weights out; under torchrun data-parallel.

Owns: the flags, and the settings they make.
Does not know: the loop, the network, the file formats.
"""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.encoding.decode import SUMMED
from collage_mpi.encoding.stripe import ENCODERS
from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.models.presets import (
    BY_SIDE,
    PRESETS,
    REFERENCE,
    REFERENCE_BACKBONE,
    REFERENCE_COLLAGE_PX,
    preset,
)
from collage_mpi.settings.shipped import path_argument

if TYPE_CHECKING:
    from collage_mpi.models.architecture import Architecture
    from collage_mpi.models.backbone import Backbone
    from collage_mpi.training.peers import Peers
    from collage_mpi.training.settings import TrainSettings
    from collage_mpi.training.sources import Sources


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags; the networks differ in defaults, and in what an input holds."""
    parser.epilog = (
        "Several processes train together with: torchrun --standalone --nproc-per-node=2 "
        "-m collage_mpi train single --shards train.h5 --out single.safetensors"
    )
    kinds = parser.add_subparsers(dest="kind", metavar="single|collage|parity", required=True)
    single = kinds.add_parser("single", help="the classifier of one image")
    collage = kinds.add_parser("collage", help="the collage-CNN: side*side images at once")
    parity = kinds.add_parser("parity", help="ParM's network: k images at once, to make up for one")
    for child, epochs, batch in ((single, 12, 128), (collage, 40, 16), (parity, 10, 32)):
        _common(child, epochs, batch)
    # Its targets are the single's answers to images that are mirrored, but not shifted.
    parity.set_defaults(shift_px=0, lr=0.05)
    for child in (single, collage):
        _distillation(child)
    single.add_argument(
        "--preset", choices=(REFERENCE,), help="a named network: resnet34, for images of 224 px"
    )
    grid = collage.add_argument_group("grid")
    grid.add_argument("--side", type=int, default=3, help="cells along an edge, 2 to 5 (3)")
    grid.add_argument(
        "--head", choices=("grid", "yolo"), default="grid", help="how cells are answered (grid)"
    )
    grid.add_argument(
        "--preset",
        choices=(*PRESETS, REFERENCE),
        help="a named network (by side; see docs/weights.md)",
    )
    grid.add_argument("--cell-px", type=int, help="pixels of a cell (the images' height)")
    grid.add_argument(
        "--blank-share", type=float, default=0.1, help="share of collages with blank cells (0.1)"
    )
    _stripe(parity)


def _stripe(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("stripe")
    group.add_argument(
        "--single",
        type=path_argument,
        required=True,
        metavar="WEIGHTS",
        help="the single network whose answers it sums; it works with no other",
    )
    group.add_argument("--k", type=int, default=3, help="images of a stripe (3)")
    group.add_argument(
        "--encoder", choices=ENCODERS, default="concat", help="how they become one (concat)"
    )
    group.add_argument(
        "--summed", choices=SUMMED, default="logits", help="what of the answers is summed (logits)"
    )
    group.add_argument(
        "--blank-share", type=float, default=0.1, help="share of stripes with blanks (0.1)"
    )
    group.add_argument(
        "--teacher-cache", type=Path, metavar="NPZ", help="its answers, kept (OUT.teacher.npz)"
    )


def _common(parser: argparse.ArgumentParser, epochs: int, batch: int) -> None:
    files = parser.add_argument_group("files")
    files.add_argument(
        "--shards", type=path_argument, nargs="+", required=True, help="labelled shards"
    )
    files.add_argument("--out", type=Path, required=True, help="weights file to write")
    files.add_argument("--checkpoint", type=Path, help="file to go on from (OUT.checkpoint)")
    files.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    files.add_argument("--log", type=Path, metavar="CSV", help="a line an epoch (OUT.csv)")
    files.add_argument("--tensorboard", type=Path, metavar="DIR", help="events for TensorBoard too")
    net = parser.add_argument_group("network")
    net.add_argument("--width", type=int, help="channels of the first stage (48)")
    net.add_argument("--stem", metavar="WxK/S", help="stem channels x kernel / stride, 64x4/2")
    net.add_argument("--stages", help='WIDTHxBLOCKS[/STRIDE],... such as "48x1,96x2/2"')
    net.add_argument("--norm", choices=("batch", "group"), default="batch")
    net.add_argument(
        "--backbone",
        metavar="torchvision:NAME",
        help="a network of torchvision instead, resnet34 and so on; a collage takes its trunk",
    )
    net.add_argument(
        "--init",
        type=path_argument,
        metavar="WEIGHTS",
        help="start from these: the same trunk, any side",
    )
    fit = parser.add_argument_group("training")
    fit.add_argument("--epochs", type=int, default=epochs, help=f"({epochs})")
    fit.add_argument(
        "--batch", type=int, default=batch, help=f"inputs a step, all processes ({batch})"
    )
    fit.add_argument("--lr", type=float, default=0.1, help="peak learning rate (0.1; parity 0.05)")
    fit.add_argument("--schedule", choices=("one-cycle", "cosine", "constant"), default="one-cycle")
    fit.add_argument("--ema", type=float, default=0.0, help="decay of a running average, 0: none")
    fit.add_argument("--keep", choices=("best", "last"), default="best", help="epoch to keep")
    fit.add_argument("--weight-decay", type=float, default=5e-4, help="(0.0005)")
    fit.add_argument("--label-smoothing", type=float, default=0.1, help="(0.1)")
    fit.add_argument("--flips", action=argparse.BooleanOptionalAction, default=True)
    fit.add_argument("--shift-px", type=int, default=2, help="largest random shift (2; parity 0)")
    fit.add_argument("--validation", type=float, default=0.05, help="share kept apart (0.05)")
    fit.add_argument("--seed", type=int, default=0, help="(0)")
    fit.add_argument("--limit", type=int, help="use only the first images: for a quick try")
    fit.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    fit.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (cpu)")
    fit.add_argument("--threads", type=int, default=1, help="CPU threads a process (1)")


def _distillation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("distillation")
    group.add_argument(
        "--teacher",
        type=path_argument,
        metavar="WEIGHTS",
        help="single network whose answers to learn too",
    )
    group.add_argument("--distill-weight", type=float, default=0.7, help="its part's share (0.7)")
    group.add_argument("--distill-temperature", type=float, default=2.0, help="softens both (2)")
    group.add_argument(
        "--teacher-cache", type=Path, metavar="NPZ", help="its answers, kept (OUT.teacher.npz)"
    )


def execute(args: argparse.Namespace) -> int:
    """Train, write the weights, and say how good they are."""
    if args.threads < 1:
        raise UsageError(f"--threads is {args.threads}; it needs a number from 1")
    if args.out.exists() and not args.resume:
        raise UsageError(
            f"{args.out} exists: name another --out, remove it, or go on with --resume"
        )
    checkpoint = checkpoint_of(args)
    if checkpoint.exists() and not args.resume:
        raise UsageError(
            f"{checkpoint} exists, of an earlier training: go on with --resume, or remove it: "
            f"rm {shlex.quote(str(checkpoint))}"
        )
    if args.out.parent.is_dir() and not os.access(args.out.parent, os.W_OK):
        raise EnvironmentFault(f"{args.out.parent}: cannot be written; name another --out")
    from collage_mpi.training.peers import together

    return together(args.device, lambda peers: _train(args, peers))


def _train(args: argparse.Namespace, peers: Peers) -> int:
    """One process's part of the training; the lead's also the output."""
    from collage_mpi.models.predictor import usable_device
    from collage_mpi.training.finish import store
    from collage_mpi.training.logs import epoch_logger
    from collage_mpi.training.loop import Trainer
    from collage_mpi.training.peers import check_batch
    from collage_mpi.training.records import Machine
    from collage_mpi.training.sources import load

    if peers.lead and not args.out.parent.is_dir():
        raise EnvironmentFault(f"{args.out.parent} is not a directory; make it, or change --out")
    check_batch(args.batch, peers.size)
    data, facts, settings = load(sources_of(args), lambda shape: settings_of(args, shape), peers)
    usable_device(peers.device)
    checkpoint = checkpoint_of(args)
    log = args.log or args.out.with_name(args.out.name + ".csv")
    on_epoch = epoch_logger(log, args.tensorboard) if peers.lead else None
    machine = Machine(peers.device, args.threads, checkpoint, args.resume, peers, on_epoch)
    trainer = Trainer(data, settings, machine)
    if not peers.lead:
        trainer.run()
        return 0
    if trainer.taken is not None and not args.resume:
        print(f"{trainer.taken[0]} of {trainer.taken[1]} tensors taken from {args.init}")
    weights = sum(p.numel() for p in trainer.network.parameters())
    shared = "" if peers.size == 1 else f"{peers.size} processes, "
    print(
        f"{args.kind}: {weights:,} parameters, {len(data.images):,} images to train on, "
        f"{len(data.held_images):,} to validate, {settings.epochs} epochs, {shared}"
        f"{trainer.precision}, checkpoint {checkpoint}",
        flush=True,
    )
    info = store(args.out, trainer.run(), settings, data, facts)
    print(f"{args.out}: {_worth(args.kind, info.metadata)}, sha256 {info.fingerprint[:12]}")
    return 0


def _worth(kind: str, metadata: dict[str, Any]) -> str:
    """What the validation part said of a network, and why where it said nothing."""
    from collage_mpi.results.statistics import wilson_interval
    from collage_mpi.training.finish import MIN_FOR_TEMPERATURE

    training = metadata["training"]
    accuracy, n = training.get("validation_accuracy"), training["validation_images"]
    what = f"{'degraded ' if kind == 'parity' else ''}validation accuracy"
    if accuracy is None:
        return f"{what} n/a (no image was kept apart: --validation 0.05 keeps one in 20)"
    low, high = wilson_interval(round(accuracy * n), n) or (0.0, 1.0)
    found = f"{what} {accuracy:.2%} ({n:,} images: {low:.1%} to {high:.1%})"
    if "validation_ece" not in training:
        few = f"it is fitted to {MIN_FOR_TEMPERATURE} validation images or more: --validation"
        return f"{found}, temperature 1.0 ({few})"
    error = f"calibration error {training['validation_ece']:.4f}"
    return f"{found}, temperature {metadata['temperature']}, {error}"


def checkpoint_of(args: argparse.Namespace) -> Path:
    """Where the checkpoint is, said or not."""
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
    teacher: Path | None = args.single if args.kind == "parity" else args.teacher
    return teacher


def settings_of(args: argparse.Namespace, shape: tuple[int, ...]) -> TrainSettings:
    """What the flags say, for images of a shape (H, W, C)."""
    from collage_mpi.models.heads import HeadSpec
    from collage_mpi.models.parity_spec import ParitySpec
    from collage_mpi.models.weights import describe_weights
    from collage_mpi.training.settings import TrainSettings

    path = teacher_of(args)
    teacher = None if path is None else describe_weights(path, "single")
    init = None if args.init is None else describe_weights(args.init)
    side = cell_px = None
    if args.kind == "collage":
        side, cell_px = args.side, args.cell_px or default_cell_px(args, int(shape[0]))
        if not 2 <= side <= 5:
            raise UsageError(f"--side is {side}; collage networks are trained for 2 to 5")
    parity = None
    if args.kind == "parity":
        assert teacher is not None
        parity = ParitySpec(args.k, args.encoder, args.summed, teacher.fingerprint)
    return TrainSettings(
        kind=args.kind,
        architecture=architecture_of(args),
        side=side,
        cell_px=cell_px,
        epochs=args.epochs,
        batch=args.batch,
        learning_rate=args.lr,
        weight_decay=args.weight_decay,
        label_smoothing=args.label_smoothing,
        flips=args.flips,
        shift_px=args.shift_px,
        blank_share=getattr(args, "blank_share", 0.0),
        validation_share=args.validation,
        seed=args.seed,
        precision=args.precision,
        schedule=args.schedule,
        ema=args.ema,
        keep=args.keep,
        teacher=None if teacher is None else teacher.fingerprint,
        distill_weight=getattr(args, "distill_weight", 0.7),
        distill_temperature=getattr(args, "distill_temperature", 2.0),
        head=HeadSpec(getattr(args, "head", "grid")),
        init=None if init is None else init.fingerprint,
        parity=parity,
    )


def architecture_of(args: argparse.Namespace) -> Architecture | Backbone:
    """The network that the flags name. Raises UsageError where they contradict each other."""
    from collage_mpi.models.architecture import default_architecture, parse_stages, parse_stem
    from collage_mpi.models.backbone import Backbone

    name = getattr(args, "preset", None)
    backbone = REFERENCE_BACKBONE if name == REFERENCE else args.backbone
    given = {
        "--backbone": args.backbone,
        "--preset": name,
        "--width": args.width,
        "--stem": None if backbone is None else args.stem,
        "--stages": None if backbone is None else args.stages,
    }
    several = [f"{flag} {value}" for flag, value in given.items() if value is not None]
    if len(several) > 1:
        raise UsageError(f"{' and '.join(several)}: give one of them")
    if backbone is not None:
        return Backbone(backbone)
    if args.kind == "collage" and name is None and args.width is None:
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


def default_cell_px(args: argparse.Namespace, image_px: int) -> int:
    """Pixels of a cell where nothing is said: the image's own, or the reference's share."""
    if getattr(args, "preset", None) == REFERENCE:
        side: int = args.side
        return round(REFERENCE_COLLAGE_PX / side)
    return image_px

"""`collage-mpi weights`: imports weights of other programs, and finds an accept threshold."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.kinds import BACKUP, COLLAGE, KIND, SINGLE
from collage_mpi.models.tuning import PLAIN, PRECISIONS
from collage_mpi.settings.shipped import file_argument, path_argument
from collage_mpi.system.progress import advancing

if TYPE_CHECKING:
    from collage_mpi.models.info import NetworkInfo
    from collage_mpi.training.threshold import TwoStages

# Of torchvision's own weights: mean and std of ImageNet's pixels / 255.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `weights import` and `weights threshold`."""
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    line = "import a single network of another library from its .pth, .pt or .safetensors file"
    child = tasks.add_parser("import", help=line, description=line[0].upper() + line[1:] + ".")
    child.add_argument(
        "file", type=Path, metavar="FILE", help="file with a state dict; nothing in it is executed"
    )
    child.add_argument(
        "--backbone",
        required=True,
        metavar="LIBRARY:NAME",
        help="such as torchvision:resnet34 or efficientnet-lite:lite0",
    )
    child.add_argument(
        "--out", type=Path, required=True, metavar="FILE.safetensors", help="weights file to write"
    )
    child.add_argument(
        "--size",
        type=int,
        default=224,
        metavar="PX",
        help="height and width of the images that the network takes (default: %(default)s)",
    )
    names = child.add_mutually_exclusive_group()
    names.add_argument("--class-names", metavar="A,B,C", help="names of classes 0, 1, ...")
    names.add_argument(
        "--class-names-file",
        type=Path,
        metavar="FILE",
        help="text file with the class names in order, one a line",
    )
    child.add_argument(
        "--mean",
        metavar="R,G,B",
        help="mean of the pixels / 255 that the network was trained on (default: ImageNet's)",
    )
    child.add_argument(
        "--std",
        metavar="R,G,B",
        help="standard deviation of the pixels / 255 that the network was trained on (default: "
        "ImageNet's)",
    )

    _add_threshold(tasks)


def _add_threshold(tasks: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    line = "find the score from which a network's answers count, for its weights file"
    child = tasks.add_parser(
        "threshold",
        help=line,
        description=f"{line[0].upper()}{line[1:]}. The score is chosen on one half of labelled "
        "images that neither network was trained on, and measured on the other half. `run` uses "
        "it by default.",
    )
    child.add_argument(
        "--shards", type=path_argument, nargs="+", required=True, help="labelled shards"
    )
    child.add_argument(
        "--single", type=file_argument, required=True, metavar="W", help="the single network"
    )
    first = child.add_mutually_exclusive_group(required=True)
    first.add_argument("--collage", type=file_argument, metavar="W", help="the collage network")
    first.add_argument(
        "--backup", type=file_argument, metavar="W", help="or a quick single network"
    )
    child.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="weights file to write (default: the file of --collage or --backup)",
    )
    child.add_argument(
        "--aim",
        choices=("share", "accuracy"),
        default="share",
        help="what the threshold optimises. share: as many answers as possible count, for a loss "
        "of at most 0.1 points of accuracy. accuracy: the answers count that give the highest "
        "accuracy; for a network that is worse than the single network but better where its score "
        "is high (default: %(default)s)",
    )
    child.add_argument(
        "--errors",
        type=float,
        default=1.0,
        metavar="N",
        help="standard errors that are added to the loss when the score is chosen; more are safer, "
        "and fewer answers count (default: %(default)g)",
    )
    child.add_argument("--device", default="cpu", help="cpu, cuda (default: %(default)s)")
    child.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="number format of the networks (default: %(default)s)",
    )


def execute(args: argparse.Namespace) -> int:
    """Convert, or measure, and say what was made."""
    return _threshold(args) if args.task == "threshold" else _import(args)


def _threshold(args: argparse.Namespace) -> int:
    from collage_mpi.models import describe
    from collage_mpi.models.weights import with_accept
    from collage_mpi.training.measure import service_ratio
    from collage_mpi.training.threshold import (
        Aim,
        choose_threshold,
        find_savings,
        told_errors,
        told_savings,
    )

    kind = BACKUP if args.collage is None else COLLAGE
    specs = {SINGLE: args.single, kind: getattr(args, kind)}
    single, first = (describe(spec, KIND[each].network) for each, spec in specs.items())
    if single is None or first is None:
        raise UsageError("a threshold is for networks with weights files: name two")
    if single.fingerprint == first.fingerprint:
        raise UsageError(f"--{kind} {specs[kind]} is the --single itself: name another network")
    if not 0 <= args.errors < math.inf:
        raise UsageError(f"--errors is {args.errors:g}; it needs a number from 0")
    stages, (alone, asked) = _ask_both(args, specs, [single, first])
    aim = Aim(share=args.aim == "share", errors=args.errors)
    found = choose_threshold(stages, single.fingerprint, aim)
    made = with_accept(first, found, args.out or Path(specs[kind]))
    print(
        f"{made.path}: answers count from a score of {found.confidence:g}, chosen with "
        f"{told_errors(args.errors)}, which changes accuracy "
        f"by {0 - found.chosen_points:+.2f} points on {found.chosen_on:,} images and by "
        f"{0 - found.measured_points:+.2f} on {found.measured_on:,} others, where "
        f"{found.share:.0%} of the answers count; sha256 {made.fingerprint[:12]}"
    )
    ratio, timed = service_ratio(alone, asked, stages.cells)
    print(told_savings(find_savings(stages, ratio, found), timed))
    return 0


def _ask_both(
    args: argparse.Namespace, specs: dict[str, str], infos: Sequence[NetworkInfo]
) -> tuple[TwoStages, list[Any]]:
    """The answers of both networks to all images of the shards, and the networks."""
    import numpy as np

    from collage_mpi.models import load_predictor
    from collage_mpi.models.fit import check_fit
    from collage_mpi.models.info import Loading
    from collage_mpi.shards import ShardSet
    from collage_mpi.training.measure import answers_of, images_a_call
    from collage_mpi.training.threshold import TwoStages, require_images

    with ShardSet.open(args.shards) as shards:
        check_fit(infos, shards.shape, shards.class_names, args.shards)
        labels = shards.labels()
        if labels is None:
            raise DataFault("the shards have no labels; a threshold needs labelled shards")
        require_images(len(labels))
        how = Loading(device=args.device, tuning=replace(PLAIN, precision=args.precision))
        networks: list[Any] = [
            load_predictor(spec, KIND[each].network, how) for each, spec in specs.items()
        ]
        answers = []
        for each, network in zip(specs, networks, strict=True):
            with advancing(len(shards), each) as advance:
                answers.append(answers_of(network, shards, np.arange(len(shards)), advance))
    return TwoStages(answers[0], answers[1], labels, images_a_call(infos[1])), networks


def _import(args: argparse.Namespace) -> int:
    from collage_mpi.commands.prep_rows import class_names
    from collage_mpi.models.architecture import Backbone
    from collage_mpi.models.foreign_weights import import_weights

    if args.out.exists():
        raise UsageError(f"{args.out} exists. Choose another --out, or remove the file")
    if args.out.suffix != ".safetensors":
        raise UsageError(f"--out {args.out}: the name must end in .safetensors")
    if not args.out.parent.is_dir():
        raise EnvironmentFault(f"{args.out.parent} is not a directory. Create it, or change --out")
    info = import_weights(
        args.file,
        Backbone(args.backbone),
        args.out,
        size_px=args.size,
        class_names=class_names(args),
        normalisation={
            "mean": _numbers("--mean", args.mean, IMAGENET_MEAN),
            "std": _numbers("--std", args.std, IMAGENET_STD),
        },
    )
    print(
        f"{args.out}: {args.backbone}, {len(info.class_names)} classes, {args.size} x {args.size} "
        f"x 3, sha256 {info.fingerprint[:12]}"
    )
    return 0


def _numbers(flag: str, text: str | None, default: tuple[float, ...]) -> list[float]:
    try:
        values = list(default) if text is None else [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 3:
        raise UsageError(f"{flag} is {text!r}; it needs three numbers, such as 0.485,0.456,0.406")
    return values

"""`collage-mpi weights import`: other programs' weights as a weights file of ours.

Owns: the flags and the words on the terminal.
Does not know: the file formats (models/foreign_weights.py, models/weights.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from collage_mpi.errors import EnvironmentFault, UsageError

# Of torchvision's own weights: mean and std of ImageNet's pixels / 255.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `weights import`."""
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    line = "a single network of torchvision's from its .pth, .pt or .safetensors"
    child = tasks.add_parser("import", help=line, description=line[0].upper() + line[1:] + ".")
    child.add_argument("file", type=Path, metavar="FILE", help="a state dict; nothing is executed")
    child.add_argument(
        "--backbone", required=True, metavar="torchvision:NAME", help="such as torchvision:resnet34"
    )
    child.add_argument(
        "--out", type=Path, required=True, metavar="FILE.safetensors", help="weights file to write"
    )
    child.add_argument(
        "--size",
        type=int,
        default=224,
        metavar="PX",
        help="height and width of its images (default: %(default)s)",
    )
    names = child.add_mutually_exclusive_group()
    names.add_argument("--class-names", metavar="A,B,C", help="names of classes 0, 1, ...")
    names.add_argument(
        "--class-names-file", type=Path, metavar="FILE", help="the same, a name a line"
    )
    child.add_argument(
        "--mean",
        metavar="R,G,B",
        help="of the pixels / 255 it was trained on (default: ImageNet's)",
    )
    child.add_argument(
        "--std", metavar="R,G,B", help="the same, their standard deviation (default: ImageNet's)"
    )


def execute(args: argparse.Namespace) -> int:
    """Convert and say what was made."""
    from collage_mpi.commands.prep_rows import class_names
    from collage_mpi.models.backbone import Backbone
    from collage_mpi.models.foreign_weights import import_weights

    if args.out.exists():
        raise UsageError(f"{args.out} exists: name another --out, or remove it")
    if args.out.suffix != ".safetensors":
        raise UsageError(f"--out {args.out}: the name must end in .safetensors")
    if not args.out.parent.is_dir():
        raise EnvironmentFault(f"{args.out.parent} is not a directory; make it, or change --out")
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
        raise UsageError(f"{flag} {text!r}; needed: three numbers, such as 0.485,0.456,0.406")
    return values

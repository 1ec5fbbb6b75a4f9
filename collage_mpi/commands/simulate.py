"""`collage-mpi simulate`: a run on virtual time, with the settings of `run`."""

from __future__ import annotations

import argparse

from collage_mpi.config import add_setting_flags, settings_from_args
from collage_mpi.errors import UsageError

COSTS = {
    "receive": "us that taking an answer occupies rank 0 (default: 60)",
    "send": "us that a send occupies rank 0 (default: 40)",
    "encode": "us that pasting a collage occupies rank 0 (default: 30)",
    "network": "us that a message travels (default: 50)",
    "single": "us of the single network, where no delay model is set (default: 5000)",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings of a run, the number of images, what things take."""
    parser.epilog = (
        "For example: collage-mpi simulate --images 90000 --straggler lognormal "
        "--slow-ranks 4:5 --cost-ratio 1.4 --out runs/simulated. Rows, verify, export and "
        "analysis are those of a real run. The cost ratio is 1.0 unless it is set."
    )
    parser.add_argument("--images", type=int, required=True, metavar="N", help="how many images")
    for name, line in COSTS.items():
        parser.add_argument(f"--{name}-us", type=float, metavar="US", help=line)
    add_setting_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Simulate and print the summary."""
    from pathlib import Path

    from collage_mpi.results import read_results, render_summary, summarise
    from collage_mpi.simulate import Costs, simulate

    settings = settings_from_args(args)
    if not settings.out:
        raise UsageError("--out is missing: a folder for the results")
    if args.images < 1:
        raise UsageError(f"--images {args.images}: at least 1 is needed")
    given = {name: getattr(args, f"{name}_us") for name in COSTS}
    for name, value in given.items():
        if value is not None and not 0 <= value < 1e12:
            raise UsageError(f"--{name}-us {value}: it needs a time in us, 0 or more")
    costs = Costs(**{f"{n}_ns": round(v * 1e3) for n, v in given.items() if v is not None})
    simulate(settings, Path(settings.out), args.images, costs)
    print(render_summary(summarise(read_results(settings.out))))
    return 0

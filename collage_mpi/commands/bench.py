"""`collage-mpi bench costs`: what rank 0's steps and the messages of a finished run took."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `bench costs`."""
    kinds = parser.add_subparsers(dest="bench", metavar="BENCH", required=True)
    line = (
        "show how long rank 0's steps and the messages took in a finished real run, for simulate "
        "--costs"
    )
    costs = kinds.add_parser("costs", help=line, description=line[0].upper() + line[1:] + ".")
    costs.add_argument("run", metavar="RUN", help="folder of the run")
    costs.add_argument("--out", metavar="FILE", help="also write them to this file, as JSON")


def execute(args: argparse.Namespace) -> int:
    """Print the costs of a run, and write them to a file if one is named."""
    from collage_mpi.results import read_results
    from collage_mpi.simulation.costs import costs_of, save_costs

    run = read_results(args.run)
    costs = costs_of(run)
    print(costs.describe())
    if args.out:
        save_costs(Path(args.out), costs, f"{run.label}, {len(run.tasks):,} tasks")
        print(f"wrote {args.out}: collage-mpi simulate --costs {args.out} ...")
    return 0

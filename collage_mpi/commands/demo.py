"""`collage-mpi demo --out DIR`: four schemes side by side, on data and weights of the package."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.commands.parser import add_mpi_flag
from collage_mpi.experiments.demo import (
    GROUPS,
    RANKS,
    TIME_SCALE,
    check_before,
    run_all,
    tell_and_draw,
)
from collage_mpi.system.environment import launcher_size

if TYPE_CHECKING:
    from collage_mpi.job.worker_group import WorkerGroup


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder for the runs and the picture"
    )
    add_mpi_flag(parser)
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="device that the workers run their networks on (default: %(default)s)",
    )
    parser.add_argument(
        "--groups", type=int, default=GROUPS, help=f"groups of 9 images a run (default: {GROUPS})"
    )
    parser.add_argument(
        "--time-scale",
        type=float,
        default=TIME_SCALE,
        help="multiply the injected service times by this. If the demo marks its runs as INVALID "
        "on your machine, take a larger value; the demo then takes longer by the same factor "
        "(default: %(default)s)",
    )


def execute(args: argparse.Namespace) -> int:
    """Start 11 ranks of this same command, then print the report and draw the figures."""
    if (launcher_size() or 1) > 1:
        return _as_ranks(args)
    from collage_mpi.commands.launch import launch_ranks

    out = Path(args.out)
    check_before(out, args.groups, args.time_scale)
    words = ["demo", "--out", str(out), "--device", args.device, "--groups", str(args.groups)]
    words += ["--time-scale", str(args.time_scale)]
    code = launch_ranks(RANKS, words, mpi=args.mpi)
    if code:
        return code
    report, written = tell_and_draw(out)
    print(report)
    for path in written:
        print(f"wrote {path}")
    return 0


def _as_ranks(args: argparse.Namespace) -> int:
    from collage_mpi.job.main import run_world

    def body(worker_group: WorkerGroup, stop_reason: Callable[[], str | None]) -> int:
        out = Path(args.out)
        return run_all(out, args.device, worker_group, stop_reason, args.groups, args.time_scale)

    return run_world("demo", body)

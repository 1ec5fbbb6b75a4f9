"""A group's round trip with a null network, next to plain mpi4py loops: what the harness costs.

    python analysis/bench/round.py                                 # 11 ranks, then 3
    python analysis/bench/round.py --json --out round.json
    python analysis/bench/round.py --ranks 11 --profile job.pstats

It starts its own ranks. Under a launcher it measures that one world. The
figures are in analysis/reports/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import Any

from round_settings import WORLDS, BenchSettings

from collage_mpi.errors import CollageError, EnvironmentFault, ExitCode, UsageError
from collage_mpi.system.environment import launcher_size
from collage_mpi.system.launchers import MPIS
from collage_mpi.system.tell import report as tell_launch
from collage_mpi.system.tell import tell, told_on_stderr


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the script."""
    default = BenchSettings()
    parser.add_argument(
        "--ranks",
        type=int,
        nargs="+",
        metavar="N",
        help="world sizes to measure, each with 1 collage rank and N - 2 single ranks (default: "
        "11 3)",
    )
    parser.add_argument(
        "--px",
        type=int,
        default=default.px,
        help="height and width of an image in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=default.rounds,
        help="measured rounds of each variant (default: %(default)s)",
    )
    parser.add_argument(
        "--blocks",
        type=int,
        default=default.blocks,
        help="blocks of rounds, in which the variants take turns (default: %(default)s)",
    )
    parser.add_argument(
        "--warmup",
        type=int,
        default=default.warmup,
        help="unmeasured rounds before each block (default: %(default)s)",
    )
    parser.add_argument(
        "--mpi",
        choices=MPIS,
        default="auto",
        help="which MPI to use. auto: the one that mpi4py loads",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--out", metavar="FILE", help="also write the JSON to this file")
    parser.add_argument(
        "--profile",
        metavar="FILE",
        help="profile the variant job-memory on rank 0 into this pstats file; this distorts the "
        "measured times",
    )
    # One world's report, for the process that started its ranks.
    parser.add_argument("--collect", metavar="FILE", help=argparse.SUPPRESS)


def execute(args: argparse.Namespace) -> int:
    """Start the worlds one after another; under a launcher, take part as a rank."""
    settings = BenchSettings(px=args.px, rounds=args.rounds, blocks=args.blocks, warmup=args.warmup)
    for path in filter(None, (args.out, args.profile)):
        if not Path(path).absolute().parent.is_dir():
            raise EnvironmentFault(
                f"{path}: the folder of this file does not exist. Create it first"
            )
    if (launcher_size() or 1) > 1:
        return _as_ranks(args, settings)
    return _start_worlds(args, settings)


def _start_worlds(args: argparse.Namespace, settings: BenchSettings) -> int:
    from round_report import full_report

    from collage_mpi.commands.launch import LaunchArguments, launch_ranks

    sizes = args.ranks or WORLDS
    for size in sizes:
        _check_size(size)
    if args.profile and len(sizes) > 1:
        raise UsageError("--profile needs a single world: add, for example, --ranks 11")
    words = [__file__, "--px", str(settings.px), "--rounds", str(settings.rounds)]
    words += ["--blocks", str(settings.blocks), "--warmup", str(settings.warmup)]
    words += ["--profile", args.profile] if args.profile else []
    worlds = []
    with tempfile.TemporaryDirectory(prefix="collage-mpi-bench-") as folder:
        for size in sizes:
            found = Path(folder) / f"world-{size}.json"
            command = (*words, "--collect", str(found))
            code = launch_ranks(size, LaunchArguments(words=command, mpi=args.mpi))
            if code:
                return code
            worlds.append(json.loads(found.read_text()))
    _tell(args, full_report(settings, worlds))
    return 0


def _check_size(size: int) -> None:
    if size < 3:
        raise UsageError(f"--ranks {size}: at least 3 are needed (rank 0, a single, a collage)")


def _as_ranks(args: argparse.Namespace, settings: BenchSettings) -> int:
    from round_job import bench_world
    from round_report import full_report

    from collage_mpi.mpi.transport import guarded, open_world

    comm, mpi = open_world()
    size, launched = comm.Get_size(), launcher_size()
    if size != launched:
        raise EnvironmentFault(
            f"the launcher started {launched} ranks, but MPI says {size}: the launcher and the "
            "MPI library do not belong together. Let this script start the ranks: python "
            "analysis/bench/round.py"
        )
    _check_size(size)
    if args.ranks not in (None, [size]):
        raise UsageError(f"--ranks {args.ranks}: the launcher started {size}; leave --ranks out")

    def work() -> int:
        profile = _profile() if args.profile and comm.Get_rank() == 0 else None
        report = bench_world(settings, comm, mpi, profile)
        if profile is not None:
            profile.dump_stats(args.profile)
        if report is not None and args.collect:
            Path(args.collect).write_text(json.dumps(report))
        elif report is not None:
            _tell(args, full_report(settings, [report]))
        if report is not None:
            tell_launch(exit=0)
        return int(ExitCode.COMPLETE)

    return guarded(comm, work)


def _profile() -> Any:
    from cProfile import Profile

    return Profile()


def _tell(args: argparse.Namespace, report: dict[str, Any]) -> None:
    from round_report import render

    text = json.dumps(report, indent=2)
    if args.out:
        Path(args.out).write_text(text + "\n")
    print(text if args.json else render(report), flush=True)


def main() -> int:
    """A mistake is told in one message, as by `collage-mpi`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    args = parser.parse_args()
    with told_on_stderr():
        try:
            return execute(args)
        except CollageError as error:
            tell(f"round.py: {error}", logging.ERROR)
            return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main())

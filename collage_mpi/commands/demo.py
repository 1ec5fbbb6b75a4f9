"""`collage-mpi demo --out DIR`: compares four schemes, with data and weights of the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.commands.launch import LaunchArguments, launch_ranks
from collage_mpi.commands.parser import Command, MpiArguments
from collage_mpi.experiments.demo import (
    GROUPS,
    LEAST_GROUPS,
    RANKS,
    TIME_SCALE,
    check_before,
    run_all,
    tell_and_draw,
)
from collage_mpi.settings.inputs import NetworkSettings
from collage_mpi.system.environment import launcher_size
from collage_mpi.system.fields import REQUIRED, same, setting

if TYPE_CHECKING:
    from collage_mpi.job.worker_group import WorkerGroup


@dataclass(frozen=True, kw_only=True)
class DemoArguments(MpiArguments):
    """The arguments of demo."""

    out: Path = setting(REQUIRED, "folder for the runs, the picture and the pages", metavar="DIR")
    device: str = same(NetworkSettings, "device", group="")
    groups: int = setting(
        GROUPS, "groups of 9 images in each run; 2 of them are warm-up", at_least=LEAST_GROUPS
    )
    time_scale: float = setting(
        TIME_SCALE,
        "multiply the injected service times by this. If the demo marks its runs as INVALID on "
        "your machine, take a larger value; the demo then takes longer by the same factor",
    )


def execute(args: DemoArguments) -> int:
    """Start 11 ranks of this command, then print the report and draw the figures."""
    if (launcher_size() or 1) > 1:
        return _as_ranks(args)

    out = args.out
    check_before(out, args.time_scale)
    words = ["demo", "--out", str(out), "--device", args.device, "--groups", str(args.groups)]
    words += ["--time-scale", str(args.time_scale)]
    code = launch_ranks(RANKS, LaunchArguments(words=tuple(words), mpi=args.mpi))
    if code:
        return code
    report, written = tell_and_draw(out)
    print(report)
    for path in written:
        print(f"wrote {path}")
    return 0


def ranks_needed(args: DemoArguments) -> list[int]:
    """The number of ranks that the demo needs, in a list. Raises as `check_before`."""
    check_before(args.out, args.time_scale)
    return [RANKS]


def _as_ranks(args: DemoArguments) -> int:
    from collage_mpi.job.main import run_world

    def body(worker_group: WorkerGroup, stop_reason: Callable[[], str | None]) -> int:
        return run_all(
            args.out, args.device, worker_group, stop_reason, args.groups, args.time_scale
        )

    return run_world("demo", body)


COMMAND = Command(execute, DemoArguments, ranks=ranks_needed)

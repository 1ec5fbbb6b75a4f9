"""`collage-mpi bench costs`: how long rank 0's steps and the messages of a finished run took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from collage_mpi.commands.parser import Command, Commands
from collage_mpi.settings.flags import Arguments
from collage_mpi.simulation.costs import costs_of, save_costs
from collage_mpi.system.fields import REQUIRED, setting


@dataclass(frozen=True, kw_only=True)
class CostsArguments(Arguments):
    """The arguments of `bench costs`."""

    run: str = setting(REQUIRED, "folder of the run", metavar="RUN", positional=True)
    out: str | None = setting(None, "also write the costs to this file, as JSON", metavar="FILE")


def costs(args: CostsArguments) -> int:
    """Print the costs of a run, and write them to --out. Returns 0."""
    from collage_mpi.results import read_results

    run = read_results(args.run)
    found = costs_of(run)
    print(found.describe())
    if args.out:
        save_costs(Path(args.out), found, f"{run.label}, {len(run.tasks):,} tasks")
        print(f"wrote {args.out}: collage-mpi simulate --costs {args.out} ...")
    return 0


COSTS = Command(
    costs,
    CostsArguments,
    "show how long rank 0's steps and the messages took in a finished real run, for simulate "
    "--costs",
)
COMMAND = Commands("BENCH", {"costs": COSTS})

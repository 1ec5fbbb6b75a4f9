"""`collage-mpi experiment FILE`: runs the jobs of an experiment file and makes one table of
them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.commands.launch import LaunchArguments, launch_ranks
from collage_mpi.commands.parser import Command, MpiArguments
from collage_mpi.errors import ExitCode, UsageError
from collage_mpi.experiments.spec import Experiment, Point, parse_indices, read_experiment
from collage_mpi.settings.flags import switch
from collage_mpi.system.environment import launcher_size, processes_here
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.printable import numbers_text, some_of

if TYPE_CHECKING:
    from collage_mpi.job.worker_group import WorkerGroup

TASK = "what is done"  # --list, --index and --table exclude each other
_GOES_ON = (int(ExitCode.COMPLETE), int(ExitCode.COMPLETE_WITH_ERRORS))


@dataclass(frozen=True, kw_only=True)
class ExperimentArguments(MpiArguments):
    """The arguments of experiment."""

    file: Path = setting(
        REQUIRED, "experiment file: .toml or .json", metavar="FILE", positional=True
    )
    out: Path | None = setting(None, "folder for the runs and for table.csv", metavar="DIR")
    list: bool = switch("print the index, name and number of ranks of each point", either=TASK)
    index: str | None = setting(
        None, "run only these points, for example 3, 0-5 or 0-5,9", metavar="I", either=TASK
    )
    table: bool = switch("run nothing; make the table of the runs that exist", either=TASK)
    sets: tuple[str, ...] = setting(
        (),
        "replace a value of the file: a setting of [base], or how, repeat, groups, images, ...",
        metavar="KEY=VALUE",
        flag="--set",
        repeated=True,
    )
    jobs: int | None = setting(
        None, "number of runs simulated at the same time", unset="all cores", at_least=1
    )

    def chosen(self, experiment: Experiment) -> Sequence[Point]:
        """The points to run: those of --index, or all. Raises UsageError for a wrong --index."""
        points = experiment.points
        if self.index is None:
            return points
        return [points[i] for i in parse_indices(self.index, len(points))]


def execute(args: ExperimentArguments) -> int:
    """List the points, make the table, or run the points that are not done yet. Returns the worst
    exit code of the runs.
    """
    experiment = read_experiment(args.file, args.sets)
    if args.list:
        return _list(experiment)
    if args.out is None:
        raise UsageError("--out is missing: a folder for the runs")
    points = args.chosen(experiment)
    if args.table:
        return _table(experiment, args.out)
    if (launcher_size() or 1) > 1:
        return _as_ranks(experiment, points, args.out)
    code = _by_hand(args, args.out, experiment, points)
    if args.index is None and code in _GOES_ON:
        _table(experiment, args.out)
    return code


def ranks_needed(args: ExperimentArguments) -> list[int]:
    """The numbers of ranks that the chosen runs need, ascending."""
    experiment = read_experiment(args.file, args.sets)
    if experiment.how != "run":
        raise UsageError(
            f"how = {experiment.how!r} needs no ranks: repeat the command without launch"
        )
    return sorted({point.ranks for point in args.chosen(experiment)})


def _list(experiment: Experiment) -> int:
    print("index\tname\tranks")
    for point in experiment.points:
        print(f"{point.index}\t{point.name}\t{point.ranks}")
    return 0


def _table(experiment: Experiment, out: Path) -> int:
    from collage_mpi.experiments.table import write_tables

    found = write_tables(experiment, out)
    print(f"wrote {found.table}: {found.runs} of {len(experiment.points)} runs")
    print(f"wrote {found.points}: medians and ranges over the repeats")
    if found.missing:
        names = some_of([point.name for point in found.missing], 5)
        print(f"no run yet: {names}", file=sys.stderr)
    return 0


def _as_ranks(experiment: Experiment, points: Sequence[Point], out: Path) -> int:
    from collage_mpi.experiments.runner import run_points
    from collage_mpi.job.main import run_world

    if experiment.how != "run":
        raise UsageError(f"how = {experiment.how!r} needs no ranks: leave out the launcher")

    def body(worker_group: WorkerGroup, stop_reason: Callable[[], str | None]) -> int:
        return run_points(points, out, worker_group, stop_reason)

    return run_world("experiment", body)


def _by_hand(
    args: ExperimentArguments, out: Path, experiment: Experiment, points: Sequence[Point]
) -> int:
    """Run the points that are not done yet. Ranks are started once for all points that need the
    same number of ranks.
    """
    from collage_mpi.experiments.runner import DONE, check_plans, launches, simulate_points, state

    todo = [point for point in points if state(point, out) != DONE]
    if len(todo) < len(points):
        print(f"{len(points) - len(todo)} of {len(points)} runs are done already", flush=True)
    if experiment.how == "simulate":
        simulate_points(experiment, todo, out, args.jobs or processes_here())
        return 0
    check_plans(todo, out)
    worst = 0
    for ranks, members in launches(todo):
        indices = [point.index for point in members]
        chosen = numbers_text(indices, None, steps=False).replace(" ", "")
        words = ["experiment", str(args.file), "--out", str(out), "--index", chosen]
        words += [word for text in args.sets for word in ("--set", text)]
        code = launch_ranks(ranks, LaunchArguments(words=tuple(words), mpi=args.mpi))
        if code not in _GOES_ON:
            return code
        worst = max(worst, code)
    return worst


COMMAND = Command(
    execute,
    ExperimentArguments,
    ranks=ranks_needed,
    epilog="In a Slurm array, run: collage-mpi experiment FILE --index $SLURM_ARRAY_TASK_ID --out "
    "DIR. When all tasks have ended, run: collage-mpi experiment FILE --table --out DIR. A "
    "repeated command skips the runs that are done.",
)

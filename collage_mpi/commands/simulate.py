"""`collage-mpi simulate`: simulates a run on virtual time, with the settings of `run`."""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from collage_mpi.commands.parser import Command
from collage_mpi.errors import UsageError
from collage_mpi.experiments.spec import parse_numbers, repeats
from collage_mpi.models.named import is_null
from collage_mpi.settings.flags import (
    Arguments,
    Values,
    add_setting_flags,
    given_run,
    group_of,
    switch,
)
from collage_mpi.simulation.costs import Costs, costs_of
from collage_mpi.system.environment import processes_here
from collage_mpi.system.fields import about, default_of, setting
from collage_mpi.system.printable import say

if TYPE_CHECKING:
    from collage_mpi.simulation.simulator import SimulatedJob

MOST_SEEDS = 10_000
GROUP = "simulation"  # heading in --help
COST_FLAGS = {f"{spec.name.removesuffix('_ns')}_us": spec for spec in dataclasses.fields(Costs)}

_setting = partial(setting, group=GROUP)


@dataclass(frozen=True, kw_only=True)
class SimulateArguments(Arguments):
    """The arguments of simulate, in addition to the settings of `run` and the costs."""

    images: int | None = _setting(
        None, "number of images to classify", at_least=1, at_most=math.inf
    )
    costs: str | None = _setting(
        None,
        "take the costs of rank 0 and of messages from this finished real run",
        metavar="RUN",
    )
    answers: str | None = _setting(
        None,
        "file of `evaluate --save-answers` (.npz); the simulation uses its answers",
        metavar="FILE",
        shipped=True,
    )
    seeds: str | None = _setting(
        None,
        "simulate one run for each of these seeds, such as 0-23 or 1,5, and print tables of all "
        "runs",
        metavar="A-B",
    )
    jobs: int | None = _setting(
        None, "number of seeds simulated at the same time", unset="all cores", at_least=1
    )
    summary_only: bool = switch(
        "write the summary but no rows. Without --out, only print the summary", group=GROUP
    )

    @property
    def settings(self) -> Values:
        """The given settings of `run`."""
        return {name: value for name, value in self.given.items() if name not in COST_FLAGS}


def add_more_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every cost, in us, and for every setting of `run`."""
    group = group_of(parser, GROUP)
    for name, spec in COST_FLAGS.items():
        line = f"{about(spec).help} (default: {default_of(Costs, spec.name) / 1e3:g} us)"
        flag = "--" + name.replace("_", "-")
        group.add_argument(flag, type=float, metavar="US", default=argparse.SUPPRESS, help=line)
    add_setting_flags(parser)


def execute(args: SimulateArguments) -> int:
    """Simulate; print the summary, the table of all seeds, or the comparison with a run. Returns
    0.
    """
    job = _job(args)
    _tell_of_accept(job, "--answers, --single and --collage")
    if args.seeds:
        return _seeds(args, args.seeds, job)
    from collage_mpi.results import render_summary
    from collage_mpi.simulation.runs import run_job

    print(render_summary(run_job(job)))
    return 0


def _tell_of_accept(job: SimulatedJob, without: str) -> None:
    """Say that `accept auto` becomes `first` in a simulation without scores."""
    settings = job.settings
    null = is_null(settings.single) or is_null(settings.collage)
    if job.effective.accept == "first" != settings.accept and not null:
        say(
            f"accept auto: a simulation without {without} has no scores, so every answer of a "
            "collage counts"
        )


def _job(args: SimulateArguments) -> SimulatedJob:
    from collage_mpi.simulation.simulator import SimulatedJob

    settings = given_run(args.settings)
    if not settings.out and not args.summary_only:
        raise UsageError("--out is missing: give a folder for the results, or --summary-only")
    if args.images is None:
        raise UsageError("--images is missing: give the number of images to classify")
    return SimulatedJob(settings, args.images, _costs(args), args.answers, not args.summary_only)


def _costs(args: SimulateArguments) -> Costs:
    from collage_mpi.results import read_results

    costs = costs_of(read_results(args.costs)) if args.costs else Costs()
    changes = {}
    for name in COST_FLAGS.keys() & args.given.keys():
        value = args.given[name]
        if not 0 <= value < 1e12:
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} {value}: it needs a time in us, 0 or more")
        changes[COST_FLAGS[name].name] = round(value * 1e3)
    return dataclasses.replace(costs, **changes)


def _seeds(args: SimulateArguments, seeds: str, job: SimulatedJob) -> int:
    from collage_mpi.experiments.runner import simulate_points
    from collage_mpi.experiments.table import render_point, write_tables

    known = f"seeds are 0 to {MOST_SEEDS - 1}"
    experiment = repeats(job, parse_numbers(seeds, MOST_SEEDS, "--seeds", known))
    with TemporaryDirectory(prefix="collage-mpi-simulate-") as scratch:
        out = Path(job.settings.out or scratch)
        simulate_points(experiment, experiment.points, out, args.jobs or processes_here())
        found = write_tables(experiment, out)
    print(f"\n{render_point(found.rows[0])}")
    if job.settings.out:
        print(f"\nwrote {found.table} and {found.points}")
    return 0


COMMAND = Command(
    execute,
    SimulateArguments,
    more=add_more_flags,
    usage="collage-mpi simulate --images N --out DIR [more settings]",
    epilog="For example: collage-mpi simulate --images 90000 --straggler lognormal --slow-ranks "
    "4:5 --cost-ratio 1.4 --out runs/simulated. The commands verify, export, plot and "
    "report read a simulated run like a real one. The cost ratio is 1.0 unless it is set.",
)

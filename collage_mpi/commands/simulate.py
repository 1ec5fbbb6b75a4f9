"""`collage-mpi simulate`: simulates a run on virtual time, with the settings of `run`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from collage_mpi.errors import UsageError
from collage_mpi.settings.flags import add_setting_flags, given_settings, settings_from_args
from collage_mpi.settings.shipped import file_argument
from collage_mpi.simulation.costs import Costs
from collage_mpi.system.fields import about
from collage_mpi.system.printable import say

if TYPE_CHECKING:
    from collage_mpi.results import Results
    from collage_mpi.simulation.runs import SimulatedJob

MOST_SEEDS = 10_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings of a run, the number of images, and the costs."""
    parser.usage = "collage-mpi simulate --images N --out DIR [more settings]"
    parser.epilog = (
        "For example: collage-mpi simulate --images 90000 --straggler lognormal "
        "--slow-ranks 4:5 --cost-ratio 1.4 --out runs/simulated. Rows, verify, export and "
        "analysis are those of a real run. The cost ratio is 1.0 unless it is set."
    )
    own = parser.add_argument_group("simulation")
    own.add_argument("--images", type=int, metavar="N", help="number of images to classify")
    own.add_argument(
        "--like",
        metavar="RUN",
        help="simulate this finished real run and print the run and the simulation side by side",
    )
    own.add_argument(
        "--costs",
        metavar="FILE",
        help="take the costs from this file of `bench costs`, or from the folder of a real run",
    )
    for spec in dataclasses.fields(Costs):
        default_ns: int = getattr(Costs, spec.name)
        line = f"{about(spec).help} (default: {default_ns / 1e3:g} us)"
        own.add_argument(_cost_flag(spec.name), type=float, metavar="US", help=line)
    own.add_argument(
        "--answers",
        type=file_argument,
        metavar="FILE",
        help="file of `evaluate --save-answers` (.npz); the simulation uses its answers",
    )
    own.add_argument(
        "--seeds",
        metavar="A-B",
        help="simulate one run for each of these seeds, such as 0-23 or 1,5, and print tables of "
        "all runs",
    )
    own.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="number of seeds simulated at the same time (default: all cores)",
    )
    own.add_argument(
        "--summary-only",
        action="store_true",
        help="do not write rows. Without --out nothing is written, only printed",
    )
    add_setting_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Simulate and print the summary, the table of seeds, or the comparison."""
    if args.like:
        return _like(args)
    job = _job(args)
    _tell_of_accept(job, "--answers, --single and --collage")
    if args.seeds:
        return _seeds(args, job)
    from collage_mpi.results import render_summary
    from collage_mpi.simulation.runs import run_job

    print(render_summary(run_job(job)))
    return 0


def _tell_of_accept(job: SimulatedJob, without: str) -> None:
    """Tell what `accept auto` means in a simulation that cannot look at the networks."""
    from collage_mpi.models.null import is_null

    settings = job.settings
    null = is_null(settings.single) or is_null(settings.collage)
    if job.effective.accept == "first" != settings.accept and not null:
        say(
            f"accept auto: a simulation without {without} has no scores, so every answer of a "
            "collage counts"
        )


def _job(args: argparse.Namespace) -> SimulatedJob:
    from collage_mpi.simulation.runs import SimulatedJob

    settings = settings_from_args(args)
    if not settings.out and not args.summary_only:
        raise UsageError("--out is missing: give a folder for the results, or --summary-only")
    if args.images is None:
        raise UsageError("--images is missing: give the number of images to classify")
    return SimulatedJob(settings, _images(args), _costs(args), args.answers, not args.summary_only)


def _images(args: argparse.Namespace) -> int:
    if args.images < 1:
        raise UsageError(f"--images {args.images}: at least 1 is needed")
    return int(args.images)


def _costs(args: argparse.Namespace, run: Results | None = None) -> Costs:
    from collage_mpi.simulation.costs import costs_of, read_costs

    if args.costs:
        costs = read_costs(Path(args.costs))
    else:
        costs = Costs() if run is None else costs_of(run)
    changes = {}
    for spec in dataclasses.fields(Costs):
        flag = _cost_flag(spec.name)
        value = getattr(args, flag[2:].replace("-", "_"))
        if value is None:
            continue
        if not 0 <= value < 1e12:
            raise UsageError(f"{flag} {value}: it needs a time in us, 0 or more")
        changes[spec.name] = round(value * 1e3)
    return dataclasses.replace(costs, **changes)


def _cost_flag(name: str) -> str:
    return f"--{name.removesuffix('_ns')}-us"


def _like(args: argparse.Namespace) -> int:
    from collage_mpi.results import read_results, summarise
    from collage_mpi.simulation.report import compare, render_comparison
    from collage_mpi.simulation.runs import like, run_job

    for flag in ("seeds", "settings"):
        if getattr(args, flag):
            raise UsageError(f"--{flag} does not go with --like: the settings are the run's")
    run = read_results(args.like)
    if not run.complete:
        raise UsageError(f"--like {args.like}: the run is not complete")
    images = None if args.images is None else _images(args)
    job = like(run, given_settings(args)[0], images, _costs(args, run), args.answers)
    job = dataclasses.replace(job, rows=not args.summary_only)
    _tell_of_accept(job, "--answers")
    print(f"{run.label}, {run.manifest.get('straggler')}; cost ratio {job.ratio:.3f}")
    print(f"costs: {job.costs.describe()}\n")
    print(render_comparison(compare(summarise(run), run_job(job))))
    return 0


def _seeds(args: argparse.Namespace, job: SimulatedJob) -> int:
    from collage_mpi.experiments.runner import simulate_points
    from collage_mpi.experiments.spec import parse_numbers, repeats
    from collage_mpi.experiments.table import render_point, write_tables
    from collage_mpi.system.environment import processes_wanted

    known = f"seeds are 0 to {MOST_SEEDS - 1}"
    experiment = repeats(job, parse_numbers(args.seeds, MOST_SEEDS, "--seeds", known))
    with TemporaryDirectory(prefix="collage-mpi-simulate-") as scratch:
        out = Path(job.settings.out or scratch)
        simulate_points(experiment, experiment.points, out, processes_wanted("--jobs", args.jobs))
        found = write_tables(experiment, out)
    print(f"\n{render_point(found.rows[0])}")
    if job.settings.out:
        print(f"\nwrote {found.table} and {found.points}")
    return 0

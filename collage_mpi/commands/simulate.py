"""`collage-mpi simulate`: simulates a run on virtual time, with the settings of `run`."""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from collage_mpi.commands.parser import Command, read_command
from collage_mpi.errors import UsageError
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
from collage_mpi.system.printable import counted, ranges_in, say
from collage_mpi.system.table import Column, Table, Value, to_text

if TYPE_CHECKING:
    from collage_mpi.simulation.runs import Candidate
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
        "simulate one run for each of these seeds, such as 0-23 or 1,5, and print a table of all "
        "runs together",
        metavar="A-B",
    )
    schemes: tuple[str, ...] = _setting(
        (),
        "simulate each of these schemes and print a table that compares them with the first one. "
        'A scheme may have settings of its own, as in "hedge --deadline-ms 150"',
        metavar="SCHEME",
    )
    dead_ranks: tuple[str, ...] = _setting(
        (),
        "ranks that stop answering after this many seconds (3:2.5s) or tasks (3:20)",
        metavar="RANK:WHEN",
    )
    jobs: int | None = _setting(
        None, "number of runs simulated at the same time", unset="all cores", at_least=1
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
    """Simulate; print the summary, or the table of all schemes and seeds. Returns 0."""
    job = _job(args)
    if args.seeds or args.schemes:
        return _schemes(args, job)
    _tell_of_accept([job])
    from collage_mpi.results import render_summary
    from collage_mpi.simulation.runs import run_job

    print(render_summary(run_job(job)))
    return 0


def _tell_of_accept(jobs: Sequence[SimulatedJob]) -> None:
    """Say that `confidence auto` becomes 0 in a simulation without scores."""
    for job in jobs:
        settings = job.settings
        null = is_null(settings.single) or is_null(settings.collage)
        if job.effective.confidence == 0 != settings.confidence and not null:
            say(
                "confidence auto: a simulation without --answers, --single and --collage has no "
                "scores, so every answer of a collage counts"
            )
            return


def _job(args: SimulateArguments) -> SimulatedJob:
    from collage_mpi.simulation.simulator import SimulatedJob

    settings = given_run(args.settings)
    if args.seeds or args.schemes:
        if settings.out:
            raise UsageError("--seeds and --schemes print a table and write no run: omit --out")
    elif not settings.out and not args.summary_only:
        raise UsageError("--out is missing: give a folder for the results, or --summary-only")
    if args.images is None:
        raise UsageError("--images is missing: give the number of images to classify")
    return SimulatedJob(
        settings,
        args.images,
        _costs(args),
        args.answers,
        rows=not args.summary_only,
        dead_ranks=args.dead_ranks,
    )


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


def _schemes(args: SimulateArguments, job: SimulatedJob) -> int:
    """Simulate all schemes with all seeds and print their table."""
    from collage_mpi.simulation.runs import of_seed, simulate_schemes

    seeds = [job.settings.straggler_seed] if args.seeds is None else _parsed(args.seeds)
    each = [_of_scheme(args, job, text) for text in args.schemes] or [job]
    _tell_of_accept(each)
    found = simulate_schemes(
        [[of_seed(one, seed) for seed in seeds] for one in each],
        args.jobs or processes_here(),
    )
    print(to_text(_table(found)))
    whose = "an image" if job.settings.open_loop else "a group"
    print(
        f"Latency of {whose}, over {counted(len(seeds), 'seed')}. Ranks: including rank 0. Gain: "
        "P99 of the first line divided by P99 of this line."
    )
    return 0


def _parsed(seeds: str) -> list[int]:
    found = ranges_in(seeds)
    if found is None:
        raise UsageError(f"--seeds {seeds}: it needs a number, a range or a list, as in 0-5,9")
    if any(not part or part[-1] >= MOST_SEEDS for part in found):
        raise UsageError(f"--seeds {seeds}: seeds are 0 to {MOST_SEEDS - 1}")
    return sorted({*chain(*found)})


def _of_scheme(args: SimulateArguments, job: SimulatedJob, text: str) -> SimulatedJob:
    """The job of the command with the settings and dead ranks of an entry of --schemes."""
    _, own = read_command(["simulate", "--scheme", *shlex.split(text)])
    return dataclasses.replace(
        job,
        settings=given_run({**args.settings, **own.settings}),
        dead_ranks=own.dead_ranks or job.dead_ranks,
    )


def _table(found: Sequence[Candidate]) -> Table:
    plain = found[0]
    figures = [Column(name, ".4g") for name in ("P50, ms", "P99, ms")]
    figures += [Column("gain", ".2f", " x"), Column("images/s", ".4g")]
    figures += [Column("points lost", ".2f"), Column("wasted", ".1%")]
    rows: list[Sequence[Value]] = []
    for one in found:
        told = (one.p50_ms, one.p99_ms, one.sooner(plain) or None, one.images_per_s)
        rows.append((one.label, one.ranks, *told, one.points_lost(plain), one.wasted))
    return Table(("scheme", "ranks", *figures), rows)


COMMAND = Command(
    execute,
    SimulateArguments,
    more=add_more_flags,
    usage="collage-mpi simulate --images N --out DIR [more settings]",
    epilog="For example: collage-mpi simulate --images 90000 --straggler lognormal --slow-ranks "
    "4:5 --cost-ratio 1.4 --out runs/simulated. The commands verify, export, plot and "
    "report read a simulated run like a real one. The cost ratio is 1.0 unless it is set.",
)

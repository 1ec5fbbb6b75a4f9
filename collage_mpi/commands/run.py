"""`collage-mpi run`: the job itself, on every rank of an MPI world."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from collage_mpi.config import RunSettings
from collage_mpi.errors import ExitCode
from collage_mpi.settings_file import add_setting_flags, settings_from_args

if TYPE_CHECKING:
    from collage_mpi.crew import Crew


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for every setting."""
    parser.usage = (
        "collage-mpi run --shards PATH ... --single W --collage W --out DIR [more settings]"
    )
    parser.epilog = (
        "Start it with: collage-mpi launch -n 11 -- run --shards test.h5 "
        "--single single.safetensors --collage collage.safetensors --out runs/first"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out where it stopped"
    )
    add_setting_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Run; rank 0 prints the summary."""
    settings = settings_from_args(args)
    from collage_mpi.world import run_world

    def body(crew: Crew, stop_reason: Callable[[], str | None]) -> int:
        return run_and_tell(settings, crew, stop_reason, resume=args.resume)

    return run_world("run", body)


def run_and_tell(
    settings: RunSettings,
    crew: Crew,
    stop_reason: Callable[[], str | None],
    *,
    resume: bool = False,
) -> int:
    """One session on rank 0, its summary printed and saved as summary.json."""
    from collage_mpi.results import read_results, render_summary, summarise
    from collage_mpi.session import run_session

    outcome = run_session(settings, crew, resume=resume, stop_reason=stop_reason)
    print(render_summary(summarise(read_results(outcome.out))), flush=True)
    print(f"\nresults in {outcome.out}; collage-mpi verify {outcome.out} proves them", flush=True)
    if outcome.input_faults:
        tell_of_input(outcome.input_faults)
    if outcome.exit_code is ExitCode.INCOMPLETE:
        print(f"incomplete: {outcome.reason}; go on with the same command and --resume", flush=True)
    return int(outcome.exit_code)


def tell_of_input(faults: Sequence[str]) -> None:
    """The last words of a run whose input was not sound, and what to do."""
    from collage_mpi.cli import tell

    listed = "\n  ".join(faults)
    tell(
        f"collage-mpi run: {len(faults)} shard(s) were not read in full, or have changed; all "
        f"other images have their rows:\n  {listed}\n"
        "Mend or copy them, then the same command with --resume does what is left."
    )

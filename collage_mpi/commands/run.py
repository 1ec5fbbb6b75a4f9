"""`collage-mpi run`: the job itself, on every rank of an MPI world."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.commands.parser import Command
from collage_mpi.errors import CollageError, EnvironmentFault, ExitCode, UsageError
from collage_mpi.results import has_run
from collage_mpi.settings.flags import Arguments, add_setting_flags, flags_of, over_file, switch
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.environment import launcher_size
from collage_mpi.system.fields import setting
from collage_mpi.system.files import reading
from collage_mpi.system.printable import counted, say
from collage_mpi.system.tell import tell

if TYPE_CHECKING:
    from collage_mpi.job.run import Ask, SessionOutcome
    from collage_mpi.job.worker_group import WorkerGroup
    from collage_mpi.shards.update import Update


BRIEF_PHASE = "done"  # name of the work in the progress line of a brief run


@dataclass(frozen=True, kw_only=True)
class RunArguments(Arguments):
    """The arguments of run, besides the settings of a run."""

    retry_errors: bool = switch(
        "if the run in --out is complete, classify the images of its error rows again"
    )
    redo_rank: str | None = setting(
        None,
        "if the run in --out is complete, classify the images again that this rank has answered, "
        "for example because its device is wrong: 7, or 2:7 for rank 7 of job 2",
        metavar="[JOB:]RANK",
    )
    update: bool = switch(
        "if the run in --out is complete, take new pictures of the input into it, classify changed "
        "ones again, and mark those that are gone"
    )
    touched: str = setting(
        "ask",
        "with --update: pictures of another time and the same size, whose bytes are not known. "
        "again: classify them again. same: keep their rows. ask: refuse if they are more than 10 % "
        "of the pictures, otherwise as again",
        choices=("ask", "again", "same"),
    )
    prune: bool = switch("with --update: drop the rows of pictures that are gone")
    trust_dirs: bool = switch(
        "with --update: do not look at the known pictures of a folder whose own time is that of "
        "the last look. Quick on network file systems, but a picture that was rewritten in place "
        "is not found"
    )
    leave: bool = switch(
        "when other jobs hold all images that are left, end with exit code 6 in place of waiting"
    )
    brief: bool = switch(
        "for classify and map: print only how the networks run, how many images are done, and what "
        "went wrong, but not the summary",
        hidden=True,
    )
    dry_run: bool = switch(
        "check everything, time the networks, print what the run would do and how long it would "
        "take, and write nothing. Works with and without launch"
    )

    def ask(self, stop_reason: Callable[[], str | None] = lambda: None) -> Ask:
        """How a job of the run is asked for."""
        from collage_mpi.job.run import Ask

        phase = BRIEF_PHASE if self.brief else ""
        how = self.leave, phase, self.brief, self.redo_rank or ""
        return Ask(stop_reason, self.retry_errors, self.asked, *how)

    @property
    def asked(self) -> Update | None:
        """How the run is updated; None if it is not.

        Raises:
            UsageError: it is said how, and not that; or the rank to be done again is none.
        """
        from collage_mpi.shards.update import Update

        if not self.update and (self.prune or self.trust_dirs or self.touched != "ask"):
            raise UsageError(
                "--prune, --touched and --trust-dirs say how a run is updated: add --update"
            )
        if self.redo_rank is not None and not re.fullmatch(r"([0-9]+:)?[0-9]+", self.redo_rank):
            raise UsageError(f"--redo-rank takes RANK or JOB:RANK, such as 2:7: {self.redo_rank}")
        return Update(self.touched, self.prune, self.trust_dirs) if self.update else None

    def settings(self, world_size: int | None) -> RunSettings:
        """The settings of the job; if the folder has a run, those that are not given are the run's.

        Args:
            world_size: number of ranks, to which the run is fitted; None: as many as the settings
                need, or as the run had.

        Raises:
            UsageError, EnvironmentFault, DataFault: the settings cannot be read, or contradict each
                other.
        """
        given, source = over_file(self.given, RunSettings)
        if not given.get("out") or not has_run(given["out"]):
            return RunSettings.for_world(given, source, world_size)
        from collage_mpi.job.joining import joined_settings

        return joined_settings(given, source, world_size)

    @property
    def teams(self) -> int:
        """The teams of this world, which every rank must know first."""
        try:
            return self.settings(None).teams
        except CollageError:
            return 1  # rank 0 meets the same error, and prints it


def finished(args: RunArguments) -> ExitCode | None:
    """The exit code of a run that has nothing left to do, which is said; otherwise None.

    Raises:
        UsageError, EnvironmentFault, DataFault: the run cannot be read, or the settings contradict
            each other.
    """
    from collage_mpi.job.joining import finished_status
    from collage_mpi.job.run import EXIT_CODES
    from collage_mpi.results.manifest import compose

    if args.dry_run:
        return None
    settings = args.settings(None)
    status = finished_status(
        settings, args.asked, retry_errors=args.retry_errors, redo_rank=args.redo_rank or ""
    )
    if status is None:
        return None
    images = counted(compose(Path(settings.out))["rows"], "image")
    errors = ", some of them error rows" if EXIT_CODES[status] else ""
    say(f"{settings.out} is finished: it has the rows of {images}{errors}. No rank was started")
    return EXIT_CODES[status]


def execute(args: RunArguments) -> int:
    """Run the job on this rank; rank 0 prints the summary."""
    if args.dry_run and launcher_size() in (None, 1):
        return _forecast(args, args.settings(None), None, args.ask())
    from collage_mpi.job.main import run_world

    def body(worker_group: WorkerGroup, stop_reason: Callable[[], str | None]) -> int:
        settings = args.settings(worker_group.transport.size)
        if args.dry_run:
            return _forecast(args, settings, worker_group, args.ask(stop_reason))
        if worker_group.ranks and worker_group.ranks[0] > 1:  # rank 0 tells
            from collage_mpi.job.run import run_session

            return int(run_session(settings, worker_group, args.ask(stop_reason)).exit_code)
        return run_and_tell(settings, worker_group, args.ask(stop_reason))

    return run_world("run", body, teams=args.teams)


def check_before_ranks(args: RunArguments, ranks: int | None, *, files: bool = True) -> int:
    """Check everything about a run that one process can see before its ranks start; returns how
    many ranks it needs.

    Args:
        ranks: the number given by the user; None for as many as the settings need.
        files: check files too. If ranks may be on other hosts, this host may lack the files.

    Raises:
        UsageError: the arguments do not fit together, including the number of ranks.
        EnvironmentFault, DataFault: a file is missing, damaged, or in use.
    """
    from collage_mpi.job.joining import fitted
    from collage_mpi.job.plan import check_without_images

    settings = args.settings(None)
    given, source = over_file(args.given, RunSettings)
    if not has_run(settings.out):
        settings = RunSettings.for_world(given, source, ranks)
        settings.require_inputs()
        if settings.scheme == "none" and "scheme" not in given:
            say("without --collage the scheme is none: each image goes to one rank")
    elif ranks is not None and "singles" not in given:
        settings = fitted(settings, ranks // settings.teams)
    size = settings.launch_size if ranks is None else ranks
    try:
        settings.place_team(size, 0, None)
    except EnvironmentFault as error:  # of a world: here it is what was typed
        raise UsageError(str(error)) from error
    if files:
        check_without_images(settings, size)
        _check_shards(settings)
        _check_out(settings)
    return size


def _check_shards(settings: RunSettings) -> None:
    """Raise if a path of the shards does not exist, or a folder has no images. Rank 0 later checks
    URLs and contents.
    """
    from collage_mpi.shards.inputs import expand_paths, place_of
    from collage_mpi.shards.remote import url_of

    for path in settings.shards:
        place = place_of(path)
        with reading(path):
            if url_of(place) is None:
                place.stat()
    expand_paths(settings.shards)


def _check_out(settings: RunSettings) -> None:
    """Raise if the output folder would be refused, or if no record can be where it is asked for."""
    from collage_mpi.job.record import check_record
    from collage_mpi.results.writer import check_place

    check_place(Path(settings.out), shared=settings.shared_out == "on")
    if settings.record is not None:
        check_record(Path(settings.record))


def _forecast(
    args: RunArguments, settings: RunSettings, worker_group: WorkerGroup | None, ask: Ask
) -> int:
    from collage_mpi.commands.forecast import forecast

    code = forecast(settings, worker_group, ask)
    if worker_group is None:
        asked = {
            "--retry-errors": args.retry_errors,
            f"--redo-rank={args.redo_rank}": args.redo_rank is not None,
            "--update": args.update,
            f"--touched={args.touched}": args.touched != "ask",
            "--prune": args.prune,
            "--trust-dirs": args.trust_dirs,
            "--leave": args.leave,
        }
        how = [*(word for word, given in asked.items() if given), *flags_of(settings)]
        words = ["launch", "-n", str(settings.launch_size), "--", "run", *how]
        say(f"start it with: {shlex.join(['collage-mpi', *words])}")
    return int(code)


def run_and_tell(settings: RunSettings, worker_group: WorkerGroup, ask: Ask) -> int:
    """Run a job on rank 0 and print the summary of the run, or only what went wrong if the job is
    asked to be brief.
    """
    from collage_mpi.job.run import run_session
    from collage_mpi.results import render_summary, summarise
    from collage_mpi.results.manifest import COMPLETE
    from collage_mpi.results.reader import open_run
    from collage_mpi.results.render import warnings

    outcome = run_session(settings, worker_group, ask)
    summary = outcome.summary or summarise(open_run(outcome.out))
    if ask.brief:
        for line in warnings(summary):
            say(line)
        if outcome.exit_code is ExitCode.INCOMPLETE:
            say(f"incomplete: {outcome.reason}")
    else:
        print(render_summary(summary), flush=True)
        proof = f"; {proof_of(outcome.out)}" if outcome.status in COMPLETE else ""
        say(f"\nresults in {outcome.out}{proof}")
        _tell_what_is_left(outcome, summary["rows"]["errors"])
    if outcome.input_faults:
        tell_of_input(outcome.input_faults)
    return int(outcome.exit_code)


def proof_of(out: Path) -> str:
    """The command that checks a complete run, in words."""
    return f"collage-mpi verify {shlex.quote(str(out))} proves them"


def _tell_what_is_left(outcome: SessionOutcome, errors: int) -> None:
    """Print the command that continues an incomplete run, or classifies error rows again."""
    from collage_mpi.results.manifest import compose, resume_command

    if outcome.exit_code is ExitCode.INCOMPLETE:
        go_on = resume_command(compose(outcome.out), outcome.out)
        say(f"incomplete: {outcome.reason}; go on with: {go_on}")
    elif errors:
        say(
            f"{counted(errors, 'error row')}. When the cause is fixed, classify them again with: "
            + resume_command(compose(outcome.out), outcome.out, "--retry-errors")
        )


def tell_of_input(faults: Sequence[str]) -> None:
    """Print the faults of the input, and what to do, as the last message of a run."""
    listed = "\n  ".join(faults)
    tell(
        f"collage-mpi run: {counted(len(faults), 'shard')} not read in full, or changed; all "
        f"other images have their rows:\n  {listed}\n"
        "Repair or copy them; then the same command classifies what is left.",
        logging.ERROR,
    )


COMMAND = Command(
    execute,
    RunArguments,
    more=add_setting_flags,
    usage="collage-mpi run --shards PATH ... --single W --collage W --out DIR [more settings]",
    epilog="Start it with: collage-mpi launch -n 11 -- run --shards test.h5 "
    "--single single.safetensors --collage collage.safetensors --out runs/first",
)

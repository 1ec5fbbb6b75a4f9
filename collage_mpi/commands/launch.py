"""`collage-mpi launch -n 11 -- run ...`: starts ranks with the installed MPI, also for commands
that start ranks themselves.
"""

from __future__ import annotations

import math
import os
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from collage_mpi.commands import COMMANDS
from collage_mpi.commands.parser import Command, MpiArguments, read_command
from collage_mpi.commands.run import RunArguments
from collage_mpi.commands.run import check_before_ranks as check_run
from collage_mpi.errors import CollageError, EnvironmentFault, UsageError
from collage_mpi.launch.ending import exit_code, marker_text, script_code
from collage_mpi.launch.mpiexec import (
    LaunchPlan,
    Mpi,
    build_command,
    cannot_fork,
    find_mpi,
    fork_obstacle,
    site_here,
)
from collage_mpi.launch.supervisor import FORWARDED, LEAVE_GRACE_S, Limits, Supervisor
from collage_mpi.models.named import libraries_of
from collage_mpi.results.file_names import MARKER
from collage_mpi.settings.flags import switch
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.environment import (
    STATUS_VARIABLE,
    allocated_hosts,
    launcher_rank,
    launcher_size,
)
from collage_mpi.system.fields import setting
from collage_mpi.system.launchers import Site
from collage_mpi.system.printable import did_you_mean
from collage_mpi.system.process_tree import caught, own_command

WORLD_COMMANDS = ("run", "demo", "experiment")  # a coordinator and workers
START_LIMIT_S = 600.0  # until MPI is up on all ranks: imports from a cold, shared file system
STARTS = 2  # a start that hung is tried once more
# What ranks with networks of torch import, forked from a server; also the library of a network.
MODULES = (
    "torch",
    "h5py",
    "collage_mpi.commands.run",
    "collage_mpi.job.run",
    "collage_mpi.models.predictor",
)
EXAMPLE = "collage-mpi launch -n 11 -- run --shards DIR --out OUT"


@dataclass(frozen=True, kw_only=True)
class LaunchArguments(MpiArguments):
    """What launch takes."""

    ranks: int | None = setting(
        None,
        "number of ranks, e.g. 11",
        unset="as many as the settings of run, demo or experiment need",
        metavar="RANKS",
        flag="-n --ranks",
        at_least=1,
    )
    mpiexec: str | None = setting(None, "launcher to use", unset="search for one", metavar="PATH")
    dry_run: bool = switch("print the command line but do not run it")
    start: str = setting(
        "auto",
        "how ranks start. auto: a server imports torch once and forks the ranks, if it can and a "
        "network needs torch. each: every rank imports for itself. fork: always by the server",
        choices=("auto", "each", "fork"),
    )
    on_rank_loss: str | None = setting(
        None,
        "what to do when a rank is lost. continue: start the ranks so that the job survives it. "
        "abort: end the job",
        unset="the command's own --on-rank-loss or its --settings file, else abort",
        choices=("continue", "abort"),
    )
    timeout: float | None = setting(
        None,
        "end the job after this many seconds; it then counts as incomplete",
        unset="no limit",
        metavar="SECONDS",
        above=0,
        at_most=math.inf,
    )
    words: tuple[str, ...] = setting(
        (),
        "what every rank runs: a command of collage-mpi with its arguments, or a Python script "
        "that calls collage_mpi.run",
        metavar="-- COMMAND ...",
        positional=True,
        rest=True,
    )


def execute(args: LaunchArguments) -> int:
    """Start the ranks and wait; the exit code is the job's own."""
    words = args.words[1:] if args.words[:1] == ("--",) else args.words
    if words and words[0] in COMMANDS and {"-h", "--help"} & {*words}:
        read_command(words)  # says it once, without ranks, and leaves
    _check_startable(words)
    ranks = check_before_ranks(words, args.ranks, dry_run=args.dry_run)
    tolerant = wanted_on_loss(words, args.on_rank_loss) == "continue"
    if args.dry_run:
        print(shell_line(args, ranks, words, tolerant))
        return 0
    return launch_ranks(ranks, words, args, fault_tolerant=tolerant)


def check_before_ranks(words: Sequence[str], ranks: int | None, *, dry_run: bool = False) -> int:
    """How many ranks to start, after this process has checked what it can of their command.

    Args:
        words: a command, or a script, and its arguments.
        ranks: the number given by the user; None for as many as the command needs.
        dry_run: nothing will be started; only a missing number is computed.

    Raises:
        UsageError: the arguments do not fit together, or the number is missing and the
            command does not determine it.
        EnvironmentFault, DataFault: a file is missing, damaged, or in use.
    """
    if ranks is not None and dry_run:
        return ranks
    if words[0] not in WORLD_COMMANDS:
        if ranks is None:
            raise UsageError(f"-n is missing: how many ranks to start, e.g. {EXAMPLE}")
        return ranks
    command, args = read_command(words)  # says what is wrong, and leaves
    if words[0] == "run":
        return check_run(args, ranks, files=not dry_run and allocated_hosts() == 1)
    assert command.ranks is not None
    needed = command.ranks(args)
    if ranks not in (None, *needed):
        listed = " or ".join(map(str, needed))
        raise UsageError(f"-n is {ranks}; {words[0]} needs {listed} ranks here")
    if ranks is None and len(needed) > 1:
        raise UsageError(
            f"-n is missing: the runs of this experiment need {', '.join(map(str, needed))} "
            f"ranks. Without launch, collage-mpi {' '.join(words)} starts the right number for "
            "each run"
        )
    return needed[0] if ranks is None else ranks


def launch_ranks(
    ranks: int, words: Sequence[str], how: LaunchArguments, *, fault_tolerant: bool = False
) -> int:
    """Start `ranks` ranks of `collage-mpi WORDS...`, draw progress, return the exit code.

    Args:
        ranks: world size.
        words: a command and its arguments, e.g. ("run", "--shards", "DIR"), or a Python script
            and its arguments.
        how: which MPI, how ranks start, and the time limit.
        fault_tolerant: the job survives lost ranks.

    Raises:
        UsageError: nothing to run, or not a command.
        EnvironmentFault: no fitting MPI, or this process is a rank already.
    """
    extra = {STATUS_VARIABLE: uuid.uuid4().hex}
    found = find_mpi(how.mpi, how.mpiexec)
    plan = _plan(ranks, words, found, site_here(), extra, fault_tolerant)
    if why_not_forked(plan, words, how.start) is None:
        plan = replace(plan, modules=(*MODULES, *libraries_of(_networks(words))))
    return _follow(plan, words, math.inf if how.timeout is None else how.timeout, fault_tolerant)


def why_not_forked(plan: LaunchPlan, words: Sequence[str], start: str) -> str | None:
    """Why every rank imports torch itself; None if a server forks the ranks.

    Raises:
        EnvironmentFault: `start` is "fork", and the server cannot.
    """
    if start == "each":
        return "--start each"
    cannot = cannot_fork(plan.launcher, fork_obstacle())
    if _is_script(words):
        cannot = "a script of your own is not imported"
    if start == "fork":
        if cannot:
            raise EnvironmentFault(f"--start fork: {cannot}. Leave the flag out")
        return None
    networks = _networks(words)
    asked = bool(libraries_of(networks))  # in one more process
    if plan.ranks + asked < 3 or not networks:
        return "at most one of them needs torch"
    return cannot


def _networks(words: Sequence[str]) -> list[str]:
    """The networks that need torch, as far as that is known before the ranks start."""
    from collage_mpi.models.null import is_null

    settings = _settings_of(words)
    if settings is None:
        return ["shipped"] if "demo" in words[:1] else []
    return [spec for spec in (settings.single, settings.collage) if spec and not is_null(spec)]


def shell_line(args: LaunchArguments, ranks: int, words: Sequence[str], tolerant: bool) -> str:
    """A command line to paste that starts the ranks. Nobody would read their status lines."""
    found = find_mpi(args.mpi, args.mpiexec)
    plan = _plan(ranks, words, found, site_here(scratch=False), {}, tolerant)
    why = why_not_forked(plan, words, args.start)
    start = f"each rank imports torch itself ({why})" if why else "torch is imported once for all"
    print(f"collage-mpi launch: {start}", file=sys.stderr)
    return plan.shell_line()


def _plan(
    ranks: int,
    words: Sequence[str],
    mpi: Mpi,
    site: Site,
    extra: Mapping[str, str],
    fault_tolerant: bool,
) -> LaunchPlan:
    _check_startable(words)
    program = (sys.executable, *words) if _is_script(words) else (*own_command(), *words)
    extra = {"PYTHONUNBUFFERED": "1", **extra}
    return build_command(mpi, ranks, program, site, extra_env=extra, fault_tolerant=fault_tolerant)


def _follow(plan: LaunchPlan, words: Sequence[str], timeout_s: float, fault_tolerant: bool) -> int:
    """Run the plan to its end, and once more if its start hung; returns the exit code."""
    out = output_folder(words)
    marker = None if out is None else out / MARKER
    earlier = marker_text(marker)
    script = _is_script(words)  # it may have more to do once its run is over
    limits = Limits(
        timeout_s,
        START_LIMIT_S if words[0] in WORLD_COMMANDS else None,
        LEAVE_GRACE_S if fault_tolerant and not script else math.inf,
    )
    until_s = time.monotonic() + timeout_s
    signals: list[int] = []  # that came before a job or after it
    with caught(FORWARDED, signals.append):
        for more in reversed(range(STARTS)):
            left_s = max(0.0, until_s - time.monotonic())
            job = Supervisor(plan, replace(limits, timeout_s=left_s), signals=signals)
            ending = job.run()
            hung = ending.cut and ending.cut.hung
            if not hung or signals or ending.stopped_by is not None or script or not more:
                break
            job.say(f"MPI did not come up: {hung}. Nothing had begun: starting once more")
        if script:
            code, note = script_code(ending)
        else:
            code, note = exit_code(ending, marker, must_report=fault_tolerant, earlier=earlier)
        if note:
            job.say(note)
    return code


def output_folder(words: Sequence[str]) -> Path | None:
    """The `--out` of a `run`, in which launch looks for the completion marker; None if there is
    none.
    """
    args = _run_of(words)
    out = None if args is None or args.dry_run else args.given.get("out")
    return None if out is None else Path(out)


def wanted_on_loss(words: Sequence[str], own: str | None = None) -> str | None:
    """What to do about lost ranks, from the first that says it: launch's own flag, the command's
    flag, the settings file, or the run that is resumed.

    Raises:
        UsageError: launch's flag is given with a command that has no workers to lose.
    """
    if own == "continue" and not _is_script(words) and words[0] not in WORLD_COMMANDS:
        raise UsageError(f"--on-rank-loss continue is for {', '.join(WORLD_COMMANDS)}")
    settings = _settings_of(words)
    return own if own is not None or settings is None else settings.on_rank_loss


def _settings_of(words: Sequence[str]) -> RunSettings | None:
    """The settings of a `run`; None of another command, or if the ranks will refuse them."""
    args = _run_of(words)
    try:
        return None if args is None else args.settings(None)
    except CollageError:
        return None


def _run_of(words: Sequence[str]) -> RunArguments | None:
    """The arguments of a `run`; None of another command."""
    if not words or words[0] != "run":
        return None
    args: RunArguments = read_command(words)[1]
    return args


def _is_script(words: Sequence[str]) -> bool:
    return bool(words) and words[0].endswith(".py")


def _check_startable(words: Sequence[str]) -> None:
    """Raise unless the words can be started, and by this process."""
    size = launcher_size() or 1
    if size > 1:
        raise EnvironmentFault(
            f"launch is itself rank {launcher_rank()} of {size}. Type either\n"
            "  collage-mpi launch -n 11 -- run ...\n"
            "  mpiexec -n 11 collage-mpi run ..."
        )
    if not words:
        raise UsageError(f"nothing to launch: give a command after --, e.g. {EXAMPLE}")
    if _is_script(words):
        if not os.path.isfile(words[0]):
            raise UsageError(f"{words[0]}: this script does not exist")
        return
    allowed = [name for name in COMMANDS if name != "launch"]
    if words[0] not in allowed:
        hint = did_you_mean(words[0], allowed) or "."
        raise UsageError(
            f"{words[0]!r} is not a command of collage-mpi{hint} After -- comes a command "
            f"(collage-mpi --help lists them), e.g. {EXAMPLE}, or a script.py of your own"
        )


COMMAND = Command(
    execute,
    LaunchArguments,
    usage="collage-mpi launch [-n RANKS] [options] -- COMMAND [arguments of COMMAND]",
    epilog=f"e.g. {EXAMPLE}, or collage-mpi launch -n 11 -- script.py",
)

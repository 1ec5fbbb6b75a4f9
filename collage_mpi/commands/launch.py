"""`collage-mpi launch -n 11 -- run ...`: starts ranks with the installed MPI."""

from __future__ import annotations

import math
import os
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from collage_mpi.commands import COMMANDS
from collage_mpi.commands.parser import Command, MpiArguments, read_command
from collage_mpi.commands.run import RunArguments, finished
from collage_mpi.commands.run import check_before_ranks as check_run
from collage_mpi.errors import CollageError, EnvironmentFault, UsageError
from collage_mpi.launch.ending import exit_code, script_code
from collage_mpi.launch.mpiexec import (
    LaunchPlan,
    build_command,
    cannot_fork,
    find_mpi,
    fork_obstacle,
    site_here,
)
from collage_mpi.launch.supervisor import FORWARDED, LEAVE_GRACE_S, Limits, Supervisor
from collage_mpi.models.named import is_null, libraries_of
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

START_LIMIT_S = 600.0  # until MPI must be up on all ranks; imports from a shared disk may be slow
STARTS = 2  # a start that hung is tried once more
# Modules that a server imports before it forks ranks; networks' libraries are added.
MODULES = (
    "torch",
    "h5py",
    "collage_mpi.commands.run",
    "collage_mpi.job.main",
    "collage_mpi.job.run",
    "collage_mpi.job.worker",
    "collage_mpi.models.predictor",
)
EXAMPLE = "collage-mpi launch -n 11 -- run --shards DIR --out OUT"


@dataclass(frozen=True, kw_only=True)
class LaunchArguments(MpiArguments):
    """The arguments of launch."""

    ranks: int | None = setting(
        None,
        "number of ranks, e.g. 11",
        unset="as many as the settings of run need",
        metavar="RANKS",
        flag="-n --ranks",
        at_least=1,
    )
    mpiexec: str | None = setting(None, "launcher to use", unset="search for one", metavar="PATH")
    dry_run: bool = switch("print the command line but do not run it")
    start: str = setting(
        "auto",
        "how ranks start. auto: one process imports torch and forks all ranks, if that is "
        "possible and a network needs torch. each: every rank imports torch itself. fork: always "
        "fork",
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
        "end the job after this many seconds; the job then counts as incomplete",
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

    @property
    def program(self) -> tuple[str, ...]:
        """What every rank runs: the words without the first --."""
        return self.words[1:] if self.words[:1] == ("--",) else self.words

    @property
    def is_script(self) -> bool:
        """Whether the program is a Python script."""
        return self.program[:1] != () and self.program[0].endswith(".py")

    @property
    def in_world(self) -> bool:
        """Whether the program's ranks are a coordinator and workers."""
        return self.program[:1] == ("run",)

    @cached_property
    def run(self) -> RunArguments | None:
        """The arguments of `run`; None for another command."""
        return read_command(self.program)[1] if self.program[:1] == ("run",) else None

    @cached_property
    def settings(self) -> RunSettings | None:
        """The settings of `run`; None for another command, or if the ranks will refuse them."""
        try:
            return None if self.run is None else self.run.settings(None)
        except CollageError:
            return None

    @property
    def networks(self) -> list[str]:
        """The networks that need torch, as far as is known before the ranks start."""
        if self.settings is None:
            return []
        named = (self.settings.single, self.settings.collage)
        return [spec for spec in named if spec and not is_null(spec)]

    @property
    def out(self) -> Path | None:
        """The `--out` of `run`, where launch looks for the completion marker; None without it."""
        out = None if self.run is None or self.run.dry_run else self.run.given.get("out")
        return None if out is None else Path(out)

    @property
    def on_loss(self) -> str | None:
        """What to do if a rank is lost; None if nothing says it.

        Launch's own flag comes first, then the command's flag, the settings file, and the run that
        is resumed.
        """
        if self.on_rank_loss is not None or self.settings is None:
            return self.on_rank_loss
        return self.settings.on_rank_loss

    @property
    def tolerant(self) -> bool:
        """Whether the job must survive lost ranks."""
        return self.on_loss == "continue"


def execute(args: LaunchArguments) -> int:
    """Start the ranks and wait; the exit code is the job's own."""
    if args.program[:1] and args.program[0] in COMMANDS and {"-h", "--help"} & {*args.program}:
        read_command(args.program)  # prints the help once, without ranks, and exits
    _check_startable(args)
    if args.dry_run:
        print(shell_line(check_before_ranks(args), args))
        return 0
    return check_and_launch(args)


def check_and_launch(how: LaunchArguments) -> int:
    """Check the ranks' command, start the ranks and wait. A resumed run that has nothing left to do
    starts none. Returns the exit code.

    Raises:
        UsageError, EnvironmentFault, DataFault: as `check_before_ranks` and `launch_ranks`.
    """
    ranks = check_before_ranks(how)
    code = None if how.run is None else finished(how.run)
    return launch_ranks(ranks, how) if code is None else int(code)


def check_before_ranks(how: LaunchArguments) -> int:
    """Check what this process can check of the ranks' command; the number of ranks to start.

    In a dry run nothing will be started, and only a missing number is worked out.

    Raises:
        UsageError: the arguments do not fit together, or the number is missing and does not follow
            from the command.
        EnvironmentFault, DataFault: a file is missing, damaged, or in use.
    """
    ranks = how.ranks
    if ranks is not None and how.dry_run:
        return ranks
    if how.run is None:
        if ranks is None:
            raise UsageError(f"-n is missing: how many ranks to start, e.g. {EXAMPLE}")
        return ranks
    return check_run(how.run, ranks, files=not how.dry_run and allocated_hosts() == 1)


def launch_ranks(ranks: int, how: LaunchArguments) -> int:
    """Start `ranks` ranks of what `how` says, draw progress, return the exit code.

    Raises:
        UsageError: nothing to run, or not a command.
        EnvironmentFault: no fitting MPI, or this process is a rank already.
    """
    plan = _plan(ranks, how, site_here(), {STATUS_VARIABLE: uuid.uuid4().hex})
    if why_not_forked(plan, how) is None:
        plan = replace(plan, modules=(*MODULES, *libraries_of(how.networks)))
    return _follow(plan, how)


def why_not_forked(plan: LaunchPlan, how: LaunchArguments) -> str | None:
    """Why every rank imports torch itself; None if a server forks the ranks.

    Raises:
        EnvironmentFault: `--start fork`, and the server cannot.
    """
    if how.start == "each":
        return "--start each"
    cannot = cannot_fork(plan.launcher, fork_obstacle())
    if how.is_script:
        cannot = "a script of your own cannot be forked"
    if how.start == "fork":
        if cannot:
            raise EnvironmentFault(f"--start fork: {cannot}. Leave the flag out")
        return None
    asked = bool(libraries_of(how.networks))  # one more process that needs torch
    if plan.ranks + asked < 3 or not how.networks:
        return "at most one process needs torch"
    return cannot


def shell_line(ranks: int, how: LaunchArguments) -> str:
    """A command line, to be pasted, that starts the ranks. It makes them write no status lines."""
    plan = _plan(ranks, how, site_here(scratch=False), {})
    why = why_not_forked(plan, how)
    start = f"each rank imports torch itself ({why})" if why else "torch is imported once for all"
    print(f"collage-mpi launch: {start}", file=sys.stderr)
    return plan.shell_line()


def _plan(ranks: int, how: LaunchArguments, site: Site, extra: Mapping[str, str]) -> LaunchPlan:
    _check_startable(how)
    found = find_mpi(how.mpi, how.mpiexec)
    program = (*((sys.executable,) if how.is_script else own_command()), *how.program)
    extra = {"PYTHONUNBUFFERED": "1", **extra}
    return build_command(found, ranks, program, site, extra_env=extra, fault_tolerant=how.tolerant)


def _follow(plan: LaunchPlan, how: LaunchArguments) -> int:
    """Run the plan to its end, and once more if its start hung; returns the exit code."""
    status = None if how.out is None else partial(run_status, how.out)
    earlier = None if status is None else status()
    script = how.is_script  # a script may do more after its run
    limits = Limits(
        math.inf if how.timeout is None else how.timeout,
        START_LIMIT_S if how.in_world else None,
        math.inf if script else LEAVE_GRACE_S,
        teams_go_on=how.tolerant and how.settings is not None and how.settings.teams > 1,
    )
    until_s = time.monotonic() + limits.timeout_s
    signals: list[int] = []  # signals that came before or after a job
    with caught(FORWARDED, signals.append):
        for more in reversed(range(STARTS)):
            left_s = max(0.0, until_s - time.monotonic())
            brief = how.run is not None and how.run.brief
            job = Supervisor(plan, replace(limits, timeout_s=left_s), signals=signals, brief=brief)
            ending = job.run()
            hung = ending.cut and ending.cut.hung
            if not hung or signals or ending.stopped_by is not None or script or not more:
                break
            job.say(f"MPI did not come up: {hung}. No work had begun, so it is started once more")
        if script:
            code, note = script_code(ending)
        else:
            code, note = exit_code(ending, status, must_report=how.tolerant, earlier=earlier)
        if note:
            job.say(note)
    return code


def run_status(out: Path) -> str | None:
    """The status of the run in `out` if it is complete; otherwise None."""
    from collage_mpi.results.manifest import COMPLETE, compose

    with suppress(CollageError, OSError):
        status = str(compose(out)["status"])
        return status if status in COMPLETE else None
    return None


def _check_startable(how: LaunchArguments) -> None:
    """Raise unless the program can be started, and by this process."""
    size = launcher_size() or 1
    if size > 1:
        raise EnvironmentFault(
            f"launch cannot start ranks: it is itself rank {launcher_rank()} of {size}. Type "
            "either\n"
            "  collage-mpi launch -n 11 -- run ...\n"
            "  mpiexec -n 11 collage-mpi run ..."
        )
    if not how.program:
        raise UsageError(f"nothing to launch: give a command after --, e.g. {EXAMPLE}")
    first = how.program[0]
    if how.is_script:
        if not os.path.isfile(first):
            raise UsageError(f"{first}: this script does not exist")
        return
    allowed = [name for name in COMMANDS if name != "launch"]
    if first not in allowed:
        hint = did_you_mean(first, allowed) or "."
        raise UsageError(
            f"{first!r} is not a command of collage-mpi{hint} After -- comes a command "
            f"(collage-mpi --help lists them), e.g. {EXAMPLE}, or a script.py of your own"
        )
    if how.on_rank_loss == "continue" and not how.in_world:  # other commands have no workers
        raise UsageError("--on-rank-loss continue is for run")


COMMAND = Command(
    execute,
    LaunchArguments,
    usage="collage-mpi launch [-n RANKS] [options] -- COMMAND [arguments of COMMAND]",
    epilog=f"For example: {EXAMPLE}, or collage-mpi launch -n 11 -- script.py",
)

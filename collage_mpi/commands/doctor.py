"""`collage-mpi doctor`: finds what keeps a job from starting here, and says what to type."""

from __future__ import annotations

import argparse
import json
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from collage_mpi import __version__
from collage_mpi.commands.parser import Command, MpiArguments
from collage_mpi.doctor.checks_software import choose_launcher
from collage_mpi.doctor.checks_world import check_trial, check_world, roles
from collage_mpi.doctor.facts import Facts, Finding, WantedJob, World
from collage_mpi.doctor.gather import can_meet, examine, gather, is_bad
from collage_mpi.doctor.ranks import Meeting, open_meeting, try_ranks
from collage_mpi.doctor.screen import Screen, map_lines
from collage_mpi.errors import ExitCode
from collage_mpi.launch.mpiexec import NoLauncher
from collage_mpi.settings.flags import add_flags, switch
from collage_mpi.settings.inputs import NetworkSettings
from collage_mpi.settings.pace import SurvivalSettings
from collage_mpi.settings.redundancy import RANKS, RankSettings
from collage_mpi.system.environment import launcher_rank, launcher_size
from collage_mpi.system.fields import names, same, setting
from collage_mpi.system.progress import report

TRIAL_RANKS = 2


@dataclass(frozen=True, kw_only=True)
class DoctorArguments(MpiArguments):
    """What doctor takes, beside settings of a run."""

    out: Path | None = setting(None, "results folder that the run will use", metavar="DIR")
    shards: tuple[str, ...] = setting(
        (), "shards that the run will read", metavar="PATH", shipped=True
    )
    ranks: int | None = setting(
        None,
        "number of ranks to start as a test",
        unset=str(TRIAL_RANKS),
        metavar="RANKS",
        flag="-n --ranks",
        at_least=1,
    )
    device: str = same(NetworkSettings, "device", group="")
    mpiexec: str | None = setting(None, "launcher to use", unset="search for one", metavar="PATH")
    no_launch: bool = switch("do not start any ranks")
    json: bool = switch("print everything as JSON")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `run` that say which ranks there are."""
    parser.add_argument_group(
        RANKS,
        "The same flags as for `run`. Without --side and --singles, doctor chooses values that fit "
        "the number of ranks.",
    )
    add_flags(parser, RankSettings)
    add_flags(parser, SurvivalSettings, ["teams"])


def execute(args: DoctorArguments) -> int:
    """Run all checks; the exit code says whether a job can be expected to run."""
    wanted = WantedJob(
        ranks=args.ranks,
        run=args.given,
        device=args.device,
        mpi=args.mpi,
        mpiexec=args.mpiexec,
    )
    if launcher_size() is not None and launcher_rank() not in (None, 0):
        return _as_another_rank(wanted)
    return Doctor(wanted, args).run()


class Doctor:
    """The doctor in the process that prints: alone, or rank 0 of a world."""

    def __init__(self, wanted: WantedJob, args: DoctorArguments) -> None:
        self._wanted, self._args = wanted, args
        self._findings: list[Finding] = []
        self._world: World | None = None
        self._screen: Screen | None = None if args.json else Screen(sys.stdout)

    def run(self) -> int:
        """Run all checks in the order of the screen."""
        if self._screen:
            self._screen.line(f"collage-mpi {__version__} doctor on {socket.gethostname()}")
        # The others meet first, and then wait at rest: in MPI_Init they would spin.
        meeting = open_meeting(self._wanted) if launcher_size() is not None else None
        if meeting is None:
            return self._look()
        return meeting.guard(lambda: self._look(meeting))

    def _look(self, meeting: Meeting | None = None) -> int:
        world = meeting.gather() if meeting else None
        facts = gather(self._wanted, self._args.out, self._args.shards)
        self._say(examine(facts))
        if world is not None:
            self._judge(facts, world)
        elif not facts.mpi.under_launcher:
            self._try_ranks(facts)
        code = self._end(facts)
        if meeting is not None and world is not None:
            report(exit=code)
            meeting.dismiss(code, world)
        return code

    def _say(self, findings: list[Finding]) -> None:
        self._findings += findings
        if self._screen:
            self._screen.findings(findings)

    def _try_ranks(self, facts: Facts) -> None:
        """Start a small job, unless this process is a rank itself."""
        if self._args.no_launch or not can_meet(facts):
            return
        try:
            launcher = choose_launcher(facts)
        except NoLauncher:  # a finding says so
            return
        asked = self._wanted.ranks or TRIAL_RANKS
        trial = try_ranks(launcher, asked, self._wanted.device)
        finding = check_trial(trial)
        self._say([finding])
        if self._wanted.ranks is not None and finding.verdict == "ok" and trial.world:
            self._judge(facts, trial.world)

    def _judge(self, facts: Facts, world: World) -> None:
        self._world = world
        self._say(list(check_world(facts, world)))
        if self._screen and world.size > 1:
            self._screen.map(map_lines(world.ranks, roles(self._wanted, world.size)))

    def _end(self, facts: Facts) -> int:
        if self._screen:
            self._screen.verdict(self._findings, self._next_step())
        else:
            print(json.dumps(self._everything(facts), indent=1, default=str), flush=True)
        return int(ExitCode.ENVIRONMENT if is_bad(self._findings) else ExitCode.COMPLETE)

    def _next_step(self) -> str:
        if self._world is not None:
            return "the same with `run` in place of `doctor`"
        return "collage-mpi launch -n 11 -- doctor (which rank is where)"

    def _everything(self, facts: Facts) -> dict[str, object]:
        told = asdict(facts)
        run = told["wanted"].pop("run")
        told["wanted"] |= {name: run.get(name) for name in (*names(RankSettings), *run)}
        return {
            "format": "collage-mpi doctor",
            "version": 1,
            "verdict": "bad" if is_bad(self._findings) else "ok",
            "findings": [asdict(finding) for finding in self._findings],
            "facts": told,
            "world": asdict(self._world) if self._world else None,
        }


def _as_another_rank(wanted: WantedJob) -> int:
    """On every rank but 0: report to rank 0 and leave with its exit code."""
    meeting = open_meeting(wanted)
    if meeting is None or meeting.rank == 0:
        # No MPI, or N worlds of one rank: the process that the launcher calls rank 0 says so.
        # Open MPI would kill that process if this one left with another exit code.
        return int(ExitCode.COMPLETE)
    return meeting.guard(meeting.report)


COMMAND = Command(
    execute,
    DoctorArguments,
    more=add_run_flags,
    epilog="Run alone, doctor examines this host and starts two ranks as a test. `collage-mpi "
    "launch -n 11 -- doctor`, `mpiexec -n 11 collage-mpi doctor` and `srun -n 11 collage-mpi "
    "doctor` also show which rank is where. The exit code is 0, or 3 if a job would probably not "
    "run.",
)

"""`collage-mpi doctor`: finds what keeps a job from starting here, and says what to type."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from collage_mpi import __version__
from collage_mpi.commands.parser import Command, MpiArguments
from collage_mpi.doctor.examine import BAD, LIMIT_S, WARN, Finding, examine, meet
from collage_mpi.errors import EnvironmentFault, ExitCode
from collage_mpi.settings.flags import switch
from collage_mpi.settings.run_settings import NetworkSettings
from collage_mpi.system.environment import launcher_rank, launcher_size
from collage_mpi.system.fields import same, setting
from collage_mpi.system.printable import counted
from collage_mpi.system.tell import report, tell

NAME_WIDTH = 11
PLAIN_WIDTH = 100  # width in a file or a pipe


@dataclass(frozen=True, kw_only=True)
class DoctorArguments(MpiArguments):
    """The arguments of doctor."""

    ranks: int = setting(
        11,
        "number of ranks of the job, whose needs are compared with what this host has",
        metavar="RANKS",
        flag="-n --ranks",
        at_least=1,
    )
    device: str = same(NetworkSettings, "device", group="")
    mpiexec: str | None = setting(None, "launcher to use", unset="search for one", metavar="PATH")
    no_launch: bool = switch("do not start two ranks as a test")
    json: bool = switch("print the findings as JSON")


def execute(args: DoctorArguments) -> int:
    """Run all checks; the exit code says whether a job will probably run.

    Under a launcher the ranks meet first, and then rank 0 alone examines its host.
    """
    ranks = launcher_size() or args.ranks
    met = None
    if launcher_rank() in (None, 0) and not args.json:
        print(f"collage-mpi {__version__} doctor on {socket.gethostname()}", flush=True)
    if launcher_size() is not None:
        tell(f"collage-mpi doctor: {ranks} ranks must meet within {LIMIT_S} s", logging.INFO)
        try:
            met = meet()
        except (EnvironmentFault, ImportError):  # the checks say more
            met = None
        if launcher_rank() not in (None, 0):
            return int(ExitCode.COMPLETE)
    findings = []
    for finding in examine(
        ranks, args.device, args.mpi, args.mpiexec, no_launch=args.no_launch, met=met
    ):
        findings.append(finding)
        if not args.json:
            show(finding)
    bad = sum(finding.verdict == BAD for finding in findings)
    if args.json:
        print(json.dumps({"findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        print(conclusion(bad, sum(finding.verdict == WARN for finding in findings)), flush=True)
    code = int(ExitCode.ENVIRONMENT if bad else ExitCode.COMPLETE)
    report(exit=code)
    return code


def show(finding: Finding) -> None:
    """Print a finding, with its fix below it; flushed, because the next one may take seconds."""
    print(*entry(finding.verdict, finding.name, finding.found), sep="\n", flush=True)
    if finding.fix:
        print(*entry("", "  fix", finding.fix), sep="\n", flush=True)


def entry(verdict: str, name: str, text: str) -> Iterable[str]:
    """A text in lines that fit the terminal, beside the verdict and the name."""
    head = f"{verdict:<5} {name:<{NAME_WIDTH}} "
    columns = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns
    return textwrap.wrap(
        text,
        max(40, min(columns, 140)),
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_on_hyphens=False,
        break_long_words=False,
    )


def conclusion(bad: int, warnings: int) -> str:
    """The last line: how many faults and warnings there are, and what to do next."""
    noted = f", {counted(warnings, 'warning')}" if warnings else ""
    if bad:
        return f"{counted(bad, 'fault')}{noted}: do what `fix` says, then run doctor again"
    return f"no fault{noted}. Next: collage-mpi run --dry-run, with the settings of your run"


COMMAND = Command(
    execute,
    DoctorArguments,
    epilog="Run alone, doctor examines this host and starts two ranks as a test. Under a launcher, "
    "as in `srun -n 2 --mpi=pmix collage-mpi doctor`, it says whether these ranks meet, and "
    "examines the host of rank 0. The exit code is 0, or 3 if a job would probably not run.",
)

"""`collage-mpi verify DIR...`: proves that runs have exactly one row for every image."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.commands.parser import Command
from collage_mpi.settings.flags import Arguments, switch
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.printable import counted, say

if TYPE_CHECKING:
    from collage_mpi.results.verify import VerifyReport

_SHOWN = 20  # problems printed; the others are only counted


@dataclass(frozen=True, kw_only=True)
class VerifyArguments(Arguments):
    """The arguments of verify."""

    runs: tuple[Path, ...] = setting(REQUIRED, "folders of runs", metavar="DIR", positional=True)
    json: bool = switch("print the reports as JSON")


def execute(args: VerifyArguments) -> int:
    """Verify each run. Returns 4 if any run is damaged, else 6 if any is incomplete, else 0."""
    from collage_mpi.results.verify import verify_run

    reports = [verify_run(path) for path in args.runs]
    if args.json:
        print(json.dumps([_as_json(report) for report in reports], indent=1))
    else:
        for report in reports:
            _print(report)
    codes = {int(report.exit_code) for report in reports}
    return next((code for code in (4, 6) if code in codes), 0)


def _as_json(report: VerifyReport) -> dict[str, object]:
    return {**asdict(report), "path": str(report.path), "ok": report.ok}


def _print(report: VerifyReport) -> None:
    say(f"{report.path}: {report.headline}")
    headline = f"{report.headline};"
    problems = [line for line in report.problems if not line.startswith(headline)]
    for line in problems[:_SHOWN]:
        say(f"  problem: {line}")
    if len(problems) > _SHOWN:
        say(f"  and {counted(len(problems) - _SHOWN, 'more problem')}")
    for line in report.notes:
        say(f"  note: {line}")
    if report.writing is not None:
        say(f"  a job is writing here ({report.writing}): verify again when it has ended")
    elif report.status == "incomplete":
        say(f"  to continue: {report.next_step}")


COMMAND = Command(
    execute,
    VerifyArguments,
    epilog="Exit codes: 0, every image has exactly one row (error rows are counted and allowed). "
    "6, rows are missing: resume the run, or wait for the job that is writing to it. 4, the run is "
    "damaged or inconsistent. 3, there is no run.",
)

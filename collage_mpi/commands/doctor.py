"""`collage-mpi doctor`: finds what keeps a job from starting here, and says what to type."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import socket
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from collage_mpi import __version__
from collage_mpi.commands.parser import Command, MpiArguments
from collage_mpi.doctor.checks_software import choose_launcher
from collage_mpi.doctor.checks_world import check_trial, check_world, roles
from collage_mpi.doctor.facts import BAD, OK, WARN, Facts, Finding, Rank, WantedJob, World
from collage_mpi.doctor.gather import can_meet, examine, gather, is_bad
from collage_mpi.doctor.ranks import Meeting, open_meeting, try_ranks
from collage_mpi.errors import ExitCode
from collage_mpi.launch.mpiexec import NoLauncher
from collage_mpi.settings.flags import add_flags, switch
from collage_mpi.settings.inputs import NetworkSettings
from collage_mpi.settings.pace import SurvivalSettings
from collage_mpi.settings.redundancy import RANKS, RankSettings
from collage_mpi.system.environment import launcher_rank, launcher_size
from collage_mpi.system.fields import names, same, setting
from collage_mpi.system.printable import counted, numbers_text
from collage_mpi.system.progress import report

TRIAL_RANKS = 2


@dataclass(frozen=True, kw_only=True)
class DoctorArguments(MpiArguments):
    """The arguments of doctor, besides settings of a run."""

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
    """Add the flags of `run` that determine the ranks."""
    parser.add_argument_group(
        RANKS,
        "The same flags as for `run`. Without --side and --singles, doctor chooses values that fit "
        "the number of ranks.",
    )
    add_flags(parser, RankSettings)
    add_flags(parser, SurvivalSettings, ["teams"])


def execute(args: DoctorArguments) -> int:
    """Run all checks; the exit code says whether a job will probably run."""
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
        self._screen = Screen(io.StringIO() if args.json else sys.stdout)

    def run(self) -> int:
        """Run all checks in the order of the screen."""
        self._screen.line(f"collage-mpi {__version__} doctor on {socket.gethostname()}")
        # Start MPI first: the other ranks then wait without spinning, unlike in MPI_Init.
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
        self._screen.findings(findings)

    def _try_ranks(self, facts: Facts) -> None:
        """Start a small job, unless this process is a rank itself."""
        if self._args.no_launch or not can_meet(facts):
            return
        try:
            launcher = choose_launcher(facts)
        except NoLauncher:  # check_launcher has reported it
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
        if world.size > 1:
            self._screen.map(map_lines(world.ranks, roles(self._wanted, world.size)))

    def _end(self, facts: Facts) -> int:
        if self._args.json:
            print(json.dumps(self._everything(facts), indent=1, default=str), flush=True)
        else:
            self._screen.verdict(self._findings, self._next_step())
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


# ---- what is printed --------------------------------------------------------

COLOURS = {OK: "\033[32m", WARN: "\033[33m", BAD: "\033[1;31m"}
PLAIN = "\033[0m"
NAME_WIDTH = 11
PLAIN_WIDTH = 100  # width in a file or a pipe
MOST_LINES = 16  # lines of the map


class Screen:
    """Prints to a stream, in colour only if that is wanted."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str] = os.environ) -> None:
        # Open MPI gives its ranks a pseudo-terminal, even if the output goes to a file.
        terminal = stream.isatty() and launcher_size(environ) is None
        self._stream = stream
        self._colours = terminal and "NO_COLOR" not in environ and environ.get("TERM") != "dumb"
        columns = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns
        self._width = max(40, min(columns, 140))

    def line(self, text: str = "") -> None:
        """Print a line and flush, because the next step may take seconds."""
        print(text, file=self._stream, flush=True)

    def findings(self, findings: Iterable[Finding]) -> None:
        """Print each finding, with its fix below it."""
        for finding in findings:
            self._entry(finding.verdict, finding.name, finding.found)
            if finding.fix:
                self._entry("", "  fix", finding.fix)

    def _entry(self, verdict: str, name: str, text: str) -> None:
        indent = " " * (6 + NAME_WIDTH + 1)
        lines = textwrap.wrap(
            text,
            max(24, self._width - len(indent)),
            break_on_hyphens=False,
            break_long_words=False,
        ) or [""]
        colour = COLOURS.get(verdict) if self._colours else None
        label = f"{verdict:<5}"
        label = f"{colour}{label}{PLAIN}" if colour else label
        self.line(f"{label} {name:<{NAME_WIDTH}} {lines[0]}".rstrip())
        for line in lines[1:]:
            self.line(indent + line)

    def map(self, lines: Sequence[str]) -> None:
        """Print the map of the ranks between blank lines."""
        self.line()
        for line in lines:
            self.line("  " + line)
        self.line()

    def verdict(self, findings: Sequence[Finding], next_step: str) -> None:
        """Print the conclusion."""
        bad = sum(finding.verdict == BAD for finding in findings)
        warnings = sum(finding.verdict == WARN for finding in findings)
        noted = f", {counted(warnings, 'warning')}" if warnings else ""
        if bad:
            self.line(f"{counted(bad, 'fault')}{noted}: do what `fix` says, then run doctor again")
        else:
            self.line(f"no fault{noted}. Next: {next_step}")


HEADER = ("ranks", "host", "holds", "device", "threads", "cores")


def map_lines(ranks: Sequence[Rank], roles: Sequence[str], most: int = MOST_LINES) -> list[str]:
    """The map in rank order, as aligned columns, cut to `most` lines.

    Args:
        ranks: the reports, in any order.
        roles: what each rank of the world holds, e.g. "single", by rank.
        most: largest number of lines.
    """
    on_host: dict[tuple[str, str], list[Rank]] = {}
    for rank in sorted(ranks, key=lambda rank: rank.rank):
        on_host.setdefault((rank.host, roles[rank.rank]), []).append(rank)
    alike: dict[tuple[str, ...], list[list[Rank]]] = {}
    for (_, role), group in on_host.items():
        looks = (
            role,
            devices_text([device_label(rank) for rank in group]),
            ",".join(sorted({str(rank.threads) for rank in group})),
            ",".join(sorted({str(rank.cores) for rank in group})),
            str(len(group)),
        )
        alike.setdefault(looks, []).append(group)
    rows = [HEADER, *(_row(looks, groups) for looks, groups in list(alike.items())[:most])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    if len(alike) > most:
        text.append(f"... {len(alike) - most} more lines; --json has every rank")
    return text


def _row(looks: tuple[str, ...], groups: list[list[Rank]]) -> tuple[str, ...]:
    *shown, count = looks
    numbers = sorted(rank.rank for group in groups for rank in group)
    hosts = hosts_text(group[0].host for group in groups)
    if len(groups) > 1:
        hosts += f" ({count} each)"
    return (numbers_text(numbers), hosts, *shown)


def hosts_text(hosts: Iterable[str]) -> str:
    """Host names as `node[01-04]` if they differ only in their last number."""
    names = list(dict.fromkeys(hosts))
    if len(names) == 1:
        return names[0]
    found = [re.fullmatch(r"(.*?)(\d+)(\D*)", name) for name in names]
    stems = {(m.group(1), len(m.group(2)), m.group(3)) for m in found if m}
    if all(found) and len(stems) == 1:
        ((stem, digits, tail),) = stems
        parts = numbers_text(sorted(int(m.group(2)) for m in found if m))
        padded = re.sub(r"\d+", lambda m: m.group().zfill(digits), parts)
        if ".." not in parts and "/" not in parts:
            return f"{stem}[{padded.replace(', ', ',')}]{tail}"
    return f"{names[0]} .. {names[-1]}, {len(names)} hosts"


def device_label(rank: Rank) -> str:
    """`cuda:1`, or `GPU 3` if CUDA_VISIBLE_DEVICES gives the device another number."""
    if rank.device is None:
        return "none"
    if rank.gpu is None or rank.device in ("cpu", f"cuda:{rank.gpu}"):
        return rank.device
    return f"GPU {rank.gpu[:12]}"


def devices_text(devices: Sequence[str]) -> str:
    """Devices in rank order as `cpu`, `cuda:0-7`, `cuda:0-1 x4` (each of them four times)."""
    kinds = sorted(set(devices))
    numbers = [int(d[5:]) for d in devices if d.startswith("cuda:")]
    if len(numbers) != len(devices):
        return ", ".join(kinds[:4]) + (", ..." if len(kinds) > 4 else "")
    used = Counter(numbers)
    least, most = min(used.values()), max(used.values())
    times = f" x{least}" + (f"-{most}" if most > least else "") if most > 1 else ""
    return f"cuda:{numbers_text(sorted(used)).replace(' ', '')}{times}"


COMMAND = Command(
    execute,
    DoctorArguments,
    more=add_run_flags,
    epilog="Run alone, doctor examines this host and starts two ranks as a test. `collage-mpi "
    "launch -n 11 -- doctor`, `mpiexec -n 11 collage-mpi doctor` and `srun -n 11 collage-mpi "
    "doctor` also show which rank is where. The exit code is 0, or 3 if a job would probably not "
    "run.",
)

"""`collage-mpi slow-ranks RUN...`: finds ranks, GPUs and hosts that were slower than their peers,
and prints `--exclude` for Slurm.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.commands.parser import Command
from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.settings.flags import Arguments, switch
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.printable import brief, say, some_of
from collage_mpi.system.table import Column, Table, Value, to_text

if TYPE_CHECKING:
    from collage_mpi.results.reader import Run
    from collage_mpi.results.slow_ranks import Recurrence, Speed

SHOWN = 12  # ranks, GPUs or hosts printed for a run; more if more are slow


@dataclass(frozen=True, kw_only=True)
class SlowRanksArguments(Arguments):
    """The arguments of slow-ranks."""

    runs: tuple[Path, ...] = setting(REQUIRED, "folders of runs", metavar="RUN", positional=True)
    over: float = setting(
        1.2,
        "a rank counts as slow if it takes more than FACTOR times as long as its peers, with "
        "confidence",
        metavar="FACTOR",
    )
    json: bool = switch("print everything as JSON")


@dataclass(frozen=True)
class _RunSpeeds:
    """The speeds of a run's ranks, GPUs and hosts.

    Attributes:
        on_purpose: delays were injected, or the run is simulated.
        failing: host -> descriptions of the failures there.
    """

    run: Run
    speeds: list[Speed]
    on_purpose: bool
    failing: dict[str, list[str]]


def execute(args: SlowRanksArguments) -> int:
    """Compare the ranks of each run, and print. Returns 0."""
    from collage_mpi.results.slow_ranks import failing_hosts, injected, rank_speeds, recurrences

    found = [
        _RunSpeeds(run, rank_speeds(run, args.over), injected(run), failing_hosts(run))
        for run in _open_each(args.runs)
    ]
    hosts = recurrences([item.speeds for item in found if not item.on_purpose])
    exclude, why_not = _exclude(found, hosts)
    if args.json:
        print(json.dumps(_as_json(found, hosts, exclude), indent=1))
        return 0
    for item in found:
        _print_run(item, brief=len(found) > 1)
    if len(found) > 1 and hosts:
        _print_hosts(hosts)
    if exclude:
        say(f"\nsbatch --exclude={shlex.quote(','.join(exclude))}")
    for line in why_not:
        say(line)
    return 0


def _open_each(paths: Sequence[Path]) -> Iterator[Run]:
    """Open the runs. A path that cannot be read as a run is reported on stderr and left out.

    Raises:
        EnvironmentFault, DataFault: no path can be read; the error is that of the last one.
    """
    from collage_mpi.results.reader import open_run

    good, last = 0, len(paths) - 1
    for i, path in enumerate(paths):
        try:
            run = open_run(path)
        except (EnvironmentFault, DataFault) as error:
            if i == last and not good:
                raise
            print(f"collage-mpi slow-ranks: left out: {error}", file=sys.stderr)
        else:
            good += 1
            yield run


def _exclude(
    found: Sequence[_RunSpeeds], hosts: Sequence[Recurrence]
) -> tuple[list[str], list[str]]:
    from collage_mpi.results.slow_ranks import hosts_to_exclude

    slow = {host for item in found for host in hosts_to_exclude(item.speeds)}
    failing = {host for item in found for host in item.failing}
    if not failing and all(item.on_purpose for item in found):
        return [], ["The delays were injected, so they say nothing about the hosts."]
    wanted = [r.host for r in hosts if (r.again if len(found) > 1 else r.slow)]
    wanted += sorted(failing - set(wanted))
    if not wanted:
        once = slow and len(found) > 1
        return [], ["No host is slow in several runs: nothing to exclude."] if once else []
    everywhere = {speed.host for item in found for speed in item.speeds}
    if everywhere <= {*wanted, None}:
        return [], [
            "Every host has slow or failing ranks, so excluding some of them does not help."
        ]
    shared = sorted({host for item in found for host in _hosts_of_rank_0(item.run)} & {*wanted})
    notes = [f"{host} also ran rank 0, which uses a core of that host." for host in shared]
    return [_node(host) for host in wanted], notes


def _hosts_of_rank_0(run: Run) -> set[str]:
    return {m["host"] for m in run.manifest.get("world") or () if m["rank"] == 0 and "host" in m}


def _node(host: str) -> str:
    """The host's node name in Slurm: without the domain, unless it is an IP address."""
    short = host.partition(".")[0]
    return host if short.isdecimal() else short


def _as_json(
    found: Sequence[_RunSpeeds], hosts: Sequence[Recurrence], exclude: list[str]
) -> dict[str, Any]:
    runs = [
        {
            "run": str(item.run.path),
            "injected": item.on_purpose,
            "speeds": [asdict(speed) for speed in item.speeds],
            "failing": item.failing,
        }
        for item in found
    ]
    return {
        "runs": runs,
        "hosts": [{**asdict(host), "again": host.again} for host in hosts],
        "exclude": exclude,
    }


# ---- what is printed --------------------------------------------------------


def _print_run(found: _RunSpeeds, *, brief: bool) -> None:
    """Print the ranks, GPUs and hosts of a run; only the slow ones if `brief`."""
    say(f"{found.run.path}: {found.run.label}")
    if found.on_purpose:
        say(f"  service times were injected: {found.run.manifest.get('straggler')}")
    for unit in ("rank", "gpu", "host"):
        speeds = [speed for speed in found.speeds if speed.unit == unit]
        one_host = unit == "host" and len(speeds) < 2
        slow = sum(speed.slow for speed in speeds)
        shown = speeds[: slow if brief else max(slow, SHOWN)]
        if shown and not one_host:
            say(to_text(_table(unit, shown)))
            left = len(speeds) - len(shown)
            if left and not brief:
                say(f"  and {left:,} more, none of them slow")
    ranks = [speed for speed in found.speeds if speed.unit == "rank"]
    if all(speed.interval is None for speed in ranks):
        say("  too few answers to tell whether a rank is slower than its peers")
        ranks = []
    elif not any(speed.slow for speed in found.speeds):
        say("  no rank is significantly slower than its peers")
    for speed in ranks:
        if speed.interval is None and speed.peers:
            say(f"  {speed.name}: {speed.messages} answers are too few to tell")
    for host, what in sorted(found.failing.items()):
        say(f"  FAILING {host}: {some_of(what, SHOWN, '; ')}")


def _table(unit: str, speeds: Sequence[Speed]) -> Table:
    hosts = unit == "rank" and any(speed.host for speed in speeds)
    named = [unit, *(["host"] if hosts else []), "kind"]
    rows = []
    for speed in speeds:
        where = [speed.host or "?"] if hosts else []
        name = speed.name if unit != "rank" or not _gpu(speed) else f"{speed.name} {speed.device}"
        figures = map(brief, (speed.median_ms, speed.ratio))
        ends = None if speed.interval is None else " to ".join(map(brief, speed.interval))
        slow = "SLOW" if speed.slow else ""
        rows.append([name, *where, speed.kind, *figures, ends, speed.messages, slow])
    return Table([*named, "median ms", "x peers", "95 %", Column("answers", ","), ""], rows)


def _gpu(speed: Speed) -> bool:
    return speed.device not in (None, "cpu")


def _print_hosts(hosts: Sequence[Recurrence]) -> None:
    rows: list[list[Value]] = []
    for host in (host for host in hosts if host.slow):
        ratios = ", ".join(map(brief, sorted(host.ratios, reverse=True)[:4]))
        rows.append([host.host, host.runs, host.slow, ratios, "AGAIN" if host.again else ""])
    if rows:
        say(f"\n{to_text(Table(('host', 'runs', 'slow in', 'x peers there', ''), rows))}")


COMMAND = Command(
    execute,
    SlowRanksArguments,
    epilog="The table shows the median service time of each rank divided by that of the other "
    "ranks of its kind. The 95 % confidence intervals hold for all ranks of a run together "
    "(docs/results.md). With several runs, the hosts that are slow again and again are listed as "
    "well. The exit code is 0 even if there are slow ranks.",
)

"""The commands that look at runs: `top` shows the state of a running job, from the files in its
folder; `verify` proves that runs have exactly one row for every image; `export` writes the rows for
other programs; `plot` draws figures; `report` writes an HTML page; and `ranks` finds ranks,
GPUs and hosts that were slower than their peers, failed or answered wrongly.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.commands.parser import Command, Commands
from collage_mpi.errors import DataFault, EnvironmentFault, ExitCode, UsageError
from collage_mpi.plugins import pip_line
from collage_mpi.results import EXPORT, REPORT, runs_beside
from collage_mpi.settings.flags import Arguments, switch
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.files import writing
from collage_mpi.system.printable import brief, counted, minutes, printable, say, some_of
from collage_mpi.system.table import Printable, Table, Value, to_text
from collage_mpi.system.tell import tell

if TYPE_CHECKING:
    from rich.console import RenderableType

    from collage_mpi.results.reader import Run
    from collage_mpi.results.slow_ranks import Recurrence, Speed
    from collage_mpi.results.status import View, Watch
    from collage_mpi.results.verify import VerifyReport


LOOK_EVERY_S = 1.0
SLOW = 2.0  # times the peers' median. The factor is large, as a rank may have few answers yet
LEAST_ANSWERS = 5  # messages of a rank, before it can count as slow
_HEAD_LINES = 10  # of the screen that are not rows of the table of ranks

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TopArguments(Arguments):
    """The arguments of top."""

    run: Path = setting(
        REQUIRED, "results folder of the job (its --out)", metavar="RUN", positional=True
    )
    once: bool = switch("print the state once and exit")
    ranks: int | None = setting(
        None,
        "number of ranks to show",
        unset="as many as fit; lost and slow ranks come first",
        at_least=0,
    )


def top(args: TopArguments) -> int:
    """Show the run until its job has ended, or once. Returns 0, or 6 if the job was killed."""
    from collage_mpi.results.status import ENDED, Watch

    watch = Watch(args.run)
    view = watch.look()
    if args.once:
        say(_text(args, view, once=True))
    else:
        try:
            view = _follow(args, watch, view)
        except KeyboardInterrupt:
            return int(ExitCode.COMPLETE)
    return int(ExitCode.INCOMPLETE if view.lost and view.life != ENDED else ExitCode.COMPLETE)


def _follow(args: TopArguments, watch: Watch, view: View) -> View:
    """Refresh the view until the job has ended or counts as dead. Returns the last view."""
    from rich.live import Live

    from collage_mpi.results.status import ENDED

    told = None
    terminal = sys.stdout.isatty()  # in a file, an update cannot replace the view before it
    screen = Live(auto_refresh=False, vertical_overflow="crop") if terminal else nullcontext()
    with screen as live:
        while True:
            if live is not None:
                fits = max(1, live.console.height - _HEAD_LINES)
                shown = drawn(args.run, view, fits if args.ranks is None else args.ranks)
                live.update(Printable(shown), refresh=True)
            elif told != (told := _text(args, view)):
                say(told)
            if view.life == ENDED or view.lost:
                return view
            time.sleep(LOOK_EVERY_S)
            view = watch.look()


def _text(args: TopArguments, view: View, *, once: bool = False) -> str:
    ranks = 20 if args.ranks is None else args.ranks
    return to_text(drawn(args.run, view, ranks, once=once))


# ---- the view ---------------------------------------------------------------


def drawn(run: Path, view: View, ranks: int, *, once: bool = False) -> RenderableType:
    """The state of a run for a terminal: whether the job lives, progress, rates, ranks.

    Args:
        ranks: largest number of ranks to show.
        once: the status was read only once, so its age is unknown.
    """
    from rich.columns import Columns
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    status = view.status
    style = "bold red" if view.old else "bold"
    parts: list[RenderableType] = [
        Text(f"{run}: {status['label']}", style="bold"),
        Text(life_line(view, once=once), style=style),
    ]
    if status["total"]:
        bar = ProgressBar(total=status["total"], completed=status["done"], width=60)
        parts.append(Columns([bar]))
    lines = progress_line(status), rates_line(view), status.get("limit")
    parts += [Text(line) for line in lines if line]
    if status["ranks"]:
        parts += ["", _ranks_table(status["ranks"], ranks)]
    return Group(*parts)


def life_line(view: View, *, once: bool = False) -> str:
    """Says whether the job lives, and how old its status is."""
    from collage_mpi.results.status import DEAD, ENDED, SILENT

    status = view.status
    where = f"on {status['host']}, pid {status['pid']}, session {status['session']}"
    if status["jobs"] > 1:
        where += f", and {counted(status['jobs'] - 1, 'more job')}"
    said = status["state"].replace("_", " ")
    written = f"written {status['written']} by the clock of {status['host']}"
    go_on = "verify shows which rows exist, run with the same --out goes on"
    if view.life == ENDED:
        hint = f"; {go_on}" if said == "incomplete" else ""
        return f"ended: {said} ({where}; {written}){hint}"
    if view.life == DEAD:
        return f"KILLED while {said} ({where}): the job no longer exists; {go_on}.\n{written}"
    if view.life == SILENT:
        stands = f"NO SIGN OF LIFE for at least {minutes(view.still_s)}, last {said} ({where})"
        return f"{stands}: killed, suspended, or cut off. If killed: {go_on}.\n{written}"
    if once:
        return f"{said} ({where})\n{written}; --once does not check whether the job lives"
    if view.old:
        old = f"at least {minutes(view.age_s)}"
        return f"{said} ({where}); the job lives, but its status is OLD: {old}"
    return f"{said} ({where})"


def progress_line(status: Json) -> str:
    """Says how many images are done, and how long the job has run."""
    done, total = status["done"], status["total"]
    share = f" ({100 * done / total:.1f} %)" if total else ""
    before = f"; {status['before']:,} of them by jobs that have ended" if status["before"] else ""
    errors = f"; {counted(status['errors'], 'error row')}" if status.get("errors") else ""
    took = f"; {minutes(status['elapsed_s'])} since the start"
    return f"{done:,} of {counted(total, 'image')}{share}{before}{errors}{took}"


def rates_line(view: View) -> str:
    """Says images a second, the time left, the collage share and the agreement."""
    from collage_mpi.results.status import ENDED

    status, parts = view.status, []
    rate, lately = status.get("images_per_s"), status.get("images_per_s_lately")
    running = view.life != ENDED and not view.old
    if running and lately is not None:
        parts.append(f"{lately:.4g} images/s now")
    if rate is not None:
        parts.append(f"{rate:.4g} on average" if parts else f"{rate:.4g} images/s")
    if running and status.get("left_s") is not None and status["done"] < status["total"]:
        parts.append(f"{minutes(status['left_s'])} left")
    if status.get("by_collage") and status["done"]:
        parts.append(f"collage share {100 * status['by_collage'] / status['done']:.1f} %")
    audited, differing = status.get("audited"), status.get("differing")
    if audited and differing is not None:
        parts.append(f"agreement {100 * (1 - differing / audited):.1f} %")
    return ", ".join(parts)


def _ranks_table(ranks: list[Json], most: int) -> RenderableType:
    """The table of ranks, with their session if numbers occur twice. Lost ranks come first, then
    silent ones, then the others, the slowest compared with their peers first.
    """
    from rich.console import Group
    from rich.text import Text

    rows = []
    known = ("busy",) if any(rank.get("busy") is not None for rank in ranks) else ()
    slower = beside_peers(ranks)
    several = len({rank["rank"] for rank in ranks}) < len(ranks)  # worlds, each with a rank 1

    def last(number: int) -> tuple[bool, bool, float]:
        state = ranks[number]["state"]
        return state == "ready", state != "lost", -(slower[number] or 0)

    for number in sorted(range(len(ranks)), key=last)[:most]:
        rank, ratio = ranks[number], slower[number]
        enough = (rank.get("answers") or 0) >= LEAST_ANSWERS
        name = f"{rank['session']}:{rank['rank']}" if several else str(rank["rank"])
        wrong = "" if rank["state"] == "ready" else str(rank.get("why") or "")[:40]
        slow = ratio is not None and ratio >= SLOW and enough
        state = rank["state"].upper() if wrong else rank["state"].replace("_", " ")
        told = (rank.get("tasks"), rank.get("service_ms"), ratio)
        busy = rank.get("busy")
        figures = (*(brief(value, "-") for value in told), "-" if busy is None else f"{busy:.0%}")
        figures = figures if known else figures[:-1]
        kinds, hint = "+".join(rank["kinds"]), wrong or ("SLOW" if slow else "")
        rows.append((name, rank["host"], kinds, state, *figures, hint))
    columns = "rank", "host", "kind", "state", "open", "service ms", "x peers", *known, ""
    counts = Counter(rank["state"] for rank in ranks)
    states = sorted(counts, key=lambda state: (state != "ready", state))
    told_counts = ", ".join(f"{counts[state]:,} {state}" for state in states)
    hidden = len(ranks) - min(most, len(ranks))
    left = f"; {hidden:,} not shown" if hidden else ""
    return Group(Table(columns, rows), Text(f"{len(ranks):,} ranks: {told_counts}{left}"))


def beside_peers(ranks: list[Json]) -> dict[int, float | None]:
    """Index in `ranks` -> the rank's service time divided by the median of the other ranks of the
    same kinds; None if it is unknown.
    """
    times: dict[tuple[str, ...], dict[int, float]] = {}
    for number, rank in enumerate(ranks):
        if (rank.get("service_ms") or 0) > 0:
            times.setdefault(tuple(rank["kinds"]), {})[number] = rank["service_ms"]
    found: dict[int, float | None] = dict.fromkeys(range(len(ranks)))
    for members in times.values():
        ordered = sorted(members.values())
        for number, service_ms in members.items():
            if len(ordered) > 1:
                place = bisect_left(ordered, service_ms)
                found[number] = service_ms / _median_without(ordered, place)
    return found


def _median_without(ordered: list[float], place: int) -> float:
    """The median of sorted numbers without the one at index `place`."""
    left = len(ordered) - 1
    middle = [i + (i >= place) for i in ((left - 1) // 2, left // 2)]
    return sum(ordered[i] for i in middle) / 2


TOP_COMMAND = Command(
    top,
    TopArguments,
    epilog="top reads what each job of the run writes to the results folder, over any file system "
    "that it shares with the jobs. It opens no port and no connection. Ctrl-C ends the view and "
    "not the jobs. The exit code is 0; 6 if the last job was killed or seems to be; 3 if there is "
    "no run.",
)


PROBLEMS_SHOWN = 20  # problems printed; the others are only counted


@dataclass(frozen=True, kw_only=True)
class VerifyArguments(Arguments):
    """The arguments of verify."""

    runs: tuple[Path, ...] = setting(REQUIRED, "folders of runs", metavar="DIR", positional=True)
    json: bool = switch("print the reports as JSON")
    repair: bool = switch(
        "move away the records of the ledger that are damaged, that follow damaged ones, or that "
        "name damaged rows; the next job of the run does their images again. Also remove temporary "
        "files of jobs that were killed"
    )


def verify(args: VerifyArguments) -> int:
    """Verify each run. Returns 4 if any run is damaged, else 6 if any is incomplete, else 0."""
    from collage_mpi.results.verify import repair_run, verify_run

    paths = [path for run in args.runs for path in (run, *runs_beside(run).values())]
    for path in paths if args.repair else ():
        for line in repair_run(path):
            tell(f"repaired: {line}")
    reports = [verify_run(path) for path in paths]
    if args.json:
        told = [{**asdict(each), "path": str(each.path), "ok": each.ok} for each in reports]
        print(json.dumps(told, indent=1))
    else:
        for report in reports:
            _print_proof(report)
    codes = {int(report.exit_code) for report in reports}
    return next((code for code in (4, 6) if code in codes), 0)


def _print_proof(report: VerifyReport) -> None:
    say(f"{report.path}: {report.headline}")
    headline = f"{report.headline};"
    problems = [line for line in report.problems if not line.startswith(headline)]
    for line in problems[:PROBLEMS_SHOWN]:
        say(f"  problem: {line}")
    if len(problems) > PROBLEMS_SHOWN:
        say(f"  and {counted(len(problems) - PROBLEMS_SHOWN, 'more problem')}")
    for line in report.notes:
        say(f"  note: {line}")
    if report.writing is not None:
        say(f"  a job is writing here ({report.writing}): verify again when it has ended")
    elif report.status == "incomplete":
        say(f"  to continue: {report.next_step}")


VERIFY_COMMAND = Command(
    verify,
    VerifyArguments,
    epilog="Exit codes: 0, every image has exactly one row (error rows are counted and allowed). "
    "6, rows are missing: go on with the run, or wait for the jobs that are writing to it. 4, the "
    "run is damaged or inconsistent. 3, there is no run, or it is of another format.",
)


TRACE = "trace"


@dataclass(frozen=True, kw_only=True)
class ExportArguments(Arguments):
    """The arguments of export."""

    run: Path = setting(REQUIRED, "folder of the run", metavar="DIR", positional=True)
    to: str = setting(
        REQUIRED,
        "csv and parquet write one file for each table. zarr writes "
        "what the run keeps of each image beyond its row (map, --top-k, --save), in the order of "
        f"the input. zarr needs {pip_line('zarr')}. trace writes the service times of the single "
        "ranks, for --straggler",
        choices=("csv", "parquet", "zarr", TRACE),
    )
    out: Path | None = setting(None, "folder to write to", unset="DIR/export", metavar="DIR")
    shards: tuple[Path, ...] = setting(
        (),
        "where the run's input is now; the ids of the images are read from it",
        unset="where they were during the run",
    )
    id: str | None = setting(
        None,
        "name the images by this column of the input: its values become the column id",
        unset="by the paths in the input, otherwise FILE:ROW",
        metavar="COLUMN",
    )
    columns: tuple[str, ...] = setting(
        (),
        "columns of a Parquet, CSV or JSON input that travel to the output; none for no columns",
        unset="all but binary ones",
        metavar="COLUMN",
    )
    predictions: bool = switch(
        "write only the answers, one line for each image in the order of the input: id, class and "
        "score, and the further classes of a run with --top-k (csv and parquet only)"
    )
    raw: bool = switch(
        "write texts in CSV unchanged, for programs. Without this flag, a text that a spreadsheet "
        "would read as a formula (it begins with = + - @) gets an apostrophe in front, and control "
        "characters are shown as codes"
    )


def export(args: ExportArguments) -> int:
    """Export the run, and print the file names, one a line. Returns 0."""
    from collage_mpi.results.beside import Joined
    from collage_mpi.results.export import NameBook, export_run
    from collage_mpi.results.reader import open_run
    from collage_mpi.rows import IMAGES

    run = open_run(args.run)
    if not run.complete:
        found, expected = sum(map(len, run.chunks(IMAGES))), run.manifest["rows"]
        print(f"note: incomplete run, {found:,} of {counted(expected, 'row')}", file=sys.stderr)
    if args.to == TRACE:
        return _trace(args)
    names = NameBook(
        run.path, run.manifest, args.shards or None, id_column=args.id, columns=args.columns
    )
    files = export_run(
        run,
        args.to,
        args.out,
        names,
        only_predictions=args.predictions,
        raw=args.raw,
        joined=Joined(names, run.path, run.manifest),
    )
    for path in files:
        say(str(path))
    for note in (*names.notes, *names.columns.notes(args.to)):
        print(printable(f"note: {note}"), file=sys.stderr)
    return int(ExitCode.COMPLETE)


def _trace(args: ExportArguments) -> int:
    from collage_mpi.results.reader import read_results
    from collage_mpi.results.slow_ranks import trace_of
    from collage_mpi.workload.arrivals import save_trace

    path = (args.out or args.run / EXPORT) / "trace.npy"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    save_trace(path, trace_of(read_results(args.run)))
    say(str(path))
    return int(ExitCode.COMPLETE)


EXPORT_COMMAND = Command(export, ExportArguments)


@dataclass(frozen=True, kw_only=True)
class CdfArguments(Arguments):
    """The arguments of `plot cdf`."""

    runs: tuple[Path, ...] = setting(REQUIRED, "folders of runs", metavar="RUN", positional=True)
    out: Path = setting(REQUIRED, "path of the files to write, without suffix", metavar="STEM")
    title: str | None = setting(None, "title above the figure", metavar="TITLE")
    per: str = setting(
        "group", "draw the latency of groups or of images", choices=("group", "image")
    )


def cdf(args: CdfArguments) -> int:
    """Draw the latency distributions of the runs and print their table. All ratios are to the first
    run.
    """
    from collage_mpi.figures.plots import plot_latency_cdf
    from collage_mpi.results import compare, read_results, render_comparison

    runs = [read_results(path) for path in args.runs]
    print(render_comparison(compare(runs, per=args.per)))
    for path in plot_latency_cdf(runs, args.out, per=args.per, title=args.title):
        say(str(path))
    return int(ExitCode.COMPLETE)


PLOT_COMMAND = Commands(
    "FIGURE",
    {
        "cdf": Command(
            cdf,
            CdfArguments,
            "draw the latency distributions of several runs in one figure and print a table",
        ),
    },
    epilog=f"Figures need matplotlib: {pip_line('plot')}. For example: collage-mpi plot cdf "
    "runs/none runs/collage --out figures/tail",
)


@dataclass(frozen=True, kw_only=True)
class ReportArguments(Arguments):
    """The arguments of report."""

    runs: tuple[Path, ...] = setting(
        REQUIRED,
        "folders of runs. The first run is the baseline of all ratios",
        metavar="RUN",
        positional=True,
    )
    out: Path | None = setting(
        None, f"file to write (default for a single run: RUN/{REPORT})", metavar="FILE"
    )
    shards: tuple[Path, ...] = setting(
        (),
        "where the runs' input is now; the pictures are read from it",
        unset="where they were during the run",
    )


def report(args: ReportArguments) -> int:
    """Write the page and print its path. Returns 0."""
    from collage_mpi.report.page import write_report

    if args.out is None and len(args.runs) > 1:
        raise UsageError("--out is missing: the file for a report of several runs")
    out = args.out or args.runs[0] / REPORT
    write_report(args.runs, out, args.shards or None)
    say(str(out))
    return 0


REPORT_COMMAND = Command(
    report,
    ReportArguments,
    epilog="The page is a single HTML file that works offline. For example: collage-mpi report "
    "runs/none runs/collage --out report.html",
)


SHOWN = 12  # ranks, GPUs or hosts printed for a run; more if more are slow


@dataclass(frozen=True, kw_only=True)
class RanksArguments(Arguments):
    """The arguments of ranks."""

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


def ranks(args: RanksArguments) -> int:
    """Compare the ranks of each run, and print. Returns 0."""
    from collage_mpi.results.slow_ranks import failing_hosts, injected, rank_speeds, recurrences

    found = [
        _RunSpeeds(run, rank_speeds(run, args.over), injected(run), failing_hosts(run))
        for run in _open_each(args.runs)
    ]
    hosts = recurrences([item.speeds for item in found if not item.on_purpose])
    exclude, why_not = _exclude(found, hosts)
    if args.json:
        print(json.dumps(_speeds_as_json(found, hosts, exclude), indent=1))
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
            print(f"collage-mpi ranks: left out: {error}", file=sys.stderr)
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
    worlds = [item.run.manifest.get("world") or () for item in found]
    of_rank_0 = {m["host"] for world in worlds for m in world if m["rank"] == 0 and "host" in m}
    shared = sorted(of_rank_0 & {*wanted})
    notes = [f"{host} also ran rank 0, which uses a core of that host." for host in shared]
    return [_node(host) for host in wanted], notes


def _node(host: str) -> str:
    """The host's node name in Slurm: without the domain, unless it is an IP address."""
    short = host.partition(".")[0]
    return host if short.isdecimal() else short


def _speeds_as_json(
    found: Sequence[_RunSpeeds], hosts: Sequence[Recurrence], exclude: list[str]
) -> dict[str, Any]:
    from collage_mpi.results.summary import compared_answers

    runs = [
        {
            "run": str(item.run.path),
            "injected": item.on_purpose,
            "speeds": [asdict(speed) for speed in item.speeds],
            "failing": item.failing,
            "compared": compared_answers(item.run.manifest),
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
    from collage_mpi.report.tables import speeds_table

    say(f"{found.run.path}: {found.run.label}")
    if found.on_purpose:
        say(f"  service times were injected: {found.run.manifest.get('straggler')}")
    for unit in ("rank", "gpu", "host"):
        speeds = [speed for speed in found.speeds if speed.unit == unit]
        one_host = unit == "host" and len(speeds) < 2
        slow = sum(speed.slow for speed in speeds)
        shown = speeds[: slow if brief else max(slow, SHOWN)]
        if shown and not one_host:
            say(to_text(speeds_table(unit, shown)))
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
    _print_compared(found.run, brief=brief)
    for host, what in sorted(found.failing.items()):
        say(f"  FAILING {host}: {some_of(what, SHOWN, '; ')}")


def _print_compared(run: Run, *, brief: bool) -> None:
    """Print how many answers of each rank, device and host were wrong; only those if `brief`."""
    from collage_mpi.report.tables import compared_table
    from collage_mpi.results.summary import COMPARED_UNITS, compared_answers

    found = compared_answers(run.manifest)
    for unit in COMPARED_UNITS:
        units = [each for each in found if each["unit"] == unit]
        wrong = sum(each["wrong"] > 0 for each in units)
        if shown := units[: wrong if brief else max(wrong, SHOWN)]:
            say(to_text(compared_table(unit, shown)))


def _print_hosts(hosts: Sequence[Recurrence]) -> None:
    rows: list[list[Value]] = []
    for host in (host for host in hosts if host.slow):
        ratios = ", ".join(map(brief, sorted(host.ratios, reverse=True)[:4]))
        rows.append([host.host, host.runs, host.slow, ratios, "AGAIN" if host.again else ""])
    if rows:
        say(f"\n{to_text(Table(('host', 'runs', 'slow in', 'x peers there', ''), rows))}")


RANKS_COMMAND = Command(
    ranks,
    RanksArguments,
    epilog="The table shows the median service time of each rank divided by that of the other "
    "ranks of its kind. The 95 % confidence intervals hold for all ranks of a run together "
    "(docs/results.md). With several runs, the hosts that are slow again and again are listed as "
    "well. Where answers of several ranks were compared, more tables show how many of each rank, "
    "device and host were wrong. The exit code is 0 even if there are slow or wrong ranks.",
)

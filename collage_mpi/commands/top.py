"""`collage-mpi top RUN`: shows the state of a running job, from the files in its folder."""

from __future__ import annotations

import sys
import time
from bisect import bisect_left
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.commands.parser import Command
from collage_mpi.errors import ExitCode
from collage_mpi.settings.flags import Arguments, switch
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.printable import brief, counted, say
from collage_mpi.system.progress import minutes
from collage_mpi.system.table import Printable, Table, to_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from collage_mpi.results.status import View, Watch

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


def execute(args: TopArguments) -> int:
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
        parts += ["", _table(status["ranks"], ranks)]
    return Group(*parts)


def life_line(view: View, *, once: bool = False) -> str:
    """Says whether the job lives, and how old its status is."""
    from collage_mpi.results.status import DEAD, ENDED, SILENT

    status = view.status
    where = f"on {status['host']}, pid {status['pid']}, session {status['session']}"
    said = status["state"].replace("_", " ")
    written = f"written {status['written']} by the clock of {status['host']}"
    go_on = "verify shows which rows exist, run --resume continues"
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
    before = f"; {status['before']:,} in earlier sessions" if status["before"] else ""
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


def _table(ranks: list[Json], most: int) -> RenderableType:
    """The table of ranks. Lost ranks come first, then silent ones, then the others, the slowest
    compared with their peers first.
    """
    from rich.console import Group
    from rich.text import Text

    rows = []
    known = ("busy",) if any(rank.get("busy") is not None for rank in ranks) else ()
    slower = beside_peers(ranks)
    order = sorted(
        ranks,
        key=lambda r: (r["state"] == "ready", r["state"] != "lost", -(slower[r["rank"]] or 0)),
    )
    for rank in order[:most]:
        ratio, enough = slower[rank["rank"]], (rank.get("answers") or 0) >= LEAST_ANSWERS
        wrong = "" if rank["state"] == "ready" else str(rank.get("why") or "")[:40]
        slow = ratio is not None and ratio >= SLOW and enough
        state = rank["state"].upper() if wrong else rank["state"].replace("_", " ")
        told = (rank.get("tasks"), rank.get("service_ms"), ratio)
        busy = rank.get("busy")
        figures = (*(brief(value, "-") for value in told), "-" if busy is None else f"{busy:.0%}")
        figures = figures if known else figures[:-1]
        kinds, last = "+".join(rank["kinds"]), wrong or ("SLOW" if slow else "")
        rows.append((str(rank["rank"]), rank["host"], kinds, state, *figures, last))
    columns = "rank", "host", "kind", "state", "open", "service ms", "x peers", *known, ""
    counts = Counter(rank["state"] for rank in ranks)
    states = sorted(counts, key=lambda state: (state != "ready", state))
    told_counts = ", ".join(f"{counts[state]:,} {state}" for state in states)
    hidden = len(ranks) - min(most, len(ranks))
    left = f"; {hidden:,} not shown" if hidden else ""
    return Group(Table(columns, rows), Text(f"{len(ranks):,} ranks: {told_counts}{left}"))


def beside_peers(ranks: list[Json]) -> dict[int, float | None]:
    """Rank -> its service time divided by the median of the other ranks of the same kinds; None if
    it is unknown.
    """
    times: dict[tuple[str, ...], dict[int, float]] = {}
    for rank in ranks:
        if (rank.get("service_ms") or 0) > 0:
            times.setdefault(tuple(rank["kinds"]), {})[rank["rank"]] = rank["service_ms"]
    found: dict[int, float | None] = dict.fromkeys(rank["rank"] for rank in ranks)
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


COMMAND = Command(
    execute,
    TopArguments,
    epilog="top reads status.json from the results folder, over any file system that it shares "
    "with the job. It opens no port and no connection. Ctrl-C ends the view and not the job. The "
    "exit code is 0; 6 if the job was killed or seems to be; 3 if there is no run.",
)

"""How far the job is: status lines from rank 0, a bar or plain lines for the reader.

Owns: the status line's format, its writer (rank 0) and its readers (launch).
Does not know: what is counted, MPI, the launcher.

Under MPICH no rank has a terminal, so rank 0 cannot draw. Under `collage-mpi launch` it
writes `@status {json}` lines to stderr, which launch takes out of the stream and draws;
by hand under mpiexec it writes a plain line every few seconds.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from collage_mpi.printable import printable
from collage_mpi.topology import status_wanted

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

MARK = "@status "
MACHINE_EVERY_S = 0.25  # what a bar needs to look alive
PLAIN_EVERY_S = 5.0  # what a batch log can bear


class StatusReporter:
    """Rank 0's side: call `update` as often as you like, it writes now and then.

    Args:
        total: how many are to be done, or None if not known.
        phase: what is running, e.g. "none", "collage", "train".
        stream: where lines go.
        clock: monotonic seconds.
        every_s: least seconds between lines; None for a default by kind of line.
        machine: `@status` lines (True) or plain ones; None to look at the environment.
        unit: what is counted, for the plain line.
    """

    def __init__(
        self,
        total: int | None,
        phase: str,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        every_s: float | None = None,
        machine: bool | None = None,
        unit: str = "images",
    ) -> None:
        self._total, self._phase, self._unit = total, phase, unit
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._machine = status_wanted() if machine is None else machine
        default_s = MACHINE_EVERY_S if self._machine else PLAIN_EVERY_S
        self._every_s = default_s if every_s is None else every_s
        self._start_s = clock()
        # The bar appears at once; a plain line only after the first interval.
        self._next_s = self._start_s + (0.0 if self._machine else self._every_s)
        self._last: tuple[int, dict[str, Any]] = (0, {})
        self._written: tuple[int, dict[str, Any]] | None = None
        self._ended = False

    def update(self, done: int, **fields: Any) -> None:
        """Say that `done` are done. Costs under 1 us when no line is due.

        The first call that reaches the total writes a line at once, due or not.
        """
        self._last = (done, fields)
        now_s = self._clock()
        if done == self._total and not self._ended:
            self._write(now_s, end=True)
        elif now_s >= self._next_s:
            self._write(now_s)

    def close(self) -> None:
        """Write the last state, if no line has said it yet."""
        if self._written != self._last or not self._ended:
            self._write(self._clock(), end=True)

    def _write(self, now_s: float, end: bool = False) -> None:
        self._next_s = now_s + self._every_s
        self._ended |= end
        self._written = self._last
        done, fields = self._last
        elapsed_s = max(now_s - self._start_s, 1e-9)
        status = {
            "phase": self._phase,
            "done": done,
            "total": self._total,
            "unit": self._unit,
            f"{self._unit}_s": round(done / elapsed_s, 2),
            **fields,
            **({"end": True} if end else {}),
        }
        line = status_line(status) if self._machine else plain_line(status)
        try:
            self._stream.write(line + "\n")  # one write: lines of other ranks cannot cut it
            self._stream.flush()
        except (OSError, ValueError):
            self._next_s = float("inf")  # the reader has gone; the job goes on


def status_line(status: dict[str, Any]) -> str:
    """The machine-readable form, without a newline."""
    return MARK + json.dumps(status, separators=(",", ":"), default=float)


def report_up(stream: TextIO | None = None) -> None:
    """Tell launch that MPI has started: every rank is there."""
    if status_wanted():
        _write_line(stream or sys.stderr, status_line({"up": True}))


def report_exit(code: int, stream: TextIO | None = None) -> None:
    """Tell launch the exit code that rank 0 means, just before it leaves with it.

    Launchers mix the codes of several ranks, and some say 0 for a job whose rank 0 was
    killed. Does nothing when no launcher of ours is listening.
    """
    if status_wanted():
        _write_line(stream or sys.stderr, status_line({"exit": int(code)}))


def _write_line(stream: TextIO, line: str) -> None:
    """In one piece: `print` writes the newline apart where Python does not buffer."""
    stream.write(f"{line}\n")
    stream.flush()


def split_statuses(line: str) -> tuple[str, list[dict[str, Any]]]:
    """Take the statuses out of a line: (the rest of the line, the statuses in order).

    Output of other ranks may stand before a mark and after a status on the same line, other
    statuses too; it is kept. A damaged status is output like any other.
    """
    rest, statuses = "", []
    while MARK in line:
        before, _, text = line.partition(MARK)
        try:
            status, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            status, end = None, 0
        if isinstance(status, dict):
            rest, line = rest + before, text[end:]
            statuses.append(status)
        else:
            rest, line = rest + before + MARK, text
    return rest + line, statuses


def plain_line(status: dict[str, Any]) -> str:
    """One line for a log: `collage: 120 of 1800 images (6.7 %), 52.1 images/s, ...`."""
    unit = str(status.get("unit", "images"))
    done, total = status.get("done", 0), status.get("total")
    text = f"{status.get('phase', 'running')}: {done}"
    if total:
        text += f" of {total} {unit} ({100 * done / total:.1f} %)"
    else:
        text += f" {unit}"
    notes = _notes(status, unit)
    return printable(", ".join([text, *notes]))


def _notes(status: dict[str, Any], unit: str) -> list[str]:
    notes = []
    for key, value in status.items():
        if key in ("phase", "done", "total", "unit", "end"):
            continue
        shown = f"{value:.3g}" if isinstance(value, float) and key != f"{unit}_s" else value
        notes.append(
            f"{value:.1f} {unit}/s" if key == f"{unit}_s" else f"{key.replace('_', ' ')} {shown}"
        )
    return notes


class Display(Protocol):
    """Shows statuses to a person."""

    def show(self, status: dict[str, Any]) -> None:
        """Show a status; cheap enough for every one that arrives."""

    def clear(self) -> None:
        """Take away what is drawn, because other output comes now."""

    def close(self) -> None:
        """Show the last status, and end."""


class LineDisplay:
    """A plain line every few seconds, and always a phase's last one."""

    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = PLAIN_EVERY_S,
    ) -> None:
        self._stream, self._clock, self._every_s = stream, clock, every_s
        self._next_s = clock() + every_s
        self._waiting: dict[str, Any] | None = None

    def show(self, status: dict[str, Any]) -> None:
        if self._waiting and self._waiting.get("phase") != status.get("phase"):
            self._write(self._waiting)
        self._waiting = status
        if status.get("end") or self._clock() >= self._next_s:
            self._write(status)

    def clear(self) -> None:
        pass

    def close(self) -> None:
        if self._waiting:
            self._write(self._waiting)

    def _write(self, status: dict[str, Any]) -> None:
        self._next_s = self._clock() + self._every_s
        self._waiting = None
        print(plain_line(status), file=self._stream, flush=True)


class BarDisplay:
    """A progress bar on a terminal; erased whenever other output comes, drawn again after."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._last: dict[str, Any] | None = None

    def show(self, status: dict[str, Any]) -> None:
        if self._last and self._last.get("phase") != status.get("phase"):
            self._leave_line()
        self._last = status
        if status.get("end"):  # its line must come before what the ranks print next
            self._leave_line()
            return
        shown = {
            "description": printable(str(status.get("phase", "running"))),
            "completed": status.get("done", 0),
            "total": status.get("total"),
            "notes": ", ".join(_notes(status, str(status.get("unit", "images")))),
        }
        if self._progress is None or self._task is None:
            self._progress = self._new_bar()
            self._task = self._progress.add_task(**shown)
            self._progress.start()
        else:
            self._progress.update(self._task, **shown)

    def clear(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def close(self) -> None:
        self._leave_line()

    def _leave_line(self) -> None:
        """Replace the bar by one line that stays."""
        self.clear()
        if self._last is not None:
            print(plain_line(self._last), file=self._stream, flush=True)
            self._last = None

    def _new_bar(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[notes]}", markup=False),
            console=Console(file=self._stream),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )


def display_for(stream: TextIO) -> Display:
    """A bar if `stream` is a terminal, else plain lines."""
    return BarDisplay(stream) if stream.isatty() else LineDisplay(stream)


@contextmanager
def advancing(
    total: int,
    phase: str,
    every_s: float = PLAIN_EVERY_S,
    unit: str = "images",
    *,
    bar: bool = True,
) -> Iterator[Callable[[int], None]]:
    """Shows a count on stderr: a bar on a terminal, a line every few seconds elsewhere.

    Args:
        bar: False where the thread that draws a bar would disturb what is timed.

    Yields:
        A function to call with how many more are done; it does nothing where total is 0.
    """
    if total == 0:
        yield lambda more: None
        return
    done, lines = 0, not (bar and sys.stderr.isatty())
    display = BarDisplay(sys.stderr)
    reporter = StatusReporter(total, phase, every_s=every_s, unit=unit)
    started_s = time.monotonic()

    def advance(more: int) -> None:
        nonlocal done
        done += more
        if lines:
            reporter.update(done)
        else:
            rate = done / max(time.monotonic() - started_s, 1e-9)
            display.show(
                {"phase": phase, "done": done, "total": total, "unit": unit, f"{unit}_s": rate}
            )

    try:
        yield advance
    finally:
        display.clear()

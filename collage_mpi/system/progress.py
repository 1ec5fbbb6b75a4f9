"""Progress of a job: rank 0 writes status lines, and launch draws a bar or prints plain lines.

Under MPICH no rank has a terminal, so rank 0 cannot draw. Under `collage-mpi launch` it writes
`@status:WORD {json}` lines to stderr, which launch takes out of the stream and draws. Without
launch it logs a plain line every few seconds. The word is different for each launch, so that no
other output of the ranks, such as a file's name in a warning, can be taken for a status.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from collage_mpi.system.environment import status_word
from collage_mpi.system.printable import minutes, printable
from collage_mpi.system.tell import SafeStream, mark_of, status_line, tell

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

MACHINE_EVERY_S = 0.25  # between statuses for a bar
MOST_SHOWN = 10**18
PLAIN_EVERY_S = 5.0  # between plain lines in a log


class StatusLines:
    """Where the lines of a reporter go: marked by a word to launch, or without a word to the log.

    Args:
        word: marks status lines; "" for plain lines; None: as the environment says.
        stream: where marked lines go.
    """

    def __init__(self, word: str | None = None, stream: TextIO | None = None) -> None:
        self._word = (status_word() or "") if word is None else word
        self._stream = SafeStream(sys.stderr if stream is None else stream)
        self._said = ""
        self.often = bool(self._word)  # whether launch draws a bar from the lines

    def write(self, status: dict[str, Any]) -> None:
        """Write a status."""
        if self._word:
            # In one write: lines of other ranks cannot cut it.
            self._stream.write(status_line(status, self._word) + "\n")
        elif not (status.get("passing") and status.get("end")):
            line = plain_line(status)
            if line != self._said:
                tell(line, logging.INFO, any_rank=True)
            self._said = line


class NoLines(StatusLines):
    """Writes nothing; for a process for which another one reports."""

    def write(self, status: dict[str, Any]) -> None:
        pass


class StatusReporter:
    """Reports progress. Call `update` as often as you like; it writes at intervals.

    Attributes:
        total: number of things to do, which may change; None if unknown.

    Args:
        total: see the attribute.
        phase: what is running, e.g. "none", "collage", "train".
        lines: where the lines go; None: as the environment says.
        clock: monotonic, in seconds.
        every_s: least time between plain lines.
        unit: what is counted, in the plural.
    """

    passing = False

    def __init__(
        self,
        total: int | None,
        phase: str,
        lines: StatusLines | None = None,
        clock: Callable[[], float] = time.monotonic,
        every_s: float = PLAIN_EVERY_S,
        unit: str = "images",
    ) -> None:
        self.total, self._phase, self._unit = total, phase, unit
        self._lines = StatusLines() if lines is None else lines
        self._clock = clock
        # Launch gets statuses often enough for a bar, each with the interval of plain lines.
        self._told_every_s = every_s
        self._every_s = min(MACHINE_EVERY_S, every_s) if self._lines.often else every_s
        self._start_s, self._start = clock(), 0
        # The bar appears at once; a plain line only after the first interval.
        self._next_s = self._start_s + (0.0 if self._lines.often else every_s)
        self._last: tuple[int, dict[str, Any]] = (0, {})
        self._written: tuple[int, dict[str, Any]] | None = None
        self._ended = False
        self._also: Callable[[bool], None] = lambda last: None
        self._began: Callable[[int], None] = lambda done: None

    def follow(
        self, line: Callable[[bool], None], began: Callable[[int], None] = lambda done: None
    ) -> None:
        """Call `line` with each line, True at the last, and `began` with what `begin` is given."""
        self._also, self._began = line, began

    def begin(self, done: int) -> None:
        """The warm-up is over and `done` are done; the rate counts from here, if work is left."""
        if done != self.total:
            self._start_s, self._start = self._clock(), done
            self._began(done)

    def update(self, done: int, **fields: Any) -> None:
        """Report that `done` are done. It costs under 1 us when no line is due.

        The first call that reaches the total writes a line at once, due or not.
        """
        self._last = (done, fields)
        now_s = self._clock()
        if self._ended:
            return  # late answers are waited for; another line would come after the summary
        if done == self.total:
            self._write(now_s, end=True)
        elif now_s >= self._next_s:
            self._write(now_s)

    def close(self) -> None:
        """Write the last state, unless a line has shown it already."""
        if self._written != self._last or not self._ended:
            self._write(self._clock(), end=True)

    def _write(self, now_s: float, end: bool = False) -> None:
        self._next_s = now_s + self._every_s
        self._ended |= end
        self._written = self._last
        self._also(end)
        done, fields = self._last
        status = {"phase": self._phase, "done": done, "total": self.total, "unit": self._unit}
        if not self.passing:
            elapsed_s = max(now_s - self._start_s, 1e-9)
            status[f"{self._unit}_s"] = round((done - self._start) / elapsed_s, 2)
        status |= {**fields, "every_s": self._told_every_s}
        status |= {"passing": True} if self.passing else {}
        status |= {"end": True} if end else {}
        self._lines.write(status)


class WaitReporter(StatusReporter):
    """Reports a wait, not work: it has no rate, and no line of it remains when it is over."""

    passing = True


def split_statuses(line: str, word: str | None) -> tuple[str, list[dict[str, Any]]]:
    """Separate the statuses from a line: (the rest of the line, the statuses in order).

    Output of other ranks, or other statuses, may stand before a mark and after a status on the same
    line; it is kept. A damaged status is treated as output.
    """
    if not word:
        return line, []
    mark, rest, statuses = mark_of(word), "", []
    while mark in line:
        before, _, text = line.partition(mark)
        try:
            status, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            status, end = None, 0
        if isinstance(status, dict) and _can_be_shown(status):
            rest, line = rest + before, text[end:]
            statuses.append(status)
        else:
            rest, line = rest + before + mark, text
    return rest + line, statuses


def _can_be_shown(status: dict[str, Any]) -> bool:
    """False if two lines have been mixed, so that numbers and texts have changed places."""
    unit, total = status.get("unit", "images"), status.get("total")
    numbers = [status.get(name, 0) for name in ("done", "every_s", "code", f"{unit}_s")]
    numbers.append(0 if total is None else total)
    return (isinstance(status.get("phase", ""), str) and isinstance(unit, str)) and all(
        type(number) in (int, float) and abs(number) < MOST_SHOWN for number in numbers
    )


def plain_line(status: dict[str, Any]) -> str:
    """One line for a log: `collage: 120 of 1800 images (6.7 %), 52.1 images/s, ...`."""
    unit = str(status.get("unit", "images"))
    done, total = status.get("done", 0), status.get("total")
    text = f"{status.get('phase', 'running')}: {done}"
    if total:
        text += f" of {total} {unit} ({100 * done / total:.1f} %)"
    else:
        text += f" {unit}"
    return printable(", ".join([text, *_notes(status, unit)]))


def _notes(status: dict[str, Any], unit: str) -> list[str]:
    notes = []
    for key, value in status.items():
        if key in ("phase", "done", "total", "unit", "end", "every_s", "passing"):
            continue
        shown = f"{value:.3g}" if isinstance(value, float) and key != f"{unit}_s" else value
        notes.append(
            f"{value:.1f} {unit}/s" if key == f"{unit}_s" else f"{key.replace('_', ' ')} {shown}"
        )
    left = _left(status, unit)
    return [*notes, f"{left} left"] if left else notes


def _left(status: dict[str, Any], unit: str) -> str | None:
    """The time left at the rate so far; None if unknown."""
    done, total, pace = status.get("done", 0), status.get("total"), status.get(f"{unit}_s")
    if not total or not pace or not 0 < done < total:
        return None
    return minutes((total - done) / pace)


class LineDisplay:
    """Shows statuses to a person: a plain line at the interval of the status, and always the last
    one of a phase of work.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._last_s = clock()  # when a line was written
        self._status: dict[str, Any] | None = None  # not shown yet
        self._said = ""  # the last line of a wait: nothing is written twice in a row

    def show(self, status: dict[str, Any]) -> None:
        """Show a status; cheap enough for every status that arrives."""
        if self._status and self._status.get("phase") != status.get("phase"):
            self._leave()
        self._status = status
        if status.get("end"):  # its line must come before what the ranks print next
            self._leave()
        else:
            self._draw(status)

    def tick(self) -> None:
        """Time has passed."""
        if self._status is not None:
            self._draw(self._status)

    def clear(self) -> None:
        """Remove what is drawn, because other output follows."""

    def close(self) -> None:
        """Show the last status, and end."""
        self._leave()

    def _draw(self, status: dict[str, Any]) -> None:
        if self._clock() >= self._last_s + status.get("every_s", PLAIN_EVERY_S):
            self._write(status)

    def _leave(self) -> None:
        """End a phase: print its last line, unless it was only a wait."""
        self.clear()
        if self._status and not self._status.get("passing"):
            self._write(self._status)
        self._status = None

    def _write(self, status: dict[str, Any]) -> None:
        self._last_s, line = self._clock(), plain_line(status)
        if line != self._said:
            print(line, file=self._stream, flush=True)
        self._said, self._status = line, None


class BarDisplay(LineDisplay):
    """A progress bar on a terminal. It is erased before other output and drawn again after it; one
    line of each phase of work stays.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def tick(self) -> None:
        if self._progress is None:  # other output had come
            super().tick()

    def clear(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _draw(self, status: dict[str, Any]) -> None:
        total = status.get("total")
        shown = {
            "description": printable(str(status.get("phase", "running"))),
            "completed": status.get("done", 0),
            "total": total,
            "percent": f"{100 * status.get('done', 0) / total:.0f} %" if total else "",
            "notes": ", ".join(_notes(status, str(status.get("unit", "images")))),
        }
        if self._progress is None or self._task is None:
            self._progress = self._new_bar()
            self._task = self._progress.add_task(**shown)
            self._progress.start()
        else:
            self._progress.update(self._task, **shown)

    def _new_bar(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        return Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[percent]}"),
            TextColumn("{task.fields[notes]}", markup=False),
            console=Console(file=self._stream),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )


class LastLineDisplay(LineDisplay):
    """Shows only the last status of each phase of work."""

    def _draw(self, status: dict[str, Any]) -> None:
        """Nothing: `_leave` writes the last status."""


def display_for(stream: TextIO, *, brief: bool = False) -> LineDisplay:
    """A bar if `stream` is a terminal, else plain lines; with `brief` only the last of a phase."""
    if stream.isatty():
        return BarDisplay(stream)
    return LastLineDisplay(stream) if brief else LineDisplay(stream)


class Advance:
    """Counts what is done. Call it with the number of further things, and other fields to show."""

    def __init__(
        self, reporter: StatusReporter | None = None, bar: BarDisplay | None = None, done: int = 0
    ) -> None:
        self._reporter, self._bar, self._done = reporter, bar, done

    def __call__(self, more: int, **fields: Any) -> None:
        self._done += more
        if self._reporter is not None:
            self._reporter.update(self._done, **fields)

    def say(self, line: str) -> None:
        """Print a line that stays above the bar; does nothing if no progress is shown."""
        if self._bar is not None:
            self._bar.clear()
        if self._reporter is not None:
            print(line, flush=True)


@contextmanager
def advancing(
    total: int,
    phase: str,
    every_s: float = PLAIN_EVERY_S,
    unit: str = "images",
    *,
    bar: bool = True,
    done: int = 0,
) -> Iterator[Advance]:
    """Shows a count on stderr: a bar on a terminal, otherwise a line every few seconds.

    Args:
        total: number of things to do; if it is 0, nothing is shown.
        phase, every_s, unit: as in `StatusReporter`.
        bar: False if the thread that draws a bar would disturb a measurement.
        done: number of things that were done before.
    """
    if total == 0:
        yield Advance()
        return
    drawn = _BarLines(BarDisplay(sys.stderr)) if bar and sys.stderr.isatty() else None
    reporter = StatusReporter(total, phase, drawn, every_s=every_s, unit=unit)
    reporter.begin(done)
    try:
        yield Advance(reporter, None if drawn is None else drawn.display, done)
    finally:
        if drawn is not None:
            drawn.display.clear()


class _BarLines(StatusLines):
    """Draws this process's statuses as a bar; the command itself prints the result."""

    def __init__(self, display: BarDisplay) -> None:
        self.display, self.often = display, True

    def write(self, status: dict[str, Any]) -> None:
        if not status.get("end"):
            self.display.show(status)

"""Tables and other text for a terminal or a log. The doctor does not use it, because it must run
without rich.
"""

from __future__ import annotations

import io
import sys

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table as RichTable

from collage_mpi.system.environment import launcher_rank
from collage_mpi.system.printable import printable
from collage_mpi.system.table import Table


def make_table(*columns: str) -> RichTable:
    """A table without lines, for rows to be added: names on the left, numbers on the right. Without
    columns it has no header.
    """
    return Table(columns, ()).drawn()


def to_text(renderable: RenderableType, width: int | None = None) -> str:
    """Anything that rich can draw, as text; plain if stdout is not a terminal of the user's.

    Open MPI gives every rank a pseudo-terminal of 80 columns, which does not count as one.
    """
    tty = _is_users_terminal()
    out = io.StringIO()
    wide = usable_width(width)
    console = Console(
        file=out, force_terminal=tty, no_color=not tty, width=wide, markup=False, highlight=False
    )
    console.print(Printable(renderable), crop=False)  # a command with a long path stays one line
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


class Printable:
    """A renderable whose texts are freed of control characters before they are coloured."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def usable_width(width: int | None = None) -> int:
    """Columns to fill: the given number, the terminal's, or 120 without a terminal."""
    return width or (Console().width if _is_users_terminal() else 120)


def _is_users_terminal() -> bool:
    return sys.stdout.isatty() and launcher_rank() is None

"""Tables and other text of a terminal or a log.

Owns: how a table looks, how wide text is, when it is coloured.
Does not know: what is told. The doctor, which has to run where rich is missing, lays out its own.
"""

from __future__ import annotations

import io
import sys

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table

from collage_mpi.system.environment import launcher_rank
from collage_mpi.system.printable import printable


def make_table(*columns: str) -> Table:
    """A table without lines: names at the left, numbers at the right; no columns, no header."""
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold",
        show_header=bool(columns),
        title_justify="left",
        title_style="bold",
    )
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i > 0)
    return table


def to_text(renderable: RenderableType, width: int | None = None) -> str:
    """Anything rich can draw, as text; plain when stdout is not a terminal of the user's.

    Open MPI gives every rank a pseudo-terminal of 80 columns, which is not one.
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
    """A renderable whose texts are made fit for a terminal before they are coloured."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def usable_width(width: int | None = None) -> int:
    """Columns to fill: those asked for, the terminal's, or 120 where there is none."""
    return width or (Console().width if _is_users_terminal() else 120)


def _is_users_terminal() -> bool:
    return sys.stdout.isatty() and launcher_rank() is None

"""One model of a table, for a terminal and for a report page, and text for a terminal or a log.

rich is imported late, because the doctor must run without it.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from collage_mpi.system.environment import launcher_rank
from collage_mpi.system.printable import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.table import Table as RichTable

ABSENT = "n/a"


@dataclass(frozen=True)
class Cell:
    """A text with what a page shows in addition. A terminal shows only the text.

    Attributes:
        shade: strength of its colour, 0 to 1; right: in the colour of right answers.
        bad: highlighted as a problem.
    """

    text: str
    shade: float = 0.0
    right: bool = False
    bad: bool = False


Value = str | float | Cell | None


@dataclass(frozen=True)
class Column:
    """Properties of a column.

    Attributes:
        label: its heading.
        form: format of its numbers, such as ",.1f"; texts stay as they are.
        unit: text after a number, with its space: " ms".
        left: whether its cells are aligned left instead of right.
    """

    label: str = ""
    form: str = ""
    unit: str = ""
    left: bool = False

    def shown(self, value: Value) -> str | Cell:
        """A value as text; "n/a" for None."""
        if isinstance(value, str | Cell):
            return value
        return ABSENT if value is None else format(value, self.form) + self.unit


@dataclass(frozen=True)
class Table:
    """A table. The first cell of a row is its heading; a row of one cell is a heading for rows.

    Attributes:
        columns: a text stands for a column with this label and no format; the first column is
            aligned left.
        rows: of values.
        caption: text above the table.
        notes: lines below the table on a page.
    """

    columns: Sequence[Column | str]
    rows: Sequence[Sequence[Value]]
    caption: str = ""
    notes: Sequence[str] = ()

    @property
    def heads(self) -> list[Column]:
        """All columns, also those that were given as a label."""
        return [
            column if isinstance(column, Column) else Column(column, left=i == 0)
            for i, column in enumerate(self.columns)
        ]

    def cells(self) -> list[list[str | Cell]]:
        """The rows with formatted values, for a page."""
        heads = self.heads
        return [
            [column.shown(value) for column, value in zip(heads, row, strict=False)]
            for row in self.rows
        ]

    def texts(self) -> list[list[str]]:
        """The rows as texts."""
        return [[c.text if isinstance(c, Cell) else c for c in row] for row in self.cells()]

    def drawn(self, *, narrow: bool = False) -> RichTable:
        """For a terminal: without lines, and without a header if no column has a label.

        The caption is the label of the first column if that has none; otherwise it is above.

        Args:
            narrow: for a table that is wider than the terminal. The caption is above, and all cells
                are wrapped.
        """
        from rich.table import Table as RichTable

        first, *others = heads = self.heads
        in_corner = bool(self.caption) and not first.label and not narrow
        if in_corner:
            heads = [replace(first, label=self.caption), *others]
        table = RichTable(
            title=None if in_corner else self.caption or None,
            title_justify="left",
            title_style="bold",
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
            header_style="bold",
            show_header=any(column.label for column in heads),
        )
        for column in heads:
            table.add_column(
                column.label,
                justify="left" if column.left else "right",
                no_wrap=not (column.left or narrow),
            )
        for row in self.texts():
            table.add_row(*row)
        return table

    def __rich__(self) -> RichTable:
        return self.drawn()


def to_text(renderable: RenderableType, width: int | None = None) -> str:
    """Anything that rich can draw, as text; plain if stdout is not a terminal of the user's.

    Open MPI gives every rank a pseudo-terminal of 80 columns, which does not count as one.
    """
    from rich.console import Console

    tty = _is_users_terminal()
    out = io.StringIO()
    wide = usable_width(width)
    console = Console(
        file=out, force_terminal=tty, no_color=not tty, width=wide, markup=False, highlight=False
    )
    console.print(Printable(renderable), crop=False)  # a command with a long path stays one line
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


class Printable:
    """A renderable whose control characters are replaced by codes before it is coloured."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


def usable_width(width: int | None) -> int:
    """Width in columns: the given one, the terminal's, or 120 without a terminal."""
    if width or not _is_users_terminal():
        return width or 120
    from rich.console import Console

    return Console().width


def _is_users_terminal() -> bool:
    return sys.stdout.isatty() and launcher_rank() is None

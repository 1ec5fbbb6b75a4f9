"""One table for all that stands in rows and columns: in a terminal, in Markdown, on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table as RichTable

ABSENT = "n/a"


@dataclass(frozen=True)
class Cell:
    """A text with what a page shows besides. In a terminal and in Markdown only its text stands.

    Attributes:
        shade: strength of its colour, 0 to 1; right: in the colour of right answers.
        bar: begin, middle and end of a range, as shares of the cell's width.
        bad: highlighted as a problem.
    """

    text: str
    shade: float = 0.0
    right: bool = False
    bar: tuple[float, float, float] | None = None
    bad: bool = False


Value = str | float | Cell | None


@dataclass(frozen=True)
class Column:
    """What all cells of a column have in common.

    Attributes:
        label: its head.
        form: how its numbers are written, such as ",.1f"; texts stay as they are.
        unit: what stands behind a number, with its space: " ms".
        left: its texts begin at the left; numbers end at the right.
    """

    label: str = ""
    form: str = ""
    unit: str = ""
    left: bool = False

    def shown(self, value: Value) -> str | Cell:
        """A value as it is written; a number that is not known is "n/a"."""
        if isinstance(value, str | Cell):
            return value
        return ABSENT if value is None else format(value, self.form) + self.unit


@dataclass(frozen=True)
class Table:
    """A table. The first cell of a row is its head; a row of one cell is a heading.

    Attributes:
        columns: a text is the label of a column without a form; the first one is on the left.
        caption: stands above it.
        notes: stand below it on a page.
    """

    columns: Sequence[Column | str]
    rows: Sequence[Sequence[Value]]
    caption: str = ""
    notes: Sequence[str] = ()

    @property
    def heads(self) -> list[Column]:
        """The columns, those too that were given by their label."""
        return [
            column if isinstance(column, Column) else Column(column, left=i == 0)
            for i, column in enumerate(self.columns)
        ]

    def cells(self) -> list[list[str | Cell]]:
        """The rows as they are written, for a page."""
        heads = self.heads
        return [
            [column.shown(value) for column, value in zip(heads, row, strict=False)]
            for row in self.rows
        ]

    def texts(self) -> list[list[str]]:
        """The rows as texts alone."""
        return [[c.text if isinstance(c, Cell) else c for c in row] for row in self.cells()]

    def drawn(self, *, narrow: bool = False) -> RichTable:
        """For a terminal: without lines, and without a header where no column has a label.

        The caption is the head of the first column where that has no label; else it is above.

        Args:
            narrow: for a table that is wider than the terminal: the caption is above, and all
                cells are wrapped.
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

    def markdown(self) -> str:
        """For a report: numbers end at the right."""
        heads = self.heads
        rule = ["---" if column.left else "---:" for column in heads]
        rows = [[column.label for column in heads], rule, *self.texts()]
        lines = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
        return "\n".join(f"| {line} |" for line in lines)

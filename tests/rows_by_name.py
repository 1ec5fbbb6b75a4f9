"""Rows by the names of their columns, for tests. A job writes tuples, in the order of a table."""

from __future__ import annotations

from typing import Any

from collage_mpi.results.row_sink import RowSink
from collage_mpi.results.rows import GROUPS, IMAGES, NAMES, TASKS, TableLayout


def row_of(table: TableLayout, session: int, **fields: Any) -> tuple[Any, ...]:
    """A row, with 0 in columns that are left out. A code may be given as what it stands for."""
    for column, names in NAMES.items():
        if isinstance(fields.get(column), str):
            fields[column] = names.index(fields[column])
    nothing = {name: b"" if name == "reason" else 0 for name in table.row._fields}
    return table.row(**{**nothing, "session": session, **fields})


def add_image(sink: RowSink, **fields: Any) -> None:
    sink.image(row_of(IMAGES, sink.session, **fields))


def add_group(sink: RowSink, **fields: Any) -> None:
    sink.group(row_of(GROUPS, sink.session, **fields))


def add_task(sink: RowSink, **fields: Any) -> None:
    sink.task(row_of(TASKS, sink.session, **fields))

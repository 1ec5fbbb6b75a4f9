"""Rows by the names of their columns, for tests. A job writes tuples, in the order of a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from collage_mpi.results.reader import groups_of
from collage_mpi.results.row_sink import RowSink
from collage_mpi.rows import (
    IMAGES,
    NAMES,
    TASKS,
    GroupRow,
    ImageRow,
    TableLayout,
    reason_bytes,
)


def row_of(table: TableLayout, session: int, **fields: Any) -> tuple[Any, ...]:
    """A row, with 0 in columns that are left out. A code may be given as what it stands for."""
    for column, names in NAMES.items():
        if isinstance(fields.get(column), str):
            fields[column] = names.index(fields[column])
    nothing = {name: b"" if name == "reason" else 0 for name in table.row._fields}
    return table.row(**{**nothing, "session": session, **fields})


def packed(table: TableLayout, row: tuple[Any, ...]) -> np.ndarray:
    """A row as an array, (1,) of the table's dtype."""
    if "reason" in table.row._fields:
        row = (*row[:-1], reason_bytes(row[-1]))
    return np.frombuffer(table.packer.pack(*row), table.dtype)


def add_image(sink: RowSink, vector: np.ndarray | None = None, **fields: Any) -> None:
    row = packed(IMAGES, row_of(IMAGES, sink.session, **fields))
    sink.image_rows(row, () if vector is None else [vector])


def add_task(sink: RowSink, **fields: Any) -> None:
    sink.task_rows(packed(TASKS, row_of(TASKS, sink.session, **fields)))


def group_rows(images: list[ImageRow]) -> list[GroupRow]:
    """The rows of the groups of these images."""
    return [GroupRow(*row) for row in groups_of(np.array(images, IMAGES.dtype), {}).tolist()]

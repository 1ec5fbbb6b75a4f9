"""Rows by the names of their columns, for tests. A job writes tuples, in the order of a table."""

from __future__ import annotations

from typing import Any

import numpy as np

from collage_mpi.ledger.reading import runs
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results.reader import groups_of
from collage_mpi.results.row_sink import RowSink
from collage_mpi.results.sole import SoleWriter
from collage_mpi.rows import (
    ABSENT,
    IMAGES,
    NAMES,
    PRESENT,
    TASKS,
    GroupRow,
    ImageRow,
    TableLayout,
    reason_bytes,
)


def cells_of(answers: list[Any]) -> np.ndarray:
    """Class and score of each image, None for no answer, like CELL, but with exact scores."""
    form = [("label", "<i4"), ("score", "<f8"), ("state", "u1")]
    return np.array([(*each, PRESENT) if each else (0, 0.0, ABSENT) for each in answers], form)


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
    """Take a row of an image, whose position is by default its place in the input."""
    if isinstance(sink, SoleWriter):
        counts = [each["count"] for each in sink.fixed["shards"][: fields["shard"]]]
        place = sum(counts) + fields["row"]
        for run in runs(FolderStore(sink.out)) if sink.run.again else ():
            asked = [position for span in run.again for position in range(*span)]
            place = run.first + asked.index(place) if place in asked else place
        fields.setdefault("position", place)
    row = packed(IMAGES, row_of(IMAGES, sink.session, **fields))
    sink.image_rows(row, () if vector is None else [vector])


def add_task(sink: RowSink, **fields: Any) -> None:
    sink.task_rows(packed(TASKS, row_of(TASKS, sink.session, **fields)))


def group_rows(images: list[ImageRow]) -> list[GroupRow]:
    """The rows of the groups of these images."""
    return [GroupRow(*row) for row in groups_of(np.array(images, IMAGES.dtype), {}).tolist()]

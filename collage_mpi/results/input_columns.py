"""The columns that the sources of a run have besides the pictures (a caption, a URL), which travel
to exported rows. They are read from the sources, some rows at a time: a run keeps no copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from collage_mpi.errors import UsageError
from collage_mpi.results.vectors import require_pyarrow
from collage_mpi.system.printable import counted

if TYPE_CHECKING:
    from collage_mpi.shards.schema import ShardInfo
    from collage_mpi.shards.source import RowColumns

_ROWS_AT_ONCE = 1 << 17
_MOST_NAMED = 12  # columns that a message lists


class InputColumns:
    """Reads the further columns of sources. One source is open at a time."""

    def __init__(self, infos: Mapping[int, ShardInfo]) -> None:
        """`infos`: shard number -> description of the source."""
        self._infos = infos
        self._open: tuple[int, RowColumns | None] = (-1, None)

    @cached_property
    def schema(self) -> Any:
        """pyarrow.Schema of the columns of all sources, in the order in which they appear; None if
        there are none. A column with different types in different sources becomes text.
        """
        kinds: dict[str, set[Any]] = {}
        for number in self._infos:
            found = self._source(number)
            for field in () if found is None else found.schema:
                kinds.setdefault(field.name, set()).add(field.type)
        if not kinds:
            return None
        import pyarrow as pa

        known = [own - {pa.null()} or own for own in kinds.values()]
        types = [next(iter(own)) if len(own) == 1 else pa.string() for own in known]
        return pa.schema([*zip(kinds, types, strict=True)])

    def of(self, images: np.ndarray) -> dict[str, Any]:
        """The columns of images, (n,) with shard and row: name -> (n,) pyarrow.ChunkedArray. A
        value is null if the image's source is missing or has no such column.

        Raises:
            DataFault, EnvironmentFault: the columns cannot be read.
        """
        if self.schema is None:
            return {}
        import pyarrow as pa

        rows = images["row"].astype(np.int64)
        in_order, places = np.argsort(rows, kind="stable"), np.full(len(rows), -1)
        tables, done = [self.schema.empty_table()], 0
        for number in np.unique(images["shard"]).tolist():
            found = self._source(number)
            if found is None:
                continue
            own = in_order[images["shard"][in_order] == number]
            own = own[rows[own] < self._infos[number].count]
            table = found.take(rows[own], found.schema.names)
            kinds = {name: self.schema.field(name).type for name in table.column_names}
            tables.append(pa.table({name: table[name].cast(to) for name, to in kinds.items()}))
            places[own] = np.arange(done, done + len(own))
            done += len(own)
        whole = pa.concat_tables(tables, promote_options="default")
        whole = whole.take(pa.array(places, mask=places < 0))
        return dict(zip(whole.column_names, whole.columns, strict=True))

    def check_id(self, column: str) -> None:
        """Check that a column names each image of the sources.

        Raises:
            UsageError: a source has no such column, or a value is missing or is there twice.
            EnvironmentFault: pyarrow is not installed.
        """
        require_pyarrow("--id")
        import pyarrow as pa
        import pyarrow.compute as pc

        names = [] if self.schema is None else self.schema.names
        some = ", ".join(names[:_MOST_NAMED]) + (", ..." if names[_MOST_NAMED:] else "")
        listed = f"Columns that can name images: {some or 'none'}"
        chunks: list[Any] = []
        for number, info in self._infos.items():
            found = self._source(number)
            if found is None or column not in found.schema.names:
                raise UsageError(f"--id {column}: {info.path} has no such column. {listed}")
            for start in range(0, info.count, _ROWS_AT_ONCE):
                rows = np.arange(start, min(start + _ROWS_AT_ONCE, info.count))
                values = found.take(rows, [column])[column]
                chunks += values.cast(self.schema.field(column).type).chunks
        whole = pa.chunked_array(chunks, None if chunks else pa.null())
        counts = whole.drop_null().value_counts()
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        wrong = None
        if whole.null_count:
            wrong = f"{whole.null_count:,} of {counted(len(whole), 'row')} without a value"
        elif len(twice):
            wrong = f"the value {twice[0].as_py()!r} is there more than once"
        if wrong:
            raise UsageError(f"--id {column}: {wrong}. Each image needs its own name. {listed}")

    def _source(self, number: int) -> RowColumns | None:
        from collage_mpi.shards.inputs import source_class

        if self._open[0] != number:
            info = self._infos.get(number)
            found = None if info is None else source_class(info.storage).columns(info)
            self._open = number, found
        return self._open[1]

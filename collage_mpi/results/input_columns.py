"""The columns that the sources of a run have besides the pictures, such as a caption or a URL.

They are read from the sources when rows are exported, some rows at a time: a run keeps no copy, and
no rank holds them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collage_mpi.errors import CollageError, DataFault, UsageError
from collage_mpi.shards.inputs import expand_paths, place_of, source_class
from collage_mpi.shards.remote import path_of
from collage_mpi.shards.schema import PART_MARK, ShardInfo, split_part
from collage_mpi.system.printable import counted, did_you_mean, some_of

if TYPE_CHECKING:
    from collage_mpi.results.manifest import Json
    from collage_mpi.shards.members import MemberIndex
    from collage_mpi.shards.source import RowColumns

ID = "id"
INPUT = "input_"  # prefix of a column whose name is taken
NONE = "none"  # --columns of a table without columns of its input
_ROWS_AT_ONCE = 1 << 17
_MOST_NAMED = 12  # columns that a message lists


class InputColumns:
    """Reads the further columns of sources. One source is open at a time."""

    def __init__(
        self, infos: Mapping[int, ShardInfo], names: Sequence[str] = (), id: str | None = None
    ) -> None:
        """
        Args:
            infos: shard number -> description of the source.
            names: of the columns that the output gets; () for all that travel, NONE for none.
            id: the column that names an image in the output, where it is called ID.
        """
        self._infos, self._names, self._id = infos, tuple(names), id
        self._open: tuple[int, RowColumns | None] = (-1, None)
        self._left_out: dict[str, None] = {}
        self._renamed: dict[str, str] = {}
        self._unsaid = 0

    @cached_property
    def known(self) -> dict[str, Any]:
        """Name -> pyarrow.DataType of all columns that travel, in the order in which they appear. A
        column whose types in several sources have none in common is text."""
        from collage_mpi.shards.tables import unified

        kinds: dict[str, dict[Any, None]] = {}
        for found in filter(None, map(self._source, self._infos)):
            for field in found.schema:
                kinds.setdefault(field.name, {})[field.type] = None
            self._left_out |= dict.fromkeys(found.left_out)
        return {name: unified([*own]) for name, own in kinds.items()}

    @cached_property
    def wanted(self) -> dict[str, Any]:
        """Those of the columns that the output gets."""
        named = [*(self._names or self.known), self._id]  # NONE is not among the known
        return {name: self.known[name] for name in named if name in self.known}

    def behind(self, found: Mapping[str, Any], images: np.ndarray) -> dict[str, Any]:
        """Columns of a table, and behind them those of the input. A column of the input whose name
        is taken, in capitals or not, gets the prefix INPUT. The chosen one becomes the column ID.

        Args:
            found: name -> values of the images.
            images: (n,) with shard and row.

        Raises: as `of`.
        """
        own, whole = self.of(images), dict(found)
        taken, theirs = {name.lower() for name in found}, {name.lower() for name in own}
        for name, values in own.items():
            new = ID if name == self._id else name
            if name != self._id and name.lower() in taken:
                while new.lower() in taken | theirs:
                    new = f"{INPUT}{new}"
            whole[new] = values
            taken.add(new.lower())
            if name not in (new, self._id):
                self._renamed[name] = new
        return whole

    def of(self, images: np.ndarray) -> dict[str, Any]:
        """The columns of images, (n,) with shard and row: name -> (n,) pyarrow.ChunkedArray. A
        value is null if the image's source is missing, has no such column, or says nothing of the
        image any more.

        Raises:
            DataFault, EnvironmentFault: the columns cannot be read.
        """
        if not self.wanted:
            return {}
        import pyarrow as pa

        rows = images["row"].astype(np.int64)
        in_order, places = np.argsort(rows, kind="stable"), np.full(len(rows), -1)
        tables, done = [pa.schema([*self.wanted.items()]).empty_table()], 0
        for number in np.unique(images["shard"]).tolist():
            own = in_order[images["shard"][in_order] == number]
            own = own[rows[own] < self._infos[number].count] if number in self._infos else own[:0]
            found = self._source(number)
            if found is None or not len(own):
                continue
            table = found.take(rows[own], [n for n in self.wanted if n in found.schema.names])
            self._unsaid += found.unsaid
            if table.num_columns:
                tables.append(self._cast(number, table))
                places[own] = np.arange(done, done + len(own))
                done += len(own)
        whole = pa.concat_tables(tables, promote_options="default")
        whole = whole.take(pa.array(places, mask=places < 0))
        return dict(zip(whole.column_names, whole.columns, strict=True))

    def _cast(self, number: int, table: Any) -> Any:
        import pyarrow as pa

        columns = {}
        for name in table.column_names:
            try:
                columns[name] = as_type(table[name], self.wanted[name])
            except pa.ArrowInvalid as error:
                raise DataFault(
                    f"{self._infos[number].path}: column {name} does not fit the type that it has "
                    f"in all files, {self.wanted[name]} ({error}): leave it out with --columns"
                ) from error
        return pa.table(columns)

    def check(self) -> None:
        """Check that there are the columns that were named, and that the chosen one, if there is
        one, names each image of the sources.

        Raises:
            UsageError: there is no such column, or a value is missing or is there twice.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        for name in self._names:
            if name not in self.known and self._names != (NONE,):
                why = f"no column of the input that travels{did_you_mean(name, self.known)}"
                raise UsageError(f"--columns {name}: {why}. Columns: {self._listed(self.known)}")
        column = self._id
        if column is None:
            return
        flat = [name for name, kind in self.known.items() if not pa.types.is_nested(kind)]
        listed = f"Columns that can name images: {self._listed(flat)}"
        chunks: list[Any] = []
        for number, info in self._infos.items():
            found = self._source(number)
            if found is None or column not in flat or column not in found.schema.names:
                raise UsageError(f"--id {column}: {info.path} has no such column. {listed}")
            rows = np.flatnonzero(info.members.live if info.members else np.ones(info.count))
            for start in range(0, len(rows), _ROWS_AT_ONCE):
                some = found.take(rows[start : start + _ROWS_AT_ONCE], [column])
                chunks += self._cast(number, some)[column].chunks
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

    def notes(self, to: str) -> Iterator[str]:
        """Yields lines about columns that are other in an output of this format, csv or parquet,
        than in the input. Call it when all is written."""
        from pyarrow import types

        known = self.wanted if to == "csv" else {}  # zarr gets no columns of the input
        nested = [name for name, kind in known.items() if types.is_nested(kind)]
        for what, names in {
            "columns of the input whose names are taken": [
                f"{old} is now {new}" for old, new in self._renamed.items()
            ],
            "columns that stay in the input, for their type or because several have the name": (
                self._left_out if not self._names else ()
            ),
            "lists and structs, which are JSON in a CSV file": nested,
        }.items():
            if names:
                yield f"{what}: {self._listed(names)}"
        if self._unsaid:
            what = f"{counted(self._unsaid, 'image')} without columns of the input"
            why = "its table names other pictures in their rows now"
            yield f"{what}: {why}. Repeat classify, or run --update, which finds the rows again"

    def _listed(self, names: Any) -> str:
        return some_of([*names], _MOST_NAMED) or "none"

    def _source(self, number: int) -> RowColumns | None:
        if self._open[0] != number:
            info = self._infos.get(number)
            found = None if info is None else source_class(info.storage).columns(info)
            self._open = number, found
        return self._open[1]


def as_type(column: Any, kind: Any) -> Any:
    """A pyarrow.ChunkedArray as another type; lists and structs as text are JSON.

    Raises:
        pyarrow.ArrowInvalid: a value does not fit.
    """
    import pyarrow as pa

    from collage_mpi.shards.tables import json_text

    if pa.types.is_nested(column.type) and pa.types.is_string(kind):
        return pa.chunked_array([pa.array([*map(json_text, column.to_pylist())], kind)])
    return column.cast(kind)


def of_lists(
    entries: Mapping[int, Json],
    lists: Mapping[int, MemberIndex],
    shards: Sequence[Path | str] | None,
) -> tuple[dict[int, ShardInfo], list[str]]:
    """Shard number -> description of a source of members that has further columns; and messages
    about those that cannot be read. No picture is looked at.

    Args:
        entries: shard number -> its entry in the manifest.
        lists: shard number -> the members of the source, as the run knows them.
        shards: files to look for, by their names; by default the recorded paths.
    """
    given = {place_of(path).name: place_of(path) for path in expand_paths(shards)} if shards else {}
    found, missing = dict[int, ShardInfo](), list[str]()
    for number, members in lists.items():
        entry = entries[number]
        file, part = split_part(path_of(entry.get("path") or ""))
        path = path_of(f"{given.get(file.name, file)}{part and PART_MARK}{part}")
        about = (len(members), (), None, False, "", entry["fingerprint"])
        info = ShardInfo(path, *about, storage=entry.get("source") or "", members=members)
        try:
            if source_class(info.storage).columns(info) is not None:
                found[number] = info
        except CollageError as error:
            missing.append(f"no columns of the input: {error}. --shards PATH says where it is now")
    return found, missing

"""Source for a Parquet file with a column of encoded pictures, as Hugging Face stores datasets. A
row group is read as a whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.shards.members import check_rows, check_unit, name_text
from collage_mpi.shards.remote import network_faults, opened, stat_of, url_of
from collage_mpi.shards.schema import (
    HASH_LIMIT_BYTES,
    PART_MARK,
    ShardInfo,
    label_problem,
    read_sidecar,
    sha256_of,
    split_part,
)
from collage_mpi.shards.source import PictureSource, ReadAs, RowColumns, picture_info
from collage_mpi.system.files import reading
from collage_mpi.system.printable import one_line

NAMES = (
    *("images", "imgs", "image", "x", "data", "img", "picture"),
    *("jpg", "jpeg", "png", "bytes", "content"),
)
LABELS = ("labels", "label", "y", "targets", "target", "cls", "class", "class_name")
GROUPS_KEPT = 2  # row groups in memory, because a batch may span two
BATCH_ROWS = 1 << 10  # of further columns, decoded at a time
FOOTER_BYTES = 8  # end of the file: length of the metadata, 4 bytes, and magic number


class ParquetSource(PictureSource):
    """One Parquet file; `FILE::COLUMN` names the column."""

    name, remote = "parquet", True
    suffixes = (".parquet",)

    def __init__(self, info: ShardInfo) -> None:
        super().__init__(info)
        with _still(info.path):
            self._file = _opened(info.path)
        self._column, self._bytes = image_column(self._file.schema_arrow, info.path)
        self._file.close()
        with _still(info.path):  # a value that repeats is then held once
            self._file = _opened(info.path, read_dictionary=[self._bytes])
        self._starts = _starts(self._file.metadata)
        if self._starts[-1] != info.count:
            raise DataFault(f"{info.path}: has changed since it was checked. Start again.")
        self._groups: dict[int, Any] = {}  # least recently read first
        if info.has_labels:
            self.labels = _labels(self._file, info.path, ReadAs(class_names=info.class_names))[0]

    @classmethod
    def describe(cls, path: Path, read_as: ReadAs) -> ShardInfo:
        with _still(path), _opened(path) as file:
            _check_sizes(file, image_column(file.schema_arrow, path)[1], path)
            labels, names = _labels(file, path, read_as) if read_as.labels else (None, None)
            info = picture_info(cls, path, read_as, file.metadata.num_rows, cls.fingerprint(path))
        return replace(
            info, has_labels=labels is not None, class_names=names or read_as.class_names
        )

    @classmethod
    def fingerprint(cls, path: Path) -> str:
        """A hash of the file's bytes if the file is small or has a recorded SHA-256. Otherwise a
        hash of its size and of its metadata, which says where each column is.
        """
        file, part = split_part(path)
        size = stat_of(file)[0]
        few = url_of(file) is None and size <= HASH_LIMIT_BYTES
        known = read_sidecar(file) or (sha256_of(file) if few else None)
        if known is None:
            with network_faults(file), opened(file) as stream:
                stream.seek(-FOOTER_BYTES, 2)
                length = int.from_bytes(stream.read(4), "little")
                stream.seek(max(0, size - FOOTER_BYTES - length))
                known = hashlib.sha256(b"%d" % size + stream.read()).hexdigest()
        return hashlib.sha256(f"{known} {part}".encode()).hexdigest()

    @classmethod
    def ids(cls, info: ShardInfo) -> list[str] | None:
        """The paths that Hugging Face stores beside the bytes; None if the column has none."""
        with _still(info.path), _opened(info.path) as file:
            column, values = image_column(file.schema_arrow, info.path)
            if column == values or "path" not in _field_names(file.schema_arrow.field(column)):
                return None
            found = file.read(columns=[f"{column}.path"]).column(0).combine_chunks().field("path")
        name = split_part(info.path)[0].name
        return [name_text(p or f"{name}:{row}") for row, p in enumerate(found.to_pylist())]

    @classmethod
    def columns(cls, info: ShardInfo) -> RowColumns | None:
        found = ParquetColumns(info.path)
        return found if found.schema.names else None

    def files(self, rows: np.ndarray) -> list[bytes | None]:
        found: list[bytes | None] = []
        groups = np.searchsorted(self._starts, rows, side="right") - 1
        for row, group in zip(rows.tolist(), groups.tolist(), strict=True):
            data = self._group(group)[row - int(self._starts[group])].as_py()
            if not data:
                self.row_faults[row] = "holds no bytes (a path beside them is not followed)"
            found.append(data or None)
        return found

    def _group(self, number: int) -> Any:
        """The column of one row group, an Arrow array of bytes. Raises EnvironmentFault."""
        if number not in self._groups:
            with _still(self.path):
                column = self._file.read_row_group(number, columns=[self._bytes]).column(0)
            values = column.combine_chunks()
            nested = self._bytes != self._column
            self._groups[number] = values.field("bytes") if nested else values
            while len(self._groups) > GROUPS_KEPT:
                del self._groups[next(iter(self._groups))]
        return self._groups[number]

    def close(self) -> None:
        self._file.close()


class ParquetColumns(RowColumns):
    """The columns of numbers, texts, times and booleans of a Parquet file."""

    def __init__(self, path: Path) -> None:
        with _still(path):
            self._file = _opened(path)
        self._path, meta = path, self._file.metadata
        self._starts = _starts(meta)
        self.schema = _flat_columns(self._file.schema_arrow)
        groups = (meta.row_group(group) for group in range(meta.num_row_groups))
        parts = (group.column(i) for group in groups for i in range(group.num_columns))
        names = {*self.schema.names}
        self._stored = sum(p.total_compressed_size for p in parts if p.path_in_schema in names)
        self._scanned: tuple[int, tuple[str, ...]] | None = None  # row group and columns
        self._scan: Iterator[Any] = iter(())
        self._first = 0  # row of the batch
        self._batch: Any = None

    def take(self, rows: np.ndarray, names: Sequence[str]) -> Any:
        import pyarrow as pa

        whole = self.schema.empty_table().select([*names])
        tables, nbytes, done = [whole], 0, 0
        while done < len(rows):
            with _still(self._path):
                batch = self._batch_of(int(rows[done]), (*names,))
                end = int(np.searchsorted(rows, self._first + len(batch)))
                table = pa.Table.from_batches([batch.take(pa.array(rows[done:end] - self._first))])
                tables.append(table.select([*names]).cast(whole.schema))
            done, nbytes = end, nbytes + tables[-1].nbytes
            check_unit(self._path, f"what columns say of {done:,} rows", nbytes, self._stored)
        return pa.concat_tables(tables)

    def _batch_of(self, row: int, names: tuple[str, ...]) -> Any:
        """The batch that holds a row, which begins with row `_first`."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if self._scanned != (group, names) or row < self._first:
            self._scan = self._file.iter_batches(BATCH_ROWS, [group], [*names])
            self._scanned = group, names
            self._first, self._batch = int(self._starts[group]), next(self._scan)
        while row >= self._first + len(self._batch):
            self._first, self._batch = self._first + len(self._batch), next(self._scan)
        return self._batch


def _starts(meta: Any) -> np.ndarray:
    """(row groups + 1,) the first row of each row group, and the number of rows."""
    rows = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
    return np.cumsum([0, *rows])


def _flat_columns(schema: Any) -> Any:
    """The columns that can travel to the output: not nested, not binary, and with a name of their
    own."""
    import pyarrow as pa
    import pyarrow.types as types

    found = []
    for field in schema:
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        texts = types.is_string(kind) or types.is_large_string(kind)
        flat = types.is_primitive(kind) or texts or types.is_decimal(kind) or types.is_null(kind)
        if flat and len(schema.get_all_field_indices(field.name)) == 1:
            found.append(pa.field(field.name, kind))
    return pa.schema(found)


def _check_sizes(file: Any, column: str, path: Path) -> None:
    """Raises DataFault if the file has no rows, too many, or row groups that are too large."""
    meta = file.metadata
    if meta.num_rows < 1:
        raise DataFault(f"{path}: has no rows")
    check_rows(path, meta.num_rows)
    for number in range(meta.num_row_groups):
        group = meta.row_group(number)
        parts = [group.column(i) for i in range(group.num_columns)]
        own = [part for part in parts if part.path_in_schema == column]
        nbytes, stored = (
            sum(getattr(part, f"total_{how}_size") for part in own)
            for how in ("uncompressed", "compressed")
        )
        check_unit(path, f"row group {number}", nbytes, stored)


def image_column(schema: Any, path: Path) -> tuple[str, str]:
    """The name of the column of pictures, and the path of their bytes: COLUMN or COLUMN.bytes.

    Raises:
        DataFault: no column fits, or several do.
    """
    part = split_part(path)[1]
    held = {field.name: _bytes_of(field) for field in schema}
    listed = ", ".join(f"{field.name} ({field.type!s:.40})" for field in list(schema)[:12])
    if part and not held.get(part):
        raise DataFault(
            f"{path}: {part!r} is no column of pictures, which are binary, or a struct with bytes; "
            f"the file holds {listed}"
        )
    found = [name for name, where in held.items() if where] if not part else [part]
    known = [name for name in found if name.lower() in NAMES]
    if len(known) == 1:
        found = known
    if len(found) != 1:
        which = f"may be in {' or '.join(found)}" if found else "are not found"
        example = f"say which, such as {path}{PART_MARK}{found[0]}" if found else ""
        advice = example or "needed: one column"
        raise DataFault(
            f"{path}: pictures {which}; {advice} of type binary, or of Hugging Face's image type "
            f"{{bytes, path}}. It holds {listed}"
        )
    return found[0], held[found[0]]


def _bytes_of(field: Any) -> str:
    """The path of the bytes in a column of pictures; "" if it cannot be such a column."""
    import pyarrow.types as types

    if types.is_binary(field.type) or types.is_large_binary(field.type):
        return str(field.name)
    inside = types.is_struct(field.type) and "bytes" in _field_names(field)
    held = inside and _bytes_of(field.type.field("bytes"))
    return f"{field.name}.bytes" if held else ""


def _field_names(column: Any) -> list[str]:
    return [column.type.field(i).name for i in range(column.type.num_fields)]


def _labels(
    file: Any, path: Path, read_as: ReadAs
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """(n,) int64 class numbers, and the names of the classes; each None if there are none.

    Raises:
        DataFault: labels are missing or not among the classes.
    """
    import pyarrow.types as types

    schema = file.schema_arrow
    fields = [field for field in schema if field.name.lower() in LABELS]
    texts = {f.name: types.is_string(f.type) or types.is_large_string(f.type) for f in fields}
    fields = [f for f in fields if types.is_integer(f.type) or texts[f.name]]
    if not fields:
        return None, None
    name = fields[0].name
    column = file.read(columns=[name]).column(0)
    advice = f"column {name!r}; --input-labels none takes no labels"
    if column.null_count:
        raise DataFault(f"{path}: {column.null_count:,} rows have no label in {advice}")
    values, names = column.to_numpy(), _class_names(schema, name)
    if names and not texts[name] and read_as.class_names not in (None, names):
        wrong = label_problem(values, names)
        values = None if wrong else np.array(names, dtype=object)[values]
    if values is not None and values.dtype != object:
        labels, names = values.astype(np.int64), names or read_as.class_names
        wrong = label_problem(labels, names)
    elif values is not None:
        names = read_as.class_names or tuple(sorted(set(values)))
        numbers = {text: number for number, text in enumerate(names)}
        unknown = next((text for text in values if text not in numbers), None)
        wrong = None if unknown is None else f"{unknown!r} is none of the {len(names)} classes"
        labels = np.array([numbers.get(text, 0) for text in values], dtype=np.int64)
    if wrong:
        raise DataFault(f"{path}: {wrong}, in {advice}")
    return labels, names


def _class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """The class names of a column of Hugging Face's type `ClassLabel`; None if it is none."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        names = tuple(map(str, about["info"]["features"][column]["names"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return names if names and all(names) and len(set(names)) == len(names) else None


def _opened(path: Path, **how: Any) -> Any:
    from pyarrow import parquet

    file = split_part(path)[0]
    stream = opened(file)  # if the file is missing or forbidden, this OSError is clearer
    if url_of(file) is None:
        stream.close()
    try:
        return parquet.ParquetFile(file if stream.closed else stream, **how)
    except (ValueError, OSError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise DataFault(
            f"{path}: cannot be opened as Parquet ({one_line(error, 200)}): copy it again"
        ) from error


@contextmanager
def _still(path: Path) -> Iterator[None]:
    """Raises errors of pyarrow as EnvironmentFault."""
    with reading(path, also=(ValueError, NotImplementedError, MemoryError)), network_faults(path):
        yield

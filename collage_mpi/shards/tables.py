"""Tables, which are Parquet, CSV or JSON: what they say of the rows of a source, read forward and
some rows at a time, and the pictures that they name. The source for a Parquet file with a column of
encoded pictures, as Hugging Face stores datasets, reads a row group as a whole.
"""

from __future__ import annotations

import hashlib
import io
import json
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.shards.members import (
    MemberIndex,
    check_rows,
    check_unit,
    list_bytes,
    name_text,
)
from collage_mpi.shards.remote import network_faults, opened, stat_of, url_of
from collage_mpi.shards.schema import (
    HASH_LIMIT_BYTES,
    PART_MARK,
    ShardInfo,
    class_numbers,
    label_problem,
    read_sidecar,
    sha256_of,
    split_part,
    stamp_of,
)
from collage_mpi.shards.source import PictureSource, ReadAs, RowColumns, picture_info
from collage_mpi.system.files import reading
from collage_mpi.system.printable import one_line, some_of

NAMED = "path file filename file_name filepath file_path url image img picture image_path img_path"
PATHS = (*NAMED.split(), "image_file", "image_url")  # columns that name pictures
BATCH_ROWS = 1 << 10  # decoded at a time
CSV_BLOCK_BYTES = 4 << 20  # the longest row of a CSV file
MOST_COLUMNS = 1 << 12  # of a table
DELIMITERS = ",;\t"
NAMES = (
    *("images", "imgs", "image", "x", "data", "img", "picture"),
    *("jpg", "jpeg", "png", "bytes", "content"),
)
LABELS = ("labels", "label", "y", "targets", "target", "cls", "class", "class_name")
GROUPS_KEPT = 2  # row groups in memory, because a batch may span two
FOOTER_BYTES = 8  # end of the file: length of the metadata, 4 bytes, and magic number


class Table(RowColumns):
    """The columns of a file that is read forward.

    Attributes:
        starts: (parts,) int64, ascending from 0: the rows at which reading can begin.
    """

    starts: np.ndarray

    def __init__(self, path: Path, schema: Any, stored: int, starts: np.ndarray) -> None:
        """`schema`: of all columns; `stored`: bytes of the columns in the file."""
        self.path, self.starts, self._stored = path, starts, stored
        if len(schema) > MOST_COLUMNS:
            raise DataFault(f"{path}: has {len(schema):,} columns; at most {MOST_COLUMNS:,}")
        self.schema, self.left_out = _travelling(schema)
        self._scanned: tuple[int | str, ...] = ()  # part and columns
        self._scan: Iterator[Any] = iter(())
        self._first = 0  # row of the batch
        self._batch: Any = None

    @abstractmethod
    def scan(self, part: int, names: Sequence[str]) -> Iterator[Any]:
        """Yields pyarrow.RecordBatches of some columns, from the start of a part to its end."""

    def take(self, rows: np.ndarray, names: Sequence[str]) -> Any:
        """Some columns of ascending rows, see `RowColumns.take`. Rows behind the last one of the
        table are left out."""
        import pyarrow as pa

        whole = self.schema.empty_table().select([*names])
        tables, nbytes, done = [whole], 0, 0
        with still(self.path):
            while done < len(rows) and (batch := self._batch_of(rows[done], names)) is not None:
                end = int(np.searchsorted(rows, self._first + len(batch)))
                table = pa.Table.from_batches([batch.take(pa.array(rows[done:end] - self._first))])
                tables.append(table.select([*names]).cast(whole.schema))
                tables[-1].validate(full=True)  # checks that texts are UTF-8
                done, nbytes = end, nbytes + tables[-1].nbytes
                check_unit(self.path, f"what columns say of {done:,} rows", nbytes, self._stored)
        return pa.concat_tables(tables)

    def _batch_of(self, row: int, names: Sequence[str]) -> Any:
        """The batch that holds a row, which begins with row `_first`; None behind the last row."""
        part = int(np.searchsorted(self.starts, row, side="right")) - 1
        if self._scanned != (part, *names) or row < self._first:
            self._scan, self._scanned = self.scan(part, names), (part, *names)
            self._first, self._batch = int(self.starts[part]), next(self._scan, None)
        while self._batch is not None and row >= self._first + len(self._batch):
            self._first, self._batch = self._first + len(self._batch), next(self._scan, None)
        return self._batch

    def pictures(self) -> list[str]:
        """The names of all pictures, "" where there is none. Raises DataFault."""
        column, found, nbytes = path_column(self), list[str](), 0
        with still(self.path):
            for batch in chain.from_iterable(
                self.scan(p, [column]) for p in range(len(self.starts))
            ):
                nbytes += batch.nbytes
                check_unit(self.path, "its names of pictures", nbytes, self._stored)
                names = batch.column(batch.schema.names.index(column)).to_pylist()
                found += [name or "" for name in names]
                check_rows(self.path, len(found))
        return found


def unified(kinds: Sequence[Any]) -> Any:
    """The pyarrow.DataType that holds the values of several: of numbers the wider one, of structs
    the fields of all, and text if there is none else."""
    import pyarrow as pa

    schemas = [pa.schema([("", kind)]) for kind in kinds]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.string()


def json_text(value: Any) -> str | None:
    """A value as JSON; a text as it is."""
    if value is None or isinstance(value, str):
        return value
    return msgspec.json.encode(value).decode()


def _travelling(schema: Any) -> tuple[Any, tuple[str, ...]]:
    """The columns that can travel to the output, those by codes as their values; and the names of
    others that hold no pictures: of another type, or of which several have the name."""
    import pyarrow as pa

    found, left = {}, list[str]()
    for field in schema:
        coded = pa.types.is_dictionary(field.type)
        kind = field.type.value_type if coded else field.type
        if _travels(kind) and schema.names.count(field.name) == 1:
            found[field.name] = kind
        elif not bytes_of(field):
            left.append(field.name)
    return pa.schema([*found.items()]), tuple(dict.fromkeys(left))


def _travels(kind: Any) -> bool:
    from pyarrow import types

    if types.is_nested(kind):
        names = ("key_type", "item_type") if types.is_map(kind) else ("value_type",)
        inner = [getattr(kind, name, None) for name in names]
        inner = [each.type for each in kind] if types.is_struct(kind) else inner
        return bool(inner) and all(map(_travels, inner))
    fixed = types.is_primitive(kind) or types.is_decimal(kind) or types.is_null(kind)
    return bool(fixed or _is_text(kind))


class ParquetTable(Table):
    """The columns of a Parquet file besides the pictures."""

    def __init__(self, path: Path) -> None:
        with still(path):
            self._file = opened_parquet(path)
            meta, schema = self._file.metadata, self._file.schema_arrow
            groups = (meta.row_group(group) for group in range(meta.num_row_groups))
            parts = [group.column(i) for group in groups for i in range(group.num_columns)]
            names = {*_travelling(schema)[0].names}
            own = [p for p in parts if {p.path_in_schema, p.path_in_schema.split(".")[0]} & names]
            stored = sum(part.total_compressed_size for part in own)
        super().__init__(path, schema, stored, starts_of(meta)[:-1])

    def scan(self, part: int, names: Sequence[str]) -> Iterator[Any]:
        with still(self.path):
            yield from self._file.iter_batches(BATCH_ROWS, [part], [*names])


class CsvTable(Table):
    """The columns of a CSV file, whose first line names them. All are texts, because a CSV file has
    no types: 007 stays 007. A field with nothing in it is null. The delimiter is the one of
    DELIMITERS that is most often in the first line."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        with _text(path) as stream:
            first = stream.readline(CSV_BLOCK_BYTES).decode()
        self._delimiter = max(DELIMITERS, key=first.count)
        with self._opened(path) as reader:
            schema = pa.schema([(name, pa.string()) for name in reader.schema.names])
        super().__init__(path, schema, stamp_of(path)[0], np.zeros(1, np.int64))

    @contextmanager
    def _opened(self, path: Path, names: Sequence[str] | None = None) -> Iterator[Any]:
        import pyarrow as pa
        from pyarrow.csv import ConvertOptions, ParseOptions, ReadOptions, open_csv

        texts = dict.fromkeys(names or (), pa.string())
        empty = {"null_values": [""], "strings_can_be_null": True}
        empty["quoted_strings_can_be_null"] = False
        convert = ConvertOptions(include_columns=names, column_types=texts, **empty)
        parse = ParseOptions(delimiter=self._delimiter, newlines_in_values=True)
        read = ReadOptions(block_size=CSV_BLOCK_BYTES, use_threads=False)
        with _text(path) as stream:
            yield open_csv(stream, read, parse, convert)

    def scan(self, part: int, names: Sequence[str]) -> Iterator[Any]:
        with self._opened(self.path, [*names]) as reader:
            yield from reader


class JsonTable(Table):
    """The columns of a JSON file, which holds an object on each line, or an array of objects. A
    column with values of different types is text."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        kinds: dict[str, dict[Any, None]] = {}
        for some in self._items(path):
            for name in dict.fromkeys(chain.from_iterable(some)):
                own = _kind([each.get(name) for each in some])
                kinds.setdefault(name, {})[own] = None
            if len(kinds) > MOST_COLUMNS:
                break
        schema = pa.schema([(name, unified([*own])) for name, own in kinds.items()])
        super().__init__(path, schema, stamp_of(path)[0], np.zeros(1, np.int64))

    @staticmethod
    def _items(path: Path) -> Iterator[list[dict[str, Any]]]:
        """Yields some objects at a time."""
        with _text(path) as stream:
            lines = (line for line in stream if line.strip())
            first = next(lines, b"").removeprefix(b"\xef\xbb\xbf").lstrip()
            items: Iterator[Any] = chain((first,) if first else (), lines)
            if first.startswith(b"["):
                whole = first + stream.read()
                items = iter(msgspec.json.decode(whole, type=list[msgspec.Raw]))
            while some := [*islice(items, BATCH_ROWS)]:
                yield [msgspec.json.decode(each, type=dict[str, Any]) for each in some]

    def scan(self, part: int, names: Sequence[str]) -> Iterator[Any]:
        import pyarrow as pa

        for some in self._items(self.path):
            columns = {}
            for name in names:
                values, kind = [each.get(name) for each in some], self.schema.field(name).type
                texts = [*map(json_text, values)] if kind == pa.string() else values
                columns[name] = pa.array(texts, kind)
            yield pa.RecordBatch.from_pydict(columns)


def _kind(values: list[Any]) -> Any:
    """The type of JSON values; text if they have different types, or one that does not travel."""
    import pyarrow as pa

    try:
        kind = pa.array(values).type
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.string()
    return kind if _travels(kind) else pa.string()


class ListedColumns(RowColumns):
    """What a table says of the pictures that it names. A list of members holds for each picture its
    row in the table. If this row names another picture now, nothing is said of the picture."""

    def __init__(self, table: Table, members: MemberIndex) -> None:
        self.schema, self.left_out = table.schema, table.left_out
        self._table, self._members = table, members
        self._paths = path_column(table)

    def take(self, rows: np.ndarray, names: Sequence[str]) -> Any:
        import pyarrow as pa

        at = self._members.offsets[rows].clip(0)
        order = np.argsort(at, kind="stable")
        found = self._table.take(at[order], [*dict.fromkeys([*names, self._paths])])
        named = zip(found[self._paths].to_pylist(), rows[order].tolist(), strict=False)
        same = np.array([(name or "") == self._members.name(row) for name, row in named], bool)
        places = np.full(len(rows), -1)
        places[order[: len(same)][same]] = np.flatnonzero(same)
        self.unsaid = int((self._members.live[rows] & (places < 0)).sum())
        return found.select([*names]).take(pa.array(places, mask=places < 0))


READERS: dict[str, Callable[[Path], Table]] = {
    ".parquet": ParquetTable,
    **dict.fromkeys((".csv", ".tsv"), CsvTable),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), JsonTable),
}


def reader_of(path: Path) -> Callable[[Path], Table] | None:
    """What opens a table, by the file's name; None if this is no table."""
    return READERS.get(split_part(path)[0].suffix.lower())


def names_pictures(path: Path) -> bool:
    """Whether a Parquet file here has a column of pictures' names, and none of pictures."""
    from pyarrow import parquet

    file, part = split_part(path)
    try:
        schema = () if url_of(file) else parquet.read_schema(file)
    except (OSError, ValueError):
        return False
    return bool(_named_paths(schema, part) and (part or not any(map(bytes_of, schema))))


def path_column(table: Table) -> str:
    """The column of a table that names pictures, by path or URL: `FILE::COLUMN`, or the only one
    that is called as such columns are.

    Raises:
        DataFault: there is none, or there are several.
    """
    path, part, schema = table.path, split_part(table.path)[1], table.schema
    listed = some_of([f"{field.name} ({field.type!s:.40})" for field in schema], 12)
    found = _named_paths(schema, part)
    if len(found) == 1:
        return found[0]
    if found:
        what = f"the names of pictures may be in {' or '.join(found)}"
        raise DataFault(f"{path}: {what}: say which, such as {path}{PART_MARK}{found[0]}")
    what = f"{part!r} is no column of texts" if part else "no column names pictures"
    raise DataFault(
        f"{path}: {what}; needed: a column of paths or URLs, called path, file_name or url, or "
        f"named by FILE{PART_MARK}COLUMN. It holds {listed or 'nothing'}"
    )


def _named_paths(schema: Any, part: str) -> list[str]:
    texts = [field.name for field in schema if _is_text(field.type)]
    return [name for name in texts if (name == part if part else name.lower() in PATHS)]


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind))


def bytes_of(field: Any) -> str:
    """The path of the bytes in a column of pictures; "" if it cannot be such a column."""
    import pyarrow.types as types

    if types.is_binary(field.type) or types.is_large_binary(field.type):
        return str(field.name)
    inside = types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    held = inside and bytes_of(field.type.field("bytes"))
    return f"{field.name}.bytes" if held else ""


def starts_of(meta: Any) -> np.ndarray:
    """(row groups + 1,) the first row of each row group, and the number of rows."""
    rows = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
    return np.cumsum([0, *rows])


def opened_parquet(path: Path, **how: Any) -> Any:
    """A pyarrow.ParquetFile. Raises OSError, DataFault."""
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
def still(path: Path) -> Iterator[None]:
    """Raises errors of pyarrow as EnvironmentFault."""
    with reading(path, also=(ValueError, NotImplementedError, MemoryError)), network_faults(path):
        yield


@contextmanager
def _text(path: Path) -> Iterator[BinaryIO]:
    """Yields the stream of a text file; of a URL all bytes, which may be as many as a list may
    have. Raises errors of the content as DataFault."""
    file = split_part(path)[0]
    with reading(path), network_faults(path), opened(file, in_order=True) as stream:
        if url_of(file) is not None:
            most = list_bytes(stat_of(file)[0])
            stream = io.BytesIO(stream.read(most + 1))
            if stream.getbuffer().nbytes > most:
                raise DataFault(f"{path}: is longer than {most:,} bytes. Split the list.")
        try:
            yield stream
        except (ValueError, msgspec.MsgspecError, RecursionError) as error:
            raise DataFault(
                f"{path}: cannot be read as a table ({one_line(error, 200)}); needed: UTF-8; in "
                "CSV names in the first line and as many fields in each line; in JSON an object on "
                "each line, or an array of objects"
            ) from error


class ParquetSource(PictureSource):
    """One Parquet file; `FILE::COLUMN` names the column."""

    name, remote = "parquet", True
    suffixes = (".parquet",)

    def __init__(self, info: ShardInfo) -> None:
        super().__init__(info)
        with still(info.path):
            self._file = opened_parquet(info.path)
        self._column, self._bytes = image_column(self._file.schema_arrow, info.path)
        self._file.close()
        with still(info.path):  # a value that repeats is then held once
            self._file = opened_parquet(info.path, read_dictionary=[self._bytes])
        self._starts = starts_of(self._file.metadata)
        if self._starts[-1] != info.count:
            raise DataFault(f"{info.path}: has changed since it was checked. Start again.")
        self._groups: dict[int, Any] = {}  # least recently read first
        if info.has_labels:
            self.labels = _labels(self._file, info.path, ReadAs(class_names=info.class_names))[0]

    @classmethod
    def describe(cls, path: Path, read_as: ReadAs) -> ShardInfo:
        with still(path), opened_parquet(path) as file:
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
        with still(info.path), opened_parquet(info.path) as file:
            column, values = image_column(file.schema_arrow, info.path)
            if column == values or "path" not in _field_names(file.schema_arrow.field(column)):
                return None
            found = file.read(columns=[f"{column}.path"]).column(0).combine_chunks().field("path")
        name = split_part(info.path)[0].name
        return [name_text(p or f"{name}:{row}") for row, p in enumerate(found.to_pylist())]

    @classmethod
    def columns(cls, info: ShardInfo) -> RowColumns | None:
        return ParquetTable(info.path)

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
            with still(self.path):
                column = self._file.read_row_group(number, columns=[self._bytes]).column(0)
            values = column.combine_chunks()
            nested = self._bytes != self._column
            self._groups[number] = values.field("bytes") if nested else values
            while len(self._groups) > GROUPS_KEPT:
                del self._groups[next(iter(self._groups))]
        return self._groups[number]

    def close(self) -> None:
        self._file.close()


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
    held = {field.name: bytes_of(field) for field in schema}
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


def _field_names(column: Any) -> list[str]:
    return [column.type.field(i).name for i in range(column.type.num_fields)]


def _labels(
    file: Any, path: Path, read_as: ReadAs
) -> tuple[np.ndarray | None, tuple[str, ...] | None]:
    """(n,) int64 class numbers, and the names of the classes; each None if there are none.

    Raises:
        DataFault: labels are missing or not among the classes.
    """
    from pyarrow import types

    schema = file.schema_arrow
    fields = [field for field in schema if field.name.lower() in LABELS]
    usable = (types.is_integer, types.is_string, types.is_large_string)
    fields = [field for field in fields if any(of(field.type) for of in usable)]
    if not fields:
        return None, None
    name = fields[0].name
    column = file.read(columns=[name]).column(0)
    advice = f"column {name!r}; --input-labels none takes no labels"
    if column.null_count:
        raise DataFault(f"{path}: {column.null_count:,} rows have no label in {advice}")
    values, names = column.to_numpy(), _class_names(schema, name)
    if names and read_as.class_names not in (None, names) and values.dtype != object:
        wrong = label_problem(values, names)
        if wrong:
            raise DataFault(f"{path}: {wrong}, in {advice}")
        values = np.array(names, dtype=object)[values]
    try:
        return class_numbers(values, read_as.class_names or names)
    except DataFault as fault:
        raise DataFault(f"{path}: {fault}, in {advice}") from fault


def _class_names(schema: Any, column: str) -> tuple[str, ...] | None:
    """The class names of a column of Hugging Face's type `ClassLabel`; None if it is none."""
    try:
        about = json.loads((schema.metadata or {})[b"huggingface"])
        names = tuple(map(str, about["info"]["features"][column]["names"]))
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return names if names and all(names) and len(set(names)) == len(names) else None

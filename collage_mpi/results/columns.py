"""Rows and kept values as columns of Parquet files, and back.

A file of images has a column for each one of `IMAGES`, the fingerprint of the image's shard, and
the values that the run keeps. Codes are texts. What an image does not have is null. Names of kept
values that rows have too get the prefix KEPT. `pyarrow.array` and `to_numpy` are not used for
numbers, because they import pandas if that is installed, which takes a second of processor time.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from collage_mpi.encoding.vectors import is_text, objects, unpack, varied_in
from collage_mpi.errors import DataFault
from collage_mpi.rows import IMAGES, NAMES, OTHERS, TableLayout
from collage_mpi.system.files import reading, require_regular

ADVICE = (
    "Restore it from a copy, or type collage-mpi verify --repair: its images are then done again."
)
MENDS = "collage-mpi verify --repair mends it, or lets its images be done again"
FINGERPRINT = "fingerprint"
KEPT = "kept_"
_SEAL = struct.Struct("<8sII")
_MARK = b"CMPIseal"
_BLOCK_BYTES = 1 << 20
_LARGEST_BYTES = 1 << 36  # of the rows of a lease: 2**18, with up to 256 KiB of values each
ABOUT = b"collage_mpi"  # key of the metadata of a file
_KEPT = b"kept"  # key of the metadata of a kept column: its own name
_TAKEN = {FINGERPRINT, *(IMAGES.dtype.names or ())}
# Column of images -> the column of which this bit is set if this column has a value.
PRESENT_WITH = {
    **dict.fromkeys(("predicted", "score", "rank"), ("answered", 1)),
    "label": ("has_label", 1),
    **dict.fromkeys(OTHERS[0], ("audited", 1)),
    **{name: ("stages", 1 << at) for at, pair in enumerate(OTHERS) if at for name in pair},
}


@dataclass
class Form:
    """What the files of a job have in common.

    Attributes:
        fingerprints: of the shards.
        about: said in the metadata of each file, as JSON: networks, runtimes, digests.
        layout: structured dtype of an image's kept values; None if none are kept, or until the
            ranks have told it.
    """

    fingerprints: Sequence[str] = ()
    about: Mapping[str, Any] = field(default_factory=dict)
    layout: np.dtype | None = None


def as_table(
    rows: np.ndarray, table: TableLayout, form: Form, vectors: Sequence[np.ndarray] = ()
) -> Any:
    """Rows as a pyarrow.Table.

    Args:
        rows: (n,) of the table's dtype.
        form: of the file.
        vectors: (floats,) float32 for each answered image: its kept values.
    """
    import pyarrow as pa

    columns, fields = list[Any](), list[Any]()

    def add(name: str, column: Any, about: Any = None) -> None:
        columns.append(column)
        fields.append(pa.field(name, column.type, metadata=about))

    if table is IMAGES:
        add(FINGERPRINT, _chosen(form.fingerprints, rows["shard"]))
    for name in rows.dtype.names or ():
        values, (of, bit) = rows[name], PRESENT_WITH.get(name, ("", 0))
        if name in NAMES:
            add(name, _chosen(NAMES[name], values))
        elif values.dtype.kind == "S":
            add(name, _texts(values.tolist()))
        else:
            add(name, numbers(values, rows[of] & bit != 0 if table is IMAGES and of else None))
    if form.layout is not None and table is IMAGES:
        for name, column in _kept(form.layout, vectors, rows["answered"]):
            stored = name
            while stored in _TAKEN or (stored != name and stored in (form.layout.names or ())):
                stored = f"{KEPT}{stored}"
            add(stored, column, {_KEPT: name})
    about = {ABOUT: json.dumps(dict(form.about))}
    return pa.Table.from_arrays(columns, schema=pa.schema(fields, about))


def _kept(
    layout: np.dtype, vectors: Sequence[np.ndarray], answered: np.ndarray
) -> Iterator[tuple[str, Any]]:
    """Yields the names and pyarrow.Arrays of kept columns; null for images without an answer."""
    import pyarrow as pa

    places, varied = _places(answered), varied_in(layout)
    for name, values in unpack(layout, vectors).items():
        if is_text(layout, name):
            column = pa.array(values, pa.string())
        elif name in varied:
            column = _as_lists(values, varied[name])
        else:
            column = _nested(values, values.shape[1:])
        yield name, column if answered.all() else column.take(places)


def _places(there: np.ndarray) -> Any:
    """For each image its number among those that are there, as a pyarrow.Array; null for others."""
    return numbers(np.cumsum(there, dtype=np.int64) - 1, there)


def as_column(values: np.ndarray, there: np.ndarray, kind: Any) -> Any:
    """Kept values, as `array_of` gives them, as a pyarrow.Array of this type; null where `there`,
    (n,), is false."""
    import pyarrow as pa

    own = values[there]
    if pa.types.is_string(kind):
        found = pa.array(own.tolist(), kind)
    elif pa.types.is_large_list(kind):
        shape, inner = [0], kind.value_type
        while pa.types.is_fixed_size_list(inner):
            shape.append(inner.list_size)
            inner = inner.value_type
        found = _as_lists(own, np.dtype((inner.to_pandas_dtype(), tuple(shape))))
    else:
        found = _nested(own, values.shape[1:])
    return found.take(_places(there))


def numbers(values: np.ndarray, there: np.ndarray | None = None) -> Any:
    """The flattened values as a pyarrow.Array; null where `there` is false."""
    import pyarrow as pa

    flat = np.ascontiguousarray(values).reshape(-1)
    data = np.packbits(flat, bitorder="little") if flat.dtype == bool else flat
    valid = None if there is None else pa.py_buffer(np.packbits(there, bitorder="little"))
    kind = pa.from_numpy_dtype(flat.dtype)
    return pa.Array.from_buffers(kind, flat.size, [valid, pa.py_buffer(data)])


def _texts(values: Sequence[bytes]) -> Any:
    """UTF-8 as a pyarrow.Array of texts; bytes that are none become question marks."""
    import pyarrow as pa

    known = [value.decode("utf-8", "replace").encode() if value else value for value in values]
    ends = np.cumsum([0, *map(len, known)], dtype=np.int32)
    return pa.StringArray.from_buffers(
        len(known), pa.py_buffer(ends), pa.py_buffer(b"".join(known))
    )


def _chosen(texts: Sequence[str], codes: np.ndarray) -> Any:
    """The texts that codes stand for, "" for unknown ones, as a pyarrow.DictionaryArray."""
    import pyarrow as pa

    used, places = np.unique(codes, return_inverse=True)
    known = _texts([texts[code].encode() if code < len(texts) else b"" for code in used.tolist()])
    return pa.DictionaryArray.from_arrays(numbers(places.astype(np.int32)), known)


def _nested(values: np.ndarray, shape: Sequence[int]) -> Any:
    """(n, *shape) as a pyarrow.Array of numbers, or of lists of fixed size in one another, which
    all readers of Parquet know, as they do not know tensors."""
    import pyarrow as pa

    found = numbers(values)
    for size in reversed(shape):
        found = pa.FixedSizeListArray.from_arrays(found, size)
    return found


def _as_lists(values: np.ndarray, like: np.dtype) -> Any:
    """(n,) arrays of varying length as an Arrow array of large lists. `like`: see `varied_in`."""
    import pyarrow as pa

    flat = np.concatenate([np.empty(like.shape, like.base), *values])
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
    return pa.LargeListArray.from_arrays(numbers(offsets), _nested(flat, like.shape[1:]))


def parquet_bytes(table: Any) -> Sequence[bytes | memoryview]:
    """A pyarrow.Table as the content of a Parquet file with one row group, in pieces."""
    return [*written(table.schema, [table])]


def written(schema: Any, groups: Iterable[Any]) -> Iterator[bytes | memoryview]:
    """The content of a Parquet file, in pieces: pages, a seal, the footer. The seal is in a place
    that no reader of Parquet looks at: a magic number, and the CRC-32 of what is before and behind
    it. So any change of the file is found.

    Args:
        schema: of the file.
        groups: row groups, a pyarrow.Table each.
    """
    import pyarrow.parquet as pq

    # Dictionary encoding wastes space on floats, which are nearly all different. It saves space
    # on texts of codes, and on 8-bit integers, which Parquet otherwise stores in 32 bits.
    found = [each.name for each in schema if _has_few_values(each.type)]
    few = [f"{name}{'.list.element' * depth}" for name in found for depth in range(4)]
    sink, crc = _Sink(), 0
    writer = pq.ParquetWriter(sink, schema, use_dictionary=few, write_page_checksum=True)
    for table in groups:
        writer.write_table(table.unify_dictionaries(), row_group_size=max(1, len(table)))
        pages = sink.take()
        crc = zlib.crc32(pages, crc)
        yield pages
    writer.close()
    raw = sink.take()
    pages, footer = raw[: -_footer_bytes(raw)], raw[-_footer_bytes(raw) :]
    yield pages
    yield _SEAL.pack(_MARK, zlib.crc32(pages, crc), zlib.crc32(footer))
    yield footer


class _Sink(io.RawIOBase):
    """A file that is only written, and whose content is taken away meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[bytes] = []
        self._at = 0

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        self._at += len(self._pieces[-1])
        return len(self._pieces[-1])

    def tell(self) -> int:
        return self._at

    def writable(self) -> bool:
        return True

    def take(self) -> bytes:
        """What was written since it was taken last."""
        found = b"".join(self._pieces)
        self._pieces.clear()
        return found


def _footer_bytes(raw: bytes | memoryview) -> int:
    """The size of the footer of a Parquet file, with its length and the magic number behind it."""
    return 8 + int.from_bytes(raw[-8:-4], "little")


def _check_seal(path: Path, stream: BinaryIO, size: int, whole: bool) -> None:
    """Raise DataFault if a file of so many bytes was changed. Reads a block at a time."""
    stream.seek(max(0, size - 8))
    footer = _footer_bytes(stream.read())
    at = size - footer - _SEAL.size
    if size < 8 or at < 0:
        raise DataFault(f"{path}: truncated or not a part of a run. {ADVICE}")

    def crc(n: int) -> int:
        found = 0
        while n > 0 and (block := stream.read(min(n, _BLOCK_BYTES))):
            found, n = zlib.crc32(block, found), n - len(block)
        return found

    stream.seek(0 if whole else at)
    pages = crc(at) if whole else None
    mark, *recorded = _SEAL.unpack(stream.read(_SEAL.size))
    found = [recorded[0] if pages is None else pages, crc(footer)]
    if mark != _MARK or found != recorded:
        raise DataFault(f"{path}: damaged (CRC-32 {found} found, {recorded} recorded). {ADVICE}")


def _has_few_values(kind: Any) -> bool:
    """Whether a column of this type, which may be nested, has texts of codes or small integers."""
    import pyarrow as pa

    while not pa.types.is_dictionary(kind) and hasattr(kind, "value_type"):
        kind = kind.value_type
    return pa.types.is_dictionary(kind) or kind in (pa.int8(), pa.uint8())


@contextmanager
def _opened(path: Path, *, whole: bool = True) -> Iterator[Any]:
    """Yields the pyarrow.parquet.ParquetFile. Raises as `read_table`.

    Args:
        whole: the whole file is checked first, else its footer, and each page that is read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with reading(path):
        if not path.exists():
            raise DataFault(f"{path}: missing, though the ledger names it. {ADVICE}")
        require_regular(path)
        if (size := path.stat().st_size) > _LARGEST_BYTES:
            raise DataFault(f"{path}: far too large for rows of a run. {ADVICE}")
        with path.open("rb") as stream:
            _check_seal(path, stream, size, whole)
            try:
                with pq.ParquetFile(stream, page_checksum_verification=not whole) as file:
                    yield file
            except (pa.ArrowException, ValueError, LookupError, AttributeError, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                why = " ".join(str(error).split())
                what = "undamaged, but no part of a run" if whole else "damaged"
                raise DataFault(f"{path}: {what}: {why}. {ADVICE}") from error


def positions_in(path: Path) -> Iterator[np.ndarray]:
    """Yields the positions of the rows in a file, (n,) uint64 of a row group each. Raises as
    `read_table`."""
    name = "position"
    with _opened(path) as file:
        if not _fits(file.schema_arrow, name, IMAGES.dtype[name]):
            raise DataFault(f"{path}: undamaged, but it has no positions. {ADVICE}")
        for number in range(file.num_row_groups):
            yield flat_of_column(file.read_row_group(number, [name], use_threads=False)[name])


def read_end(path: Path) -> tuple[Any, int]:
    """The pyarrow.Schema of a file, and its number of row groups. Only the end of the file is read.
    Raises as `read_table`."""
    with _opened(path, whole=False) as file:
        return file.schema_arrow, file.num_row_groups


def tables_in(path: Path) -> Iterator[Any]:
    """Yields a file as pyarrow.Tables, a row group at a time. Its checksum is verified before.
    Raises as `read_table`."""
    with _opened(path) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number, use_threads=False)


def read_table(path: Path, columns: Sequence[str] | None = None, group: int | None = None) -> Any:
    """Read a file as a pyarrow.Table, or some of its columns. Checksums are verified.

    Args:
        group: number of the only row group to read.

    Raises:
        EnvironmentFault: the file cannot be read.
        DataFault: the file is damaged or missing, or lacks one of the columns.
    """
    with _opened(path, whole=group is None) as file:
        groups = range(file.num_row_groups) if group is None else [group]
        table = file.read_row_groups([*groups], columns, use_threads=False)
        table.validate(full=True)  # checks that texts are UTF-8
    if lacking := sorted({*(columns or ())} - {*table.column_names}):
        raise DataFault(f"{path}: undamaged, but it has no column {lacking[0]}. {ADVICE}")
    return table


def rows_of(path: Path, table: TableLayout, group: int | None = None) -> np.ndarray:
    """The rows in a file, or in one row group: (n,) of the table's dtype. What is null is 0.

    Raises:
        EnvironmentFault, DataFault: as `read_table`; the columns are those of another version, or
            have unknown codes.
    """
    schema, _ = read_end(path)
    found = read_table(path, [each.name for each in schema if not is_kept(each)], group)
    names = [name for name in found.column_names if name != FINGERPRINT]
    whole = np.zeros(len(found), table.dtype)
    wanted = {name: table.dtype[name] for name in table.dtype.names or ()}
    wrong = [name for name in names if name not in wanted]
    if table is IMAGES and not _is_of_texts(found.schema, FINGERPRINT):
        wrong.append(FINGERPRINT)
    for name, dtype in wanted.items():
        if name not in names or not _fits(found.schema, name, dtype):
            wrong.append(name)
            continue
        at = 0
        for chunk in found[name].chunks:
            whole[name][at : at + len(chunk)] = _column_of(path, name, chunk)
            at += len(chunk)
    if wrong:
        raise DataFault(
            f"{path}: undamaged, but its columns are not those of this version of collage-mpi: "
            f"{', '.join(wrong)} (needed: {', '.join(wanted)}). Read it with the version that "
            "wrote it, or a later one."
        )
    return whole


def _is_of_texts(schema: Any, name: str) -> bool:
    """Whether a file has a column of texts by codes."""
    import pyarrow as pa

    kind = schema.field(name).type if name in schema.names else pa.null()
    return bool(pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type))


def _fits(schema: Any, name: str, dtype: np.dtype) -> bool:
    import pyarrow as pa

    if name in NAMES:
        return _is_of_texts(schema, name)
    kind = pa.string() if dtype.kind == "S" else pa.from_numpy_dtype(dtype)
    return bool(schema.field(name).type == kind)


def _column_of(path: Path, name: str, chunk: Any) -> Any:
    """The values of a pyarrow.Array of rows; codes for texts that stand for them."""
    if name not in NAMES:
        return flat_of(chunk)
    texts, known = chunk.dictionary.to_pylist(), NAMES[name]
    if unknown := [text for text in texts if text not in known]:
        raise DataFault(
            f"{path}: {name} {unknown[0]!r} is unknown; this version knows {', '.join(known)}."
        )
    return np.array([*map(known.index, texts)], np.uint8)[flat_of(chunk.indices)]


def flat_of(chunk: Any) -> Any:
    """(n,) values of a pyarrow.Array of numbers or texts; 0 for null."""
    import pyarrow as pa

    if pa.types.is_string(chunk.type):
        return [(text or "").encode() for text in chunk.to_pylist()]
    valid, data = chunk.buffers()
    end = chunk.offset + len(chunk)

    def bits(buffer: Any) -> np.ndarray:
        return np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little", count=end)

    if not len(chunk):
        return np.empty(0, chunk.type.to_pandas_dtype())
    if pa.types.is_boolean(chunk.type):
        flat = bits(data).astype(bool)
    else:
        flat = np.frombuffer(data, chunk.type.to_pandas_dtype(), end)
    if chunk.null_count:
        flat = np.where(bits(valid), flat, flat.dtype.type(0))
    return flat[chunk.offset :]


def flat_of_column(column: Any) -> np.ndarray:
    """(n,) values of a pyarrow.ChunkedArray of numbers."""
    found: np.ndarray = np.concatenate([flat_of(chunk) for chunk in column.chunks] or [np.empty(0)])
    return found


def is_kept(column: Any) -> bool:
    """Whether a pyarrow.Field is of kept values."""
    return _KEPT in (column.metadata or {})


def kept_name(column: Any) -> str:
    """The own name of a kept column, a pyarrow.Field."""
    return str(column.metadata[_KEPT].decode())


def can_be_kept(column: Any, lists: bool) -> bool:
    """Whether a pyarrow.Field has a type that `array_of` supports.

    Args:
        lists: it must be a list of numbers.
    """
    from pyarrow import types

    kind = column.type
    if lists and (not types.is_fixed_size_list(kind) or types.is_nested(kind.value_type)):
        return False
    inner = kind.value_type if types.is_large_list(kind) else kind
    while types.is_fixed_size_list(inner):
        inner = inner.value_type
    number = types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner)
    return bool(number or types.is_string(kind))


def array_of(column: Any) -> np.ndarray:
    """A pyarrow.ChunkedArray as numpy array: (n, ...) for numbers, and for lists of fixed size;
    (n,) objects for texts and large lists.

    Raises:
        DataFault: values are null.
    """
    import pyarrow as pa

    chunks = column.chunks or [column.combine_chunks()]
    if any(map(_nulls_in, chunks)):
        raise DataFault("nulls among the vectors of a file")
    if pa.types.is_string(column.type) or pa.types.is_large_list(column.type):
        return objects([value for chunk in chunks for value in _values_of(chunk)])
    found: np.ndarray = np.concatenate([*map(_unnested, chunks)])
    return found


def _unnested(array: Any) -> np.ndarray:
    """(n, ...) values of a pyarrow.Array of numbers or of lists of fixed size."""
    import pyarrow as pa

    shape = []
    while pa.types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
    found: np.ndarray = flat_of(array).reshape(-1, *shape)
    return found


def _nulls_in(array: Any) -> int:
    """The number of null values in a pyarrow.Array and in its nested arrays."""
    import pyarrow as pa

    inner = _nulls_in(array.flatten()) if pa.types.is_nested(array.type) else 0
    return int(array.null_count) + inner


def _values_of(chunk: Any) -> list[Any]:
    """The values of a pyarrow.Array of texts or of large lists."""
    import pyarrow as pa

    if pa.types.is_string(chunk.type):
        return list(chunk.to_pylist())
    values, ends = _unnested(chunk.values), flat_of(chunk.offsets)
    return [values[start:end] for start, end in pairwise(ends)]

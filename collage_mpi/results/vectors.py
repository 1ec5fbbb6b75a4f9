"""Stores the vectors of images (top-k classes, scores, embeddings, outputs of functions), in a
Parquet file for each part of images.

`vectors/vectors-SSSS-NNNNNN.parquet` belongs to `parts/images-SSSS-NNNNNN.npy`. It holds the
vectors of the part's answered images in their order, and is written before the part. So every row
that counts has its vector, even after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from collage_mpi.encoding.vectors import (
    KEYS,
    NO_SAVE,
    OUTPUTS,
    Extras,
    is_text,
    objects,
    unpack,
    varied_in,
)
from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.plugins import optional
from collage_mpi.results import VECTORS_FOLDER
from collage_mpi.results.parts import ADVICE, PartName, read_part, rows_at
from collage_mpi.rows import IMAGES, flat_keys
from collage_mpi.system.files import write_atomic

OURS = r"vectors-(\d{4,5})-(\d{6,18})\.parquet"  # session, number


class Write(NamedTuple):
    """Vectors to write: their size, and a function that writes them, given the part's number."""

    nbytes: int
    write: Callable[[int], None]


def require_pyarrow(what: str, other: str = "") -> None:
    """Raise EnvironmentFault if pyarrow is not installed.

    Args:
        what: names the use of pyarrow in the message.
        other: what the user can do without pyarrow.
    """
    optional("pyarrow.parquet", "parquet", what, other)


def extras_of(manifest: Mapping[str, Any]) -> Extras:
    """The vectors that a run keeps, by its manifest."""
    return Extras(**(manifest.get("extras") or {"top_k": None, "save": NO_SAVE}))


def vectors_name(session: int, number: int) -> str:
    """The name of the file that belongs to part `number` of a session's images."""
    return f"vectors-{session:04d}-{number:06d}.parquet"


def vectors_path(out: Path, session: int, number: int) -> Path:
    """The path of this file in a run's folder."""
    return out / VECTORS_FOLDER / vectors_name(session, number)


class VectorBuffer:
    """Collects the vectors of the images that are not in a part yet.

    Attributes:
        layout: structured dtype of a vector; None until the ranks have told it.
        nbytes: size of the vectors collected so far.
    """

    def __init__(
        self,
        folder: Path,
        session: int,
        manifest: Mapping[str, Any],
    ) -> None:
        """`folder`: of the files; `session`: its number is in their names."""
        self._folder, self._session = folder, session
        self.layout: np.dtype | None = None
        self.nbytes = 0
        self._fingerprints = [shard["fingerprint"] for shard in manifest["shards"]]
        self._keys: list[tuple[int, int]] = []
        self._vectors: list[np.ndarray] = []

    def extend(self, rows: np.ndarray, vectors: Sequence[np.ndarray]) -> None:
        """Add the vectors, (floats,) float32 each, of the next answered images, (n,) of
        IMAGE_ROW."""
        self._keys += zip(rows["shard"].tolist(), rows["row"].tolist(), strict=True)
        self._vectors.extend(vectors)
        self.nbytes += sum(vector.nbytes for vector in vectors)

    def take(self) -> Write:
        """Remove and return the vectors collected so far. They may be written in another thread."""
        keys, vectors, nbytes = self._keys, self._vectors, self.nbytes
        self._keys, self._vectors, self.nbytes = [], [], 0

        def write(number: int) -> None:
            path = self._folder / vectors_name(self._session, number)
            write_atomic(path, (self._parquet(keys, vectors),))

        return Write(nbytes, write)

    def _parquet(self, keys: list[tuple[int, int]], vectors: list[np.ndarray]) -> memoryview:
        import pyarrow as pa
        import pyarrow.parquet as pq

        layout = self.layout
        assert layout is not None
        records, varied = unpack(layout, vectors), varied_in(layout)
        shards = np.array([shard for shard, _ in keys], np.uint32)
        indices = _numbers(shards.astype(np.int32))
        ends = np.cumsum([0, *map(len, self._fingerprints)], dtype=np.int32)
        buffers = pa.py_buffer(ends), pa.py_buffer("".join(self._fingerprints).encode())
        names = pa.StringArray.from_buffers(len(self._fingerprints), *buffers)
        columns = {
            "fingerprint": pa.DictionaryArray.from_arrays(indices, names),
            "shard": _numbers(shards),
            "row": _numbers(np.array([row for _, row in keys], np.uint64)),
            "session": _numbers(np.full(len(keys), self._session, np.uint16)),
        }
        for name, values in records.items():
            if is_text(layout, name):
                columns[name] = pa.array(values, pa.string())
            else:
                like = varied.get(name)
                columns[name] = _as_arrow(values) if like is None else _as_lists(values, like)
        table, sink = pa.table(columns), pa.BufferOutputStream()
        # Dictionary encoding wastes space on floats, which are nearly all different. It saves space
        # on 8-bit integers, which Parquet otherwise stores in 32 bits.
        kinds = {name: varied.get(name, layout[name]) for name in records}
        few = {name: each.ndim for name, each in kinds.items() if each.base.itemsize == 1}
        pages = [f"{name}{'.list.element' * k}" for name, n in few.items() for k in range(n + 1)]
        pages.append("fingerprint")
        pq.write_table(table, sink, use_dictionary=pages, write_page_checksum=True)
        return memoryview(sink.getvalue())


def _numbers(values: np.ndarray) -> Any:
    """The flattened values as a pyarrow.Array. `pyarrow.array` is not used, because it imports
    pandas if that is installed, which takes a second of processor time.
    """
    import pyarrow as pa

    flat = np.ascontiguousarray(values).reshape(-1)
    data = np.packbits(flat, bitorder="little") if flat.dtype == bool else flat
    kind = pa.from_numpy_dtype(flat.dtype)
    return pa.Array.from_buffers(kind, flat.size, [None, pa.py_buffer(data)])


def _as_arrow(values: np.ndarray) -> Any:
    """(n, *shape) as an Arrow array of numbers, lists or fixed-shape tensors; see `array_of`."""
    import pyarrow as pa

    flat = _numbers(values)
    if values.ndim == 1:
        return flat
    if values.ndim == 2:
        offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        return pa.ListArray.from_arrays(_numbers(offsets), flat)
    shape = values.shape[1:]
    rows = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(shape)))
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(flat.type, shape), rows)


def _as_lists(values: np.ndarray, like: np.dtype) -> Any:
    """(n,) arrays of varying length as an Arrow array of large lists. `like`: see `varied_in`."""
    import pyarrow as pa

    flat = np.concatenate([np.empty(like.shape, like.base), *values])
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
    inner = _numbers(flat)
    for size in reversed(like.shape[1:]):
        inner = pa.FixedSizeListArray.from_arrays(inner, size)
    return pa.LargeListArray.from_arrays(_numbers(offsets), inner)


@contextmanager
def reading_parquet(path: Path) -> Iterator[None]:
    """Raises DataFault if the file is damaged, and EnvironmentFault if it cannot be read."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, UnicodeDecodeError) as error:  # UnicodeDecodeError: a column's name
        raise DataFault(f"{path}: damaged: {' '.join(str(error).split())}. {ADVICE}") from error
    except OSError as error:  # pyarrow raises one without errno for a wrong page checksum
        if error.errno is None:
            raise DataFault(f"{path}: damaged: {error}. {ADVICE}") from error
        raise EnvironmentFault(f"{path}: cannot be read: {error.strerror or error}") from error


def read_file(path: Path, extras: Extras) -> Any:
    """Read one file as a pyarrow.Table.

    Raises:
        EnvironmentFault: the file cannot be read, or pyarrow is not installed.
        DataFault: the file is damaged, or its columns are not those of the run.
    """
    require_pyarrow(f"reading {path}")
    import pyarrow.parquet as pq

    if not path.exists():
        raise DataFault(f"{path}: missing, though the ledger names its images. {ADVICE}")
    with reading_parquet(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        table = file.read()
        table.validate(full=True)  # checks that texts are UTF-8
    names, keys = tuple(table.column_names), len(KEYS)
    known = names[keys:] if extras.save == OUTPUTS else extras.names  # outputs have any names
    if names != (*KEYS, *known) or not known:
        raise DataFault(f"{path}: has the columns {', '.join(table.column_names)}. {ADVICE}")
    lists = bool(extras.names)
    odd = [f"{each.name} of {each.type}" for each in table.schema if not _is_ours(each, lists)]
    if odd:
        raise DataFault(f"{path}: has the columns {', '.join(odd)}. {ADVICE}")
    return table


def _is_ours(column: Any, lists: bool) -> bool:
    """Whether a pyarrow.Field has the type of its key column, or a type that `array_of` supports.

    Args:
        lists: columns other than keys must be lists.
    """
    import pyarrow as pa
    from pyarrow import types

    kind = column.type
    if column.name == KEYS[0]:
        return bool(types.is_string(kind.value_type if types.is_dictionary(kind) else kind))
    if column.name in KEYS:
        return bool(types.is_integer(kind))
    if lists and not types.is_list(kind):
        return False
    tensor = isinstance(kind, pa.FixedShapeTensorType)
    inner = kind.value_type if types.is_list(kind) or tensor or types.is_large_list(kind) else kind
    while types.is_large_list(kind) and types.is_fixed_size_list(inner):
        inner = inner.value_type
    number = types.is_integer(inner) or types.is_floating(inner) or types.is_boolean(inner)
    return bool(number or types.is_string(kind))


def array_of(column: Any) -> np.ndarray:
    """A pyarrow.ChunkedArray as numpy array: (n, ...) for numbers, and for lists or tensors of
    equal shape; (n,) objects for texts and large lists.

    Raises:
        DataFault: the lists have different lengths, or values are null.
    """
    import pyarrow as pa

    chunks = [chunk for chunk in column.chunks if len(chunk)]
    shape: tuple[int, ...] = ()
    if isinstance(column.type, pa.FixedShapeTensorType):
        shape, chunks = tuple(column.type.shape), [chunk.storage for chunk in chunks]
    elif pa.types.is_list(column.type):
        lengths = {n for chunk in chunks for n in chunk.value_lengths().unique().to_pylist()}
        if len(lengths) > 1 or 0 in lengths:
            raise DataFault("vectors of different lengths in one file")
        shape = tuple(lengths or (0,))
    if any(map(_nulls_in, chunks)):
        raise DataFault("nulls among the vectors of a file")
    if pa.types.is_string(column.type) or pa.types.is_large_list(column.type):
        return objects([value for chunk in chunks for value in _values_of(chunk)])
    # By chunk, because all numbers together may exceed the 32-bit offsets of lists.
    flat = [chunk.flatten() if shape else chunk for chunk in chunks]
    bits = bool(flat) and pa.types.is_boolean(flat[0].type)
    # `to_numpy` imports pandas, so it is used only for bools.
    numbers = [p.to_numpy(zero_copy_only=False) if bits else np.from_dlpack(p) for p in flat]
    whole: np.ndarray = np.concatenate(numbers) if numbers else np.empty(0)
    return whole.reshape(len(column), *shape)


def _nulls_in(array: Any) -> int:
    """The number of null values in a pyarrow.Array and in its nested arrays."""
    import pyarrow as pa

    inner = _nulls_in(array.values) if pa.types.is_nested(array.type) else 0
    return int(array.null_count) + inner


def _values_of(chunk: Any) -> list[Any]:
    """The values of a pyarrow.Array of texts or of large lists."""
    import pyarrow as pa

    if pa.types.is_string(chunk.type):
        return list(chunk.to_pylist())
    inner, shape = chunk.values, []
    while pa.types.is_fixed_size_list(inner.type):
        shape.append(inner.type.list_size)
        inner = inner.flatten()
    numbers = inner.to_numpy(zero_copy_only=False).reshape(-1, *shape)
    ends = chunk.offsets.to_numpy()
    return [numbers[start:end] for start, end in pairwise(ends)]


def check_file(path: Path, rows: np.ndarray, manifest: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Check the file of vectors of a part of images.

    The file must hold the vectors of exactly the answered images of the part, in their order. The
    best class of a vector must be that of its row.

    Args:
        path: the file.
        rows: (n,) of IMAGE_ROW, the part.

    Returns:
        The number of vectors, and a sentence for each problem.

    Raises:
        EnvironmentFault, DataFault: as `read_file`.
    """
    extras, answered = extras_of(manifest), rows[rows["answered"]]
    table, wrong = read_file(path, extras), []
    if len(table) != len(answered):
        wrong.append(f"{path}: {len(table):,} vectors for {len(answered):,} answered images")
        return len(table), wrong
    for name in ("shard", "row", "session"):
        if not np.array_equal(table[name].to_numpy(), answered[name]):
            wrong.append(f"{path}: vectors of other images than its rows: {name} differs")
    fingerprints = np.array([shard["fingerprint"] for shard in manifest["shards"]])
    if not wrong and table["fingerprint"].to_pylist() != fingerprints[answered["shard"]].tolist():
        wrong.append(f"{path}: vectors of other shards than its rows: fingerprint differs")
    arrays = {name: array_of(table[name]) for name in table.column_names[len(KEYS) :]}
    best = arrays.get("top_classes", arrays.get("scores")) if extras.names else None
    if not wrong and best is not None and len(best):
        first = best[:, 0] if "top_classes" in arrays else best.argmax(axis=1)
        other = int((first != answered["predicted"]).sum())
        if other:
            wrong.append(f"{path}: {other:,} vectors whose best class is not the row's")
    return len(table), wrong


_PLACE = ("shard", "row")  # columns that say which image a vector belongs to


class KeptValues:
    """The values that a run keeps of its answered images, in the order of their rows.

    One file is in memory at a time.

    Raises:
        UsageError: the run keeps no values.
        EnvironmentFault, DataFault: as `read_file`.
    """

    def __init__(self, out: Path, found: Iterable[PartName], manifest: Mapping[str, Any]) -> None:
        """`found`: the parts of the run in `out` that count."""
        self._extras = extras_of(manifest)
        if not self._extras:
            raise UsageError("the run has no vectors: it was made without --top-k and --save")
        require_pyarrow("reading vectors")
        self._parts = [part for part in found if part.table == IMAGES.name]
        self._paths = [vectors_path(out, part.session, part.number) for part in self._parts]
        self._last: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields for each file: column -> (n, ...), also the images' shard, row and session."""
        return map(self.file, range(len(self._paths)))

    def _counted(self, number: int, table: Any) -> Any:
        """Of the vectors of a file, a pyarrow.Table, those of rows that count."""
        part = self._parts[number]
        if part.whole:
            return table
        rows = read_part(part.path, IMAGES)
        rows = rows[rows["answered"]]
        if len(rows) != len(table):
            raise DataFault(f"{self._paths[number]}: vectors of other rows. {ADVICE}")
        return table.take(np.flatnonzero(rows_at(rows, part.spans)))

    def of(self, image: Any) -> dict[str, np.ndarray]:
        """The kept values of an answered image: column -> (...).

        Args:
            image: with its shard and row.
        """
        keys, files, places = self._index
        wanted = flat_keys({name: np.array([image[name]]) for name in ("shard", "row")})
        number = int(np.searchsorted(keys, wanted[0]))
        if number == len(keys) or keys[number] != wanted[0]:
            raise DataFault(
                f"no vector of row {image['row']} of shard {image['shard']}; collage-mpi verify "
                "says more"
            )
        found, at = self.file(int(files[number])), int(places[number])
        return {name: values[at] for name, values in found.items() if name not in KEYS}

    def table(self, only: str = "") -> Any:
        """All values as a pyarrow.Table, in written order; None if the run has no rows.

        Args:
            only: name of the only kept column to read, besides shard and row. A file without the
                column is read whole.
        """
        import pyarrow as pa

        tables = []
        for number, path in enumerate(self._paths):
            table = self._counted(number, read_file(path, self._extras))
            one = only in table.column_names[len(KEYS) :]
            tables.append(table.select([*_PLACE, only]) if one else table)
        try:
            return pa.concat_tables(tables) if tables else None
        except pa.ArrowInvalid as error:  # a file of another run has other columns
            raise DataFault(f"files of vectors have different columns: {error}") from error

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(images,) each, ascending by key: the key (see `flat_keys`), the number of the file, and
        the place in it."""
        import pyarrow.parquet as pq

        keys = []
        for number, path in enumerate(self._paths):
            with reading_parquet(path), pq.ParquetFile(path) as file:
                table = file.read([*_PLACE])
            if table.column_names != [*_PLACE]:
                read_file(path, self._extras)  # raises DataFault
            keys.append(keys_in(self._counted(number, table)))
        whole = np.concatenate([np.empty(0, np.uint64), *keys])
        order = np.argsort(whole, kind="stable")
        files = np.repeat(np.arange(len(keys)), [len(own) for own in keys])
        places = np.concatenate([np.empty(0, np.int64), *(np.arange(len(own)) for own in keys)])
        return whole[order], files[order], places[order]

    def file(self, number: int) -> dict[str, np.ndarray]:
        """The kept values of the `number`-th part of images, as iteration yields them."""
        if self._last[0] != number:
            table = self._counted(number, read_file(self._paths[number], self._extras))
            names = table.column_names[1:]  # without the fingerprint, which is text
            self._last = number, {name: array_of(table[name]) for name in names}
        return self._last[1]


def keys_in(table: Any) -> np.ndarray:
    """(n,) the keys of the images of a pyarrow.Table with shard and row: see `flat_keys`."""
    return flat_keys({name: table[name].to_numpy() for name in _PLACE})


def in_input_order(table: Any) -> Any:
    """A pyarrow.Table with shard and row, in the order of the input; None stays None."""
    keys = None if table is None else keys_in(table)
    if keys is None or (keys[:-1] <= keys[1:]).all():
        return table
    return table.take(np.argsort(keys, kind="stable"))

"""Reads the kept values of a run (scores, embeddings, outputs of functions), and writes them to
Zarr.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.encoding.vectors import KEYS, OFFSETS
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.results.parts import PartName
from collage_mpi.results.vectors import (
    array_of,
    extras_of,
    read_file,
    reading_parquet,
    require_pyarrow,
    vectors_path,
)
from collage_mpi.rows import IMAGES, flat_keys
from collage_mpi.system.extras import optional
from collage_mpi.system.files import temporary_name

CHUNK_BYTES = 1 << 20  # about the size of a Zarr chunk, which holds whole images
_PLACE = ("shard", "row")  # columns that say which image a vector belongs to
IDS_AT_ONCE = 1 << 17  # images; a multiple of the length of a chunk of ids
OF_ROWS = ("shard", "row", "answered")  # columns of image rows that are written too


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
        numbers = [(part.session, part.number) for part in found if part.table == IMAGES.name]
        self._paths = [vectors_path(out, *number) for number in numbers]
        self._last: tuple[int, dict[str, np.ndarray]] = (-1, {})

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields for each file: column -> (n, ...), also the images' shard, row and session."""
        return map(self.file, range(len(self._paths)))

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
        for path in self._paths:
            table = read_file(path, self._extras)
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
        for path in self._paths:
            with reading_parquet(path), pq.ParquetFile(path) as file:
                table = file.read([*_PLACE])
            if table.column_names != [*_PLACE]:
                read_file(path, self._extras)  # raises DataFault
            keys.append(keys_in(table))
        whole = np.concatenate([np.empty(0, np.uint64), *keys])
        order = np.argsort(whole, kind="stable")
        files = np.repeat(np.arange(len(keys)), [len(own) for own in keys])
        places = np.concatenate([np.empty(0, np.int64), *(np.arange(len(own)) for own in keys)])
        return whole[order], files[order], places[order]

    def file(self, number: int) -> dict[str, np.ndarray]:
        """The kept values of the `number`-th part of images, as iteration yields them."""
        if self._last[0] != number:
            table = read_file(self._paths[number], self._extras)
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


def write_zarr(
    path: Path,
    images: np.ndarray,
    ids: Callable[[np.ndarray], np.ma.MaskedArray],
    values: Iterable[dict[str, np.ndarray]],
) -> None:
    """Write a Zarr group with an array for each kept column, (images, ...), in the order of the
    input, and arrays id, shard, row and answered. Images without an answer have the value 0.

    If the values of a column NAME vary in length, the array NAME holds the values of all images one
    after another. Those of image i are NAME[NAME_offsets[i] : NAME_offsets[i + 1]].

    Args:
        images: (n,) with the columns OF_ROWS.
        ids: returns the ids of some of the images: (m,) text, masked if there is none.
        values: a `KeptValues`; iterated twice.

    Raises:
        EnvironmentFault: zarr is not installed.
    """
    zarr = optional("zarr", "zarr", "export to zarr")
    in_order = np.argsort(flat_keys(images))
    images = images[in_order]
    keys, temp = flat_keys(images), temporary_name(path)
    try:
        group = zarr.open_group(str(temp), mode="w")
        for name in OF_ROWS:
            group.create_array(name, data=np.ascontiguousarray(images[name]))
        for start in range(0, len(images), IDS_AT_ONCE):
            part = slice(start, start + IDS_AT_ONCE)
            named = ids(images[part])
            if not np.ma.getmaskarray(named).all():
                _array(group, "id", (len(images),), named)[part] = named.filled("")
        offsets = _offsets(values, keys)
        for name, ends in offsets.items():
            group.create_array(f"{name}{OFFSETS}", data=ends)
        for found in values:
            if not len(found["row"]):
                continue  # all images of the part are error rows, so types and shapes are unknown
            _write_file(group, found, keys, offsets)
        shutil.rmtree(path, ignore_errors=True)
        temp.rename(path)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _write_file(
    group: Any,
    found: dict[str, np.ndarray],
    keys: np.ndarray,
    offsets: Mapping[str, np.ndarray],
) -> None:
    """Write the values of one file to the places of its images."""
    places = np.searchsorted(keys, flat_keys(found))  # among all images
    order = np.argsort(places)
    for name, array in found.items():
        if name in KEYS:
            continue
        at, n, own = places[order], len(keys), array[order]
        if name in offsets:
            ends = offsets[name]
            at = np.concatenate([np.arange(ends[k], ends[k + 1]) for k in at])
            n, own = int(ends[-1]), np.concatenate(list(own))
        into = _array(group, name, (n, *own.shape[1:]), own)
        if len(at):
            into.oindex[at] = own


def _array(group: Any, name: str, shape: tuple[int, ...], like: np.ndarray) -> Any:
    """The Zarr array of a column, which is created at the first call."""
    if name not in group:
        n, *each = shape
        chunk = max(1, CHUNK_BYTES // max(1, like.dtype.itemsize * int(np.prod(each))))
        dtype, fill = (str, "") if like.dtype == object else (like.dtype, 0)
        chunks = (max(1, min(n, chunk)), *each)
        group.create_array(name, shape=shape, chunks=chunks, dtype=dtype, fill_value=fill)
    return group[name]


def _offsets(values: Iterable[dict[str, np.ndarray]], keys: np.ndarray) -> dict[str, np.ndarray]:
    """Name of each column whose values vary in length -> offsets of the images, (images + 1,)
    int64."""
    counts: dict[str, np.ndarray] = {}
    for found in values:
        lists = [name for name, array in found.items() if array.dtype == object and len(array)]
        varied = [name for name in lists if not isinstance(found[name][0], str)]
        if len(found["row"]) and not varied:
            break  # no file has such a column
        for name in varied:
            own = counts.setdefault(name, np.zeros(len(keys) + 1, np.int64))
            own[1 + np.searchsorted(keys, flat_keys(found))] = [len(value) for value in found[name]]
    return {name: np.cumsum(own) for name, own in counts.items()}

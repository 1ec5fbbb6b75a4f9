"""The values that a run keeps of its images (top-k classes, scores, embeddings, outputs of
functions): checked, and read a part at a time. They are in the files of the images' rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np

from collage_mpi.encoding.vectors import KEYS, NO_SAVE, Extras
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.results.columns import (
    ADVICE,
    array_of,
    can_be_kept,
    flat_of_column,
    is_kept,
    kept_name,
    numbers,
    read_end,
    read_table,
    rows_of,
)
from collage_mpi.results.parts import PartName, read_where_it_lies, rows_at
from collage_mpi.rows import IMAGES, flat_keys

_PLACE = ("shard", "row")  # columns that say which image a vector belongs to
_COUNTED = ("position", "answered")


def extras_of(manifest: Mapping[str, Any]) -> Extras:
    """The vectors that a run keeps, by its manifest."""
    return Extras(**(manifest.get("extras") or {"top_k": None, "save": NO_SAVE}))


def check_kept(part: PartName, extras: Extras) -> tuple[int, list[str]]:
    """Check the kept values of a part of images: exactly the answered images have some, and the
    best class is that of the row.

    Args:
        part: the part.
        extras: what the run keeps.

    Returns:
        The number of answered images whose rows count, and a sentence for each problem.

    Raises:
        EnvironmentFault, DataFault: as `KeptValues`.
    """
    wrong, rows = list[str](), rows_of(part.path, IMAGES, part.group)
    table = _kept_in(part, extras)
    arrays = {name: array_of(table[name]) for name in table.column_names[len(KEYS) :]}
    best = arrays.get("top_classes", arrays.get("scores")) if extras.names else None
    rows = rows[rows["answered"] & rows_at(rows, part.spans)]
    if best is not None and len(best):
        first = best[:, 0] if "top_classes" in arrays else best.argmax(axis=1)
        if other := int((first != rows["predicted"]).sum()):
            wrong.append(f"{part.path}: {other:,} vectors whose best class is not the row's")
    return len(rows), wrong


def read_kept(part: PartName, extras: Extras, only: str = "") -> Any:
    """The kept values of the images of a part that are answered and count: a pyarrow.Table of KEYS
    and the kept columns.

    Args:
        extras: what the run keeps.
        only: name of the only kept column to read, besides shard and row; if there is none, all.

    Raises:
        EnvironmentFault: the file cannot be read.
        DataFault: the file is damaged, or its columns are not those of the run.
    """
    import pyarrow as pa

    return pa.concat_tables(read_where_it_lies(part, partial(_kept_in, extras=extras, only=only)))


def _kept_in(part: PartName, extras: Extras, only: str = "") -> Any:
    table = read_table(part.path, group=part.group)
    kept = {kept_name(each): each for each in table.schema if is_kept(each)}
    said = {name: flat_of_column(table[name]) for name in _COUNTED}
    known = (*extras.names, *(tuple(kept)[len(extras.names) :] if extras.more else ()))
    if tuple(kept) != known or (not kept and said["answered"].any()):
        raise DataFault(f"{part.path}: has the columns {', '.join(kept) or 'none'}. {ADVICE}")
    if odd := [each for n, each in kept.items() if not can_be_kept(each, n in extras.names)]:
        types = ", ".join(f"{each.name} of {each.type}" for each in odd)
        raise DataFault(f"{part.path}: has the columns {types}. {ADVICE}")
    names = [*_PLACE, only] if only in kept else [*KEYS, *kept]
    table = table.select([kept[name].name if name in kept else name for name in names])
    keep = said["answered"] & rows_at(said, part.spans)
    return table.rename_columns(names).filter(numbers(keep))


class KeptValues:
    """The values that a run keeps of its answered images, by file, in the order of the input. Rows
    that were read before may lie elsewhere by now, in another order.

    One file is in memory at a time.

    Raises:
        UsageError: the run keeps no values.
        EnvironmentFault, DataFault: as `read_kept`.
    """

    def __init__(self, found: Iterable[PartName], manifest: Mapping[str, Any]) -> None:
        """`found`: the parts of the run that count."""
        self._extras = extras_of(manifest)
        if not self._extras:
            raise UsageError("the run has no vectors: it was made without --top-k and --save")
        self._parts = [part for part in found if part.table == IMAGES.name]
        self._last: tuple[int, dict[str, np.ndarray]] = (-1, {})

    @cached_property
    def empty(self) -> dict[str, tuple[np.ndarray, Any]]:
        """Kept column -> (0, ...) of its dtype, and of objects if values vary in length, and its
        Arrow type; {} if no image is answered."""
        import pyarrow as pa

        for part in self._parts:
            for schema in read_where_it_lies(part, lambda one: read_end(one.path)[0]):
                if kept := [each for each in schema if is_kept(each)]:
                    return {
                        kept_name(each): (array_of(pa.chunked_array([], each.type)), each.type)
                        for each in kept
                    }
        return {}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields for each part: column -> (n, ...), also the images' shard, row and session."""
        return map(self.file, range(len(self._parts)))

    def of(self, image: Any) -> dict[str, np.ndarray]:
        """The kept values of an answered image: column -> (...).

        Args:
            image: with its shard and row.
        """
        keys, files, places = self._index
        wanted = flat_keys({name: np.array([image[name]]) for name in _PLACE})
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
            only: see `read_kept`.
        """
        import pyarrow as pa

        tables = [read_kept(part, self._extras, only) for part in self._parts]
        try:
            return pa.concat_tables(tables) if tables else None
        except pa.ArrowInvalid as error:  # a file of another run has other columns
            raise DataFault(f"files of vectors have different columns: {error}") from error

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(images,) each, ascending by key: the key (see `flat_keys`), the number of the file, and
        the place in it."""
        keys = []
        for part in self._parts:
            keys.append(np.sort(np.concatenate(read_where_it_lies(part, _keys_in))))
        whole = np.concatenate([np.empty(0, np.uint64), *keys])
        order = np.argsort(whole, kind="stable")
        files = np.repeat(np.arange(len(keys)), [len(own) for own in keys])
        places = np.concatenate([np.empty(0, np.int64), *(np.arange(len(own)) for own in keys)])
        return whole[order], files[order], places[order]

    def file(self, number: int) -> dict[str, np.ndarray]:
        """The kept values of the `number`-th part of images, as iteration yields them."""
        if self._last[0] != number:
            table = read_kept(self._parts[number], self._extras)
            names = table.column_names[1:]  # without the fingerprint, which is text
            found = {name: array_of(table[name]) for name in names}
            order = np.argsort(flat_keys(found), kind="stable")
            self._last = number, {name: values[order] for name, values in found.items()}
        return self._last[1]


def _keys_in(part: PartName) -> np.ndarray:
    """(n,) the keys of the images of a part that are answered and count."""
    columns = (*_PLACE, *_COUNTED)
    table = read_table(part.path, columns, part.group)
    said = {name: flat_of_column(table[name]) for name in columns}
    return flat_keys(said)[said["answered"] & rows_at(said, part.spans)]


def keys_in(table: Any) -> np.ndarray:
    """(n,) the keys of the images of a pyarrow.Table with shard and row: see `flat_keys`."""
    return flat_keys({name: flat_of_column(table[name]) for name in _PLACE})


def in_input_order(table: Any) -> Any:
    """A pyarrow.Table with shard and row, in the order of the input; None stays None."""
    keys = None if table is None else keys_in(table)
    if keys is None or (keys[:-1] <= keys[1:]).all():
        return table
    return table.take(np.argsort(keys, kind="stable"))

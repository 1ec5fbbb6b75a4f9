"""Names for the numbers in a run's rows: the image's id, the shard's file and the classes' names.

A run does not store the ids of its images, so they are read from the shards. A shard may have
moved: a file with the recorded fingerprint is the same shard. Further columns of the sources (a
caption, a URL) are read from them too, some rows at a time: a run keeps no copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from collage_mpi.errors import CollageError, EnvironmentFault, UsageError
from collage_mpi.results import INDEX_FOLDER
from collage_mpi.results.manifest import Json
from collage_mpi.results.vectors import extras_of, require_pyarrow
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


_T = TypeVar("_T")
NAME_COLUMNS = ("id", "shard_name", "predicted_name", "label_name")


class ImageRows(Protocol):
    """The part of `Results` that names need: the folder, image rows, (n,) of IMAGE_ROW, and the
    manifest."""

    @property
    def path(self) -> Path: ...
    @property
    def images(self) -> np.ndarray: ...
    @property
    def manifest(self) -> Json: ...


@dataclass(frozen=True)
class ImageNames:
    """Names for the image rows of a run, in the order of the rows. Unknown names are masked.

    Attributes:
        id: (n,) text, the image's id in its shard; `prep images` stores the image's path as id.
        shard_name: (n,) text, the shard's file.
        predicted_name, label_name: (n,) text, names of classes.
        notes: lines that tell the user why ids are missing.
    """

    id: np.ma.MaskedArray
    shard_name: np.ma.MaskedArray
    predicted_name: np.ma.MaskedArray
    label_name: np.ma.MaskedArray
    notes: tuple[str, ...] = ()


class NameBook:
    """Finds the names of a run's images, and what their sources say of them, some at a time.

    Attributes:
        columns: of the sources that were found.
        id_column: the one of them that names an image in the output, if it was chosen.
        notes: lines that tell the user why ids are missing.
    """

    def __init__(
        self,
        path: Path,
        manifest: Json,
        shards: Sequence[Path | str] | None = None,
        numbers: Sequence[int] | None = None,
        id_column: str | None = None,
    ) -> None:
        """Find the shards of a run.

        Args:
            path: the run's folder, which may hold lists of the members of its sources.
            manifest: of the run.
            shards: files and folders that hold the run's shards now; by default the recorded paths.
            numbers: of the shards to look for; by default all.
            id_column: the column of the sources that names an image in the output.

        Raises:
            EnvironmentFault: `shards` names nothing that exists, or a source with `id_column` is
                missing.
            UsageError: `id_column` cannot name the images.
        """
        entries = manifest["shards"]
        known = dict(enumerate(entries))
        if numbers is not None:
            known = {number: known[number] for number in numbers if number in known}
        self._manifest = manifest
        self._shard_names = _shard_names(entries)
        self._classes = manifest.get("class_names") or []
        self._ids, infos, self.notes = _ids(known, shards, path / INDEX_FOLDER)
        self.columns, self.id_column = InputColumns(infos), id_column
        if id_column:
            for number in known.keys() - infos.keys():
                what = f"no columns of {self._shard_names[number]} are known"
                raise EnvironmentFault(f"--id {id_column}: {what}. {' '.join(self.notes)}")
            self.columns.check_id(id_column)

    def ids(self, images: np.ndarray) -> np.ma.MaskedArray:
        """The ids of images, (n,) with shard and row: (n,) text, masked if it is unknown."""
        return _ids_of_rows(images, self._ids)

    def of(self, images: np.ndarray) -> ImageNames:
        """The names of images, (n,) of IMAGE_ROW."""
        return ImageNames(
            self.ids(images),
            picked(self._shard_names, images["shard"], np.ones(len(images), bool)),
            picked(self._classes, images["predicted"], classified(images, self._manifest)),
            picked(self._classes, images["label"], images["has_label"]),
            self.notes,
        )


def image_names(results: ImageRows, shards: Sequence[Path | str] | None = None) -> ImageNames:
    """The names of all images of a run in memory; see `NameBook`.

    Args:
        results: a run, complete or not.
        shards: files and folders that hold the run's shards now; by default the recorded paths.

    Raises:
        EnvironmentFault: `shards` names nothing that exists.
    """
    images = results.images
    numbers = np.unique(images["shard"]).tolist()
    return NameBook(results.path, results.manifest, shards, numbers).of(images)


def picked(
    names: Sequence[str | None], numbers: np.ndarray, there: np.ndarray
) -> np.ma.MaskedArray:
    """(n,) objects: the name of each number; masked if it has no name or `there` is false.

    Args:
        numbers: (n,) int, indices into `names`.
        there: (n,) bool.
    """
    table = np.array([*names, None], dtype=object)
    known = there & (numbers >= 0) & (numbers < len(names))
    found = table[np.where(known, numbers, len(names))]
    return np.ma.array(found, mask=found == None)  # noqa: E711  # elementwise


def classified(images: np.ndarray, manifest: Json) -> np.ndarray:
    """(n,) bool: the images with a class and a score."""
    found: np.ndarray = images["answered"] & extras_of(manifest).classifies
    return found


def _shard_names(entries: Sequence[Json]) -> list[str | None]:
    """The shards' file names; their whole paths if two shards have the same name."""
    paths = [entry.get("path") for entry in entries]
    names = [path and Path(path).name for path in paths]
    return list(names if len(set(names)) == len(names) else paths)


def _ids(
    known: dict[int, Json], shards: Sequence[Path | str] | None, indexes: Path
) -> tuple[dict[int, Sequence[str]], dict[int, ShardInfo], tuple[str, ...]]:
    """Shard number -> ids in the order of the shard's rows; shard number -> description of a source
    that was found; and lines about shards without ids. The run's own list of a source's members is
    used if it is there, also if the source is gone."""
    from collage_mpi.shards.inputs import source_class
    from collage_mpi.shards.members import MemberIndex
    from collage_mpi.shards.reader import content_of

    ids: dict[int, Sequence[str]] = {}
    for number, entry in known.items():
        index = MemberIndex.load(indexes / f"{content_of(entry)}.npz")
        if index is not None and len(index) == entry["count"]:
            ids[number] = index.texts()
    sought = {n: entry for n, entry in known.items() if entry.get("path") and n not in ids}
    found, missing = from_shards(
        sought, shards, lambda _, info: (source_class(info.storage).ids(info), info)
    )
    ids |= {number: own for number, (own, _) in found.items() if own is not None}
    notes = []
    if missing:
        notes.append(
            f"no ids of {len(missing):,} of {len(sought):,} shards, nor what their columns say: "
            f"{missing[0]}. --shards PATH says where they are now"
        )
    without = sum(own is None for own, _ in found.values())
    if without:
        notes.append(f"{without:,} of {len(sought):,} shards hold no ids")
    return ids, {number: info for number, (_, info) in found.items()}, tuple(notes)


def from_shards(
    entries: Mapping[int, Json],
    shards: Sequence[Path | str] | None,
    read: Callable[[int, ShardInfo], _T],
) -> tuple[dict[int, _T], list[str]]:
    """Calls `read(number, info)` for shards of a run.

    Args:
        entries: shard number -> its entry in the manifest, with a path.
        shards: files and folders to look in, as in `image_names`.

    Returns:
        Shard number -> what `read` returned; and a message for each shard that is missing or that
        `read` failed for.
    """
    from collage_mpi.shards.inputs import examine, expand_paths
    from collage_mpi.shards.pictures import parse_fit
    from collage_mpi.shards.schema import ShardInfo
    from collage_mpi.shards.source import ReadAs

    files: Sequence[Path | str] = [*map(_given, entries.values())]
    files = files if shards is None else expand_paths(shards)
    examined = dict(zip(files, examine(files, ReadAs(labels=False, pictures=False)), strict=True))
    infos = {one.fingerprint: one for one in examined.values() if isinstance(one, ShardInfo)}
    why = {str(p): str(one) for p, one in examined.items() if isinstance(one, CollageError)}
    found, missing = {}, []
    for number, entry in entries.items():
        info = infos.get(entry.get("content") or entry["fingerprint"])
        if info is None:
            missing.append(why.get(_given(entry)) or _not_found(entry["path"], shards, why))
            continue
        if entry.get("fit"):
            info = info.fitted(parse_fit(entry["fit"]))
        try:
            found[number] = read(number, info)
        except (CollageError, IndexError) as error:
            missing.append(str(error))
    return found, missing


def _given(entry: Json) -> str:
    """The shard's path as `examine` takes it, so with the name of its source, if there is one."""
    return f"{entry['source']}:{entry['path']}" if entry.get("source") else entry["path"]


def _not_found(path: str, shards: Sequence[Path | str] | None, why: dict[str, str]) -> str:
    if shards is None:
        return f"{path}: is not the file that the run read: its SHA-256 differs"
    unread = f" ({next(iter(why.values()))})" if why else ""
    return f"{path}: no file given has its SHA-256{unread}"


def _ids_of_rows(images: np.ndarray, ids: Mapping[int, Sequence[str]]) -> np.ma.MaskedArray:
    found = np.full(len(images), None, dtype=object)
    for number in np.unique(images["shard"]).tolist():
        own = ids.get(number, ())
        places = np.flatnonzero((images["shard"] == number) & (images["row"] < len(own)))
        found[places] = [own[row] for row in images["row"][places].tolist()]
    return np.ma.array(found, mask=found == None)  # noqa: E711  # elementwise

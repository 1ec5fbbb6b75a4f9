"""Exports a run's rows as CSV, Parquet or HDF5, and its scores, embeddings or outputs as Zarr; with
names for the numbers in the rows: the image's id, the shard's file and the classes' names.

A run does not store the ids of its images, so they are read from the shards. A shard may have
moved: a file with the recorded fingerprint is the same shard. Further columns of the sources (a
caption, a URL) are read from them too, some rows at a time: a run keeps no copy.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from collage_mpi.encoding.vectors import KEYS, OFFSETS
from collage_mpi.errors import CollageError, EnvironmentFault, UsageError
from collage_mpi.kinds import SINGLE
from collage_mpi.models.named import embeds
from collage_mpi.plugins import optional
from collage_mpi.results import EXPORT, INDEX_FOLDER, MANIFEST
from collage_mpi.results.columns import ABOUT, KEPT, PRESENT_WITH, as_column
from collage_mpi.results.input_columns import ID, InputColumns, as_type, of_lists
from collage_mpi.results.manifest import Json, about_answers, recorded_settings
from collage_mpi.results.vectors import KeptValues, extras_of
from collage_mpi.rows import (
    IMAGES,
    NAMES,
    TABLES,
    TableLayout,
    columns_of,
    flat_keys,
    wait_ns,
)
from collage_mpi.system.files import save_csv, temporary_name, write_atomic, writing

if TYPE_CHECKING:
    from collage_mpi.shards.members import MemberIndex
    from collage_mpi.shards.schema import ShardInfo


_T = TypeVar("_T")


class SomeRows(Protocol):
    """The part of `Results` that names and columns need. An export makes columns of some rows at a
    time."""

    @property
    def path(self) -> Path: ...
    @property
    def manifest(self) -> Json: ...
    @property
    def images(self) -> np.ndarray: ...
    @property
    def groups(self) -> np.ndarray: ...
    @property
    def tasks(self) -> np.ndarray: ...
    def kept(self, name: str, /) -> np.ndarray: ...


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
        chosen: whether some of them were chosen.
        notes: lines that tell the user why ids are missing.
    """

    def __init__(
        self,
        path: Path,
        manifest: Json,
        shards: Sequence[Path | str] | None = None,
        numbers: Sequence[int] | None = None,
        id_column: str | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        """Find the shards of a run.

        Args:
            path: the run's folder, which may hold lists of the members of its sources.
            manifest: of the run.
            shards: files and folders that hold the run's shards now; by default the recorded paths.
            numbers: of the shards to look for; by default all.
            id_column: the column of the sources that names an image in the output.
            columns: see `InputColumns`.

        Raises:
            EnvironmentFault: `shards` names nothing that exists, or a source with `id_column` is
                missing.
            UsageError: `id_column` cannot name the images, or there are no such `columns`.
        """
        entries = manifest["shards"]
        known = dict(enumerate(entries))
        if numbers is not None:
            known = {number: known[number] for number in numbers if number in known}
        self._manifest = manifest
        self._shard_names = _shard_names(entries)
        self._classes = manifest.get("class_names") or []
        self._lists = _lists(known, path / INDEX_FOLDER)
        self._ids, infos, self.notes = _ids(known, shards, self._lists)
        self.columns, self.chosen = InputColumns(infos, columns, id_column), id_column or columns
        for number in known.keys() - infos.keys() if self.chosen else ():
            what = f"no columns of {self._shard_names[number]} are known"
            raise EnvironmentFault(f"--id, --columns: {what}. {' '.join(self.notes)}")
        self.columns.check()

    def ids(self, images: np.ndarray) -> np.ma.MaskedArray:
        """The ids of images, (n,) with shard and row: (n,) text, masked if it is unknown."""
        found = np.full(len(images), None, dtype=object)
        for number in np.unique(images["shard"]).tolist():
            own = self._ids.get(number, ())
            places = np.flatnonzero((images["shard"] == number) & (images["row"] < len(own)))
            found[places] = [own[row] for row in images["row"][places].tolist()]
        return np.ma.array(found, mask=found == None)  # noqa: E711  # elementwise

    def removed(self, images: np.ndarray) -> dict[str, np.ma.MaskedArray]:
        """The column `removed` of images, (n,) with shard and row: (n,) bool, whether the picture
        was gone when the run was updated. {} if no picture of the run is gone."""
        if all(one.gone is None for one in self._lists.values()):
            return {}
        found = np.zeros(len(images), bool)
        for number, one in self._lists.items():
            own = np.flatnonzero((images["shard"] == number) & (images["row"] < len(one)))
            found[own] = ~one.live[images["row"][own].astype(np.int64)]
        return {"removed": np.ma.array(found)}

    def of(self, images: np.ndarray) -> ImageNames:
        """The names of images, (n,) of IMAGE_ROW."""
        return ImageNames(
            self.ids(images),
            picked(self._shard_names, images["shard"], np.ones(len(images), bool)),
            picked(self._classes, images["predicted"], classified(images, self._manifest)),
            picked(self._classes, images["label"], images["has_label"]),
            self.notes,
        )


def image_names(results: SomeRows, shards: Sequence[Path | str] | None = None) -> ImageNames:
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
    return images["answered"] & extras_of(manifest).classifies


def _shard_names(entries: Sequence[Json]) -> list[str | None]:
    """The shards' file names; their whole paths if two shards have the same name."""
    paths = [entry.get("path") for entry in entries]
    names = [path and Path(path).name for path in paths]
    return list(names if len(set(names)) == len(names) else paths)


def _lists(known: dict[int, Json], indexes: Path) -> dict[int, MemberIndex]:
    """Shard number -> the run's own list of the members of the source."""
    from collage_mpi.shards.members import MemberIndex
    from collage_mpi.shards.reader import content_of

    loaded = {n: MemberIndex.load(indexes / f"{content_of(e)}.npz") for n, e in known.items()}
    return {n: one for n, one in loaded.items() if one and len(one) == known[n]["count"]}


def _ids(
    known: dict[int, Json],
    shards: Sequence[Path | str] | None,
    lists: Mapping[int, MemberIndex],
) -> tuple[dict[int, Sequence[str]], dict[int, ShardInfo], tuple[str, ...]]:
    """Shard number -> ids in the order of the shard's rows; shard number -> description of a source
    that was found; and lines about shards without ids. The run's own list of a source's members is
    used if it is there, also if the source is gone."""
    from collage_mpi.shards.inputs import source_class

    ids: dict[int, Sequence[str]] = {n: one.texts() for n, one in lists.items()}
    sought = {n: entry for n, entry in known.items() if entry.get("path") and n not in ids}
    found, missing = from_shards(
        sought, shards, lambda _, info: (source_class(info.storage).ids(info), info)
    )
    ids |= {number: own for number, (own, _) in found.items() if own is not None}
    infos, notes = of_lists(known, lists, shards)
    if missing:
        notes.append(
            f"no ids of {len(missing):,} of {len(sought):,} shards, nor what their columns say: "
            f"{missing[0]}. --shards PATH says where they are now"
        )
    without = sum(own is None for own, _ in found.values())
    if without:
        notes.append(f"{without:,} of {len(sought):,} shards hold no ids")
    infos |= {number: info for number, (_, info) in found.items()}
    return ids, infos, tuple(dict.fromkeys(notes))


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


_MASKED = {**PRESENT_WITH, "wait_ns": ("answered", 1)}
_OF_CLASSES = ("predicted", "score")
# Column of images -> the name columns that follow it.
_BEHIND = {
    "row": ("id", "shard_name"),
    "predicted": ("predicted_name",),
    "label": ("label_name",),
}
_TOP = "top_"  # prefix of the columns of --top-k
PREDICTIONS = "predictions"  # file name of --predictions, without suffix
WINDOW = 1 << 17  # images sorted at a time, for the order of the input: about 70 MB
OUTPUT_BYTES = 256 << 20  # at most so many bytes of their outputs
_CHUNK_ROWS = 1 << 14  # rows turned into Python objects at a time
_GROUP_ROWS, _GROUP_BYTES = 1 << 17, 64 << 20  # the most of a row group of Parquet
_TOP_COLUMNS = ("top_classes", "top_scores")
CHUNK_BYTES = 1 << 20  # about the size of a Zarr chunk, which holds whole images
IDS_AT_ONCE = 1 << 17  # images; a multiple of the length of a chunk of ids
OF_ROWS = ("shard", "row", "answered")  # columns of image rows that are written to Zarr too
# Columns of the run are masked arrays, those of its input are Arrow arrays.
_Columns = Mapping[str, Any]
_Further = Mapping[str, tuple[np.ndarray, Any]]  # see `further_of`
# Columns of other runs, and why they have no answer, (n,) text; None without other runs.
Others = tuple[_Columns, np.ma.MaskedArray | None]
NONE_BESIDE: Others = ({}, None)


class Run(Protocol):
    """The part of `reader.Run` that an export reads, some rows at a time."""

    @property
    def path(self) -> Path: ...
    @property
    def manifest(self) -> Json: ...
    @property
    def kept_values(self) -> KeptValues: ...
    def pieces(self, table: TableLayout, /) -> Sequence[Callable[[], np.ndarray]]: ...
    def chunks(self, table: TableLayout, /) -> Iterator[np.ndarray]: ...
    def kept_of_piece(
        self, number: int, images: np.ndarray, names: Sequence[str], /
    ) -> dict[str, np.ndarray]: ...


class Joins(Protocol):
    """The part of `beside.Joined` that an export asks."""

    @property
    def manifests(self) -> Sequence[Json]: ...
    def columns(self, images: np.ndarray, /) -> Others: ...


@dataclass(frozen=True)
class _Excerpt:
    """Some rows of a run, (n,) of each table, and the kept values of its answered images."""

    path: Path
    manifest: Json
    images: np.ndarray
    groups: np.ndarray
    tasks: np.ndarray
    values: Mapping[str, np.ndarray]

    def kept(self, name: str, /) -> np.ndarray:
        return self.values[name]


def export_run(
    run: Run,
    to: str,
    out: Path | None = None,
    names: NameBook | None = None,
    *,
    only_predictions: bool = False,
    raw: bool = False,
    joined: Joins | None = None,
) -> list[Path]:
    """Write the three tables and the manifest in one format. An older export is replaced.

    Rows are read, named and written some at a time.

    Args:
        run: a run from `open_run` or `read_results`, complete or not.
        to: csv or parquet; or zarr, for the arrays that the run keeps beside its rows.
        out: directory, created if it does not exist; by default `export` in the run directory.
        names: of the images; by default `NameBook(run.path, run.manifest)`.
        only_predictions: write only the `prediction_columns`, as csv or parquet.
        raw: write texts in csv unchanged (see `save_csv`).
        joined: finds the answers of the runs beside this one, for `only_predictions`.

    Returns:
        The files written: images, groups, tasks (.csv, .parquet), or outputs.zarr, and
        manifest.json; with `only_predictions` predictions (.csv, .parquet).

    Raises:
        UsageError: the format is unknown, or does not support `raw`, `only_predictions` or the
            columns chosen for `names`.
        EnvironmentFault: `out` cannot be written, or a package that the format needs is missing.
    """
    if to not in FORMATS:
        raise UsageError(f"export format {to!r} is unknown; choose one of {', '.join(FORMATS)}")
    if raw and to != "csv":
        raise UsageError(f"raw texts are for csv; {to} always stores texts unchanged")
    write = FORMATS[to]
    if write is None and only_predictions:
        raise UsageError(f"predictions alone are written as csv or parquet, not as {to}")
    out = out or run.path / EXPORT
    names = names or NameBook(run.path, run.manifest)
    if write is None and names.chosen:
        raise UsageError(f"--id and --columns are for csv and parquet, not for {to}")
    manifest, about = out / MANIFEST, about_answers(run.manifest)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if write is None:
            files = [_to_zarr(run, out, names)]
        elif only_predictions:
            further = _further_in(run, to)
            length = embeds(str(recorded_settings(run.manifest).get(SINGLE)))
            if length and further:
                size = further["embedding"][0].shape[1]
                about["embedding"] = {"dimension": size, "normalisation": length}
            if joined is not None and joined.manifests:
                about["beside"] = [about_answers(each) for each in joined.manifests]
            outputs = {name: like for name, (like, _) in further.items()}
            answers = (
                with_input(
                    prediction_columns(
                        some,
                        names.of(some.images),
                        further,
                        NONE_BESIDE if joined is None else joined.columns(some.images),
                    ),
                    names,
                    some,
                )
                for some in in_order(run, outputs)
            )
            return [write(out / PREDICTIONS, answers, raw, about)]
        else:
            files = [
                write(out / table.name, _named_columns(run, table, names), raw, about)
                for table in TABLES
            ]
        if out.resolve() != run.path.resolve():
            write_atomic(manifest, (_manifest_text(run).encode(),))
    return [*files, manifest]


def further_of(run: Run) -> dict[str, tuple[np.ndarray, Any]]:
    """Name -> (0, ...) of its dtype, and the Arrow type, of what only the networks of a run know:
    outputs of functions, and answers of the networks beside the first one."""
    extras = extras_of(run.manifest)
    if not extras.more:
        return {}
    found = run.kept_values.empty
    return {name: each for name, each in found.items() if name not in extras.names}


def _further_in(run: Run, to: str) -> dict[str, tuple[np.ndarray, Any]]:
    """As `further_of`. Raises UsageError if the format has no column for it."""
    if to != "parquet" and not extras_of(run.manifest).classifies:
        raise UsageError(
            f"{run.path} maps a function, and {to} has no lists: leave out --predictions; --to "
            "zarr writes what the function returned"
        )
    return further_of(run)


def _manifest_text(run: Run) -> str:
    return json.dumps(run.manifest, indent=1) + "\n"


def _named_columns(run: Run, table: TableLayout, names: NameBook) -> Iterator[_Columns]:
    """Yields the columns of a table, some rows at a time."""
    for some in _excerpts(run, table):
        found = columns(some, table.name, names.of(some.images))
        yield with_input(found, names, some) if table is IMAGES else found


def with_input(found: _Columns, names: NameBook, some: SomeRows) -> _Columns:
    """The columns of images, and behind them those of their input: see `InputColumns.behind`."""
    return names.columns.behind({**found, **names.removed(some.images)}, some.images)


def _excerpts(run: Run, table: TableLayout) -> Iterator[SomeRows]:
    """Yields some rows of a table at a time, images in the order of the input. The first excerpt is
    empty, so that a table without rows has its columns too."""
    if table is IMAGES:
        yield from in_order(run)
        return
    yield excerpt(run, {})
    for rows in run.chunks(table):
        yield excerpt(run, {table.name: rows})


def excerpt(
    run: Run, rows: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray] | None = None
) -> _Excerpt:
    """Some rows of a run, (n,) by the name of their table, and kept values of its images."""
    tables = {table.name: np.empty(0, table.dtype) for table in TABLES}
    return _Excerpt(run.path, run.manifest, values=values or {}, **{**tables, **rows})


# Images: their places in the input, (n,) int64, their rows, and kept values of each.
_Placed = tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]


def in_order(run: Run, outputs: Mapping[str, np.ndarray] | None = None) -> Iterator[SomeRows]:
    """Yields the images of a run in the order of the input, some at a time, after an empty excerpt.

    The input is gone through in windows of WINDOW images, or of fewer that have OUTPUT_BYTES of
    outputs. Parts are nearly in the order of the input, so each is read once or twice; after a
    shuffle, once for each window.

    Args:
        outputs: name -> (0, ...) of its dtype, of kept values that the excerpts have too.
    """
    like = dict(outputs or {})
    yield excerpt(run, {}, like)
    each_bytes = sum(one.dtype.itemsize * int(np.prod(one.shape[1:])) for one in like.values())
    window = max(1, min(WINDOW, OUTPUT_BYTES // max(1, each_bytes)))
    starts = np.cumsum([0, *(shard["count"] for shard in run.manifest["shards"])])  # (shards + 1,)
    total = int(starts[-1])
    pieces = run.pieces(IMAGES)
    kept_names = (*(_TOP_COLUMNS if extras_of(run.manifest).top_k else ()), *like)
    spans = [(0, total + 1)] * len(pieces)  # the places of the piece's images: (first, last + 1)
    for low in range(0, total + 1, window):
        found: list[_Placed] = []
        for number, piece in enumerate(pieces):
            first, end = spans[number]
            if first >= low + window or end <= low:
                continue
            images = piece()
            shards = np.minimum(images["shard"], len(starts) - 1)  # larger ones are damage
            place = np.minimum(starts[shards] + images["row"].astype(np.int64), total)
            spans[number] = (int(place.min()), int(place.max()) + 1) if len(place) else (0, 0)
            own = (place >= low) & (place < low + window)
            if own.any():
                values = run.kept_of_piece(number, images, kept_names)
                kept = {name: array[own] for name, array in values.items()}
                found.append((place[own], images[own], kept))
        if found:
            yield from _sorted(run, found, like)


def _sorted(
    run: Run, found: Sequence[_Placed], like: Mapping[str, np.ndarray]
) -> Iterator[SomeRows]:
    """Yields at most _CHUNK_ROWS images at a time, by place. `like`: as outputs of `in_order`."""
    places, images = (np.concatenate([each[i] for each in found]) for i in (0, 1))
    shapes = dict(like) | {name: array[:0] for *_, kept in found for name, array in kept.items()}
    whole = {
        name: np.concatenate(
            [
                kept.get(name, np.zeros_like(like, shape=(len(own), *like.shape[1:])))
                for own, _, kept in found
            ]
        )
        for name, like in shapes.items()
    }  # zeros for pieces without an answer
    order = np.argsort(places, kind="stable")
    for start in range(0, len(order), _CHUNK_ROWS):
        chosen = order[start : start + _CHUNK_ROWS]
        kept = {name: values[chosen] for name, values in whole.items()}
        yield excerpt(run, {"images": images[chosen]}, kept)


def prediction_columns(
    results: SomeRows,
    names: ImageNames,
    further: _Further | None = None,
    joined: Others = NONE_BESIDE,
) -> dict[str, Any]:
    """The answers of images: column name -> (n,) masked array, or Arrow array of an output.

    id: the image's id, or SHARD:ROW if it has none. Then the `answer_columns`, and those of the
    runs `joined` to this one. source, runtime: the stage that answered, with the runtime and format
    of its network. error: the reason why there is no answer; masked if there is one.
    """
    images, answered = results.images, results.images["answered"]
    places = [f"{shard}:{row}" for shard, row in zip(names.shard_name, images["row"], strict=True)]
    known = np.ma.getmaskarray(names.id)
    found = {"id": np.ma.array(np.where(known, np.array(places, object), names.id.data))}
    others, why = joined
    found |= together(answer_columns(results, names, further or {}), others)
    found |= {n: picked(NAMES[n], images[n], answered) for n in ("source", "runtime")}
    reasons = np.char.decode(images["reason"], "utf-8", "replace").astype(object)
    found["error"] = np.ma.array(reasons, mask=answered)
    if why is not None:
        found["error"] = first_of(found["error"], why)
    return found


def together(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of two networks, (n,) each. Raises UsageError if both have one of a name."""
    if twice := sorted(one.keys() & other.keys()):
        raise UsageError(
            f"two networks of this table have the column {twice[0]}: remove the folder of the "
            "later one in beside/, and give it another name by --as NAME"
        )
    return {**one, **other}


def first_of(one: np.ma.MaskedArray, other: np.ma.MaskedArray) -> np.ma.MaskedArray:
    """(n,) texts: those of `one`, and of the other where one has none."""
    absent, also = np.ma.getmaskarray(one), np.ma.getmaskarray(other)
    return np.ma.array(np.where(absent, other.data, one.data), mask=absent & also)


def answer_columns(results: SomeRows, names: ImageNames, further: _Further) -> dict[str, Any]:
    """What the networks of a run say of images: column name -> (n,) masked array, or Arrow array of
    an output.

    class, score: the answer, as the name of the class or its number; masked if there is no answer.
    If the run maps a function, what is `further` stands in their place; the prefix KEPT tells it
    from other columns. class_2, score_2, ...: the next best, if the run was made with --top-k.
    """
    images, answered = results.images, results.images["answered"]
    beside = results.manifest.get("beside") or {}
    found: dict[str, Any] = {}
    if extras_of(results.manifest).classifies:
        found["class"] = _class_of(names.predicted_name, images["predicted"], answered)
        found["score"] = np.ma.array(images["score"], mask=~answered)
    for name, (_, kind) in further.items():
        values, of = results.kept(name), name.removesuffix("_class")
        if of != name and of in beside:
            named = picked(beside[of], values, answered)
            found[name] = _class_of(named, values, answered)
            continue
        of_ours = name in ("source", "runtime", "error")
        found[f"{KEPT}{name}" if of_ours else name] = as_column(values, answered, kind)
    if extras_of(results.manifest).top_k:
        top = _top_columns(results)
        for k in range(2, len(top) // 3 + 1):
            name = f"{_TOP}{k}"
            found[f"class_{k}"] = _class_of(top[f"{name}_name"], top[name].data, answered)
            found[f"score_{k}"] = top[f"{name}_score"]
    return found


def _class_of(
    named: np.ma.MaskedArray, numbers: np.ndarray, answered: np.ndarray
) -> np.ma.MaskedArray:
    """(n,) text: the class's name, or its number if it has no name."""
    texts = np.where(np.ma.getmaskarray(named), numbers.astype(str).astype(object), named.data)
    return np.ma.array(texts, mask=~answered)


def columns(results: SomeRows, table: str, named: ImageNames) -> dict[str, np.ma.MaskedArray]:
    """The exported columns of one table, with names in place of codes. Absent values are masked.

    Returns:
        Column name -> (n,) masked array; `source`, `kind`, `outcome`, `reason` and the names
        of images are str.
    """
    rows: np.ndarray = getattr(results, table)
    found: dict[str, np.ndarray] = {name: rows[name] for name in rows.dtype.names or ()}
    for name, names in NAMES.items():
        if name in found:
            found[name] = np.array(names)[found[name]]
    if "reason" in found:
        found["reason"] = np.char.decode(found["reason"], "utf-8", "replace")
    if table != "images":
        return {name: np.ma.array(values) for name, values in found.items()}
    reason = found.pop("reason")
    found = {**found, "wait_ns": wait_ns(rows), "reason": reason}
    complete: dict[str, np.ma.MaskedArray] = {}
    for name, values in found.items():
        column, bit = _MASKED.get(name, ("", 0))
        absent = rows[column] & bit == 0 if column else False
        if name in _OF_CLASSES:
            absent = ~classified(rows, results.manifest)
        complete[name] = np.ma.array(values, mask=absent)
        complete |= {behind: getattr(named, behind) for behind in _BEHIND.get(name, ())}
        if name == "score" and extras_of(results.manifest).top_k:
            complete |= _top_columns(results)
    return complete


def _top_columns(results: SomeRows) -> dict[str, np.ma.MaskedArray]:
    """top_1, top_1_name, top_1_score, top_2, ... -> (n,), masked if there is no answer."""
    answered = results.images["answered"]
    classes, scores = _top_of(results)
    found: dict[str, np.ma.MaskedArray] = {}
    for k in range(classes.shape[1]):
        name = f"{_TOP}{k + 1}"
        found[name] = np.ma.array(classes[:, k], mask=~answered)
        found[f"{name}_name"] = picked(
            results.manifest.get("class_names") or [], classes[:, k], answered
        )
        found[f"{name}_score"] = np.ma.array(scores[:, k], mask=~answered)
    return found


def _top_of(results: SomeRows) -> tuple[np.ndarray, np.ndarray]:
    """(n, k) int32 classes and (n, k) float32 scores of all images; zeros without an answer."""
    answered = results.images["answered"]
    k = extras_of(results.manifest).top_k or 0
    found = []
    for name, dtype in zip(_TOP_COLUMNS, (np.int32, np.float32), strict=True):
        whole = np.zeros((len(answered), k), dtype)
        if answered.any():
            whole[answered] = results.kept(name)[answered]
        found.append(whole)
    return found[0], found[1]


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to, which is renamed to `path` on success."""
    temp = temporary_name(path)
    try:
        yield temp
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def _to_csv(path: Path, found: Iterable[_Columns], raw: bool, about: Json) -> Path:
    """Write one table. An absent value is an empty field; a bool is 0 or 1."""
    path = path.with_suffix(".csv")
    pieces = iter(found)
    first = next(pieces)
    rows = chain.from_iterable(map(_csv_rows, chain((first,), pieces)))
    save_csv(path, list(first), rows, line_end="\r\n", raw=raw)
    return path


def _csv_rows(found: _Columns) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(next(iter(found.values()))), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        yield from zip(*(_csv_cells(values[part]) for values in found.values()), strict=True)


def _csv_cells(values: Any) -> list[Any]:
    """Python values for the csv module, which writes None as an empty field. Times of the input are
    texts, as Arrow writes them; lists and structs are JSON."""
    if isinstance(values, np.ma.MaskedArray):
        return [*(values.astype(np.int8) if values.dtype == bool else values).tolist()]
    import pyarrow as pa

    texts = pa.types.is_temporal(values.type) or pa.types.is_nested(values.type)
    to = pa.string() if texts else pa.int8() if pa.types.is_boolean(values.type) else values.type
    return [*as_type(values, to).to_pylist()]


def _to_parquet(path: Path, found: Iterable[_Columns], raw: bool, about: Json) -> Path:
    """Write one table. An absent value is null; a name is dictionary-encoded. The metadata say what
    the table is `about`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = path.with_suffix(".parquet")
    with _replacing(path) as temp, ExitStack() as stack:
        writer: Any = None
        waiting: list[Any] = []

        def write() -> None:
            table = pa.concat_tables(waiting).unify_dictionaries()
            writer.write_table(table, row_group_size=_GROUP_ROWS)
            waiting.clear()

        for table in map(as_arrow, found):
            if writer is None:
                schema = table.schema.with_metadata({ABOUT: json.dumps(about)})
                writer = stack.enter_context(pq.ParquetWriter(temp, schema))
            waiting.append(table)
            held = sum(map(len, waiting)), sum(each.nbytes for each in waiting)
            if held[0] >= _GROUP_ROWS or held[1] >= _GROUP_BYTES:
                write()
        if waiting:
            write()
    return path


def as_arrow(found: _Columns) -> Any:
    """Exported columns as a pyarrow.Table. An absent value is null; a name is
    dictionary-encoded."""
    import pyarrow as pa

    arrays = {}
    for name, values in found.items():
        if not isinstance(values, np.ma.MaskedArray):
            arrays[name] = values
            continue
        text = values.dtype == object
        mask = np.ma.getmaskarray(values)
        array = pa.array(np.asarray(values.data), pa.string() if text else None, mask=mask)
        named = name in NAMES or (text and name != ID)
        arrays[name] = array.dictionary_encode() if named else array
    return pa.table(arrays)


def pandas_frame(results: SomeRows, table: str, names: ImageNames) -> Any:
    """The exported columns of a table as a pandas.DataFrame: see `columns`.

    Names are categorical. A number that may be absent has a nullable dtype (Int32, Float32).

    Raises:
        EnvironmentFault: pandas is not installed.
    """
    pd = optional("pandas", "pandas", "to_pandas")

    def series(name: str, values: np.ma.MaskedArray) -> Any:
        mask = np.ma.getmaskarray(values)
        if name in NAMES or values.dtype == object:
            text = values.data.astype(object)
            text[mask] = None
            return text if name == ID else pd.Categorical(text)
        if name not in _MASKED and not name.startswith(_TOP):
            return values.data
        kind = "Integer" if values.dtype.kind == "i" else "Floating"
        return getattr(pd.arrays, f"{kind}Array")(values.data.copy(), mask)

    found = columns(results, table, names)
    return pd.DataFrame({name: series(name, values) for name, values in found.items()})


def _to_zarr(run: Run, out: Path, names: NameBook) -> Path:
    """Write the arrays that the run keeps beside its rows, in the order of the input."""
    path = out / "outputs.zarr"
    rows = [columns_of(some, IMAGES.only(*OF_ROWS)) for some in run.chunks(IMAGES)]
    images = np.concatenate([np.empty(0, IMAGES.only(*OF_ROWS)), *rows])
    write_zarr(path, images, names.ids, run.kept_values)
    return path


# Format -> function that writes a table to a path without suffix; None: it has no tables.
FORMATS: dict[str, Callable[[Path, Iterable[_Columns], bool, Json], Path] | None] = {
    "csv": _to_csv,
    "parquet": _to_parquet,
    "zarr": None,
}


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

"""Exports a run's rows as CSV, Parquet or HDF5, and its scores, embeddings or outputs as Zarr."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from collage_mpi.errors import UsageError
from collage_mpi.results.file_names import EXPORT, MANIFEST
from collage_mpi.results.names import (
    NAME_COLUMNS,
    ImageNames,
    ImageRows,
    classified,
    image_names,
    picked,
)
from collage_mpi.results.outputs import KeptValues, write_zarr
from collage_mpi.results.rows import NAMES, TABLES, WAIT_FORMULA, wait_ns
from collage_mpi.results.vectors import extras_of, require_pyarrow
from collage_mpi.system.extras import optional
from collage_mpi.system.files import save_csv, temporary_name, write_atomic, writing

# Column of images -> the column that is 1 if this column has a value.
_MASKED = {
    "predicted": "answered",
    "score": "answered",
    "rank": "answered",
    "wait_ns": "answered",
    "label": "has_label",
    "other": "audited",
    "other_score": "audited",
}
_OF_CLASSES = ("predicted", "score")
# Column of images -> the name columns that follow it.
_BEHIND = {
    "row": ("id", "shard_name"),
    "predicted": ("predicted_name",),
    "label": ("label_name",),
}
_TOP = "top_"  # prefix of the columns of --top-k
PREDICTIONS = "predictions"  # file name of --predictions, without suffix
_CSV_ROWS = 50_000  # rows turned into Python objects at a time: about 200 MB


class AllRows(ImageRows, Protocol):
    """The part of `Results` that an export reads."""

    @property
    def path(self) -> Path: ...
    @property
    def groups(self) -> np.ndarray: ...
    @property
    def tasks(self) -> np.ndarray: ...
    def kept(self, name: str, /) -> np.ndarray: ...
    @property
    def kept_values(self) -> KeptValues: ...


def export_run(
    results: AllRows,
    to: str,
    out: Path | None = None,
    names: ImageNames | None = None,
    *,
    only_predictions: bool = False,
    raw: bool = False,
) -> list[Path]:
    """Write the three tables and the manifest in one format. An older export is replaced.

    Args:
        results: a run, complete or not.
        to: csv, parquet or hdf5; or zarr, for the arrays that the run keeps beside its rows.
        out: directory, created if it does not exist; by default `export` in the run directory.
        names: of the images; by default `image_names(results)`.
        only_predictions: write only the `prediction_columns`, as csv or parquet.
        raw: write texts in csv unchanged (see `save_csv`).

    Returns:
        The files written: images, groups, tasks (.csv, .parquet), run.h5 or outputs.zarr, and
        manifest.json; with `only_predictions` predictions (.csv, .parquet).

    Raises:
        UsageError: the format is unknown, or does not support `raw` or `only_predictions`.
        EnvironmentFault: `out` cannot be written, or a package that the format needs is missing.
    """
    if to not in FORMATS:
        raise UsageError(f"export format {to!r} is unknown; choose one of {', '.join(FORMATS)}")
    if raw and to != "csv":
        raise UsageError(f"raw texts are for csv; {to} always stores texts unchanged")
    write = FORMATS[to]
    if write is None and only_predictions:
        raise UsageError(f"predictions alone are written as csv or parquet, not as {to}")
    out = out or results.path / EXPORT
    names = names or image_names(results)
    manifest = out / MANIFEST
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if write is None:
            files = [WHOLE[to](results, out, names)]
        elif only_predictions:
            return [write(out / PREDICTIONS, prediction_columns(results, names), raw)]
        else:
            tables = [table.name for table in TABLES]
            files = [write(out / name, columns(results, name, names), raw) for name in tables]
        if out.resolve() != results.path.resolve():
            write_atomic(manifest, ((results.path / MANIFEST).read_bytes(),))
    return [*files, manifest]


def prediction_columns(results: AllRows, names: ImageNames) -> dict[str, np.ma.MaskedArray]:
    """The answers of the run in the order of the input: column name -> (n,) masked array.

    id: the image's id, or SHARD:ROW if it has none. class, score: the answer, as the name of the
    class or its number; masked if there is no answer. class_2, score_2, ...: the next best, if the
    run was made with --top-k. error: the reason why there is no answer; masked if there is one.

    Raises:
        UsageError: the run maps a function, so it has no classes.
    """
    if not extras_of(results.manifest).classifies:
        raise UsageError(
            f"{results.path} maps a function, which names no classes: leave out --predictions; "
            "--to zarr writes what the function returned"
        )
    images, answered = results.images, results.images["answered"]
    order = np.lexsort((images["row"], images["shard"]))
    places = [f"{shard}:{row}" for shard, row in zip(names.shard_name, images["row"], strict=True)]
    known = np.ma.getmaskarray(names.id)
    found = {
        "id": np.ma.array(np.where(known, np.array(places, object), names.id.data)),
        "class": _class_of(names.predicted_name, images["predicted"], answered),
        "score": np.ma.array(images["score"], mask=~answered),
    }
    if extras_of(results.manifest).top_k:
        top = _top_columns(results)
        for k in range(2, len(top) // 3 + 1):
            name = f"{_TOP}{k}"
            found[f"class_{k}"] = _class_of(top[f"{name}_name"], top[name].data, answered)
            found[f"score_{k}"] = top[f"{name}_score"]
    reasons = np.char.decode(images["reason"], "utf-8", "replace").astype(object)
    found["error"] = np.ma.array(reasons, mask=answered)
    return {name: values[order] for name, values in found.items()}


def _class_of(
    named: np.ma.MaskedArray, numbers: np.ndarray, answered: np.ndarray
) -> np.ma.MaskedArray:
    """(n,) text: the class's name, or its number if it has no name."""
    texts = np.where(np.ma.getmaskarray(named), numbers.astype(str).astype(object), named.data)
    return np.ma.array(texts, mask=~answered)


def columns(results: AllRows, table: str, named: ImageNames) -> dict[str, np.ma.MaskedArray]:
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
        absent = rows[_MASKED[name]] != 1 if name in _MASKED else False
        if name in _OF_CLASSES:
            absent = ~classified(rows, results.manifest)
        complete[name] = np.ma.array(values, mask=absent)
        complete |= {behind: getattr(named, behind) for behind in _BEHIND.get(name, ())}
        if name == "score" and extras_of(results.manifest).top_k:
            complete |= _top_columns(results)
    return complete


def _top_columns(results: AllRows) -> dict[str, np.ma.MaskedArray]:
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


def _top_of(results: AllRows) -> tuple[np.ndarray, np.ndarray]:
    """(n, k) int32 classes and (n, k) float32 scores of all images; zeros without an answer."""
    answered = results.images["answered"]
    k = extras_of(results.manifest).top_k or 0
    found = []
    for name, dtype in (("top_classes", np.int32), ("top_scores", np.float32)):
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


def _to_csv(path: Path, found: Mapping[str, np.ma.MaskedArray], raw: bool) -> Path:
    """Write one table. An absent value is an empty field; a bool is 0 or 1."""
    path = path.with_suffix(".csv")
    save_csv(path, list(found), _csv_rows(found), line_end="\r\n", raw=raw)
    return path


def _csv_rows(found: Mapping[str, np.ma.MaskedArray]) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(next(iter(found.values()))), _CSV_ROWS):
        part = slice(start, start + _CSV_ROWS)
        yield from zip(*(_csv_cells(values[part]) for values in found.values()), strict=True)


def _csv_cells(values: np.ma.MaskedArray) -> list[Any]:
    """Python values for the csv module, which writes None as an empty field."""
    found: list[Any] = (values.astype(np.int8) if values.dtype == bool else values).tolist()
    return found


def _to_parquet(path: Path, found: Mapping[str, np.ma.MaskedArray], raw: bool) -> Path:
    """Write one table. An absent value is null; a name is dictionary-encoded."""
    require_pyarrow("export to parquet", "export to csv or hdf5")
    import pyarrow.parquet as pq

    path = path.with_suffix(".parquet")
    with _replacing(path) as temp:
        pq.write_table(as_arrow(found), temp)
    return path


def as_arrow(found: Mapping[str, np.ma.MaskedArray]) -> Any:
    """Exported columns as a pyarrow.Table. An absent value is null; a name is
    dictionary-encoded."""
    import pyarrow as pa

    arrays = {}
    for name, values in found.items():
        text = values.dtype == object
        mask = np.ma.getmaskarray(values)
        array = pa.array(np.asarray(values.data), pa.string() if text else None, mask=mask)
        named = name in NAMES or (text and name != NAME_COLUMNS[0])
        arrays[name] = array.dictionary_encode() if named else array
    return pa.table(arrays)


def pandas_frame(results: AllRows, table: str, names: ImageNames) -> Any:
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
            return text if name == NAME_COLUMNS[0] else pd.Categorical(text)
        if name not in _MASKED and not name.startswith(_TOP):
            return values.data
        kind = "Integer" if values.dtype.kind == "i" else "Floating"
        return getattr(pd.arrays, f"{kind}Array")(values.data.copy(), mask)

    found = columns(results, table, names)
    return pd.DataFrame({name: series(name, values) for name, values in found.items()})


def _to_zarr(results: AllRows, out: Path, names: ImageNames) -> Path:
    """Write the arrays that the run keeps beside its rows, in the order of the input."""
    path = out / "outputs.zarr"
    write_zarr(path, results.images, names.id, results.kept_values)
    return path


def _to_hdf5(results: AllRows, out: Path, names: ImageNames) -> Path:
    """Write one file with a compound dataset for each table. Attributes list the names of codes.

    The images have an additional column wait_ns, which is valid only for answered images.
    """
    from collage_mpi.shards.hdf5 import H5_LOCK, FileToWrite, create_file

    path = out / "run.h5"
    with _replacing(path) as temp, H5_LOCK, FileToWrite(temp, "w+") as stream:
        with create_file(stream) as file:
            _write_names(file, names)
            file.attrs["manifest"] = (results.path / MANIFEST).read_text("utf-8")
            for table in TABLES:
                rows = getattr(results, table.name)
                if table.name == "images":
                    rows = _completed(results)
                data = file.create_dataset(table.name, data=rows)
                for name in table.coded:
                    data.attrs[f"{name}_codes"] = np.array(NAMES[name], "S")
            file["images"].attrs["wait_ns"] = WAIT_FORMULA
        if stream.failure is not None:
            raise stream.failure
    return path


def _write_names(file: Any, names: ImageNames) -> None:
    """Write a dataset of text for each column of names; "" if an image has no name."""
    from collage_mpi.shards.hdf5 import text_array

    for name in NAME_COLUMNS:
        values = getattr(names, name).filled("").tolist()
        if values:
            data = text_array(values)  # (n,) UTF-8
            file.create_dataset(f"image_names/{name}", data=data, compression="gzip", shuffle=True)


def _completed(results: AllRows) -> np.ndarray:
    """The image rows with the columns wait_ns, top_classes and top_scores before the reason."""
    rows, keep = results.images, extras_of(results.manifest)
    left_out = () if keep.classifies else _OF_CLASSES
    found = {name: rows[name] for name in rows.dtype.names or () if name not in left_out}
    reason, found["wait_ns"] = found.pop("reason"), wait_ns(rows)
    if keep.top_k:
        found |= dict(zip(("top_classes", "top_scores"), _top_of(results), strict=True))
    found["reason"] = reason
    whole = np.empty(len(rows), [(name, v.dtype, v.shape[1:]) for name, v in found.items()])
    for name, values in found.items():
        whole[name] = values
    return whole


_Columns = Mapping[str, np.ma.MaskedArray]
WHOLE: dict[str, Callable[[AllRows, Path, ImageNames], Path]] = {
    "hdf5": _to_hdf5,
    "zarr": _to_zarr,
}
# Format -> function that writes a table to a path without suffix; None if WHOLE has the format.
FORMATS: dict[str, Callable[[Path, _Columns, bool], Path] | None] = {
    "csv": _to_csv,
    "parquet": _to_parquet,
    **dict.fromkeys(WHOLE),
}

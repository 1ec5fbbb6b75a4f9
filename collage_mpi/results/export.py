"""A run's rows for other tools: CSV, Parquet or HDF5.

Owns: the exported columns (names for codes, absent values left empty, wait_ns added)
and the three file formats.
Does not know: how a run is verified; it exports incomplete runs as well.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.results.atomic import TEMP_MARK, write_atomic
from collage_mpi.results.manifest import MANIFEST
from collage_mpi.results.reader import Results
from collage_mpi.results.rows import (
    IMAGE_ROW,
    KINDS,
    OUTCOMES,
    SOURCES,
    TABLES,
    WAIT_FORMULA,
    wait_ns,
)

_NAMES = {"source": SOURCES, "kind": KINDS, "outcome": OUTCOMES}
# Columns of images that say something only where the mask column is true.
_MASKED = {
    "predicted": "answered",
    "score": "answered",
    "rank": "answered",
    "wait_ns": "answered",
    "label": "has_label",
}
_CSV_ROWS = 50_000  # rows turned into Python objects at a time: about 200 MB


def export_run(results: Results, to: str, out: Path | None = None) -> list[Path]:
    """Write the three tables and the manifest in one format; replaces older exports.

    Args:
        results: any run, complete or not.
        to: csv, parquet or hdf5.
        out: directory, made if need be; `export` inside the run directory by default.

    Returns:
        The files written: images, groups, tasks (.csv, .parquet) or run.h5; manifest.json.

    Raises:
        UsageError: an unknown format.
        EnvironmentFault: `out` cannot be written, or pyarrow is missing.
    """
    if to not in FORMATS:
        raise UsageError(f"export format {to!r} is unknown; choose one of {', '.join(FORMATS)}")
    out = out or results.path / "export"
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = FORMATS[to](results, out)
        manifest = out / MANIFEST
        if out.resolve() != results.path.resolve():
            write_atomic(manifest, ((results.path / MANIFEST).read_bytes(),))
    except OSError as error:
        raise EnvironmentFault(f"{out}: cannot be written: {error.strerror or error}") from error
    return [*files, manifest]


def columns(results: Results, table: str) -> dict[str, np.ma.MaskedArray]:
    """The exported columns of one table: names for codes, absent values masked.

    Returns:
        Column name -> (n,) masked array; `source`, `kind`, `outcome`, `reason` are str.
    """
    rows: np.ndarray = getattr(results, table)
    found: dict[str, np.ndarray] = {name: rows[name] for name in rows.dtype.names or ()}
    for name, names in _NAMES.items():
        if name in found:
            found[name] = np.array(names)[found[name]]
    if "reason" in found:
        found["reason"] = np.char.decode(found["reason"], "utf-8", "replace")
    if table != "images":
        return {name: np.ma.array(values) for name, values in found.items()}
    reason = found.pop("reason")
    found = {**found, "wait_ns": wait_ns(rows), "reason": reason}
    return {
        name: np.ma.array(values, mask=~rows[_MASKED[name]] if name in _MASKED else False)
        for name, values in found.items()
    }


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary name for a writer that wants a path; renamed to `path` on success."""
    temp = path.with_name(f".{path.name}{TEMP_MARK}{os.getpid()}")
    try:
        yield temp
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)


def _to_csv(results: Results, out: Path) -> list[Path]:
    """One file a table; an absent value is an empty field, a flag is 0 or 1."""
    files = []
    for table in TABLES:
        path = out / f"{table.name}.csv"
        found = columns(results, table.name)
        n = len(getattr(results, table.name))
        with _replacing(path) as temp, open(temp, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(found)
            for start in range(0, n, _CSV_ROWS):
                part = slice(start, start + _CSV_ROWS)
                writer.writerows(zip(*(_csv_cells(v[part]) for v in found.values()), strict=True))
        files.append(path)
    return files


def _csv_cells(values: np.ma.MaskedArray) -> list[Any]:
    """Python values for the csv module, which writes None as an empty field."""
    return (values.astype(np.int8) if values.dtype == bool else values).tolist()


def _to_parquet(results: Results, out: Path) -> list[Path]:
    """One file a table; an absent value is null, a name is dictionary-encoded."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise EnvironmentFault(
            "export to parquet needs pyarrow, which is not installed: "
            "pip install 'collage-mpi[parquet]', or export to csv or hdf5."
        ) from error
    files = []
    for table in TABLES:
        path = out / f"{table.name}.parquet"
        arrays = {
            name: pa.array(np.asarray(values.data), mask=np.ma.getmaskarray(values))
            for name, values in columns(results, table.name).items()
        }
        for name in _NAMES.keys() & arrays.keys():
            arrays[name] = arrays[name].dictionary_encode()
        with _replacing(path) as temp:
            pq.write_table(pa.table(arrays), temp)
        files.append(path)
    return files


def _to_hdf5(results: Results, out: Path) -> list[Path]:
    """One file, a compound data set a table as on disk; the codes' names as attributes.

    Images have the column wait_ns too, which means something only where `answered`.
    """
    from collage_mpi.shards.hdf5 import H5_LOCK, FileToWrite, create_file

    path = out / "run.h5"
    with _replacing(path) as temp, H5_LOCK, FileToWrite(temp, "w+") as stream:
        with create_file(stream) as file:
            file.attrs["manifest"] = (results.path / MANIFEST).read_text("utf-8")
            for table in TABLES:
                data = file.create_dataset(
                    table.name, data=_with_wait(getattr(results, table.name))
                )
                for name in table.coded:
                    data.attrs[f"{name}_codes"] = np.array(_NAMES[name], "S")
            file["images"].attrs["wait_ns"] = WAIT_FORMULA
        if stream.failure is not None:
            raise stream.failure
    return [path]


def _with_wait(rows: np.ndarray) -> np.ndarray:
    """Rows of images with the column wait_ns before the reason; of other tables as they are."""
    if rows.dtype != IMAGE_ROW:
        return rows
    *most, reason = ((name, rows.dtype[name]) for name in rows.dtype.names or ())
    found = np.empty(len(rows), [*most, ("wait_ns", "<i8"), reason])
    for name in rows.dtype.names or ():
        found[name] = rows[name]
    found["wait_ns"] = wait_ns(rows)
    return found


FORMATS: dict[str, Callable[[Results, Path], list[Path]]] = {
    "csv": _to_csv,
    "parquet": _to_parquet,
    "hdf5": _to_hdf5,
}

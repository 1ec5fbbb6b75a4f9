"""Source for a Parquet file with a column of encoded pictures, as Hugging Face stores datasets. A
row group is read as a whole.
"""

from __future__ import annotations

import hashlib
import json
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
from collage_mpi.shards.tables import ParquetTable, bytes_of, opened_parquet, starts_of, still

NAMES = (
    *("images", "imgs", "image", "x", "data", "img", "picture"),
    *("jpg", "jpeg", "png", "bytes", "content"),
)
LABELS = ("labels", "label", "y", "targets", "target", "cls", "class", "class_name")
GROUPS_KEPT = 2  # row groups in memory, because a batch may span two
FOOTER_BYTES = 8  # end of the file: length of the metadata, 4 bytes, and magic number


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

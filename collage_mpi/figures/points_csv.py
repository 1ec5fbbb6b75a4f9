"""Reads points.csv, which `experiments.table` writes, and finds the points on a frontier."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError

AXIS = "axis:"
Row = dict[str, Any]


def read_points(paths: Sequence[Path]) -> list[Row]:
    """All rows of the files: numbers as float, empty fields as None, the rest as text.

    Raises:
        EnvironmentFault: a file cannot be read.
        DataFault: a file is no points.csv.
    """
    rows: list[Row] = []
    for path in paths:
        try:
            with open(path, newline="", encoding="utf-8") as file:
                found = list(csv.DictReader(file))
        except OSError as error:
            raise EnvironmentFault(f"{path}: cannot be read: {error.strerror or error}") from error
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataFault(
                f"{path}: damaged ({error}); make it again: experiment --table"
            ) from error
        if not found or not {"name", "placements", "ranks"} <= found[0].keys():
            raise DataFault(f"{path}: no points of an experiment: name its points.csv")
        rows += [{key: _value(key, text) for key, text in row.items()} for row in found]
    return rows


def _value(key: str | None, text: str | None) -> Any:
    if text is None or text == "" or key is None:
        return None
    if key == "name" or key.startswith(AXIS):
        return text
    try:
        return float(text)
    except ValueError:
        return text


def choose(rows: Sequence[Row], wanted: Sequence[str]) -> list[Row]:
    """The rows that have one of the given labels on each given axis, as AXIS=LABEL.

    Raises:
        UsageError: not of this form, no such axis or label, or no row is left.
    """
    labels: dict[str, list[str]] = {}
    for text in wanted:
        axis, equals, label = text.partition("=")
        known = {row.get(AXIS + axis): None for row in rows}
        if not equals or label not in known:
            shown = "; ".join(str(name) for name in known if name is not None)
            raise UsageError(
                f"--where {text}: it needs AXIS=LABEL; labels of {axis}: {shown or 'none'}"
            )
        labels.setdefault(axis, []).append(label)
    found = [
        row for row in rows if all(row.get(AXIS + axis) in some for axis, some in labels.items())
    ]
    if not found:
        raise UsageError(f"--where {' --where '.join(wanted)}: no point has all of these")
    return found


def axis_labels(rows: Sequence[Row], axis: str) -> list[str]:
    """Labels on an axis, in the file's order. Raises UsageError if there is no such axis."""
    labels = [row[AXIS + axis] for row in rows if row.get(AXIS + axis) is not None]
    if not labels:
        axes = {key.removeprefix(AXIS): None for row in rows for key in row if key.startswith(AXIS)}
        raise UsageError(
            f"no axis {axis!r} in these points; there are: {', '.join(axes) or 'none'}"
        )
    return list(dict.fromkeys(labels))


def need(row: Mapping[str, Any], column: str) -> float:
    """The number in a column.

    Raises:
        DataFault: there is none, because the runs were too short or the column is unknown.
    """
    value = row.get(column)
    if not isinstance(value, float):
        raise DataFault(
            f"point {row['name']}: no {column} (a P99 of each placement needs 368 groups; "
            "accuracy needs labels or answers)"
        )
    return value


def frontier(costs: Sequence[float], gains: Sequence[float]) -> list[int]:
    """Indices of the points that no other point beats with a cost and gain as good or better.

    Args:
        costs: smaller is better, such as a P99.
        gains: larger is better, such as an accuracy.

    Returns:
        Ascending by cost.
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i]))
    best, found = float("-inf"), []
    for i in order:
        if gains[i] > best:
            best = gains[i]
            found.append(i)
    return found

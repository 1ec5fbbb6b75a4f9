"""Expands the grid of an experiment's file into drafts of points. Their settings are not checked
yet."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collage_mpi.errors import UsageError
from collage_mpi.system.fields import SHIPPED
from collage_mpi.system.printable import shown

MOST_POINTS = 10_000

Json = dict[str, Any]


@dataclass(frozen=True)
class Draft:
    """Settings of a choice on an axis, or of a whole point.

    Attributes:
        label: its part of the point's name.
        values: settings, without those of [base].
        axes: axis of the grid -> label of the choice; {} for a [[point]].
        seed: from `repeat`, or None.
    """

    label: str
    values: Json
    axes: dict[str, str] = field(default_factory=dict)
    seed: int | None = None


@dataclass(frozen=True)
class Baselines:
    """The points with which other points are compared: choices on one axis, in the file's order.

    Attributes:
        axis: of the grid; None if the file names no baseline.
        choices: labels on the axis.
    """

    axis: str | None = None
    choices: tuple[str, ...] = ()


def drafts(document: Mapping[str, Any], source: str) -> list[Draft]:
    """All points, with their seeds and without [base]. Repeats of a point are consecutive.

    Args:
        document: the content of the file.
        source: names the file in messages.

    Raises:
        UsageError: grid, point or repeat has a wrong form, or there are too many points.
    """
    seeds = _seeds(document.get("repeat"), source)
    axes = _axes(table(document.get("grid", {}), f"{source} [grid]"), f"{source} [grid]")
    extra = document.get("point", [])
    if not isinstance(extra, list):
        raise UsageError(f"{source}: point needs [[point]] tables, not {shown(extra, 60)}")
    in_grid = math.prod(len(axis) for axis in axes) if axes or not extra else 0
    total = (in_grid + len(extra)) * len(seeds)
    if total > MOST_POINTS:
        raise UsageError(
            f"{source}: {total:,} points; at most {MOST_POINTS:,} are allowed: shorten a list of "
            "[grid], or split the file"
        )
    chosen = [_joined(parts, source) for parts in itertools.product(*axes)] if in_grid else []
    chosen += [_extra(item, f"{source} [[point]] {n}") for n, item in enumerate(extra)]
    return [_with_seed(draft, seed, source) for draft in chosen for seed in seeds]


def read_baselines(document: Mapping[str, Any], found: Sequence[Draft], source: str) -> Baselines:
    """Read the [baseline] table: AXIS = a choice on this axis of the grid, or a list of choices.

    Raises:
        UsageError: the axis or a choice is unknown.
    """
    given = table(document.get("baseline", {}), f"{source} [baseline]")
    if not given:
        return Baselines()
    where = f"{source} [baseline]"
    axes = {axis: None for draft in found for axis in draft.axes}
    if len(given) != 1 or (axis := next(iter(given))) not in axes:
        raise UsageError(f"{where}: it needs one axis of the grid: {', '.join(axes) or 'none'}")
    known = list(dict.fromkeys(draft.axes[axis] for draft in found if axis in draft.axes))
    values = given[axis] if isinstance(given[axis], list) else [given[axis]]
    choices = [next((c for c in known if c == short(v)), None) for v in values]
    if not choices or None in choices or len(set(choices)) < len(choices):
        raise UsageError(
            f"{where}: {axis} is {shown(given[axis], 60)}; known are: {', '.join(known)}"
        )
    return Baselines(axis, tuple(choice for choice in choices if choice is not None))


def table(value: Any, where: str) -> Json:
    """The value, checked to be a table. Raises UsageError if it is not."""
    if not isinstance(value, dict):
        raise UsageError(f"{where}: it needs a table of settings, not {shown(value, 60)}")
    return value


def short(value: Any) -> str:
    """A value as part of a name: for a path its stem, for a list its items joined by "+"."""
    if isinstance(value, list):
        return "+".join(short(part) for part in value) or "none"
    if isinstance(value, str) and ("/" in value or value.startswith(SHIPPED)):
        return Path(value.removeprefix(SHIPPED)).stem
    return str(value)


def safe(label: str) -> str:
    """The label as a file name: letters, digits and `-_+=.`, without a leading dot or dash."""
    return re.sub(r"[^A-Za-z0-9_+=.-]+", "-", label).lstrip(".-") or "run"


def _axes(grid: Json, where: str) -> list[list[Draft]]:
    """The choices on each axis of the grid. A choice that is a table sets several settings."""
    axes = []
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{where}: {key} is {shown(values, 60)}; it needs a list of values")
        if all(isinstance(value, dict) for value in values):
            axes.append([_linked(key, n, value) for n, value in enumerate(values)])
        else:
            axes.append([_plain(key, value, alone=len(values) == 1) for value in values])
    return axes


def _plain(axis: str, value: Any, *, alone: bool) -> Draft:
    shown = short(value)
    return Draft("" if alone else f"{axis}-{shown}", {axis: value}, {axis: shown})


def _linked(axis: str, number: int, values: Json) -> Draft:
    rest = dict(values)
    label = str(rest.pop("name", f"{axis}-{number}"))
    return Draft(label, rest, {axis: label})


def _extra(values: Any, where: str) -> Draft:
    rest = dict(table(values, where))
    given = "_".join(f"{key}-{short(value)}" for key, value in rest.items() if key != "name")
    return Draft(str(rest.pop("name", given)), rest)


def _joined(parts: Sequence[Draft], source: str) -> Draft:
    values: Json = {}
    axes: dict[str, str] = {}
    for part in parts:
        twice = values.keys() & part.values.keys()
        if twice:
            raise UsageError(f"{source} [grid]: two axes set {', '.join(sorted(twice))}")
        values |= part.values
        axes |= part.axes
    return Draft("_".join(part.label for part in parts if part.label), values, axes)


def _with_seed(draft: Draft, seed: int | None, source: str) -> Draft:
    if seed is None:
        return draft
    if "straggler_seed" in draft.values:
        raise UsageError(f"{source}: repeat sets straggler_seed; leave it out of grid and points")
    return Draft(draft.label, {**draft.values, "straggler_seed": seed}, draft.axes, seed)


def _seeds(repeat: Any, source: str) -> list[int | None]:
    """The seeds of `repeat`; [None] if the file has no repeat."""
    if repeat is None:
        return [None]
    if isinstance(repeat, int) and not isinstance(repeat, bool) and 1 <= repeat <= MOST_POINTS:
        return list(range(repeat))
    good = isinstance(repeat, list) and all(type(seed) is int and seed >= 0 for seed in repeat)
    if not good or not repeat or len(set(repeat)) < len(repeat):
        raise UsageError(
            f"{source}: repeat is {shown(repeat, 60)}; it needs how many seeds, or a list of "
            "different seeds from 0"
        )
    return list(repeat)

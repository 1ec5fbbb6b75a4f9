"""An experiment: a file that names many runs, expanded to an ordered list of settings.

Owns: the file's keys, the grid, names of points, checks that need no data.
Does not know: how a point is run, folders, MPI, results.

    name = "schemes"                 # how = "run" is the default; repeat = 3: seeds 0, 1, 2
    repeat = [1, 2]
    [base]                           # settings of every point, as in `collage-mpi run`
    shards = ["shipped:fashion_demo.h5"]
    [grid]                           # every combination; the last key changes fastest
    side = [3, 4]
    scheme = [{ name = "none", scheme = "none" }, { name = "first", accept = "first" }]
    [[point]]                        # more points: base and these settings
    collage_ranks = 2
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from collage_mpi.config import RunSettings, read_settings_file
from collage_mpi.errors import CollageError, UsageError

HOWS = ("run", "simulate")
SIMULATED = ("images", "costs", "answers", "rows")  # keys for how = "simulate" alone
KEYS = ("name", "how", *SIMULATED, "repeat", "base", "grid", "point")
MOST_POINTS = 10_000
LONGEST_NAME = 180  # characters; file systems take 255 bytes, parts of a run want some
SHIPPED = "shipped:"
PATH_SETTINGS = ("shards", "single", "collage", "trace_file", "arrival_file")

Json = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """One run of an experiment.

    Attributes:
        index: its place in the list, from 0: what a Slurm array calls it by.
        name: its folder's name; unlike any other's, safe for every file system.
        settings: without `out`.
        ranks: world size that it needs, rank 0 included.
    """

    index: int
    name: str
    settings: RunSettings
    ranks: int

    def settings_in(self, out: Path) -> RunSettings:
        """The settings with `out`, the folder of this point in the experiment's."""
        return dataclasses.replace(self.settings, out=str(out / self.name))


@dataclass(frozen=True)
class Experiment:
    """What a file asks for.

    Attributes:
        name: of the experiment.
        how: one of HOWS.
        images: images a simulated run has; None for real runs, which have shards.
        points: in the order of the file.
        costs: file of what things take, or a real run's folder; None for the defaults.
        answers: file of `evaluate --save-answers`, "{side}" in it for the side; or None.
        rows: whether a simulated run has rows, or a summary alone.
    """

    name: str
    how: str
    images: int | None
    points: tuple[Point, ...]
    costs: str | None = None
    answers: str | None = None
    rows: bool = True

    @property
    def varied(self) -> tuple[str, ...]:
        """Settings that are not the same in all points, in the order of RunSettings."""
        rows = [point.settings.to_dict() for point in self.points]
        return tuple(
            key
            for key in rows[0]
            if len({json.dumps(row[key], sort_keys=True) for row in rows}) > 1
        )


@dataclass(frozen=True)
class _Choice:
    """Settings that go together, and what they are called in a point's name."""

    label: str
    values: Json


def read_experiment(path: Path) -> Experiment:
    """Read and expand a .toml (or .json) file.

    Raises:
        EnvironmentFault, DataFault: it cannot be read, or is no such file.
        UsageError: as `expand`.
    """
    return expand(read_settings_file(path), str(path))


def expand(document: Mapping[str, Any], source: str = "experiment") -> Experiment:
    """All points of an experiment, each checked as far as it can be without its data.

    Args:
        document: what the file holds.
        source: its name, for messages.

    Raises:
        UsageError: an unknown key, a value that does not fit, a point that cannot run.
    """
    _known(document, KEYS, source)
    how = _one_of(document.get("how", "run"), HOWS, f"{source}: how")
    images = _images(document.get("images"), how, source)
    name = document.get("name", Path(source).stem)
    if not isinstance(name, str) or not name:
        raise UsageError(f"{source}: name is {name!r}; it needs some text")
    base = _table(document.get("base", {}), f"{source} [base]")
    drafts = [_merged(point, seed, source) for point, seed in _draft_points(document, source)]
    points = []
    for index, draft in enumerate(drafts):
        label = draft.label or "run"
        values = {**base, **draft.values}
        points.append(_point(index, label, values, how, f"{source}, point {index} ({label})"))
    _check_distinct(points, source)
    costs, answers = (_path(document.get(key), key, how, source) for key in ("costs", "answers"))
    rows = document.get("rows", True)
    if not isinstance(rows, bool) or (how == "run" and not rows):
        raise UsageError(f"{source}: rows is true or false, and false for how = 'simulate' alone")
    return Experiment(name, how, images, tuple(points), costs, answers, rows)


def ranks_needed(settings: RunSettings) -> int:
    """World size that the settings need, rank 0 included.

    Raises:
        UsageError: the scheme cannot be placed, or a slow rank is outside the world.
    """
    world = settings.world_size
    settings.place(world)
    settings.check_slow_ranks(world)
    return world


def parse_indices(text: str, count: int) -> list[int]:
    """Read "3", "0-5" or "0-5,9" as point numbers, each below `count`, ascending.

    Raises:
        UsageError: not of that form, or no such point.
    """
    return parse_numbers(text, count, "--index", f"the experiment has points 0 to {count - 1}")


def parse_numbers(text: str, count: int, flag: str, known: str) -> list[int]:
    """Read "3", "0-5" or "0-5,9" as numbers below `count`, ascending.

    Args:
        flag: what was typed, for messages.
        known: which numbers there are, for messages.

    Raises:
        UsageError: not of that form, or no such number.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part)
        if match is None:
            raise UsageError(f"{flag} {text}: it needs a number, a range or a list, as in 0-5,9")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < count:
            raise UsageError(f"{flag} {text}: {known}")
        found.update(range(first, last + 1))
    return sorted(found)


def format_indices(indices: Sequence[int]) -> str:
    """The inverse of `parse_indices`, runs of numbers as ranges."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


# ---- the file's tables ------------------------------------------------------


def _draft_points(document: Mapping[str, Any], source: str) -> list[tuple[_Choice, int | None]]:
    """Every point without the base, with its seed; repeats of a point follow each other."""
    seeds = _seeds(document.get("repeat"), source)
    axes = _axes(_table(document.get("grid", {}), f"{source} [grid]"), f"{source} [grid]")
    extra = document.get("point", [])
    if not isinstance(extra, list):
        raise UsageError(f"{source}: point needs [[point]] tables, not {extra!r:.60}")
    in_grid = math.prod(len(axis) for axis in axes) if axes or not extra else 0
    total = (in_grid + len(extra)) * len(seeds)
    if total > MOST_POINTS:
        raise UsageError(f"{source}: {total:,} points; at most {MOST_POINTS:,} are sensible")
    chosen = [_joined(parts, source) for parts in itertools.product(*axes)] if in_grid else []
    chosen += [_extra(table, f"{source} [[point]] {n}") for n, table in enumerate(extra)]
    return [(choice, seed) for choice in chosen for seed in seeds]


def _axes(grid: Json, where: str) -> list[list[_Choice]]:
    """The grid's lists. An axis of tables sets several settings together."""
    axes = []
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"{where}: {key} is {values!r:.60}; it needs a list of values")
        if all(isinstance(value, dict) for value in values):
            axes.append([_linked(key, n, value) for n, value in enumerate(values)])
        else:
            single = len(values) == 1
            axes.append([_Choice("" if single else f"{key}-{_short(v)}", {key: v}) for v in values])
    return axes


def _linked(axis: str, number: int, table: Json) -> _Choice:
    rest = dict(table)
    return _Choice(str(rest.pop("name", f"{axis}-{number}")), rest)


def _extra(table: Any, where: str) -> _Choice:
    rest = dict(_table(table, where))
    given = "_".join(f"{key}-{_short(value)}" for key, value in rest.items() if key != "name")
    return _Choice(str(rest.pop("name", given)), rest)


def _joined(parts: Sequence[_Choice], source: str) -> _Choice:
    values: Json = {}
    for part in parts:
        twice = values.keys() & part.values.keys()
        if twice:
            raise UsageError(f"{source} [grid]: two axes set {', '.join(sorted(twice))}")
        values |= part.values
    return _Choice("_".join(part.label for part in parts if part.label), values)


def _merged(choice: _Choice, seed: int | None, source: str) -> _Choice:
    """The point with the seed that `repeat` gives it."""
    if seed is None:
        return choice
    if "straggler_seed" in choice.values:
        raise UsageError(f"{source}: repeat sets straggler_seed; leave it out of grid and points")
    label = "_".join(part for part in (choice.label, f"seed-{seed}") if part)
    return _Choice(label, {**choice.values, "straggler_seed": seed})


def _seeds(repeat: Any, source: str) -> list[int | None]:
    """Seeds of the injected service times; [None] where the file has no repeat."""
    if repeat is None:
        return [None]
    if isinstance(repeat, int) and not isinstance(repeat, bool) and 1 <= repeat <= MOST_POINTS:
        return list(range(repeat))
    good = isinstance(repeat, list) and all(type(seed) is int and seed >= 0 for seed in repeat)
    if not good or not repeat or len(set(repeat)) < len(repeat):
        raise UsageError(
            f"{source}: repeat is {repeat!r:.60}; it needs how many seeds, or a list of "
            "different seeds from 0"
        )
    return list(repeat)


# ---- one point --------------------------------------------------------------


def _point(index: int, label: str, values: Json, how: str, where: str) -> Point:
    if "out" in values:
        raise UsageError(f"{where}: out is given on the command line: --out DIR")
    try:
        for key in values.keys() & set(PATH_SETTINGS):
            values[key] = _with_shipped(values[key])
        settings = RunSettings.from_mapping(values, where)
        if how == "run":
            dataclasses.replace(settings, out="set later").require_inputs()
        ranks = ranks_needed(settings)
    except CollageError as error:
        told = str(error)
        raise UsageError(told if told.startswith(where) else f"{where}: {told}") from error
    return Point(index, _safe(label), settings, ranks)


def _with_shipped(value: Any) -> Any:
    """`shipped:NAME` as the path of a file that comes with the package."""
    if isinstance(value, list):
        return [_with_shipped(part) for part in value]
    if not isinstance(value, str) or not value.startswith(SHIPPED):
        return value
    data = Path(str(files("collage_mpi") / "data"))
    names = sorted(p.name for p in data.iterdir() if p.suffix in (".h5", ".safetensors", ".npy"))
    name = value.removeprefix(SHIPPED)
    if name not in names:
        raise UsageError(f"{value}: the package ships {', '.join(names)}")
    return str(data / name)


def _check_distinct(points: Sequence[Point], source: str) -> None:
    named: dict[str, int] = {}
    same: dict[str, int] = {}
    for point in points:
        if len(point.name) > LONGEST_NAME:
            raise UsageError(
                f"{source}: the name of point {point.index} has {len(point.name)} characters, more "
                f"than {LONGEST_NAME}: give shorter ones, with name = ... in tables"
            )
        # Case does not tell folders apart on every file system.
        for kind, key, seen in (
            ("name", point.name.lower(), named),
            ("settings", point.settings.digest(), same),
        ):
            if key in seen:
                raise UsageError(
                    f"{source}: points {seen[key]} and {point.index} have the same {kind} "
                    f"({point.name}): remove one"
                    + (", or name them with name = ..." if kind == "name" else "")
                )
            seen[key] = point.index


def _short(value: Any) -> str:
    """A value as part of a name: of paths the stem, of lists the parts."""
    if isinstance(value, list):
        return "+".join(_short(part) for part in value) or "none"
    if isinstance(value, str) and ("/" in value or value.startswith(SHIPPED)):
        return Path(value.removeprefix(SHIPPED)).stem
    return str(value)


def _safe(label: str) -> str:
    """Letters, digits and `-_+=.` only; no leading dot or dash."""
    return re.sub(r"[^A-Za-z0-9_+=.-]+", "-", label).lstrip(".-") or "run"


# ---- checks of shape --------------------------------------------------------


def _known(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise UsageError(f"{where}: unknown key {key!r}{hint} Known: {', '.join(known)}")


def _table(value: Any, where: str) -> Json:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: it needs a table of settings, not {value!r:.60}")
    return value


def _one_of(value: Any, known: Sequence[str], where: str) -> str:
    if value not in known:
        raise UsageError(f"{where} is {value!r:.60}; known are: {', '.join(known)}")
    return str(value)


def _images(value: Any, how: str, source: str) -> int | None:
    if how == "run":
        if value is not None:
            raise UsageError(f"{source}: images is for how = 'simulate'; a run has limit")
        return None
    if type(value) is not int or value < 1:
        raise UsageError(f"{source}: how = 'simulate' needs images, a number from 1")
    return value


def _path(value: Any, key: str, how: str, source: str) -> str | None:
    if value is None:
        return None
    if how == "run":
        raise UsageError(f"{source}: {key} is for how = 'simulate'; a run has its own")
    if not isinstance(value, str) or not value:
        raise UsageError(f"{source}: {key} is {value!r:.60}; it needs a path")
    return str(_with_shipped(value)) if "{side}" not in value else value

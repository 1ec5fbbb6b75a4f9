"""Reads an experiment's file, and expands it to an ordered list of runs with their settings.

name = "schemes"                 # how = "run" is the default
repeat = [1, 2]                  # seeds; repeat = 3 means 0, 1, 2
[baseline]                       # points.csv compares each point with the point of this choice
scheme = "none"
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
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.errors import CollageError, UsageError
from collage_mpi.experiments.grid import (
    Baselines,
    Draft,
    drafts,
    read_baselines,
    safe,
    table,
)
from collage_mpi.settings.files import read_settings_file
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.fields import Settings, names, setting
from collage_mpi.system.printable import did_you_mean, ranges_in, shown

if TYPE_CHECKING:
    from collage_mpi.simulation.costs import Costs

TABLES = ("repeat", "baseline", "base", "grid", "point")  # keys that expand to the points
LONGEST_NAME = 180  # characters; file systems allow 255 bytes, and names in a run need some more

Json = dict[str, Any]


@dataclass(frozen=True, repr=False)
class Head(Settings):
    """The keys of a file that apply to the whole experiment."""

    name: str | None = setting(None, "what the experiment is called", unset="the file's name")
    how: str = setting("run", "how the points are run", choices=("run", "simulate"))
    images: int | None = setting(None, "images of a run", at_least=1, at_most=math.inf)
    groups: int | None = setting(
        None, "in their place: groups beside the warm-up", at_least=1, at_most=math.inf
    )
    costs: str | None = setting(None, "folder of a real run, whose costs are used")
    answers: str | None = setting(
        None, 'file of `evaluate --save-answers`; "{side}" for the side', shipped=True
    )
    rows: bool = setting(True, "write the rows of a simulated run, not only a summary")

    def _check(self) -> None:
        for key in ("name", "costs", "answers"):
            if getattr(self, key) == "":
                raise UsageError(f"{key} is empty; it needs some text, or must be left out")
        simulated = ("images", "groups", "costs", "answers")
        given = [key for key in simulated if getattr(self, key) is not None]
        given += [] if self.rows else ["rows"]
        if self.how == "run" and given:
            raise UsageError(f"{given[0]} is for how = 'simulate' alone")
        if self.how == "simulate" and len({"images", "groups"}.intersection(given)) != 1:
            raise UsageError("how = 'simulate' needs images, or groups beside the warm-up")

    def images_of(self, settings: RunSettings) -> int | None:
        """The number of images of a simulated point; None for real runs, whose shards decide."""
        if self.groups is None:
            return self.images
        return (self.groups + settings.warm_groups) * settings.group_size


@dataclass(frozen=True)
class Point:
    """One run of an experiment.

    Attributes:
        index: its number in the list, from 0; also its index in a Slurm array.
        name: of its folder; unique, and valid on every file system.
        settings: without `out`.
        ranks: number of ranks that it needs, including rank 0.
        images: number of images of a simulated run; None for real runs, which have shards.
        answers: file of `evaluate --save-answers`, in which "{side}" stands for the side; or None.
        costs: the costs, or a file or a real run's folder that has them; None for the defaults.
        draft: its choices on the axes of the grid, and its seed.
        family: its name without the seed. Runs of one family are repeats.
    """

    index: int
    name: str
    settings: RunSettings
    ranks: int
    images: int | None
    answers: str | None
    draft: Draft
    family: str
    costs: str | Costs | None = None

    def settings_in(self, out: Path) -> RunSettings:
        """The settings with `out`: the point's folder in the folder of the experiment."""
        return dataclasses.replace(self.settings, out=str(out / self.name))


@dataclass(frozen=True)
class Experiment:
    """The content of an experiment file.

    Attributes:
        name: of the experiment.
        how: run or simulate.
        points: in the order of the file.
        baselines: the points with which others are compared.
        rows: whether a simulated run writes rows; if not, it writes only a summary.
    """

    name: str
    how: str
    points: tuple[Point, ...]
    baselines: Baselines
    rows: bool

    @cached_property  # used for each row of a table of thousands
    def varied(self) -> tuple[str, ...]:
        """Settings that differ between points, in the order of RunSettings."""
        rows = [point.settings.to_dict() for point in self.points]
        return tuple(
            key
            for key in rows[0]
            if len({json.dumps(row[key], sort_keys=True) for row in rows}) > 1
        )


def read_experiment(path: Path, sets: Sequence[str] = ()) -> Experiment:
    """Read and expand a .toml or .json file.

    Args:
        path: the file.
        sets: KEY=VALUE texts, which replace values of [base] or keys outside the tables.

    Raises:
        EnvironmentFault, DataFault: the file cannot be read, or has another format.
        UsageError: as `expand`; also if a text of `sets` has another form, or its key is set by the
            grid or a point.
    """
    document = read_settings_file(path)
    for text in sets:
        document = _with_set(document, text, str(path))
    return expand(document, str(path))


def _with_set(document: Mapping[str, Any], text: str, source: str) -> Json:
    """The document with KEY=VALUE set. The value is parsed as JSON if possible."""
    key, equals, raw = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: it needs KEY=VALUE, as in --set trace_file=times.npy")
    try:
        value = json.loads(raw)
    except ValueError:
        value = raw
    if key in (*names(Head), "repeat") and key != "name":
        other = {"images": "groups", "groups": "images"}.get(key)
        return {**{k: v for k, v in document.items() if k != other}, key: value}
    for draft in drafts({**document, "repeat": None}, source):
        if key in draft.values:
            raise UsageError(f"--set {text}: point {draft.label} of {source} sets {key} itself")
    base = table(document.get("base", {}), f"{source} [base]")
    return {**document, "base": {**base, key: value}}


def expand(document: Mapping[str, Any], source: str = "experiment") -> Experiment:
    """Expand a document to an experiment. Each point is checked as far as possible without its
    data.

    Args:
        document: the content of the file.
        source: names the file in messages.

    Raises:
        UsageError: a key is unknown, a value is invalid, or a point cannot run.
    """
    _known(document, (*names(Head), *TABLES), source)
    said = {key: value for key, value in document.items() if key not in TABLES}
    with _named(source):
        head = Head.from_mapping(said, source)
    base = table(document.get("base", {}), f"{source} [base]")
    found = drafts(document, source)
    baselines = read_baselines(document, found, source)
    points = [_point(index, draft, base, head, source) for index, draft in enumerate(found)]
    _check_distinct(points, source)
    name = head.name or Path(source).stem
    return Experiment(name, head.how, tuple(points), baselines, head.rows)


def ranks_needed(settings: RunSettings) -> int:
    """The number of ranks that the settings need, including rank 0.

    Raises:
        UsageError: there are several teams, the scheme cannot be placed, or a slow rank is not in
            the world.
    """
    if settings.teams > 1:
        raise UsageError(
            f"teams is {settings.teams}; it needs 1: runs of an experiment have one coordinator"
        )
    world = settings.world_size
    settings.place(world)
    settings.check_slow_ranks(world)
    return world


def parse_indices(text: str, count: int) -> list[int]:
    """Parse "3", "0-5" or "0-5,9" to point numbers, ascending.

    Args:
        count: number of points.

    Raises:
        UsageError: the text has another form, or there is no such point.
    """
    return parse_numbers(text, count, "--index", f"the experiment has points 0 to {count - 1}")


def parse_numbers(text: str, count: int, flag: str, known: str) -> list[int]:
    """Parse "3", "0-5" or "0-5,9" to numbers below `count`, ascending.

    Args:
        flag: the flag of the text, for messages.
        known: the valid numbers in words, for messages.

    Raises:
        UsageError: the text has another form, or a number is not below `count`.
    """
    found = ranges_in(text)
    if found is None:
        raise UsageError(f"{flag} {text}: it needs a number, a range or a list, as in 0-5,9")
    if any(not part or part[-1] >= count for part in found):
        raise UsageError(f"{flag} {text}: {known}")
    return sorted({*chain(*found)})


# ---- one point --------------------------------------------------------------


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Raises faults of the block as UsageError, with the place in the file in front of the
    message."""
    try:
        yield
    except CollageError as error:
        told = str(error)
        raise UsageError(told if told.startswith(where) else f"{where}: {told}") from error


def _point(index: int, draft: Draft, base: Json, head: Head, source: str) -> Point:
    family = draft.label or ("" if draft.seed is not None else "run")
    seed = "" if draft.seed is None else f"seed-{draft.seed}"
    label = "_".join(part for part in (family, seed) if part)
    where = f"{source}, point {index} ({label})"
    values = {**base, **draft.values}
    if "out" in values:
        raise UsageError(f"{where}: out is given on the command line: --out DIR")
    with _named(where):
        if isinstance(values.get("singles"), str):
            values["singles"] = _singles(values["singles"], values.get("side", RunSettings.side))
        settings = RunSettings.from_mapping(values, where)
        if head.how == "run":
            dataclasses.replace(settings, out="set later").require_inputs()
        ranks = ranks_needed(settings)
    images, name = head.images_of(settings), family or "run"
    found = (index, safe(label), settings, ranks, images, head.answers, draft, name)
    return Point(*found, head.costs)


def _singles(text: str, side: Any) -> Any:
    """The number of single ranks for "N" or "N+2", where N is the number of cells."""
    match = re.fullmatch(r"\s*N\s*(?:\+\s*(\d{1,6}))?\s*", text)
    if match is None or type(side) is not int:
        raise UsageError(f"singles is {text!r}; it needs a number, or N+2 for two more than cells")
    return side * side + int(match[1] or 0)


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


def _known(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            hint = did_you_mean(str(key), known) or f". Known: {', '.join(known)}"
            raise UsageError(f"{where}: unknown key {shown(key)}{hint}")

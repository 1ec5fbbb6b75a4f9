"""An experiment: a file that names many runs, expanded to an ordered list of settings.

name = "schemes"                 # how = "run" is the default; repeat = 3: seeds 0, 1, 2
repeat = [1, 2]
[baseline]                       # what points.csv compares with, all else the same
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
    from collage_mpi.simulation.simulator import SimulatedJob

TABLES = ("repeat", "baseline", "base", "grid", "point")  # keys that expand to the points
LONGEST_NAME = 180  # characters; file systems take 255 bytes, parts of a run want some

Json = dict[str, Any]


@dataclass(frozen=True, repr=False)
class Head(Settings):
    """The keys of a file that are about the whole experiment."""

    name: str | None = setting(None, "what the experiment is called", unset="the file's name")
    how: str = setting("run", "how the points are run", choices=("run", "simulate"))
    images: int | None = setting(None, "images of a run", at_least=1, at_most=math.inf)
    groups: int | None = setting(
        None, "in their place: groups beside the warm-up", at_least=1, at_most=math.inf
    )
    costs: str | None = setting(None, "file of costs, or the folder of a real run", shipped=True)
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
        """Images of a point; None for real runs, whose shards decide it."""
        if self.groups is None:
            return self.images
        return (self.groups + settings.warm_groups) * settings.group_size


@dataclass(frozen=True)
class Point:
    """One run of an experiment.

    Attributes:
        index: its place in the list, from 0, as used for a Slurm array.
        name: its folder's name; unique, and safe for every file system.
        settings: without `out`.
        ranks: world size that it needs, rank 0 included.
        images: of a simulated run; None for real runs, which have shards.
        answers: file of `evaluate --save-answers`, "{side}" in it for the side; or None.
        costs: the costs, or the file or real run's folder that holds them; None for the
            defaults.
        draft: its place in the grid, and its seed.
        family: its name without the seed: runs of one family are repeats.
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
        """The settings with `out`, the point's folder in the experiment's."""
        return dataclasses.replace(self.settings, out=str(out / self.name))


@dataclass(frozen=True)
class Experiment:
    """The content of an experiment file.

    Attributes:
        name: of the experiment.
        how: run or simulate.
        points: in the order of the file.
        baselines: what points are compared with.
        rows: whether a simulated run writes rows, or only a summary.
    """

    name: str
    how: str
    points: tuple[Point, ...]
    baselines: Baselines
    rows: bool

    @cached_property  # asked for at each row of a table of thousands
    def varied(self) -> tuple[str, ...]:
        """Settings that differ between points, in the order of RunSettings."""
        rows = [point.settings.to_dict() for point in self.points]
        return tuple(
            key
            for key in rows[0]
            if len({json.dumps(row[key], sort_keys=True) for row in rows}) > 1
        )


def read_experiment(path: Path, sets: Sequence[str] = ()) -> Experiment:
    """Read and expand a .toml, .yaml or .json file.

    Args:
        path: the file.
        sets: KEY=VALUE that replace values of its [base], or of its keys beside the tables.

    Raises:
        EnvironmentFault, DataFault: the file cannot be read, or has another format.
        UsageError: as `expand`; also for a `sets` of a wrong form, or of a key that the grid
            or a point sets.
    """
    document = read_settings_file(path)
    for text in sets:
        document = _with_set(document, text, str(path))
    return expand(document, str(path))


def _with_set(document: Mapping[str, Any], text: str, source: str) -> Json:
    """The document with KEY=VALUE in it. The value is read as JSON if it is JSON."""
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
    """All points of an experiment, each checked as far as it can be without its data.

    Args:
        document: what the file holds.
        source: its name, for messages.

    Raises:
        UsageError: an unknown key, a value that does not fit, a point that cannot run.
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


def repeats(job: SimulatedJob, seeds: Sequence[int]) -> Experiment:
    """One simulation as an experiment: one run a seed, of service times and of Poisson arrivals.

    Raises:
        UsageError: its scheme cannot be placed.
    """
    ranks = ranks_needed(job.settings)
    points = []
    for index, seed in enumerate(seeds):
        drawn = dataclasses.replace(job.settings, out="", straggler_seed=seed)
        if drawn.arrivals == "poisson":
            drawn = dataclasses.replace(drawn, arrival_seed=seed)
        draft = Draft("", {}, {}, seed)
        found = (f"seed-{seed}", drawn, ranks, job.images, job.answers, draft, "run", job.costs)
        points.append(Point(index, *found))
    return Experiment("seeds", "simulate", tuple(points), Baselines(), job.rows)


def ranks_needed(settings: RunSettings) -> int:
    """World size that the settings need, rank 0 included.

    Raises:
        UsageError: several teams; the scheme cannot be placed, or a slow rank is outside the world.
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
    """Read "3", "0-5" or "0-5,9" as point numbers, each below `count`, ascending.

    Raises:
        UsageError: another form, or no such point.
    """
    return parse_numbers(text, count, "--index", f"the experiment has points 0 to {count - 1}")


def parse_numbers(text: str, count: int, flag: str, known: str) -> list[int]:
    """Read "3", "0-5" or "0-5,9" as numbers below `count`, ascending.

    Args:
        flag: the flag that was typed, for messages.
        known: the valid numbers, for messages.

    Raises:
        UsageError: another form, or no such number.
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
    """Adds the place in the file to the messages of faults."""
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
    """`N+2` as a number of single ranks, where N is the number of cells."""
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

"""`collage-mpi shards`: describes and verifies shards, and adds cells to copies of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from collage_mpi.commands.parser import Command, Commands
from collage_mpi.encoding.grid import MIN_SIDE, Grid
from collage_mpi.errors import DataFault, ExitCode, UsageError
from collage_mpi.settings.flags import Arguments, switch
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.printable import say, some_of


@dataclass(frozen=True, kw_only=True)
class ReadArguments(Arguments):
    """The arguments of `shards inspect` and `shards verify`."""

    paths: tuple[Path, ...] = setting(
        REQUIRED,
        "shards, folders of pictures or any other input of `run` (docs/inputs.md)",
        positional=True,
        shipped=True,
    )
    json: bool = switch("print JSON, one object a line")


@dataclass(frozen=True, kw_only=True)
class AddCellsArguments(Arguments):
    """The arguments of `shards add-cells`."""

    paths: tuple[Path, ...] = setting(
        REQUIRED, "shard files, or folders that hold shard files", positional=True, shipped=True
    )
    cell_px: int = setting(
        REQUIRED,
        "height and width of a cell in pixels, as the collage network needs it",
        metavar="N",
    )
    out: Path = setting(REQUIRED, "folder for the copies", metavar="DIR")


def _each(one: Callable[[Path, bool], bool], args: ReadArguments) -> int:
    """Call `one` on each shard. Returns 0, or the exit code DATA if it returned False for any."""
    from collage_mpi.shards.inputs import expand_paths

    results = [one(path, args.json) for path in expand_paths(args.paths)]
    return int(ExitCode.COMPLETE if all(results) else ExitCode.DATA)


def add_cells(args: AddCellsArguments) -> int:
    """Write copies of the shards with cells. Returns 0.

    Raises:
        UsageError: the images are no larger than a cell.
        DataFault, EnvironmentFault: a shard is damaged or cannot be read or written.
    """
    from collage_mpi.encoding.collage import Encoder
    from collage_mpi.shards import cells
    from collage_mpi.shards.inputs import expand_paths
    from collage_mpi.shards.reader import inspect_sources

    px = args.cell_px
    for path in expand_paths(args.paths):
        shape = inspect_sources([path])[0].shape
        encoder = Encoder(Grid(MIN_SIDE, px), shape)
        if not encoder.resizes:
            raise UsageError(
                f"{path}: its images already have {px} x {px} pixels, the size of a cell; no cells "
                "are needed"
            )
        copy, count = cells.add_cells(path, args.out, px, encoder.shrink)
        say(f"{copy}: {count:,} images of {shape[0]} x {shape[1]} with cells of {px} x {px}")
    return 0


def inspect_one(path: Path, as_json: bool) -> bool:
    """Print what a shard holds; False if it is damaged. Raises EnvironmentFault."""
    from collage_mpi.shards.reader import inspect_sources
    from collage_mpi.shards.source import ANY_ITEMS

    try:
        [info] = inspect_sources([path], ANY_ITEMS)
    except DataFault as fault:
        say(json.dumps({"path": str(path), "problems": [str(fault)]}) if as_json else str(fault))
        return False
    if as_json:
        print(json.dumps(info.to_json()))
        return True
    names = info.class_names
    say(str(info.path))
    dtype = "" if info.dtype == "uint8" else f", {info.dtype}"
    say(f"  images       {info.count:,} of {' x '.join(map(str, info.shape))}{dtype}")
    if info.fit is not None:
        say(f"  stored       as encoded files, decoded when read: {info.fit}")
    if info.layout is not None and info.storage == "foreign":
        _tell_layout(info.layout, info.path)
    say(f"  labels       {'yes' if info.has_labels else 'no'}")
    say(f"  classes      {f'{len(names)}: ' + some_of(names, 12) if names else 'not named'}")
    if info.cell_sizes:
        say(f"  cells        stored for {', '.join(map(str, info.cell_sizes))} px")
    say(f"  source       {info.source or 'not given'}")
    say(f"  fingerprint  {info.fingerprint}")
    return True


def _tell_layout(layout: dict[str, Any], path: Path) -> None:
    from collage_mpi.shards.foreign import LABEL_NAMES
    from collage_mpi.shards.schema import remake_command

    say("  format       another program's HDF5, understood as:")
    say(f"    images     dataset {layout['images']}, axes {layout['axes']}")
    found = layout["labels"] or f"none (looked for {', '.join(LABEL_NAMES)})"
    say(f"    labels     {f'dataset {found}' if layout['labels'] else found}")
    if layout["unused"]:
        say(f"    not used   {', '.join(layout['unused'])}")
    say("  integrity    not checked: the file has no checksums. To make shards that have them:")
    say(f"               {remake_command([path])}")


def verify_one(path: Path, as_json: bool) -> bool:
    """Print a shard's problems; False if there are any. Raises EnvironmentFault."""
    from collage_mpi.shards.reader import verify_source

    problems = verify_source(path)
    if as_json:
        print(json.dumps({"path": str(path), "problems": problems}))
    else:
        say(f"{path}: {'good' if not problems else 'BAD'}")
        for problem in problems:
            say(f"  {problem}")
    return not problems


COMMAND = Commands(
    "TASK",
    {
        "inspect": Command(
            partial(_each, inspect_one),
            ReadArguments,
            "print what the shards hold: images, shape, classes, source, fingerprint",
        ),
        "verify": Command(
            partial(_each, verify_one),
            ReadArguments,
            "read everything and check it: checksums of files and rows, structure, labels",
        ),
        "add-cells": Command(
            add_cells,
            AddCellsArguments,
            "copy the shards and store each image's cell next to it, so that jobs need not shrink "
            "the images",
        ),
    },
)

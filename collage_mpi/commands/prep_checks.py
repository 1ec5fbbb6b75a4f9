"""`collage-mpi prep inspect` and `prep verify`: describe and check shards and other inputs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from collage_mpi.commands.parser import Command
from collage_mpi.errors import DataFault, ExitCode
from collage_mpi.settings.flags import Arguments, switch
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.printable import say, some_of


@dataclass(frozen=True, kw_only=True)
class ReadArguments(Arguments):
    """The arguments of `prep inspect` and `prep verify`."""

    paths: tuple[Path, ...] = setting(
        REQUIRED,
        "shards, folders of pictures or any other input of `run` (docs/inputs.md)",
        positional=True,
        shipped=True,
    )
    json: bool = switch("print JSON, one object a line")


def _each(one: Callable[[Path, bool], bool], args: ReadArguments) -> int:
    """Call `one` on each shard. Returns 0, or the exit code DATA if it returned False for any."""
    from collage_mpi.shards.inputs import expand_paths

    results = [one(path, args.json) for path in expand_paths(args.paths)]
    return int(ExitCode.COMPLETE if all(results) else ExitCode.DATA)


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
    say(f"  source       {info.source or 'not given'}")
    say(f"  fingerprint  {info.fingerprint}")
    return True


def _tell_layout(layout: dict[str, Any], path: Path) -> None:
    from collage_mpi.shards.schema import remake_command

    say("  format       another program's HDF5, understood as:")
    say(f"    images     dataset {layout['images']}, axes {layout['axes']}")
    found = layout["labels"]
    say(f"    labels     {'none found' if found is None else f'dataset {found}'}")
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


INSPECT = Command(
    partial(_each, inspect_one),
    ReadArguments,
    "print what an input holds: images, shape, classes, source, fingerprint",
)
VERIFY = Command(
    partial(_each, verify_one),
    ReadArguments,
    "read an input whole and check it: checksums of files and rows, structure, labels",
)

"""`collage-mpi prep`: makes shards from pictures, from HDF5 and IDX files of other programs, and
from any input, with another size, order or other labels; describes and verifies inputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from collage_mpi.commands.parser import Command, Commands
from collage_mpi.errors import DataFault, ExitCode
from collage_mpi.prep.arguments import (
    Hdf5Arguments,
    IdxArguments,
    ImagesArguments,
    ReadArguments,
    ShardsArguments,
    TarArguments,
)
from collage_mpi.system.printable import say, some_of


def _make(kind: str, args: Any) -> int:
    """Make shards by the function of `prep.work` for this kind of input. Returns its exit code."""
    return int(getattr(import_module("collage_mpi.prep.work"), f"from_{kind}")(args))


def _each(one: Callable[[Path, bool], bool], args: ReadArguments) -> int:
    """Call `one` on each shard. Returns 0, or the exit code DATA if it returned False for any."""
    from collage_mpi.shards.inputs import expand_paths

    results = [one(path, args.json) for path in expand_paths(args.paths)]
    return int(ExitCode.COMPLETE if all(results) else ExitCode.DATA)


def inspect_one(path: Path, as_json: bool) -> bool:
    """Print what a shard holds; False if it is damaged. Raises EnvironmentFault."""
    from collage_mpi.shards.reader import inspect_sources
    from collage_mpi.shards.schema import remake_command
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
        say("  format       another program's HDF5, understood as:")
        say(f"    images     dataset {info.layout.images}, axes {info.layout.axes}")
        found = info.layout.labels
        say(f"    labels     {f'dataset {found}' if found else 'none found'}")
        say("  integrity    not checked: the file has no checksums. To make shards that have them:")
        say(f"               {remake_command([path])}")
    say(f"  labels       {'yes' if info.has_labels else 'no'}")
    say(f"  classes      {f'{len(names)}: ' + some_of(names, 12) if names else 'not named'}")
    say(f"  source       {info.source or 'not given'}")
    say(f"  fingerprint  {info.fingerprint}")
    return True


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
    "KIND",
    {
        "images": Command(
            partial(_make, "folder"),
            ImagesArguments,
            "make shards from folders of JPEG, PNG and other pictures, one folder a class",
        ),
        "tar": Command(
            partial(_make, "tars"),
            TarArguments,
            "make shards from tar files of pictures (WebDataset's layout)",
        ),
        "hdf5": Command(
            partial(_make, "hdf5"), Hdf5Arguments, "make shards from other programs' HDF5 files"
        ),
        "shards": Command(
            partial(_make, "shards"),
            ShardsArguments,
            "make shards from any input of `run`, with another size or order, or other labels",
        ),
        "idx": Command(
            partial(_make, "idx"),
            IdxArguments,
            "make shards from IDX files, gzip or plain (such as MNIST)",
        ),
        "inspect": Command(
            partial(_each, inspect_one),
            ReadArguments,
            "print what an input holds: images, shape, classes, source, fingerprint",
        ),
        "verify": Command(
            partial(_each, verify_one),
            ReadArguments,
            "read an input whole and check it: checksums of files and rows, structure, labels",
        ),
    },
)

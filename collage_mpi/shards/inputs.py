"""Finds the source class that reads a path: one of this package, or one of another package."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, UsageError
from collage_mpi.plugins import Names
from collage_mpi.shards.guard import examine_shards
from collage_mpi.shards.listing import is_picture
from collage_mpi.shards.remote import HOW, path_of, url_of
from collage_mpi.shards.schema import ShardInfo, split_part
from collage_mpi.shards.source import ReadAs, Source
from collage_mpi.system.files import reading

HOMES = {  # name of a source -> its class, in the order in which `takes` is called
    "images": "guard.OpenShard",
    "tar": "listing.TarSource",
    "list": "listing.ListSource",
    "parquet": "tables.ParquetSource",
    "zarr": "zarrs.ZarrSource",
    "folder": "listing.FolderSource",
    "foreign": "guard.ForeignShard",
}
HDF5 = ("images", "foreign")  # the content of the file decides which
IN_FOLDERS = (".h5", ".tar", ".parquet")  # in a folder, each such file is a source
SOURCES = Names("source", "collage_mpi.sources", Source, HOMES)  # type: ignore[type-abstract]


@cache
def source_class(name: str) -> type[Source]:
    """The source class with this name.

    Raises:
        UsageError: the name is unknown.
        EnvironmentFault: the package that adds the source cannot be loaded.
    """
    if name in HOMES:
        module, _, of = HOMES[name].partition(".")
        return getattr(import_module(f"collage_mpi.shards.{module}"), of)
    added = SOURCES.load(name)
    if added is None:
        raise UsageError(f"source {name!r} is not known; known are {', '.join(SOURCES)}")
    return added


def source_of(path: Path | str) -> tuple[type[Source], Path]:
    """The source class that reads a path, and the path without NAME. `NAME:PATH` names the source.
    A path that no other source takes is read as HDF5.
    """
    named = re.fullmatch(r"([a-z][a-z0-9_-]+):([^:].*)", str(path), re.DOTALL)
    if named and not url_of(path) and not os.path.lexists(path):
        return source_class(named[1]), path_of(named[2])
    path = path_of(path)
    own = (source_class(name) for name in HOMES if name not in HDF5[1:])
    return next((one for one in own if one.takes(path)), source_class("images")), path


def place_of(path: Path | str) -> Path:
    """The file or folder of a source, without NAME: and ::PART."""
    return split_part(source_of(path)[1])[0]


def open_source(info: ShardInfo) -> Source:
    """Open a source, given its description.

    Raises:
        EnvironmentFault: the source can no longer be read.
        DataFault: the source has been replaced or changed.
    """
    return source_class(info.storage)(info)


def examine(paths: Sequence[Path | str], read_as: ReadAs) -> list[ShardInfo | CollageError]:
    """The description of each source, or the fault for which it cannot be used."""
    pairs = [source_of(path) for path in paths]
    local = [of is source_class("images") and not url_of(path) for of, path in pairs]
    shards = iter(
        examine_shards([path for (_, path), own in zip(pairs, local, strict=True) if own])
    )
    found = [
        next(shards) if own else _described(of, path, read_as)
        for (of, path), own in zip(pairs, local, strict=True)
    ]
    return [*map(_as_pictures, found)] if read_as.pictures else found


def _as_pictures(found: ShardInfo | CollageError) -> ShardInfo | CollageError:
    if isinstance(found, CollageError) or found.is_picture:
        return found
    why = f"its items are {found.dtype} {found.shape}; needed here: uint8 pictures (H, W, 1 or 3)"
    return DataFault(". ".join(filter(None, (f"{found.path}: {why}", found.conversion))))


def _described(source: type[Source], path: Path, read_as: ReadAs) -> ShardInfo | CollageError:
    if url_of(path) and not source.remote:
        return EnvironmentFault(f"{path}: this source cannot be read by URL: {HOW}")
    try:
        return source.describe(path, read_as)
    except (DataFault, EnvironmentFault) as fault:
        return fault


def ids_of(info: ShardInfo) -> list[str] | None:
    """The ids of the images of a source, in the order of its rows; None if it has none.

    Raises:
        DataFault, EnvironmentFault: the ids cannot be read.
    """
    found = source_class(info.storage).ids(info)
    return None if found is None else list(found)


def expand_paths(paths: Sequence[Path | str]) -> list[Path]:
    """One path for each source.

    A folder stands for its sorted `*.h5` files. If it has none, it stands for its `*.tar` or
    `*.parquet` files, and if it has none of these either, for the pictures below it. A `.sha256`
    file beside its shard is skipped, because a pattern such as `train*` of the shell includes it.

    Raises:
        EnvironmentFault: there is no path, a folder has no images, or a source is given twice.
    """
    files: list[Path] = []
    for path in map(path_of, paths):
        if path.suffix == ".sha256" and os.path.isfile(path.with_suffix("")):
            continue
        # os.path.isdir does not raise for names that are too long and for cycles of links
        files += _in_folder(path) if os.path.isdir(path) else [path]
    if not files:
        raise EnvironmentFault("no shard given; needed: .h5 files, folders or other sources")
    seen: set[str] = set()
    for file in files:
        real = os.path.realpath(source_of(file)[1])  # Path.resolve raises for cycles of links
        if real in seen:
            raise EnvironmentFault(f"{file}: given twice; each source may appear once")
        seen.add(real)
    return files


def _in_folder(folder: Path) -> list[Path]:
    if source_of(folder)[0].name != "folder":
        return [folder]
    with reading(folder), os.scandir(folder) as entries:
        shown = (entry.name for entry in entries if not entry.name.startswith("."))
        inside = sorted(folder / name for name in shown if name.lower().endswith(IN_FOLDERS))
    found = {end: [one for one in inside if one.name.lower().endswith(end)] for end in IN_FOLDERS}
    found = {end: files for end, files in found.items() if files}
    if found:
        ends = list(found)
        if len(ends) > 1 and ends[0] != ".h5":
            raise EnvironmentFault(
                f"{folder}: holds both {ends[0]} and {ends[1]} files: name those of one sort, such "
                f"as {found[ends[0]][0]}"
            )
        _check_complete(found[ends[0]])
        return found[ends[0]]
    if not _has_pictures(folder):
        raise EnvironmentFault(
            f"{folder}: no {', '.join(f'*{end}' for end in IN_FOLDERS)} file in this directory, "
            "and no picture below it"
        )
    return [folder]


def _has_pictures(folder: Path) -> bool:
    """Whether a picture is below the folder, or a link to a folder, which may have pictures."""
    return any(
        any(map(is_picture, names)) or any(os.path.islink(os.path.join(top, d)) for d in folders)
        for top, folders, names in os.walk(folder)
    )


def _check_complete(files: Sequence[Path]) -> None:
    """Raises EnvironmentFault if some of the files `name-00000-of-00006.h5` to `-00005-` are
    missing."""
    found: dict[tuple[str, int], int] = {}
    for file in files:
        match = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.h5", file.name)
        if match:
            key = (match.group(1), int(match.group(2)))
            found[key] = found.get(key, 0) + 1
    for (stem, needed), count in found.items():
        if count != needed:
            raise EnvironmentFault(
                f"{files[0].parent}: {count} of the {needed} shards {stem}-*-of-{needed:05d}.h5 "
                "are here; copy the others, or name the files one by one to use these"
            )

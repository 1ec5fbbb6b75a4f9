"""The settings of a session that goes on: those of the run's manifest, with the given ones over
them. `results/manifest` says which differences are refused."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from collage_mpi.errors import CollageError, UsageError
from collage_mpi.results.file_names import MANIFEST
from collage_mpi.results.folder import refuse_foreign
from collage_mpi.results.manifest import FILE_SETTINGS, read_manifest, recorded_settings
from collage_mpi.settings.profiles import over_recorded
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.printable import counted
from collage_mpi.system.tell import tell

Json = dict[str, Any]


def has_run(out: str) -> bool:
    """Whether a run was begun in the folder."""
    return (Path(out) / MANIFEST).exists()


def resumed_settings(given: Mapping[str, Any], source: str, world_size: int | None) -> RunSettings:
    """Those of the run in the given `out`, with the given ones over them.

    Where no run is yet, those given alone: `--resume` then begins one, so that a job script
    may always say it.

    Args:
        given: settings from flags and a file, as `from_mapping` takes them.
        source: their name, for messages.
        world_size: ranks there are; the number of single ranks of each team follows it unless
            given. None where no ranks were started.

    Raises:
        UsageError: `out` is missing; there is no run yet, and settings are missing; as
            RunSettings.
        EnvironmentFault, DataFault: the manifest cannot be read, or is damaged.
    """
    out = given.get("out")
    if not out:
        raise UsageError("--out is missing: --resume goes on with the run in that folder")
    if not has_run(out):
        settings = RunSettings.from_mapping(given, source)
        try:
            settings.require_inputs()
        except UsageError as error:
            raise UsageError(
                f"{out}: no run here yet, so --resume begins one and needs all settings: {error}"
            ) from error
        return settings
    # Before its manifest is believed, which may name a network to import; by the given settings.
    refuse_foreign(Path(out), given.get("shared_out") == "on")
    manifest = read_manifest(Path(out))
    values = over_recorded(_known(manifest), given, source, anew=False)
    settings = RunSettings.from_mapping(values, f"{out}/{MANIFEST} and {source}")
    if world_size is None or "singles" in given:
        return settings
    found = fitted(settings, world_size // settings.teams)
    if found is not settings:
        ranks = f"{counted(found.n_singles, 'single rank')}; there were {settings.n_singles}"
        tell(f"going on with {ranks}", logging.INFO)
    return found


def _known(manifest: Json) -> Json:
    """The run's settings. A relative path is that of the folder it was begun in, if it is not
    found from here."""
    settings = recorded_settings(manifest)
    folder = (manifest.get("job") or {}).get("folder")

    def found(path: Any) -> Any:
        there = os.path.join(folder or "", path) if isinstance(path, str) and path else path
        return there if there and not os.path.exists(path) and os.path.exists(there) else path

    for name in FILE_SETTINGS:
        if name in settings:
            settings[name] = found(settings[name])
    if isinstance(settings.get("shards"), list):
        settings["shards"] = [found(path) for path in settings["shards"]]
    return settings


def fitted(settings: RunSettings, world_size: int) -> RunSettings:
    """With as many single ranks as the world has room for, where its size is another.

    Where no number of them fits, the settings as they are: placing them will say what does.
    """
    if _fits(settings, world_size):
        return settings
    for singles in range(1, world_size):
        try:
            other = replace(settings, singles=singles)
        except UsageError:  # each copy of scheme replicate needs a rank of its own
            continue
        if other.world_size == world_size:
            return other
    return settings


def _fits(settings: RunSettings, world_size: int) -> bool:
    try:
        settings.place(world_size)
    except CollageError:
        return False
    return True

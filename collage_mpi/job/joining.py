"""The settings of a job that joins a run: those of the run, overridden by the given ones.

`results/writer` says which differences are refused.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from collage_mpi.errors import CollageError, EnvironmentFault, UsageError
from collage_mpi.ledger import spans as sp
from collage_mpi.results import INDEX_FOLDER, has_run
from collage_mpi.results.manifest import COMPLETE, compose, recorded_settings
from collage_mpi.results.parts import read_ledger
from collage_mpi.results.writer import differences, refuse_foreign
from collage_mpi.settings.run_settings import FILE_SETTINGS, RunSettings
from collage_mpi.shards.source import ReadAs
from collage_mpi.shards.update import Update
from collage_mpi.system.fields import names
from collage_mpi.system.printable import counted
from collage_mpi.system.tell import tell

Json = dict[str, Any]


def joined_settings(given: Mapping[str, Any], source: str, world_size: int | None) -> RunSettings:
    """The settings of a job: the given ones, and for the rest those of the run in the given `out`.

    Args:
        given: settings from flags and a file, as `from_mapping` takes them.
        source: their name, for messages.
        world_size: number of ranks. Unless `singles` is given, the number of single ranks of each
            team is fitted to it. None if no ranks were started.

    Raises:
        UsageError: as in RunSettings.
        EnvironmentFault: the run cannot be read, or another version began it.
        DataFault: the run is damaged.
    """
    out = given["out"]
    # First check whose folder this is: the run may name a network whose code is imported.
    refuse_foreign(Path(out), given.get("shared_out") == "on")
    known = _known(compose(Path(out)))
    if other := known.keys() - {*names(RunSettings)}:
        raise EnvironmentFault(
            f"{out}: a version with other settings began this run: {', '.join(sorted(other))}. Go "
            "on with that version, or choose another --out"
        )
    values = {**known, **given}
    settings = RunSettings.from_mapping(values, f"{out} and {source}")
    if world_size is None or "singles" in given:
        return settings
    found = fitted(settings, world_size // settings.teams)
    if found is not settings:
        ranks = f"{counted(found.n_singles, 'single rank')}; there were {settings.n_singles}"
        tell(f"going on with {ranks}", logging.INFO)
    return found


def finished_status(
    settings: RunSettings,
    update: Update | None = None,
    *,
    retry_errors: bool,
    redo_rank: str = "",
) -> str | None:
    """The status of the run in the settings' `out` if nothing is left to do, as far as one process
    can say without loading a network; otherwise None, and then the ranks find out.

    Args:
        settings: of the job.
        update: how the run is updated; None if it is not.
        retry_errors: a run with error rows is not finished.
        redo_rank: see `Ask`.

    Raises:
        EnvironmentFault, DataFault: the run cannot be read, or is damaged.
    """
    from collage_mpi.job.plan import shards_of
    from collage_mpi.job.provenance import digests, named_files

    out = Path(settings.out)
    if not has_run(out):
        return None
    before = compose(out, ledger := read_ledger(out))
    # `verify --repair` may have found that rows of a complete run are lost.
    lacks_rows = sum(sp.count(part.spans) for part in ledger.parts) < before["rows"]
    unfinished = before["status"] != "complete" and (
        retry_errors or before["status"] not in COMPLETE
    )
    if redo_rank or lacks_rows or unfinished:
        return None
    try:
        with shards_of(settings, before, update, ReadAs(labels=False, pictures=False)) as shards:
            grown, entries = shards.growth, before["shards"]
            known = [shard["fingerprint"] for shard in entries]
            changed = grown.again or grown.touched or grown.removed or grown.renamed
            if shards.fingerprints != known or changed or shards.lost:
                return None
            gone = shards.gone().sum() > (before.get("dropped") or 0)
            if update is not None and update.prune and gone:
                return None
            with suppress(OSError):  # it may not be writable
                shards.save_folders(out / INDEX_FOLDER, entries)
        files = digests(named_files(settings))
    except (CollageError, OSError):
        return None
    now = {**before, "settings": settings.to_dict(), "inputs": files}
    return None if differences(before, now) else before["status"]


def _known(manifest: Json) -> Json:
    """The run's settings. A relative path that does not exist here is taken from the folder in
    which the run was begun."""
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
    """The settings with the number of single ranks that fits the number of ranks.

    If no number fits, the settings are unchanged, and the placement will say what is wrong.
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

"""Publishes the parts of teams: the lead moves them from `pending/`, which readers ignore.

Only the process that holds the run's claim may rename a part and so make it count. So a team that
was given up and comes back cannot add a row to the run.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.results import PARTS_FOLDER, PENDING_FOLDER, VECTORS_FOLDER, parts
from collage_mpi.results.row_sink import QueueThread, unwritable
from collage_mpi.results.vectors import extras_of, vectors_name
from collage_mpi.rows import IMAGES, STORED, flat_keys
from collage_mpi.system.files import load_json, reading, sync_directory

PUBLISH_EVERY_S = 0.05
_FOLDERS = re.compile(rf"{PENDING_FOLDER}(?:-[0-9a-f]{{8}})?")
_TABLE = {table.name: table for table in STORED}


def publish(waiting: Mapping[Path, str | None], check: Callable[[], object]) -> None:
    """Move pending parts to `parts/`, and before them their files of vectors to `vectors/`.

    Args:
        waiting: parts in one pending folder -> the name of the part's file of vectors in the same
            folder, or None.
        check: raises once this session may no longer write to the run's folder.

    Raises:
        OSError: a rename or a sync failed.
        CollageError: of `check`.
    """
    check()
    _move([part.with_name(name) for part, name in waiting.items() if name], VECTORS_FOLDER)
    _move(waiting, PARTS_FOLDER)


def _move(files: Collection[Path], folder: str) -> None:
    """Rename files into a folder of the run, and sync the folder."""
    for file in files:
        os.rename(file, file.parent.parent / folder / file.name)
    for out in {file.parent.parent for file in files}:
        sync_directory(out / folder)


class Publisher(QueueThread[tuple[str, int, int]]):
    """Publishes parts (table, session, number) in order, in a thread of its own.

    Checking the claim and syncing the folder take most of the time. So publishing happens at most
    every PUBLISH_EVERY_S, with one check and one sync for all parts that wait.
    """

    def __init__(self, out: Path, manifest: Mapping[str, Any], check: Callable[[], object]) -> None:
        """`check` raises once this session may no longer write to the folder."""
        self._out, self._check = out, check
        self._next_s = 0.0  # monotonic time
        self._vectors = bool(extras_of(manifest))
        super().__init__("collage-mpi teams", queue.Queue())

    def put(self, table: str, session: int, number: int) -> None:
        """Queue a part to be published. Raises the fault of an earlier part, if there is one."""
        if self.fault is not None:
            raise self.fault
        self._queue.put((table, session, number))

    def path_of(self, thing: tuple[str, int, int]) -> Path:
        """See `QueueThread`."""
        table, session, number = thing
        return parts.part_path(self._out / PARTS_FOLDER, _TABLE[table], session, number)

    def do(self, thing: tuple[str, int, int]) -> None:
        """See `QueueThread`."""
        time.sleep(max(0.0, self._next_s - time.monotonic()))
        waiting = {}
        for table, session, number in (thing, *self._others()):
            part = self._out / PENDING_FOLDER / self.path_of((table, session, number)).name
            has_vectors = table == IMAGES.name and self._vectors
            waiting[part] = vectors_name(session, number) if has_vectors else None
        try:
            publish(waiting, self._check)
        except FileNotFoundError as error:
            raise EnvironmentFault(
                f"{error.filename}: not there, though a team has written it: "
                "--out must be in a file system that the hosts of all coordinators share"
            ) from error
        except OSError as error:
            # Any of the waiting parts may have failed.
            named = error.filename or self.path_of(thing)
            raise unwritable(Path(os.fsdecode(named)), error) from error
        self._next_s = time.monotonic() + PUBLISH_EVERY_S

    def _others(self) -> Iterator[tuple[str, int, int]]:
        """Takes everything else that is in the queue now."""
        with suppress(queue.Empty):
            while (thing := self._queue.get_nowait()) is not None:
                yield thing
                self._queue.task_done()
            self._queue.put(None)  # None ends the thread: put it back


def entry_path(out: Path, session: int) -> Path:
    """The file to which a team that has ended writes its session's entry for the manifest."""
    return out / PENDING_FOLDER / f"session-{session:04d}.json"


def status_folder(out: Path, session: int) -> Path:
    """The folder of a team's status, which the lead reads for the status of the whole run."""
    return out / PENDING_FOLDER / f"status-{session:04d}"


def read_entry(out: Path, session: int) -> Any:
    """The entry for the manifest that the team of a session wrote.

    Raises:
        EnvironmentFault: the file cannot be read.
        DataFault: the file is damaged.
    """
    path = entry_path(out, session)
    wrong = "damaged; go on with --resume: the rows are there"
    with reading(path, wrong):
        found = load_json(path)
    if not isinstance(found, dict) or found.get("session") != session:
        raise DataFault(f"{path}: {wrong}")
    return found


def adopt(out: Path, manifest: Mapping[str, Any], held: Callable[[], np.ndarray]) -> None:
    """Publish the parts that teams of an earlier launch had written when they lost their lead.

    The caller holds the claim. A part is dropped if one of its images has a row already, because
    then the part's team had been given up.

    The pending folder is renamed first, and the former lead does not know the new name. So each of
    the former lead's renames either came before, and `held` returns its rows, or fails.

    Args:
        manifest: of the earlier launch.
        held: returns the keys of the images that have a row, (k,) of KEY_ROW.

    Raises:
        OSError, CollageError: as `publish`.
    """
    taken = [folder.rename(f"{out / PENDING_FOLDER}-{os.urandom(4).hex()}") for folder in _in(out)]
    counts, keep = parts.counting(manifest), bool(extras_of(manifest))
    listed: list[tuple[parts.PartName, list[int]]] = []
    for part in filter(counts, chain.from_iterable(map(parts.list_parts, taken))):
        keys: list[int] = []
        if part.table == IMAGES.name:
            try:
                keys = flat_keys(parts.read_part(part.path, IMAGES)).tolist()
            except DataFault:
                continue  # damaged: its images are done again
            except EnvironmentFault as error:
                if isinstance(error.__cause__, FileNotFoundError):
                    continue  # renamed meanwhile: a file server may list the old name for a while
                raise
        listed.append((part, keys))
    known = set(flat_keys(held()).tolist()) if listed else set()
    for part, keys in listed:
        vectors = None
        if part.table == IMAGES.name:
            vectors = vectors_name(part.session, part.number) if keep else None
            whole = vectors is None or part.path.with_name(vectors).exists()
            if not whole or not known.isdisjoint(keys):
                continue
            known.update(keys)
        with suppress(FileNotFoundError):  # renamed meanwhile, as above
            publish({part.path: vectors}, lambda: None)
    for folder in taken:  # `_make_folders` creates a new pending folder
        shutil.rmtree(folder, ignore_errors=True)


def clear(out: Path) -> None:
    """Remove all pending parts, so that none of them will count."""
    with suppress(OSError):
        for folder in _in(out):
            shutil.rmtree(folder, ignore_errors=True)


def _in(out: Path) -> list[Path]:
    """The pending folders, including those that `adopt` renamed in an earlier session."""
    found = (path for path in out.iterdir() if _FOLDERS.fullmatch(path.name))
    return [path for path in found if path.is_dir() and not path.is_symlink()]

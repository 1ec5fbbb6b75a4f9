"""Parts that teams have written and that the lead publishes. Readers ignore the folder `pending/`.

Only the process with the run's claim makes a part count: it renames the part. So a team that was
given up and comes back cannot add a row to the run.
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
from collage_mpi.results import parts
from collage_mpi.results.file_names import PARTS_FOLDER, PENDING_FOLDER, VECTORS_FOLDER
from collage_mpi.results.row_sink import InOrder, unwritable
from collage_mpi.results.rows import IMAGES, TABLES, flat_keys
from collage_mpi.results.vectors import extras_of, vectors_name
from collage_mpi.system.files import load_json, reading, sync_directory

PUBLISH_EVERY_S = 0.05
_FOLDERS = re.compile(rf"{PENDING_FOLDER}(?:-[0-9a-f]{{8}})?")
_TABLE = {table.name: table for table in TABLES}


def publish(waiting: Mapping[Path, str | None], check: Callable[[], object]) -> None:
    """Move pending parts to the folder of parts that count, and the files of their vectors before.

    Args:
        waiting: parts in one folder of pending parts -> the name of the file of the part's vectors,
            in the same folder.
        check: raises once this session may not write to the run's folder any more.

    Raises:
        OSError: as the system says.
        CollageError: of `check`.
    """
    check()
    _move([part.with_name(name) for part, name in waiting.items() if name], VECTORS_FOLDER)
    _move(waiting, PARTS_FOLDER)


def _move(files: Collection[Path], folder: str) -> None:
    """To a folder of the run. They are on the disk there when it returns."""
    for file in files:
        os.rename(file, file.parent.parent / folder / file.name)
    for out in {file.parent.parent for file in files}:
        sync_directory(out / folder)


class Publisher(InOrder[tuple[str, int, int]]):
    """Publishes parts (table, session, number) in order, in a thread of its own.

    Parts that come soon after others wait for those that follow: a check of the claim and a sync of
    the folder take most of the time of a part, and are done once for all that wait.
    """

    def __init__(self, out: Path, manifest: Mapping[str, Any], check: Callable[[], object]) -> None:
        """`check` raises once this session may not write to the folder any more."""
        self._out, self._check = out, check
        self._next_s = 0.0  # monotonic time
        self._vectors = bool(extras_of(manifest))
        super().__init__("collage-mpi teams", queue.Queue())

    def put(self, table: str, session: int, number: int) -> None:
        """Queue a part to be published. Raises the fault of an earlier one."""
        if self.fault is not None:
            raise self.fault
        self._queue.put((table, session, number))

    def path_of(self, thing: tuple[str, int, int]) -> Path:
        """See `InOrder`."""
        table, session, number = thing
        return parts.part_path(self._out / PARTS_FOLDER, _TABLE[table], session, number)

    def do(self, thing: tuple[str, int, int]) -> None:
        """See `InOrder`."""
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
            named = error.filename or self.path_of(thing)  # one of several, which need not be first
            raise unwritable(Path(os.fsdecode(named)), error) from error
        self._next_s = time.monotonic() + PUBLISH_EVERY_S

    def _others(self) -> Iterator[tuple[str, int, int]]:
        """What is queued by now."""
        with suppress(queue.Empty):
            while (thing := self._queue.get_nowait()) is not None:
                yield thing
                self._queue.task_done()
            self._queue.put(None)  # the word to end, for afterwards


def entry_path(out: Path, session: int) -> Path:
    """The file in which a team that has ended leaves its session's entry for the manifest."""
    return out / PENDING_FOLDER / f"session-{session:04d}.json"


def status_folder(out: Path, session: int) -> Path:
    """The folder of a team's own status, which the lead reads for the status of the whole run."""
    return out / PENDING_FOLDER / f"status-{session:04d}"


def read_entry(out: Path, session: int) -> Any:
    """The entry of a session, as its team wrote it.

    Raises:
        EnvironmentFault: it cannot be read.
        DataFault: it is damaged.
    """
    path = entry_path(out, session)
    wrong = "damaged; go on with --resume: the rows are there"
    with reading(path, wrong):
        found = load_json(path)
    if not isinstance(found, dict) or found.get("session") != session:
        raise DataFault(f"{path}: {wrong}")
    return found


def adopt(out: Path, manifest: Mapping[str, Any], held: Callable[[], np.ndarray]) -> None:
    """Publish what teams of an earlier launch had written when they lost their lead.

    The caller holds the claim. A part is dropped if one of its images has a row already, because
    its team had been given up.

    Args:
        manifest: of that launch.
        held: returns the keys of the images that have a row, (k,) of KEY_ROW. It is called after
            the folder was renamed. The former lead does not know the new name, so each of its
            renames either came before, and its rows are counted here, or fails.

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
                    continue  # a file server's list may be older than the file's new name
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
        with suppress(FileNotFoundError):  # likewise
            publish({part.path: vectors}, lambda: None)
    for folder in taken:  # a later holder of the claim has its own
        shutil.rmtree(folder, ignore_errors=True)


def clear(out: Path) -> None:
    """Remove all pending parts. None of them will count."""
    with suppress(OSError):
        for folder in _in(out):
            shutil.rmtree(folder, ignore_errors=True)


def _in(out: Path) -> list[Path]:
    """The folders of pending parts, also those that an earlier session renamed and left."""
    found = (path for path in out.iterdir() if _FOLDERS.fullmatch(path.name))
    return [path for path in found if path.is_dir() and not path.is_symlink()]

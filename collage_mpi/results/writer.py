"""The folder of a run: who may use it, how a job begins in it, and which settings fit it."""

from __future__ import annotations

import errno
import json
import os
import pwd
import shlex
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.kinds import STAGES
from collage_mpi.ledger.records import job_name, run_name
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results import (
    INDEX_FOLDER,
    MANIFEST,
    PARTS_FOLDER,
    ROWS_FOLDER,
    STATUS_FOLDER,
    has_run,
    parts,
)
from collage_mpi.results.manifest import Json, recorded_settings
from collage_mpi.settings.run_settings import FILE_SETTINGS, FREE_SETTINGS
from collage_mpi.system.files import make_directory
from collage_mpi.system.printable import shown
from collage_mpi.system.process_tree import ProcessId, has_ended, this_process
from collage_mpi.system.records import read_json
from collage_mpi.system.tell import tell

LATE_S = 65.0  # hosts believe for a minute that a file is missing
ALONE = "alone"  # names the job that has the folder for itself
NOBODY = ProcessId("", 1, 0)  # where the system does not tell
FOLDERS = (PARTS_FOLDER, STATUS_FOLDER, INDEX_FOLDER)


def refuse_foreign(out: Path, shared: bool) -> None:
    """Refuse a folder for results if another user could redirect or change what is written.

    Args:
        out: the folder. The folder and its subfolders need not exist. Its parents are not checked,
            because a link there is the user's own choice.
        shared: allow a folder of another user. A link is still refused.

    Raises:
        EnvironmentFault: the folder or a subfolder is a link, or belongs to neither this user nor
            root.
    """
    for path in (
        out,
        *(out / name for name in (*FOLDERS, ROWS_FOLDER, "leases", "beats", "jobs")),
    ):
        try:
            found = path.lstat()
        except OSError:  # it does not exist, or cannot be opened either
            continue
        if stat.S_ISLNK(found.st_mode):
            named = f"name the folder itself: --out {shlex.quote(os.path.realpath(path))}"
            what = named if path == out else f"remove the link (rm {shlex.quote(str(path))})"
            raise EnvironmentFault(
                f"{path}: a symbolic link, to {os.readlink(path)}. Rows are not written through "
                f"links. Choose another --out, or {what}"
            )
        if not shared and found.st_uid not in (0, os.geteuid()):
            raise EnvironmentFault(
                f"{path}: belongs to {_user(found.st_uid)}, who can read, change and remove what "
                "is written there. A folder of your own is needed: choose another --out. If you "
                "share the folder with its owner on purpose, add --shared-out on"
            )


def _user(uid: int) -> str:
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"a user without a name (uid {uid})"


def refuse_older(out: Path) -> None:
    """Raise EnvironmentFault if `out` has a run of an earlier format, or rows without their run."""
    if has_run(out):
        return
    if (out / MANIFEST).exists():
        parts.read_runs(out)  # raises: it says which format was found
    if (out / PARTS_FOLDER).exists() and parts.list_parts(out / PARTS_FOLDER):
        until_s = time.monotonic() + LATE_S
        tell(f"{out}: has rows, and no {run_name(1)}; this waits for it, {LATE_S:g} s at the most")
        while time.monotonic() < until_s:
            time.sleep(1.0)
            if has_run(out):
                return
        raise EnvironmentFault(
            f"{out}: has rows of a run whose {run_name(1)} is gone. Restore it from a copy, or "
            "choose another --out"
        )


def check_place(out: Path, *, shared: bool) -> None:
    """Raise EnvironmentFault if no job may work in `out`. Nothing is written for this check."""
    with os_errors_as(no_place, out):
        refuse_foreign(out, shared)
        refuse_older(out)
        there = out.absolute()
        while not _is_there(there):
            there = there.parent
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "it is no folder", there)
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"no right to write to {there}")


class LoneStore(FolderStore):
    """The files of a run that one job has for itself, on a file system without hard links."""

    def _give_name(self, temp: str, name: str) -> None:
        """Where there are links, jobs that came before are not in the way."""
        try:
            super()._give_name(temp, name)
        except EnvironmentFault:
            if self.read(name) is not None:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name) from None
            self._rename(temp, name)


def refuse_alone(out: Path) -> None:
    """Raise EnvironmentFault if another job has a folder for itself, unless its process has ended
    on this machine. Raises OSError."""
    try:
        process = read_json(ProcessId, (out / ALONE).read_bytes())
    except FileNotFoundError:
        return
    except ValueError:
        process = NOBODY
    if has_ended(process):
        leave_alone(out)
        return
    raise EnvironmentFault(
        f"{out}: another job has this folder for itself (--alone on). Wait until it has ended. If "
        f"it was killed: rm {shlex.quote(str(out / ALONE))}"
    )


def take_alone(out: Path) -> None:
    """Keep other jobs out of a folder, until `leave_alone`. Raises OSError."""
    path, mine = out / ALONE, json.dumps(asdict(this_process() or NOBODY)).encode()
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as file:
        file.write(mine)


def leave_alone(out: Path) -> None:
    """Let other jobs into a folder again. Raises OSError."""
    (out / ALONE).unlink(missing_ok=True)


def open_folder(out: Path, *, shared: bool, alone: bool = False) -> FolderStore:
    """Make the folders of a run, as far as they are missing.

    Args:
        out: the folder.
        shared: it may belong to another user.
        alone: keep other jobs out of it, until `leave_alone`.

    Raises:
        EnvironmentFault: as `check_place`, or they cannot be made; another job is in it alone.
    """
    check_place(out, shared=shared)
    with os_errors_as(no_place, out):
        make_directory(out)
        refuse_foreign(out, shared)
        refuse_alone(out)
        if alone:
            take_alone(out)
        store = LoneStore(out) if alone else FolderStore(out)
        store.make()
        for name in FOLDERS:
            (out / name).mkdir(exist_ok=True)
    return store


def leave_no_trace(out: Path, session: int) -> None:
    """Remove what a job has made in a folder that has no run yet, as far as nobody else uses it."""
    with suppress(OSError):  # of a folder that fails nobody knows that it has no run
        if _is_there(out / run_name(1)):
            return
        (out / job_name(session)).unlink()
        made = sorted(out.rglob("*"), reverse=True)
        folders = [path for path in made if path.is_dir()]
        files = [path for path in made if path not in folders]
        mine = out / INDEX_FOLDER, out / ALONE
        if all({path, path.parent} & {*mine} for path in files):  # else another job begins here
            for path in files:
                path.unlink()
            for path in (*folders, out):
                path.rmdir()


def _is_there(path: Path) -> bool:
    """Raises OSError if the path cannot be created: its name is too long, or a parent is a file."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


@contextmanager
def os_errors_as(fault: Callable[[Path, OSError], EnvironmentFault], out: Path) -> Iterator[None]:
    """Raises `fault(out, error)` in place of an OSError of the block."""
    try:
        yield
    except OSError as error:
        raise fault(out, error) from error


def no_place(out: Path, error: OSError) -> EnvironmentFault:
    what = "is a file" if os.path.isfile(out) else f"cannot be written: {error.strerror or error}"
    return EnvironmentFault(f"{out}: {what}; --out needs a folder that you may write to")


# With the settings, these keys decide the rows. A job may not change them.
SAME_KEYS = ("shards", "rows", "order", "limit", "input_digest", "class_names")
MOST_SHARD_LINES = 5


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines that say what differs between a run and a job; [] if the job may join.

    Args:
        before: what the run fixes, as read from JSON, so with lists and no tuples.
        now: what the job would fix.
    """
    lines = []
    for key in SAME_KEYS:
        if key == "shards":
            lines += _other_shards(before["shards"], now["shards"])
            continue
        old, new = (manifest.get(key) for manifest in (before, now))
        if old != new:
            lines.append(f"{key}: {shown(old)} before, {shown(new)} now")
    old_settings, new_settings = (recorded_settings(manifest) for manifest in (before, now))
    old_content, new_content = (manifest.get("inputs") or {} for manifest in (before, now))
    for key in sorted({*old_settings, *new_settings} - FREE_SETTINGS):
        old, new = old_settings.get(key), new_settings.get(key)
        if key in FILE_SETTINGS and key in old_content and key in new_content:
            lines += _other_content(key, (old, old_content[key]), (new, new_content[key]))
        elif old != new:
            lines.append(f"settings.{key}: {shown(old)} before, {shown(new)} now")
    for kind in sorted(old_content.keys() & new_content.keys() & set(STAGES)):
        name = f"network {kind} of first"
        lines += _other_content(name, *((name, each[kind]) for each in (old_content, new_content)))
    return lines


def _other_content(key: str, before: tuple[Any, str], now: tuple[Any, str]) -> list[str]:
    """A line if the content of a file differs; [] if not. `before` and `now` are (path,
    SHA-256)."""
    (old, had), (new, has) = before, now
    there = "" if new == old else f"{new}: "
    line = f"{key} {old}: SHA-256 {had[:12]}... before, {there}{has[:12]}... now"
    return [] if had == has else [line]


def _other_shards(before: list[Json], now: list[Json]) -> list[str]:
    """Lines about shards that differ. A shard is identified by its content, so its path may
    differ."""
    lines = []
    if len(before) != len(now):
        lines.append(f"shards: {len(before)} before, {len(now)} now")
    for old, new in zip(before, now, strict=False):
        if (old["fingerprint"], old["count"]) != (new["fingerprint"], new["count"]):
            lines.append(
                f"shard {old['path']}: SHA-256 {old['fingerprint'][:12]}... before, "
                f"{new['path']}: {new['fingerprint'][:12]}... now"
            )
    more = len(lines) - MOST_SHARD_LINES
    return lines if more <= 0 else [*lines[:MOST_SHARD_LINES], f"... and {more} more shards"]


def refuse_differences(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UsageError if a job would fix something else than the run; arguments as above."""
    if changed := differences(before, now):
        listed = "\n  ".join(changed)
        raise UsageError(
            f"{out}: the run there has other settings:\n  {listed}\n"
            f"collage-mpi launch -- run --out {shlex.quote(str(out))} takes the run's own "
            "settings; the files that they name must not have changed. Or choose another --out."
        )

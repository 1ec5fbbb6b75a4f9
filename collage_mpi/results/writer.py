"""Writes a run: checks whether it may use its folder, creates or resumes it, removes what a kill
left half-written, and closes the run, with a marker if it is complete.
"""

from __future__ import annotations

import errno
import json
import os
import pwd
import re
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import CollageError, EnvironmentFault, UsageError
from collage_mpi.results import (
    INDEX_FOLDER,
    MANIFEST,
    MARKER,
    PARTS_FOLDER,
    PENDING_FOLDER,
    STATUS,
    SUMMARY,
    VECTORS_FOLDER,
    parts,
    vectors,
)
from collage_mpi.results.claim import LOOK_S, PATIENT, Claim, Patience, find_writer, held_by
from collage_mpi.results.manifest import (
    COMPLETE,
    FORMAT,
    STATUSES,
    VERSION,
    Json,
    check_manifest,
    plain,
    read_manifest,
    readable,
    recorded_settings,
    resume_command,
    write_manifest,
)
from collage_mpi.results.number_sets import InputCoverage
from collage_mpi.results.parts import sessions_of
from collage_mpi.results.pending import Publisher, adopt, clear
from collage_mpi.results.reader import Inventory, StoredRun, known_run
from collage_mpi.results.row_sink import RowSink, unwritable
from collage_mpi.results.status import StatusFiles
from collage_mpi.results.summary import Tally, save_summary, summarise
from collage_mpi.results.vectors import extras_of, remove_orphans
from collage_mpi.rows import IMAGES
from collage_mpi.settings.run_settings import FILE_SETTINGS, FREE_SETTINGS
from collage_mpi.system.files import make_directory, remove_leftovers, sync_directory, write_atomic
from collage_mpi.system.printable import counted, shown


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
    folders = PARTS_FOLDER, VECTORS_FOLDER, PENDING_FOLDER, INDEX_FOLDER
    for path in (out, *(out / name for name in folders)):
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


def remove_half_written(out: Path) -> Path:
    """Remove half-written files from the run's folders. Returns the folder of parts, which is
    created if it is missing.
    """
    directory = out / PARTS_FOLDER
    directory.mkdir(exist_ok=True)
    remove_leftovers(directory, parts.OURS)
    for name in (VECTORS_FOLDER, PENDING_FOLDER):
        if (out / name).is_dir():
            remove_leftovers(out / name, f"{parts.OURS}|{vectors.OURS}")
    if (out / INDEX_FOLDER).is_dir():
        remove_leftovers(out / INDEX_FOLDER, r"[0-9a-f]{64}\.npz")
    remove_leftovers(out, "|".join(map(re.escape, (MANIFEST, MARKER, SUMMARY, STATUS))))
    return directory


def make_lasting(out: Path) -> None:
    """Sync a run's folders. Without this, a power failure could undo a rename if the session was
    killed before it synced the folder.
    """
    for folder in (out / PARTS_FOLDER, out / VECTORS_FOLDER, out):
        if folder.is_dir():
            sync_directory(folder)


def refuse_a_run(out: Path) -> None:
    """Raise EnvironmentFault if `out` holds a run or rows of a run."""
    if (out / MANIFEST).exists():
        raise EnvironmentFault(
            f"{out}: holds a run already. Choose another --out, or go on with it: run --resume."
        )
    if (out / PARTS_FOLDER).exists() and parts.list_parts(out / PARTS_FOLDER):
        raise EnvironmentFault(
            f"{out}: holds rows of a run whose {MANIFEST} is gone. Restore it from a copy, or "
            "choose another --out."
        )


def check_place(out: Path, *, shared: bool) -> None:
    """Raise EnvironmentFault if `out` cannot become a new run. Nothing is written for this
    check."""
    with os_errors_as(no_place, out):
        refuse_foreign(out, shared)
        refuse_a_run(out)
        there = out.absolute()
        while not _is_there(there):
            there = there.parent
        check_free(out, there)


def _is_there(path: Path) -> bool:
    """Raises OSError if the path cannot be created: its name is too long, or a parent is a file."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def check_free(out: Path, there: Path) -> None:
    """Check that this user may write to `there`, the part of the path `out` that exists, and that
    no job writes to `out`.

    Raises:
        OSError: this user may not write to `there`.
        EnvironmentFault: another job writes to `out`.
    """
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is no folder", there)
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"no right to write to {there}")
    refuse_writer(out)


def refuse_writer(out: Path) -> None:
    """Raise EnvironmentFault if another job writes to `out`. This takes LOOK_S at most."""
    writer, _ = find_writer(out, Patience(still_s=LOOK_S))
    if writer is not None:
        raise held_by(out, writer)


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


# With the settings, these keys decide the rows. A session may not change them.
SAME_KEYS = ("shards", "rows", "order", "limit", "input_digest", "class_names")
# Keys among these that grow when a shard that an earlier session could not read can be read now.
GROWING_KEYS = frozenset({"shards", "rows", "input_digest"})
MOST_SHARD_LINES = 5


class RunWriter(RowSink):
    """The only writer of a run directory. Only one thread of the caller may use it.

    Attributes:
        manifest: of the run, as it is on the disk.
        summary: of the run, once `close` has written one.
        teams: entries of the other teams for the manifest's sessions.
        publisher: publishes the parts of teams; None if the run has only one team.
    """

    def __init__(self, out: Path, manifest: Json, claim: Claim, **options: Any) -> None:
        """Start the thread. Use `create` or `reopen` instead, which prepare the directory."""
        super().__init__(out, manifest, manifest["session"], claim.check, **options)
        self.manifest = manifest
        self._claim = claim
        self._closed = False
        self._status: StatusFiles | None = None
        self.summary: Json | None = None
        self.teams: list[Json] = []
        several = manifest.get("teams") is not None
        self.publisher = Publisher(out, manifest, claim.check) if several else None

    @classmethod
    def create(
        cls,
        out: Path,
        manifest: Mapping[str, Any],
        *,
        patience: Patience = PATIENT,
        **options: Any,
    ) -> RunWriter:
        """Begin a new run in `out`, which is created if it does not exist.

        Raises:
            EnvironmentFault: `out` cannot be written, belongs to another user, or holds a run, or
                another job writes there.
            DataFault: the manifest lacks a key, or has a key of a wrong type.
        """
        out = Path(out)
        full = _prepared(manifest, session=1, sessions=[])
        with os_errors_as(no_place, out):
            make_directory(out)
            refuse_foreign(out, _is_shared(full))
            refuse_a_run(out)
            with _claimed(out, patience) as claim:
                remove_half_written(out)  # left by a kill before the manifest was written
                refuse_a_run(out)
                remove_orphans(out, ())
                if full.get("teams"):
                    clear(out)  # pending parts of a run that was removed
                _make_folders(out, full)
                write_manifest(out, full, claim.check)
                return cls(out, full, claim, **options)

    @classmethod
    def reopen(
        cls,
        out: Path,
        manifest: Mapping[str, Any],
        *,
        retry_errors: bool = False,
        patience: Patience = PATIENT,
        **options: Any,
    ) -> tuple[RunWriter, np.ndarray]:
        """Resume the run in `out` in a new session, with the same settings.

        Args:
            retry_errors: images with error rows do not count as done.

        Returns:
            The writer, and the keys of the images that are done: (k,) of KEY_ROW.

        Raises:
            UsageError: the settings differ; the message lists the differences.
            EnvironmentFault: `out` has no run or cannot be written, or another job writes there.
            DataFault: a part or the manifest is damaged.
        """
        out = Path(out)
        _next_session(out, manifest)  # refuses wrong settings before it waits for another job
        with os_errors_as(unwritable, out), _claimed(out, patience) as claim:
            directory = remove_half_written(out)  # before the folder is read: see claim.py
            before, full = _next_session(out, manifest)
            _number_session(full, before, directory)
            check_manifest(full, str(out / MANIFEST))
            adopt(out, before, lambda: known_run(out, before).done_keys(answered=False))
            make_lasting(out)
            run = _as_input_is_now(out, before, full)
            full["accepted"] = parts.describe(run.parts)
            _mark_lost_rows(full["sessions"], Inventory(run))
            done = run.done_keys(answered=retry_errors)
            if _missing(done, full):
                claim.check()
                (out / MARKER).unlink(missing_ok=True)
                sync_directory(out)  # so that a power failure cannot bring the marker back
            write_manifest(out, full, claim.check)
            if extras_of(full):  # after the manifest was written, which says what counts
                remove_orphans(out, (part for part in run.parts if part.table == IMAGES.name))
            _make_folders(out, full)
            writer = cls(out, full, claim, **options)
        return writer, done

    @classmethod
    def finished(
        cls, out: Path, manifest: Mapping[str, Any], *, retry_errors: bool = False
    ) -> str | None:
        """The status of the run in `out` if it is complete and has these settings; otherwise None.

        The rows are counted, so a run whose parts were moved away is not complete.

        Args:
            retry_errors: a run with error rows does not count as complete.

        Raises:
            EnvironmentFault: `out` has no run, belongs to another user, or cannot be synced.
            DataFault: the manifest or a part is damaged.
        """
        out = Path(out)
        refuse_foreign(out, _is_shared(manifest))
        before = read_manifest(out)
        same = not differences(before, _prepared(manifest, session=1, sessions=[]))
        marked = (out / MARKER).exists() and before.get("status") in COMPLETE
        if not (same and marked) or (retry_errors and before["status"] != "complete"):
            return None
        with os_errors_as(unwritable, out):
            make_lasting(out)  # a run that is reported complete must survive a power failure
        run = known_run(out, {**before, "shards": manifest["shards"]})
        whole = not len(run.outdated_rows()) and Inventory(run).whole
        return before["status"] if whole else None

    @classmethod
    def done(
        cls, out: Path, manifest: Mapping[str, Any], *, retry_errors: bool = False
    ) -> np.ndarray:
        """The keys that `reopen` would return, (k,) of KEY_ROW. Nothing is written.

        Raises:
            UsageError, EnvironmentFault, DataFault: as `reopen`. Another job is looked for during
                LOOK_S at most.
        """
        before, full = _next_session(out, manifest)
        with os_errors_as(unwritable, out):
            check_free(out, out)
        return _as_input_is_now(out, before, full).done_keys(answered=retry_errors)

    def discard(self) -> None:
        """Remove a run that has no rows, and its folder if the folder is then empty."""
        self._closed = True
        self._thread.end()
        if self.publisher is not None:
            self.publisher.end()
        try:
            self._claim.check()
            if self._status is not None:
                self._status.remove()
            (self.out / PARTS_FOLDER).rmdir()  # fails if another team has rows; then all is kept
            (self.out / MANIFEST).unlink()  # before the claim is released: the next job has its own
            if self._vectors is not None:
                (self.out / VECTORS_FOLDER).rmdir()
            clear(self.out)
        except (OSError, CollageError):
            self._claim.release()
            return  # another session has taken over, or there are other files: leave them
        if self._claim.release():
            with suppress(OSError):
                self.out.rmdir()

    def note(self, **facts: Any) -> None:
        """Add facts to the manifest now, for example when the ranks are ready.

        Raises:
            EnvironmentFault: the manifest cannot be written.
        """
        self.manifest = _as_read({**self.manifest, **facts})
        with os_errors_as(unwritable, self.out):
            write_manifest(self.out, self.manifest, self._claim.check)

    def publish(self, facts: Mapping[str, Any], every_s: float) -> StatusFiles:
        """Write the status of the job to the folder, from now until `close`.

        Args:
            facts: of the session: total, before (number of images that had a row), label.
            every_s: seconds between two statuses.
        """
        own = {"run_id": self.manifest["run_id"], "session": self.session}
        self._status = StatusFiles(self.out, {**own, **facts}, every_s, self._claim.check)
        return self._status

    def close(self, status: str, *, summary: bool = False, **final: Any) -> str | None:
        """Write the buffered rows, then the manifest, then (if the run is complete) the marker.

        A run is complete only if its rows are found on the disk.

        Args:
            status: of this session: complete, complete_with_errors or incomplete. If an earlier
                session left error rows, the run becomes complete_with_errors.
            summary: write summary.json too.
            **final: facts ("poll", "world", ...) to write to the manifest and to this
                session's entry in it.

        Returns:
            If `status` says complete but rows are missing on the disk, a message; otherwise None.

        Raises:
            EnvironmentFault: rows could not be written, or another session has taken over. The run
                then is incomplete, and all parts written before are intact.
            DataFault: a part is damaged.
        """
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is none of {', '.join(STATUSES)}")
        if self._closed:
            return None
        self._closed = True
        try:
            return self._settle(status, final, summary)
        finally:
            marked = (self.out / MARKER).exists()
            if self._status is not None:
                self._status.end(self.manifest["status"] if marked else "incomplete")
            if self.publisher is not None and marked:
                clear(self.out)  # with the status and the entries of the teams
            self._claim.release()

    def _settle(self, status: str, final: Mapping[str, Any], summary: bool) -> str | None:
        """Write everything that is left. If that fails, the next session does the rest."""
        fault = self.drain()
        if self.publisher is not None:
            self.publisher.end()
            fault = fault or self.publisher.fault
        found: Tally | None = None
        lacking = None
        try:
            if fault is None:
                ended = [{"session": self.session, "final": final}, *self.teams]
                sessions = [*self.manifest["sessions"], *ended]  # their final has began_ns
                found = Tally(known_run(self.out, {**self.manifest, "sessions": sessions}))
                lacking = self._lacking(found) if status in COMPLETE else None
                if status == "complete" and found.inventory.errors:
                    status = "complete_with_errors"
        except CollageError as error:  # a damaged part
            fault = error
        status = "incomplete" if fault or lacking else status
        try:
            self._seal(status, final, found)
            if summary and found is not None:
                self._summarise(found)
            if status in COMPLETE:  # last: a run with the marker is not begun again
                line = json.dumps({"status": status, "run_id": self.manifest["run_id"]})
                write_atomic(self.out / MARKER, (line.encode(), b"\n"), check=self._claim.check)
        except CollageError as error:
            fault = fault or error
        except OSError as error:
            fault = fault or unwritable(self.out, error)
        if fault:
            raise fault
        return lacking

    def _lacking(self, found: Tally) -> str | None:
        """A message about images without a row on the disk; None if there are none."""
        missing = found.inventory.input.missing
        if not missing:
            return None
        return (
            f"{missing:,} of {self.manifest['rows']:,} images have no row in "
            f"{self.out / PARTS_FOLDER} any more: parts were removed while the job ran"
        )

    def _seal(self, status: str, final: Mapping[str, Any], found: Tally | None) -> None:
        """Write the manifest."""
        publishing = None if self.publisher is None else self.publisher.fault
        written = None if self._thread.fault or publishing else self.counts
        entry = {"session": self.session, "status": status, "rows": written, "final": dict(final)}
        entry["ended"] = _now()
        self.manifest.update(final)
        self.manifest["status"] = status
        lost = {"rows": None} if publishing else {}  # parts of any team may be unpublished
        others = [{**team, **lost, "ended": entry["ended"]} for team in self.teams]
        self.manifest["sessions"] = [*self.manifest["sessions"], entry, *others]
        if others:
            worlds = ((team["final"] or {}).get("world") or [] for team in others)
            self.manifest["world"] = [*(final.get("world") or []), *chain(*worlds)]
        if found is not None:
            _mark_lost_rows(self.manifest["sessions"], found.inventory)
            for held, counts in zip(
                self.manifest.get("thresholds") or (), found.thresholds.counts(), strict=True
            ):
                held |= counts
        self.manifest = _as_read(self.manifest)
        write_manifest(self.out, self.manifest, self._claim.check)

    def _summarise(self, found: Tally) -> None:
        run = known_run(self.out, self.manifest)
        run = replace(run, complete=self.manifest["status"] in COMPLETE)
        self.summary = summarise(run, found)
        save_summary(self.summary, self.out, self._claim.check)


def _prepared(manifest: Mapping[str, Any], *, session: int, sessions: list[Any]) -> Json:
    """The manifest of a session, with format and version, as a reader will see it. Checked."""
    own = {"format": FORMAT, "version": VERSION, "session": session, "sessions": sessions}
    given = {"started": _now(), **manifest, **own, "accepted": {}, "status": "incomplete"}
    if given.get("teams"):
        given["launches"] = [[session, given["teams"]]]
    return _as_read(given)


def _make_folders(out: Path, manifest: Json) -> None:
    if extras_of(manifest):
        (out / VECTORS_FOLDER).mkdir(exist_ok=True)
    if manifest.get("teams"):
        (out / PENDING_FOLDER).mkdir(exist_ok=True)


def _number_session(full: Json, before: Json, directory: Path) -> None:
    """Give the session a number above those of all parts, and append its launch.

    The manifest may have been restored from an older copy, which lacks sessions that have parts.
    """
    last = max((part.session for part in parts.list_parts(directory)), default=0)
    full["session"] = max(full["session"], last + 1)
    own = [[full["session"], full["teams"]]] if full.get("teams") else []
    launches = [*(before.get("launches") or []), *own]
    if launches:
        full["launches"] = launches


def _mark_lost_rows(sessions: list[Json], found: Inventory) -> None:
    """Set the row counts of sessions whose rows are missing to None."""
    for entry in filter(found.lacks_rows, sessions):
        entry["rows"] = None


def _missing(done: np.ndarray, manifest: Json) -> int:
    """The number of images of the input that are not in `done`, (n,) of KEY_ROW."""
    marks = InputCoverage(manifest, len(done))
    marks.add(done)
    return marks.missing


def _is_shared(manifest: Mapping[str, Any]) -> bool:
    """Whether the session's settings allow a folder of another user."""
    return bool(manifest["settings"].get("shared_out") == "on")


def _as_read(manifest: Mapping[str, Any]) -> Json:
    """The manifest as a reader will see it, with the reader's checks."""
    found = readable(json.loads(json.dumps(manifest, default=plain)))
    return check_manifest(found, "the run's manifest")


def _next_session(out: Path, manifest: Mapping[str, Any]) -> tuple[Json, Json]:
    """The manifest in `out`, and the manifest of the next session with these settings.

    Raises:
        UsageError: the settings differ.
    """
    refuse_foreign(out, _is_shared(manifest))
    before = read_manifest(out)
    next_session = sessions_of(before).stop
    full = _prepared(manifest, session=next_session, sessions=_sessions_until(before))
    changed = differences(before, full)
    if changed:
        listed = "\n  ".join(changed)
        raise UsageError(
            f"{out}: cannot resume with other settings:\n  {listed}\n"
            f"{resume_command(before, out)} takes the run's own settings; the files that "
            "they name must not have changed. Or choose another --out."
        )
    full["run_id"] = before["run_id"]
    full["started"] = before.get("started", full["started"])
    return before, full


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Lines that say what a resumed session would change; [] if the session may go on.

    Args:
        before, now: manifests as read from JSON, so with lists and no tuples.
    """
    lines = []
    grown = _mended(before, now)
    for key in SAME_KEYS:
        if grown and key in GROWING_KEYS:
            continue
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
    return lines


def _other_content(key: str, before: tuple[Any, str], now: tuple[Any, str]) -> list[str]:
    """A line if the content of a file differs; [] if not. `before` and `now` are (path,
    SHA-256)."""
    (old, had), (new, has) = before, now
    there = "" if new == old else f"{new}: "
    line = f"{key} {old}: SHA-256 {had[:12]}... before, {there}{has[:12]}... now"
    return [] if had == has else [line]


def _mended(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the input is the former input followed by shards that were unreadable before."""
    more = len(now["shards"]) - len(before["shards"])
    known = now["shards"][: len(before["shards"])]
    return (
        0 < more <= len(before.get("bad_shards") or [])
        and now.get("limit") is None
        and not _other_shards(before["shards"], known)
    )


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


def _as_input_is_now(out: Path, before: Json, full: Json) -> StoredRun:
    """The run, whose rows do not count if their pictures have changed since.

    Raises:
        UsageError: a picture has changed that was answered before.
        EnvironmentFault, DataFault: as `known_run`.
    """
    run = known_run(out, {**before, "shards": full["shards"]})
    rows = run.outdated_rows()
    rows = rows[rows["answered"]]
    if len(rows):
        first = full["shards"][int(rows["shard"][0])]["path"]
        raise UsageError(
            f"{out}: {counted(len(rows), 'picture')} changed after the answer was written, such as "
            f"row {rows['row'][0]} of {first}. Put back what was there, or choose another --out."
        )
    return run


def _sessions_until(before: Json) -> list[Json]:
    """The sessions of a manifest, with entries for sessions of the last launch that were killed.

    Only the batch size of a killed session is known. It is recorded, because the next session may
    choose another.
    """
    known = before.get("sessions") or []
    ended = {entry["session"] for entry in known}
    killed = {"status": "incomplete", "rows": None, "final": {"batch": before.get("batch") or 1}}
    return [*known, *({"session": n, **killed} for n in sessions_of(before) if n not in ended)]


@contextmanager
def _claimed(out: Path, patience: Patience) -> Iterator[Claim]:
    """Takes the claim on a folder, and releases it if the block fails."""
    claim = Claim.take(out, patience)
    try:
        yield claim
    except (OSError, CollageError):
        claim.release()
        raise


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")

"""Writing a run: rows in on rank 0's hot path, parts out on a thread of their own.

Owns: create, reopen, close; which sessions vouch for their rows.
Does not know: MPI, the scheduler, statistics, threads (buffers has the one there is).

A row costs about 1 us as a tuple and 4 us by field names: it is packed into a
preallocated buffer. Full buffers
(or those older than `flush_s`) go to the thread, whose work (CRC, write, fsync of 4 to
8 ms) releases the interpreter lock, so rank 0 keeps polling. When the disk is so slow
that the queue fills, the caller waits: bounded memory comes first.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.results import parts
from collage_mpi.results.atomic import remove_leftovers, write_atomic
from collage_mpi.results.buffers import Buffer, PartThread, unwritable
from collage_mpi.results.manifest import (
    COMPLETE,
    FORMAT,
    MANIFEST,
    MARKER,
    STATUSES,
    VERSION,
    Json,
    check_manifest,
    differences,
    plain,
    read_manifest,
    write_manifest,
)
from collage_mpi.results.reader import standing
from collage_mpi.results.rows import (
    GROUPS,
    IMAGES,
    KEY_ROW,
    TABLES,
    TASKS,
    Table,
)

ROWS_PER_PART = 4096  # about 0.8 MB of images
FLUSH_S = 10.0  # a kill costs the rows of the last ten seconds: they are done again


class RunWriter:
    """The one writer of a run directory. Not shared between threads of the caller."""

    def __init__(
        self,
        out: Path,
        manifest: Json,
        *,
        rows_per_part: int = ROWS_PER_PART,
        flush_s: float = FLUSH_S,
    ) -> None:
        """Start the thread; use `create` or `reopen`, which prepare the directory."""
        self.out = out
        self.manifest = manifest
        self.session: int = manifest["session"]
        self._thread = PartThread(out / parts.PARTS_DIRECTORY)
        self._images, self._groups, self._tasks = (
            Buffer(table, self._thread, rows_per_part, flush_s) for table in TABLES
        )
        self._closed = False
        self._earlier_errors = False  # error rows of earlier sessions that stay

    @classmethod
    def create(cls, out: Path, manifest: Mapping[str, Any], **options: Any) -> RunWriter:
        """Begin a new run in `out`, which is made where it does not exist.

        Raises:
            EnvironmentFault: `out` cannot be written, or holds a run already.
            DataFault: the manifest lacks a key or has one of a wrong type.
        """
        out = Path(out)
        full = _prepared(manifest, session=1, sessions=[])
        if (out / MANIFEST).exists():
            raise _holds_a_run(out)
        try:
            out.mkdir(parents=True, exist_ok=True)
            directory = out / parts.PARTS_DIRECTORY
            directory.mkdir(exist_ok=True)
            if any(parts.list_parts(directory, table) for table in TABLES):
                raise EnvironmentFault(
                    f"{out}: holds rows of a run whose {MANIFEST} is gone. Restore it from a copy, "
                    "or choose another --out."
                )
            remove_leftovers(directory)  # a kill before the manifest was written
            remove_leftovers(out)
            write_manifest(out, full)
        except OSError as error:
            raise _no_place(out, error) from error
        return cls(out, full, **options)

    @classmethod
    def reopen(
        cls, out: Path, manifest: Mapping[str, Any], *, retry_errors: bool = False, **options: Any
    ) -> tuple[RunWriter, np.ndarray]:
        """Go on with the run in `out`: same settings, next session, leftovers repaired.

        Args:
            retry_errors: images with error rows are not done.

        Returns:
            The writer, and the keys that are done: (k,) of KEY_ROW (shard u4, row u8).

        Raises:
            UsageError: the settings differ; the message lists the differences.
            EnvironmentFault: no run in `out`, or it cannot be written.
            DataFault: a part or the manifest is damaged.
        """
        out = Path(out)
        before = read_manifest(out)
        session = before["session"] + 1
        full = _prepared(manifest, session=session, sessions=before.get("sessions") or [])
        changed = differences(before, full)
        if changed:
            listed = "\n  ".join(changed)
            raise UsageError(
                f"{out}: cannot resume with other settings:\n  {listed}\n"
                f"run --resume --out {shlex.quote(str(out))} alone takes the run's own settings; "
                "files must hold what they held. Or choose another --out."
            )
        full["run_id"] = before["run_id"]
        full["started"] = before.get("started", full["started"])
        directory = out / parts.PARTS_DIRECTORY
        try:
            directory.mkdir(exist_ok=True)
            remove_leftovers(directory)
            remove_leftovers(out)
            found = {table.name: _read_all(directory, table) for table in TABLES}
            _mark_lost_rows(full["sessions"], found)
            images = found[IMAGES.name]
            images = images[standing(images)]
            if retry_errors:
                images = images[images["answered"]]
            if len(images) < full["rows"]:
                (out / MARKER).unlink(missing_ok=True)
            write_manifest(out, full)
        except OSError as error:
            raise unwritable(out, error) from error
        done = np.empty(len(images), KEY_ROW)
        done["shard"], done["row"] = images["shard"], images["row"]
        writer = cls(out, full, **options)
        writer._earlier_errors = not images["answered"].all()
        return writer, done

    @classmethod
    def finished(
        cls, out: Path, manifest: Mapping[str, Any], *, retry_errors: bool = False
    ) -> str | None:
        """The status of the run in `out` if it is complete with these settings, else None.

        Args:
            retry_errors: a run with error rows is not.

        Raises:
            EnvironmentFault: no run in `out`.
            DataFault: its manifest is damaged.
        """
        before = read_manifest(Path(out))
        same = not differences(before, _prepared(manifest, session=1, sessions=[]))
        whole = (Path(out) / MARKER).exists() and before.get("status") in COMPLETE
        whole = whole and not (retry_errors and before["status"] != "complete")
        return before["status"] if same and whole else None

    @property
    def written(self) -> bool:
        """Whether any row was taken in this session."""
        return any(buffer.total for buffer in (self._images, self._groups, self._tasks))

    def discard(self) -> None:
        """Take back a run that has no rows: the folder is as it was, or gone if it is empty."""
        self._closed = True
        self._thread.end()
        for path in (self.out / MANIFEST, self.out / parts.PARTS_DIRECTORY, self.out):
            try:
                path.rmdir() if path.is_dir() else path.unlink()
            except OSError:
                return  # somebody else's files: leave them

    def note(self, **facts: Any) -> None:
        """Keep in the manifest, at once, what is known when the ranks are ready.

        Raises:
            EnvironmentFault: it cannot be written.
        """
        self.manifest = _as_read({**self.manifest, **facts})
        try:
            write_manifest(self.out, self.manifest)
        except OSError as error:
            raise unwritable(self.out, error) from error

    def image(self, row: tuple | None = None, /, **fields: Any) -> None:
        """Record one image: an ImageRow (or a tuple in its order), or its fields by name.

        By name, `source` may be a name of SOURCES and `session` defaults to this one.

        Raises:
            EnvironmentFault: an earlier part could not be written (disk full...).
            struct.error, TypeError: a value does not fit its column.
        """
        self._images.add(row if row is not None else self._row(IMAGES, fields))

    def group(self, row: tuple | None = None, /, **fields: Any) -> None:
        """Record one group: a GroupRow, or its fields by name. Raises as `image`."""
        self._groups.add(row if row is not None else self._row(GROUPS, fields))

    def task(self, row: tuple | None = None, /, **fields: Any) -> None:
        """Record one task: a TaskRow, or its fields by name. Raises as `image`."""
        self._tasks.add(row if row is not None else self._row(TASKS, fields))

    def flush(self) -> None:
        """Hand all buffered rows to the thread now; does not wait for the disk."""
        for buffer in (self._tasks, self._groups, self._images):
            buffer.hand_over()

    def close(self, status: str, **final: Any) -> None:
        """Write what is buffered, then the manifest, then (if complete) the marker.

        Args:
            status: of this session: complete, complete_with_errors or incomplete. The run's
                is complete_with_errors too where an earlier session left error rows.
            **final: merged into the manifest ("poll", "validity", "world", ...) and kept
                with this session.

        Raises:
            EnvironmentFault: rows could not be written; the run then says incomplete, and
                all parts written before are intact.
        """
        if status not in STATUSES:
            raise ValueError(f"status {status!r} is none of {', '.join(STATUSES)}")
        if self._closed:
            return
        self._closed = True
        if status == "complete" and self._earlier_errors:
            status = "complete_with_errors"
        fault = self._drain()
        try:
            self._seal("incomplete" if fault else status, final)
        except OSError as error:
            fault = fault or unwritable(self.out, error)
        if fault:
            raise fault

    def _drain(self) -> EnvironmentFault | None:
        """Hand over the rest, end the thread; the fault of any write, if there was one."""
        fault: EnvironmentFault | None = None
        try:
            self.flush()
        except EnvironmentFault as error:
            fault = error
        self._thread.end()
        return fault or self._thread.fault

    def _seal(self, status: str, final: Mapping[str, Any]) -> None:
        """Manifest first, marker last: the marker is never there without its rows."""
        counts = {
            buffer.table.name: buffer.total for buffer in (self._images, self._groups, self._tasks)
        }
        written = None if self._thread.fault else counts
        entry = {"session": self.session, "status": status, "rows": written, "final": dict(final)}
        entry["ended"] = _now()
        self.manifest.update(final)
        self.manifest["status"] = status
        self.manifest["sessions"] = [*self.manifest["sessions"], entry]
        self.manifest = _as_read(self.manifest)
        write_manifest(self.out, self.manifest)
        if status in COMPLETE:
            line = json.dumps({"status": status, "run_id": self.manifest["run_id"]})
            write_atomic(self.out / MARKER, (line.encode(), b"\n"))

    def _row(self, table: Table, fields: dict[str, Any]) -> tuple:
        """Fields by name to a row: names to codes, this session as the default."""
        for column, codes in table.coded.items():
            value = fields.get(column)
            if type(value) is str:
                fields[column] = codes[value]
        return table.row(**{"session": self.session, **table.defaults, **fields})


def _prepared(manifest: Mapping[str, Any], *, session: int, sessions: list) -> Json:
    """The manifest as it will be read back: format, version, session; types checked."""
    own = {"format": FORMAT, "version": VERSION, "session": session, "sessions": sessions}
    given = {"started": _now(), **manifest, **own, "status": "incomplete"}
    return _as_read(given)


def _as_read(manifest: Mapping[str, Any]) -> Json:
    """The manifest as a reader will find it, refused here rather than there."""
    return check_manifest(json.loads(json.dumps(manifest, default=plain)), "the run's manifest")


def _read_all(directory: Path, table: Table) -> np.ndarray:
    found = [parts.read_part(path, table) for path in parts.list_parts(directory, table)]
    return np.concatenate(found) if found else np.empty(0, table.dtype)


def _mark_lost_rows(sessions: list[Json], found: Mapping[str, np.ndarray]) -> None:
    """A session that lacks rows it once recorded (a part was moved away) stops vouching."""
    for entry in sessions:
        for name, count in (entry.get("rows") or {}).items():
            if int((found[name]["session"] == entry["session"]).sum()) != count:
                entry["rows"] = None
                break


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _no_place(out: Path, error: OSError) -> EnvironmentFault:
    what = "is a file" if out.is_file() else f"cannot be written: {error.strerror or error}"
    return EnvironmentFault(f"{out}: {what}; --out needs a folder that you may write to")


def _holds_a_run(out: Path) -> EnvironmentFault:
    return EnvironmentFault(
        f"{out}: holds a run already. Choose another --out, or go on with it: run --resume."
    )

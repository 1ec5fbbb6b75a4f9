"""Parts: the files that hold a run's rows. A part is written once and never changed. The rows of
parts of images become a file of rows/ when their lease is closed (`lease_files`).

A part is a Parquet file (`columns`). Rows, the values that are kept of their images, and a checksum
are in one file, so one rename commits all, and a kill never leaves one without the others.

A part's name contains the session of the job that wrote it, so two jobs never write the same file.
A row of an image counts if the last record of the ledger names its part and its position. A row of
a task counts if its part is there.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault
from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.cells import without
from collage_mpi.ledger.reading import View, replaced, runs
from collage_mpi.ledger.records import FORMAT, Damage, Format, Part, Run, decode, run_name
from collage_mpi.ledger.spans import Spans
from collage_mpi.ledger.store import UNSEEN_S, FolderStore
from collage_mpi.results import MANIFEST, PARTS_FOLDER, ROWS_FOLDER
from collage_mpi.results.columns import Form, as_table, parquet_bytes, read_end
from collage_mpi.rows import IMAGES, TableLayout
from collage_mpi.system.files import UNREADABLE_OR_GONE, load_json, reading, write_atomic

OURS = r"(images|tasks)-(\d{4,5})-(\d{6,18})\.parquet"  # table, session, number
_NAME = re.compile(OURS)
T = TypeVar("T")


class PartName(NamedTuple):
    """A part, or a file of rows/. Sorting them gives the order in which each job wrote them."""

    session: int  # 0: a file of rows/
    number: int  # from 1, counted for each session and table; where the lease starts
    table: str
    path: Path
    spans: Spans = ()  # positions of its rows that count, of images
    rows: int = 0  # that are in its file, of images
    group: int | None = None  # the only row group of the file that is meant
    size: int = 0  # of the file that has this group

    @property
    def is_lease(self) -> bool:
        """Whether it is a file of rows/. What else is in there does not matter."""
        return not self.session

    @property
    def whole(self) -> bool:
        """Whether all its rows count."""
        return sp.count(self.spans) == self.rows


class Ledger(NamedTuple):
    """What the ledger of a run says.

    Attributes:
        runs: by number.
        parts: those of images that have rows that count, and all of tasks; by session and number.
        errors: positions whose row is an error row.
        complete: whether each image has its row, and the run is marked so.
        due: each image that is listed has its row, and more are to be listed.
        late: see `reading.Found`.
    """

    runs: tuple[Run, ...]
    parts: tuple[PartName, ...]
    errors: Spans
    complete: bool
    late: tuple[str, ...] = ()
    due: bool = False

    @property
    def status(self) -> str:
        """Of the run."""
        done = "complete_with_errors" if self.errors else "complete"
        return done if self.complete else "incomplete"


def part_path(directory: Path, table: TableLayout, session: int, number: int) -> Path:
    """The path of part `number` (from 1) of a table in a session."""
    return directory / f"{table.name}-{session:04d}-{number:06d}.parquet"


def list_parts(directory: Path) -> list[PartName]:
    """The parts of all tables, in the order in which they were written.

    Raises:
        OSError: the folder cannot be listed.
    """
    found = map(named, directory.iterdir())
    return sorted(part for part in found if part is not None)


def named(path: Path) -> PartName | None:
    """What the name of a part says, or of a file of rows/; None for another file."""
    if path.parent.name == ROWS_FOLDER:
        return PartName(0, int(path.stem), IMAGES.name, path)
    match = _NAME.fullmatch(path.name)
    return PartName(int(match[2]), int(match[3]), match[1], path) if match else None


def read_runs(out: Path) -> tuple[Run, ...]:
    """The numbered runs in `out`, at least one. Each adds positions to those before it.

    Raises:
        EnvironmentFault: there is no run in `out`, it cannot be read, or it is of another format.
        DataFault: it is damaged.
    """
    store = FolderStore(out)
    with reading(out):
        raw = _opened(store, run_name(1))
        if raw is None:
            raise _no_run(out)
        form = decode(Format, raw, run_name(1)).format  # first: another one has other fields
        if form != FORMAT:
            raise other_format(out, form)
        return tuple(runs(store))


def _opened(store: FolderStore, name: str) -> bytes | None:
    try:
        return store.read(name)
    except NotADirectoryError:
        return None


def other_format(out: Path, found: object) -> EnvironmentFault:
    """The error to raise if the run in a folder is of a format of another version."""
    return EnvironmentFault(
        f"{out}: a run of format {found}; this version of collage-mpi needs format {FORMAT}. The "
        "version that wrote the run reads it. For a new run choose another --out."
    )


def _no_run(out: Path) -> EnvironmentFault:
    if not (out / MANIFEST).is_file():
        return EnvironmentFault(
            f"{out}: no run here ({run_name(1)} not found). Name a directory that "
            "`collage-mpi run --out DIR` made."
        )
    try:
        older = load_json(out / MANIFEST)
    except UNREADABLE_OR_GONE:
        older = None
    return other_format(
        out, older.get("version", "unknown") if isinstance(older, dict) else "unknown"
    )


class LedgerReader:
    """Looks at the ledger of a run, again and again. Closed cells are read once."""

    def __init__(self, out: Path) -> None:
        """`out`: the run's folder."""
        self._out, self._store, self._views = out, FolderStore(out), dict[int, View]()

    def look(self) -> Ledger:
        """What the ledger says now. Jobs may write to it meanwhile.

        Raises:
            EnvironmentFault: as `read_runs`.
            DataFault: as `read_runs`; a record is damaged or missing.
        """
        known, folder = read_runs(self._out), self._out / PARTS_FOLDER
        rows, complete, grows, late = list[Part](), False, False, list[str]()
        with reading(self._out):
            for run in known:
                view = self._views.setdefault(run.number, View(self._store, run))
                found = view.look()
                rows = [*without(rows, replaced(run, found.counted)), *found.parts]
                complete, grows = found.complete, run.grows  # of the last one
                late += found.late
            listed = list_parts(folder) if folder.is_dir() else []
        parts = {part.path.name: part for part in listed if part.table != IMAGES.name}
        spans = dict[str, Spans]()
        for row in rows:
            own = spans[row.file] = sp.union(spans.get(row.file, ()), row.spans)
            part, count = named(self._out / row.name), sp.count(sp.union(own, row.others))
            if part is None:
                raise Damage(row.file, "a record names it, but it is no part of a run")
            parts[row.file] = part._replace(spans=own, rows=count)
        errors = sp.union(*(row.errors for row in rows))
        written, done = tuple(sorted(parts.values())), complete and not grows
        return Ledger(known, written, errors, done, tuple(late), complete and grows)


def read_ledger(out: Path) -> Ledger:
    """What the ledger of the run in `out` says now. Raises as `LedgerReader.look`."""
    return LedgerReader(out).look()


def counted(out: Path) -> tuple[PartName, ...]:
    """The parts of the run in `out` that count, by session and number. Raises as `read_ledger`."""
    return read_ledger(out).parts


def by_row_groups(part: PartName) -> list[PartName]:
    """A file of rows/ as its row groups, which are read one by one; another part, or a file that
    cannot be read, as it is."""
    if not part.is_lease:
        return [part]
    try:
        size, (_, groups) = part.path.stat().st_size, read_end(part.path)
    except (CollageError, OSError):  # who reads it is told
        return [part]
    return [part._replace(group=group, size=size) for group in range(groups)]


def read_where_it_lies(part: PartName, read: Callable[[PartName], T]) -> list[T]:
    """What `read` returns for a part. If the part is gone, because its leases were closed after the
    ledger was read, for each file of rows/ in which its rows that count lie now.

    Raises:
        DataFault: as `read`, also if the ledger still names the part.
        EnvironmentFault: as `read_ledger`; the file was replaced after its row groups were told.
    """
    with reading(part.path):
        if part.group is not None and part.path.exists() and part.path.stat().st_size != part.size:
            raise EnvironmentFault(f"{part.path}: replaced while it was read. Repeat the command")
    try:
        return [read(part)]
    except DataFault:
        if part.path.exists() or part.table != IMAGES.name or part.is_lease:
            raise
        now = _where(part)
        if any(each.path == part.path for each in now):
            raise
    return [found for each in now for found in read_where_it_lies(each, read)]


def _where(part: PartName) -> list[PartName]:
    """The files with the rows of a part, as the ledger says now. What others have written may be
    seen late."""
    until_s = time.monotonic() + UNSEEN_S
    while True:
        ledger = read_ledger(part.path.parent.parent)
        found = [(each, sp.common(each.spans, part.spans)) for each in ledger.parts]
        now = [each._replace(spans=spans) for each, spans in found if spans]
        named = any(each.path == part.path for each in now)
        if not (named and ledger.late) or time.monotonic() >= until_s:
            return now
        time.sleep(1.0)


def rows_at(images: np.ndarray | Mapping[str, np.ndarray], spans: Spans) -> np.ndarray:
    """(n,) bool, which rows of images have one of the positions."""
    ends = np.array([end for span in spans for end in span], np.uint64)
    found: np.ndarray = np.searchsorted(ends, images["position"], side="right") % 2 == 1
    return found


def write_part(
    path: Path,
    table: TableLayout,
    rows: np.ndarray,
    form: Form,
    vectors: Sequence[np.ndarray] = (),
) -> tuple[int, int]:
    """Write the rows of one part atomically; the size of the file, and its CRC-32.

    Args:
        path: of the file.
        table: of the rows.
        rows: (n,) of the table's dtype.
        form: see `columns`.
        vectors: kept values of the answered images.

    Raises:
        OSError: the disk is full, or there is no permission.
    """
    pieces = parquet_bytes(as_table(rows, table, form, vectors))
    write_atomic(path, pieces)
    return sum(map(len, pieces)), reduce(lambda crc, piece: zlib.crc32(piece, crc), pieces, 0)

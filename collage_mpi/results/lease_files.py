"""Files of leases: `rows/START.parquet` holds the rows of a closed cell of the ledger, and what is
kept of their images, for whoever reads Parquet.

A file is made by one link, and its name is that of its cell, so that no image is in two of them at
any moment. A row that a later run has asked again replaces the older row in the file of that one,
which is put in the place of the older file by one rename, before the later run is complete. So go
the rows that a later run drops.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault
from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.cells import Cell
from collage_mpi.ledger.reading import at_home, counted, first_places, last_rows, runs, without
from collage_mpi.ledger.records import COMPLETE, Part, Run, news_name
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results import PARTS_FOLDER, ROWS_FOLDER
from collage_mpi.results.columns import (
    ABOUT,
    flat_of_column,
    numbers,
    positions_in,
    read_schema,
    read_table,
    written,
)
from collage_mpi.results.number_sets import NumberSet
from collage_mpi.results.parts import rows_at

GROUP_BYTES = 8 << 20  # of a row group, in memory


class LeaseFiles:
    """Makes the files of leases. A job calls it before it packs a cell, and before it marks a run
    as complete. A part that is damaged stays where it is, for `verify` to tell; the file of its
    lease is then not made.
    """

    def __init__(self, out: Path, run: Run) -> None:
        """`out`: the folder of the runs, the last of which is `run`."""
        self._out, self._run, self._store = out, run, FolderStore(out)

    def make(self, store: FolderStore, cell: Cell, alive: Callable[[], object]) -> None:
        """Make the file of a closed cell unless it is there.

        Args:
            store: the folder of the runs.
            cell: with its last record.
            alive: is called again and again.

        Raises:
            OSError: it may have been made nevertheless. FileNotFoundError: a part is not to be
                seen.
        """
        first, name = self._run.first, rows_name(cell.start)
        parts = without(last_rows(cell.parts), ((first, first + sp.count(self._run.again)),))
        if parts:
            with suppress(DataFault):
                there = (self._out / name).exists()
                if there or not store.link(name, self._content(parts, alive), self.goes_on):
                    store.sync_folder(name)  # who made it may have died, or had an error, before

    def finish(self, alive: Callable[[], object] = tuple) -> None:
        """Let the rows that the run has asked again replace the older ones, and those that it drops
        go. All its cells are closed. Raises as `make`."""
        first, again, dropped = self._run.first, self._run.again, self._run.dropped
        if not again and not dropped:
            return
        changed = sp.union(((first, first + sp.count(again)),), dropped)
        homes = at_home(runs(self._store), changed).keys()
        for start, parts in closed(self._store).items():
            if start in homes:
                self.mend(start, parts, alive, self.goes_on)
        self._store.sync_folder(rows_name(first))  # as in `make`

    def mend(
        self,
        start: int,
        parts: Sequence[Part],
        alive: Callable[[], object] = tuple,
        still: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Make the file of a cell, or put another one in its place, or none if the cell has no rows
        any more, unless it is as it should be.

        Args:
            start: of the cell.
            parts: its rows, as `closed` finds them.
            alive: is called again and again.
            still: is asked last of all whether the file is still to be made.

        Returns:
            Whether it was not as it should be.

        Raises: as `make`.
        """
        right = wrong_with(self._out, start, parts, self._run_id) is None
        if not right and not parts:
            self._store.remove(rows_name(start))
            self._store.sync_folder(rows_name(start))
        elif not right:
            with suppress(DataFault):
                self._store.replace(rows_name(start), self._content(parts, alive), still)
        return not right

    @cached_property
    def _run_id(self) -> str | None:
        return runs(self._store)[0].settings.get("run_id")

    def goes_on(self) -> bool:
        """Whether nobody has marked the run as complete: then its files are as they should be, or
        of a later run."""
        return not (self._store.read(news_name(self._run)) or b"").startswith(COMPLETE)

    def _content(
        self, parts: Sequence[Part], alive: Callable[[], object]
    ) -> Iterator[bytes | memoryview]:
        """The file's content, a row group at a time."""
        import pyarrow as pa

        schemas = [read_schema(self._path(part)) for part in parts]
        try:
            schema = pa.unify_schemas([each.remove_metadata() for each in schemas])
            facts = [json.loads(each.metadata[ABOUT]) for each in schemas]
            jobs = {number: job for fact in facts for number, job in fact["jobs"].items()}
        except (pa.ArrowException, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataFault(f"parts of the run have different columns: {error}") from error
        schema = schema.with_metadata({ABOUT: json.dumps({**facts[0], "jobs": jobs})})

        def groups() -> Iterator[Any]:
            waiting = [pa.Table.from_batches([], schema)]  # `empty_table` imports pandas
            for part in parts:
                alive()
                table = read_table(self._path(part))
                table = table.filter(numbers(rows_at(positions_of(table), part.spans)))
                waiting.append(table.replace_schema_metadata(schema.metadata))
                if sum(each.nbytes for each in waiting) >= GROUP_BYTES:
                    yield pa.concat_tables(waiting, promote_options="default")
                    waiting = []
            if waiting:
                yield pa.concat_tables(waiting, promote_options="default")

        return written(schema, groups())

    def _path(self, part: Part) -> Path:
        path = self._out / PARTS_FOLDER / part.file
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return path


def rows_name(start: int) -> str:
    """The file of a lease, by the start of its cell."""
    return f"{ROWS_FOLDER}/{start}.parquet"


def closed(store: FolderStore) -> dict[int, list[Part]]:
    """Start of each closed cell -> the rows that lie in its file; [] if it has none any more, for
    they were dropped. Raises OSError, Damage."""
    known, there = runs(store), counted(store)
    found = dict[int, list[Part]]()
    for part in there:
        for start, spans in at_home(known, part.spans).items():
            errors = sp.common(part.errors, spans)
            found.setdefault(start, []).append(Part(part.file, part.size, part.crc, spans, errors))
    each = (*(part.spans for part in there), *(run.dropped for run in known))
    done = first_places(known, sp.union(*each))
    cells = [
        (start, ((max(start, run.first + sp.count(run.again)), run.end(start)),))
        for run in known
        for start in run.starts
    ]
    return {
        start: found.get(start, [])
        for start, own in cells
        if own[0][0] < own[0][1] and not sp.minus(own, done)
    }


def positions_of(table: Any) -> dict[str, Any]:
    """The positions of rows in a pyarrow.Table, as `rows_at` takes them."""
    return {"position": flat_of_column(table["position"])}


def strangers(out: Path, there: Iterable[int]) -> list[str]:
    """Names of what lies in rows/ as other readers take it, and is no file of a closed cell."""
    known, found = {*map(rows_name, there)}, sorted(out.glob(f"{ROWS_FOLDER}/*.parquet"))
    names = {str(path.relative_to(out)) for path in found if path.is_file()} & known
    return [path.name for path in found if str(path.relative_to(out)) not in names]


def wrong_with(out: Path, start: int, parts: Sequence[Part], run_id: str | None) -> str | None:
    """What is wrong with the file of a closed cell; None if it has the rows of these parts of the
    run, or is not there and there are none."""
    path = out / rows_name(start)
    if path.is_file() != bool(parts):
        missing = "missing, though its images have rows. collage-mpi verify --repair makes it"
        left = "there, though its rows were dropped. collage-mpi verify --repair removes it"
        return f"{path}: {missing if parts else left}"
    if not parts:
        return None
    wanted = sp.union(*(part.spans for part in parts))
    wrong, found = 0, NumberSet(wanted[-1][1] - wanted[0][0])
    try:
        for positions in positions_in(path, run_id):
            again = found.add(positions.astype(np.int64) - wanted[0][0])
            wrong += int((again | ~rows_at({"position": positions}, wanted)).sum())
    except DataFault as error:
        return str(error)
    if wrong or len(found) != sp.count(wanted):
        return f"{path}: has other rows than the ledger says. collage-mpi verify --repair mends it"
    return None

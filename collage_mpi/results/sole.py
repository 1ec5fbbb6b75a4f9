"""Writes a run that one process makes without other jobs: a simulation, or a test."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timezone
from itertools import count as count_up
from pathlib import Path
from typing import Any

from collage_mpi.errors import CollageError
from collage_mpi.ledger.jobs import note, register
from collage_mpi.ledger.owner import Owner, join
from collage_mpi.ledger.reading import View, runs
from collage_mpi.ledger.records import LARGEST_CELL, Part, Run
from collage_mpi.ledger.spans import Spans, count
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results import PARTS_FOLDER
from collage_mpi.results.jobs import entry
from collage_mpi.results.lease_files import LeaseFiles
from collage_mpi.results.reader import open_run
from collage_mpi.results.row_sink import RowSink, unwritable
from collage_mpi.results.summary import write_summary
from collage_mpi.system.files import make_directory

Json = dict[str, Any]


class SoleWriter(RowSink):
    """Takes the rows of a job that does all images of a run that nobody else has done.

    Attributes:
        fixed: what fixes the rows of the run.
        run: in the ledger.
        summary: of the run, once `close` has written one.
    """

    summary: Json | None

    def __init__(
        self, out: Path, fixed: Mapping[str, Any], again: Spans = (), **options: Any
    ) -> None:
        """Begin the run in a folder, or go on with the one that is there.

        Args:
            out: the folder, which is made if there is none.
            fixed: what fixes the rows of the run.
            again: positions to ask again, in a run that comes after the last one.
            **options: of `RowSink`.

        Raises:
            EnvironmentFault: the folder cannot be written.
        """
        self.fixed, self.summary = fixed, None
        store, name = FolderStore(out), os.urandom(16).hex()
        try:
            make_directory(out)
            store.make()
            (out / PARTS_FOLDER).mkdir(exist_ok=True)
            known = runs(store)
            first = known[-1].stop if known else 0
            rows = count(again) if again else fixed["rows"]
            cell, settings = (
                max(1, min(rows, LARGEST_CELL)),
                {} if again else entry({"started": _now(), **fixed}),
            )
            mine = Run(len(known) + 1, first, first + rows, cell, name, again, True, settings)
            run = join(store, known[-1] if known and not again else mine)
            session = register(store, name, {}, rows=PARTS_FOLDER)
        except OSError as error:
            raise unwritable(out, error) from error
        ticks = count_up()  # it waits for nobody, so its time is the number of its steps
        self._store, self.run = store, run
        self._owner = Owner(
            store, run, clock=lambda: next(ticks) / 100, name=name, files=LeaseFiles(out, run)
        )
        found = View(store, run).look()
        free = run.stop - run.first - count(found.counted) - sum(map(count, found.holds.values()))
        while free > (taken := sum(count(grant.spans) for grant in self._owner.grants)):
            self._owner.turn(free - taken)
        self._parts: list[Part] = []
        super().__init__(out, fixed, session, self._parts.append, **options)

    def commit(self) -> CollageError | None:
        """Write all rows, let them count, and give back all other images. Takes no row afterwards.
        Returns what went wrong."""
        fault = self.drain()
        while self._parts:
            self._owner.wrote(self._parts.pop(0))
        while not self._owner.leave():
            pass
        return fault

    def close(self, status: str, *, summary: bool = False, **final: Any) -> None:
        """End the job, and mark the run if each of its images has a row.

        Args:
            status: of the job. A run whose last job is incomplete is not marked.
            summary: write summary.json.
            **final: facts of the job ("world", "poll", ...).

        Raises:
            CollageError: rows could not be written. What was written before counts.
        """
        fault = self.commit()
        counts = None if fault else self.counts
        facts = {"status": status, "rows": counts, "ended": _now(), "final": final}
        note(self._store, self.session, self._owner.name, entry(facts))
        counted = View(self._store, self.run).look().counted
        lacking = self.run.stop - self.run.first - count(counted)
        while status != "incomplete" and not lacking and not self._owner.complete:
            self._owner.turn(1)
        self._owner.leave()  # its beat
        if fault:
            raise fault
        if summary:
            self.summary = write_summary(open_run(self.out))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")

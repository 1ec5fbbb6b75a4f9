"""What a run's folder says to who reads it: which rows count, and who holds what.

A name is opened only if a listing or another file tells of it: a host believes for a minute that
what it has missed is missing. So what a reader sees may be a minute old while jobs are at work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.cells import Cell
from collage_mpi.ledger.damage import OTHER
from collage_mpi.ledger.records import (
    Damage,
    Part,
    Run,
    complete_name,
    decode,
    lease_name,
    lease_of,
    run_name,
    unmarked,
)
from collage_mpi.ledger.spans import Spans
from collage_mpi.ledger.store import FolderStore

_RUN = re.compile(r"run\.([0-9]{1,6})\.json")


class Found(NamedTuple):
    """What the folder says of a run.

    Attributes:
        parts: those that count, by cell, oldest first. Their spans are the positions whose last row
            they have; so are their errors.
        holds: owner -> the positions that it holds.
        records: how many changes there were.
        complete: the run is marked as complete, and all its rows are seen.
        late: names that others tell of, and that this host does not see. It sees them within a
            minute, or they are gone: `damage.examine` tells.
    """

    parts: tuple[Part, ...]
    holds: dict[str, Spans]
    records: int
    complete: bool
    late: tuple[str, ...]

    @property
    def counted(self) -> Spans:
        """The positions that have a row."""
        return sp.union(*(part.spans for part in self.parts))

    @property
    def errors(self) -> Spans:
        """The positions whose row is an error row."""
        return sp.union(*(part.errors for part in self.parts))


def runs(store: FolderStore) -> list[Run]:
    """The runs of a folder, by their numbers. Raises OSError, Damage."""
    found = []
    for number in sorted(int(match[1]) for match in map(_RUN.fullmatch, store.names("")) if match):
        raw = store.read(name := run_name(number))
        if raw is not None:
            found.append(decode(Run, raw, name))
    return found


def counted(store: FolderStore) -> list[Part]:
    """The parts of all runs, as in `Found`. A row that a later run has asked again counts there
    alone, once it is there. Raises OSError, Damage."""
    found: list[Part] = []
    for run in runs(store):
        there = View(store, run).look()
        found = [*without(found, replaced(run, there.counted)), *there.parts]
    return found


def replaced(run: Run, counted: Spans) -> Spans:
    """The positions of earlier runs that a run has asked again, and that have a row there, and
    those that it drops."""
    return sp.union(_older(run, counted), run.dropped)


def first_places(runs: Sequence[Run], spans: Spans) -> Spans:
    """The positions of the first rows of the images of these positions. `runs`: all, by their
    numbers."""
    for run in reversed(runs):
        asked = ((run.first, run.first + sp.count(run.again)),)
        spans = sp.union(sp.minus(spans, asked), _older(run, spans))
    return spans


def _older(run: Run, spans: Spans) -> Spans:
    """The positions of earlier runs that a run asks again by some of its own."""
    tiles, at = [], run.first
    for first, stop in run.again:
        tiles.append((at, at + stop - first, first - at))
        at += stop - first
    found, next_tile = [], iter(tiles)
    end = shift = -1
    for first, stop in sp.common(spans, tuple((first, stop) for first, stop, _ in tiles)):
        while first >= end:
            _, end, shift = next(next_tile)
        found.append((first + shift, stop + shift))
    return sp.union(found)


def at_home(runs: Sequence[Run], spans: Spans) -> dict[int, Spans]:
    """Start of a cell -> those of the positions whose rows lie in its file. A row that replaces an
    older one lies where that one lay. `runs`: all, by their numbers."""
    found = dict[int, list[sp.Span]]()
    for run in runs:
        at, first_new = run.first, run.first + sp.count(run.again)
        asking = sp.common(spans, ((at, first_new),)) if run.again else ()
        for first, stop in run.again if asking else ():
            here = sp.common(asking, ((at, at + stop - first),))
            older = tuple((one + first - at, end + first - at) for one, end in here)
            for start, old in at_home(runs[: run.number - 1], older).items() if older else ():
                own = [(one + at - first, end + at - first) for one, end in old]
                found.setdefault(start, []).extend(own)
            at += stop - first
        for one, end in sp.common(spans, ((first_new, run.stop),)):
            begin = one - (one - run.first) % run.cell
            for start in range(begin, end, run.cell):
                own = [(max(one, start), min(end, run.end(start)))]
                found.setdefault(start, []).extend(own)
    return {start: sp.union(each) for start, each in found.items()}


class View:
    """What is known of a run. Closed cells are read once."""

    def __init__(self, store: FolderStore, run: Run) -> None:
        """`run`: one of `runs`."""
        self._store, self._run = store, run
        self._cells = {start: Cell(start, run.end(start)) for start in run.starts}

    def look(self) -> Found:
        """See what has changed. Raises OSError, Damage."""
        marked = self._store.read(complete_name(self._run)) is not None
        listed: dict[int, int] = {}
        for start, gen in filter(None, map(lease_of, self._store.names("leases"))):
            listed[start] = max(gen, listed.get(start, 0))
        late: list[str] = []
        for start, cell in self._cells.items():
            if not cell.closed and (start in listed or marked):
                self._cells[start], missing = self._later(cell, listed.get(start, 0), marked)
                late += missing
        cells = self._cells.values()
        holds: dict[str, list[Spans]] = {}
        for hold in (hold for cell in cells for hold in cell.holds):
            holds.setdefault(hold.owner, []).append(hold.spans)
        return Found(
            tuple(part for cell in cells for part in last_rows(cell.parts)),
            {owner: sp.union(*spans) for owner, spans in holds.items()},
            sum(cell.gen + 1 for cell in cells),
            marked and not late,
            tuple(late),
        )

    def _later(self, cell: Cell, gen: int, to_end: bool) -> tuple[Cell, list[str]]:
        """A cell at its record `gen`, or at its last one if it is packed or `to_end`; and the name
        that is not to be seen."""
        start, names = cell.start, [lease_name(cell.start, 0), lease_name(cell.start, gen)]
        raw = self._store.read(names[1]) if gen > max(0, cell.gen) else None
        # The first file is opened later: if it has no mark then, the cell was not packed before,
        # and nobody made the record under a name that was free again.
        first = self._store.read(names[0])
        if first is None:
            return cell, names[:1]
        text, last = unmarked(first)
        if last is not None:
            if raw is None or gen != last[0]:
                raw = self._store.read(lease_name(start, last[0]))
            if raw is None:
                return cell, [lease_name(start, last[0])]
            found = Cell(start, cell.stop).after(raw, last[0])
            if found.digest != last[1]:
                raise Damage(lease_name(start, last[0]), OTHER)
            return found, []
        if cell.gen < 0:
            cell = cell.after(text, 0)
        if raw is not None:
            cell = cell.after(raw, gen)
        while to_end and not cell.closed:
            raw = self._store.read(lease_name(start, cell.gen + 1))
            if raw is None:
                break
            cell = cell.after(raw, cell.gen + 1)
        missing = gen > cell.gen or (to_end and not cell.closed)
        return cell, [lease_name(start, cell.gen + 1)] if missing else []


def last_rows(parts: Iterable[Part]) -> list[Part]:
    """Parts of a cell without the rows that later ones replace."""
    found: list[Part] = []
    for part in parts:
        found = [*(without(found, part.spans) if part.reason else found), part]
    return found


def without(parts: Iterable[Part], spans: Spans) -> list[Part]:
    """Parts without the rows of some positions."""
    found = []
    for part in parts:
        if left := sp.minus(part.spans, spans):
            errors = sp.minus(part.errors, spans)
            found.append(msgspec.structs.replace(part, spans=left, errors=errors))
    return found

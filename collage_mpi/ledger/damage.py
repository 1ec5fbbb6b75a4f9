"""Finds records that were removed or changed, and moves away what cannot be believed any more."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field

from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.cells import Cell
from collage_mpi.ledger.records import (
    COMPLETE,
    Complete,
    Damage,
    Record,
    Run,
    complete_name,
    decode,
    digest,
    lease_name,
    lease_of,
    news_name,
    unmarked,
)
from collage_mpi.ledger.spans import Spans
from collage_mpi.ledger.store import FolderStore

MISSING = "it is missing, though a later one is there"
OTHER = "it is another one than the first record of its cell says"


@dataclass
class Examined:
    """What was found.

    Attributes:
        damage: why the records that are damaged or missing are so; file -> message.
        orphans: files that follow them.
        again: positions whose rows do not count any more, so that they are done again.
    """

    damage: dict[str, str] = field(default_factory=dict)
    orphans: list[str] = field(default_factory=list)
    again: int = 0


def examine(store: FolderStore, run: Run, bad: Collection[str] = ()) -> Examined:
    """Read all records, while no job is at work. A record whose rows lie in one of the `bad` files,
    named below the run's folder, cannot be believed. Raises OSError."""
    found = Examined()
    listed: dict[int, list[int]] = {}
    ends: list[str] = []
    for start, gen in sorted(filter(None, map(lease_of, store.names("leases")))):
        listed.setdefault(start, []).append(gen)
    for start in run.starts:
        cell, name, reason = _walk(store, Cell(start, run.end(start)), run.asking, bad)
        ends.append(cell.digest)
        if orphans := [gen for gen in listed.get(start, ()) if gen > cell.gen]:
            found.damage[name] = reason
            found.orphans += [lease_name(start, gen) for gen in orphans]
            found.again += _counted(store, run, start, orphans) - _rows(cell.record)
    name = complete_name(run)
    raw = store.read(name)
    try:
        if raw is None or decode(Complete, raw, name).digest == digest("".join(ends).encode()):
            return found
        reason = "it was made of other records than those that are there"
    except Damage as error:
        reason = error.reason
    found.damage.setdefault(name, reason)
    found.orphans.append(name)
    return found


def _walk(
    store: FolderStore, none: Cell, asking: Spans, bad: Collection[str]
) -> tuple[Cell, str, str]:
    """The last record of a cell that can be believed; the next file, and what is wrong with it."""
    cell, name = none, lease_name(none.start, 0)
    try:
        if (raw := store.read(name)) is None:
            return none, name, MISSING
        text, last = unmarked(raw)
        cell = none.after(text, 0)
        if last is not None:
            cell, name = none, lease_name(none.start, last[0])
            if (raw := store.read(name)) is None:
                return none, name, MISSING
            cell = none.after(raw, last[0])
            cell.packed = True
            _check_files(cell, name, asking, bad)
            return (cell, "", "") if cell.digest == last[1] else (none, name, OTHER)
        while (raw := store.read(name := lease_name(none.start, cell.gen + 1))) is not None:
            later = cell.after(raw, cell.gen + 1)
            _check_files(later, name, asking, bad)
            cell = later
    except Damage as error:
        return none if cell.packed else cell, name, error.reason
    return cell, name, MISSING


def _check_files(cell: Cell, name: str, asking: Spans, bad: Collection[str]) -> None:
    """Raise Damage if some of the cell's rows lie in a file that is damaged."""
    if file := next((part.name for part in cell.lying(asking) if part.name in bad), None):
        raise Damage(name, f"its rows lie in {file}, which is damaged or missing")


def repair(store: FolderStore, run: Run, found: Examined) -> None:
    """Move the orphans to orphans/, so that jobs go on before them. Raises OSError."""
    store.overwrite(news_name(run), b" " * len(COMPLETE))
    for name in found.orphans:
        store.move(name, f"orphans/{name.rpartition('/')[2]}")


def _counted(store: FolderStore, run: Run, start: int, gens: list[int]) -> int:
    """How many rows of a cell counted by one of these records, as far as they can be read."""
    first = store.read(lease_name(start, 0))
    if first is not None and unmarked(first)[1] is not None:
        return run.end(start) - start  # it was closed
    found = 0
    for name in (lease_name(start, gen) for gen in gens):
        with suppress(Damage):
            found = max(found, _rows(decode(Record, store.read(name) or b"", name)))
    return found


def _rows(record: Record | None) -> int:
    return sum(sp.count(part.spans) for part in record.parts) if record else 0

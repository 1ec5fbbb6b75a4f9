"""Finds records that were removed or changed, and moves away what cannot be believed any more."""

from __future__ import annotations

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
)
from collage_mpi.ledger.store import FolderStore


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


def examine(store: FolderStore, run: Run) -> Examined:
    """Read all records, while no job is at work. Raises OSError."""
    found = Examined()
    listed: dict[int, list[int]] = {}
    ends: list[str] = []
    for start, gen in sorted(filter(None, map(lease_of, store.names("leases")))):
        listed.setdefault(start, []).append(gen)
    for start in run.starts:
        cell = Cell(start, run.end(start))
        name, reason = "", "it is missing, though a later one is there"
        while not cell.packed:
            name = lease_name(start, cell.gen + 1)
            raw = store.read(name)
            if raw is None:
                break
            try:
                cell = cell.after(raw, cell.gen + 1)
            except Damage as error:
                reason = str(error)
                break
        ends.append(cell.digest)
        orphans = [gen for gen in listed.get(start, ()) if gen > cell.gen]
        if orphans and not cell.packed:
            found.damage[name] = reason
            found.orphans += [lease_name(start, gen) for gen in orphans]
            found.again += _counted(store, start, orphans[-1]) - _rows(cell.record)
    name = complete_name(run)
    raw = store.read(name)
    if raw is not None and decode(Complete, raw, name).digest != digest("".join(ends).encode()):
        found.damage.setdefault(name, "it was made of other records than those that are there")
        found.orphans.append(name)
    return found


def repair(store: FolderStore, run: Run, found: Examined) -> None:
    """Move the orphans to orphans/, so that jobs go on before them. Raises OSError."""
    store.overwrite(news_name(run), b" " * len(COMPLETE))
    for name in found.orphans:
        store.move(name, f"orphans/{name.rpartition('/')[2]}")


def _counted(store: FolderStore, start: int, gen: int) -> int:
    name = lease_name(start, gen)
    try:
        return _rows(decode(Record, store.read(name) or b"", name))
    except Damage:
        return 0


def _rows(record: Record | None) -> int:
    return sum(sp.count(part.spans) for part in record.parts) if record else 0

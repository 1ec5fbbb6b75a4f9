"""The rules of a cell: which positions are free, what a record may change, and what to propose.

Nothing here reads or writes. A record holds the whole state of its cell, so the last record is
enough to go on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import msgspec

from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.records import (
    DEATHS,
    Damage,
    Hold,
    Part,
    Record,
    decode,
    digest,
    lease_name,
    rows_name,
)
from collage_mpi.ledger.spans import Spans

SHRINK = 3  # bits: a lease of positions that killed a holder is an eighth of the usual one


@dataclass(frozen=True)
class Change:
    """What an owner wants to change in a cell, in one record.

    Attributes:
        by: the owner.
        parts: rows to commit, as far as the owner still holds their positions, or has a reason.
        take: how many free positions it takes.
        threshold: the number of the one by which it does them.
        silent: owners that have died: their positions become free.
        split: (owner, positions) to take from an owner that lives.
        leave: give back what it holds.
    """

    by: str
    parts: tuple[Part, ...] = ()
    take: int = 0
    threshold: int = 0
    silent: Collection[str] = ()
    split: tuple[str, Spans] | None = None
    leave: bool = False


@dataclass
class Cell:
    """A cell as its last known record says.

    Attributes:
        start, stop: its positions.
        record: None if none is known.
        digest: of the record's text.
        packed: the cell's first file says which record is the last. All its rows, but those that
            replace rows of earlier runs, lie in one file of rows/.
    """

    start: int
    stop: int
    record: Record | None = None
    digest: str = ""
    packed: bool = False
    free: Spans = field(init=False)

    def __post_init__(self) -> None:
        self.free = ((self.start, self.stop),)

    @property
    def gen(self) -> int:
        """Of the last known record; -1 if none is known."""
        return -1 if self.record is None else self.record.gen

    @property
    def holds(self) -> tuple[Hold, ...]:
        """Who holds what."""
        return () if self.record is None else self.record.holds

    @property
    def parts(self) -> tuple[Part, ...]:
        """All rows that count, oldest first."""
        return () if self.record is None else self.record.parts

    @property
    def closed(self) -> bool:
        """Whether every position has a row that counts. No record follows then."""
        return not self.free and not self.holds

    @property
    def lacking(self) -> int:
        """The number of positions without a row."""
        return sum(map(sp.count, (self.free, *(hold.spans for hold in self.holds))))

    def lying(self, asking: Spans) -> list[Part]:
        """The last rows of all positions, by the files in which they lie. `asking`: the positions
        whose rows replace rows of earlier runs."""
        parts = last_rows(self.parts)
        own = without(parts, asking)
        if not self.packed or not own:
            return parts
        spans, errors = (
            sp.union(*sets) for sets in zip(*((p.spans, p.errors) for p in own), strict=True)
        )
        again = without(parts, sp.minus(((self.start, self.stop),), asking))
        return [Part(rows_name(self.start), 0, 0, spans, errors), *again]

    def due(self, part: Part, held: Spans) -> Spans:
        """The positions of a part that who holds some can commit: these, or, where the part has a
        reason, those that have an older row."""
        if not part.reason:
            return sp.common(part.spans, held)
        if self.closed:
            return ()
        counted = sp.union(*(old.spans for old in self.parts))
        said = part.file, part.reason
        there = [old.spans for old in self.parts if (old.file, old.reason) == said]
        return sp.minus(sp.common(part.spans, counted), sp.union(*there))

    def held(self, owner: str) -> Spans:
        """The positions that an owner holds."""
        return sp.union(*(hold.spans for hold in self.holds if hold.owner == owner))

    def times(self, spans: Spans) -> list[tuple[int, Spans]]:
        """Positions by the number of holders that died with them, from 0; DEATHS + 1 is or more."""
        tried = () if self.record is None else self.record.tried
        parts = [(0, sp.minus(spans, sp.union(*tried)))]
        parts += [(times, sp.common(spans, each)) for times, each in enumerate(tried, 1)]
        return [part for part in parts if part[1]]

    def after(self, raw: bytes, gen: int) -> Cell:
        """The cell after its record `gen`, whose text was read or made.

        A record that comes next must follow from the last known one. Raises Damage.
        """
        name = lease_name(self.start, gen)
        record = decode(Record, raw, name)
        counted: Spans = ()
        sound = (record.start, record.stop, record.gen) == (self.start, self.stop, gen)
        for part in record.parts:
            sound &= sp.common(part.spans, counted) == (part.spans if part.reason else ())
            sound &= not sp.minus(part.errors, part.spans)
            counted = sp.union(counted, part.spans)
        held = [hold.spans for hold in record.holds]
        all_of, cell = sp.union(counted, *held), ((self.start, self.stop),)
        if (
            not sound
            or sp.minus(all_of, cell)
            or sp.count(all_of) != sum(map(sp.count, (counted, *held)))
        ):
            raise Damage(name, "it is no record of its cell")
        if gen == self.gen + 1 and not self._leads_to(record):
            raise Damage(name, f"it does not follow from {lease_name(self.start, self.gen)}")
        found = Cell(self.start, self.stop, record, digest(raw))
        found.free = sp.minus(cell, all_of)
        return found

    def _leads_to(self, record: Record) -> bool:
        before = self.parts
        new = [part.spans for part in record.parts[len(before) :] if not part.reason]
        others = [hold for hold in record.holds if hold.owner != record.by]
        return (
            record.prev == self.digest
            and not self.closed
            and record.parts[: len(before)] == before
            and not sp.minus(sp.union(*new), self.held(record.by))
            and not any(sp.minus(hold.spans, self.held(hold.owner)) for hold in others)
        )

    def proposed(self, change: Change) -> Record | None:
        """The next record, with a change in it; None if nothing would change."""
        holds = {hold.owner: hold for hold in self.holds}
        mine = self.held(change.by)
        parts = self.parts
        tried = [*(self.record.tried if self.record else ())]
        for part in change.parts:
            if good := self.due(part, mine):
                errors = sp.common(part.errors, good)
                others = sp.union(part.others, sp.minus(part.spans, good))
                parts += (msgspec.structs.replace(part, spans=good, errors=errors, others=others),)
                mine = sp.minus(mine, good)
                tried = [sp.minus(each, good) for each in tried]
        freed = sp.union(*(holds.pop(owner).spans for owner in change.silent if owner in holds))
        if freed:
            tried = _worse(tried, freed)
        if change.split is not None and change.split[0] in holds:
            hold = holds.pop(change.split[0])
            taken = sp.common(hold.spans, change.split[1])
            if left := sp.minus(hold.spans, taken):
                holds[hold.owner] = msgspec.structs.replace(hold, spans=left)
            mine = sp.union(mine, taken)
        if change.leave:
            mine = ()
        elif change.take:
            mine = sp.union(mine, portion(freed or self.free, change.take, tried))
        holds.pop(change.by, None)
        if mine:
            holds[change.by] = Hold(change.by, mine, change.threshold)
        while tried and not tried[-1]:
            tried.pop()
        new = parts, tuple(sorted(holds.values(), key=lambda hold: hold.owner)), tuple(tried)
        old = self.record
        if new == ((old.parts, old.holds, old.tried) if old else ((), (), ())):
            return None
        gen = self.gen + 1
        return Record(self.start, self.stop, gen, self.digest, change.by, *new)


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
            gone = sp.minus(part.spans, left)
            errors, others = sp.minus(part.errors, spans), sp.union(part.others, gone)
            found.append(msgspec.structs.replace(part, spans=left, errors=errors, others=others))
    return found


def portion(free: Spans, most: int, tried: list[Spans]) -> Spans:
    """Which of the free positions to take: those that killed fewest holders, and few of these."""
    for times in range(len(tried) + 1):
        those = sp.common(free, tried[times - 1]) if times else sp.minus(free, sp.union(*tried))
        if those:
            if times > DEATHS:  # they become error rows, at once
                return those
            return sp.head(those, 1 if times == DEATHS else max(1, most >> SHRINK * times))
    return ()


def _worse(tried: list[Spans], freed: Spans) -> list[Spans]:
    """`tried`, after one more holder has died with these positions."""
    found = [sp.minus(each, freed) for each in tried] + [()] * (DEATHS + 1 - len(tried))
    before = [sp.minus(freed, sp.union(*tried)), *(sp.common(each, freed) for each in tried)]
    for times, spans in enumerate(before):
        at = min(times, DEATHS)
        found[at] = sp.union(found[at], spans)
    return found

"""An owner: what one job does in the ledger of a run, a few operations a turn.

The job calls `turn` about once a second, from a thread of its own, because a file server can keep
an operation for minutes. Between turns the job does the positions in `grants` in order, and hands
over the parts that it has written (`wrote`).
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, Protocol

import msgspec

from collage_mpi.errors import EnvironmentFault
from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.cells import Cell, Change
from collage_mpi.ledger.records import (
    BEAT_BYTES,
    COMPLETE,
    LARGEST_CELL,
    MARK_BYTES,
    Beat,
    Complete,
    Damage,
    Format,
    Part,
    Run,
    beat_name,
    complete_name,
    decode,
    digest,
    encode,
    is_owner,
    lease_name,
    lease_of,
    mark,
    news_name,
    read_beat,
    run_name,
    unmarked,
)
from collage_mpi.ledger.spans import Spans
from collage_mpi.ledger.store import UNSEEN_S, FolderStore

BEAT_S = 2.0
SILENT_S = 30.0  # file servers pause for seconds; a longer pause of the server counts for nobody
LOOK_S = 5.0
LIST_S = 20.0
FORGET_S = 300.0  # the beats of a silent owner are removed then
LEASE_S = 10.0  # a lease is so much work
SHORTEST_S = 3.0  # at the end of the run
LOST_S = 600.0  # without the folder a job waits so long
NEIGHBOURS = 2  # owners that each owner watches always
IDLE_LOOKS = 1.0  # beats that an owner without work reads in a second
PROBES = 2  # untouched cells that are tried in a turn
PAUSES_S = 2.0, 16.0  # of an idle owner whose link was refused
CHECKS = 4  # open cells that an idle turn looks at
LOOKS = 256  # cells that an idle turn looks at for the first time
COUNT_S = 20.0  # when all seems done, one of many owners looks at all cells, the others later
HINTS = 8  # cells that a beat names
CELL_S = 60.0
CELLS = 4096


class Grant(NamedTuple):
    """Positions to do now, in order, of the cell that begins at `start`.

    `times`: that many holders died with them. DEATHS: one position, to be done alone. More: an
    error row.
    """

    start: int
    spans: Spans
    times: int


class Files(Protocol):
    """Makes files of closed cells."""

    def make(self, store: FolderStore, cell: Cell, alive: Callable[[], object]) -> bool:
        """Of a cell, before it is packed. False: it cannot be made, so the cell is not packed.
        Raises OSError; FileNotFoundError: a part is not seen."""

    def finish(self, alive: Callable[[], object]) -> object:
        """Of a run, before it is complete. Raises as `make`."""


@dataclass
class Heard:
    """What an owner's beat said last, since when (by what was watched), and when it was read."""

    raw: bytes | None
    since_s: float
    read_s: float
    beat: Beat | None


def cell_size(positions: int, unit: int, rate: float) -> int:
    """Positions of a cell: work of `CELL_S` at this rate, in whole units. There are at most CELLS
    cells, unless each has LARGEST_CELL positions."""
    most = max(int(rate * CELL_S), -(-positions // CELLS), 1)
    return max(min(-(-most // unit), LARGEST_CELL // unit), 1) * unit


def join(store: FolderStore, mine: Run, sleep: Callable[[float], None] = time.sleep) -> Run:
    """The run with this number: the one that is there, or else `mine`, which is made now.

    Raises:
        EnvironmentFault: it can neither be read nor made, or is of another format.
        Damage: it is damaged.
    """
    name = run_name(mine.number)
    try:
        raw = store.read(name)
        if raw is None:
            decode(Run, encode(mine), name)
            store.settled(news_name(mine), b" " * len(COMPLETE), sleep)
            raw = store.settled(name, encode(mine), sleep)
    except OSError as error:
        raise EnvironmentFault(
            f"{name}: can neither be read nor made: {error}. Repeat the command once the "
            "folder works"
        ) from error
    found = decode(Format, raw, name).format  # first: another format has other fields
    if found != mine.format:
        raise EnvironmentFault(
            f"{name}: of format {found}; this version has format {mine.format}. Go on with "
            "the version that began the run"
        )
    return decode(Run, raw, name)


class Owner:
    """A job in the ledger.

    Attributes:
        grants: positions that it has got, for the job to do.
        rate: positions that the job does in a second; the job sets it.
        ahead: start of a cell -> the positions that the job will do last and has not begun, as a
            span; the job sets it. Without it nobody takes from what it holds while it lives.
        threshold: number of the threshold that the job goes by; the job sets it.
        idle: nothing is free; the job waits for others.
        complete: every position has its row, and the run is marked as complete.
        left: number of positions without a row, as far as is known: not less than there are.
        counts: what it has done: records, failed, taken over, split, packed.
    """

    def __init__(
        self,
        store: FolderStore,
        run: Run,
        unit: int = 1,
        clock: Callable[[], float] = time.monotonic,
        name: str | None = None,
        place: int | None = None,
        lost_s: float = LOST_S,
        files: Files | None = None,
    ) -> None:
        """
        Args:
            store: the run's folder.
            run: what `join` returned.
            unit: leases have whole units of positions.
            clock: of this job, in s.
            name: 32 random hex digits.
            place: number of the cell to begin at. By default the job that made the run begins at
                the first cell, and each other job at a random one. All go on in order.
            lost_s: it gives up when the folder has not worked for so long.
            files: what it makes of closed cells, beside records.
        """
        self.name = name or os.urandom(16).hex()
        self.run, self.rate, self.threshold = run, 0.0, 0
        self.grants: deque[Grant] = deque()
        self.ahead: dict[int, sp.Span] = {}
        self.idle = self.complete = False
        self.left = run.stop - run.first
        self.counts: Counter[str] = Counter()
        self._store, self._unit, self._clock = store, unit, clock
        self._cell_files = files
        self._stays: set[int] = set()  # cells whose file cannot be made
        self._random = random.Random(self.name)
        self._inbox: deque[Part] = deque()
        self._written: dict[int, list[Part]] = {}
        self._files: set[str] = set()  # of parts that this job has written
        # Of each, the cells of which a record names it, or may name it
        self._named: defaultdict[str, set[int]] = defaultdict(set)
        self._over: deque[Part] = deque()  # which perhaps no record names
        self._rows: dict[int, int] = {}  # start -> rows of this job that count
        self._want = 0
        # What is known of cells
        self._cells: dict[int, Cell] = {}
        self._mine: dict[int, Spans] = {}
        self._hints: dict[int, int] = {}  # start -> highest gen of a listing or a beat
        self._gaps: set[int] = set()  # cells that are packed, as a listing says
        self._count_s: float | None = None  # when to look at them
        if place is None and run.by == self.name:
            place = 0
        self._place = self._random.randrange(max(1, len(run.starts))) if place is None else place
        self._untouched = True  # there may be cells without a record
        self._open: deque[int] = deque()  # cells that are looked at in turn
        self._again_s, self._pause_s = clock(), PAUSES_S[0]  # when an idle owner competes again
        self._to_pack: deque[int] = deque()
        self._left_over: dict[int, list[str]] = {}  # packed cells -> files that are not needed
        self._late: dict[int, float] = {}  # cells that are closed and not packed, since when
        self._unseen: dict[str, float] = {}  # files that are missing, since when
        # Who lives
        now_s = clock()
        self._beats, self._beat_s, self._watched_s = 0, now_s - BEAT_S, 0.0
        self._through_s: float | None = None  # when the last beat got through
        self._failed_s, self._lost_s = now_s, 0.0  # when the folder failed last, and for how long
        self._no_link = False  # no link was made or refused since one failed
        self._most_lost_s = lost_s
        self._news_s = now_s
        self._list_s = now_s - LIST_S
        self._ring: list[str] = []  # other owners, from this one's name on
        self._ring_s = now_s - LIST_S
        self._heard: dict[str, Heard] = {}
        self._silent: set[str] = set()
        self._ended: deque[str] = deque()  # it is known that they have died
        self._gone: set[str] = set()  # silent owners that hold nothing any more

    # ---- for the job -----------------------------------------------------------------

    def held(self, start: int) -> Spans:
        """The positions of a cell that this job holds, as far as it knows."""
        return self._mine.get(start, ())

    def wrote(self, part: Part) -> None:
        """A part is in parts/ and on the disk: commit its rows."""
        self._inbox.append(part)

    @property
    def hurry(self) -> bool:
        """Whether the run nears its end: write parts every LOOK_S, to learn what others took."""
        return not self._untouched

    @property
    def holding(self) -> bool:
        """Whether this job holds positions."""
        return bool(self._mine)

    @property
    def rows(self) -> int:
        """How many rows of this job count. Others' later records may not be seen here."""
        return sum(self._rows.values())

    @property
    def others(self) -> int:
        """The number of positions that others hold, as far as is known."""
        holds = (hold for cell in self._cells.values() for hold in cell.holds)
        return sum(sp.count(hold.spans) for hold in holds if hold.owner != self.name)

    @property
    def alone(self) -> bool:
        """Whether every position counts or is held by this job, and no other job was seen."""
        return not self._untouched and not self._ring and not self.others and self._whole()

    @property
    def all_taken(self) -> bool:
        """Whether others hold all positions without a row, as far as is known."""
        return self.others > 0 and self._whole(self._gaps)

    def _whole(self, packed: Set[int] = frozenset()) -> bool:
        """Whether all cells are known or `packed`, and none has a free position."""
        cells = self._cells
        return all(
            not cells[start].free if start in cells else start in packed
            for start in self.run.starts
        )

    def settle(self) -> bool:
        """Find out whether the run is complete, and mark it if every position counts."""
        with self._patience():
            if not self.complete and self._whole() and not self.others and not self._mine:
                self._finish()
            elif not self.complete:
                self.complete = self._read(complete_name(self.run)) is not None
        return self.complete

    def died(self, owner: str) -> None:
        """Somebody knows that another job has ended: its positions are taken over soon."""
        self._ended.append(owner)

    @property
    def waiting(self) -> bool:
        """Whether written rows wait for their record."""
        return bool(self._inbox or self._written)

    def turn(self, want: int = 0) -> None:
        """Do what is due.

        Args:
            want: positions that the job wants beside those that it has.

        Raises:
            EnvironmentFault: the folder has not worked for `lost_s`; another job is at work on a
                run that one job does as a whole.
            Damage: of the ledger.
        """
        with self._patience():
            self._beat()
            self._want = want
            self._commit()
            self._pack()
            self._watch()
            self._take_over()
            self.idle = self._want > 0 and not self._take()
            if self.idle:
                self._seek()

    def leave(self) -> bool:
        """Commit what is written and give back the rest. False: repeat it, the folder failed."""
        with self._patience():
            self._want = 0
            self._commit()
            for start in sorted(self._mine.keys() - self._written):
                self._propose(start, Change(self.name, leave=True))
            while self._to_pack:
                self._pack()
            if not self._mine and not self.waiting:
                self._store.remove(beat_name(self.name))
                return True
        return False

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """An error of the folder ends what is done inside; it is tried again at the next turn."""
        errors = self.counts["errors"]
        try:
            yield
        except OSError as error:
            self._failed(error)
        if self.counts["errors"] == errors and not self._no_link:
            self._lost_s, self._failed_s = 0.0, self._clock()

    def _failed(self, error: OSError) -> None:
        """Count how long the folder has not worked. While nothing is tried, no time counts."""
        self.counts["errors"] += 1
        now_s = self._clock()
        self._lost_s += min(now_s - self._failed_s, PAUSES_S[1])
        self._failed_s = now_s
        if self._lost_s >= self._most_lost_s:
            raise EnvironmentFault(
                f"the run's folder has not worked for {self._most_lost_s:g} s ({error}). What is "
                "written counts; repeat the command once the folder works"
            ) from error

    # ---- records ---------------------------------------------------------------------

    def _read(self, name: str) -> bytes | None:
        self.counts["reads"] += 1
        return self._store.read(name)

    def _cell(self, start: int) -> Cell:
        return self._cells.get(start) or Cell(start, self.run.end(start))

    def _propose(self, start: int, change: Change) -> bool:
        """Make the next record of a cell with a change, or learn why not. Returns whether the link
        was made."""
        cell = self._cell(start)
        record = cell.proposed(change)
        if record is None:
            return True
        if start not in self._mine and any(hold.owner == self.name for hold in record.holds):
            self._beat(start)  # so that who finds this job dead knows where to look
        raw = encode(record)
        self.counts["records"] += 1
        room = b"" if record.gen else b" " * MARK_BYTES  # for the mark
        after = cell.after(raw, record.gen)  # a record that others cannot read is not made
        recorded = {part.file for part in record.parts}
        named = [self._named[part.file] for part in change.parts if part.file in recorded]
        new = [starts for starts in named if start not in starts]
        for starts in new:
            starts.add(start)
        if not self._made(lease_name(start, record.gen), raw + room):
            self.counts["failed"] += 1
            self._look(start)
            there = self._cell(start).record
            if there is not None and there.gen >= record.gen:  # later ones have all its parts
                files = {part.file for part in there.parts}
                for part in change.parts:
                    if part.file not in files:
                        self._named[part.file].discard(start)
            return False
        if record.gen == 0 or not self._packed(start):
            self._know(after)
            return True
        for starts in new:  # the record is void
            starts.discard(start)
        return True

    def _made(self, name: str, data: bytes) -> bool:
        """Make a file by link. False: perhaps it was not made."""
        try:
            made = self._store.link(name, data)
        except OSError as error:
            self._no_link = True
            self._failed(error)
            return False
        self._no_link = False
        return made

    def _look(self, start: int, gen: int | None = None) -> None:
        """Go on to a record of a cell, or else as far as records can be seen.

        Who asks for a record before it is made may believe for a minute that it is missing.
        """
        cell = self._cell(start)
        if cell.packed:
            return
        try:
            at = cell.gen + 1 if gen is None else gen
            while at > 0 and (raw := self._read(lease_name(start, at))) is not None:
                cell, at = cell.after(raw, at), at + 1
                if gen is not None:
                    break
        except Damage:
            if self._packed(start):
                return
            raise
        if cell.gen < 0:
            self._first(start)
        elif not self._packed(start):
            self._know(cell)

    def _first(self, start: int) -> None:
        """Look at a cell of which nothing is known."""
        name = lease_name(start, 0)
        raw = self._read(name)
        if raw is not None:
            text, last = unmarked(raw)
            if last is None:
                self._know(Cell(start, self.run.end(start)).after(text, 0))
            else:
                self._last(start, last[1])

    def _packed(self, start: int) -> bool:
        """Whether a cell is packed by now, as its first file says, which is never removed.

        A record that somebody makes in a packed cell, because its name is free again, is void.
        """
        name = lease_name(start, 0)
        _, last = unmarked(self._seen(name))
        if last is not None:
            self._last(start, last[1])
        return last is not None

    def _last(self, start: int, digest: str) -> None:
        """Note the last record of a packed cell."""
        cell = Cell(start, self.run.end(start), digest=digest, packed=True)
        cell.free = ()
        self._know(cell)

    def _seen(self, name: str) -> bytes:
        """Read a file that is there. This host may have asked for it before it was made."""
        raw = self._read(name)
        if raw is None:
            self._not_seen(name)
        self._unseen.pop(name, None)
        return raw

    def _not_seen(self, name: str) -> NoReturn:
        if self._clock() >= self._unseen.setdefault(name, self._clock()) + UNSEEN_S:
            raise Damage(name, "it is missing, though others say that it is there")
        raise FileNotFoundError(errno.ENOENT, "not to be seen yet", name)

    def _know(self, cell: Cell) -> None:
        """Note what a cell says, and what the job has gained or lost by it."""
        start = cell.start
        if start not in self._cells:
            self._open.append(start)
        gained = sp.minus(cell.held(self.name), self.held(start))
        for times, spans in cell.times(gained):
            self.grants.append(Grant(start, spans, times))
        self._want -= sp.count(gained)
        self.left += cell.lacking - self._lacking(start)
        self._mine[start] = cell.held(self.name)
        if written := [part.spans for part in cell.parts if part.file in self._files]:
            self._rows[start] = sp.count(sp.union(*written))
        self._gone.difference_update(hold.owner for hold in cell.holds)  # seen late
        if not self._mine[start]:
            del self._mine[start]
            self.ahead.pop(start, None)
        self._cells[start] = cell

    def _lacking(self, start: int) -> int:
        """The number of positions of a cell without a row, as far as is known."""
        packed = start in self._gaps and start not in self._cells
        return 0 if packed else self._cell(start).lacking

    def _commit(self) -> None:
        while self._inbox:
            part = self._inbox.popleft()
            self._files.add(part.file)
            for start in sorted(self._starts_of(part.spans)):
                spans = sp.common(part.spans, ((start, self.run.end(start)),))
                errors = sp.common(part.errors, spans)
                others = sp.minus(part.spans, spans)
                here = msgspec.structs.replace(part, spans=spans, errors=errors, others=others)
                self._written.setdefault(start, []).append(here)
        for start in [*self._written]:
            parts = tuple(self._written[start])
            take = self._amount(start) if self._want > 0 else 0
            self._propose(start, Change(self.name, parts, take, self.threshold))
            cell, held = self._cell(start), self.held(start)
            left = [part for part in self._written[start] if cell.due(part, held)]
            self._written[start] = left
            self._over += [part for part in parts if part not in left]
            if not left:
                del self._written[start]
                if self._cell(start).closed and not self._cell(start).packed:
                    self._to_pack.append(start)
        waits = {part.file for parts in self._written.values() for part in parts}
        while self._over:
            part = self._over[0]
            if part.file not in waits and not self._named[part.file]:  # others have its rows
                self._store.remove(part.name)
            self._over.popleft()

    def _starts_of(self, spans: Spans) -> set[int]:
        """The cells that have some of the positions."""
        first, size = self.run.first, self.run.cell
        begins = [(begin - (begin - first) % size, stop) for begin, stop in spans]
        return {start for begin, stop in begins for start in range(begin, stop, size)}

    def _pack(self) -> None:
        """Make the file of a closed cell's rows. Then write to the end of the cell's first file
        which record is the last, in place, and remove the records between, and the parts."""
        if not self._to_pack:
            return
        start = self._to_pack[0]
        cell, name = self._cell(start), lease_name(start, 0)
        if not cell.packed:
            text, last = unmarked(self._seen(name))
            if last is None:
                try:
                    if not self._made_file(cell):
                        self._stays.add(start)
                        self._to_pack.popleft()
                        return
                    self._store.sync_folder(name)  # who made the last record may have died before
                    self._store.overwrite(name, text + mark(cell.gen, cell.digest))
                except PermissionError:  # another user began the cell: it stays as it is
                    self._stays.add(start)
                    self._to_pack.popleft()
                    return
                self.counts["packed"] += 1
            if last is None or last[1] == cell.digest:  # else this job has not seen the last record
                between = [lease_name(start, gen) for gen in range(1, cell.gen)]
                self._left_over[start] = [*self._spare(cell), *between]
            self._last(start, cell.digest if last is None else last[1])
        left = self._left_over.get(start, [])
        while left:
            with suppress(PermissionError):  # it is another user's, and stays
                self._store.remove(left[-1])
            left.pop()
        self._to_pack.popleft()

    def _made_file(self, cell: Cell) -> bool:
        """Make the file of a closed cell, whose last record is known."""
        try:
            return self._cell_files is None or self._cell_files.make(self._store, cell, self._beat)
        except FileNotFoundError as error:
            self._not_seen(str(error.filename or error))

    def _spare(self, cell: Cell) -> Iterator[str]:
        """The parts of a packed cell of which no row is read any more.

        A part may have rows of several cells. Who packs one of them looks at the others when its
        own mark is on the disk, so who packs the last one sees all marks.
        """
        for part in cell.parts if self._cell_files is not None else ():
            rows = sp.common(sp.union(part.spans, part.others), ((self.run.first, self.run.stop),))
            others = self._starts_of(rows) - {cell.start}
            if not sp.common(rows, self.run.asking) and all(map(self._is_packed, others)):
                yield part.name

    def _is_packed(self, start: int) -> bool:
        """Whether a cell is packed, as far as can be seen."""
        raw = None if self._cell(start).packed else self._read(lease_name(start, 0))
        return self._cell(start).packed or (raw is not None and unmarked(raw)[1] is not None)

    # ---- finding work ----------------------------------------------------------------

    def _amount(self, start: int) -> int:
        """How many positions to take of a cell: fewer when no cell is untouched."""
        want = self.run.stop - self.run.first if self.run.whole else self._want
        if not self._untouched and not self.run.whole:
            least = int(self.rate * SHORTEST_S)
            want = min(want, max(least, -(-sp.count(self._cell(start).free) // 2)))
        return -(-max(want, 1) // self._unit) * self._unit

    def _take(self) -> bool:
        """Take free positions. Returns whether some were got, or may be at the next turn."""
        if self.run.whole and self.others:
            return False
        before = self._want
        for start in [start for start in self._mine if self._cell(start).free]:
            self._propose(start, self._taking(start))
        for _ in range(PROBES):
            untouched = self._next_untouched()
            if self._want <= 0 or untouched is None:
                break
            if not self._propose(untouched, self._taking(untouched)):
                # Somebody was here: go elsewhere.
                self._place = self._random.randrange(len(self.run.starts))
                if self._clock() >= self._list_s + LOOK_S:
                    self._list()
        if self._want > 0 and not self._untouched:
            free = [start for start in self._open if self._cell(start).free]
            if free:
                self._compete(self._random.choice(free), self._taking)
        return self._want < before or self._untouched

    def _taking(self, start: int) -> Change:
        return Change(self.name, take=self._amount(start), threshold=self.threshold)

    def _compete(self, start: int, change: Callable[[int], Change | None]) -> None:
        """Propose what other idle owners may propose too: after a failure wait, ever longer."""
        if self._clock() < self._again_s:
            return
        if self._hints.get(start, -1) > self._cell(start).gen:
            self._look(start, self._hints[start])
        self._look(start)  # so that the next record is free but for who links just now
        wanted = change(start)
        if wanted is not None and self._propose(start, wanted):
            self._pause_s = max(self._pause_s / 2, PAUSES_S[0])
        elif wanted is not None:
            self._again_s = self._clock() + self._random.uniform(0, self._pause_s)
            self._pause_s = min(2 * self._pause_s, PAUSES_S[1])

    def _next_untouched(self) -> int | None:
        """The next cell of which no record is known, from the job's place on, in a circle."""
        starts = self.run.starts
        if not self._hints and not self._cells:
            self._list()
        for step in range(len(starts) if self._untouched else 0):
            at = (self._place + step) % len(starts)
            if starts[at] not in self._cells and starts[at] not in self._hints:
                self._place = at
                return starts[at]
        self._untouched = False
        return None

    def _list(self) -> None:
        """See, as a hint, which cells have records."""
        self._list_s = self._clock()
        self.counts["lists"] += 1
        listed: dict[int, list[int]] = {}
        for start, gen in filter(None, map(lease_of, self._store.names("leases"))):
            listed.setdefault(start, []).append(gen)
        for start, gens in listed.items():
            # Where some between the first and the last one are gone, ask the first: it knows.
            gap = len(gens) <= max(gens)
            if gap and start in self.run.starts and start not in self._gaps:
                if start not in self._cells:
                    self.left -= self._lacking(start)
                self._gaps.add(start)
            self._hint(start, 0 if gap else max(gens))

    def _hint(self, start: int, gen: int) -> None:
        """Somebody says that there is such a record."""
        if start in self.run.starts and self._hints.get(start, -1) < gen:
            self._hints[start] = gen

    def _seek(self) -> None:
        """Nothing is free: look at cells, one after another; take from others; or end."""
        now_s = self._clock()
        counting = self._count_s is not None and now_s >= self._count_s
        if counting or now_s >= self._news_s + LOOK_S:
            self._news_s = now_s
            if (self._read(news_name(self.run)) or b"").startswith(COMPLETE):
                self.complete = self._read(complete_name(self.run)) is not None
                if self.complete:  # else it was not synced before the power was lost
                    return
        if self._clock() >= self._list_s + LIST_S:
            self._list()
        unknown = self._hints.keys() - self._cells
        if unknown - self._gaps:
            self._get_to_know(unknown - self._gaps)
            return
        while self._open and self._cell(self._open[0]).packed:
            self._open.popleft()
        if all(self._cell(start).closed for start in self._open):
            if self._count_s is None:
                self._count_s = now_s + self._random.uniform(0, min(COUNT_S, len(self._ring)))
            if not unknown:
                self._finish()
            elif counting:
                self._get_to_know(unknown)
            return
        looks, said = 0, self._said()
        for start in [*self._open]:
            gen = self._cell(start).gen
            if self._hints.get(start, -1) > gen:
                self._look(start, self._hints[start])
            elif (start, gen) not in said:
                self._look(start)
            else:
                continue
            self._open.remove(start)
            self._open.append(start)
            looks += 1
            cell = self._cell(start)
            if cell.closed and not cell.packed and start not in self._stays:
                self._late.setdefault(start, self._clock())
                if self._clock() >= self._late[start] + SILENT_S:  # who closed it has died
                    self._to_pack.append(start)
            if looks == CHECKS:
                break
        if not self.run.whole and not any(self._cell(start).free for start in self._open):
            self._split()

    def _get_to_know(self, starts: Set[int]) -> None:
        """Look at cells of which nothing is known."""
        for start in self._random.sample(sorted(starts), min(LOOKS, len(starts))):
            self._look(start, self._hints[start])
            if start not in self._cells:  # it was not to be seen: the link will tell
                self._propose(start, self._taking(start))

    def _said(self) -> set[tuple[int, int]]:
        """The last records (start, gen) that others know, as they said lately."""
        since_s = self._clock() - 2 * LOOK_S
        lately = [heard.beat for heard in self._heard.values() if heard.read_s >= since_s]
        return {(start, gen) for beat in lately if beat for start, gen, *_ in beat.at}

    def _split(self) -> None:
        """Take the later half of what a slow owner has not begun, if it ends sooner."""
        found = [(*offer, start) for start in self._open for offer in self._offers(start)]
        if found:
            longest = max(found)[0]
            slow = [start for left_s, *_, start in found if left_s >= longest / 2]
            self._compete(self._random.choice(slow), self._splitting)

    def _splitting(self, start: int) -> Change | None:
        for hold in self._cell(start).holds[:NEIGHBOURS]:
            self._hear(hold.owner)
        offers = self._offers(start)
        if not offers:
            return None
        self.counts["split"] += 1
        return Change(self.name, split=max(offers)[1:], threshold=self.threshold)

    def _offers(self, start: int) -> list[tuple[float, str, Spans]]:
        """What could be taken of a cell: (how long its holder still needs, holder, positions)."""
        found = []
        for hold in self._cell(start).holds:
            heard = self._heard.get(hold.owner)
            if hold.owner == self.name or heard is None or heard.beat is None:
                continue
            rate = heard.beat.rate
            ahead = [span for cell, _, *span in heard.beat.at if cell == start and span[1]]
            if not ahead or rate <= 0 or self.rate <= 0:
                continue
            first, stop = ahead[0]
            first += int(rate * (self._clock() - heard.read_s + LOOK_S))
            later = sp.common(hold.spans, ((first, stop),)) if first < stop else ()
            half = sp.count(later) // 2 // self._unit * self._unit
            left_s = sp.count(hold.spans) / rate
            if half and half / self.rate + LOOK_S < left_s:
                spans = sp.minus(later, sp.head(later, sp.count(later) - half))
                found.append((left_s, hold.owner, spans))
        return found

    def _finish(self) -> None:
        """Mark the run as complete."""
        if self._cell_files is not None:
            for start in self.run.starts:  # who closed it may have died before
                if not self._cell(start).packed and start not in self._stays:
                    self._to_pack.append(start)
            while self._to_pack:
                self._beat()
                self._pack()
            self._cell_files.finish(self._beat)
        said = digest("".join(self._cell(start).digest for start in self.run.starts).encode())
        mine = Complete(self.run.number, len(self.run.starts), said)
        name = complete_name(self.run)
        # Who made the last record may have died before its name was on the disk.
        self._store.sync_folder(lease_name(0, 0))
        self._made(name, encode(mine))
        raw = self._read(name)
        if raw is not None:
            if decode(Complete, raw, name) != mine:
                raise Damage(name, "it was made of other records than those that are there")
            self.complete = True
            with suppress(OSError):  # the others find it by themselves, though later
                self._store.overwrite(news_name(self.run), COMPLETE)

    # ---- who lives -------------------------------------------------------------------

    def _beat(self, soon: int | None = None) -> None:
        """Give a sign of life, if it is due, or if positions of a cell will soon be held."""
        now_s = self._clock()
        if soon is None and now_s < self._beat_s + BEAT_S:
            return
        self._beat_s = now_s
        self._beats += 1
        starts = [*self._mine][:HINTS] + ([] if soon is None else [soon])
        at = tuple(
            (start, max(0, self._cell(start).gen), *self.ahead.get(start, (0, 0)))
            for start in starts
        )
        raw = encode(Beat(self._beats, self.rate, at)).ljust(BEAT_BYTES)
        self.counts["beats"] += 1
        self._store.overwrite(beat_name(self.name), raw)
        # Silence of others counts only while this job's beats get through. It may have been
        # suspended meanwhile, so the time between two of them counts for little more than a beat.
        now_s = self._clock()
        if self._through_s is not None:
            self._watched_s += min(now_s - self._through_s, 1.5 * BEAT_S)
        self._through_s = now_s

    def _watch(self) -> None:
        """Look at the beats of some owners."""
        now_s = self._clock()
        if now_s >= self._ring_s + LIST_S:
            self._ring_s = now_s
            others = set(filter(is_owner, self._store.names("beats")))
            names = sorted((others - self._gone) | {self.name})
            at = names.index(self.name)
            self._ring = [*names[at + 1 :], *names[:at]]
            if self._ring:  # to learn what they have done
                self._list()
            if self._gone:  # it may have been suspended
                owner = self._random.choice(sorted(self._gone))
                self._hear(owner)
                if self._watched_s - self._heard[owner].since_s >= FORGET_S:
                    self._store.remove(beat_name(owner))
        watched = dict.fromkeys(
            [owner for owner in self._ring if owner not in self._gone][:NEIGHBOURS], LOOK_S
        )
        if self.idle:
            holders = {hold.owner for start in self._open for hold in self._cell(start).holds}
            every_s = max(LOOK_S, len(holders) / IDLE_LOOKS)
            for owner in holders - {self.name, *watched}:
                watched[owner] = every_s
        for owner, every_s in watched.items():
            heard = self._heard.get(owner)
            if heard is None or now_s >= heard.read_s + every_s:
                self._hear(owner)
        while self._ended:
            self._hear(self._ended[0])
            self._silent.add(self._ended.popleft())

    def _hear(self, owner: str) -> None:
        heard = self._heard.get(owner)
        raw = self._read(beat_name(owner))
        now_s = self._clock()
        if heard is None or heard.raw != raw:
            if heard and self.run.whole and self._cell(self.run.first).held(owner):
                raise EnvironmentFault(
                    "another job is at work on this run, which one job does as a whole. Repeat the "
                    "command when that job has ended"
                )
            beat = read_beat(raw)
            self._heard[owner] = Heard(raw, self._watched_s, now_s, beat)
            for start, gen, *_ in beat.at if beat else ():
                self._hint(start, gen)
            self._silent.discard(owner)
            self._gone.discard(owner)
        else:
            heard.read_s = now_s
            if self._watched_s - heard.since_s >= SILENT_S:
                self._silent.add(owner)

    def _take_over(self) -> None:
        """Take the positions of owners that are silent."""
        for owner in sorted(self._silent - self._gone):
            beat = self._heard[owner].beat
            starts = {at[0] for at in beat.at if at[0] in self.run.starts} if beat else set()
            starts |= {start for start in self._open if self._cell(start).held(owner)}
            for start in sorted(starts):
                self._look(start)
                if self._cell(start).held(owner):
                    take = max(self._want, int(self.rate * LEASE_S), self._unit)
                    self._propose(
                        start, Change(self.name, (), take, self.threshold, silent=(owner,))
                    )
                    self.counts["taken over"] += 1
            if not any(self._cell(start).held(owner) for start in starts):
                self._gone.add(owner)

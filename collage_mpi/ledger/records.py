"""What the files of the ledger say: typed, bounded and checked, because other jobs wrote them."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from collage_mpi.errors import DataFault
from collage_mpi.ledger.spans import count, in_order

LARGEST_BYTES = 16 << 20
LARGEST_CELL = 1 << 18  # positions: a record of so many fits, whatever rows it lists
MOST_SPANS = LARGEST_CELL // 2
MOST_CELLS = 1 << 17
BEAT_BYTES = 1024
MARK_BYTES = 64
COMPLETE = b"complete"  # what the news say then
FORMAT = 5  # of the whole folder; 1 and 2 have no ledger, 3 other parts, 4 parts that stay
LISTING, OPEN, OVER = "listing", "open", "over"  # what a run's settings may say
DEATHS = 3  # positions that so many holders died with are taken one by one

Owner = Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
Digest = Annotated[str, Meta(pattern=r"^([0-9a-f]{32})?\Z")]  # empty: of no record
Number = Annotated[int, Meta(ge=0, le=1 << 53)]
Span = tuple[Number, Number]
Spans = Annotated[tuple[Span, ...], Meta(max_length=MOST_SPANS)]
T = TypeVar("T")
_MARK = re.compile(rb"\d{1,9} [0-9a-f]{32}")
_NAME = re.compile(r"([0-9]{1,16})\.([0-9]{1,9})")
_OWNER = re.compile(r"[0-9a-f]{32}")


class Damage(DataFault):
    """A file of the ledger was removed or changed, or does not follow from the one before it."""

    def __init__(self, name: str, reason: str) -> None:
        """`name`: of the file, below the run's folder."""
        repair = (
            ", or end all jobs of the run and type collage-mpi verify --repair: what follows the "
            "damage is moved away and done again"
        )
        repairable = name.startswith(("leases/", "COMPLETE."))
        super().__init__(
            f"{name}: {reason}. Restore the file from a copy{repair if repairable else ''}."
        )
        self.name, self.reason = name, reason


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows that count, in a file of parts/.

    Attributes:
        file, size, crc: the file.
        spans: the positions of the rows that count.
        errors: those of them whose rows are error rows.
        threshold: the number of the threshold by which they were done.
        reason: why the rows replace older rows of the same positions; empty: they replace none.
        others: the positions of all other rows in the file.
    """

    file: Annotated[str, Meta(pattern=r"^images-[0-9]{4,5}-[0-9]{6,18}\.parquet\Z")]
    size: Number
    crc: Annotated[int, Meta(ge=0, lt=1 << 32)]
    spans: Spans
    errors: Spans = ()
    threshold: Number = 0
    reason: Annotated[str, Meta(pattern=r"^[ -~]{0,80}\Z")] = ""
    others: Spans = ()

    @property
    def name(self) -> str:
        """Of the file, below the run's folder: in parts/, or a whole `rows_name`."""
        return self.file if "/" in self.file else f"parts/{self.file}"


class Hold(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Positions that only their owner may commit. `threshold`: the number of the one they go by."""

    owner: Owner
    spans: Spans
    threshold: Number = 0


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The state of a cell after one change. The first record of a cell has gen 0.

    Attributes:
        start, stop: the positions of the cell.
        gen: number of the change.
        prev: digest of the record before.
        by: whose change it is.
        parts: all rows of the cell that count, oldest first.
        holds: who has which of the other positions; those of nobody are free.
        tried: positions whose holders died: once, twice, three times, and more often.
    """

    start: Number
    stop: Number
    gen: Annotated[int, Meta(ge=0, lt=10**9)]
    prev: Digest
    by: Owner
    parts: Annotated[tuple[Part, ...], Meta(max_length=1 << 15)] = ()
    holds: Annotated[tuple[Hold, ...], Meta(max_length=1 << 12)] = ()
    tried: Annotated[tuple[Spans, ...], Meta(max_length=DEATHS + 1)] = ()


class Beat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sign of life of an owner. What it says beside are hints that decide nothing.

    Attributes:
        count: grows with each beat.
        rate: positions that the owner does in a second.
        at: for some cells in which it holds positions, (start, last record known, first, stop):
            the positions from first to stop it will do last, and has not begun; 0, 0: unknown.
    """

    count: Number
    rate: float
    at: tuple[tuple[Number, Number, Number, Number], ...]


class Format(msgspec.Struct, frozen=True):
    """Of the ledger, as each version writes it into the file of a run."""

    format: int


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What all jobs of a run share.

    Attributes:
        number: 1; each later run adds positions to those of the runs before it.
        first, stop: its positions.
        cell: positions of a cell; the last one may have fewer.
        by: the owner that made it.
        again: positions of earlier runs whose images it asks again, by its own first positions.
        whole: one job does all of it, in one cell.
        settings: what fixes the run's rows.
        format: of the ledger.
        dropped: positions of earlier runs whose rows count no longer.
    """

    number: Annotated[int, Meta(ge=1, lt=10**6)]
    first: Number
    stop: Number
    cell: Annotated[int, Meta(ge=1, le=1 << 53)]
    by: Owner | None = None
    again: Spans = ()
    whole: bool = False
    settings: dict[str, Any] = {}
    format: int = FORMAT
    dropped: Spans = ()

    @property
    def grows(self) -> bool:
        """Whether more images of the input are to be listed, for the next run."""
        return bool(self.settings.get(LISTING) == OPEN)

    @property
    def asking(self) -> Spans:
        """Its positions whose images earlier runs have, too."""
        return ((self.first, self.first + count(self.again)),) if self.again else ()

    @property
    def starts(self) -> range:
        """Where its cells start."""
        return range(self.first, self.stop, self.cell)

    def end(self, start: int) -> int:
        """Where the cell that starts there ends."""
        return min(start + self.cell, self.stop)


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An owner that has a number. `facts`: what it says of itself."""

    owner: Owner
    facts: dict[str, Any] = {}


class Complete(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Says that a run is complete. `digest` is made of the last records' digests, in order."""

    number: Number
    records: Number
    digest: Digest


def lease_name(start: int, gen: int) -> str:
    """The file of a record."""
    return f"leases/{start}.{gen}"


def rows_name(start: int) -> str:
    """The file with the rows of a packed cell."""
    return f"rows/{start}.parquet"


def lease_of(name: str) -> tuple[int, int] | None:
    """The (start, gen) of a name in leases/; None if it is no name of a record."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def is_owner(name: str) -> bool:
    """Whether a name in beats/ is that of an owner."""
    return _OWNER.fullmatch(name) is not None


def beat_name(owner: str) -> str:
    """The file of an owner's beats."""
    return f"beats/{owner}"


def job_name(number: int) -> str:
    """The file that says which owner has this number."""
    return f"jobs/{number:04d}.json"


def run_name(number: int) -> str:
    """The file of a run."""
    return f"run.{number}.json"


def complete_name(run: Run) -> str:
    """The file that says that a run is complete."""
    return f"COMPLETE.{run.number}"


def news_name(run: Run) -> str:
    """A file that is there from the beginning: who opens it sees whether the run is complete."""
    return f"news.{run.number}"


def digest(raw: bytes) -> str:
    """Of a record's text, 32 hex digits."""
    return hashlib.sha256(raw).hexdigest()[:32]


def encode(thing: msgspec.Struct) -> bytes:
    """As JSON. The text of a cell's first record fills whole blocks of MARK_BYTES, so that the mark
    behind it is in one block, too."""
    raw = msgspec.json.encode(thing)
    first = isinstance(thing, Record) and thing.gen == 0
    return raw.ljust(-(-len(raw) // MARK_BYTES) * MARK_BYTES) if first else raw


def decode(kind: type[T], raw: bytes, name: str) -> T:
    """Read a file's text. Raises Damage."""
    if len(raw) > LARGEST_BYTES:
        raise Damage(name, f"it has more than {LARGEST_BYTES} bytes")
    try:
        found = msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise Damage(name, f"it is damaged ({error})") from error
    sets: list[Spans] = [found.again, found.dropped] if isinstance(found, Run) else []
    if isinstance(found, Record):
        for part in found.parts:
            sets += part.spans, part.errors, part.others
        sets += [*(hold.spans for hold in found.holds), *found.tried]
    if isinstance(found, Run) and len(range(found.first, found.stop, found.cell)) > MOST_CELLS:
        raise Damage(name, f"it is damaged (it has more than {MOST_CELLS} cells)")
    if not all(map(in_order, sets)):
        raise Damage(name, "it is damaged (its positions are not in order)")
    return found


def mark(gen: int, digest: str) -> bytes:
    """What the end of a cell's first file says once the cell is packed: its last record."""
    return f"{gen} {digest}".encode().ljust(MARK_BYTES)


def unmarked(raw: bytes) -> tuple[bytes, tuple[int, str] | None]:
    """The text of a cell's first file, and the (gen, digest) of its last record if it is packed.

    A mark that was cut by a loss of power does not count: the records between are there then.
    """
    text, end = raw[:-MARK_BYTES], raw[-MARK_BYTES:].rstrip()
    gen, _, digest = end.decode("ascii", "replace").partition(" ")
    return text, ((int(gen), digest) if _MARK.fullmatch(end) else None)


def read_beat(raw: bytes | None) -> Beat | None:
    """None if there is none, or it was read while it was written."""
    try:
        return msgspec.json.decode(raw or b"", type=Beat)
    except (msgspec.MsgspecError, UnicodeError):
        return None

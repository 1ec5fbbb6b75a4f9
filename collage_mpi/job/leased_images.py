"""The images of a job, in its coordinator's loop: those that the ledger grants, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from collage_mpi.core.events import Judged, Stages
from collage_mpi.job.packing import Reader
from collage_mpi.job.pairs import Heard, Pair, PairBook
from collage_mpi.ledger.records import DEATHS
from collage_mpi.ledger.spans import Spans, count
from collage_mpi.results.row_sink import RowSink
from collage_mpi.shards.readahead import Images

LOOK_EVERY_NS = 1_000_000  # between looks at what the thread of the ledger has brought
KILLER = f"more than {DEATHS} jobs died while they held this image"


@dataclass(frozen=True)
class Lease:
    """Images that this job has to do now.

    Attributes:
        number: of the lease; numbers grow.
        spans: positions in the order of the run.
        times: so many jobs died with them.
    """

    number: int
    spans: Spans
    times: int = 0


@dataclass(frozen=True)
class Pause:
    """No image is free. More may come if another job dies or leaves."""


@dataclass(frozen=True)
class Close:
    """No further image will come."""


Said = Lease | Pause | Close | Heard


class Link(Protocol):
    """What `LeasedImages` needs of the job's share in the run (`job/shared`)."""

    def hear(self) -> Said | None:
        """What comes next, or None. Raises CollageError if the job cannot go on."""
        ...

    def holds(self, positions: np.ndarray) -> np.ndarray:
        """(n,) bool, which of the positions, (n,) int64, of one lease this job holds still."""
        ...

    def rested(self, number: int) -> None:
        """All images of the leases up to this number that could be read have rows on the disk."""
        ...

    def pairs(self, pairs: tuple[Pair, ...]) -> None:
        """Images that first networks and the exact one have classified."""
        ...


class LeasedImages:
    """A job's leases, in its coordinator's loop.

    The core counts the images of this job from 0. A lease begins with a whole batch of groups.

    Attributes:
        book: pairs that choose a threshold; None if none is chosen.
        look_at_ns: when `look` is due.
    """

    def __init__(
        self, link: Link, reader: Reader, rows: RowSink, unit: int, book: PairBook | None = None
    ) -> None:
        """Begin without leases.

        Args:
            link: to the ledger.
            reader: has no images yet; each lease adds some.
            rows: takes the rows.
            unit: images of a whole batch of groups.
            book: see the attribute.
        """
        self.book = book
        self._link, self._reader, self._rows, self._unit = link, reader, rows, unit
        self.look_at_ns = 0
        # Leases whose images are not all taken, and the core's position of the first image of each
        self._leases: deque[tuple[Lease, int]] = deque()
        self._next = 0  # the core's first position of the next lease
        self._begun = -1  # the last position that was taken, of the first lease
        self._over: Images | None = None  # was read, and is not taken
        self._number = -1  # of the last lease
        self._dry = self._flushed = self._told = self._closed = False
        if book is not None:
            book.tell(link.pairs)

    # ---- images -------------------------------------------------------------

    @property
    def remaining(self) -> int:
        """Number of granted images that were not taken."""
        return self._reader.remaining + (0 if self._over is None else len(self._over))

    @property
    def exhausted(self) -> bool:
        """Whether no further image will come."""
        return self._closed and self.remaining == 0

    @property
    def paused(self) -> bool:
        """Whether no further image will arrive, as far as is known."""
        return self._dry and self.remaining == 0

    @property
    def ahead(self) -> Spans:
        """The positions that are not taken, in the order in which they will be."""
        leases = [lease.spans for lease, _ in [*self._leases]]
        begun = self._begun
        return tuple(
            (max(first, begun + 1) if number == 0 else first, stop)
            for number, spans in enumerate(leases)
            for first, stop in spans
            if number or stop > begun + 1
        )

    def take(self, most: int) -> tuple[int, Images] | None:
        """The next images, at most `most`, and a position for the first; None if none is ready.

        Images that another job has taken over are left out. This does not wait for the disk. A
        failure of the reader is raised here.
        """
        images, self._over = self._over, None
        while images is None or not len(images := self._mine(images)):
            if not (self._reader.ready or self._reader.failed):
                return None
            images = self._reader.take(most)
        lease, first = self._leases[0]
        mine = _inside(images.position, lease.spans) & self._link.holds(images.position)
        own = min(_leading(mine), most)
        if own < len(images):
            images, self._over = images[:own], images[own:]
        self._begun = int(images.position[-1])
        if lease.times > DEATHS:
            images = replace(images, faults=dict.fromkeys(range(own), KILLER))
        return first, images

    def _mine(self, images: Images) -> Images:
        """The images from the first one on that this job holds still; the first lease is its
        lease then.
        """
        while len(images):
            inside = _inside(images.position, self._leases[0][0].spans)
            if not inside[0]:
                self._leases.popleft()  # the rest of it was left out
                self._begun = -1
                continue
            held = self._link.holds(images.position)
            if held[0]:
                break
            images = images[_leading(inside & ~held) :]  # of another cell nothing was asked
        return images

    def draws(self, first: int, positions: np.ndarray) -> np.ndarray | None:
        """Which of the images, (n,) bool, are drawn; see `PairBook.draws`."""
        return None if self.book is None else self.book.draws(first, positions)

    def judged(self, judged: Judged) -> None:
        """Note the outcome of a drawn image."""
        if self.book is not None:
            self.book.judged(judged)

    def look_for_pairs(self) -> None:
        """Pass on new pairs of answers."""
        if self.book is not None:
            self.book.look()

    def stages(self) -> Iterator[Stages]:
        """Which first networks to ask from now on, as was announced since the last call."""
        while self.book is not None and self.book.heard:
            kinds, threshold = self.book.heard.pop(0)
            yield Stages(kinds, None if threshold is None else threshold.confidence)

    # ---- the ledger ---------------------------------------------------------

    def look(self, now_ns: int, unresolved: int) -> bool:
        """Take what has come; called when `look_at_ns` is reached.

        Args:
            now_ns: the present time.
            unresolved: number of unresolved images.

        Returns:
            Whether the reader had no image left, and images or the end of the input came.
        """
        self.look_at_ns = now_ns + LOOK_EVERY_NS
        dry, rests = self.remaining == 0, self.resting(unresolved)
        came = self.hear()
        if rests and self.resting(unresolved):  # also before: so `rows` has all rows
            self._rest()
        return came and dry

    def hear(self) -> bool:
        """Take what has come; whether that are images, or the end of the input."""
        came = False
        while (said := self._link.hear()) is not None:
            came |= self._take(said)
        return came

    def resting(self, unresolved: int) -> bool:
        """Whether all leases are done, as far as is known."""
        return self.paused and not unresolved

    def _rest(self) -> None:
        """All leases are done: write all rows, and tell when they are on the disk."""
        if not self._flushed:
            self._flushed = True
            self._rows.flush()
        elif not self._told and self._rows.idle:
            self._rows.flush()  # nothing is left to write; raises if a part could not be written
            self._told = True
            self._link.rested(self._number)

    def _take(self, said: Said) -> bool:
        if isinstance(said, Lease):
            self._number = said.number
            self._dry = self._flushed = self._told = False
            self._leases.append((said, self._next))
            self._next += -(-count(said.spans) // self._unit) * self._unit
            if self.book is not None:
                self.book.expect(said.spans)
            self._reader.add(said.spans)
        elif isinstance(said, Close):
            self._closed = True
        elif isinstance(said, Pause):
            self._dry = True
        elif self.book is not None:
            self.book.hear(said)
        return isinstance(said, Lease | Close)


def _inside(positions: np.ndarray, spans: Spans) -> np.ndarray:
    """(n,) bool, which of the positions, (n,) int64, are in the spans."""
    found = np.zeros(len(positions), bool)
    for first, stop in spans:
        found |= (positions >= first) & (positions < stop)
    return found


def _leading(flags: np.ndarray) -> int:
    """How many of the flags, (n,) bool, are true before the first that is not."""
    return len(flags) if flags.all() else int(flags.argmin())

"""A team's connection to the lead: images come in as leases, and parts are reported to it.

Team 0 calls the lead, which is in its process; the other teams send messages (`LeadLink`).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np

from collage_mpi.core.events import Judged
from collage_mpi.core.outcomes import Totals
from collage_mpi.errors import CollageError, ExitCode
from collage_mpi.job import messages
from collage_mpi.job.calibration import Pair, PairBook
from collage_mpi.job.messages import (
    Close,
    Halt,
    Idle,
    Lease,
    Message,
    Part,
    Pause,
    Progress,
    SetThreshold,
)
from collage_mpi.job.packing import Reader
from collage_mpi.job.plan import Plan
from collage_mpi.job.worker import Endpoint, Rank0Watch
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.transport import RankFailure
from collage_mpi.results.row_sink import RowSink
from collage_mpi.shards.order import Range, ranges_of
from collage_mpi.shards.readahead import Images
from collage_mpi.system.backoff import GROUP_BACKOFF, Backoff

LOOK_EVERY_NS = 1_000_000  # between polls of the lead's messages; the team has a lease ahead
ALIVE_EVERY_NS = 500_000_000  # between heartbeats
PAIRS_A_MESSAGE = 500  # at some 40 bytes each
LEAD_LOST = "the lead, rank 0, is lost"

Said = TypeVar("Said", bound=Message)
Result = TypeVar("Result")


class Dismissed(CollageError):
    """The lead has told the team to leave: the job is over, or the team was given up."""

    def __init__(self, code: int) -> None:
        super().__init__("the lead has told this team to leave")
        self.exit_code = ExitCode(code)


class LeadLost(CollageError):
    """The lead's next message will not come."""

    exit_code = ExitCode.INCOMPLETE


class Link(Protocol):
    """A team's connection to the lead.

    Attributes:
        lost: why the lead is lost, or None. Reading it does not poll.
    """

    @property
    def lost(self) -> str | None: ...
    def say(self, message: Message) -> None: ...
    def hear(self) -> Message | None: ...
    def stop_reason(self) -> str | None:
        """Poll, and say why not to go on, or None; for loops that wait for others."""
        ...

    def during(self, work: Callable[[], Result]) -> Result:
        """Run work that waits for a disk; heartbeats go on meanwhile."""
        ...

    def follow(self, progress: Callable[[], Progress]) -> None:
        """From now on heartbeats say what `progress` returns."""
        ...

    def totals(self, own: Totals) -> Totals:
        """The totals of all teams that are known here; `own`: those of this team."""
        ...


class LeadLink:
    """Another team's connection to the lead, by messages. A heartbeat is sent twice a second."""

    def __init__(
        self,
        endpoint: Endpoint,
        monitor: Rank0Watch,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._progress: Callable[[], Progress] = lambda: Progress(0, 0, 0)
        self.gone = threading.Event()  # the lead is lost; also set by the thread that monitors it
        self._endpoint, self._monitor, self._clock = endpoint, monitor, clock
        self._alive_ns = 0
        self._end: int | None = None  # the exit code, once the lead has told the team to leave
        self._heard: deque[Message] = deque()  # came while another message was awaited

    def say(self, message: Message) -> None:
        """Send a message, unless the lead is lost."""
        if not self.gone.is_set():
            buffer = self._endpoint.buffer(wire.CONTROL_BYTES)
            self._endpoint.send(buffer, messages.pack(buffer, 0, message))

    def follow(self, progress: Callable[[], Progress]) -> None:
        """From now on heartbeats say what `progress` returns."""
        self._progress = progress

    def totals(self, own: Totals) -> Totals:
        """The team's own totals: it does not know those of other teams."""
        return own

    def hear(self) -> Message | None:
        """The lead's next message, or None.

        Raises:
            Dismissed: the lead has told the team to leave.
        """
        return self._heard.popleft() if self._heard else self._poll()

    def stop_reason(self) -> str | None:
        """Poll, and say why not to go on, or None; for loops that wait for others.

        Raises:
            Dismissed: as in `hear`.
        """
        while (said := self._poll()) is not None:
            self._heard.append(said)
        return self.lost

    def during(self, work: Callable[[], Result]) -> Result:
        """Run work that waits for a disk in a thread; heartbeats go on meanwhile.

        Raises:
            Dismissed: as in `hear`, after the work is done.
        """
        backoff = Backoff(GROUP_BACKOFF)
        with ThreadPoolExecutor(1, "collage-mpi end") as pool:
            done = pool.submit(work)
            while not done.done():
                self.stop_reason()
                backoff.pause()
            return done.result()

    @property
    def lost(self) -> str | None:
        """Why the lead is lost, or None. This does not poll."""
        return LEAD_LOST if self.gone.is_set() else None

    def wait_for(self, kind: type[Said], interrupted: Callable[[], str | None]) -> Said:
        """Wait for the lead's next message of this type.

        Raises:
            LeadLost, Dismissed: it will not come.
        """
        backoff = Backoff(GROUP_BACKOFF)
        while True:
            reason = self.stop_reason() or interrupted()
            for said in self._heard:
                if isinstance(said, kind):
                    self._heard.remove(said)
                    return said
            if reason is not None:
                raise LeadLost(reason)
            backoff.pause()

    def wait_for_the_end(self) -> int:
        """Wait for the lead's exit code; that of an incomplete run if the lead is lost."""
        backoff = Backoff(GROUP_BACKOFF)
        try:
            while self.stop_reason() is None:
                backoff.pause()
        except Dismissed as told:
            return int(told.exit_code)
        return int(ExitCode.INCOMPLETE)

    def wait_to_leave(self) -> None:
        """Wait until the lead says that MPI may end, or the time is over; see `messages.Leave`."""
        backoff = Backoff(GROUP_BACKOFF)
        until_ns = self._clock() + round(messages.LEAVE_WAIT_S * 1e9)
        while not self.gone.is_set() and self._clock() < until_ns:
            message = self._endpoint.poll_control()
            if message is not None and isinstance(messages.unpack(message, 0), messages.Leave):
                return
            backoff.pause()

    def _poll(self) -> Message | None:
        if self.gone.is_set():
            return None
        if self._end is not None:  # an error while the team leaves must not hide the exit code
            raise Dismissed(self._end)
        if self._clock() >= self._alive_ns:
            self._alive_ns = self._clock() + ALIVE_EVERY_NS
            self.say(self._progress())
        try:
            message = self._endpoint.poll_control()
        except RankFailure:
            self.gone.set()
            return None
        if message is None:
            return None
        said = messages.unpack(message, 0)
        if isinstance(said, messages.Rank0):
            self._monitor.meet(said.host, said.process, said.tcp_link)
            self.say(messages.Here())
            return self._poll()
        if isinstance(said, messages.Stop):
            self._monitor.release()
            self.say(messages.Bye())
            self._end = said.exit_code
            raise Dismissed(said.exit_code)
        return said


class Supply:
    """A team's leases, in its coordinator's loop: takes images in, and reports parts.

    Attributes:
        halted: why the lead has told the team to stop.
        book: pairs that choose a threshold; None if none is chosen.
        look_at_ns: when `look` is due.
    """

    def __init__(self, link: Link, plan: Plan, reader: Reader, rows: RowSink) -> None:
        """`reader` has no images yet; each lease adds some."""
        self.halted: str | None = None
        self.book: PairBook | None = None
        self._link, self._plan, self._reader, self._rows = link, plan, reader, rows
        self._size = plan.settings.group_size
        self._totals: Totals | None = None
        self._warm: Callable[[int], None] | None = None  # is told the session's first group
        self.look_at_ns = 0
        self._new: deque[tuple[Lease, list[Range]]] = deque()  # not introduced; their positions
        # Leases whose images are not all taken: number, position of the first image, ranges
        self._leases: deque[tuple[int, int, list[Range]]] = deque()
        self._over: Images | None = None  # read together with images of the lease before
        self._begun = -1  # number of the last lease that has begun
        self._lease, self._epoch = -1, 0  # number and epoch of the last lease
        self._no_lease = self._flushed = self._told = self._closed = False

    def attach(
        self, totals: Totals, warm_up_from: Callable[[int], None], book: PairBook | None = None
    ) -> None:
        """Connect the parts of the loop that new images are announced to."""
        self._totals, self._warm, self.book = totals, warm_up_from, book
        if book is not None:
            book.tell(self._say_pairs)
        self._introduce()

    def hear(self) -> bool:
        """Take all messages of the lead; whether images or the end of the input came.

        It may be called before `attach`: the reader then begins to read the images.
        """
        came = False
        while (said := self._link.hear()) is not None:
            came |= self._take(said)
        return came

    # ---- images -------------------------------------------------------------

    @property
    def remaining(self) -> int:
        """Number of granted images that were not taken."""
        return self._reader.remaining + (0 if self._over is None else len(self._over))

    @property
    def exhausted(self) -> bool:
        """Whether no further image will come."""
        return self._closed and not self._new and self.remaining == 0

    @property
    def paused(self) -> bool:
        """Whether no further image will arrive, as far as is known."""
        return self._no_lease and self.remaining == 0

    def take(self, count: int) -> tuple[int, Images] | None:
        """The next images, at most `count`, and the position of the first; None if none is ready.

        This does not wait for the disk. A failure of the reader is raised here.
        """
        images, self._over = self._over, None
        if images is None:
            if not (self._reader.ready or self._reader.failed):
                return None
            images = self._reader.take(count)
            if not len(images):
                return None
        own = self._own(images)
        while not own:  # the rest of the lease was left out
            self._begin(self._leases.popleft()[0])
            own = self._own(images)
        own = min(own, count)
        if own < len(images):
            self._over, images = images[own:], images[:own]
        number, first, ranges = self._leases[0]
        self._begin(number)
        return first + _offset(int(images.position[0]), ranges), images

    def _begin(self, number: int) -> None:
        """The first image of the lease was taken, or all of them were left out."""
        if number > self._begun:
            self._begun = number
            self._link.say(messages.Begun(number))

    def _own(self, images: Images) -> int:
        """How many of the images, from the first on, belong to the present lease."""
        inside = np.zeros(len(images), bool)
        for start, stop in self._leases[0][2]:
            inside |= (images.position >= start) & (images.position < stop)
        return len(images) if inside.all() else int(inside.argmin())

    def calibrates(self, first: int, indices: np.ndarray) -> np.ndarray | None:
        """Which of the images, (n,) bool, choose the threshold; see `PairBook.calibrates`."""
        return None if self.book is None else self.book.calibrates(first, indices)

    def judged(self, judged: Judged) -> None:
        """Note the outcome of a drawn image."""
        if self.book is not None:
            self.book.judged(judged)

    def look_for_pairs(self) -> None:
        """Pass on new pairs of answers."""
        if self.book is not None:
            self.book.look()

    def thresholds(self) -> Iterator[float | None]:
        """The thresholds that were announced since the last call."""
        while self.book is not None and self.book.heard:
            yield self.book.heard.pop(0).confidence

    # ---- the lead -----------------------------------------------------------

    @property
    def progress(self) -> Progress:
        """The team's progress."""
        totals = self._totals
        assert totals is not None
        told = totals.images, totals.errors, totals.collage, totals.audited, totals.differing
        return Progress(*told)

    def look(self, now_ns: int, unresolved: int) -> bool:
        """Exchange messages with the lead; called when `look_at_ns` is reached.

        Args:
            now_ns: the present time.
            unresolved: number of unresolved images.

        Returns:
            Whether the reader had no image left, and images or the end of the input came.
        """
        self.look_at_ns = now_ns + LOOK_EVERY_NS
        dry = self.remaining == 0
        came = self.hear() and dry
        self._introduce()
        for number, _, _ in self._leases if not self.remaining else ():
            self._begin(number)
        self.tell_of_parts()
        if self.resting(unresolved):
            self._rest()
        return came

    def resting(self, unresolved: int) -> bool:
        """Whether all leases are done, as far as is known."""
        return self.paused and not unresolved

    def tell_of_parts(self) -> None:
        """Ask the lead to publish the parts that are on the disk."""
        while self._rows.pending:
            part = self._rows.pending.popleft()
            packed = () if part.images is None else messages.packed_ranges(self._held(part.images))
            self._link.say(Part(part.table, part.number, self._epoch, packed))

    def _held(self, rows: np.ndarray) -> list[Range]:
        """The positions of images; rows: (k,) with the columns shard and row."""
        return ranges_of(np.sort(self._plan.order.positions(self._plan.indices_of(rows))))

    def _rest(self) -> None:
        """All leases are done: write all rows, and tell the lead when they are on the disk."""
        if not self._flushed:
            self._flushed = True
            self._rows.flush()
        elif not self._told and self._rows.idle:
            self._rows.flush()  # nothing is left to write; raises if a part could not be written
            self.tell_of_parts()
            self._told = True
            self._link.say(Idle(self._lease))

    def _take(self, said: Message) -> bool:
        if isinstance(said, Lease):
            self._add(said)
        elif isinstance(said, Close):
            self._closed = True
        elif isinstance(said, Pause):
            self._no_lease = True
        elif isinstance(said, Halt):
            self.halted = said.reason
        elif isinstance(said, SetThreshold) and self.book is not None:
            self.book.heard.append(said)
        return isinstance(said, Lease | Close)

    def _say_pairs(self, pairs: tuple[Pair, ...]) -> None:
        for start in range(0, len(pairs), PAIRS_A_MESSAGE):
            self._link.say(messages.Pairs(pairs[start : start + PAIRS_A_MESSAGE]))

    def _add(self, lease: Lease) -> None:
        self._lease, self._epoch = lease.number, lease.epoch
        self._no_lease = self._flushed = self._told = False
        ranges = messages.unpacked_ranges(lease.places)
        self._new.append((lease, ranges))
        self._leases.append((lease.number, lease.first_group * self._size, ranges))
        self._reader.add(ranges)

    def _introduce(self) -> None:
        """Announce the images of new leases to the attached parts."""
        while self._new:
            lease, ranges = self._new.popleft()
            if self._warm is not None:
                self._warm(lease.first_group)
                self._warm = None
            if self.book is not None:
                self.book.expect(ranges)


def _offset(position: int, ranges: list[Range]) -> int:
    """How many positions of the ranges come before this one, which is in them."""
    before = 0
    for start, stop in ranges:
        if start <= position < stop:
            break
        before += stop - start
    else:
        raise ValueError(f"position {position} is in none of {ranges}")
    return before + position - start


def order_digest(plan: Plan) -> str:
    """SHA-256 of the order and the shards: equal if positions mean the same images on two hosts."""
    digest = hashlib.sha256(plan.order.key)
    for info in plan.shards.infos:
        digest.update(info.fingerprint.encode())
    return digest.hexdigest()

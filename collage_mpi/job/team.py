"""A team's end of what it and the lead say: images come as leases, parts go to be published.

Team 0 calls the lead, which is in its process; the other teams send messages (`LeadLink`).
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Protocol, TypeVar

import numpy as np

from collage_mpi.errors import CollageError, ExitCode
from collage_mpi.job import messages
from collage_mpi.job.calibration import Pair, PairBook
from collage_mpi.job.image_buffer import ImageBuffer, Reader
from collage_mpi.job.messages import (
    Close,
    Halt,
    Idle,
    Lease,
    Lull,
    Message,
    Part,
    Progress,
    SetThreshold,
)
from collage_mpi.job.plan import Plan
from collage_mpi.job.recorder import Recorder, Totals
from collage_mpi.job.worker import Endpoint, Rank0Watch
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.transport import RankFailure
from collage_mpi.results.row_sink import RowSink
from collage_mpi.system.backoff import GROUP_BACKOFF, Backoff

LOOK_EVERY_NS = 1_000_000  # at the lead's messages: it is a lease ahead
ALIVE_EVERY_NS = 500_000_000
PAIRS_A_MESSAGE = 500  # of some 40 bytes each
LEAD_LOST = "the lead, rank 0, is lost"

Said = TypeVar("Said", bound=Message)
Result = TypeVar("Result")


class Dismissed(CollageError):
    """The lead has told the team to leave: the job is over, or the team was given up."""

    def __init__(self, code: int) -> None:
        super().__init__("told to leave")
        self.exit_code = ExitCode(code)


class LeadLost(CollageError):
    """What the lead was to say will not come."""

    exit_code = ExitCode.INCOMPLETE


class Link(Protocol):
    """What a team needs of its connection to the lead.

    Attributes:
        lost: why the lead can no longer be heard, or None; costs no look.
    """

    @property
    def lost(self) -> str | None: ...
    def say(self, message: Message) -> None: ...
    def hear(self) -> Message | None: ...
    def stop_reason(self) -> str | None:
        """For loops that wait for others: why not to go on, or None."""
        ...

    def during(self, work: Callable[[], Result]) -> Result:
        """Do what waits for a disk, which may be slow; the lead hears meanwhile of the team."""
        ...

    def follow(self, progress: Callable[[], Progress]) -> None:
        """From now on `progress` tells how far the team is."""
        ...

    def totals(self, own: Totals) -> Totals:
        """The totals of all teams as far as they are known here, given the team's own."""
        ...


class LeadLink:
    """Another team's connection to the lead, by messages. Progress is told twice a second."""

    def __init__(
        self,
        endpoint: Endpoint,
        monitor: Rank0Watch,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._progress: Callable[[], Progress] = lambda: Progress(0, 0, 0)
        self.gone = threading.Event()  # set by whoever notices first that the lead is lost
        self._endpoint, self._monitor, self._clock = endpoint, monitor, clock
        self._alive_ns = 0
        self._end: int | None = None  # the exit code, once the lead has told the team to leave
        self._heard: deque[Message] = deque()  # while something else was waited for

    def say(self, message: Message) -> None:
        """Send it; to a lead that is lost, nothing."""
        if not self.gone.is_set():
            buffer = self._endpoint.buffer(wire.CONTROL_BYTES)
            self._endpoint.send(buffer, messages.pack(buffer, 0, message))

    def follow(self, progress: Callable[[], Progress]) -> None:
        """From now on `progress` tells how far the team is."""
        self._progress = progress

    def totals(self, own: Totals) -> Totals:
        """The team's own: it knows of no other team."""
        return own

    def hear(self) -> Message | None:
        """What the lead has said next, or None.

        Raises:
            Dismissed: it has told the team to leave.
        """
        return self._heard.popleft() if self._heard else self._poll()

    def stop_reason(self) -> str | None:
        """For loops that wait for others: what keeps from going on, if anything does.

        Raises:
            Dismissed: as `hear`.
        """
        while (said := self._poll()) is not None:
            self._heard.append(said)
        return self.lost

    def during(self, work: Callable[[], Result]) -> Result:
        """Do what waits for a disk, in a thread; the lead hears meanwhile of the team.

        Raises:
            Dismissed: as `hear`, when the work is done.
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
        """What the loss of the lead is to those who hear it otherwise; costs no look."""
        return LEAD_LOST if self.gone.is_set() else None

    def wait_for(self, kind: type[Said], interrupted: Callable[[], str | None]) -> Said:
        """The lead's message of a kind.

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
        """The exit code that the lead gives, or that of a run that goes on by --resume."""
        backoff = Backoff(GROUP_BACKOFF)
        try:
            while self.stop_reason() is None:
                backoff.pause()
        except Dismissed as told:
            return int(told.exit_code)
        return int(ExitCode.INCOMPLETE)

    def wait_to_leave(self) -> None:
        """Until the lead says that MPI may end; see `messages.Leave`."""
        backoff = Backoff(GROUP_BACKOFF)
        while not self.gone.is_set():
            message = self._endpoint.poll_control()
            if message is not None and isinstance(messages.unpack(message, 0), messages.Leave):
                return
            backoff.pause()

    def _poll(self) -> Message | None:
        if self.gone.is_set():
            return None
        if self._end is not None:  # what fails while the team leaves must not hide it
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
    """The leases of a team in its coordinator's loop."""

    def __init__(self, link: Link, plan: Plan, reader: Reader, rows: RowSink) -> None:
        """`reader` has no image yet, and takes more."""
        self.halted: str | None = None  # why the lead has told to stop
        self.book: PairBook | None = None
        self._link, self._plan, self._reader, self._rows = link, plan, reader, rows
        self._size = plan.settings.group_size
        # Of several teams no two may use one number; one team counts its images and groups.
        self._numbered = plan.settings.teams > 1
        self.look_at_ns = 0
        self._given = 0  # images so far
        self._new: deque[tuple[Lease, np.ndarray]] = deque()  # heard of, and their images
        self._waiting: deque[tuple[int, int]] = deque()  # leases not begun, images given before
        self._lease, self._epoch = -1, 0  # the last one, and whose it is
        self._lull = self._flushed = self._told = self._closed = False
        self._warm = False  # whether it is known from which group on the warm-up counts

    def attach(self, feed: ImageBuffer, recorder: Recorder, book: PairBook | None = None) -> None:
        """Where its images come in, who counts them, and who pairs the answers for them."""
        self._feed, self._recorder, self.book = feed, recorder, book
        if book is not None:
            book.tell(self._say_pairs)
        feed.grow()
        self._introduce()

    def hear(self) -> bool:
        """Take what the lead has said; whether images have come, or the end of them.

        Before `attach` the reader begins to read what has come.
        """
        came = False
        while (said := self._link.hear()) is not None:
            came |= self._take(said)
        return came

    @cached_property
    def _places(self) -> Places:
        return Places(self._plan)

    def group_of(self, image: int, size: int) -> int | None:
        """The number of its group, of that size, if the lease gives it: images are numbered by
        group and cell."""
        return image // size if self._numbered else None

    @property
    def paused(self) -> bool:
        """Whether no image is left to come in, for all that is known."""
        return self._lull and self._reader.remaining == 0

    @property
    def progress(self) -> Progress:
        """How far the team is."""
        totals = self._recorder.totals
        told = totals.images, totals.errors, totals.collage, totals.audited, totals.differing
        return Progress(*told)

    def look(self, now_ns: int, unresolved: int) -> bool:
        """Hear and tell, from `look_at_ns` on; whether images have come where none was left, or the
        end of them.

        `unresolved`: images in the job.
        """
        self.look_at_ns = now_ns + LOOK_EVERY_NS
        dry = self._reader.remaining == 0
        came = self.hear() and dry
        self._introduce()
        while self._waiting and self._given - self._reader.remaining > self._waiting[0][1]:
            self._link.say(messages.Begun(self._waiting.popleft()[0]))
        self.tell_of_parts()
        if self.paused and not unresolved:
            self._rest()
        return came

    def tell_of_parts(self) -> None:
        """Ask for those to be published that are on the disk."""
        while self._rows.pending:
            part = self._rows.pending.popleft()
            ranges = () if part.images is None else self._places.of(part.images)
            packed = messages.packed_ranges(ranges)
            self._link.say(Part(part.table, part.number, self._epoch, packed))

    def _rest(self) -> None:
        """All that was given is done: its rows go to the disk, and then the lead is told so."""
        if not self._flushed:
            self._flushed = True
            self._recorder.write_late()
            self._rows.flush()
        elif not self._told and self._rows.idle:
            self._rows.flush()  # of nothing: raises what kept a part from the disk
            self.tell_of_parts()
            self._told = True
            self._link.say(Idle(self._lease))

    def _take(self, said: Message) -> bool:
        if isinstance(said, Lease):
            self._add(said)
        elif isinstance(said, Close):
            self._closed = True
        elif isinstance(said, Lull):
            self._lull = True
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
        self._lull = self._flushed = self._told = False
        ranges = messages.unpacked_ranges(lease.places)
        parts = [self._plan.order[start:stop] for start, stop in ranges]
        indices = parts[0] if len(parts) == 1 else np.concatenate(parts)  # of all images: no copy
        self._new.append((lease, indices))  # (k,) int64
        self._waiting.append((lease.number, self._given))
        self._given += len(indices)
        self._reader.add(indices)

    def _introduce(self) -> None:
        """Tell those who are attached of the images that were heard of."""
        while self._new:
            lease, indices = self._new.popleft()
            if not self._warm:
                self._warm = True
                self._recorder.warm_up_from(lease.first_group)
            if self._numbered:
                self._feed.number(indices.tolist(), lease.first_group * self._size)
            if self.book is not None:
                self.book.expect(indices)
        if self._closed:
            self._feed.close()


class Places:
    """Positions in the job's order, of images that are known by shard and row."""

    def __init__(self, plan: Plan) -> None:
        counts = [info.count for info in plan.shards.infos]
        self._starts = np.cumsum([0, *counts], dtype=np.int64)
        # Of each image of the input, in 4 bytes if they hold it
        self._position = np.empty(sum(counts), np.min_scalar_type(sum(counts)))
        self._position[plan.order] = np.arange(len(plan.order))

    def of(self, keys: np.ndarray) -> list[tuple[int, int]]:
        """[start, stop) ranges of positions; keys: (k,) with the columns shard and row."""
        indices = self._starts[keys["shard"]] + keys["row"].astype(np.int64)
        return ranges_of(np.sort(self._position[indices]))


def ranges_of(numbers: np.ndarray) -> list[tuple[int, int]]:
    """Ascending numbers, (k,) int64, as [start, stop) ranges."""
    if not len(numbers):
        return []
    cuts = np.flatnonzero(np.diff(numbers) > 1)
    starts = numbers[np.concatenate([[0], cuts + 1])]
    stops = numbers[np.concatenate([cuts, [len(numbers) - 1]])] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


def order_digest(plan: Plan) -> str:
    """By which the lead and a team know that they mean the same images by the same positions."""
    digest = hashlib.sha256(plan.order.tobytes())
    for info in plan.shards.infos:
        digest.update(info.fingerprint.encode())
    return digest.hexdigest()

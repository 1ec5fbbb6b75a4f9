"""A job's share in its run: a thread that takes images from the ledger and commits written rows.

File servers hang for minutes, so no operation on the ledger is done in rank 0's loop.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

import numpy as np

from collage_mpi.core.outcomes import Totals
from collage_mpi.job.agreed import Agreed
from collage_mpi.job.leased_images import Close, Lease, LeasedImages, Pause, Said
from collage_mpi.job.pairs import Pair
from collage_mpi.ledger.owner import LEASE_S, Owner
from collage_mpi.ledger.records import Part
from collage_mpi.ledger.spans import Span, Spans, count

TURN_S = 1.0
SOON_S = 0.1  # between turns at which the job lacks images
WINDOW_S = 30.0  # the job's rate is that of this time
LEAVE_S = 60.0  # how long the end tries to commit and to give back
SHARES = 4  # leases of a team at least
FIRST_TURNS = 3  # to find free images in a run that others have begun
BATCHES_AHEAD = 4  # at least


class Share:
    """What one job does of its run. The thread begins with `begin` and ends with `end`.

    Attributes:
        fault: why the thread ended; None if it has not.
    """

    def __init__(
        self,
        owner: Owner,
        unit: int,
        rate: float,
        teams: int = 1,
        agreed: Agreed | None = None,
        dead: Callable[[], Iterable[str]] = tuple,
        leaves: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            owner: of the job, in the ledger.
            unit: images of a whole batch of groups.
            rate: images in a second that the job is expected to do.
            teams: number of teams of the world, which begin together. They share also a run that
                takes each of them only seconds.
            agreed: chooses the threshold; None without `agree`.
            dead: the owners of which it is known that they have died. Raises OSError.
            leaves: the job ends when other jobs hold all images that are left.
            clock: monotonic, in s.
        """
        self.fault: Exception | None = None
        self._owner, self._unit, self._agreed, self._clock = owner, unit, agreed, clock
        self._first, self._leaves = owner.run.first, leaves
        owner.rate = rate
        self._dead, self._look_for_dead = dead, True
        self._said: deque[Said] = deque()
        self._number = -1  # of the last lease
        self._rested = -1  # all images of the leases up to this one are written
        run = owner.run
        images = run.stop - run.first
        self._most = images // (SHARES * teams) if teams > 1 else 2 * images
        self._wanted = max(1, images) if run.whole else self._amount()
        self._done: deque[tuple[float, int]] = deque()  # times, and images done by then
        self._paused = self._closed = False
        self._due_s, self._soon = clock(), False  # the next turn
        self._seconds = 0.0  # that the owner has worked
        self._wake, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="collage-mpi ledger", daemon=True)

    def begin(self, totals: Totals, leased: LeasedImages) -> None:
        """Start the thread. `totals`: of the job's core; `leased`: what this link serves. Raises
        CollageError."""
        self._totals, self._leased = totals, leased
        self._bury()
        for _ in range(FIRST_TURNS):  # so that the first images are there
            if self._owner.grants or self._owner.complete:
                break
            self._turn_of_owner(self._wanted)
        self._turn()
        leased.hear()
        self._thread.start()

    # ---- for the loop (leased_images.Link) -------------------------------------------

    def hear(self) -> Said | None:
        """See `leased_images.Link`."""
        if self.fault is not None:
            raise self.fault
        if not (self._paused or self._closed) and self._leased.remaining < self._wanted / 2:
            self._turn_soon()
        return self._said.popleft() if self._said else None

    def holds(self, positions: np.ndarray) -> np.ndarray:
        """See `leased_images.Link`."""
        at = positions + self._first
        held = self._owner.held(self._start_of(int(at[0])))
        found = np.zeros(len(at), bool)
        for first, stop in held:
            found |= (at >= first) & (at < stop)
        return found

    def rested(self, number: int) -> None:
        """See `leased_images.Link`."""
        self._rested = number
        self._turn_soon()

    def pairs(self, pairs: tuple[Pair, ...]) -> None:
        """See `leased_images.Link`."""
        if self._agreed is not None:
            self._agreed.pairs(pairs)
            self._wake.set()

    def lost_a_job(self) -> None:
        """Another job has died: look which one."""
        self._look_for_dead = True
        self._turn_soon()

    def wrote(self, part: Part) -> None:
        """Rows are on the disk; called in the thread that writes them."""
        self._owner.wrote(part)

    @property
    def hurry(self) -> bool:
        """Whether the run nears its end, so that rows should be written soon."""
        return self._owner.hurry

    @property
    def total(self) -> int:
        """The images that this job does, if no other does any more: those that it has done, and
        those of the run that have no row, as far as is known."""
        owner, done = self._owner, self._totals.images
        return done if owner.complete else max(done, owner.rows + owner.left)

    # ---- the thread -----------------------------------------------------------

    def _work(self) -> None:
        try:
            while not self._ended.is_set():
                if self._clock() >= self._due_s:
                    self._turn()
                    self._due_s = self._clock() + TURN_S
                self._agree()
                self._wake.wait(max(0.0, self._due_s - self._clock()))
                self._wake.clear()
                if self._soon:
                    self._soon = False
                    self._due_s -= TURN_S - SOON_S
        except Exception as error:  # the loop raises it
            self.fault = error

    def _turn_soon(self) -> None:
        """Take the next turn soon; called in any thread."""
        if not self._soon:
            self._soon = True
            self._wake.set()

    def _agree(self) -> None:
        """Choose the threshold, or learn of it."""
        if self._agreed is not None:
            with suppress(OSError):  # the owner counts for how long the folder has not worked
                self._said.extend(self._agreed.turn())
                self._owner.threshold = self._agreed.number

    def _turn(self) -> None:
        """Do what is due in the ledger, as long as that brings images that are wanted."""
        owner, more = self._owner, True
        self._bury()
        self._measure()
        while more and not self._ended.is_set():
            owner.ahead = self._ahead()
            if not owner.grants:
                self._turn_of_owner(self._lacking())
            more = bool(owner.grants)
            while owner.grants:
                _, spans, times = owner.grants.popleft()
                self._number += 1
                self._paused = False
                self._said.append(Lease(self._number, self._moved(spans, -self._first), times))
        self._look_for_the_end()

    def _turn_of_owner(self, want: int = 0) -> None:
        began_s = self._clock()
        self._owner.turn(want)
        self._seconds += self._clock() - began_s

    @property
    def rows(self) -> int:
        """How many rows of this job count."""
        return self._owner.rows

    @property
    def cost(self) -> dict[str, float]:
        """What the ledger has cost this job: records, seconds, takeovers and splits."""
        counts = self._owner.counts
        taken = {"taken_over": counts["taken over"], "split": counts["split"]}
        return {"records": counts["records"], "seconds": self._seconds, **taken}

    def _bury(self) -> None:
        """Let the positions of jobs that have died become free."""
        if self._look_for_dead:
            with suppress(OSError):
                for owner in self._dead():
                    self._owner.died(owner)
                self._look_for_dead = False

    def _lacking(self) -> int:
        """How many images to look for now."""
        waiting = sum(count(said.spans) for said in [*self._said] if isinstance(said, Lease))
        ahead = self._leased.remaining + waiting
        return self._wanted - ahead if ahead < self._wanted / 2 else 0

    def _measure(self) -> None:
        """How many images a second the job does, and so how many it wants to have ahead."""
        if self._paused or self._owner.run.whole:
            return
        self._done.append((self._clock(), self._totals.images))
        now_s, done = self._done[-1]
        while len(self._done) > 2 and self._done[1][0] <= now_s - WINDOW_S:
            self._done.popleft()
        since_s, before = self._done[0]
        if now_s - since_s >= TURN_S and done > before:
            self._owner.rate = (done - before) / (now_s - since_s)
        self._wanted = self._amount()

    def _amount(self) -> int:
        """How many images to have ahead."""
        return max(min(int(self._owner.rate * LEASE_S), self._most), BATCHES_AHEAD * self._unit)

    def _ahead(self) -> dict[int, Span]:
        """Cell -> the positions that this job has not begun and will do last."""
        found: dict[int, Span] = {}
        for first, stop in self._moved(self._leased.ahead, self._first):
            found[self._start_of(first)] = first, stop
        return found

    def _look_for_the_end(self) -> None:
        """Close the input if no image will come; pause it if none is free."""
        owner = self._owner
        if self._closed:
            return
        waits = owner.idle and not self._said
        # It holds only images that cannot be read, or it is not to wait for other jobs.
        over = owner.holding or (self._leaves and owner.all_taken)
        over = over and self._rested == self._number and not owner.waiting
        if owner.complete or owner.alone or (waits and over):
            self._closed = True
            self._said.append(Close())
        elif waits and not self._paused:
            self._paused = True
            self._said.append(Pause())

    def _start_of(self, position: int) -> int:
        run = self._owner.run
        return position - (position - run.first) % run.cell

    @staticmethod
    def _moved(spans: Spans, by: int) -> Spans:
        return tuple((first + by, stop + by) for first, stop in spans)

    # ---- the end ----------------------------------------------------------------

    def leave(self, stop_reason: Callable[[], str | None] = lambda: None) -> bool:
        """Commit what is written, give back the rest, and mark the run if it is complete. All
        rows are on the disk.

        Args:
            stop_reason: says why not to wait for other jobs, or None.

        Returns:
            Whether the run is complete.

        Raises:
            CollageError: the ledger failed, or the folder does.
        """
        self._ended.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join()
        if self.fault is not None:
            raise self.fault
        owner, until_s = self._owner, self._clock() + LEAVE_S
        # If another job has taken some of the last images meanwhile, that one completes the run.
        waits = self._closed and not self._leaves
        while self._clock() <= until_s:
            self._turn_of_owner()
            if not owner.waiting:
                complete = owner.settle()
                waits = waits and not owner.holding and stop_reason() is None
                if owner.leave() and (complete or not waits):
                    return complete
            time.sleep(TURN_S)
        return False

"""Follows the start of a job until MPI is up on all ranks: who is there, who is missing."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from collage_mpi.system.printable import numbered

TELL_AFTER_S = 30.0  # until the first message about a slow start; the next come at twice the time
INIT_LIMIT_S = 120.0  # until MPI must be up after all ranks have begun to start it (usually 1 s)
END_GRACE_S = 10.0  # until MPI must be up after a rank has ended
MOST_NAMED = 12

BUS_ERROR = "/dev/shm may be full"  # ranks of one host exchange messages there
SIGNAL_NAMES = {int(number): number.name for number in signal.Signals}


@dataclass(frozen=True)
class Death:
    """The end of a rank, as the shell around it reports it. `code` is 128 + the number for a
    signal.
    """

    rank: int
    code: int

    @property
    def by_signal(self) -> bool:
        """Whether a signal killed it."""
        return self.code > 128


class Startup:
    """The state of a start.

    Args:
        ranks: of the world.
        limit_s: time until rank 0 must report that MPI is up, or send anything else that
            launch listens for. None if it is unknown whether a report will come (a user's
            script); then the limit counts from the moment at which a rank reports that it
            begins to start MPI.
        clock: monotonic seconds.
    """

    def __init__(self, ranks: int, limit_s: float | None, clock: Callable[[], float]) -> None:
        self.up = False
        self.there: set[int] = set()  # ranks whose Python runs and begins to start MPI
        self.ended: Death | None = None  # the first rank that ended before MPI was up
        self._ranks, self._clock, self._began_s = ranks, clock, clock()
        self._limited = limit_s is not None
        self._until_s = math.inf if limit_s is None else self._began_s + limit_s
        self._tell_after_s = TELL_AFTER_S

    @property
    def watched(self) -> bool:
        """Whether MPI is expected to come up and has not yet."""
        return not self.up and (self._limited or bool(self.there))

    def arrived(self, rank: int) -> None:
        """A rank begins to start MPI. Once all ranks do, MPI is up within moments."""
        self.there.add(rank)
        if len(self.there) >= self._ranks:
            self._at_most(INIT_LIMIT_S)

    def has_ended(self, death: Death) -> None:
        """A rank has ended. Without it MPI cannot start, unless it was just about to."""
        if not self.up and self.ended is None:
            self.ended = death
            self._at_most(END_GRACE_S)

    def too_late(self, now_s: float) -> bool:
        """Whether the time for the start is over."""
        return self.watched and now_s > self._until_s

    def was_suspended(self, gap_s: float) -> None:
        """Launch was suspended together with the ranks, so this time does not count."""
        self._began_s += gap_s
        self._until_s += gap_s

    def news(self, now_s: float) -> str | None:
        """What to print, now and then, about a start that takes long."""
        waited_s = now_s - self._began_s
        if not self.watched or waited_s < self._tell_after_s:
            return None
        self._tell_after_s = 2 * waited_s
        return f"MPI is not up after {waited_s:.0f} s: {self.who_is_missing()}"

    def status(self) -> dict[str, Any]:
        """The status for the display."""
        there = len(self.there)
        return {"phase": "starting", "done": there, "total": self._ranks, "unit": "ranks"}

    def who_is_missing(self) -> str:
        """The ranks that the others wait for, in words."""
        if self.ended is not None:
            how = SIGNAL_NAMES.get(self.ended.code - 128, f"code {self.ended.code}")
            full = f": {BUS_ERROR}" if how == "SIGBUS" else ""
            return f"rank {self.ended.rank} has ended before it ({how}{full})"
        missing = [rank for rank in range(self._ranks) if rank not in self.there]
        if not missing:
            return f"all {self._ranks} ranks have begun to start MPI and wait for each other"
        return (
            f"{len(self.there)} of {self._ranks} ranks are there; nothing yet of "
            f"{numbered('rank', missing, MOST_NAMED)}: dead, hung or slow to import"
        )

    def _at_most(self, seconds: float) -> None:
        self._until_s = min(self._until_s, self._clock() + seconds)

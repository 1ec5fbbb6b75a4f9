"""Whether a run's status is of a job that lives: judged by counters that move, or do not.

Owns: how old a status is, what is said of its job.
Does not know: what a status holds (status), terminals.

Two counters lie in a run's folder: the claim's, which a thread of the job moves on every
second whatever the job is doing (claim), and the status's own, which its loop moves on. Both
are watched on the watcher's own clock; times that the writer wrote, or a file server, are of
other clocks and only shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from collage_mpi.results.claim import LOOK_S, STILL_S, Holder, read_claims
from collage_mpi.results.manifest import STATUSES, Json
from collage_mpi.results.status import read_status

ENDED, ALIVE, SILENT, DEAD, UNKNOWN = "ended", "alive", "silent", "dead", "unknown"
_LATE = 3  # intervals of a status: then it is called old


@dataclass(frozen=True)
class View:
    """One look at a run.

    Attributes:
        status: as `read_status` gives it.
        life: ENDED: the job has said how. ALIVE: its counter moves. SILENT: it has stood still
            for LOOK_S and more. DEAD: its process was of this machine and has ended, or nobody
            claims the folder. UNKNOWN: not watched for long enough.
        still_s: how long the job's counter has stood still, watched.
        age_s: how long the status has stood still, watched: at least so old is it.
    """

    status: Json
    life: str
    still_s: float
    age_s: float

    @property
    def old(self) -> bool:
        """Whether the status is older than it should be."""
        return self.life in (SILENT, DEAD) or self.age_s > _LATE * self.status["every_s"] + 1

    @property
    def lost(self) -> bool:
        """Whether the job counts as dead: surely, or as another session would judge it."""
        return self.life == DEAD or self.still_s >= STILL_S


class Watch:
    """Looks at a run again and again."""

    def __init__(self, run: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._clock = run, clock
        self._began_s = clock()
        self._claims: dict[Path, bytes] | None = None
        self._count: tuple[str, int, int] | None = None
        self._moved_s = self._changed_s = self._began_s
        self._moves = False

    def look(self) -> View:
        """How the run stands now.

        Raises:
            EnvironmentFault, DataFault: as `read_status`.
        """
        claims = read_claims(self._run)  # first: a job gives its claim back after its last status
        status = read_status(self._run)
        now_s = self._clock()
        count = status["run_id"], status["session"], status["count"]
        if claims != self._claims:
            self._moves = self._claims is not None
            self._claims, self._moved_s = claims, now_s
        if count != self._count:
            self._count, self._changed_s = count, now_s
        still_s = now_s - self._moved_s
        return View(status, self._life(status, claims, still_s), still_s, now_s - self._changed_s)

    def _life(self, status: Json, claims: dict[Path, bytes], still_s: float) -> str:
        if not any(not Holder.read(raw).ended for raw in claims.values()):
            return ENDED if status["state"] in STATUSES else DEAD
        if still_s >= LOOK_S:  # an ended job's may be left where it was killed at its very end
            return ENDED if status["state"] in STATUSES else SILENT
        return ALIVE if self._moves else UNKNOWN

"""Follows a job's ranks from launch.

`Startup` follows the start until MPI is up on all ranks. `RankProcesses` follows the processes on
this host: which process is which rank, how long rank 0 has been stopped or all ranks have been
gone, and which shared memory they used.

A suspended job stops as a whole, together with launch, and goes on later. So rank 0 counts as
stopped only while other ranks of the host are running and launch looks.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collage_mpi.system.environment import mpi_rank
from collage_mpi.system.forked import RELAY
from collage_mpi.system.hard_exit import UCX, shared_memory, unlink
from collage_mpi.system.launchers import Death
from collage_mpi.system.printable import numbered
from collage_mpi.system.process_tree import holders_of, stat_of

TELL_AFTER_S = 30.0  # until the first message about a slow start; the next come at twice the time
INIT_LIMIT_S = 120.0  # until MPI must be up after all ranks have begun to start it (usually 1 s)
END_GRACE_S = 10.0  # until MPI must be up after a rank has ended
MOST_NAMED = 12

BUS_ERROR = "/dev/shm may be full"  # ranks of one host exchange messages there
SIGNAL_NAMES = {int(number): number.name for number in signal.Signals}


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

    @property
    def ended_by(self) -> Death | None:
        """The rank that ended the job: a signal killed it before MPI was up, or it left while the
        others waited for MPI. None if there is no such rank, or its exit code is unknown.
        """
        death = self.ended
        if death is None or death.code is None:
            return None
        return death if death.by_signal or self.watched else None

    def has_ended(self, death: Death) -> None:
        """A rank has ended. Without it MPI cannot start, unless it was just about to."""
        if not self.up and self.ended in (None, Death(None, death.rank)):
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
            rank, code = self.ended.rank, self.ended.code
            if code is None:
                return f"rank {rank} has ended before it"
            how = SIGNAL_NAMES.get(code - 128, f"code {code}")
            full = f": {BUS_ERROR}" if how == "SIGBUS" else ""
            return f"rank {rank} has ended before it ({how}{full})"
        missing = [rank for rank in range(self._ranks) if rank not in self.there]
        if not missing:
            return f"all {self._ranks} ranks have begun to start MPI and wait for each other"
        return (
            f"{len(self.there)} of {self._ranks} ranks are there; nothing yet of "
            f"{numbered('rank', missing, MOST_NAMED)}: dead, hung or slow to import"
        )

    def _at_most(self, seconds: float) -> None:
        self._until_s = min(self._until_s, self._clock() + seconds)


LOOK_EVERY_S = 1.0  # between looks at the processes
LOOK_AT_START_S = 0.3  # the same during the start; Python takes longer than this to begin
LONGEST_LOOK_S = 2.0  # after a longer gap between looks launch itself was stopped


class RankProcesses:
    """The processes of a job's ranks. Ask for `lost` ranks while MPI starts, call `meet` once MPI
    is up, and then `look` now and then.

    Args:
        word: NAME=value in the environment of all these processes.
    """

    def __init__(self, word: str, proc: Path = Path("/proc")) -> None:
        self._word, self._proc = word, proc
        self._files: set[Path] = set()
        self._ranks: dict[int, int] = {}  # pid -> rank, without shells and children of ranks
        self._missing: set[int] = set()  # ranks that had no process at the last `lost`
        self._looked_s = 0.0
        # At the last look: how long rank 0 has been stopped while another rank of this host was
        # running, and how long all ranks of this host have been gone.
        self.still_s = self.gone_s = 0.0

    def meet(self) -> None:
        """Find the processes, their ranks, and the shared memory that they have mapped."""
        ranks, shells, parents = {}, set(), {}
        for pid in holders_of(self._word, self._proc):
            rank = mpi_rank(self._environment(pid))
            if rank is None:
                continue
            ranks[pid] = rank
            self._files.update(shared_memory(self._proc / str(pid) / "maps", UCX))
            name, fields = self._stat(pid)
            parents[pid] = int(fields[1])
            if name in ("sh", RELAY):
                shells.add(pid)
        own = parents.keys() - shells
        self._ranks = {pid: ranks[pid] for pid in own if parents[pid] not in own}

    def lost(self) -> int | None:
        """Look again; the lowest rank that had a process, but not at this and the last look."""
        missing, there = self._missing, {*self._ranks.values()}
        self.meet()
        self._missing = (there | missing) - {*self._ranks.values()}
        return min(missing & self._missing, default=None)

    @property
    def rank_0(self) -> int | None:
        """The process of rank 0, if it is on this host."""
        return next((pid for pid, rank in self._ranks.items() if rank == 0), None)

    def look(self, now_s: float) -> float:
        """Seconds for which rank 0 has been stopped while another rank of this host was running."""
        gap_s, self._looked_s = now_s - self._looked_s, now_s
        state = {pid: self._stat(pid)[1][0] for pid in self._ranks}
        alone = any(state[pid] not in ("T", "t", "Z", "") for pid in state if self._ranks[pid] > 0)
        pid = self.rank_0
        # Not t: then a debugger has stopped it.
        still = alone and pid is not None and state[pid] == "T"
        counted_s = min(gap_s, LONGEST_LOOK_S)
        self.still_s = self.still_s + counted_s if still else 0.0
        gone = pid is not None and all(letter in ("Z", "") for letter in state.values())
        self.gone_s = self.gone_s + counted_s if gone else 0.0
        return self.still_s

    def stopped(self) -> list[int]:
        """The ranks of this host that a signal has stopped."""
        return sorted(rank for pid, rank in self._ranks.items() if self._stat(pid)[1][0] == "T")

    def tidy(self) -> None:
        """Remove the shared memory that ended ranks have left."""
        unlink(self._files)

    def _stat(self, pid: int) -> tuple[str, list[str]]:
        try:
            return stat_of(pid, self._proc)
        except OSError:
            return "", ["", "0"]  # it has ended

    def _environment(self, pid: int) -> dict[str, str]:
        try:
            text = (self._proc / str(pid) / "environ").read_text(errors="replace")
        except OSError:
            return {}
        return dict(line.split("=", 1) for line in text.split("\0") if "=" in line)

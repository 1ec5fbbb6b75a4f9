"""The ranks of a job on this host, as launch sees them from outside: which process is which rank,
for how long rank 0 alone has stood still or all have been gone, what they had in shared memory.

A job that is suspended stands still as a whole, and goes on when it is woken: so rank 0 counts as
stopped only while other ranks are not, and while launch, which is suspended with them, looks.
"""

from __future__ import annotations

from pathlib import Path

from collage_mpi.system.environment import mpi_rank
from collage_mpi.system.hard_exit import UCX, shared_memory, unlink
from collage_mpi.system.pidfd import stat_of
from collage_mpi.system.process_tree import holders_of

LOOK_EVERY_S = 1.0
LOOK_AT_START_S = 0.3  # Python alone takes longer to begin
LONGEST_LOOK_S = 2.0  # of a longer gap between looks launch was stopped itself


class RankProcesses:
    """The processes of a job's ranks: ask who is `lost` while MPI starts, `meet` them once it is
    up, and `look` now and then.

    Args:
        word: NAME=value in the environment of all of them.
    """

    def __init__(self, word: str, proc: Path = Path("/proc")) -> None:
        self._word, self._proc = word, proc
        self._files: set[Path] = set()
        self._ranks: dict[int, int] = {}  # by process, without shells and children of ranks
        self._missing: set[int] = set()  # ranks, as of the last time that they were met
        self._looked_s = 0.0
        # As of the last look: how long rank 0 has been stopped while another rank of this host was
        # not, and how long rank 0 and all others of this host have been gone.
        self.still_s = self.gone_s = 0.0

    def meet(self) -> None:
        """Find out who they are and what they have mapped."""
        ranks, shells, parents = {}, set(), {}
        for pid in holders_of(self._word, self._proc):
            rank = mpi_rank(self._environment(pid))
            if rank is None:
                continue
            ranks[pid] = rank
            self._files.update(shared_memory(self._proc / str(pid) / "maps", UCX))
            name, fields = self._stat(pid)
            parents[pid] = int(fields[1])
            if name == "sh":
                shells.add(pid)
        own = parents.keys() - shells
        self._ranks = {pid: ranks[pid] for pid in own if parents[pid] not in own}

    def lost(self) -> int | None:
        """Meet them again: the lowest rank that was there, and twice in turn has no process."""
        missing, there = self._missing, {*self._ranks.values()}
        self.meet()
        self._missing = (there | missing) - {*self._ranks.values()}
        return min(missing & self._missing, default=None)

    @property
    def rank_0(self) -> int | None:
        """Rank 0's process, where it is on this host."""
        return next((pid for pid, rank in self._ranks.items() if rank == 0), None)

    def look(self, now_s: float) -> float:
        """For how long, in s, rank 0 has been stopped while another rank of this host was not."""
        gap_s, self._looked_s = now_s - self._looked_s, now_s
        state = {pid: self._stat(pid)[1][0] for pid in self._ranks}
        alone = any(state[pid] not in ("T", "t", "Z", "") for pid in state if self._ranks[pid] > 0)
        pid = self.rank_0
        # Not t: somebody looks at it with a debugger.
        still = alone and pid is not None and state[pid] == "T"
        counted_s = min(gap_s, LONGEST_LOOK_S)
        self.still_s = self.still_s + counted_s if still else 0.0
        gone = pid is not None and all(letter in ("Z", "") for letter in state.values())
        self.gone_s = self.gone_s + counted_s if gone else 0.0
        return self.still_s

    def tidy(self) -> None:
        """They are gone: remove what they had in shared memory and could not."""
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

"""The processes of a job's ranks on this host: which process is which rank, how long rank 0 has
been stopped or all ranks have been gone, and which shared memory they used.

A suspended job stops as a whole, together with launch, and goes on later. So rank 0 counts as
stopped only while other ranks of the host are running and launch looks.
"""

from __future__ import annotations

from pathlib import Path

from collage_mpi.system.environment import mpi_rank
from collage_mpi.system.hard_exit import UCX, shared_memory, unlink
from collage_mpi.system.pidfd import stat_of
from collage_mpi.system.process_tree import holders_of

LOOK_EVERY_S = 1.0
LOOK_AT_START_S = 0.3  # Python alone takes longer to begin
LONGEST_LOOK_S = 2.0  # if a gap is longer, launch was stopped itself


class RankProcesses:
    """The processes of a job's ranks. Ask for `lost` ranks while MPI starts, call `meet` once MPI
    is up, and then `look` now and then.

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
            if name == "sh":
                shells.add(pid)
        own = parents.keys() - shells
        self._ranks = {pid: ranks[pid] for pid in own if parents[pid] not in own}

    def lost(self) -> int | None:
        """Look again; returns the lowest rank that had a process and now twice has none."""
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
        # Not t: somebody looks at it with a debugger.
        still = alone and pid is not None and state[pid] == "T"
        counted_s = min(gap_s, LONGEST_LOOK_S)
        self.still_s = self.still_s + counted_s if still else 0.0
        gone = pid is not None and all(letter in ("Z", "") for letter in state.values())
        self.gone_s = self.gone_s + counted_s if gone else 0.0
        return self.still_s

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

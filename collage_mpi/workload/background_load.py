"""Real contention: processes that keep cores busy next to a rank, in slow periods.

The processes inherit the cores that their rank may use. Every 50 ms they check that the process
that started them is still their parent, so none outlives its rank.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from collage_mpi.system.process_tree import own_command, sheltered
from collage_mpi.workload.service_times import Spells

SLICE_S = 0.05
MOST = 64  # beside one rank
END_S = 2.0


@dataclass(frozen=True)
class Burn:
    """The background load next to one rank.

    Attributes:
        processes: cores kept busy at a time, if the rank may use as many.
        seed, rank, share, spell_s: of the slow periods, as in the delay model markov.
    """

    processes: int
    seed: int
    rank: int
    share: float
    spell_s: float


class Burners:
    """The background processes of this rank."""

    def __init__(self, burn: Burn) -> None:
        """Start the processes; they need some tenths of a second to come up."""
        words = [*own_command("collage_mpi.workload.background_load"), str(os.getpid())]
        words += [str(value) for value in (burn.seed, burn.rank, burn.share, burn.spell_s)]
        with sheltered():
            self._processes = [
                subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                for _ in range(min(burn.processes, MOST))
            ]

    def end(self) -> None:
        """Stop the processes and wait for their end."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait(END_S)
        self._processes = []


def burn(
    spells: Spells,
    parent_alive: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Compute in slow periods and sleep in the others, until the parent is gone."""
    start_s = clock()
    while parent_alive():
        until_s = clock() + SLICE_S
        if spells.slow(clock() - start_s):
            while clock() < until_s:
                pass
        else:
            sleep(SLICE_S)


def main(argv: list[str]) -> None:
    """One background process; arguments: parent's pid, seed, rank, share, spell_s."""
    parent, seed, rank = (int(word) for word in argv[:3])
    share, spell_s = (float(word) for word in argv[3:])
    burn(Spells(seed, rank, share, spell_s), lambda: os.getppid() == parent)


if __name__ == "__main__":
    main(sys.argv[1:])

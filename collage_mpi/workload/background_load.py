"""Creates real contention: processes that keep cores busy beside a rank during slow periods.

The processes inherit the cores that their rank may use. Every 50 ms they check that the rank is
still their parent, so that they end with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from collage_mpi.system.process_tree import own_command, sheltered
from collage_mpi.workload.service_times import Spells

if TYPE_CHECKING:  # this module is also a program, which must start fast
    from collage_mpi.workload.straggler_settings import StragglerSettings

SLICE_S = 0.05
END_S = 2.0


class Burners:
    """The background processes of a rank: one for each core of `--burn-ranks`."""

    def __init__(self, settings: StragglerSettings, rank: int) -> None:
        """Start the processes, which takes them some tenths of a second."""
        share, spell_s = settings.straggler_slow_share, settings.straggler_spell_s
        words = [*own_command("collage_mpi.workload.background_load"), str(os.getpid())]
        words += [str(value) for value in (settings.straggler_seed, rank, share, spell_s)]
        with sheltered():
            self._processes = [
                subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                for _ in range(settings.burning()[rank])
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
    """Compute in slow periods and sleep in others, until the parent has ended."""
    start_s = clock()
    while parent_alive():
        until_s = clock() + SLICE_S
        if spells.slow(clock() - start_s):
            while clock() < until_s:
                pass
        else:
            sleep(SLICE_S)


def main(argv: list[str]) -> None:
    """The background process. Arguments: pid of the parent, seed, rank, share, spell_s."""
    parent, seed, rank = (int(word) for word in argv[:3])
    share, spell_s = (float(word) for word in argv[3:])
    burn(Spells(seed, rank, share, spell_s), lambda: os.getppid() == parent)


if __name__ == "__main__":
    main(sys.argv[1:])

"""What this process says to the user: from one rank only, fit for a terminal.

Owns: who speaks where all ranks have the same to say, and that rank 0 is heard first.
"""

from __future__ import annotations

import sys
import time

from collage_mpi.system.environment import telling_rank
from collage_mpi.system.printable import printable
from collage_mpi.system.safe_stream import SafeStream

# Until MPI is up nothing holds ranks together, and Open MPI ends all of them once one has left
# with an error: rank 0, which has the message, may be that much behind the others.
SPEAK_FIRST_S = 2.0


def tell(message: str) -> None:
    """Print to stderr, from one rank only; see `printable`. A reader that has gone ends no job."""
    if telling_rank() in (None, 0):
        SafeStream(sys.stderr).write(printable(f"{message}\n"))


def let_rank_0_speak() -> None:
    """A silent rank that is about to leave with an error waits, if MPI does not do so."""
    if telling_rank() not in (None, 0) and "mpi4py.MPI" not in sys.modules:
        time.sleep(SPEAK_FIRST_S)

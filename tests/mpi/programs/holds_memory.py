"""Ranks that hold shared memory until they are killed: holds_memory.py READY

Rank 0 writes the job's word and the names of the files into READY when all ranks have mapped them.
"""

import os
import sys
import time
from pathlib import Path

from mpi4py import MPI

from collage_mpi.launch.supervisor import JOB_VARIABLE
from collage_mpi.system.hard_exit import shared_memory

READY = Path(sys.argv[1])

MPI.COMM_WORLD.barrier()
if MPI.COMM_WORLD.rank == 0:
    files = shared_memory(Path("/proc/self/maps"))
    part = READY.with_suffix(".part")
    part.write_text("\n".join([os.environ[JOB_VARIABLE], *map(str, files)]))
    part.rename(READY)
time.sleep(600)

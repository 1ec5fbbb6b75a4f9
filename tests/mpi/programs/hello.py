"""Every rank sends its number to rank 0, which prints them. Point-to-point only.

Usage: hello.py [EXIT_CODE [HANG_RANK]]: leave with a code; a rank that never ends.
"""

import os
import sys
import time

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
code = int(sys.argv[1]) if len(sys.argv) > 1 else 0
if len(sys.argv) > 2 and comm.rank == int(sys.argv[2]):
    time.sleep(600)
if comm.rank == 0:
    ranks = np.full(comm.size, 0, np.int64)
    requests = [comm.Irecv(ranks[peer : peer + 1], peer) for peer in range(1, comm.size)]
    MPI.Request.Waitall(requests)
    print("ranks", *ranks.tolist(), "threads", os.environ.get("OMP_NUM_THREADS"), flush=True)
else:
    comm.Send(np.array([comm.rank], np.int64), 0)
sys.exit(code)

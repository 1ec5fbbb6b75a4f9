"""One rank ends badly while the others wait for it. Usage: fails.py abort|kill|exit RANK."""

import os
import signal
import sys
import time

from mpi4py import MPI

comm = MPI.COMM_WORLD
how, rank = sys.argv[1], int(sys.argv[2])
if comm.rank == rank:
    if how == "abort":
        print(f"collage-mpi run: rank {rank} cannot go on", file=sys.stderr, flush=True)
        time.sleep(0.2)  # so that the message leaves before the launcher reacts
        comm.Abort(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(3)
comm.recv(source=rank)

"""Rank 0 writes statuses until it is asked to stop, then ends all ranks with code 6.

Usage: stoppable.py READY_FILE: the file appears when every rank is ready. Workers leave
signals to rank 0. Point-to-point only.
"""

import signal
import sys
import time
from pathlib import Path

import numpy as np
from mpi4py import MPI

from collage_mpi.system.progress import StatusReporter
from collage_mpi.system.tell import report

comm = MPI.COMM_WORLD
stop: list[int] = []
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, lambda number, _frame: stop.append(number))

word = np.zeros(1, np.int64)
if comm.rank == 0:
    for peer in range(1, comm.size):
        comm.Recv(word, peer)
    Path(sys.argv[1]).touch()
    reporter = StatusReporter(100, "waiting")
    done = 0
    while not stop:
        done += 1
        reporter.update(done)
        time.sleep(0.01)
    reporter.close()
    for peer in range(1, comm.size):
        comm.Send(word, peer)
    print("collage-mpi run: stopped", file=sys.stderr, flush=True)
    report(exit=6)
else:
    comm.Send(word, 0)
    request = comm.Irecv(word, 0)
    while not request.Test():
        time.sleep(0.01)
sys.exit(6)

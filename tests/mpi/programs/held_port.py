"""`collage-mpi` whose ports stay open: its last rank connects only once FOLDER/go is there.

Usage: held_port.py FOLDER RANKS ARGUMENT ...

A rank that listens writes its process and its port to FOLDER/port-N. Until FOLDER/go is
there networks take ten seconds, so that the job is at work all the while.
"""

import os
import sys
import time
from pathlib import Path

from collage_mpi import cli
from collage_mpi.faults import process_monitor, tcp_link
from collage_mpi.models.null import NullPredictor
from collage_mpi.system.environment import launcher_rank

FOLDER, RANKS, ARGUMENTS = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
RANK = launcher_rank()
opened, connect, predict = (
    tcp_link.TcpLink.__init__,
    process_monitor.connect,
    NullPredictor.predict,
)


def told(self, *args, **options):
    opened(self, *args, **options)
    host, port = self.listener.getsockname()
    whole = FOLDER / f"{port}.tmp"
    whole.write_text(f"{RANK} {os.getpid()} {host} {port}")
    whole.rename(FOLDER / f"port-{port}")


def patient(*args):
    while RANK == RANKS - 1 and not (FOLDER / "go").exists():
        time.sleep(0.01)
    return connect(*args)


def slow(self, batch):
    until = time.monotonic() + 10
    while batch.any() and not (FOLDER / "go").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return predict(self, batch)


process_monitor.GREETING_LIMIT_NS //= 5
tcp_link.TcpLink.__init__ = told
process_monitor.connect = patient
NullPredictor.predict = slow
sys.exit(cli.main(ARGUMENTS))

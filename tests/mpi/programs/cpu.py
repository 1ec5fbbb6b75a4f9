"""`collage-mpi` that tells the CPU seconds and the wall seconds of each rank's session.

Usage: cpu.py OUT [ARGUMENT ...]: every rank leaves OUT/RANK.json = [cpu_s, wall_s], from
the start of the session to its end, loading left out.
"""

import json
import sys
import time
from pathlib import Path

from collage_mpi import cli
from collage_mpi.job import coordinator, worker
from collage_mpi.system.environment import launcher_rank

begun = []
plain_start, plain_end = worker.Worker._start, worker.Worker._end
plain_run = coordinator.Coordinator.run


def begin():
    begun[:] = [time.process_time(), time.monotonic()]


def end():
    spent = [time.process_time() - begun[0], time.monotonic() - begun[1]]
    Path(sys.argv[1], f"{launcher_rank()}.json").write_text(json.dumps(spent))


def start(self, told):
    plain_start(self, told)
    begin()


def finish(self, told):
    working = self.session is not None
    plain_end(self, told)
    if working:
        end()


def run(self, *ranks):
    begin()
    found = plain_run(self, *ranks)
    end()
    return found


worker.Worker._start, worker.Worker._end = start, finish
coordinator.Coordinator.run = run
sys.exit(cli.main(sys.argv[2:]))

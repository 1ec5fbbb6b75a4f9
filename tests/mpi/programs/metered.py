"""`collage-mpi` whose rank 0 notes what its loop took.

Usage: metered.py FILE ARGUMENT ...

FILE gets JSON: wall_ns of the loop, process_ns and thread_ns of CPU time in it, images.
"""

import json
import sys
import time
from pathlib import Path

from collage_mpi import cli
from collage_mpi.job import coordinator

FILE = Path(sys.argv[1])
plain = coordinator.Coordinator.run


def clocks():
    return time.monotonic_ns(), time.process_time_ns(), time.thread_time_ns()


def metered(self, *args, **options):
    before = clocks()
    finish = plain(self, *args, **options)
    took = [after - then for after, then in zip(clocks(), before, strict=True)]
    found = dict(zip(("wall_ns", "process_ns", "thread_ns"), took, strict=True))
    FILE.write_text(json.dumps({**found, "images": self.core.outcomes.totals.images}))
    return finish


coordinator.Coordinator.run = metered
sys.exit(cli.main(sys.argv[2:]))

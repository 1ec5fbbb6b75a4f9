"""`collage-mpi` whose rank 0 begins a while after the others, as on a busy machine."""

import sys
import time

from collage_mpi import cli
from collage_mpi.system.environment import launcher_rank

if launcher_rank() == 0:
    time.sleep(0.7)
sys.exit(cli.main(sys.argv[1:]))

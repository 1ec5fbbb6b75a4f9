"""`collage-mpi` whose input is listed in extents of some pictures. The lister waits for the file
open.K before extent K, from 1.

Usage: slow_listing.py PICTURES [ARGUMENT ...]
"""

import itertools
import sys
import time
from pathlib import Path

from collage_mpi import __main__
from collage_mpi.shards import extents, lister

LISTER = "--lister"


def gated(pictures):
    numbers = itertools.count()

    def until(members, until_s, clock):
        number = next(numbers)
        while number and not Path(f"open.{number}").exists():
            time.sleep(0.01)
        yield from itertools.islice(members, pictures)

    return until


if sys.argv[1] == LISTER:
    extents._until = gated(int(sys.argv[2]))
    extents.main()
else:
    command = (sys.executable, __file__, LISTER, sys.argv.pop(1))
    lister.own_command = lambda module: command
    lister.FIRST_S = 0.0
    sys.exit(__main__.main())

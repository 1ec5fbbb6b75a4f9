"""Where a rank is: launcher variables, local rank, device. Reads the environment.

Owns: the names of launcher and Slurm variables (all of them are here).
Does not know: communicators, torch, settings.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")


def launcher_rank(environ: Mapping[str, str] = os.environ) -> int | None:
    """This process's rank as its launcher says, or None outside a launcher.

    Usable before MPI is imported, so that one rank alone prints a usage error.
    """
    for name in RANK_VARIABLES:
        value = environ.get(name, "")
        if value.isdecimal():
            return int(value)
    return None

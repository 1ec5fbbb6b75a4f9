"""PALS, the launcher of HPE Cray machines under PBS: `mpiexec`, and `aprun`, typed by hand only.

It has not been tried on a Cray. Options, variables, exits and signals are those of HPE's own client
(github.com/Cray-HPE/craycli: cray/modules/mpiexec/cli.py, cray/pals.py), and options again as a
user met them (github.com/mlcommons/storage, pull request 549: PALS 1.7.1). The version is
recognised as in github.com/E3SM-Project/mache (mache/parallel/pbs.py: PALS 1.8.0). Ranks' variables
are those that Slurm sets in its place (src/plugins/mpi/cray_shasta/mpi_cray_shasta.c), and
PALS_LOCAL_SIZE, which users read on Aurora, where PALS_PMI is pmix and nothing gives the size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from collage_mpi.system.launchers.base import Death, Launcher, Site

_SIZE = "COLLAGE_MPI_PALS_SIZE"  # by which launch tells it, as PALS with PMIx does not


class Pals(Launcher):
    """It forwards SIGTERM and SIGUSR2. Ranks that survive a lost one are not offered: its
    --no-abort-on-failure is about ranks that exit, and it has not been tried with a lost rank.
    """

    name = "pals"
    word = "pals"
    who = "PALS's mpiexec or aprun"
    wire_up = "either"
    by_pmix, by_pmi = "mpiexec --pmi=pmix", "mpiexec --pmi=cray ..."
    versions = (r"\A\s*mpiexec version (\d\S*)",)
    marks = ("PALS_RANKID",)
    ranks = ("PALS_RANKID",)
    sizes = ("PMI_SIZE", _SIZE)
    local_ranks = ("PALS_LOCAL_RANKID",)
    local_sizes = ("PALS_LOCAL_SIZE",)
    host_numbers = ("PALS_NODEID",)
    lone_line = r"\S+: (rank \d+|shepherd) (exited with code \d+|died from signal \d+)"

    def variables(self, ranks: int, site: Site) -> dict[str, str]:
        """The program is not copied to each host, because a copied Python does not find its
        environment. Output comes in whole lines, because launch looks for status lines in it. The
        world's size is set as well.
        """
        return {"PALS_TRANSFER": "0", "PALS_LINE_BUFFER": "1", _SIZE: str(ranks)}

    def flags(self, ranks: int, site: Site, env: Mapping[str, str]) -> list[str]:
        """Spread evenly and not bound; otherwise a rank would have a single core."""
        return ["--ppn", str(-(-ranks // site.hosts)), "--cpu-bind", "none"]

    def death(self, text: str) -> Death | None:
        """It reports all processes that end badly; first the one for which the others were
        ended.
        """
        found = re.search(r": rank (\d+) (exited with code|died from signal) (\d+)", text)
        if found is None:
            return None
        code = int(found[3]) + (128 if found[2].startswith("died") else 0)
        return Death(code, int(found[1]))

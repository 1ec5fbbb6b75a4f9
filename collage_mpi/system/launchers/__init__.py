"""The launchers, one class each. Everything that differs between launchers is in its class."""

from __future__ import annotations

from collections.abc import Mapping

from collage_mpi.system.launchers.base import Death, Launcher, Site, first_number
from collage_mpi.system.launchers.mpich import Intel, Mpich
from collage_mpi.system.launchers.openmpi import OpenMpi
from collage_mpi.system.launchers.pals import Pals
from collage_mpi.system.launchers.srun import Srun

__all__ = ["FAMILIES", "LAUNCHERS", "MPIS", "SRUN", "Death", "Launcher", "Site", "first_number"]

SRUN = Srun()

# Where several have left their variables the first counts: one that starts its ranks through
# another comes before it. Slurm is last of those: mpiexec inside an sbatch script also shows the
# script's own SLURM_PROCID=0 to every rank. On a Cray Slurm sets PALS's variables as well.
LAUNCHERS: tuple[Launcher, ...] = (OpenMpi(), Mpich(), Intel(), SRUN, Pals())

FAMILIES = {launcher.name: launcher for launcher in LAUNCHERS if launcher.versions}
MPIS = ("auto", *FAMILIES)  # the choices of --mpi


def starter(environ: Mapping[str, str]) -> Launcher | None:
    """The launcher that started the process with this environment, or None if unknown."""
    certain = [launcher for launcher in LAUNCHERS if launcher.started(environ)]
    hinted = [it for it in LAUNCHERS if any(name in environ for name in it.hints)]
    return next(iter(certain + hinted), None)


def over_pmix(environ: Mapping[str, str]) -> bool:
    """Whether the ranks connect over PMIx. Most MPICHs are built without it and would abort."""
    return "PMIX_RANK" in environ


def by_word(word: str | None) -> Launcher | None:
    """The launcher with this name in the doctor's output."""
    return next((launcher for launcher in LAUNCHERS if launcher.word == word), None)

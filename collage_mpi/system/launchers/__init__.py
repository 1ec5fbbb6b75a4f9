"""The launchers, one class each. Everything that differs between launchers is in its class.

Another installed package may add one by an entry point of the group `collage_mpi.launchers`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache

from collage_mpi.errors import CollageError, UsageError
from collage_mpi.plugins import Names
from collage_mpi.system.launchers.base import Death, Launcher, Site, first_number
from collage_mpi.system.launchers.managers import Flux, Pals, Srun
from collage_mpi.system.launchers.mpis import Intel, Mpich, OpenMpi

__all__ = [
    "FAMILIES",
    "LAUNCHERS",
    "MPIS",
    "SRUN",
    "VARIABLE",
    "Death",
    "Launcher",
    "Site",
    "first_number",
    "launcher_of",
    "launchers",
]

SRUN = Srun()

# Where several have left their variables the first counts: one that starts its ranks through
# another comes before it. Slurm is last of those: mpiexec inside an sbatch script also shows the
# script's own SLURM_PROCID=0 to every rank. On a Cray Slurm sets PALS's variables as well. Flux may
# run within a job of Slurm's, and mpiexec within one of Flux's.
LAUNCHERS: tuple[Launcher, ...] = (OpenMpi(), Mpich(), Intel(), Flux(), SRUN, Pals())

FAMILIES = {launcher.name: launcher for launcher in LAUNCHERS if launcher.versions}
MPIS = Names("launcher", "collage_mpi.launchers", Launcher, ("auto", *FAMILIES))  # of --mpi
VARIABLE = "COLLAGE_MPI_LAUNCHER"  # tells ranks which launcher of another package started them


@cache
def launcher_of(name: str) -> Launcher:
    """The launcher with that name, which may come from another package.

    Raises:
        UsageError: there is none.
        EnvironmentFault: the package that adds it is broken.
    """
    added = None if name in FAMILIES else MPIS.load(name)
    if name not in FAMILIES and added is None:
        raise UsageError(f"there is no launcher {name!r}; known are: {', '.join(MPIS)}")
    return FAMILIES[name] if added is None else added()


def launchers(environ: Mapping[str, str]) -> tuple[Launcher, ...]:
    """The launchers that may have started the process of this environment.

    One of another package is among them where the environment names it, and is first then. One
    that cannot be loaded is left out; the command line asks `launcher_of` and says why.
    """
    name = environ.get(VARIABLE)
    try:
        return (launcher_of(name), *LAUNCHERS) if name and name not in FAMILIES else LAUNCHERS
    except CollageError:
        return LAUNCHERS


def starter(environ: Mapping[str, str]) -> Launcher | None:
    """The launcher that started the process with this environment, or None if unknown."""
    known = launchers(environ)
    certain = [launcher for launcher in known if launcher.started(environ)]
    hinted = [it for it in known if any(name in environ for name in it.hints)]
    return next(iter(certain + hinted), None)


def over_pmix(environ: Mapping[str, str]) -> bool:
    """Whether the ranks connect over PMIx. Most MPICHs are built without it and would abort."""
    return "PMIX_RANK" in environ


def by_word(word: str | None) -> Launcher | None:
    """The launcher with this name in the doctor's output."""
    return next((launcher for launcher in launchers(os.environ) if launcher.word == word), None)

"""All checks in the order of the screen, and when each applies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from collage_mpi.doctor import checks_machine as machine
from collage_mpi.doctor import checks_software as software
from collage_mpi.doctor.facts import BAD, Facts, Finding

CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    software.check_python,
    software.check_packages,
    software.check_library,
    software.check_launcher,
    software.check_fault_tolerance,
    machine.check_gpus,
    machine.check_cores,
    machine.check_threads,
    machine.check_shared_memory,
    machine.check_open_files,
    machine.check_folder,
    machine.check_hdf5,
    machine.check_shards,
    machine.check_slurm,
)


def examine(facts: Facts) -> list[Finding]:
    """Every finding about one process's surroundings."""
    return [finding for check in CHECKS for finding in check(facts)]


def can_meet(facts: Facts) -> bool:
    """Whether MPI can be started: with a wrong launcher it would abort the process."""
    packages = {package.name: package for package in facts.packages}
    needed = all(
        package.version is not None and package.error is None
        for name in ("numpy", "mpi4py")
        if (package := packages.get(name)) is not None
    )
    return needed and facts.mpi.library is not None and software.launcher_fits(facts.mpi)


def is_bad(findings: Iterable[Finding]) -> bool:
    """Whether a job would probably not run."""
    return any(finding.verdict == BAD for finding in findings)

"""Checks of Python, packages, the MPI library and its launcher."""

from __future__ import annotations

import re
from collections.abc import Iterator

from collage_mpi.doctor.facts import NO_ANSWER, Facts, Finding, MpiFacts, Package, bad, ok, warn
from collage_mpi.launch.mpiexec import INSTALL_MPI, Mpi, NoLauncher, cannot_fork, choose_mpi
from collage_mpi.system.launchers import FAMILIES, by_word, launcher_of

SRUN_LINES = "srun --mpi=pmi2 ... (MPICH) or srun --mpi=pmix ... (Open MPI)"


def version_key(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: `2.13.0+cpu` is (2, 13, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def check_python(facts: Facts) -> Iterator[Finding]:
    """The interpreter (for information)."""
    yield ok("python", f"{facts.python.version} ({facts.python.executable})")


def check_packages(facts: Facts) -> Iterator[Finding]:
    """Each package is installed, loads, and is new enough; good ones share a line."""
    good: list[str] = []
    missing = [package for package in facts.packages if not (package.version or package.error)]
    if len(missing) > 1:
        names = ", ".join(package.name for package in missing)
        wanted = " ".join(f"'{_wanted(package)}'" for package in missing)
        fix = f"{facts.python.executable} -m pip install {wanted} (is this the right Python?)"
        yield bad("packages", f"not installed: {names}", fix)
    for package in facts.packages:
        problem = _package_problem(package)
        if len(missing) > 1 and package in missing:
            continue
        if problem is None:
            good.append(f"{package.name} {package.version}")
        else:
            yield problem
    if good:
        yield ok("packages", ", ".join(good))


def _wanted(package: Package) -> str:
    return package.name + (f">={package.minimum}" if package.minimum else "")


def _how_to_load(package: Package, wanted: str) -> str:
    if (package.error or "").startswith(NO_ANSWER):
        return (
            "its file system is slow or hangs: try again; if that does not help, move the Python "
            "environment to a faster disk, such as the node's own"
        )
    if package.name == "torch":  # PyPI has the CUDA build, which sees no GPU of ROCm
        return (
            "reinstall the build for your GPUs with the command from "
            "https://pytorch.org/get-started; if a library is missing, load its module"
        )
    return f"pip install --force-reinstall '{wanted}'; if a library is missing, load its module"


def _package_problem(package: Package) -> Finding | None:
    wanted = _wanted(package)
    if package.version is None and package.error is None:
        return bad(package.name, "not installed", f"pip install '{wanted}'")
    if package.error is not None:
        version = f" {package.version}" if package.version else ""
        return bad(
            package.name,
            f"{package.name}{version} is installed but does not load: {package.error}",
            _how_to_load(package, wanted),
        )
    if package.minimum and version_key(package.version or "") < version_key(package.minimum):
        return bad(
            package.name,
            f"{package.version} is too old: {package.minimum} or later is needed",
            f"pip install --upgrade '{wanted}'",
        )
    return None


def check_library(facts: Facts) -> Iterator[Finding]:
    """mpi4py finds an MPI library."""
    mpi = facts.mpi
    if mpi.library is not None:
        yield ok("MPI library", f"{mpi.library.name}, loaded by mpi4py")
    elif mpi.library_error is not None:
        names = " ".join(mpi.overrides)
        fix = f"unset {names}, or " if names else ""
        found = f"mpi4py cannot load one: {mpi.library_error}"
        if names:
            found += "; set: " + ", ".join(f"{k}={v}" for k, v in mpi.overrides.items())
        yield bad("MPI library", found, fix + INSTALL_MPI)


def launcher_fits(mpi: MpiFacts) -> bool:
    """Whether the launcher that started this process fits the library; True if unknown."""
    if mpi.library is None:
        return True
    launcher = by_word(mpi.started_by)
    wire_up = launcher.wire_up if launcher else "either"
    if mpi.library.abi == "openmpi":
        return wire_up != "pmi"
    return mpi.library.pmix or not (mpi.pmix or wire_up == "pmix")


def choose_launcher(facts: Facts) -> Mpi:
    """The launcher that `launch` would take. Raises NoLauncher."""
    library = facts.mpi.library
    return choose_mpi(
        facts.mpi.launchers, facts.wanted.mpi, lambda: library.name if library else None
    )


def check_launcher(facts: Facts) -> Iterator[Finding]:
    """There is a launcher, and it belongs to the library's MPI."""
    mpi, library, wanted = facts.mpi, facts.mpi.library, facts.wanted
    if mpi.under_launcher:
        yield _started_by(mpi)
        return
    if wanted.mpiexec and not mpi.launchers:
        yield bad(
            "launcher",
            f"--mpiexec {wanted.mpiexec}: not there, or not an MPI launcher known here",
            "leave --mpiexec out, or name the mpiexec of the MPI that mpi4py loads",
        )
        return
    try:
        chosen = choose_launcher(facts)
    except NoLauncher as error:
        yield bad("launcher", error.found, error.fix)
        return
    why = cannot_fork(launcher_of(chosen.family), mpi.fork_obstacle)
    start = f"each rank imports torch itself: {why}" if why else "torch is imported once for all"
    yield ok("launcher", f"{chosen}: fits the library; {start}")
    if library and mpi.on_path and mpi.on_path.abi != library.abi:
        yield warn(
            "mpiexec",
            f"mpiexec on PATH is {mpi.on_path}, but mpi4py loads {library.name}: every rank would "
            "be rank 0 of 1",
            f"use `collage-mpi launch`, or {chosen.mpiexec}",
        )


def _started_by(mpi: MpiFacts) -> Finding:
    launcher = by_word(mpi.started_by)
    who = launcher.who if launcher else "an unknown launcher"
    if launcher_fits(mpi):
        return ok("launcher", f"started by {who}")
    assert mpi.library is not None
    if launcher and launcher.by_pmix:
        return bad(
            "launcher",
            f"started by {launcher.by_pmix}, but {mpi.library.name} was built without PMIx and "
            "would abort",
            launcher.by_pmi,
        )
    return bad(
        "launcher",
        f"started by {who}, but mpi4py loads {mpi.library.name}: the ranks cannot meet",
        f"use `collage-mpi launch -n N -- ...`, which finds the mpiexec of {mpi.library.name}",
    )


OUTLIVES = "a job with launch --on-rank-loss continue goes on"


def check_fault_tolerance(facts: Facts) -> Iterator[Finding]:
    """What happens to a job with this MPI if a rank is lost (for information)."""
    library = facts.mpi.library
    if library is None:
        return
    if library.abi == "openmpi":
        there = {
            True: f"{OUTLIVES} (by ULFM)",
            False: "a lost rank ends the job (this Open MPI has no ULFM); run --resume goes on",
            None: "a lost rank may end the job, even with launch --on-rank-loss continue (it is "
            "unknown whether this Open MPI has ULFM)",
        }[facts.mpi.ulfm]
    else:
        families = (FAMILIES[launcher.family] for launcher in facts.mpi.launchers)
        how = next((family.tolerant_how for family in families if family.tolerant_how), None)
        there = "a lost rank ends the job with this MPI; run --resume goes on"
        there = f"{OUTLIVES} ({how})" if how else there
    yield ok("lost ranks", there)

